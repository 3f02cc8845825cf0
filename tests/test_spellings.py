"""Tools, calls, numbers and texts as people and models write them elsewhere."""
import json
import math
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st
from jsonschema import Draft202012Validator

import config
import curriculum
import disk
import eval as evaluation
import generator
import solver
import toolfiles
import verify
from benchmarks import score
from cli import Refused

# ---------------------------------------------------------------------------------------------
# Tools

TICKET = {"title": {"type": "string"}, "urgent": {"type": "boolean"}}
SCHEMA = {"type": "object", "properties": TICKET, "required": ["title"]}
OPENAI = {"name": "create_ticket", "description": "Create a ticket.", "parameters": SCHEMA}
MCP = {"name": "create_ticket", "description": "Create a ticket.", "inputSchema": SCHEMA,
       "outputSchema": {"type": "object", "properties": {"id": {"type": "string"}}}}
ANTHROPIC = {"name": "create_ticket", "description": "Create a ticket.", "input_schema": SCHEMA}
READ = {"name": "create_ticket", "description": "Create a ticket.", "parameters": TICKET,
        "required": ["title"]}


@pytest.mark.parametrize("file", [
    [OPENAI], [{"type": "function", "function": OPENAI}], [OPENAI | {"type": "function"}], [MCP],
    [ANTHROPIC], {"tools": [MCP]}, {"jsonrpc": "2.0", "id": 1, "result": {"tools": [MCP]}}])
def test_tools_of_openai_mcp_and_anthropic_keep_their_parameters(file):
    assert toolfiles.read_menu(file) == [READ]


@pytest.mark.parametrize("key, schema", [
    ("schema", SCHEMA), ("input", {"properties": {}}), ("args", TICKET),
    ("arguments", {"$ref": "#/x"})])
def test_a_schema_under_an_unknown_key_is_refused_and_not_lost(key, schema):
    with pytest.raises(ValueError, match=f"create_ticket.*{key}"):
        toolfiles.read_menu([{"name": "create_ticket", key: schema}])


@pytest.mark.parametrize("parameters", [
    {"type": "object", "oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    {"type": "object", "properties": {"a": {"type": "string"}}, "allOf": [
        {"properties": {"b": {"type": "string"}}}, {"required": ["b"]}]},
    {"type": "object", "properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]},
    {"type": "object", "properties": {}, "allOf": [{"properties": {"b": {}}}]},
    {"type": "object", "city": {"type": "string"}, "days": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^x": {"type": "string"}}}])
def test_parameters_that_are_not_under_properties_are_refused_and_not_lost(parameters):
    with pytest.raises(ValueError, match="'f': its parameters stand under"):
        toolfiles.read_menu([{"name": "f", "parameters": parameters}])


def test_a_tool_that_has_no_parameters_is_one():
    for tool in ({}, {"parameters": {}}, {"inputSchema": {"type": "object"}},
                 {"annotations": {"readOnlyHint": True}},
                 {"parameters": {"type": "object", "properties": {}}}):
        assert toolfiles.read_menu([{"name": "f"} | tool])[0]["parameters"] == {}


def menu_of(schema, **root):
    return toolfiles.read_menu([{"name": "book_room", "description": "Book a room.", "parameters": {
        "type": "object", "properties": {"x": schema, "title": {"type": "string"}}, **root}}])


def test_a_boolean_schema_costs_no_parameter():
    assert menu_of(True)[0]["parameters"] == {"x": {}, "title": {"type": "string"}}
    for other in (False, "string", None, 7, []):
        with pytest.raises(ValueError, match="tool 'book_room': parameter 'x' has no schema"):
            menu_of(other)


COLOUR = {"enum": ["red", "blue"], "title": "Colour"}


@pytest.mark.parametrize("schema, flat", [
    ({"type": ["string", "null"]}, {"type": "string"}),
    ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, {"type": "string"}),
    ({"oneOf": [{"type": "null"}, {"type": "integer", "minimum": 1}], "description": "N."},
     {"type": "integer", "minimum": 1, "description": "N."}),
    ({"anyOf": [{"not": {}}, {"type": "string"}]}, {"type": "string"}),
    ({"type": "string", "nullable": True}, {"type": "string"}),
    ({"enum": ["low", "high"]}, {"type": "string", "enum": ["low", "high"]}),
    ({"enum": ["low", None], "type": ["string", "null"]}, {"type": "string", "enum": ["low"]}),
    ({"enum": [1, 2]}, {"type": "integer", "enum": [1, 2]}),
    ({"enum": [1, 2.5]}, {"type": "number", "enum": [1, 2.5]}),
    ({"const": "it"}, {"type": "string", "const": "it"}),
    ({"const": False}, {"type": "boolean", "const": False}),
    ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}, {"const": None}]},
     {"type": "string", "enum": ["a", "b"]}),
    ({"type": ["string", "integer"], "pattern": "^-?[0-9]+$"},
     {"type": "integer", "pattern": "^-?[0-9]+$"}),
    ({"type": ["string", "number"], "pattern": r"^-?\d+([eE]\d+)?$"},
     {"type": "number", "pattern": r"^-?\d+([eE]\d+)?$"}),
    ({"type": ["string", "integer"], "pattern": "^[A-Z]{2}[0-9]+$"},) * 2,
    ({"type": ["string", "boolean"], "pattern": "^[01]$"},) * 2,
    ({"$ref": "#/$defs/%43olour"}, COLOUR | {"type": "string"}),
    ({"$ref": "#/$defs/Colour"}, COLOUR | {"type": "string"}),
    ({"anyOf": [{"$ref": "#/$defs/Colour"}, {"type": "null"}], "default": None},
     COLOUR | {"type": "string"}),
    ({"allOf": [{"$ref": "#/$defs/Colour"}], "description": "C."},
     COLOUR | {"type": "string", "description": "C."}),
    ({"$ref": "#/properties/title"}, {"type": "string"}),
    ({"$ref": "#/$defs/Either/anyOf/0"}, {"type": "string"}),
    ({"$ref": "#/$defs/Again"}, COLOUR | {"type": "string"}),
    ({"type": "string", "default": None}, {"type": "string", "default": None}),
    # What no flat parameter can say stays as it is.
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]},) * 2,
    ({"enum": [1, "a"]},) * 2, ({"type": ["string", "integer"]},) * 2, ({"const": None},) * 2,
    ({"type": "array", "items": {"$ref": "#/$defs/Colour"}}, {"type": "array", "items": COLOUR})])
def test_optional_parameters_enums_and_references_are_flat(schema, flat):
    definitions = {"Colour": COLOUR, "Again": {"$ref": "#/$defs/Colour"},
                   "Either": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    assert menu_of(schema, **{"$defs": definitions})[0]["parameters"]["x"] == flat


@pytest.mark.parametrize("parameters", [
    {"$ref": "#/definitions/A"}, {"allOf": [{"$ref": "#/definitions/A"}]}])
def test_parameters_that_are_a_reference_are_read(parameters):
    definitions = {"A": {"type": "object", "required": ["x"], "properties": {
        "x": {"$ref": "#/definitions/B"}}}, "B": {"type": "integer"}}
    tool, = toolfiles.read_menu([{"name": "f", "parameters": parameters
                               | {"definitions": definitions}}])
    assert tool["parameters"] == {"x": {"type": "integer"}} and tool["required"] == ["x"]


@pytest.mark.parametrize("schema, required", [
    ({"type": "string"}, ["x"]), ({"enum": ["a", "b"]}, ["x"]),
    ({"type": ["string", "null"]}, []), ({"type": "string", "nullable": True}, []),
    ({"anyOf": [{"$ref": "#/$defs/Colour"}, {"type": "null"}]}, []),
    ({"type": ["string", "null"], "enum": ["a", None]}, [])])
def test_what_may_be_null_may_be_left_out_as_in_openais_strict_mode(schema, required):
    tool = {"name": "book_room", "description": "Book a room.", "strict": True, "parameters": {
        "type": "object", "properties": {"x": schema}, "required": ["x"],
        "$defs": {"Colour": COLOUR}}}
    assert toolfiles.read_menu([tool])[0]["required"] == required
    assert toolfiles.read_menu([tool | {"strict": False}])[0]["required"] == ["x"]


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}


@pytest.mark.parametrize("schema, reason", [
    ({"properties": {"x": {"type": "string"}}, "required": "x"}, "its 'required' is no list"),
    ({"type": "object", "properties": [{"name": "x", "type": "string"}]}, "its 'properties'"),
    ({"x": {"type": "string", "required": "true"}}, "parameter 'x' says 'required' in quotes")])
def test_what_is_of_a_wrong_type_is_refused_and_not_lost(schema, reason):
    with pytest.raises(ValueError, match=f"'f': {reason}"):
        toolfiles.read_menu([{"name": "f", "description": "Does it.", "parameters": schema}])
    assert toolfiles.read_menu([{"name": "f", "parameters": {"type": "object", "properties": []}}])


@pytest.mark.parametrize("reference, reason", [
    ("#/$defs/Node", "refers to itself"), ("#/$defs/Loop", "refers to itself"),
    ("#", "refers to itself"), ("#/$defs/None", "no schema in its tool"),
    ("#anchor", "no schema in its tool"),
    ("https://example.org/x.json", "no schema in its tool")])
def test_a_reference_that_leads_nowhere_is_refused_by_tool_and_parameter(reference, reason):
    with pytest.raises(ValueError, match=f"tool 'book_room': parameter 'x' .*{reason}"):
        menu_of({"$ref": reference}, **{"$defs": {"Node": NODE, "Loop": {"$ref": "#/$defs/Loop"}}})


def test_options_in_options_are_read_once_each(monkeypatch):
    schema, calls, real = {"type": "string"}, [], toolfiles._one_option
    for _ in range(8):
        schema = {"allOf": [{"anyOf": [schema, {"type": "integer"}]}]}
    monkeypatch.setattr(toolfiles, "_one_option", lambda s: calls.append(s) or real(s))
    assert "anyOf" in toolfiles.flat_schema(schema) and len(calls) <= 16


def test_references_that_multiply_are_refused_at_once():
    """Twenty definitions of two references each stand for a million schemas."""
    twice = {f"D{n}": {"properties": {side: {"$ref": f"#/$defs/D{n + 1}"} for side in "ab"}}
             for n in range(20)}
    with pytest.raises(ValueError, match="parameter 'x' .*too many parts"):
        menu_of({"$ref": "#/$defs/D0"}, **{"$defs": twice | {"D20": {"type": "string"}}})


def test_a_parameter_may_be_called_like_a_word_of_the_schema():
    words = ("type", "enum", "const", "default", "nullable", "anyOf", "$ref", "properties", "items",
             "required")
    flat = {word: {"type": "string"} for word in words}
    for parameters in (flat, {"type": "object", "properties": flat}):
        tool, = toolfiles.read_menu([{"name": "f", "parameters": parameters}])
        assert tool["parameters"] == flat


def write(path, value, encoding="utf-8"):
    path.write_text(json.dumps(value), encoding=encoding)
    return path


def asked_menu(path, monkeypatch):
    """The menu that `eval.py --tools PATH --ask ...` asks with."""
    asked = []
    monkeypatch.setattr(evaluation, "load_model",
                        lambda *args: type("LM", (), {"tokenizer": None}))
    monkeypatch.setattr(evaluation, "answer", lambda lm, label, rows, args: asked.extend(rows) or (
        ['<tool_call_answer>[{"name": "f", "arguments": {"city": "Troms\u00f8"}}]'
         "</tool_call_answer>"]))
    evaluation.main(["--tools", str(path), "--ask", "Where to?"])
    return asked[0].task.tools


@pytest.mark.parametrize("tool", [
    OPENAI, MCP, ANTHROPIC, {"name": "create_ticket", "description": "Create a ticket.",
                             "parameters": {"title": {"type": "string", "required": True},
                                            "urgent": {"type": ["boolean", "null"]}}}])
def test_selfplay_and_eval_read_the_same_menu(tool, tmp_path, monkeypatch):
    path = write(tmp_path / "tools.json", [tool], "utf-8-sig")
    assert config.read_own_tools(path) == asked_menu(path, monkeypatch) == [READ]


@pytest.mark.parametrize("tool, named", [
    ({"parameters": {"when": {"type": "array"}}}, "tool 'f': parameter 'when': type not primitive"),
    ({"parameters": {"when": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}, "'when'"),
    ({"parameters": {"properties": {"extra": True}}}, "'extra'"),
    ({"required": ["when"]}, "tool 'f': parameter 'when': required undeclared"),
    ({"description": ""}, "tool 'f': tool undescribed"),
    ({"parameters": {f"x{i}": {"type": "string"} for i in range(65)}},
     "tool 'f': tool too large"),
    ({"parameters": {"x": {"enum": ["a"] * 5000}}}, "tool 'f': tool too large"),
    ({"parameters": {"x": {"type": "number", "minimum": float("nan")}}}, "JSON")])
def test_selfplay_names_tool_parameter_and_reason(tool, named, tmp_path):
    with pytest.raises(Refused) as error:
        config.read_own_tools(write(tmp_path / "t.json", [
            {"name": "f", "description": "Does things."} | tool]))
    assert named in str(error.value) and "t.json" in str(error.value)


@pytest.mark.parametrize("more", [
    {}, {"parameters": None}, {"inputSchema": {"type": "object"}, "parameters": None},
    {"returns": {"temp": {"type": "number"}}}, {"outputSchema": {"type": "object"}},
    {"parameters": {"type": "object", "additionalProperties": {"type": "string"}}}])
def test_a_tool_may_have_no_parameters(more):
    assert toolfiles.read_menu([{"name": "f"} | more])[0]["parameters"] == {}


def test_a_nested_argument_is_right_where_the_tool_asks_for_one():
    tools = [verify.normalise_tool({"name": "f", "parameters": {
        "a": {"type": "array"}, "b": {"type": "integer"}}})]
    for name, value, problem in (("a", [1], None), ("b", [1], "value_wrong_type"),
                                 ("a", "1", "value_wrong_type"), ("a", {}, "value_wrong_type")):
        call = {"name": "f", "arguments": {name: value}}
        assert verify.call_problem([call], tools) == problem
    tools[0]["required"] = ["a"]
    null = {"name": "f", "arguments": {"a": None}}
    assert verify.call_problem([null], tools) == "required_missing"


def test_eval_asks_with_nested_parameters_too(tmp_path, monkeypatch):
    nested = {"name": "f", "parameters": {"a": {"type": "array", "items": {"type": "string"}}}}
    menu = asked_menu(write(tmp_path / "t.json", [nested]), monkeypatch)
    assert menu[0]["parameters"] == nested["parameters"]


def test_the_generator_may_copy_any_menu():
    for schema in (COLOUR, {"const": 1}, {"type": ["number", "null"], "exclusiveMinimum": 0}):
        menu = menu_of(schema)
        text = f"<available_tools>{json.dumps(menu)}</available_tools>"
        assert generator.read(text, menu).tools == menu


# ---------------------------------------------------------------------------------------------
# Gold and its schema

HEATING = [{"name": "set_heating", "description": "Set the heating.", "required": ["room"],
            "parameters": {"room": {"type": "string", "enum": ["kitchen", "attic"]},
                           "degrees": {"type": "integer", "minimum": 5, "maximum": 30},
                           "factor": {"type": "float", "exclusiveMinimum": 0},
                           "mode": {"type": "string", "const": "eco"}, "on": {"type": "bool"},
                           "note": {"type": "str"},
                           "share": {"type": "number", "maximum": 1, "exclusiveMaximum": True}}}]


@pytest.mark.parametrize("given, problem", [
    ({}, None), ({"degrees": 5}, None), ({"degrees": 30}, None), ({"degrees": "5"}, None),
    ({"degrees": 5.0}, None), ({"factor": 1}, None), ({"factor": "0.5"}, None),
    ({"mode": "eco"}, None), ({"on": True}, None), ({"on": "false"}, None), ({"note": "5"}, None),
    ({"room": "garage"}, "value_not_allowed"), ({"room": "Kitchen"}, "value_not_allowed"),
    ({"mode": "fast"}, "value_not_allowed"), ({"room": True}, "value_wrong_type"),
    ({"room": None}, "required_missing"), ({"degrees": None}, "value_wrong_type"),
    ({"degrees": "cosy"}, "value_wrong_type"), ({"degrees": 20.5}, "value_wrong_type"),
    ({"degrees": True}, "value_wrong_type"), ({"on": 1}, "value_wrong_type"),
    ({"note": 5}, "value_wrong_type"), ({"note": True}, "value_wrong_type"),
    ({"degrees": 900}, "value_out_of_range"), ({"degrees": "4"}, "value_out_of_range"),
    ({"factor": 0}, "value_out_of_range"), ({"share": 1}, "value_out_of_range"),
    ({"degrees": 10**400}, "value_out_of_range"), ({"degrees": math.inf}, "value_wrong_type"),
    ({"factor": math.nan}, "value_wrong_type")])
def test_gold_that_breaks_its_tools_schema_is_dropped(given, problem):
    call = {"name": "set_heating", "arguments": {"room": "kitchen"} | given}
    assert verify.call_problem([call], HEATING) == problem


def test_the_generators_pay_stays_the_papers():
    text = ("<think>x</think><question>Please heat the garage of my house.</question>"
            f"<available_tools>{json.dumps(HEATING)}</available_tools><tool_call_answer>"
            '[{"name": "set_heating", "arguments": {"room": "garage"}}]</tool_call_answer>')
    draft = generator.read(text)
    assert generator.validity_reward(draft) == pytest.approx(1)
    task = draft.task(generator.Spec("iot", "single_turn", 1, 1))
    assert curriculum.structural_problem(draft, task) == "value_not_allowed"


WORDS = ["kitchen", "attic", "5", "Rom\u00e9", "true day"]
numbers = st.integers(-40, 40) | st.sampled_from([0.5, 5.0, -2.25, 1e-7, 30.0])
values = st.booleans() | numbers | st.sampled_from(WORDS + ["-2.25", "30.0", "true", "False"])


@st.composite
def flat_schemas(draw):
    """A flat schema, always satisfiable by some value of its type or by none."""
    kind = draw(st.sampled_from(["string", "integer", "number", "boolean"]))
    own = {"string": st.sampled_from(WORDS), "integer": st.integers(-40, 40),
           "number": numbers, "boolean": st.booleans()}[kind]
    schema = {"type": kind}
    if draw(st.booleans()):
        schema["enum"] = draw(st.lists(own, min_size=1, max_size=3))
    elif draw(st.booleans()):
        schema["const"] = draw(own)
    if kind in ("integer", "number"):
        keys = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
        schema |= draw(st.dictionaries(st.sampled_from(keys), numbers, max_size=2))
    return schema


SPELLINGS = [
    lambda s: s, lambda s: s | {"type": [s["type"], "null"]}, lambda s: {"allOf": [s]},
    lambda s: {"anyOf": [s, {"type": "null"}], "default": None}, lambda s: s | {"nullable": True},
    lambda s: {"oneOf": [{"type": "null"}, {"anyOf": [s]}]},
    lambda s: {"$ref": "#/$defs/S", "$defs_of_the_test": s},
    lambda s: ({k: v for k, v in s.items() if k != "type"}
               if s["type"] != "number" and {"enum", "const"} & set(s) else s)]


def meanings(value, kind):
    """The values that one equals and that a schema of a kind may ask for."""
    text = str(value).strip()
    if kind == "string" or not isinstance(value, str):
        return [value]
    if text in ("true", "True", "false", "False"):
        return [value, text.lower() == "true"]
    return [value, float(text)] if verify.canonical(value)[0] == "number" else [value]


@given(flat_schemas(), st.sampled_from(SPELLINGS), values)
def test_values_are_allowed_where_jsonschema_allows_them(schema, spell, value):
    spelled = spell(schema)
    definitions = {"S": spelled.pop("$defs_of_the_test", schema)}
    root = {"type": "object", "properties": {"x": spelled}, "$defs": definitions}
    menu = toolfiles.read_menu([{"name": "f_x", "description": "Does it.", "parameters": root}])
    assert verify.menu_problem(menu) == (None, None)
    validator = Draft202012Validator(root)
    theirs = any(validator.is_valid({"x": one}) for one in meanings(value, schema["type"]))
    ours = verify.call_problem([{"name": "f_x", "arguments": {"x": value}}], menu)
    assert (ours is None) is theirs, ours


# ---------------------------------------------------------------------------------------------
# Grounding


@pytest.mark.parametrize("value, question, grounded", [
    (12.5, "for $12.50", True), ("12.5", "for $12.50", True), (0.00001, "at 0.00001 m", True),
    (1234.56, "pay 1,234.56 now", True), (1234567, "1\u202f234\u202f567 people", True),
    (1234.5, "1\u00a0234.50 euros", True), (100000, "1,00,000 rupees", True),
    (0.5, "a .5 mile run", True), (-12.5, "-$12.50", True), ("5.50", "5.5 metres", True),
    (10**20, "1" + 20 * "0", True), (1.5e3, "1,500", True),
    (-5, "5 degrees", False), (-5, "-5 degrees", True), (5, "-5 degrees", False),
    (-5, "\u22125 degrees", True), (-5, "(-5)", True), (-5, "minus 5", True),
    (-5, "minus five", True), (-5, "negative five", True), (-5, "five", False),
    (5, "12.5 dollars", False), (12, "12.5 dollars", False), (500, "1,500 euros", False),
    (3, "3-5 people", True), (5, "3-5 people", True), (-5, "3-5 people", False),
    (5, "$3-$5", True), (-75, "50%-75%", False), (123, "AB-123", True),
    (2026, "on 2026-05-17", True), (17, "on 2026-05-17", True), (5, "on 2026-05-17", False),
    (17, "on 17.05.2026", True), (3, "rooms 1,2,3", True), (2026, "May 5,2026", True),
    (192, "192.168.1.1", True), (12, "12kg", False), (4, "v1.4.2", True),
    (2, "2.5km away", False), (1, "1,200kg", False), (98, "98.6F", False),
    ("AB-123", "seat AB-123, please", True), ("10:30", "at 10:30", True),
    ("10:30", "at 10.45", False), ("2026-05-17", "by 2026-05-17.", True),
    ("twenty", "20 nights", True), ("twenty", "20.5 metres", False), (20, "twenty nights", True),
    (12, "\u0661\u0662 nights", True), (25, "twenty-five nights", True),
    (25, "Twenty five nights", True), (20, "twenty-five nights", False),
    (5, "twenty-five nights", False), (-25, "minus twenty-five", True),
    ("\u0938\u0940\u0924\u093e", "\u0938\u0940\u0924\u093e \u0915\u094b", True),
    ("\u0938\u0940\u0924\u093e", "\u0938\u0947\u0924\u0941 \u0915\u094b", False)])
def test_numbers_are_grounded_by_value(value, question, grounded):
    assert verify.grounded([{"name": "f", "arguments": {"x": value}}], question) is grounded


@given(st.decimals(-10**9, 10**9, places=3, allow_nan=False),
       st.sampled_from(["{}", "{:,}", "({})", "it is {}.", "{:,}, or so", "a={} b"]))
def test_a_number_is_grounded_however_it_is_written_and_no_other_is(number, form):
    question = form.format(number)
    for value, stands in ((float(number), True), (str(number), True), (float(-number), False),
                          (float(number) + 1, False), (float(number) * 10, False)):
        if len(str(number)) > 15 or not stands and not number:
            continue
        call = {"name": "f", "arguments": {"x": value}}
        assert verify.grounded([call], question) is stands, (value, question)


def test_reading_numbers_is_linear():
    for text in ("minus " * 3_000, "1," * 9_000, "1.1" * 6_000, "9" * 20_000, "-$" * 9_000,
                 "minus" + " " * 19_990, "1\u202f234" * 4_000):
        assert isinstance(verify.numbers_in(text), set)
    assert verify.numbers_in("9" * 19_999) == {Decimal("9" * 19_999)}


def test_raised_digits_and_fractions_do_not_run_into_a_number():
    assert verify.numbers_in("2\u00bd cups, 10\u00b2 m, forty-two") == {1, 2, 10, 42}


TOOL = {"name": "book_train", "description": "Book a train.", "required": ["city"],
        "parameters": {"city": {"type": "string"}, "nights": {"type": "integer"}}}


@pytest.mark.parametrize("question, arguments", [
    ("Explain to the team in Oslo that the train is late.", {"city": "Oslo"}),
    ("What is the next train that goes to Oslo?", {"city": "Oslo"}),
    ("\u8bf7\u5e2e\u6211\u8ba2\u4e00\u5f20\u53bb\u5317\u4eac\u7684\u706b\u8f66\u7968\uff0c"
     "\u4f4f3\u665a", {"city": "\u5317\u4eac", "nights": 3}),
    ("\uc11c\uc6b8\uc5d0 \uac00\ub294 \uae30\ucc28\ub97c \uc608\uc57d\ud574 \uc918",
     {"city": "\uc11c\uc6b8"})])
def test_own_tools_may_be_asked_for_in_any_words_and_any_script(question, arguments):
    call = {"name": "book_train", "arguments": arguments}
    text = (f"<think>x</think><question>{question}</question><available_tools>{json.dumps([TOOL])}"
            f"</available_tools><tool_call_answer>{json.dumps([call])}</tool_call_answer>")
    for menu, own in (([TOOL], True), (None, False)):
        draft = generator.read(text, menu)
        problem = curriculum.structural_problem(
            draft, draft.task(generator.Spec("travel", "single_turn", 1, 1, menu)))
        assert (problem is None) is own, problem


# ---------------------------------------------------------------------------------------------
# Calls


@pytest.mark.parametrize("element, arguments", [
    ({"name": "f", "parameters": {"x": 1}}, {"x": 1}), ({"name": "f", "parameters": {}}, {}),
    ({"type": "function", "name": "f", "parameters": {"x": 1}}, {"x": 1}),
    ({"name": "f", "parameters": {"x": 1}, "id": "c-9"}, {"x": 1}),
    ({"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}, {"x": 1}),
    ({"name": "f", "args": {"x": 1}, "id": "t", "type": "tool_call"}, {"x": 1}),
    ({"type": "function", "name": "f"}, {}), ({"name": "f", "type": "function"}, {}),
    ({"id": "c-9", "name": "f"}, {}), ({"index": 0, "id": "c", "name": "f", "x": 1}, {"x": 1}),
    ({"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}, {"x": 1}),
    # A tool may have arguments of these names.
    ({"name": "f", "id": 7}, {"id": 7}), ({"name": "f", "type": "train"}, {"type": "train"}),
    ({"name": "f", "arguments": {"id": 7, "type": "function"}}, {"id": 7, "type": "function"}),
    ({"name": "f", "parameters": "x"}, {"parameters": "x"}),
    ({"name": "f", "parameters": {"x": 1}, "y": 2}, {"parameters": {"x": 1}, "y": 2}),
    ({"name": "f", "parameters": {"x": 1}, "arguments": {"y": 2}}, {"y": 2}),
    *(({"name": "f", "arguments": nothing}, {}) for nothing in ("", " ", None, "null", [], "[]"))])
def test_an_envelope_is_no_argument(element, arguments):
    assert verify.normalise_call(element) == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("arguments", [[1], "[1]", "x", 0, False, '"null"'])
def test_arguments_that_are_none_make_no_call(arguments):
    assert verify.normalise_call({"name": "f", "arguments": arguments}) is None


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
argument_names = st.text(max_size=4) | st.sampled_from(["city", "id", "type", "index", "name"])
calls = st.fixed_dictionaries({"name": st.sampled_from(["f", "list_rooms", "a.b"]),
                               "arguments": st.dictionaries(argument_names, plain, max_size=4)})
ENVELOPES = [{}, {"type": "function"}, {"id": "c-9"}, {"index": 0, "id": "c", "type": "function"}]
CALL_SPELLINGS = [
    lambda call, envelope: envelope | call,
    lambda call, envelope: call | envelope,
    lambda call, envelope: envelope | {"function": call},
    lambda call, envelope: envelope | {"function": call | {
        "arguments": json.dumps(call["arguments"])}},
    lambda call, envelope: envelope | {"name": call["name"], "parameters": call["arguments"]},
    lambda call, envelope: {"parameters": call["arguments"], "name": call["name"]} | envelope,
    lambda call, envelope: envelope | {"name": call["name"], "input": call["arguments"]},
    lambda call, envelope: {"tool_name": call["name"], "arguments": call["arguments"]} | envelope]


@given(st.lists(st.tuples(calls, st.sampled_from(CALL_SPELLINGS), st.sampled_from(ENVELOPES)),
                min_size=1, max_size=3))
def test_a_call_is_read_back_from_every_spelling(drawn):
    elements = [spell(call, envelope) for call, spell, envelope in drawn]
    assert verify.read_calls(json.dumps(elements)) == ([call for call, _, _ in drawn], 0)


@given(calls, st.booleans())
def test_arguments_beside_the_name_are_read_back(call, enveloped):
    arguments = {k: v for k, v in call["arguments"].items()
                 if k not in ("name", "type") and not (enveloped and k in ("id", "index"))}
    element = ({"id": "c-9", "index": 0} if enveloped else {}) | {"name": call["name"]} | arguments
    assert verify.normalise_call(element) == call | {"arguments": arguments}


# ---------------------------------------------------------------------------------------------
# Text

DRAFT = '<tool_call_answer>[{"name": "f", "arguments": {}}]</tool_call_answer>'


@pytest.mark.parametrize("text, read", [
    (f"<think>So {DRAFT}</think> I", None), (f"<think>So {DRAFT}</think>{DRAFT}", 1),
    (f"<think>I could say {DRAFT} but no tool fits.</think>Sorry.", None),
    (f"<think>So {DRAFT}</think><tool_call_answer>[{{", None),
    (f"I could say {DRAFT}.</think>Sorry.", None), (f"Well.</think>{DRAFT}", 1),
    (f"<think>So {DRAFT}", 1), (f"<think>a</think>{DRAFT}</think>", 1)])
def test_a_draft_in_thought_is_no_answer(text, read):
    calls = solver.read(text)
    assert (calls and len(calls.calls)) == read
    if read is None:
        assert solver.format_reward(text) == 0 and not solver.is_right(text, [
            {"name": "f", "arguments": {}}])


def test_a_model_that_only_thinks_of_a_call_has_declined():
    thought = f"<think>I could say {DRAFT} but no tool fits.</think>Sorry."
    read = score.read(thought)
    assert score.error_of(*read, []) is None
    assert score.error_of(*read, [{"name": "f", "arguments": {}}]) == ("format", "no block")


def test_a_drafted_task_is_no_task():
    text = ("<think><question>q</question></think><question>Please go to Oslo.</question>")
    assert generator.read(text).question == "Please go to Oslo."
    assert generator.read("<think><question>q</question></think>").question is None


def test_composed_and_decomposed_letters_are_equal():
    assert verify.values_equal("Caf\u00e9", "Cafe\u0301")
    assert verify.values_equal(["\u30ac"], ["\u30ab\u3099"])
    assert not verify.values_equal("Cafe", "Caf\u00e9")
    hostile = "e" + "\u0315\u0300" * 500_000                # NFC of it takes minutes
    assert verify.values_equal(hostile, hostile)


def test_ask_prints_letters_and_not_escapes(tmp_path, monkeypatch, capsys):
    asked_menu(write(tmp_path / "t.json", [OPENAI]), monkeypatch)
    assert '{"city": "Troms\u00f8"}' in capsys.readouterr().out


def test_logs_hold_letters_and_anything_that_python_can(tmp_path):
    rows = [{"text": "Troms\u00f8 \u5317\u4eac"}, {"text": "half \ud800 \\ud800 \u2028 \x85 \n"}]
    folder = disk.Directory(tmp_path)
    folder.write_rows("pool.jsonl", rows)
    folder.append("pool.jsonl", rows[0])
    assert folder.read_rows("pool.jsonl") == rows + rows[:1]
    written = (tmp_path / "pool.jsonl").read_bytes()
    assert "Troms\u00f8 \u5317\u4eac".encode() in written and written.count(b"\n") == 3


def test_a_log_is_read_while_a_letter_is_being_written(tmp_path):
    whole = disk.to_lines([{"text": "\u5317"}, {"text": "\u4eac"}]).encode()
    (tmp_path / "log.jsonl").write_bytes(whole[:-4])
    assert disk.read_log(tmp_path / "log.jsonl") == [{"text": "\u5317"}]


def test_a_deeply_nested_file_is_one_line(tmp_path):
    (tmp_path / "t.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(Refused, match="t.json is not JSON"):
        disk.read_json(tmp_path / "t.json")
    schema = {"type": "string"}
    for _ in range(100):
        schema = {"anyOf": [schema]}
    for menu in ([{"name": "f", "parameters": {"x": schema}}], [{"name": "f",
                                                                 "parameters": schema}]):
        with pytest.raises(ValueError, match="'f'.*nested too deeply"):
            toolfiles.read_menu(menu)
