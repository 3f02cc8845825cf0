"""Scoring an answer, and the statistics over many: pure functions, no model and no files.

A run and its report use this too, so it imports no loader. Right is what `verify.calls_equal`
says; only where others wrote the gold are both sides loosened first. A wrong answer belongs to the
first that fits of the paper's three classes (its text overlaps; the order is ours), and to a kind
inside it:

    format        no block; block not closed; unparsable
    structural    malformed call; missing call; extra call; wrong name; missing argument;
                  extra argument
    semantic      wrong value

A row that was never asked (broken, or its prompt too long) is wrong too, in a class of its own.
"""
import json
import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import solver
from benchmarks.gold import loosen_call
from verify import MAX_QUESTION, Calls, after_think, calls_equal, last_block, normalise_text

KINDS = {"format": ("no block", "block not closed", "unparsable"),
         "structural": ("malformed call", "missing call", "extra call", "wrong name",
                        "missing argument", "extra argument"),
         "semantic": ("wrong value",),
         "not asked": ("broken row", "prompt too long")}
Z = 1.959964                  # of a two-sided 95 % interval
NGRAM = 8                     # words

# ---------------------------------------------------------------------------------------------
# One answer


def read(text):
    """(verify.Calls, None) of a Solver's answer, or (None, kind of a format error)."""
    calls = solver.read(text)
    if calls is not None:
        return calls, None
    said = after_think(text)
    opened = "<tool_call_answer>" in said
    # A call in another spelling, say in a code fence, has not declined either.
    if last_block(text, "tool_call_answer") is not None or not opened and '"arguments"' in said:
        return None, "unparsable"
    return None, without_block(text, opened)


def without_block(text, opened=False):
    """Kind of the format error of an answer in which no block is closed. One that was cut off, in
    a block that was `opened` or in its thoughts, has not declined."""
    thinking = text.rfind("<think>") > text.rfind("</think>")
    return "block not closed" if opened or thinking else "no block"


def error_of(calls, fault, gold, loosened=False):
    """None if an answer is right, else (class, kind).

    An answer without a block is right where there is nothing to call.

    Args:
        calls, fault: what this file's `read`, or one of native.py's, gives of the answer.
        loosened: whether to compare as gold that others wrote needs it: `gold.loosen_call`.

    >>> answer = '<tool_call_answer>[{"name": "f", "arguments": {"x": 2}}]</tool_call_answer>'
    >>> error_of(*read(answer), [{"name": "f", "arguments": {"x": 1}}])
    ('semantic', 'wrong value')
    """
    if calls is None:
        return ("format", fault) if gold or fault != "no block" else None
    if calls.malformed:
        return "structural", "malformed call"
    calls = calls.calls
    if loosened:
        calls, gold = list(map(loosen_call, calls)), list(map(loosen_call, gold))
    if calls_equal(calls, gold):
        return None
    if len(calls) != len(gold):
        return "structural", "missing call" if len(calls) < len(gold) else "extra call"
    if Counter(call["name"] for call in calls) != Counter(call["name"] for call in gold):
        return "structural", "wrong name"
    given, wanted = (Counter((call["name"], argument) for call in some
                             for argument in call["arguments"]) for some in (calls, gold))
    if given == wanted:
        return "semantic", "wrong value"
    return "structural", "extra argument" if given > wanted else "missing argument"


def error_class(text, gold):
    """The class alone of what is wrong with a Solver's answer; None if it is right."""
    error = error_of(*read(text), gold)
    return error and error[0]


class Verdict(NamedTuple):
    """What is said about the answer to one row."""

    error: tuple | None          # (class, kind); None: right
    loose_error: tuple | None    # the same with unknowable credentials ignored
    calls: list | None           # as parsed, [] if rightly declined; None if nothing parses


def judge(row, text, read=read):
    """Verdict on an answer.

    Args:
        row: loaders.Row.
        text: the completion; None if the row was not asked: it is broken, or its prompt too long.
        read: this file's, or one of native.py's.
    """
    if text is None:
        error = "not asked", "broken row" if row.problem else "prompt too long"
        return Verdict(error, error, None)
    calls, fault = read(text)
    gold = row.gold(calls.calls if calls else [])
    error = loose = error_of(calls, fault, gold, not row.ours)
    if error is None and calls is None:
        calls = Calls([])                  # rightly declined, without a block
    hidden = unknowable(row.task)
    if error and calls and hidden:
        rest = calls._replace(calls=without(calls.calls, hidden))
        loose = error_of(rest, None, without(gold, hidden), not row.ours)
    return Verdict(error, loose, calls and calls.calls)


_CREDENTIAL = re.compile(r"((api|access|app|auth|client|private|secret)(key|id|token|code)"
                         r"|token|secret|password|credentials?|authorization)$")


def unknowable(task):
    """(tool, argument) of the gold arguments that no model can know: the name is a credential's,
    and the value stands neither in the question nor in the tools, to the letter.

    A name is a credential's if it ends, letters and digits only and in lower case, in apikey,
    accesskey, appid, clientid, authtoken and the like, or in token, secret, password,
    credential(s) or authorization.
    """
    text = task.question + json.dumps(task.tools, ensure_ascii=False)
    return {(call["name"], name) for call in task.answer
            for name, value in call["arguments"].items()
            if str(value) not in text and is_credential(name)}


def is_credential(name):
    """
    >>> is_credential("X-Api-Key"), is_credential("user_id")
    (True, False)
    """
    return bool(_CREDENTIAL.search(re.sub(r"[^a-z0-9]", "", name.lower())))


def without(calls, pairs):
    """The calls without the arguments in `pairs`, of (tool, argument)."""
    return [{"name": call["name"],
             "arguments": {name: value for name, value in call["arguments"].items()
                           if (call["name"], name) not in pairs}} for call in calls]


# ---------------------------------------------------------------------------------------------
# Many answers


def wilson(right, n):
    """(share, low, high): a proportion with its 95 % Wilson interval.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    p, w = right / n, Z * Z / n
    middle, half = (p + w / 2) / (1 + w), math.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def unweighted_mean(shares):
    """(mean, low, high) of independent shares, each (share, low, high).

    The squares of the distances to the limits add up (MOVER, Zou and Donner 2008), so that Wilson's
    limits carry over.
    """
    k = len(shares)
    mean = sum(p for p, _, _ in shares) / k
    return (mean, mean - math.hypot(*(p - low for p, low, _ in shares)) / k,
            mean + math.hypot(*(high - p for p, _, high in shares)) / k)


def paired_difference(only_b, only_a, n):
    """(b - a, low, high): difference of two shares over the same n rows, with a 95 % interval.

    Agresti and Min (2005): a half is added to each of the four cells, so that the interval has a
    width even where the two never differ.

    Args:
        only_b, only_a: rows that only this one got right.
    """
    b, a, total = only_b + 0.5, only_a + 0.5, n + 2
    middle = (b - a) / total
    half = Z * math.sqrt((b + a) / total - middle**2) / math.sqrt(total)
    return (only_b - only_a) / n, max(-1.0, middle - half), min(1.0, middle + half)


def mcnemar(only_a, only_b):
    """Two-sided p-value of the exact McNemar test: min(1, 2 P(X <= min)), X binomial with the rows
    that differ and 1/2.

    >>> mcnemar(1, 9)
    0.021484375
    """
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)      # integers: exact for any n


# ---------------------------------------------------------------------------------------------
# Zero-data audit


def ngrams(text):
    """Runs of NGRAM words in the first MAX_QUESTION characters of a text, normalised by verify; of
    a shorter text, all of its words."""
    words = normalise_text(text[:MAX_QUESTION]).split()
    runs = max(len(words) - NGRAM, 0) + 1 if words else 0
    return [tuple(words[i:i + NGRAM]) for i in range(runs)]


def overlaps(questions, rows):
    """Which questions share an n-gram with a benchmark's question.

    Args:
        questions: list of str.
        rows: loaders.Row.

    Returns:
        [(question, the first n-gram that it shares, as text, ids of the rows that have it)].
    """
    where, found = defaultdict(list), []      # n-gram -> ids
    for row in rows:
        for gram in set(ngrams(row.task.question)):
            where[gram].append(row.id)
    for question in questions:
        gram = next((gram for gram in ngrams(question) if gram in where), None)
        if gram:
            found.append((question, " ".join(gram), where[gram]))
    return found
