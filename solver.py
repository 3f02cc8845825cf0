"""The Solver: its prompt, reading its completion, and its reward (Tool-R0 section 3.4, Eqs. 6 and
7).

One prompt and one reader serve training, difficulty probes, cross-verification and evaluation.
"""
import json

from verify import MAX_ITEMS, calls_equal, last_block, read_calls, values_equal

SYSTEM = """\
You answer requests by calling tools. Read the user's request and the list of available tools.
First reason about which tools are needed and where each argument comes from, between <think> and
</think>. Then write the calls as a JSON list between <tool_call_answer> and </tool_call_answer>,
each call an object {"name": ..., "arguments": {...}}. Use only the tools in the list, give every
required argument, take values from the request, and add nothing after the answer. If no tool fits,
answer []."""


def prompt(question, tools):
    """Chat messages that ask for the calls which answer `question` with the menu `tools`."""
    menu = json.dumps(tools, ensure_ascii=False)
    asked = f"{question}\n<available_tools>\n{menu}\n</available_tools>"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def read(text):
    """Calls in a Solver completion (verify.Calls), or None. No <think> block is needed here."""
    return read_calls(last_block(text, "tool_call_answer") or "")


def is_right(text, gold):
    """Exact success: the calls of the completion equal the gold calls one to one, in any order."""
    calls = read(text)
    return calls is not None and calls.malformed == 0 and calls_equal(calls.calls, gold)


def format_reward(text, none_fits=False):
    """r_fmt = 0.3 [tag present] + 0.3 [content parses] + 0.4 [at least one call]   (Eq. 6)

    Where no tool fits (ours), the last term pays for an empty list instead.

    >>> none = '<tool_call_answer>[]</tool_call_answer>'
    >>> format_reward(none), format_reward(none, none_fits=True)
    (0.6, 1.0)
    """
    if last_block(text, "tool_call_answer") is None:
        return 0.0
    calls = read(text)
    if calls is None:
        return 0.3
    fits = calls == ([], 0) if none_fits else calls.calls
    return 1.0 if fits else 0.6


def value_share(p, g, strict=False):
    """s_val of Eq. 7: share of equal values among the argument names that p and gold g both have; 1
    if neither has any, 0 without a common name.

    Args:
        strict: take all of gold's names (ours), so that one left out is wrong.

    >>> p, g = {"a": 1}, {"a": 1, "b": 2, "c": 3, "d": 4}
    >>> value_share(p, g), value_share(p, g, strict=True)
    (1.0, 0.25)
    """
    names = [key for key in g if strict or key in p]
    if not names:
        return float(not p and not g)
    return sum(key in p and values_equal(p[key], g[key]) for key in names) / len(names)


def call_similarity(predicted, gold, strict_values=False, same_tool=False):
    """s = 0.2 s_name + 0.3 s_key + 0.5 s_val of two calls, in 0..1   (Eq. 7)

    s_name: name equality, 0 or 1. s_key: F1 of the argument names, 1 if both have none. s_val:
    `value_share`.

    Args:
        strict_values: see `value_share`.
        same_tool: 0 where the names differ (ours). Eq. 7 pays the wrong tool with the right
            arguments 0.8, and an empty list nothing.

    >>> part = {"name": "f", "arguments": {"a": 1}}
    >>> gold = {"name": "f", "arguments": {"a": 1, "b": 2, "c": 3}}
    >>> call_similarity(part, gold), round(call_similarity(part, gold, strict_values=True), 4)
    (0.85, 0.5167)
    """
    p, g = predicted["arguments"], gold["arguments"]
    s_name = float(predicted["name"] == gold["name"])
    if same_tool and not s_name:
        return 0.0
    s_key = 2 * len(p.keys() & g.keys()) / (len(p) + len(g)) if p or g else 1.0
    return 0.2 * s_name + 0.3 * s_key + 0.5 * value_share(p, g, strict_values)


def accuracy_reward(calls, gold, strict_values=False, same_tool=False):
    """r_acc = mean over gold calls of s / (1 + 0.25 max(0, |predictions| - |gold|))   (Eq. 7)

    Each gold call in turn takes the best prediction that is still unused. Malformed elements count
    as predictions. Answers of more than MAX_ITEMS calls get 0: the matching is quadratic. Without
    gold calls (ours) an empty list gets 1, anything else 0.

    Args:
        calls: verify.Calls, the predictions.
        gold: list of calls.
        strict_values, same_tool: as for `call_similarity`.
    """
    predictions = len(calls.calls) + calls.malformed
    if not gold:
        return float(predictions == 0)
    if predictions > MAX_ITEMS:
        return 0.0
    unused, total = list(calls.calls), 0.0
    for gold_call in gold[:len(unused)]:
        scores = [call_similarity(call, gold_call, strict_values, same_tool) for call in unused]
        total += max(scores)
        unused.pop(scores.index(max(scores)))
    return total / len(gold) / (1 + 0.25 * max(0, predictions - len(gold)))


def reward(text, gold, strict_values=False, same_tool=False):
    """Reward parts of one completion: {"format": r_fmt, "accuracy": r_acc}, each in 0..1.

    r_acc is 0 without a non-empty <think> block (authors' code), and where nothing parses. The
    total is the sum. Where gold is empty, r_acc and the last term of r_fmt pay for an empty list
    and for nothing else.

    Args:
        strict_values, same_tool: as for `call_similarity`.
    """
    calls = read(text) if last_block(text, "think") else None
    return {"format": format_reward(text, none_fits=not gold),
            "accuracy": accuracy_reward(calls, gold, strict_values, same_tool) if calls else 0.0}
