"""What only a GPU can show, in under nine minutes: `bash bench/gpu.sh`.

It needs torch and transformers and nothing else: the large model has Qwen2.5-1.5B's shape and
random weights, the small one is the embedded model. What works with DeepSpeed is skipped where
DeepSpeed is not installed. Each part is a process of its own with a time limit, so that one that
fails costs no other; after each, the JSON file is written again. With --device cpu all sizes are
tiny, and the parts share a process: the numbers mean nothing, but everything that a CPU has runs.
"""
import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import common
import torch
import torch.distributed as dist
import transformers
from transformers import Qwen2Config

import grpo
import model as lms
import rollout
import solver
import tiny

BUDGET = 520      # seconds for all parts; nine minutes with what comes before and after
SIZES = {
    # shape: as for `large_lm`; prompt, tokens: their lengths, together the context; matrix, copy:
    # side of the matrices and bytes that the card's rates are measured with.
    "cuda": SimpleNamespace(shape=(151_936, 1536, 8960, 28, 12, 2), prompt=768, tokens=256,
                            rows=(128, 512), matrix=8192, copy=2**31),
    "cpu": SimpleNamespace(shape=(512, 64, 96, 2, 4, 2), prompt=12, tokens=10, rows=(8, 16),
                           matrix=64, copy=2**20),
}


class Skipped(Exception):
    """A part that this machine cannot run, and why."""


# ---------------------------------------------------------------------------------------------
# Models, prompts, and the card's rates


def large_lm(size, device):
    """LM in bf16 with random weights, which never ends a completion."""
    vocabulary, hidden, inner, layers, heads, kv_heads = size.shape
    config = Qwen2Config(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
                         num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv_heads, tie_word_embeddings=True)
    torch.manual_seed(0)
    return lms.LM(lms.from_config(config, torch.bfloat16, device),
                  lms.load_tokenizer(tiny.PATH), ())


def small_lm(dtype, device):
    """The embedded model and the prompts of 16 of its tasks."""
    tokenizer = lms.load_tokenizer(tiny.PATH)
    prompts = [lms.encode_chat(tokenizer, solver.prompt(task.question, task.tools))
               for task in tiny.heldout(16)]
    return lms.load(tiny.PATH, tokenizer, dtype, device), prompts


def random_prompts(size, count):
    return torch.randint(size.shape[0], (count, size.prompt)).tolist()


def timed(work, *args):
    """(seconds, result) with the device's work done."""
    def finished():
        result = work(*args)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return common.seconds(finished)


def bandwidth(size, device):
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones(size.copy, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return max(2 * size.copy / timed(target.copy_, source)[0] for _ in range(5))


def matrix_rate(size, device):
    """Floating-point operations per second of a large product in bf16."""
    a = torch.randn(size.matrix, size.matrix, dtype=torch.bfloat16, device=device)
    return max(2 * size.matrix**3 / timed(torch.mm, a, a)[0] for _ in range(10))


def peak_gib():
    """Most memory that tensors have held since the last call; 0 on a CPU."""
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    if peak:
        torch.cuda.reset_peak_memory_stats()
    return peak


# ---------------------------------------------------------------------------------------------
# The parts: functions of (size, device) to {what: value}


def samples_equal(size, device):
    """fp32: are the samples those of a CPU? Rounding may turn a few of them."""
    groups = []
    for place in ("cpu", device):
        lm, prompts = small_lm(torch.float32, place)
        groups.append(lms.sample(lm, prompts, 8, (0,), 1.0, 128, 128))
    pairs = [pair for here, there in zip(*groups) for pair in zip(here, there)]
    gaps = [abs(p - q) for a, b in pairs if a.ids == b.ids for p, q in zip(a.logps, b.logps)]
    return {"completions": len(pairs), "equal to the CPU's": sum(a.ids == b.ids for a, b in pairs),
            "largest log-prob gap of those": max(gaps, default=0.0)}


def graph(size, device):
    """Does the CUDA graph draw what plain steps draw, and what does it save?"""
    if device == "cpu":
        raise Skipped("a CPU has no graphs")
    lm, prompts = large_lm(size, device), random_prompts(size, 16)
    lms.sample(lm, prompts, 8, (0,), 1.0, 8, 128)                   # warm-up
    captured, results = lms.as_cuda_graph, {}
    for name, capture in (("graph", captured), ("plain", lambda step: step)):
        lms.as_cuda_graph = capture
        results[name] = timed(lms.sample, lm, prompts, 8, (1,), 1.0, 128, 128)
    same = sum(a.ids == b.ids for x, y in zip(results["graph"][1], results["plain"][1])
               for a, b in zip(x, y))
    return {"completions": 128, "equal to plain steps'": same,
            **{f"tokens per second, {name}": 128 * 128 / took
               for name, (took, _) in results.items()}}


def sampler_gap(size, device):
    """bf16: how far are the trainer's log-probs from the sampler's, in nats?"""
    small, prompts = small_lm(torch.bfloat16, device)
    models = {"embedded model": (small, prompts),
              "large model": (large_lm(size, device), random_prompts(size, 8))}
    result = {}
    for name, (lm, prompts) in models.items():
        groups = lms.sample(lm, prompts, 8, (0,), 1.0, 64, len(prompts) * 8)
        with torch.no_grad():
            logp_BC, _, mask_BC = lms.token_logprobs(lm.model, lms.pack(groups, device))
        sampled = torch.tensor([x for group in groups for r in group for x in r.logps])
        gap = (logp_BC[mask_BC].cpu() - sampled).abs()
        result |= {f"mean, {name}": gap.mean().item(), f"largest, {name}": gap.max().item()}
    return result


def rollouts(size, device):
    """Tokens per second at two batch sizes: ours, `generate`, and what the memory's bandwidth
    allows if a step reads the weights and every key and value once."""
    lm, rate = large_lm(size, device), bandwidth(size, device)
    weights = sum(p.numel() for p in lm.model.parameters()) * 2
    _, hidden, _, layers, heads, kv_heads = size.shape
    token = layers * 2 * kv_heads * hidden // heads * 2              # bytes of keys and values
    result = {"bandwidth, GB/s": rate / 1e9}
    for rows in size.rows:
        prompts = random_prompts(size, rows // 8)
        read = weights + token * (len(prompts) * size.prompt + rows * size.tokens / 2)
        bound = rows * rate / read
        args = SimpleNamespace(samples=8, most=size.tokens)
        for name, sampler in (("ours", rollout.ours), ("generate", rollout.generate)):
            lm.model.set_attn_implementation("shared_prompt" if name == "ours" else "sdpa")
            what = f"{rows} rows, {name}"
            try:
                sampler(lm, prompts, SimpleNamespace(samples=8, most=4), 0)      # warm-up
                peak_gib()
                took, _ = timed(sampler, lm, prompts, args, 1)
            except torch.OutOfMemoryError:
                result[what] = "out of memory"
                continue
            speed = rows * size.tokens / took
            result |= {f"tokens per second, {what}": speed,
                       f"share of the bound, {what}": speed / bound,
                       f"peak GiB, {what}": peak_gib()}
    return result


class PlainEngine:
    """The engine at the head of grpo.py, on any device."""

    def __init__(self, model, device):
        self.model, self.device = model, torch.device(device)
        self.adam = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def logprobs(self, packed, tokens):
        return lms.token_logprobs(self.model, packed, tokens=tokens)

    def backward(self, loss, last):
        loss.backward()

    def update(self, rate):
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0,
                                              error_if_nonfinite=True)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()
        return norm.item()


def rewarded(lm, size, device):
    """Groups of 8 for 8 random prompts, and rewards that teach something."""
    groups = lms.sample(lm, random_prompts(size, 8), 8, (0,), 1.0, size.tokens, 64)
    return groups, torch.rand(8, 8, generator=torch.Generator().manual_seed(0))


def repeats(model, groups, device):
    """Has a gradient the same bits when it is computed again?"""
    gradients = []
    for _ in range(2):
        model.zero_grad()
        lms.token_logprobs(model, lms.pack(groups[:2], device))[0].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    return all(torch.equal(a, b) for a, b in zip(*gradients))


def training(size, device):
    """A step of the plain engine in bf16: tokens per second, and its share of the matrix rate."""
    lm, rate = large_lm(size, device), matrix_rate(size, device)
    groups, rewards = rewarded(lm, size, device)
    same = repeats(lm.model, groups, device)
    made = PlainEngine(lm.model, device)
    grpo.step(made, groups, rewards, 1e-6, 8192)                    # warm-up
    peak_gib()
    took, metrics = timed(grpo.step, made, groups, rewards, 1e-6, 8192)
    vocabulary, hidden = size.shape[:2]
    body = sum(p.numel() for p in lm.model.parameters()) - vocabulary * hidden
    answers = metrics["tokens"]                          # only these go through the output layer
    tokens = 8 * size.prompt + answers
    # Forward 2 and backward 4 operations for each weight; attention and what is done twice aside.
    operations = 6 * (body * tokens + vocabulary * hidden * answers)
    return {"matrix rate, TFLOP/s": rate / 1e12, "seconds": took,
            "tokens per second": tokens / took,
            "share of the matrix rate": operations / took / rate, "peak GiB": peak_gib(),
            "sampler gap, nats": metrics["sampler_gap"], "gradient repeats bit for bit": same}


def nccl(size, device):
    """The collectives that a run uses, on one rank."""
    kind = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    x = torch.ones(1000, device=device)
    dist.all_reduce(x)
    parts = [None]
    dist.all_gather_object(parts, ["a text"])
    dist.barrier()
    lms.leave_group()
    arrived = bool(x.sum() == 1000) and parts == [["a text"]]
    return {"backend": kind, "sum and texts arrive": arrived}


def deepspeed(size, device):
    """A step on ZeRO-3 with all copies of the weights, and its peak against `--check`'s
    forecast."""
    try:
        import check
        import engine
        from config import Config
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from None
    device = engine.init_distributed()
    settings = Config(max_prompt=size.prompt, max_completion=size.tokens, sample_rows=64)
    lm, opponent = large_lm(size, device), large_lm(size, device)
    made = engine.Engine(large_lm(size, device).model, settings)
    made.load((name, p.detach().float().cpu()) for name, p in lm.model.named_parameters())
    seconds = []
    for _ in range(2):
        groups, rewards = rewarded(lm, size, device)
        seconds.append(timed(grpo.step, made, groups, rewards, 1e-6, settings.micro_tokens)[0])
        made.copy_to(lm.model)
    copy = dict(lm.model.named_parameters())
    assert all(torch.equal(copy[name].cpu(), weight.to(copy[name].dtype))
               for name, weight in made.weights().items())
    forecast = check.forecast(lm.model.config, settings, 1)["peak"] / 2**30
    del opponent      # a run has one in memory all the time
    lms.leave_group()
    return {"seconds of a step": seconds[1], "the copy has the weights": True,
            "peak GiB": peak_gib(), "forecast GiB": forecast}


PARTS = {  # name: (function, seconds at most)
    "samples in fp32": (samples_equal, 60), "graph": (graph, 60), "gap in bf16": (sampler_gap, 60),
    "rollouts": (rollouts, 180), "training step": (training, 90), "NCCL": (nccl, 40),
    "DeepSpeed": (deepspeed, 120)}

# ---------------------------------------------------------------------------------------------
# One after the other


def here(name, device):
    """{what: value} of a part in this process; {"failed" or "skipped": why}."""
    try:
        return PARTS[name][0](SIZES[device], device)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Exception as error:      # whatever it is: the other parts go on
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {lms.one_line(error)}"}


def apart(name, device, seconds):
    """The same in a process of its own that has so many seconds."""
    if seconds < 5:
        return {"skipped": "no time is left"}
    command = [sys.executable, __file__, "--device", device, "--part", name]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {seconds:.0f} s"}
    results = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    if not results:
        return {"failed": f"ended with code {done.returncode}"}
    return json.loads(results[-1].removeprefix("result "))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=SIZES)
    parser.add_argument("--out", type=Path, default="runs/gpu.json", help="file for the result")
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    args = parser.parse_args()
    if args.part:
        print("\nresult " + json.dumps(here(args.part, args.device)))
        return
    on_gpu = args.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu shows that the script runs")
    card = torch.cuda.get_device_name() if on_gpu else "CPU"
    result = {"device": card, "torch": torch.__version__, "transformers": transformers.__version__,
              "parts": {}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for name, (_, limit) in PARTS.items():
        left = min(limit, BUDGET - (time.monotonic() - started))
        part = apart(name, args.device, left) if on_gpu else here(name, args.device)
        result["parts"][name] = part
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        for what, value in part.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{name:18}{what:44}{shown}", flush=True)
    print(f"{card}, torch {torch.__version__}, transformers {transformers.__version__}: "
          f"{time.monotonic() - started:.0f} s; {args.out}")


if __name__ == "__main__":
    sys.exit(main())
