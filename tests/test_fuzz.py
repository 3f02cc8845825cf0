"""Model text is hostile: no string makes a reader raise, and none makes it slow.

`fuzz_atheris.check` says what must hold for any string; hypothesis and a mutator bring the strings.
"""
import json
import random
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import curriculum
import generator
import solver
import verify
from fuzz_atheris import BLOCKS, FRAGMENTS, GOLD, check

# ---------------------------------------------------------------------------------------------
# Structured texts

names = st.sampled_from(["f", "book_train", "book_train", "tool", " ", "", "e\u0301", "name"])
keys = st.sampled_from(["city", "people", "x", "arguments", "function", "required", "",
                        "\u4e2d"]) | st.text(max_size=3)
strings = st.text(max_size=5) | st.sampled_from(
    ["Oslo", "3", "3.0", "05", "true", "True", "NaN", "</tool_call_answer>", "<think>", "\x00\x1f",
     "\u0315\u0300" * 9,
     "\ufdfa", "1,500", "\u1369\u136a\u136b\u136c", "{}", '{"city": "Oslo"}', "1" * 5000])
numbers = (st.integers() | st.floats(allow_nan=True) | st.sampled_from(
    [3, 3.0, 10**400, -10**4298, 2**61 - 1, 1e308, 5e-324, 123456789012345678]))
values = st.recursive(st.none() | st.booleans() | numbers | strings,
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(keys, inner, max_size=3),
                      max_leaves=6)
arguments = st.dictionaries(keys, values, max_size=3)
near = st.dictionaries(st.sampled_from(["city", "city", "people", "day", "day"]),
                       st.sampled_from(["Oslo", "Oslo", 3, "Rome", ["Oslo"], None]), max_size=2)
calls = st.one_of(
    st.just(GOLD[0]), st.sampled_from([{"name": "book_train", "arguments": {"city": None}},
                                       {"name": "book_train", "arguments": {"city": True}}]),
    st.fixed_dictionaries({"name": st.sampled_from(["book_train"] * 3 + ["f"]),
                           "arguments": near}),
    st.fixed_dictionaries({"name": names, "arguments": arguments}),
    st.fixed_dictionaries({"tool_name": names},
                          optional={"arguments": arguments.map(json.dumps), "x": values}),
    st.builds(lambda call: {"function": call},
              st.fixed_dictionaries({"name": names, "arguments": arguments})),
    values)
typed = st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "array"])})
schemas = st.one_of(typed, typed, typed, typed, values)
parameters = st.dictionaries(keys, schemas, max_size=3)
tools = st.one_of(
    st.just(json.loads(BLOCKS["available_tools"])[0]),
    st.fixed_dictionaries({"name": names, "parameters": parameters},
                          optional={"description": strings, "required": st.lists(keys, max_size=2)
                                    | values}),
    st.builds(lambda p, r: {"name": "f",
                            "parameters": {"type": "object", "properties": p, "required": r}},
              parameters, st.lists(keys, max_size=2)))
menus = st.lists(tools, min_size=1, max_size=3) | st.lists(tools | values, max_size=3)
questions = st.sampled_from([BLOCKS["question"], "What is 3?", "define", "...", "\u4e2d" * 30,
                             "a" * 20_001]) | strings
contents = {"think": strings, "question": questions,
            "available_tools": st.builds(json.dumps, menus),
            "tool_call_answer": st.builds(json.dumps, st.lists(calls, max_size=3) | calls)}


@st.composite
def blocks(draw):
    """One block: mostly with content of its kind, sometimes fenced, unclosed or foreign."""
    tag = draw(st.sampled_from(list(BLOCKS)))
    content = draw(st.one_of(st.just(BLOCKS[tag]), contents[tag], contents[tag],
                             st.sampled_from(FRAGMENTS)))
    form = draw(st.sampled_from(["<{0}>{1}</{0}>"] * 5
                                + ["<{0}>```json\n{1}\n```</{0}>", "<{0}>{1}", "{1}</{0}>"]))
    return form.replace("{0}", tag).replace("{1}", content)


texts = st.one_of(
    st.lists(blocks(), min_size=1, max_size=6).map("".join),
    st.tuples(*(st.just(BLOCKS[tag]) | contents[tag] for tag in BLOCKS)).map(
        lambda parts: "".join(f"<{tag}>{part}</{tag}>" for tag, part in zip(BLOCKS, parts))),
    contents["tool_call_answer"], contents["available_tools"],
    st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.text(max_size=40))


def mutate(rng, text):
    """The text with a few pieces cut, repeated, moved, or replaced by fragments."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice((0, 1, 1, 2, 5, 30)))
        piece = rng.choice(("", text[start:end] * 2, text[start:end][::-1], rng.choice(FRAGMENTS),
                            rng.choice(FRAGMENTS) + text[start:end],
                            chr(rng.choice((0, 31, 34, 92, 0xd800, 0x10ffff)))))
        text = text[:start] + piece + text[end:]
    return text


def fuzz(examples, mutants, fixed):
    """Check `examples` x (1 + mutants) strings; returns how often each outcome was reached.

    Args:
        fixed: the same strings in every run.
    """
    reached = Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=fixed,
              suppress_health_check=list(HealthCheck))
    @given(texts, st.integers(0, 2**32))
    def run(text, seed):
        rng = random.Random(seed)
        reached.update(check(text))
        for _ in range(mutants):
            reached.update(check(mutate(rng, text)))
        reached["strings"] += 1 + mutants

    run()
    return reached


OUTCOMES = {"json", "calls", "malformed", "tools", "answer", "right", "task", "sound",
            "gold_malformed", "unknown_tool",
            "required_missing", "value_wrong_type", "unknown_argument",
            "tool_undescribed", "question_placeholder", "not_grounded"}


def test_twenty_thousand_hostile_strings():
    reached = fuzz(examples=2_500, mutants=7, fixed=True)
    assert reached["strings"] >= 20_000
    assert min(reached["calls"], reached["tools"],
               reached["answer"]) > 500 and reached["task"] > 200
    assert not OUTCOMES - set(reached), "the strategies no longer reach all of the readers"


@pytest.mark.slow
def test_a_million_hostile_strings():
    assert fuzz(examples=8_000, mutants=124, fixed=False)["strings"] >= 1_000_000


# ---------------------------------------------------------------------------------------------
# Size and time


def filled(piece, size):
    """A JSON list of `piece`s, about `size` characters long."""
    return "[" + ",".join([piece] * (size // (len(piece) + 1))) + "]"


# The slowest found for each reader, among these kinds and random combinations of their pieces.
PIECES = ["[" * 15 + "]" * 15, "[" * 9 + "1" + "]" * 9, "[[]]", "[1]", "{}", '{"":{}}', "1", "1.0",
          '""', '"\\u0041"',
          '{"name":"f"}', '{"name":"f","x":1}', '{"name":"f","arguments":"a"}',
          '{"name":"f","arguments":"{}"}',
          '{"name":"f","arguments":"{\\"\\\\u0041\\":1}"}', '{"name":"f","parameters":{"x":{}}}',
          '{"name":"f","required":["a"]}', '{"function":{"name":"f"}}',
          '{"name":"f","parameters":{"required":["a"]}}',
          "9" * 4299, "0." + "1" * 1000, "1" * 300 + "." + "5" * 300, "1" * 4000 + "e-4000"]
WHOLES = ["[", '{"a":', '"', "\\", '\\"', "`", "\n", "[" * 16 + "]" * 16, "<tool_call_answer>",
          "</tool_call_answer>",
          "<tool_call_answer></tool_call_answer>", "<tool_call_answer", "```json\n"]
LONG = {"float": "[0." + "1" * 10**6 + "]", "exponent": "[1e-" + "9" * 10**6 + "]", "integer": "["
        + "1" * 10**6 + "]",
        "underflow": "[" + "1" * 10**6 + "e-1000000]", "nested": "[" * 500_000 + "]" * 500_000,
        "required": '[{"name":"f","required":' + filled('"a"', 10**6) + "}]",
        "arguments": json.dumps([{"name": "f", "arguments": '{"x":' + filled('""', 10**6 // 2)
                                  + "}"}]),
        "fence": "```" + " " * 10**6 + "\n```"}
WORST = ({f"[{piece[:30]},...]": filled(piece, 10**6) for piece in PIECES}
         | {f"{whole[:20]}...": whole * (10**6 // len(whole)) for whole in WHOLES} | LONG)


def best_of(tries, limit, function, *args):
    """Fewest processor seconds of several runs, for others share the machine;
    the first below the limit will do."""
    best = float("inf")
    for _ in range(tries):
        start = time.process_time()
        function(*args)
        best = min(best, time.process_time() - start)
        if best < limit:
            break
    return best


@pytest.mark.parametrize("text", WORST.values(), ids=WORST)
def test_a_megabyte_of_the_worst_is_read_in_a_fifth_of_a_second(text):
    for reader in (verify.read_calls, verify.read_tools, verify.strip_fence,
                   generator.is_placeholder,
                   lambda text: verify.last_block(text, "tool_call_answer"),
                   lambda text: curriculum.question_problem(text, [])):
        assert best_of(10, 0.2, reader, text) < 0.2


@pytest.mark.parametrize("piece", ["[[]]", "1.0", '{"name":"f","x":1}', '"' + "a" * 100 + '"',
                                   "\\", "<think>"])
def test_ten_megabytes_are_read(piece):
    for text in (filled(piece, 10**7), piece * (10**7 // len(piece))):
        for reader in (verify.read_calls, verify.read_tools, verify.strip_fence):
            reader(text)
        solver.reward(f"<think>x</think><tool_call_answer>{text}</tool_call_answer>", GOLD)


def call(**arguments):
    return {"name": "f", "arguments": arguments}


def flat(values):
    """64 calls of 64 arguments."""
    return [call(**{f"a{i}": value for i, value in enumerate(values[start:start + 64])})
            for start in range(0, 4096, 64)]


MARKS = ("a" + "\u0315\u0300" * 10_000)[:20_000]


@pytest.mark.parametrize("calls, question, expected", [
    ([call(x=MARKS)], MARKS, True),          # normalising is quadratic in the marks
    (flat(["q"] * 4096), "zz " * 6_600 + "q",
     True),                     # 4,096 searches of the whole question
    (flat(["\ufdfaq"] * 4096), "\ufdfa" * 19_990 + " \ufdfaq",
     True),      # a character that becomes eighteen
    (flat([1234567] * 4096), "1,234,567", True),
    ([call()] * 65, "q", False), ([call(**{f"a{i}": "q" for i in range(65)})], "q", False),
    ([call(x=["q"] * 65)], "q", False), ([call(x=[["q"]] * 300_000)], "q", False),
    ([call(x="q")], "q" + " " * 20_000, False),
    ([call(x="q " * 6_000, y="q " * 6_000)], "q " * 9_000, False)],
    ids=["marks", "4096 values", "expanding", "4096 numbers", "65 calls", "65 arguments",
         "65 in a list", "300000 nested", "long question", "long values"])
def test_grounding_is_bounded_by_its_limits(calls, question, expected):
    assert verify.grounded(calls, question) is expected
    assert best_of(5, 3, verify.grounded, calls, question) < 3


def test_matching_is_bounded_by_its_limits():
    # Numbers with equal hashes: a hash table of 20,000 of them takes minutes.
    colliding = [call(x=n * (2**61 - 1)) for n in range(20_000)]
    assert not verify.calls_equal(colliding, colliding[::-1])
    assert verify.calls_equal(colliding[:64], colliding[63::-1])
    gold = [call(**{f"a{i}": "x" for i in range(64)})] * 64
    large = [call(**{f"a{i}": [1] * 60 for i in range(64)})] * 64        # half a megabyte of JSON
    for predicted in (colliding, large):
        assert best_of(5, 3, solver.accuracy_reward, verify.Calls(predicted), gold) < 3
    assert solver.accuracy_reward(verify.Calls(colliding), gold) == 0
