"""What a tool, a call and a task are, and when a call is right.

To use it elsewhere copy this file alone: it needs the standard library and nothing else. It runs no
tool and evaluates no model text: everything is decided by comparing JSON. Readers of model text
take any string and return a value or None; only `load_json` and `read_menu` raise, a ValueError.

Covered: reading tagged blocks, calls and menus; equality of values and calls; checks of tools and
calls; grounding of values in a question. Not covered: whether a tool does what its description
says, or whether an answer is wise.
"""
import json
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

MAX_DEPTH = 16           # nesting of JSON that we are willing to read
MAX_BRACKETS = 10_000    # opening ones in JSON; a menu of 64 tools with 64 parameters has 4,225
MAX_DIGITS = 4_300       # of an integer: conversion is quadratic
MAX_QUESTION = 20_000    # characters: unicodedata.normalize is quadratic on combining marks
MAX_ITEMS = 64           # calls in an answer, tools in a menu, arguments in a call

PRIMITIVE_TYPES = {"string", "integer", "number", "boolean", "str", "int", "float", "bool"}
GENERIC_NAMES = {"tool", "function", "api", "name", "tool_name", "function_name", "my_tool",
                 "example", "example_tool", "test", "tool1", "tool2", "tool_1", "tool_2", "string"}


@dataclass
class Task:
    """One tool-calling task: solve `question` with `tools`; `answer` is the gold list of calls."""

    question: str
    tools: list                                  # menu: {name, description, parameters, required}
    answer: list                                 # gold calls: {name, arguments}
    spec: dict = field(default_factory=dict)     # what the Generator was asked for
    pass_rate: float | None = None               # Eq. 3, measured on the Solver
    bucket: str | None = None                    # easy, medium or hard


class Calls(NamedTuple):
    """What an answer block holds: its well-formed calls, and how many elements were none."""

    calls: list
    malformed: int = 0


# ---------------------------------------------------------------------------------------------
# Reading model text


def last_block(text, tag):
    """Content of the last closed <tag>...</tag> block, stripped of a code fence, or None.

    >>> last_block("<a>1</a> and <a>2</a> <a>open", "a")
    '2'
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opening, 0, max(text.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return strip_fence(text[start:text.find(closing, start)].strip())


def strip_fence(text):
    """Drop a code fence that surrounds the whole text.

    >>> strip_fence("```json\\n[1]\\n```")
    '[1]'
    """
    if text.startswith("```") and text.endswith("```") and len(text) >= 6:
        first_line, newline, rest = text[3:-3].partition("\n")
        text = rest if newline and re.fullmatch(r"\w*\s*", first_line) else text[3:-3]
    return text.strip()


def load_json(text):
    """Strict JSON, as json.loads, but every fault is a ValueError.

    Refused beside bad syntax: NaN and Infinity (also as 1e999), integers of more than MAX_DIGITS
    digits, nesting deeper than MAX_DEPTH, more than MAX_BRACKETS opening brackets, and lone
    surrogates, which no tokenizer can encode. Of equal keys the last counts.
    """
    text.encode()                                          # UnicodeEncodeError is a ValueError
    opening = text.count("[") + text.count("{")
    if opening > MAX_BRACKETS or opening > MAX_DEPTH and _nests_deeper(text, MAX_DEPTH):
        raise ValueError("nested too deeply, or too many brackets")
    value = _DECODER.decode(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()     # an escape may hold half a pair
    return value


def _nests_deeper(text, limit):
    """True if brackets nest deeper than `limit` or do not pair; before parsing, in linear time.

    Each pass takes the innermost pairs away.
    """
    outside_strings = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = outside_strings.encode().translate(bytes.maketrans(b"{}", b"[]"), _NO_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _finite(digits):
    number = float(digits)
    if math.isinf(number):
        raise ValueError("number out of range")
    return number


def _integer(digits):
    # Conversion is quadratic, and Python's own limit can be switched off.
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, parse_int=_integer)


def read_calls(text):
    """Calls in the text of an answer block, or None if it is not JSON of the right kind.

    A list, or an object taken as a list of one. Ill-formed elements are counted, not kept.

    >>> read_calls('[{"name": "f", "arguments": {"x": 1}}, 7]')
    Calls(calls=[{'name': 'f', 'arguments': {'x': 1}}], malformed=1)
    """
    try:
        value = load_json(text)
    except ValueError:
        return None
    elements = [value] if isinstance(value, dict) else value
    if not isinstance(elements, list):
        return None
    calls = [normalise_call(element) for element in elements if isinstance(element, dict)]
    good = [call for call in calls if call is not None]
    return Calls(good, len(elements) - len(good))


def normalise_call(element):
    """{name, arguments} from the spellings that models use, or None.

    Accepted: `tool_name` for name, {"function": {...}} around the call, arguments as a JSON string,
    and arguments beside the name where there is no `arguments` key.

    >>> normalise_call({"tool_name": "f", "x": 1})
    {'name': 'f', 'arguments': {'x': 1}}
    """
    element = _unwrap(element)
    key = "name" if "name" in element else "tool_name"
    name = element.get(key)
    if not isinstance(name, str) or not name.strip():
        return None
    beside = {k: v for k, v in element.items() if k != key}
    arguments = element.get("arguments", beside)
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)
        except ValueError:
            return None
    return {"name": name.strip(), "arguments": arguments} if isinstance(arguments, dict) else None


def _unwrap(element):
    """The object inside {"function": {...}}, or one with a name of its own as it is; else {}."""
    if not isinstance(element, dict):
        return {}
    named, inner = "name" in element or "tool_name" in element, element.get("function")
    return inner if isinstance(inner, dict) and not named else element


def read_tools(text):
    """Menu in the text of a tools block as [{name, description, parameters, required}], or None."""
    try:
        value = load_json(text)
        return list(map(_read_tool, value)) if isinstance(value, list) and value else None
    except ValueError:
        return None


def read_menu(value):
    """Tools from a file that people wrote, as `normalise_tool` gives them.

    Beside the spellings that it knows, a parameter may say {"required": true} of itself.

    Args:
        value: the content of the file, a JSON value.

    Raises:
        ValueError: names the first tool that is none, and why.

    >>> read_menu([{"name": "f", "parameters": {"x": {"type": "string", "required": True}}}])[0]
    {'name': 'f', 'description': '', 'parameters': {'x': {'type': 'string'}}, 'required': ['x']}
    """
    if not isinstance(value, list) or not value:
        raise ValueError("not a JSON list of tools")
    return [_take_flags(_read_tool(element, number)) for number, element in enumerate(value)]


def _take_flags(tool):
    """The tool with its parameters' own "required" taken into its list of them."""
    parameters, required = {}, tool["required"]
    for name, schema in tool["parameters"].items():
        flag = schema.get("required")
        if isinstance(flag, bool):                        # a list is a nested schema's own
            schema = {key: value for key, value in schema.items() if key != "required"}
            required = required + [name] if flag and name not in required else required
        parameters[name] = schema
    return tool | {"parameters": parameters, "required": required}


def normalise_tool(element):
    """One tool with parameters as {p: {type, ...}} and `required` at tool level, or None.

    Parameters may be given flat or as a JSON schema with `properties`; `required` may stand at tool
    level, inside the parameters, or in both places. A parameter without a schema object is no
    parameter, and the tool is refused.

    >>> normalise_tool({"name": "f", "parameters": {"properties": {"x": {"type": "integer"}},
    ...                 "required": ["x"]}})["required"]
    ['x']
    """
    try:
        return _read_tool(element)
    except ValueError:
        return None


def _read_tool(element, number=0):
    """`normalise_tool`, but a ValueError says why the element, the n-th of a list, is no tool."""
    element = _unwrap(element)
    name, parameters = element.get("name"), element.get("parameters", {})
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"tool {number} has no name")
    if not isinstance(parameters, dict):
        raise ValueError(f"tool {name!r}: its parameters are no object")
    required = _names(element.get("required"))
    if isinstance(parameters.get("required"), list):
        required += _names(parameters["required"])
        parameters = {p: schema for p, schema in parameters.items() if p != "required"}
    properties = parameters.get("properties")
    if isinstance(properties, dict) and all(isinstance(s, dict) for s in properties.values()):
        parameters = properties
    elif parameters.get("type") == "object":      # a JSON schema without properties
        parameters = {}
    for parameter, schema in parameters.items():
        if not isinstance(schema, dict):
            raise ValueError(f"tool {name!r}: parameter {parameter!r} has no schema object")
    description = element.get("description")
    return {"name": name.strip(),
            "description": description if isinstance(description, str) else "",
            "parameters": parameters, "required": list(dict.fromkeys(required))}


def _names(value):
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


# ---------------------------------------------------------------------------------------------
# Equality

_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)


def canonical(value):
    """A hashable form of a JSON value; two values are equal when their forms are.

    5, 5.0, "5", "5.0" and " 5 " are one number (plain decimals of up to 15 digits without a leading
    zero); true, "true" and "True" are one truth; strings are compared after folding white space,
    with their case; lists and dicts element by element. true is not 1.

    >>> canonical(5) == canonical(" 5.0 ")
    True
    >>> canonical(5) == canonical("05"), canonical(True) == canonical(1)
    (False, False)
    """
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, (int, float)):
        return ("number", Decimal(value) if isinstance(value, int) else Decimal(repr(value)))
    if isinstance(value, str):
        folded = " ".join(value.split())
        if folded in ("true", "True", "false", "False"):
            return ("constant", folded in ("true", "True"))
        if len(folded) <= 17 and _DECIMAL.fullmatch(folded) and sum(map(str.isdigit, folded)) <= 15:
            return ("number", Decimal(folded))
        return ("string", folded)
    if isinstance(value, list):
        return ("list", tuple(map(canonical, value)))
    return ("dict", frozenset((key, canonical(child)) for key, child in value.items()))


def values_equal(a, b):
    """The one value equality: see `canonical`."""
    if isinstance(a, (list, dict)) != isinstance(b, (list, dict)):
        return False               # spares the matching of many calls a walk through large values
    return canonical(a) == canonical(b)


def calls_equal(predicted, gold):
    """Do two lists of calls match one to one, in any order?

    False for more than MAX_ITEMS calls: numbers whose hashes collide make the comparison quadratic.

    >>> f, g = {"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}
    >>> calls_equal([f, g], [g, f]), calls_equal([f, f], [f])
    (True, False)
    """
    predicted, gold = list(predicted), list(gold)
    return (len(predicted) == len(gold) <= MAX_ITEMS
            and Counter(map(canonical_call, predicted)) == Counter(map(canonical_call, gold)))


def canonical_call(call):
    """Hashable form of a call. The name is compared to the letter, unlike a string value."""
    return call["name"], canonical(call["arguments"])


# ---------------------------------------------------------------------------------------------
# Checks on tools and calls, and the grounding of values


def tool_problem(tools):
    """First reason why a menu is not sound, or None.

    Sound: names unique and not a generic word, described in 5 characters or more, primitive types,
    required parameters declared.
    """
    if len(tools) > MAX_ITEMS or any(len(tool["parameters"]) > MAX_ITEMS for tool in tools):
        return "too_many_tools"
    if len({tool["name"] for tool in tools}) < len(tools):
        return "tool_names_repeat"
    for tool in tools:
        if tool["name"].lower() in GENERIC_NAMES:
            return "tool_name_generic"
        if len(tool["description"].strip()) < 5:
            return "tool_undescribed"
        types = [schema.get("type") for schema in tool["parameters"].values()]
        if not all(isinstance(kind, str) and kind in PRIMITIVE_TYPES for kind in types):
            return "type_not_primitive"
        if not set(tool["required"]) <= set(tool["parameters"]):
            return "required_undeclared"
    return None


def call_problem(calls, tools):
    """First reason why calls do not fit a menu, or None."""
    if len(calls) > MAX_ITEMS or any(len(call["arguments"]) > MAX_ITEMS for call in calls):
        return "too_many_calls"
    menu = {tool["name"]: tool for tool in tools}
    for call in calls:
        if call["name"] not in menu:
            return "unknown_tool"
        if not required_given(call, menu):
            return "required_missing"
        if not set(call["arguments"]) <= set(menu[call["name"]]["parameters"]):
            return "unknown_argument"
        if any(isinstance(value, (list, dict)) for value in call["arguments"].values()):
            return "argument_not_flat"
    return None


def required_given(call, menu):
    """Is the call's tool in the menu {name: tool}, and are its required arguments all given?"""
    return call["name"] in menu and set(menu[call["name"]]["required"]) <= set(call["arguments"])


_ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(),
                 range(20, 100, 10)))
_WORD_OF = ({str(n): word for n, word in enumerate(_ONES)}
            | {str(n): word for word, n in _TENS.items()})
_DIGITS_OF = {word: digits for digits, word in _WORD_OF.items()}


def normalise_text(text):
    """NFKC, casefold, every run of non-word characters to one space, with a space at both ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " " + " ".join(re.sub(r"\W", " ", folded).split()) + " "


def grounded(calls, question):
    """Does every argument value stand literally in the question, at word boundaries?

    0..19 and the tens match as digits and as words, either way; integers from 1000 also with
    thousands commas; booleans and nulls are skipped; a value without a word character fails; of
    lists and dicts every value inside must stand there. The work is bounded: False for more than
    MAX_ITEMS calls or values in a call, and for a question or values (together) of more than
    MAX_QUESTION characters.

    >>> grounded([{"name": "f", "arguments": {"n": 5, "city": "Oslo"}}], "Five nights in OSLO!")
    True
    """
    if len(question) > MAX_QUESTION or len(calls) > MAX_ITEMS:
        return False
    values = []
    for call in calls:
        leaves = [leaf for value in call["arguments"].values() for leaf in _leaves(value)]
        if len(leaves) > MAX_ITEMS:
            return False
        values += leaves
    if sum(len(leaf) for leaf in values if isinstance(leaf, str)) > MAX_QUESTION:
        return False
    text = normalise_text(question)
    return all(_stands_in(leaf, text) for leaf in values)


def _leaves(value):
    """The values inside nested lists and dicts. An empty one counts as a value, never grounded."""
    if not value or not isinstance(value, (list, dict)):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [leaf for child in children for leaf in _leaves(child)]


def _stands_in(value, text):
    if isinstance(value, bool) or value is None:
        return True
    forms = {normalise_text(str(value)).strip()}
    if isinstance(value, float) and value.is_integer():
        forms.add(str(int(abs(value))))
    for form in tuple(forms):
        forms.add(_WORD_OF.get(form, form))
        forms.add(_DIGITS_OF.get(form, form))
        if re.fullmatch(r"[1-9]\d{3,17}", form, re.ASCII):
            forms.add(f"{int(form):,}".replace(",", " "))
    return "" not in forms and any(f" {form} " in text for form in forms)
