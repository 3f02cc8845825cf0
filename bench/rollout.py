"""Sampled tokens per second: ours against transformers' `generate` and continuous batching, and
vLLM.

    python bench/rollout.py                 # tiny model, 16 prompts x 8 samples, until EOS
    python bench/rollout.py --tokens 64     # as many tokens for every sample
    python bench/rollout.py --probes        # what K = 8 samples cost beside K = 1
    python bench/rollout.py --model models/smollm2 --dtype bfloat16 --prompts 8 --tokens 32 \\
        --unpaged --vllm ENVIRONMENT/bin/python     # a real model; vLLM has its own environment

Everybody draws from the same softmax at temperature 1; tokens behind an EOS do not count.
"""
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import common
import torch
import transformers

import model as lms
import solver
import tiny


def count(rows, eos):
    """Tokens up to and with the first EOS, over all rows."""
    ends = [[n for n, token in enumerate(row, 1) if token in eos] for row in rows]
    return sum(end[0] if end else len(row) for row, end in zip(rows, ends))


def ours(lm, prompts, args, n):
    groups = lms.sample(lm, prompts, args.samples, (n,), 1.0, args.most,
                        len(prompts) * args.samples)
    return [rollout.ids for group in groups for rollout in group]


def settings(lm, args):
    """As ours: the plain softmax, nothing inherited from the model's own configuration."""
    return transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=args.most,
        eos_token_id=list(lm.eos) or None, pad_token_id=lm.tokenizer.pad_token_id)


def generate(lm, prompts, args, n):
    """One padded batch, as its users write it."""
    torch.manual_seed(n)
    padded = lm.tokenizer.pad({"input_ids": [ids for ids in prompts for _ in range(args.samples)]},
                              padding_side="left", return_tensors="pt").to(lm.model.device)
    with torch.no_grad():
        ids = lm.model.generate(**padded, generation_config=settings(lm, args))
    return ids[:, padded["input_ids"].shape[1]:].tolist()


def continuous_batching(lm, prompts, args, n):
    """The same requests; the cache has room for all of them, not for all that the machine has."""
    torch.manual_seed(n)
    requests, block = [ids for ids in prompts for _ in range(args.samples)], 32
    room = sum(-(-(len(ids) + args.most) // block) for ids in requests)
    paged = transformers.ContinuousBatchingConfig(block_size=block, num_blocks=room,
                                                  max_batch_tokens=2048)
    outputs = lm.model.generate_batch(requests, generation_config=settings(lm, args),
                                      progress_bar=False, continuous_batching_config=paged)
    return [output.generated_tokens for output in outputs.values()]


def vllm(lm, prompts, args):
    """vLLM's own process, as a function of the round's number to tokens per second."""
    task = {"model": str(args.model), "dtype": args.dtype, "prompts": prompts,
            "samples": args.samples, "most": args.most, "eos": list(lm.eos)}
    # Its CPU build wants Intel's OpenMP, which pip has put into the environment.
    openmp = Path(shutil.which(args.vllm) or args.vllm).absolute().parents[1] / "lib/libiomp5.so"
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
                 "HF_HUB_OFFLINE": "1",
                 # Every core that we have; by itself it would leave one to the rest of vLLM.
                 "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))))}
    if openmp.exists():
        variables["LD_PRELOAD"] = str(openmp)
    return common.worker([args.vllm, Path(__file__).with_name("vllm_worker.py")],
                         json.dumps(task), env=os.environ | variables)


def timed(sampler, lm, prompts, args):
    """function of the round's number to tokens per second."""
    def run(n):
        seconds, rows = common.seconds(sampler, lm, prompts, args, n)
        return count(rows, lm.eos) / seconds

    return run


def contestants(lm, theirs, prompts, args):
    """{name: run}; who cannot run here says why."""
    runs = {"ours": timed(ours, lm, prompts, args),
            "generate": timed(generate, theirs, prompts, args)}
    if args.vllm:
        runs["vLLM"] = vllm(lm, prompts, args)
    if args.unpaged:
        return runs
    paged = timed(continuous_batching, theirs, prompts, args)
    try:
        paged(0)
    except Exception as error:      # whatever it is: the table goes on without it
        print(f"continuous batching does not run here: {lms.one_line(error)}")
        return runs
    return runs | {"continuous batching": paged}


def probes(lm, prompts, args):
    """{"ours": seconds with K = 8, "K = 1": with one sample}, for the same prompts."""
    def run(samples):
        return lambda n: common.seconds(lms.sample, lm, prompts, samples, (n,), 0.7, args.most,
                                        args.rows)[0]

    return common.take_turns({"ours": run(8), "K = 1": run(1)}, args.rounds)


def main():
    parser = common.parser(__doc__)
    common.add_model(parser, tiny.PATH)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vLLM")
    parser.add_argument("--unpaged", action="store_true",
                        help="leave out continuous batching, the slowest by far on a CPU")
    parser.add_argument("--prompts", type=int, help="16; 128 with --probes")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=0,
                        help="of each sample; 0: until EOS, at most 128")
    parser.add_argument("--probes", action="store_true",
                        help="measure 8 samples of each prompt against 1")
    parser.add_argument("--rows", type=int, default=1024, help="probes decoded together")
    args = parser.parse_args()
    args.most = args.tokens or 128
    logging.disable(logging.WARNING)
    tokenizer, dtype = lms.load_tokenizer(args.model), getattr(torch, args.dtype)
    lm, theirs = (lms.load(args.model, tokenizer, dtype, args.device) for _ in range(2))
    theirs.model.set_attn_implementation("sdpa")
    if args.tokens:
        lm.eos = theirs.eos = ()
    prompts = [lms.encode_chat(tokenizer, solver.prompt(task.question, task.tools))
               for task in tiny.heldout(args.prompts or (128 if args.probes else 16))]
    described = vars(args) | {"model": str(args.model), "threads": torch.get_num_threads()}
    if args.probes:
        common.report(probes(lm, prompts, args), "seconds", described, args.json,
                      more_is_better=False)
    else:
        results = common.take_turns(contestants(lm, theirs, prompts, args), args.rounds)
        common.report(results, "tokens per second", described, args.json)


if __name__ == "__main__":
    sys.exit(main())
