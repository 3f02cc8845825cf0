"""Our verdicts against an independent judge's: bfcl-eval's ast_checker, on gold answers and damaged
ones.

    pip install --no-deps bfcl-eval && python tests/bfcl_agreement.py
    python tests/bfcl_agreement.py DIR          # where the package lies unpacked

Prints the agreement for each damage, and every kind of disagreement with a count and an example.
Gold and damaged answers agree but for GOLD_THAT_THEY_REFUSE. Respelled answers, which are the gold
in another form, do not, for reasons that follow from verify.py's one equality of values:

    ours right, theirs wrong    a number or boolean as a string, whole numbers as floats, a list as
                                its JSON string: one value to us, while they check types;
                                null for an argument that may be left out: absent to us;
                                calls in another order where one fits two gold calls: they take the
                                first that fits, we look for a full matching
    ours wrong, theirs right    a string in other case, or with other punctuation: they fold both
"""
import copy
import importlib.util
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from benchmarks import gold as accepted_values, loaders, score
from damages import KINDS as DAMAGES, damages

GOLD_THAT_THEY_REFUSE = {
    "live_simple_106-63-0": "no accepted value for an argument; the empty list is meant",
    "live_simple_112-68-0": "likewise",
    "live_multiple_862-181-3": "the gold has an argument that the tool lacks",
    "live_multiple_964-207-0": "the gold lacks a required argument",
    "live_multiple_1038-265-0": "null is the only accepted value; absent is the same to us",
}
CATEGORIES = [name for name in (*loaders.NON_LIVE, *loaders.LIVE) if name != "irrelevance"]


def load_judge():
    """ast_checker as a function of (category, raw row, raw gold, calls) to bool."""
    # The real module imports every vendor's SDK, to say in which models "." becomes "_".
    stub = ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = defaultdict(lambda: SimpleNamespace(underscore_to_dot=False))
    sys.modules[stub.__name__] = stub
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def judge(category, row, gold, calls):
        output = [{call["name"]: call["arguments"]} for call in calls]
        return ast_checker(row["function"], output, gold, Language.PYTHON, category, "stub")
    return judge


def respellings(gold, accepted, rng):
    """{kind: calls}: answers that differ from the gold in form; the judges may differ on them."""
    found = {"gold": gold, "calls reversed": gold[::-1]}
    n = rng.randrange(len(gold))
    values = gold[n]["arguments"]

    def change(kind, test, new):
        keys = [key for key in sorted(values) if test(values[key])]
        if keys:
            calls, key = copy.deepcopy(gold), rng.choice(keys)
            calls[n]["arguments"][key] = new(values[key])
            found[kind] = calls

    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    change("number as string", number, str)
    change("integer as float", lambda v: isinstance(v, int) and not isinstance(v, bool), float)
    change("float as integer", lambda v: isinstance(v, float) and v.is_integer(), int)
    change("boolean as string", lambda v: isinstance(v, bool), str)
    change("string in upper case", lambda v: isinstance(v, str) and v.upper() != v, str.upper)
    change("full stop added", lambda v: isinstance(v, str) and v, lambda v: v + ".")
    change("list as JSON string", lambda v: isinstance(v, list), json.dumps)
    change("list reversed", lambda v: isinstance(v, list) and v[::-1] != v, lambda v: v[::-1])
    for kind, pick in (("last accepted values", -1), ("optional arguments given", 0)):
        calls = copy.deepcopy(gold)
        for key, choices in accepted[n]["arguments"].items():
            plain = [accepted_values.plain(choice) for choice in choices
                     if choice not in ("", None)]
            if plain and (pick == -1 or None in choices):
                calls[n]["arguments"][key] = plain[pick]
        if calls != gold:
            found[kind] = calls
    optional = [key for key, choices in accepted[n]["arguments"].items() if None in choices]
    if optional:
        calls = copy.deepcopy(gold)
        calls[n]["arguments"][rng.choice(sorted(optional))] = None
        found["optional argument null"] = calls
    return found


def read_by_id(path):
    with open(path, encoding="utf-8") as file:
        return {entry["id"]: entry for entry in map(json.loads, file)}


def compare(data, seed=0):
    """[(damage, category, ours, theirs, their error, row id, calls)] over all categories."""
    judge, folder, results = load_judge(), loaders.bfcl_folder(Path(data)), []
    rows = defaultdict(list)
    for row in loaders.load("bfcl_nonlive", data) + loaders.load("bfcl_live", data):
        rows[row.part].append(row)
    for category in CATEGORIES:
        name = f"BFCL_v4_{category}.json"
        raw, gold = map(read_by_id, (folder / name, folder / "possible_answer" / name))
        for n, row in enumerate(rows[category]):
            rng, answer = random.Random(f"{seed} {row.id}"), row.task.answer
            answers = respellings(answer, row.accepted, rng) | damages(answer, n)
            for kind, calls in answers.items():
                text = f"<tool_call_answer>{json.dumps(calls)}</tool_call_answer>"
                ours = score.judge(row, text).error is None
                verdict = judge(category, raw[row.id], gold[row.id]["ground_truth"], calls)
                results.append((kind, category, ours, verdict["valid"],
                                verdict.get("error_type"), row.id, calls))
    return results


def main():
    sys.path[:0] = sys.argv[1:]
    data = sys.argv[1] if len(sys.argv) > 1 else "."
    if importlib.util.find_spec("bfcl_eval") is None:
        sys.exit("bfcl_agreement.py: bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    results = compare(data)
    plain = [r for r in results if r[0] == "gold" or r[0] in DAMAGES]
    groups = {"gold and damaged answers": plain}
    for result in results:
        groups.setdefault(result[0], []).append(result)
    for name, some in groups.items():
        agree = sum(ours == theirs for _, _, ours, theirs, *_ in some)
        print(f"{name:28}{agree:6} of {len(some):5} agree ({100 * agree / len(some):.2f} %)")
    apart = [r for r in results if r[2] != r[3]]
    for (kind, ours, error), count in Counter((r[0], r[2], r[4]) for r in apart).most_common():
        example = next(r for r in apart if (r[0], r[2], r[4]) == (kind, ours, error))
        print(f"{count:5}  {kind}: ours {'right' if ours else 'wrong'}, theirs "
              f"{error if ours else 'right'}; e.g. {example[5]}: {json.dumps(example[6])[:150]}")


if __name__ == "__main__":
    main()
