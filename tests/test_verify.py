import copy
import json

import pytest
from hypothesis import given, strategies as st

import verify

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8)


@given(st.text() | json_values.map(json.dumps))
def test_readers_take_any_string(text):
    for reader in (verify.read_calls, verify.read_tools):
        reader(text)
    verify.last_block(text, "think")
    verify.question_problem(text, [])
    verify.grounded([{"name": "f", "arguments": {"x": text}}], text)


@given(json_values)
def test_a_value_equals_itself_after_a_round_trip(value):
    assert verify.values_equal(value, copy.deepcopy(value))


@pytest.mark.parametrize("a, b, equal", [
    (5, 5.0, True), (5, "5", True), (5, " 5 ", True), ("5.0", 5, True), (5, "05", False),
    (5, "five", False), ("a  b", " a b", True), ("Oslo", "oslo", False), (True, "True", True),
    (True, 1, False), (False, 0, False), (True, "1", False), ([1, "2"], ["1", 2], True),
    ([1, 2], [2, 1], False), ({"a": 1}, {"a": "1.0"}, True), (None, "", False),
    ("2026-01-02", "2 January 2026", False), (0, -0.0, True),
])
def test_equality(a, b, equal):
    assert verify.values_equal(a, b) is equal and verify.values_equal(b, a) is equal


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50, "[NaN]", "[1e999]", "[" + "9" * 5000 + "]",
    '["\\ud800"]', "nope", ""])
def test_hostile_json_is_no_list_of_calls(text):
    assert verify.read_calls(text) is None


def test_repeated_calls_match_one_to_one():
    call = {"name": "f", "arguments": {"x": 1}}
    assert verify.calls_equal([call] * 3, [call] * 3)
    assert not verify.calls_equal([call] * 3, [call] * 2)


@pytest.mark.parametrize("element, call", [
    ({"tool_name": "f", "arguments": {}}, {"name": "f", "arguments": {}}),
    ({"function": {"name": "f", "arguments": {"x": 1}}}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": "f", "arguments": '{"x": 1}'}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": "f", "x": 1}, {"name": "f", "arguments": {"x": 1}}),
    ({"name": " ", "arguments": {}}, None), ({"name": "f", "arguments": [1]}, None), (7, None)])
def test_spellings_of_a_call(element, call):
    assert verify.normalise_call(element) == call


@pytest.mark.parametrize("value, question, grounded", [
    ("Oslo", "A flight to OSLO, please", True), ("Os", "A flight to Oslo", False),
    (12, "twelve nights", True), ("twenty", "20 nights", True), (1500, "for 1,500 euros", True),
    (15, "for 1,500 euros", False), (True, "whatever", True), (None, "whatever", True),
    ("!!", "wow!!", False), ("2026-03-01", "on 2026-03-01.", True), (2.0, "2 of them", True)])
def test_grounding(value, question, grounded):
    assert verify.grounded([{"name": "f", "arguments": {"x": value}}], question) is grounded


def tool(**changes):
    return {"name": "book_train", "description": "Book a train.",
            "parameters": {"city": {"type": "string"}}, "required": ["city"]} | changes


@pytest.mark.parametrize("tools, problem", [
    ([tool()], None), ([tool(), tool()], "tool_names_repeat"), ([tool(name="tool")], "tool_name_generic"),
    ([tool(description="No.")], "tool_undescribed"),
    ([tool(parameters={"city": {"type": "array"}})], "type_not_primitive"),
    ([tool(required=["date"])], "required_undeclared")])
def test_tool_problems(tools, problem):
    assert verify.tool_problem(tools) == problem


@pytest.mark.parametrize("call, problem", [
    ({"name": "book_train", "arguments": {"city": "Oslo"}}, None),
    ({"name": "book_bus", "arguments": {"city": "Oslo"}}, "unknown_tool"),
    ({"name": "book_train", "arguments": {}}, "required_missing"),
    ({"name": "book_train", "arguments": {"city": "Oslo", "day": "x"}}, "unknown_argument"),
    ({"name": "book_train", "arguments": {"city": ["Oslo"]}}, "argument_not_flat")])
def test_call_problems(call, problem):
    assert verify.call_problem([call], [tool()]) == problem


def test_long_inputs_are_refused_quickly():
    marks = "a\u0315\u0300" * 40_000
    assert not verify.grounded([{"name": "f", "arguments": {"x": marks}}], "a question")
    assert not verify.grounded([{"name": "f", "arguments": {"x": "a"}}], marks)
