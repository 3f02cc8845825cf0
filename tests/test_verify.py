"""What verify.py promises of readers, equality, checks and grounding, and that it stands alone."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import curriculum
import generator
import solver
import toolfiles
import verify

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3)
    | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8)


def test_verify_alone_passes_its_doctests(tmp_path):
    shutil.copy(Path(verify.__file__), tmp_path)
    # -S: without site-packages, there is the standard library and nothing else.
    done = subprocess.run([sys.executable, "-S", "-m", "doctest", "-v", "verify.py"], cwd=tmp_path,
                          env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10


@given(st.text() | json_values.map(json.dumps))
def test_readers_take_any_string(text):
    for reader in (verify.read_calls, verify.read_tools):
        reader(text)
    verify.last_block(text, "think")
    curriculum.question_problem(text, [])
    verify.grounded([{"name": "f", "arguments": {"x": text}}], text)


@given(json_values)
def test_a_value_equals_itself_after_a_round_trip_through_json(value):
    assert verify.values_equal(value, json.loads(json.dumps(value, sort_keys=True, indent=1)))


@pytest.mark.parametrize("a, b, equal", [
    (5, 5.0, True), (5, "5", True), (5, " 5 ", True), ("5.0", 5, True), (5, "05", False),
    (5, "five", False), ("a  b", " a b", True), ("Oslo", "oslo", False), (True, "True", True),
    (True, 1, False), (False, 0, False), (True, "1", False), ([1, "2"], ["1", 2], True),
    ([1, 2], [2, 1], False), ({"a": 1}, {"a": "1.0"}, True), (None, "", False),
    ("2026-01-02", "2 January 2026", False), (0, -0.0, True),
])
def test_which_values_are_equal(a, b, equal):
    assert verify.values_equal(a, b) is equal and verify.values_equal(b, a) is equal


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50, "[NaN]", "[1e999]", "[" + "9" * 5000 + "]",
    '["\\ud800"]', '["\ud800"]', '[{"name": "f", "x": "\\udc00\\ud800"}]', "[" * 17 + "]" * 17, "["
    + "[]," * 10_000 + "[]]",
    "[-" + "9" * 4301 + "]", "\ufeff[]", "nope", ""])
def test_hostile_json_is_no_list_of_calls(text):
    assert verify.read_calls(text) is None


@pytest.mark.parametrize("text", ["[" * 16 + "]" * 16, '["' + "[" * 99 + '"]',
                                  r'["\\\"[[[[[[[[[[[[[[[[[[", "\\"]',
                                  "[" + "9" * 4300 + "]", '["\\ud83d\\ude00"]',
                                  '[{"a": 1, "a": 2}]'])
def test_unusual_json_is_read(text):
    assert verify.read_calls(text) is not None


ONE, TWO = ('[{"name": "f", "arguments": {"x": %d}}]' % x for x in (1, 2))


@pytest.mark.parametrize("text, x", [
    ("<{0}>" + ONE + "</{0}> or rather <{0}>" + TWO + "</{0}>",
     2),                        # the last block counts
    (solver.SYSTEM + "<{0}>" + TWO + "</{0}>", 2), ("<{0}>" + TWO + "</{0}>" + solver.SYSTEM, None),
    ("<think>as in <{0}>" + ONE + "</{0}></think><{0}>" + TWO + "</{0}>", 2),
    ("<think>as in <{0}>" + ONE + "</{0}></think>", None), ("<think><{0}>" + ONE + "</{0}>", 1),
    ("<{0}>" + ONE + "</{0}> <{0}>" + TWO, 1),
    ("<{0}>" + ONE + "</{0}></{0}>", 1),           # closed blocks only
    ("<{0}>" + ONE + "<{0}>" + TWO + "</{0}>", 2), ("</{0}><{0}>" + ONE, None),
    ("<{0}>" + ONE + "</ {0}>", None),
    ("<{0}>" + ONE + "</{0}><{0}></{0}>", None),
    ("<{0}>" + ONE + "</{0}><{0}>nothing fits</{0}>", None),
    ("<{0}>" + ONE.replace("1", '"<{0}>"') + "</{0}>",
     None),                               # a tag inside a string is a tag
    ("<{0}>```json\n" + ONE + "\n```</{0}>", 1), ("<{0}>```" + ONE + "```</{0}>", 1),
    ("<{0}>Here:\n```json\n" + ONE + "\n```</{0}>", None)])
def test_which_block_is_the_answer(text, x):
    calls = solver.read(text.replace("{0}", "tool_call_answer"))
    assert (calls and calls.calls[0]["arguments"]["x"]) == x


def test_a_fence_on_one_line_keeps_its_word():
    assert verify.strip_fence("```weather```") == "weather"
    assert verify.strip_fence("```json\n```") == ""


def test_the_prompt_handed_back_is_no_task():
    draft = generator.read(generator.SYSTEM)
    assert generator.is_placeholder(draft.question) and draft.tools is None and draft.calls is None
    assert set(generator.reward(draft, 1.0, 1.0).values()) == {0.0}


def test_a_missing_question_costs_its_own_part_only():
    tools = json.dumps([tool()])
    text = (f"<think>x</think><available_tools>{tools}</available_tools><tool_call_answer>"
            '[{"name": "book_train", "arguments": {"city": "Oslo"}}]</tool_call_answer>')
    reward = generator.reward(generator.read(text), 0.0, 0.0)
    assert reward["format"] == pytest.approx(2 / 3) and reward["validity"] == pytest.approx(0.8)


def test_repeated_calls_match_one_to_one():
    call = {"name": "f", "arguments": {"x": 1}}
    assert verify.calls_equal([call] * 3, [call] * 3)
    assert not verify.calls_equal([call] * 3, [call] * 2)


@pytest.mark.parametrize("element, call", [
    ({"tool_name": "f", "arguments": {}}, {"name": "f", "arguments": {}}),
    ({"function": {"name": "f", "arguments": {"x": 1}}}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": "f", "arguments": '{"x": 1}'}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": "f", "x": 1}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": "f", "function": {"x": 1}}, {"name": "f", "arguments": {"function": {"x": 1}}}),
    ({"name": "f", "parameters": None}, {"name": "f", "arguments": {}}),
    ({"name": "f", "input": ""}, {"name": "f", "arguments": {}}),
    ({"name": "f", "parameters": ""}, {"name": "f", "arguments": {}}),
    ({"name": " ", "arguments": {}}, None), ({"name": "f", "arguments": [1]}, None), (7, None)])
def test_every_spelling_of_a_call_is_read(element, call):
    assert verify.normalise_call(element) == call


@pytest.mark.parametrize("value, question, grounded", [
    ("Oslo", "A flight to OSLO, please", True), ("Os", "A flight to Oslo", False),
    (12, "twelve nights", True), ("twenty", "20 nights", True), (1500, "for 1,500 euros", True),
    (15, "for 1,500 euros", False), (True, "whatever", True), (None, "whatever", True),
    ("!!", "wow!!", False), ([], "none []", False), (["Oslo", {"n": 5}], "five in Oslo", True),
    (["Oslo", 6], "5 in Oslo", False),
    ("0123", "room 123", False), (12345678, "12,345,678 people", True), (10**400, "one", False),
    (1e308, "one", False),
    ("\u1369\u136a\u136b\u136c", "digits that int() refuses", False),
    ("\ud800", "a \ud800", False), (-1500, "-1,500", True), ("2026-03-01", "on 2026-03-01.", True),
    (2.0, "2 of them", True)])
def test_which_values_are_grounded(value, question, grounded):
    assert verify.grounded([{"name": "f", "arguments": {"x": value}}], question) is grounded


@pytest.mark.parametrize("element, parameters, required", [
    ({"name": "f", "parameters": {"x": {"type": "integer"}, "required": ["x"]}},
     {"x": {"type": "integer"}}, ["x"]),
    ({"name": "f", "required": ["x"], "parameters": {"properties": {"x": {}, "y": {}},
                                                     "required": ["y", "x"]}},
     {"x": {}, "y": {}}, ["x", "y"]),
    ({"name": "f", "required": True, "parameters": {"properties": {"x": {}}, "required": ["x"]}},
     {"x": {}}, ["x"]),
    ({"name": "f", "parameters": {"required": {"type": "boolean"}}},
     {"required": {"type": "boolean"}}, []),
    ({"type": "function", "function": {"name": "f", "parameters": {"x": {}}}}, {"x": {}}, []),
    ({"name": "f"}, {}, [])])
def test_every_spelling_of_a_tool_is_read(element, parameters, required):
    tool = verify.normalise_tool(element)
    assert (tool["parameters"], tool["required"]) == (parameters, required)


@pytest.mark.parametrize("element", [7, {"name": " "}, {"name": "f", "parameters": None},
                                     {"name": "f", "parameters": [1]},
                                     {"name": "f", "parameters": {"x": "string"}}])
def test_a_menu_with_what_is_no_tool_is_none(element):
    with pytest.raises(ValueError):
        verify.normalise_tool(element)
    assert verify.read_tools(json.dumps([tool(), element])) is None
    assert verify.read_tools("[]") is None


def test_a_menu_collects_required_from_three_places():
    menu = toolfiles.read_menu([{"type": "function", "function": {
        "name": "f", "description": "F.", "required": ["a"], "parameters": {
            "type": "object", "required": ["b", "a"], "properties": {
                "a": {"type": "string"}, "b": {"type": "string", "required": True},
                "c": {"type": "string", "required": True},
                "d": {"type": "string", "required": False},
                "e": {"type": "object", "required": ["x"]}}}}}])
    assert menu == [{"name": "f", "description": "F.", "required": ["a", "b", "c"], "parameters": {
        "a": {"type": "string"}, "b": {"type": "string"}, "c": {"type": "string"},
        "d": {"type": "string"}, "e": {"type": "object", "required": ["x"]}}}]


def test_reading_a_menu_leaves_the_value_as_it_is():
    value = [{"name": "f", "parameters": {"x": {"type": "string", "required": True}}}]
    before = json.dumps(value)
    toolfiles.read_menu(value)
    assert json.dumps(value) == before


@pytest.mark.parametrize("value, reason", [
    ({"tools": []}, "not a JSON list of tools"), ([], "not a JSON list of tools"),
    ([{"name": "f"}, {}], "tool 1: it has no name"), ([7], "tool 0: it has no name"),
    ([{"name": "f", "parameters": []}], "tool 'f': its parameters are no object"),
    ([{"name": "f", "parameters": {"x": "string"}}],
     "tool 'f': parameter 'x' has no schema object")])
def test_a_bad_menu_is_refused_by_tool_and_reason(value, reason):
    with pytest.raises(ValueError) as error:
        toolfiles.read_menu(value)
    assert str(error.value) == reason


@pytest.mark.parametrize("question, problem", [
    ("Where\u2019s the next train to Oslo?", "question_stock"),
    ("Who  is driving the train to Oslo?", "question_stock"),
    ("Please book a train \U00020000 to Oslo", "question_cjk"),
    ("Please book a train \uff76 to Oslo", "question_cjk"),
    ("a " * 10_001, "question_too_long"), ("Please book a train to Oslo.", None)])
def test_which_questions_are_refused(question, problem):
    assert curriculum.question_problem(question, [{"name": "f", "arguments": {}}]) == problem


def tool(**changes):
    return {"name": "book_train", "description": "Book a train.",
            "parameters": {"city": {"type": "string"}}, "required": ["city"]} | changes


@pytest.mark.parametrize("tools, problem", [
    ([tool()], None), ([tool(), tool()], "tool_names_repeat"),
    ([tool(name="tool")], "tool_name_generic"),
    ([tool(description="No.")], "tool_undescribed"),
    ([tool(parameters={"city": {"type": "array"}})], "type_not_primitive"),
    ([tool(required=["date"])], "required_undeclared")])
def test_which_menus_are_refused(tools, problem):
    assert verify.menu_problem(tools)[0] == problem


@pytest.mark.parametrize("call, problem", [
    ({"name": "book_train", "arguments": {"city": "Oslo"}}, None),
    ({"name": "book_bus", "arguments": {"city": "Oslo"}}, "unknown_tool"),
    ({"name": "book_train", "arguments": {}}, "required_missing"),
    ({"name": "book_train", "arguments": {"city": "Oslo", "day": "x"}}, "unknown_argument"),
    ({"name": "book_train", "arguments": {"city": ["Oslo"]}}, "value_wrong_type")])
def test_which_calls_are_refused(call, problem):
    assert verify.call_problem([call], [tool()]) == problem


def test_a_menu_of_more_than_64_tools_is_refused():
    menu = [{"name": f"f{n}", "description": "Does it.", "parameters": {}, "required": []}
            for n in range(65)]
    assert verify.menu_problem(menu) == ("too_many_tools", "the menu")
    assert verify.menu_problem(menu[1:]) == (None, None)
