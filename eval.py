"""Evaluation: solve held-out tasks greedily, score by exact match, and say how the wrong ones fail.

    python eval.py --model runs/tiny/iter3/solver --benchmarks tiny
    python eval.py --model tiny                                       # the embedded base model

`--model` takes a directory, a hub name, or `tiny`. Prompt, reader and equality are those of
training.
"""
import argparse
import sys
from collections import Counter

import torch

import model as lms
import solver
import tiny
from verify import calls_equal

BENCHMARKS = {"tiny": tiny.heldout}


def error_class(text, gold):
    """None if the answer is right; else the first that fits (the paper's classes, our order):

    format: nothing parses; structural: a wrong tool, number of calls, or set of arguments;
    semantic: only values are wrong.

    >>> error_class('<tool_call_answer>[{"name": "f", "arguments": {"x": 2}}]</tool_call_answer>',
    ...             [{"name": "f", "arguments": {"x": 1}}])
    'semantic'
    """
    if solver.is_right(text, gold):
        return None
    calls = solver.read(text)
    if calls is None:
        return "format"
    def shape(call):
        return {"name": call["name"], "arguments": dict.fromkeys(call["arguments"])}
    same = calls_equal([shape(call) for call in calls.calls], [shape(call) for call in gold])
    return "semantic" if same and not calls.malformed else "structural"


def solve(lm, tasks, max_tokens, rows):
    """The model's greedy answer to each task: list of Rollouts. All ranks call it, all get
    everything."""
    prompts = [lms.encode_chat(lm.tokenizer, solver.prompt(task.question, task.tools)) for task in tasks]
    return [group[0] for group in lms.sample(lm, prompts, 1, (), 0, max_tokens, rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="directory, hub name, or tiny")
    parser.add_argument("--benchmarks", default="tiny", help=f"comma-separated: {', '.join(BENCHMARKS)}")
    parser.add_argument("--max_completion", type=int, default=1024, help="tokens")
    parser.add_argument("--rows", type=int, default=128, help="answers decoded together")
    args = parser.parse_args()
    names = args.benchmarks.split(",")
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"eval.py: no benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    path = tiny.PATH if args.model == "tiny" else args.model
    try:
        tokenizer = lms.load_tokenizer(path)
    except ValueError as error:
        sys.exit(f"eval.py: --model: {error}")
    cuda = torch.cuda.is_available()
    lm = lms.load(path, tokenizer, torch.bfloat16, "cuda" if cuda else "cpu")
    for name in names:
        tasks = BENCHMARKS[name]()
        answers = solve(lm, tasks, args.max_completion, args.rows)
        errors = Counter(error_class(answer.text, task.answer) for answer, task in zip(answers, tasks))
        print(f"{name}: {100 * errors[None] / len(tasks):.1f} % of {len(tasks)} right; wrong: "
              + ", ".join(f"{kind} {errors[kind]}" for kind in ("format", "structural", "semantic")))


if __name__ == "__main__":
    main()
