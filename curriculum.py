"""Difficulty and curriculum: how hard a task is for the Solver, and which tasks it trains on, in
which order (Tool-R0 sections 3.2 and 3.3, Eqs. 3 and 4).

Pure functions over tasks and texts; whoever calls them brings the samples.
"""
import json
import math
import random
import re
from collections import Counter

import solver
from generator import is_placeholder
from verify import MAX_QUESTION, call_problem, grounded, menu_problem

P_LOW, P_HIGH, SIGMA = 0.25, 0.75, 0.12              # Eq. 4
MIN_AGREEMENT = 0.20                                 # cross-verification
BUCKETS = {"easy": 0.2, "medium": 0.5, "hard": 0.3}  # shares of the curriculum, authors' code

JUDGE_SYSTEM = """\
You grade tasks for tool calling. Read the question, the available tools and the proposed calls.
Give a score from 1 to 5: 5 when the question is what a real user would ask and the calls answer it
exactly, 3 when either is doubtful, 1 when the question makes no sense or the calls are wrong. Write
the digit only."""
SCORES = "12345"


def pass_rate(texts, gold):
    """p = (1/K) sum_k [calls of sample k = gold calls]   (Eq. 3)"""
    return sum(solver.is_right(text, gold) for text in texts) / len(texts)


def in_band(p):
    """Is the task at the edge of what the Solver can do?"""
    return P_LOW <= p <= P_HIGH


def gaussian(p):
    """1 inside the band; outside, exp(-d^2 / (2 sigma^2)) at the distance d from it."""
    distance = max(P_LOW - p, p - P_HIGH, 0.0)
    return math.exp(-distance**2 / (2 * SIGMA**2))


BANDS = {"gaussian": gaussian, "rectangular": in_band}      # the second: an ablation of the paper
ORDERS = ("easy_first", "shuffled")      # of a curriculum; the second is an ablation


def band_pass(p, samples, band="gaussian"):
    """Difficulty reward of a pass rate p measured on K = `samples` Solver samples   (Eq. 4)

    r_diff(p) = 0                                    p < 1/K
              = exp(-(p - P_low)^2 / (2 sigma^2))    p < P_low
              = 1                                    P_low <= p <= P_high
              = exp(-(p - P_high)^2 / (2 sigma^2))   p > P_high

    Args:
        band: a word of BANDS; another shape is a function of p and a line there.

    >>> [round(band_pass(k / 8, 8), 4) for k in (0, 1, 2, 6, 7, 8)]
    [0.0, 0.5813, 1.0, 1.0, 0.5813, 0.1142]
    """
    return float(BANDS[band](p)) if p >= 1 / samples else 0.0


def judge_prompt(task):
    """Chat messages that ask the Solver for a score 1..5 of a task; the answer is one digit."""
    content = (f"{task.question}\n<available_tools>\n{json.dumps(task.tools, ensure_ascii=False)}\n"
               f"</available_tools>\n<tool_call_answer>\n"
               f"{json.dumps(task.answer, ensure_ascii=False)}\n</tool_call_answer>")
    return [{"role": "system", "content": JUDGE_SYSTEM}, {"role": "user", "content": content}]


def semantic_reward(score):
    """r_sem = (score - 1) / 4 of a judge's score in 1..5."""
    return (score - 1) / 4


# ---------------------------------------------------------------------------------------------
# Which candidates may become tasks

_STOCK = re.compile(r"\b(capital of|define|explain|summari[sz]e|poem|joke)\b", re.IGNORECASE)
_WH_IS = re.compile(r"\s*(what|who|when|where)(\s+is|['\u2019]s)\b", re.IGNORECASE)
_CJK = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
                  "\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]")


def question_problem(question, calls, own_tools=False):
    """First reason why a question is refused for the curriculum, or None.

    Args:
        own_tools: whether the user brought the tools: they may be asked for in any words and any
            script. Length is counted in UTF-8 bytes: a Chinese character says as much as several
            letters.
    """
    if is_placeholder(question):
        return "question_placeholder"
    if len(question) > MAX_QUESTION:
        return "question_too_long"
    text = question.strip()
    if len(text.encode(errors="replace") if own_tools else text) < 25:
        return "question_too_short"
    if own_tools:
        return None
    if _CJK.search(question):
        return "question_cjk"
    simple = len(calls) == 1 and len(calls[0]["arguments"]) <= 1
    stock = _STOCK.search(question) or (simple and _WH_IS.match(question))
    return "question_stock" if stock else None


def structural_problem(draft, task, grounding=True, obey_spec=False):
    """First reason why a candidate cannot be a task, or None.

    Args:
        draft: generator.Draft.
        task: its verify.Task, or None where it does not parse.
        grounding: whether values must stand in the question.
        obey_spec: whether the task must have as many tools and calls as were asked for.
    """
    if task is None:
        return "unparsed"
    if draft.malformed:
        return "gold_malformed"
    asked = task.spec.get("tools"), task.spec.get("calls")
    if obey_spec and (len(task.tools), len(task.answer)) != asked:
        return "not_as_specified"
    return (menu_problem(task.tools)[0] or call_problem(task.answer, task.tools)
            or question_problem(task.question, task.answer, bool(task.spec.get("menu")))
            or ("not_grounded" if grounding and not grounded(task.answer, task.question) else None))


def signature(task):
    """What makes two tasks the same: the question in lower case with digits folded, the names in
    the menu, and the names in the calls. Hashable."""
    question = re.sub(r"\d+", "0", " ".join(task.question.lower().split()))
    tools = tuple(sorted((t["name"], tuple(sorted(t["parameters"]))) for t in task.tools))
    calls = tuple(sorted((c["name"], tuple(sorted(c["arguments"]))) for c in task.answer))
    return question, tools, calls


# ---------------------------------------------------------------------------------------------
# From the pool to the curriculum


def bucket(p):
    """hard p <= 0.3, medium up to 0.7, easy p >= 0.8; in between the nearer one (ours).

    >>> [bucket(k / 10) for k in (0, 3, 4, 7, 8)]
    ['hard', 'hard', 'medium', 'medium', 'easy']
    """
    return "hard" if p < 0.35 else "medium" if p < 0.75 else "easy"


def apportion(total, weights, available):
    """Whole-number shares of `total` in proportion to `weights`, none above what is available.

    Largest remainder; what a short one cannot take is dealt again among the others.

    >>> apportion(10, {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 9, "c": 9})
    {'a': 1, 'b': 3, 'c': 6}
    """
    shares = dict.fromkeys(weights, 0)
    left = min(total, sum(available.values()))
    while left:
        open_ = {k: w for k, w in weights.items() if available[k] > shares[k]}
        scale = sum(open_.values())
        exact = {k: left * w / scale for k, w in open_.items()}
        rest = left - sum(map(int, exact.values()))      # goes to the largest remainders
        for n, k in enumerate(sorted(open_, key=lambda k: int(exact[k]) - exact[k])):
            taken = min(int(exact[k]) + (n < rest), available[k] - shares[k])
            shares[k] += taken
            left -= taken
    return shares


def select(tasks, size, domains, seed, order="easy_first", decline=0.0):
    """The curriculum: at most `size` graded tasks, easy to hard (section 3.3).

    Quotas per domain in proportion to its weight; inside each 20 % easy, 50 % medium, 30 % hard,
    short buckets filled from the others. Sorted by pass rate, highest first; ties in a seeded
    shuffle. Tasks without gold calls get random places in that order (ours): by pass rate most
    would stand at its head, and none among the hard tasks.

    Args:
        tasks: with pass_rate and bucket set.
        domains: {domain: weight}.
        seed: anything random.Random takes.
        order: a word of ORDERS.
        decline: the share of `size` that tasks without gold calls may take (ours).
    """
    rng = random.Random(seed)
    tasks = rng.sample(tasks, len(tasks))
    declines = [task for task in tasks if not task.answer]
    few = min(len(declines), round(decline * size))
    chosen = fill_quotas([task for task in tasks if task.answer], size - few, domains)
    rng.shuffle(chosen)
    if order == "easy_first":
        chosen.sort(key=lambda task: -task.pass_rate)
    for task in fill_quotas(declines, few, domains):
        chosen.insert(rng.randint(0, len(chosen)), task)
    return chosen


def fill_quotas(tasks, size, domains):
    """The first `size` of the tasks that fit the quotas of domains and buckets, in no order."""
    chosen, of_domains = [], Counter(task.spec["domain"] for task in tasks)
    for domain, quota in apportion(size, domains, of_domains).items():
        there = [task for task in tasks if task.spec["domain"] == domain]
        shares = apportion(quota, BUCKETS, Counter(task.bucket for task in there))
        for name, share in shares.items():
            chosen += [task for task in there if task.bucket == name][:share]
    return chosen


def spread(size, steps, per_step):
    """Curriculum indices for each training step, evenly over the order: list of lists; none where
    the curriculum is empty.

    50 steps of 8 take every fifth of 2,000 tasks, so that the order reaches the hard ones; where
    steps x prompts exceed the curriculum, tasks repeat in order, in steps that follow each other.

    >>> spread(8, 2, 2), spread(4, 4, 2)
    ([[0, 2], [4, 6]], [[0, 1], [0, 1], [2, 3], [2, 3]])
    """
    if size == 0:
        return []
    wanted = steps * per_step
    rounds = max(1, steps // -(-wanted // size))
    ends = [n * steps // rounds for n in range(rounds + 1)]
    # The steps of a round are dealt its tasks one by one: a task's copies fall into different ones.
    return [[(first * per_step + i * (end - first) + n) * size // wanted for i in range(per_step)]
            for first, end in zip(ends, ends[1:]) for n in range(end - first)]
