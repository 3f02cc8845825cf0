"""What each reward pays for a fixed set of answers: docs/rewards.md, written and checked.

    python tests/test_payout.py            # print the table
    python tests/test_payout.py --write    # put it between the marks in docs/rewards.md
"""
import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))       # for `python tests/test_payout.py`; pytest has it already

import curriculum
import generator
import solver

PAGE = ROOT / "docs/rewards.md"
PARTS = ("format", "validity", "curriculum")      # of Eqs. 1, 2 and 5
OPEN, CLOSE = "<!-- payout -->", "<!-- /payout -->"


def call(name="book_train", **arguments):
    return {"name": name, "arguments": arguments}


TRAIN = call(city="Oslo", day="Friday", seats=5)
MAIL = call("send_mail", to="Ada")


def answer(*calls, think="<think>book_train fits</think>"):
    return f"{think}<tool_call_answer>{json.dumps(calls)}</tool_call_answer>"


# Gold is TRAIN, or TRAIN and MAIL where "two" is said, or nothing where no tool fits.
SOLVER_ANSWERS = [
    ("the gold call", answer(TRAIN), [TRAIN]),
    ('`"5"` for `5`', answer(call(city="Oslo", day="Friday", seats="5")), [TRAIN]),
    ("both of two calls, in the other order", answer(MAIL, TRAIN), [TRAIN, MAIL]),
    ("the gold call without a `<think>` block", answer(TRAIN, think=""), [TRAIN]),
    ("1 of 3 arguments", answer(call(city="Oslo")), [TRAIN]),
    ("2 of 3 arguments", answer(call(city="Oslo", day="Friday")), [TRAIN]),
    ("no arguments", answer(call()), [TRAIN]),
    ("one value of three wrong", answer(call(city="Rome", day="Friday", seats=5)), [TRAIN]),
    ("all values wrong", answer(call(city="Rome", day="Monday", seats=2)), [TRAIN]),
    ("`oslo` for `Oslo`", answer(call(city="oslo", day="Friday", seats=5)), [TRAIN]),
    ("an argument too many", answer(call(**TRAIN["arguments"], pets=True)), [TRAIN]),
    ("the wrong tool with the right arguments", answer(TRAIN | {"name": "book_bus"}), [TRAIN]),
    ("another call beside it", answer(TRAIN, MAIL), [TRAIN]),
    ("the gold call twice", answer(TRAIN, TRAIN), [TRAIN]),
    ("one of two calls", answer(TRAIN), [TRAIN, MAIL]),
    ("an empty list", answer(), [TRAIN]),
    ("an empty list where no tool fits", answer(), []),
    ("a call where no tool fits", answer(TRAIN), []),
    ("prose where no tool fits", "<think>x</think>I have no tool for that.", []),
    ("Python syntax in the tag",
     '<think>x</think><tool_call_answer>book_train("Oslo")</tool_call_answer>', [TRAIN]),
    ("prose", "<think>x</think>I have booked a train to Oslo.", [TRAIN]),
    ("the prompt copied", solver.SYSTEM, [TRAIN]),
]

TOOL = {"name": "book_train", "description": "Book a train.", "required": ["city", "day"],
        "parameters": {"city": {"type": "string"}, "day": {"type": "string"}}}
QUESTION = "I need a train to Oslo on Friday."


def task(question=QUESTION, tools=(TOOL,), calls=(call(city="Oslo", day="Friday"),)):
    return (f"<think>plan</think><question>{question}</question>"
            f"<available_tools>{json.dumps(tools)}</available_tools>"
            f"<tool_call_answer>{json.dumps(calls)}</tool_call_answer>")


# With True, 0 calls were asked for.
GENERATOR_TASKS = [
    ("a sound task", task()),
    ("without a `<think>` block", task().replace("<think>plan</think>", "")),
    ("the same tool twice in the menu", task(tools=[TOOL, TOOL])),
    ("the calls are not in the menu", task(calls=[call("book_bus", city="Oslo", day="Friday")])),
    ("a required argument left out", task(calls=[call(city="Oslo")])),
    ("a value that the question lacks", task(calls=[call(city="Oslo", day="Monday")])),
    ("an argument that the tool lacks", task(calls=[call(city="Oslo", day="Friday", of="train")])),
    ("null for a required argument", task(calls=[call(city="Oslo", day=None)])),
    ("a call without arguments",
     task(tools=[TOOL | {"parameters": {}, "required": []}], calls=[call()])),
    ("the call itself as the question", task(question='book_train city="Oslo" day="Friday"')),
    ("the menu does not parse", task().replace("[{", "{", 1)),
    ("a question of two letters", task(question="Hi")),
    ("the prompt copied", generator.SYSTEM),
    ("an empty list", task(calls=[])),
    ("an empty list, 0 calls asked for", task(calls=[]), True),
    ("a call, 0 calls asked for", task(), True),
]
AMBIGUOUS = task(question="I need a train to Oslo or Rome on Friday or Monday.")


def solver_table():
    """Markdown: what Eqs. 6 and 7 pay for each answer, by the paper's and by stricter rules."""
    rows = ["| Solver's answer | right | r_fmt | r_acc | r_acc, `--strict_values` "
            "| r_acc, `--decline` |", "|---|---|---|---|---|---|"]
    for label, text, gold in SOLVER_ANSWERS:
        paper, strict, same_tool = (solver.reward(text, gold, **rule) for rule in (
            {}, {"strict_values": True}, {"same_tool": True}))
        right = "yes" if solver.is_right(text, gold) else "no"
        rows.append(f"| {label} | {right} | {paper['format']:.2f} | {paper['accuracy']:.2f} "
                    f"| {strict['accuracy']:.2f} | {same_tool['accuracy']:.2f} |")
    return rows


def generator_table():
    """Markdown: what Eqs. 1, 2 and 5 pay for each task when p = 1/2 and the judge gives 5; and
    whether it may enter the curriculum."""
    rows = ["| Generator's task (p = 1/2, judge 5) | r_fmt | r_valid | r_curr | curriculum |",
            "|---|---|---|---|---|"]
    spec = generator.Spec("travel", "single_turn", 1, 1)
    for label, text, *no_call in GENERATOR_TASKS:
        draft = generator.read(text, None, *no_call)
        parts = generator.reward(draft, curriculum.band_pass(0.5, 8), curriculum.semantic_reward(5))
        problem = curriculum.structural_problem(draft, draft.task(spec))
        rows.append(f"| {label} | " + " | ".join(f"{parts[part]:.2f}" for part in PARTS)
                    + f" | {f'no: `{problem}`' if problem else 'yes'} |")
    return rows


def ambiguous_table():
    """Markdown: an ambiguous question, which passes every check, at each pass rate of K = 8."""
    rates = [Fraction(k, 8) for k in range(9)]
    rows = [f"| An ambiguous question at p = | {' | '.join(map(str, rates))} |", "|---" * 10 + "|"]
    draft = generator.read(AMBIGUOUS)
    for score, said in ((5, "judge fooled (5)"), (3, "judge in doubt (3)"), (1, "judge sees (1)")):
        semantic = curriculum.semantic_reward(score)
        rewards = [generator.reward(draft, curriculum.band_pass(float(p), 8), semantic)
                   for p in rates]
        totals = [sum(reward[part] for part in PARTS) for reward in rewards]
        rows.append(f"| total, {said} | " + " | ".join(f"{total:.2f}" for total in totals) + " |")
    return rows


def payout():
    """The whole table as Markdown."""
    return "\n".join(solver_table() + [""] + generator_table() + [""] + ambiguous_table())


def test_the_readme_has_todays_table():
    _, opened, rest = PAGE.read_text().partition(OPEN)
    table, closed, _ = rest.partition(CLOSE)
    assert opened and closed, f"docs/rewards.md lacks {OPEN} ... {CLOSE}"
    assert table.strip() == payout(), "run python tests/test_payout.py --write"


@pytest.mark.parametrize("label, right, paper, strict", [
    ("the gold call", True, (1, 1), 1), ('`"5"` for `5`', True, (1, 1), 1),
    ("1 of 3 arguments", False, (1, 0.85), 0.2 + 0.3 / 2 + 0.5 / 3),
    ("the wrong tool with the right arguments", False, (1, 0.8), 0.8),
    ("the gold call twice", False, (1, 0.8), 0.8), ("one of two calls", False, (1, 0.5), 0.5),
    ("an empty list", False, (0.6, 0), 0), ("prose", False, (0, 0), 0),
    ("an empty list where no tool fits", True, (1, 1), 1),
    ("a call where no tool fits", False, (0.6, 0), 0)])
def test_solver_pay_by_hand(label, right, paper, strict):
    text, gold = next(row[1:] for row in SOLVER_ANSWERS if row[0] == label)
    assert solver.is_right(text, gold) is right
    reward = solver.reward(text, gold)
    assert (reward["format"], reward["accuracy"]) == pytest.approx(paper)
    assert solver.reward(text, gold, strict_values=True)["accuracy"] == pytest.approx(strict)


def test_only_gold_without_arguments_pays_for_none_of_them():
    for strict in (False, True):
        for p, g, share in (({}, {}, 1), ({"a": 1}, {}, 0), ({}, {"a": 1}, 0)):
            assert solver.value_share(p, g, strict) == share


if __name__ == "__main__":
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text().partition(OPEN)
        _, closed, after = rest.partition(CLOSE)
        if not closed:
            sys.exit(f"docs/rewards.md lacks {OPEN} ... {CLOSE}")
        PAGE.write_text(f"{before}{OPEN}\n{payout()}\n{CLOSE}{after}")
    else:
        print(payout())
