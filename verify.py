"""What a tool, a call and a task are, and when a call is right.

To use it elsewhere copy this file alone: it needs the standard library and nothing else. It runs no
tool and evaluates no model text: everything is decided by comparing JSON. Readers of model text
take any string and return a value or None; only `load_json` and `normalise_tool` raise, both a
ValueError.

Covered: reading tagged blocks, calls and menus; equality of values and calls; checks of tools and
calls; grounding of values in a question. Not covered: whether a tool does what its description
says, or whether an answer is wise.
"""
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from typing import NamedTuple

MAX_DEPTH = 16           # nesting of JSON that we are willing to read
MAX_BRACKETS = 10_000    # opening ones in JSON; a menu of 64 tools with 64 parameters has 4,225
MAX_QUESTION = 20_000    # characters: unicodedata.normalize is quadratic on combining marks
MAX_WORD = 1_000         # characters of a word that NFC is asked of, for the same reason
MAX_ITEMS = 64           # calls in an answer, tools in a menu, arguments in a call
MAX_CHOICES = 4_096      # values in the enums of a tool: each call looks through them

PRIMITIVE_TYPES = {"string": "string", "str": "string", "integer": "integer", "int": "integer",
                   "number": "number", "float": "number", "boolean": "boolean", "bool": "boolean"}
SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema")     # of OpenAI, MCP, Anthropic
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

    What stands in a <think> block, or before its end, is thought and not said: no other tag is
    looked for there.

    >>> last_block("<a>1</a> and <a>2</a> <a>open", "a")
    '2'
    >>> last_block("<think><a>1</a></think> <a>open", "a")
    """
    text = text if tag == "think" else after_think(text)
    _, opening, content = text.rpartition(f"</{tag}>")[0].rpartition(f"<{tag}>")
    return strip_fence(content.partition(f"</{tag}>")[0]) if opening else None


def after_think(text):
    """What follows the last closed <think> block; the whole text where none is closed.

    A </think> that nothing opens ends what the prompt has opened.

    >>> after_think("<think>a</think>b"), after_think("a</think>b"), after_think("<think>a")
    ('b', 'b', '<think>a')
    """
    start = max(text.rfind("<think>", 0, max(text.rfind("</think>"), 0)), 0)
    end = text.find("</think>", start)
    return text if end < 0 else text[end + len("</think>"):]


def strip_fence(text):
    """The text without white space around it, and without a code fence around the whole of it.

    >>> strip_fence("```json\\n[1]\\n```")
    '[1]'
    """
    text = text.strip()
    fenced = re.fullmatch(r"```(?:\w*[^\S\n]*\n)?(.*)```", text, re.DOTALL)
    return fenced[1].strip() if fenced else text


def load_json(text):
    """Strict JSON, as json.loads, but every fault is a ValueError.

    Refused beside bad syntax: NaN and Infinity (also as 1e999), integers of more than 4,300 digits
    (Python's own limit), nesting deeper than MAX_DEPTH, more than MAX_BRACKETS opening brackets,
    and lone surrogates, which no tokenizer can encode. Of equal keys the last counts.
    """
    outside_strings = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = re.findall(r"[][{}]", outside_strings)
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
    if text.count("[") + text.count("{") > MAX_BRACKETS or max(depths, default=0) > MAX_DEPTH:
        raise ValueError("nested too deeply, or too many brackets")
    value = json.loads(text)
    # NaN and Infinity cannot be written, and half a surrogate pair cannot be encoded.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def read_calls(text):
    """Calls in the text of an answer block, or None if it is not JSON.

    What is no list is taken as a list of one. Ill-formed elements are counted, not kept.

    >>> read_calls('[{"name": "f", "arguments": {"x": 1}}, 7]')
    Calls(calls=[{'name': 'f', 'arguments': {'x': 1}}], malformed=1)
    """
    try:
        value = load_json(text)
    except ValueError:
        return None
    elements = value if isinstance(value, list) else [value]
    good = [call for call in map(normalise_call, elements) if call is not None]
    return Calls(good, len(elements) - len(good))


def normalise_call(element):
    """{name, arguments} from the spellings that models use, or None.

    Accepted: `tool_name` for name, {"function": {...}} around the call, arguments as a JSON string,
    nothing ("", null, []) for no arguments, and where there is no `arguments` key, an object under
    `parameters`, `input` or `args`, or the arguments beside the name.

    >>> normalise_call({"tool_name": "f", "x": 1})
    {'name': 'f', 'arguments': {'x': 1}}
    >>> normalise_call({"type": "function", "id": "c-9", "name": "f", "parameters": {"x": 1}})
    {'name': 'f', 'arguments': {'x': 1}}
    """
    element = unwrap(element)
    key = "name" if "name" in element else "tool_name"
    name = element.get(key)
    if not isinstance(name, str) or not name.strip():
        return None
    arguments = element["arguments"] if "arguments" in element else _beside(element, key)
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments.strip() or "null")
        except ValueError:
            return None
    arguments = {} if arguments is None or arguments == [] else arguments
    return {"name": name.strip(), "arguments": arguments} if isinstance(arguments, dict) else None


_ENVELOPE = ("type", "id", "index", "call_id", "tool_call_id")


def _beside(element, key):
    """The arguments of a call without an `arguments` key, from what stands beside its name.

    A tool may have arguments called `type`, `id` or `index`. They belong to the envelope where a
    `type` says that this is a call; all but `type` also where they stand before the name.

    Args:
        key: that of the name.
    """
    a_call = element.get("type") in ("function", "function_call", "tool_call", "tool_use")
    before = list(element)[:list(element).index(key)]
    rest = {k: v for k, v in element.items()
            if k != key and not (k in _ENVELOPE and (a_call or k in before and k != "type"))}
    keys = [k for k in rest if k not in _ENVELOPE]
    inner = rest[keys[0]] if len(keys) == 1 and keys[0] in ("parameters", "input", "args") else rest
    return inner if isinstance(inner, dict) or inner in ("", None, []) else rest


def unwrap(element):
    """The object inside {"function": {...}}; any other as it is, and {} for what is none."""
    if not isinstance(element, dict):
        return {}
    named, inner = "name" in element or "tool_name" in element, element.get("function")
    return inner if isinstance(inner, dict) and not named else element


def read_tools(text):
    """Menu in the text of a tools block as [{name, description, parameters, required}], or None."""
    try:
        value = load_json(text)
        return list(map(normalise_tool, value)) if isinstance(value, list) and value else None
    except ValueError:
        return None


def choices_of(schema):
    """The values that a schema's const or enum allows, or None."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    return choices if isinstance(choices, list) else None


def schema_of(element):
    """A tool's schema of parameters, by the names that OpenAI, MCP and Anthropic give it."""
    return next((element[key] for key in SCHEMA_KEYS if key in element), {})


def normalise_tool(element):
    """One tool with parameters as {p: {type, ...}} and `required` at tool level. A ValueError says
    why the element is no tool.

    Parameters may be given flat or as a JSON schema with `properties`, under `parameters`,
    `inputSchema` or `input_schema`; `required` may stand at tool level, inside the parameters, or
    in both places. A parameter's schema is an object, or true for the empty one; with any other the
    tool is refused.

    >>> normalise_tool({"name": "f", "parameters": {"properties": {"x": {"type": "integer"}},
    ...                 "required": ["x"]}})["required"]
    ['x']
    """
    element = unwrap(element)
    name, parameters = element.get("name"), schema_of(element)
    if not isinstance(name, str) or not name.strip():
        raise ValueError("it has no name")
    if not isinstance(parameters, dict):
        raise ValueError("its parameters are no object")
    required = [parameter for names in (element.get("required"), parameters.get("required"))
                if isinstance(names, list) for parameter in names if isinstance(parameter, str)]
    properties = parameters.get("properties")
    if parameters.get("type") == "object" or isinstance(properties, dict) and all(
            isinstance(schema, (dict, bool)) for schema in properties.values()):
        parameters = properties if isinstance(properties, dict) else {}
    elif isinstance(parameters.get("required"), list):
        parameters = {p: schema for p, schema in parameters.items() if p != "required"}
    parameters = {p: {} if schema is True else schema for p, schema in parameters.items()}
    for parameter, schema in parameters.items():
        if not isinstance(schema, dict):
            raise ValueError(f"parameter {parameter!r} has no schema object")
    text = element.get("description")
    return {"name": name.strip(), "description": text if isinstance(text, str) else "",
            "parameters": parameters, "required": list(dict.fromkeys(required))}


# ---------------------------------------------------------------------------------------------
# Equality

_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)


def canonical(value):
    """A hashable form of a JSON value; two values are equal when their forms are.

    5, 5.0, "5", "5.0" and " 5 " are one number (plain decimals of up to 15 digits without a leading
    zero); true, "true" and "True" are one truth; strings are compared after folding white space,
    with their case, and with accents composed (NFC); lists and dicts element by element. true is
    not 1.

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
        folded = " ".join(word if len(word) > MAX_WORD else unicodedata.normalize("NFC", word)
                          for word in value.split())
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
    # The first half spares the matching of many calls a walk through large values.
    return (isinstance(a, (list, dict)) == isinstance(b, (list, dict))
            and canonical(a) == canonical(b))


def calls_equal(predicted, gold):
    """Do two lists of calls match one to one, in any order?

    False for more than MAX_ITEMS calls: numbers whose hashes collide make the comparison quadratic.

    >>> f, g = {"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}
    >>> calls_equal([f, g], [g, f]), calls_equal([f, f], [f])
    (True, False)
    """
    return (len(predicted) == len(gold) <= MAX_ITEMS
            and Counter(map(canonical_call, predicted)) == Counter(map(canonical_call, gold)))


def canonical_call(call):
    """Hashable form of a call. The name is compared to the letter, unlike a string value."""
    return call["name"], canonical(call["arguments"])


# ---------------------------------------------------------------------------------------------
# Checks on tools and calls, and the grounding of values


def menu_problem(tools):
    """First reason why a menu is not sound, and where, in words; (None, None) where it is sound.

    Sound: names unique and not a generic word, described in 5 characters or more, primitive types,
    required parameters declared; at most MAX_ITEMS tools, parameters of a tool, and MAX_CHOICES
    values in its enums.
    """
    if len(tools) > MAX_ITEMS:
        return "too_many_tools", "the menu"
    names = Counter(tool["name"] for tool in tools)
    for tool in tools:
        name, parameters, place = tool["name"], tool["parameters"], f"tool {tool['name']!r}"
        choices = sum(len(choices_of(schema) or ()) for schema in parameters.values())
        nested = [p for p, schema in parameters.items() if primitive_type(schema) is None]
        undeclared = [p for p in tool["required"] if p not in parameters]
        for reason, wrong in (
                ("tool_too_large", len(parameters) > MAX_ITEMS or choices > MAX_CHOICES),
                ("tool_names_repeat", names[name] > 1),
                ("tool_name_generic", name.lower() in GENERIC_NAMES),
                ("tool_undescribed", len(tool["description"].strip()) < 5),
                ("type_not_primitive", nested), ("required_undeclared", undeclared)):
            if wrong:
                return reason, place if wrong is True else f"{place}: parameter {wrong[0]!r}"
    return None, None


def primitive_type(schema):
    """string, integer, number or boolean, or None if the schema's type is none of them."""
    kind = schema.get("type")
    return PRIMITIVE_TYPES.get(kind) if isinstance(kind, str) else None


def call_problem(calls, tools):
    """First reason why calls do not fit a menu, or None."""
    if len(calls) > MAX_ITEMS:
        return "too_many_calls"
    menu = {tool["name"]: tool for tool in tools}
    for call in calls:
        if call["name"] not in menu:
            return "unknown_tool"
        tool, arguments = menu[call["name"]], call["arguments"]
        if not set(tool["required"]) <= {p for p in arguments if arguments[p] is not None}:
            return "required_missing"
        if not set(arguments) <= set(tool["parameters"]):
            return "unknown_argument"
        for name, value in arguments.items():
            if problem := value_problem(value, tool["parameters"][name]):
                return problem
    return None


_BOUNDS = {"minimum": Decimal.__ge__, "exclusiveMinimum": Decimal.__gt__,
           "maximum": Decimal.__le__, "exclusiveMaximum": Decimal.__lt__}


def value_problem(value, schema):
    """First reason why a value is not what its parameter's schema asks for, or None.

    Asked are type, enum, const and the bounds of numbers. Values are equal as in `canonical`: 5.0
    and "5" are integers, and "true" is a boolean; but only strings are strings, and null is of no
    type.

    >>> value_problem("5", {"type": "integer", "maximum": 30})
    >>> value_problem(900, {"type": "integer", "maximum": 30})
    'value_out_of_range'
    """
    kind, (form, content) = primitive_type(schema) or str(schema.get("type")), canonical(value)
    numeric = form == "number" and kind != "string" and content.is_finite()
    fits = {"string": isinstance(value, str), "boolean": form == "constant" and value is not None,
            "number": numeric, "integer": numeric and content == content.to_integral_value(),
            "array": isinstance(value, list), "object": isinstance(value, dict)}
    if not fits.get(kind, True):
        return "value_wrong_type"
    choices = choices_of(schema)
    if choices is not None and (form, content) not in map(canonical, choices):
        return "value_not_allowed"
    for key, holds in _BOUNDS.items():
        bound = schema.get(key)
        if bound is True:                                 # as JSON Schema's draft 4 writes it
            bound = schema.get(key.removeprefix("exclusive").lower())
        if numeric and type(bound) in (int, float) and not holds(content, canonical(bound)[1]):
            return "value_out_of_range"
    return None


_ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_DIGITS = dict(zip(_ONES + _TENS, map(str, [*range(20), *range(20, 100, 10)])))
_TENS_ONES = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_ONES[1:10])})\b")

# Thai to Khmer, kana, Han and Hangul: no space says where a word ends (Hangul: before particles).
_UNSPACED = re.compile("[\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1100-\u11ff\u1780-\u17d3"
                       "\u3005-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
# To Python the vowel signs of India's scripts are no word characters.
_NO_WORD = re.compile("[^\\w\u0900-\u0963\u0966-\u0dff]")
# Raised digits and fractions behind a digit: NFKC alone would make 102 of ten squared.
_RAISED = re.compile("(?<=\\d)(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215f])")
_THIN_SPACE = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")


def _spread(text):
    """NFKC, casefold, a comma for a space inside a number, and spaces around every character of a
    script that writes without them."""
    text = unicodedata.normalize("NFKC", _RAISED.sub(" ", _THIN_SPACE.sub(",", text))).casefold()
    return _UNSPACED.sub(r" \g<0> ", text)


def normalise_text(text):
    """NFKC, casefold, every run of non-word characters to one space, with a space at both ends.
    Where a script writes no spaces between words, every character is one."""
    return " " + " ".join(_NO_WORD.sub(" ", _spread(text)).split()) + " "


_RUN = re.compile(r"((?<![^\s(\[{'\"\u2018\u201c:=,;])[-\u2212\u2013](?=[$\u20ac\xa3\xa5]?\.?\d)"
                  r"|\b(?:minus|negative)\s+)?[$\u20ac\xa3\xa5]?"
                  r"((?:(?<![\w.])\.)?\w+(?:[.,]\w+)*)")
_PLAIN = re.compile(r"(?!0[\d,])(?:\d+|\d{1,3}(?:,\d{2,3})*,\d{3})(?:\.\d+)?|\.\d+")
_WITH_UNIT = re.compile(rf"(?:{_PLAIN.pattern})[^\W\d_]\w*")


def numbers_in(text):
    """The numbers that a text writes, as a set of Decimal; those up to 99 also in words.

    A minus stands at the beginning of a word. A comma, or a space that does not break, divides
    thousands. What is no decimal number as a whole, such as a date, is read as the numbers between
    its marks; digits after a leading zero or beside letters are none.

    >>> sorted(map(str, numbers_in("-3 to 4-5 degrees, $1,234.50, 2.5km, forty-two on 2026-05-17")))
    ['-3', '1234.50', '17', '2026', '4', '42', '5']
    """
    found = set()
    text = _TENS_ONES.sub(lambda two: _DIGITS[two[1]][0] + _DIGITS[two[2]], _spread(text))
    for sign, run in _RUN.findall(text):
        whole = run in _DIGITS or _PLAIN.fullmatch(run)
        for part in [run] if whole or _WITH_UNIT.fullmatch(run) else re.split("[.,]", run):
            digits = _DIGITS.get(part, part)
            if _PLAIN.fullmatch(digits):
                found.add(Decimal("-" * bool(sign and whole) + digits.replace(",", "")))
    return found


def grounded(calls, question):
    """Does every argument value stand literally in the question, at word boundaries?

    A number, also in a string, stands there if an equal one does, in digits or in words: see
    `numbers_in`. Booleans and nulls are skipped; a value without a word character fails; of lists
    and dicts every value inside must stand there. The work is bounded: False for more than
    MAX_ITEMS calls or values in a call, and for a question, or values together, of more than
    MAX_QUESTION characters.

    >>> grounded([{"name": "f", "arguments": {"n": 5, "city": "Oslo"}}], "Five nights in OSLO!")
    True
    """
    leaves = [_leaves(call["arguments"]) for call in calls]
    values = [leaf for some in leaves for leaf in some]
    length = max(len(question), sum(len(value) for value in values if isinstance(value, str)))
    if max([len(calls), *map(len, leaves)]) > MAX_ITEMS or length > MAX_QUESTION:
        return False
    text, numbers = normalise_text(question), numbers_in(question)
    return all(_stands_in(value, text, numbers) for value in values)


def _leaves(value):
    """The values inside nested lists and dicts. An empty one counts as a value, never grounded."""
    children = value.values() if isinstance(value, dict) else value
    return [leaf for child in children
            for leaf in (_leaves(child) if child and isinstance(child, (list, dict)) else [child])]


def _stands_in(value, text, numbers):
    words = normalise_text(str(value)).strip()
    form, content = canonical(_DIGITS.get(words, value))
    if form == "number":
        return content in numbers
    return value is None or isinstance(value, bool) or words != "" and f" {words} " in text
