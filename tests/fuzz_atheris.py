"""What holds for any string that a model may write, and a coverage-guided search for one where it
does not.

`check` is shared with test_fuzz.py. Run by itself this file is a fuzzer, for as long as one likes;
it needs no torch, but a virtual environment of its own:

    python -m venv venv/atheris && venv/atheris/bin/pip install atheris
    PYTHONPATH=. venv/atheris/bin/python tests/fuzz_atheris.py -max_total_time=600 -max_len=4096

It stops at the first string that raises or breaks a promise, and writes the bytes to crash-*; give
that file as the argument to run it alone.
"""
import inspect
import json
import math
import sys
from collections import Counter
from dataclasses import asdict

import curriculum
import generator
import solver
import verify

SPEC = generator.Spec("travel", "single_turn", 1, 1)
QUESTION = "Please book a train to Oslo for 3 people on 2026-03-01."
TOOLS = ('[{"name": "book_train", "description": "Book a train.", "parameters": {"city": '
         '{"type": "string"}, "people": {"type": "integer"}}, "required": ["city"]}]')
CALLS = '[{"name": "book_train", "arguments": {"city": "Oslo", "people": 3}}]'
GOLD = json.loads(CALLS)
BLOCKS = {"think": "plan", "question": QUESTION, "available_tools": TOOLS,
          "tool_call_answer": CALLS}

# The alphabet of structured texts: blocks, JSON and its pieces, and what has broken parsers before.
FRAGMENTS = [
    *(f"<{tag}>{content}</{tag}>" for tag, content in BLOCKS.items()), *BLOCKS.values(),
    *(f"<{tag}>" for tag in BLOCKS), *(f"</{tag}>" for tag in BLOCKS), "<think", "</", ">",
    "```json\n", "\n```",
    "```", "[", "]", "{", "}", ",", ":", '"', "'", "\\", '\\"', "\\\\", "[" * 20, "]" * 20,
    '{"a":' * 20, "}" * 20,
    '"name":', '"tool_name":', '"function":', '"arguments":', '"parameters":', '"properties":',
    '"required":',
    '"type":', '"description":', '"f"', '"book_train"', '"city"', '"string"', '"Oslo"', '"{}"',
    '"[1]"',
    '{"name":"f","arguments":"{\\"x\\": [1]}"}', '{"function":{"name":"f","arguments":{}}}',
    '{"tool_name":"f","x":1}',
    '{"name":"f","arguments":{"x":1,"x":2}}', "true", "false", "null", '"True"', "NaN",
    "-Infinity", "1e999", "1e308",
    "-0", "0.0", "05", "1e-999", "123456789012345678", "9" * 400, "-" + "9" * 4299, "9" * 4301,
    "0." + "1" * 400,
    "1" * 300 + ".5", '"1,500"', "1500", '"twenty"', "\\ud800", "\\udc00", "\\ud83d\\ude00",
    "\\u0000", "\ud800",
    "\udc00", "\x00", "\x1f", "\x7f", "\x85", "\u2028", "\ufeff", "\xa0", "\n", "\t", " ",
    "e\u0301", "\u0315\u0300" * 20,
    "\ufdfa", "\u1369\u136a\u136b\u136c", "\u0661\u0662\u0663\u0664", "\u4e2d", "\U0001f600",
    "\u0130", "\xdf", "\u2460",
    "What is ", "define", "...", "the user's question", solver.SYSTEM, generator.SYSTEM, QUESTION,
    "0", "7", "a", "z", '"inputSchema":', '"enum":["Oslo"]', '"minimum":4', '{"id":"c-9",',
    '"input":{}', " -5 ", "12.50", "minus "]


def check(text):
    """Call every public function that takes model text. Returns the names of what was reached."""
    reached = check_json(text) | check_solver(text) | check_generator(text)
    stripped = verify.strip_fence(text)
    assert len(stripped) <= len(text)
    assert text.endswith(verify.after_think(text))
    assert all(number.is_finite() for number in verify.numbers_in(text))
    for tag in generator.TAGS:
        block = verify.last_block(text, tag)
        assert block is None or block in text
        assert block is None or f"</{tag}>" not in block and f"<{tag}>" not in block
    generator.is_placeholder(text)
    for calls in ([], GOLD, [{"name": text, "arguments": {text: text, "x": [text, {text: None}]}}]):
        curriculum.question_problem(text, calls)
        assert verify.grounded(calls, text) in (True, False)
        verify.call_problem(calls, json.loads(TOOLS))
        assert verify.calls_equal(calls, calls)
    return reached


def check_json(text):
    """The readers of calls and menus on the whole text as the content of a block."""
    reached = set()
    try:
        value = verify.load_json(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        assert verify.values_equal(value, verify.load_json(json.dumps(value)))
        reached.add("json")
    except ValueError:
        assert verify.read_calls(text) is None and verify.read_tools(text) is None
    calls, tools = verify.read_calls(text), verify.read_tools(text)
    if calls:
        reached |= {name for name, there in (("calls", calls.calls),
                                             ("malformed", calls.malformed)) if there}
        for call in calls.calls:
            assert set(call) == {"name", "arguments"} and type(call["arguments"]) is dict
            assert call["name"].strip()
        assert verify.calls_equal(calls.calls,
                                  calls.calls) is (len(calls.calls) <= verify.MAX_ITEMS)
        assert 0 <= solver.accuracy_reward(calls, GOLD) <= 1
    if tools:
        reached.add("tools")
        verify.menu_problem(tools)
        for tool in tools:
            assert tool["name"].strip() and all(type(schema) is dict
                                                for schema in tool["parameters"].values())
            assert all(type(name) is str for name in tool["required"])
    return reached


def check_solver(text):
    """The Solver's reader and rewards."""
    calls, reward = solver.read(text), solver.reward(text, GOLD)
    assert reward["format"] == solver.format_reward(text) and all(0 <= part <= 1
                                                                  for part in reward.values())
    right = solver.is_right(text, GOLD)
    assert right == (curriculum.pass_rate([text], GOLD) == 1)
    if right:
        assert reward["format"] == 1 and reward["accuracy"] == (1
                                                                if verify.last_block(text, "think")
                                                                else 0)
    return {name for name, there in (("answer", calls), ("right", right)) if there}


def check_generator(text):
    """The Generator's reader and rewards, and the checks between a completion and a task."""
    draft = generator.read(text)
    assert all(0 <= part <= 1 for part in generator.reward(draft, 1.0, 1.0).values())
    task = draft.task(SPEC)
    problem = curriculum.structural_problem(draft, task)
    if task is None:
        assert problem == "unparsed"
        return set()
    assert verify.Task(**json.loads(json.dumps(asdict(task)))).answer == task.answer
    hash(curriculum.signature(task))
    curriculum.judge_prompt(task)
    solver.prompt(task.question, task.tools)
    if problem is None:
        valued = not task.answer or any(call["arguments"] for call in task.answer)
        assert math.isclose(generator.validity_reward(draft), 1.0 if valued else 0.8)
    return {"task", problem or "sound"}


def decode(data):
    """Text from a fuzzer's bytes: the first says whether the others are text or name fragments."""
    kind, data = data[:1], data[1:]
    if kind < b"\x40":
        return data.decode("utf-8", "surrogatepass" if kind < b"\x20" else "replace")
    if kind < b"\x60":
        return f"<tool_call_answer>{data.decode('utf-8', 'replace')}</tool_call_answer>"
    return "".join(FRAGMENTS[byte] if byte < len(FRAGMENTS) else chr(byte - 128 & 127)
                   for byte in data)


def main():
    """Fuzz until a limit given to libFuzzer, and say what was reached."""
    import atheris

    reached = Counter()

    def one(data):
        try:
            text = decode(data)
        except UnicodeDecodeError:
            return
        reached.update(check(text))
        reached["strings"] += 1
        if reached["strings"] % 100_000 == 0:
            print(dict(reached), file=sys.stderr, flush=True)

    for module in (curriculum, generator, solver, verify):
        for function in filter(inspect.isfunction, vars(module).values()):
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
