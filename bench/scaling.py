"""How time and memory grow with prompts, completion length and vocabulary: a picture.

    python bench/scaling.py --model models/smollm2 --dtype bfloat16 --out scaling.svg

Sampling (ours, `generate`) and the log-probs of the samples with their gradient (ours packed, and
row by row in one padded batch that holds all logits), each with the checkpoint's shape and random
weights, one thing growing at a time. Every point is a process of its own, so that its peak is its
own, and is measured once. The picture needs matplotlib; the numbers go to a JSON file beside it.
"""
import argparse
import gc
import json
import sys
from pathlib import Path

import common
import torch

import logprobs
import model as lms
import rollout
import tiny

START = {"prompts": 2, "tokens": 16, "vocabulary": 32_768}      # and twice, four, eight times it
AXES = {"prompts": "prompts x 4 samples", "tokens": "tokens of a completion",
        "vocabulary": "entries of the vocabulary"}
WORK = {"sampling": ("ours", "generate"), "log-probs and gradient": ("ours", "plain")}
SAMPLES, PROMPT = 4, 128


def measure(args):
    """Print one line of JSON: seconds, and bytes beyond the model and its gradients."""
    config = lms.read_config(args.model)
    config.vocab_size, config.eos_token_id = args.vocabulary, None
    torch.manual_seed(0)
    lm = lms.LM(lms.from_config(config, getattr(torch, args.dtype), args.device),
                lms.load_tokenizer(tiny.PATH), ())
    ids = torch.randint(config.vocab_size, (args.prompts, PROMPT + args.tokens)).tolist()
    args.samples, args.most = SAMPLES, args.tokens
    work = sampling if args.worker[0] == "sampling" else training
    run = work(lm, ids, args, args.worker[1])
    gc.collect()
    before = logprobs.peak(args.device)
    took, _ = common.seconds(run)
    print(json.dumps({"seconds": took, "bytes": logprobs.peak(args.device) - before}))


def sampling(lm, ids, args, name):
    prompts, sampler = [row[:PROMPT] for row in ids], getattr(rollout, name)
    if name == "generate":
        lm.model.set_attn_implementation("sdpa")
    return lambda: sampler(lm, prompts, args, 0)


def training(lm, ids, args, name):
    for p in lm.model.parameters():
        p.grad = torch.zeros_like(p).fill_(0)      # written to, so that it counts as there
    groups = [[lms.Rollout(row[:PROMPT], row[PROMPT:], "", True, [])] * SAMPLES for row in ids]
    if name == "plain":
        return lambda: logprobs.plain(lm.model, [r for group in groups for r in group])[0].sum(
            ).backward()
    packed = lms.pack(groups, args.device)
    return lambda: lms.token_logprobs(lm.model, packed)[0].sum().backward()


def point(args, work, name, sizes):
    """The result of a fresh process."""
    command = [sys.executable, __file__, "--model", args.model, "--dtype", args.dtype,
               "--device", args.device, "--worker", work, name]
    for what, size in sizes.items():
        command += [f"--{what}", str(size)]
    result = {"work": work, "name": name, **sizes, **common.fresh(command)}
    print(result, flush=True)
    return result


def draw(curves, file):
    """Seconds above, memory below, one column for each thing that grows.

    Args:
        curves: {(axis, work, name): [result of each size]}.
    """
    import matplotlib.figure
    matplotlib.rcParams["svg.fonttype"] = "none"      # text as text
    figure = matplotlib.figure.Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(2, len(AXES))
    for (axis, work, name), results in curves.items():
        for row, (unit, scale) in zip(panels, (("seconds", 1), ("bytes", 2**30))):
            row[list(AXES).index(axis)].plot(
                [result[axis] for result in results],
                # Less memory than making the model takes cannot be seen.
                [max(result[unit] / scale, 2**-9) for result in results],
                color="#d9622b" if work == "sampling" else "#2464a4", marker="o",
                linestyle="-" if name == "ours" else ":", label=f"{work}, {name}")
    for column, (axis, title) in enumerate(AXES.items()):
        panels[0, column].set_title(title)
        for axes, unit in zip(panels[:, column], ("seconds", "GiB beyond the model")):
            sizes = sorted({result[axis] for key in curves if key[0] == axis
                            for result in curves[key]})
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_ylabel(unit if column == 0 else "")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_model(parser, str(tiny.PATH))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default="scaling.svg", help="file of the picture")
    parser.add_argument("--points", type=int, default=4, help="sizes, each twice the one before")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    for what in START:
        parser.add_argument(f"--{what}", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    curves = {(axis, work, name): [point(args, work, name, START | {axis: START[axis] * 2**n})
                                   for n in range(args.points)]
              for axis in AXES for work, names in WORK.items() for name in names}
    args.out.with_suffix(".json").write_text(
        json.dumps([result for curve in curves.values() for result in curve], indent=1) + "\n")
    draw(curves, args.out)


if __name__ == "__main__":
    sys.exit(main())
