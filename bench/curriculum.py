"""Seconds of curriculum work for 1,000, 10,000 and 100,000 candidate tasks, and how they grow.

    python bench/curriculum.py

Reading the Generator's text, structural checks, signatures, pass rates of 10 Solver samples each,
selection: all that a pool costs beside the models. There is no other software to run it against; in
the JSON file the other sizes stand in, with the time of a task there over its time in 10,000.
"""
import json
import random
import sys
from statistics import median

import common
import curriculum
import generator
import tiny

SIZES = (1000, 10_000, 100_000)


def candidates(size):
    """(Generator texts, specs, 10 Solver texts for each): most sound, one answer in four wrong."""
    rng, tasks = random.Random(0), tiny.heldout(500)
    texts, specs, samples = [], [], []
    for n in range(size):
        task = tasks[n % len(tasks)]
        question = f"{task.question} Reference {''.join(rng.choices('abcdefghij', k=6))}."
        texts.append(f"<think>plan</think><question>{question}</question>"
                     f"<available_tools>{json.dumps(task.tools)}</available_tools>"
                     f"<tool_call_answer>{json.dumps(task.answer)}</tool_call_answer>")
        specs.append(generator.sample_spec(rng))
        right, wrong = (f"<think>so</think><tool_call_answer>{json.dumps(calls)}</tool_call_answer>"
                        for calls in (task.answer, task.answer[1:] or task.answer * 2))
        samples.append([right if rng.random() < 0.75 else wrong for _ in range(10)])
    return texts, specs, samples


def work(texts, specs, samples):
    """{part: seconds} of everything between the pool's texts and the curriculum."""
    spent = {}
    spent["read"], drafts = common.seconds(lambda: [generator.read(text) for text in texts])
    tasks = [draft.task(spec) for draft, spec in zip(drafts, specs)]
    spent["check"], reasons = common.seconds(
        lambda: [curriculum.structural_problem(draft, task) for draft, task in zip(drafts, tasks)])
    sound = [task for task, reason in zip(tasks, reasons) if reason is None]
    spent["signatures"], fresh = common.seconds(
        lambda: {curriculum.signature(task): task for task in sound})
    spent["match"], rates = common.seconds(
        lambda: [curriculum.pass_rate(found, task.answer) for found, task in zip(samples, tasks)])
    for task, rate in zip(tasks, rates):
        task.pass_rate, task.bucket = rate, curriculum.bucket(rate)
    spent["select"], chosen = common.seconds(
        lambda: curriculum.select(list(fresh.values()), len(tasks) // 5, generator.DOMAINS, 0))
    assert len(chosen) == len(tasks) // 5, "the candidates are meant to be sound"
    return spent


def main():
    args = common.parser(__doc__, rounds=3).parse_args()
    pools = {size: candidates(size) for size in SIZES}
    contestants = {size: lambda n, pool=pool: work(*pool) for size, pool in pools.items()}
    runs = common.take_turns(contestants, args.rounds)
    totals = {}
    for size, rounds in runs.items():
        parts = {part: median(spent[part] for spent in rounds) for part in rounds[0]}
        totals[size] = median(sum(spent.values()) for spent in rounds)
        print(f"{size:7,} tasks  {totals[size]:7.2f} s  {1e6 * totals[size] / size:6.0f} us each   "
              + "  ".join(f"{part} {value:.2f}" for part, value in parts.items()))
    if args.json:
        each = totals[10_000] / 10_000
        others = {f"{size} tasks": {"value": total, "ratio": total / size / each}
                  for size, total in totals.items() if size != 10_000}
        settings = {"rounds": args.rounds, "unit": "seconds, 10,000 tasks"}
        common.write(args.json, totals[10_000], others, settings)


if __name__ == "__main__":
    sys.exit(main())
