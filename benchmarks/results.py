"""What an evaluation leaves: the lines that it prints, beside the paper's numbers, and its result
files.

A result file <set>.jsonl has one line per row: id, task_hash, text (null if the row was never
asked), calls (null if nothing parses, [] if it rightly declined), verdict (right or wrong), error
(class) and kind. What the files were made with is in settings.json.
"""
import hashlib
import json
from collections import Counter

from benchmarks.loaders import LOADERS
from benchmarks.score import KINDS, mcnemar, paired_difference, unweighted_mean, wilson
from cli import Refused
from disk import read_json, read_lines, replace_file, to_lines
from verify import call_problem

SETTINGS = "settings.json"

# ---------------------------------------------------------------------------------------------
# Lines

PAPERS_FIVE = {"ToolAlpaca": ("toolalpaca",), "Seal-Tools": ("sealtools",),
               "NexusRaven": ("nexusraven",), "API-Bank": ("apibank_l1", "apibank_l2"),
               "SNIPS": ("snips",)}
PAPER = {   # arXiv 2602.21320, accuracy in %: the five in this order, and the mean as printed
    "Qwen2.5-0.5B-Instruct": (20.17, 37.07, 4.71, 13.85, 1.57, 15.47),
    "Qwen2.5-0.5B-Instruct + Tool-R0": (31.58, 63.95, 17.61, 28.00, 14.29, 30.57),
    "Qwen2.5-1.5B-Instruct": (35.96, 47.27, 17.61, 19.13, 4.29, 24.85),
    "Qwen2.5-1.5B-Instruct + Tool-R0": (47.36, 83.00, 34.59, 50.62, 20.86, 47.84),
    "Qwen2.5-3B-Instruct": (45.61, 69.72, 44.33, 44.95, 14.28, 43.97),
    "Qwen2.5-3B-Instruct + Tool-R0": (53.51, 78.23, 47.80, 47.94, 15.57, 48.50),
    "Llama-3.2-3B-Instruct": (35.96, 68.70, 45.60, 27.08, 12.29, 36.12),
    "Llama-3.2-3B-Instruct + Tool-R0": (43.86, 77.21, 46.86, 30.24, 14.42, 40.47),
}


def share_right(verdicts):
    """(share, low, high) of right answers."""
    return wilson(sum(verdict.error is None for verdict in verdicts), len(verdicts))


def percent(share, after=""):
    """
    >>> percent((0.8, 0.49016, 0.94332), " of 10 right")
    '80.0 % of 10 right (95 %: 49.0..94.3)'
    """
    p, low, high = (f"{100 * x:.1f}" for x in share)
    return f"{p} %{after} (95 %: {low}..{high})"


def set_line(name, verdicts):
    """One line on a set or a part of one: accuracy, interval, share that parses."""
    share, n = share_right(verdicts), len(verdicts)
    asked = [verdict.calls is not None for verdict in verdicts
             if not verdict.error or verdict.error[0] != "not asked"]
    loose = sum(verdict.loose_error is None for verdict in verdicts) / n
    return (f"{name}: {percent(share, f' of {n} right')}"
            + (f"; unknowable credentials ignored {100 * loose:.1f} %" if loose > share[0] else "")
            + (f"; parse {100 * sum(asked) / len(asked):.1f} %" if asked else ""))


def set_lines(name, rows, verdicts):
    """The lines on one set: all rows, its parts, and the ids of the rows that were never asked.

    BFCL's irrelevance, where no tool fits, comes right after all rows, so that nobody reads the one
    without the other: self-play can unlearn to decline.
    """
    lines = [set_line(name, verdicts)]
    parts = dict.fromkeys(row.part for row in rows if row.part)
    for part in sorted(parts, key=lambda part: part != "irrelevance"):
        some = [verdict for row, verdict in zip(rows, verdicts) if row.part == part]
        lines.append("    " + set_line(part, some))
    for kind in KINDS["not asked"]:
        some = [f"{row.id} ({row.problem})" if row.problem else row.id
                for row, verdict in zip(rows, verdicts) if verdict.error == ("not asked", kind)]
        if some:
            lines.append(f"    counted as wrong, {kind}: {len(some)} rows: {', '.join(some)}")
    return lines


def summary_lines(results):
    """API-Bank's mean, the mean of the paper's five, the paper's numbers, and the table of errors.

    Args:
        results: {set: verdicts}.
    """
    lines = []
    shares = {title: unweighted_mean([share_right(results[name]) for name in names])
              for title, names in PAPERS_FIVE.items() if set(names) <= set(results)}
    if "API-Bank" in shares:
        lines.append(f"apibank, mean of its two levels: {percent(shares['API-Bank'])}")
    if len(shares) == len(PAPERS_FIVE):
        shares["mean"] = unweighted_mean(list(shares.values()))
        lines.append(f"unweighted mean of the paper's five: {percent(shares['mean'])}")
    if shares:
        titles = [*PAPERS_FIVE, "mean"]
        ours = [f"{100 * shares[title][0]:.2f}" if title in shares else "-" for title in titles]
        lines += ["", table_line("accuracy, strict, %", titles), table_line("this model", ours)]
        lines += [table_line(f"the paper's: {model}", [f"{x:.2f}" for x in row])
                  for model, row in PAPER.items()]
        lines.append("(the paper's means as it prints them: some are not quite those of its five)")
    return lines + error_table(results)


def error_table(results):
    """Wrong answers by class and kind, a column for each set."""
    lines = ["", table_line("wrong answers", results)]
    counts = [Counter(verdict.error for verdict in verdicts) for verdicts in results.values()]
    for error, kinds in KINDS.items():
        table = {kind: [count[error, kind] for count in counts] for kind in kinds}
        lines.append(table_line(error, map(sum, zip(*table.values()))))
        lines += [table_line(f"    {kind}", cells) for kind, cells in table.items() if any(cells)]
    return lines


def table_line(head, cells):
    return f"{head:45}" + "".join(f"{cell:>13}" for cell in cells)


def call_problems(calls, fault, menu):
    """What is wrong with an answer, in words."""
    if calls is None:
        return [f"no calls can be read: {fault}"]
    problems = [f"call {n}: {problem.replace('_', ' ')}" for n, call in enumerate(calls.calls, 1)
                if (problem := call_problem([call], menu))]
    if calls.malformed:
        problems.append(f"elements that are no calls: {calls.malformed}")
    elif not calls.calls:
        problems.append("no call")
    return problems


def answer_lines(said, text):
    """Question, thought, calls, and what is wrong; without calls the text as it is."""
    thought = text if said["calls"] is None else said["thinking"] or "(no reasoning)"
    calls = [json.dumps(call, ensure_ascii=False) for call in said["calls"] or ()]
    return ["", f"> {said['question']}", thought, *calls,
            *(f"  ! {problem}" for problem in said["problems"])]


# ---------------------------------------------------------------------------------------------
# Files


def task_hash(row):
    """Says whether two answers were given to the same question and tools, however they were put;
    None for a broken row."""
    return None if row.problem else short_hash([row.task.question, row.task.tools])


def short_hash(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def weights_hash(model):
    """What tells models at one path apart: up to 64 numbers of each tensor, over all of it."""
    some = [param.flatten()[::-(-param.numel() // 64)].tolist() for param in model.parameters()]
    return short_hash(some)


def write(out, name, rows, texts, verdicts):
    """Write a set's result file."""
    lines = [{"id": row.id, "task_hash": task_hash(row), "text": text, "calls": verdict.calls,
              "gold_hash": short_hash([row.task.answer, row.accepted]),
              "verdict": "wrong" if verdict.error else "right",
              "error": verdict.error and verdict.error[0],
              "kind": verdict.error and verdict.error[1]}
             for row, text, verdict in zip(rows, texts, verdicts)]
    replace_file(out / f"{name}.jsonl", to_lines(lines))


def see_settings(out, made):
    """Refused where a directory is of other settings: its result files are all of the same."""
    path = out / SETTINGS
    before = read_json(path) if path.exists() else made
    if before != made:
        differing = ", ".join(name for name in made if made[name] != before.get(name))
        raise Refused(f"{path} is of a run with other settings ({differing}): give another --out")


def read(out, name):
    """{row id: line} of a set's result file; {} if there is none."""
    path = out / f"{name}.jsonl"
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not {"id", "task_hash", "text", "verdict"} <= set(line):
            raise Refused(f"{path}, line {number}: not a line that --out has written")
    return {line["id"]: line for line in lines}


def stored_texts(stored, name, rows):
    """The answers to the rows from what `read` gives.

    Refused if a row is not there, or another question or other tools were answered.
    """
    for row in rows:
        if stored.get(row.id, {}).get("task_hash", "") != task_hash(row):
            raise Refused(f"{name}.jsonl has no answer to {row.id} as it is asked now: "
                          "other --data, older code, or an incomplete file")
    return [stored[row.id]["text"] for row in rows]


def compare_lines(a, b):
    """Lines on two directories of result files, row by row: which is better, and where?

    Refused if they have no set in common, were asked different questions, or scored with other
    gold: then `--score` brings them up to date.
    """
    lines, alone = [], []
    for name in LOADERS:
        of_a, of_b = read(a, name), read(b, name)
        both = [n for n in of_a if n in of_b]
        other = [n for n in both if any(of_a[n].get(key) != of_b[n].get(key)
                                        for key in ("task_hash", "gold_hash"))]
        if other or of_a and of_b and not both:
            raise Refused(f"{name}: {a} and {b} were not asked the same: "
                          + (f"{other[0]} (if the gold alone has changed, --score both again)"
                             if other else "no row in common"))
        if both:
            right_a, right_b = ([of[n]["verdict"] == "right" for n in both] for of in (of_a, of_b))
            lines += pair_lines(name, both, right_a, right_b)
            lone = len(of_a) + len(of_b) - 2 * len(both)
            if lone:
                lines.append(f"    {lone} rows stand in one of the two only: left out")
        elif of_a or of_b:
            alone.append(name)
    if not lines:
        raise Refused(f"{a} and {b} have no <set>.jsonl in common")
    if alone:
        lines.append(f"sets of one of the two only, left out: {', '.join(alone)}")
    native = [read_json(out / SETTINGS).get("native") for out in (a, b)]
    asked = [f"its own, read as {name}" if name else "the Solver's" for name in native]
    return lines if native[0] == native[1] else [f"prompt: A {asked[0]}; B {asked[1]}", *lines]


def pair_lines(name, ids, right_a, right_b):
    """Paired difference, test, and the rows that only one of two got right.

    Args:
        right_a, right_b: one bool for each id.
    """
    only_a = [n for n, x, y in zip(ids, right_a, right_b) if x and not y]
    only_b = [n for n, x, y in zip(ids, right_a, right_b) if y and not x]
    difference, low, high = paired_difference(len(only_b), len(only_a), len(ids))
    share_a, share_b = sum(right_a) / len(ids), sum(right_b) / len(ids)
    return [f"{name}: A {100 * share_a:.1f} %, B {100 * share_b:.1f} % of {len(ids)}; "
            f"B - A {100 * difference:+.1f} points (95 %: {100 * low:+.1f}..{100 * high:+.1f}); "
            f"exact McNemar p = {mcnemar(len(only_a), len(only_b)):.3g}",
            f"    only A right, {len(only_a)} rows: {', '.join(only_a)}",
            f"    only B right, {len(only_b)} rows: {', '.join(only_b)}"]
