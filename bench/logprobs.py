"""Time and peak memory of `token_logprobs`, forward and backward, at Qwen2.5's vocabulary of
151,936, against the plain formulation, which holds all logits.

    python bench/logprobs.py                               # one layer of width 256, random weights
    python bench/logprobs.py --hidden 1536 --device cuda   # Qwen2.5-1.5B's width
    python bench/logprobs.py --model models/smollm2 --dtype bfloat16      # a real model's shape

Each measurement is a process of its own, so that its peak is its own.
"""
import argparse
import gc
import json
import resource
import sys
import tempfile
from statistics import median

import torch
from transformers import Qwen2Config

import common
import model as lms

VOCABULARY = 151_936


def plain(model, rollouts):
    """What one writes first: all logits, their log-softmax in fp32, the entropy beside it."""
    ids_BT = torch.tensor([rollout.prompt + rollout.ids for rollout in rollouts]).to(model.device)
    start = len(rollouts[0].prompt)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, start - 1:-1]
    logp_BTV = torch.log_softmax(logits_BTV.float(), -1)
    with torch.no_grad():
        entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
    return logp_BTV.gather(-1, ids_BT[:, start:, None])[..., 0], entropy_BT


def ours(model, rollouts):
    packed = lms.pack([[rollout] for rollout in rollouts], model.device)
    return lms.token_logprobs(model, packed)[:2]


def peak(device):
    """Most bytes this process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build(args):
    """A model of random weights: the checkpoint's shape, or one layer."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    if args.model:
        return lms.build(args.model, dtype, args.device)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=args.hidden, intermediate_size=args.hidden,
        num_hidden_layers=1, num_attention_heads=args.hidden // 64, num_key_value_heads=2,
        tie_word_embeddings=True)
    return lms.from_config(config, dtype, args.device)


def measure(args):
    """Print one line of JSON: seconds, bytes beyond model and gradients, a fingerprint of the
    gradient."""
    model, length = build(args), args.tokens // 4
    ids = torch.randint(model.config.vocab_size, (4, 16 + length)).tolist()
    rollouts = [lms.Rollout(row[:16], row[16:], "", True, []) for row in ids]
    for p in model.parameters():
        p.grad = torch.zeros_like(p).fill_(0)      # written to, so that it counts as there
    gc.collect()
    before = peak(args.device)
    work = {"ours": ours, "plain": plain}[args.worker]

    def step():
        logp_BC, _ = work(model, rollouts)
        (logp_BC * torch.linspace(-1, 1, logp_BC.shape[1], device=args.device)).sum().backward()
        if args.device == "cuda":
            torch.cuda.synchronize()

    took, _ = common.seconds(step)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.save(gradient, args.gradient)
    print(json.dumps({"seconds": took, "bytes": peak(args.device) - before}))


def run(name, file):
    """Result of a fresh process that measures `name`; the gradient goes to `file`."""
    return common.fresh([sys.executable, *sys.argv, "--worker", name, "--gradient", file])


def main():
    parser = common.parser(__doc__, rounds=3)
    common.add_model(parser, None)
    parser.add_argument("--tokens", type=int, default=3072, help="completion tokens, in 4 rows")
    parser.add_argument("--hidden", type=int, default=256, help="width of the one layer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--gradient", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hidden < 128 or args.hidden % 128:
        parser.error(f"--hidden {args.hidden} is not a multiple of 128")
    if args.worker:
        return measure(args)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}.pt" for name in ("ours", "plain")}
        runs = {name: lambda n, name=name: run(name, files[name]) for name in files}
        results = common.take_turns(runs, args.rounds)
        gradients = {name: torch.load(file) for name, file in files.items()}
    gap = ((gradients["ours"] - gradients["plain"]).norm() / gradients["plain"].norm()).item()
    settings = vars(args) | {"gradient_gap": gap, "unit": "peak bytes beyond the model",
                             "threads": torch.get_num_threads()}
    seconds = {name: [result["seconds"] for result in rounds] for name, rounds in results.items()}
    common.report(seconds, "seconds", settings, more_is_better=False)
    settings["seconds"] = {name: median(values) for name, values in seconds.items()}
    peaks = {name: [result["bytes"] for result in rounds] for name, rounds in results.items()}
    common.report(peaks, "peak bytes beyond the model", settings, args.json, more_is_better=False)
    print(f"relative distance of the gradients: {gap:.1e}")


if __name__ == "__main__":
    sys.exit(main())
