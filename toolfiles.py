"""Tools as people write them, in a file of their own or a benchmark: from its content to a menu.

OpenAI, MCP and Anthropic say the same in three ways, and pydantic, zod and .NET write "a value, or
nothing" in more. `read_menu` gives the one form that prompts show and verify.py checks:

    {"name", "description", "parameters": {p: {"type", ...}}, "required": [p, ...]}

To use it elsewhere copy verify.py too.
"""
import json
import re
from urllib.parse import unquote

from verify import (MAX_BRACKETS, MAX_DEPTH, SCHEMA_KEYS, choices_of, normalise_tool, schema_of,
                    unwrap)

# ---------------------------------------------------------------------------------------------
# A menu


def read_menu(value):
    """Tools from a file that people wrote, as `normalise_tool` gives them.

    Read are lists as OpenAI, MCP and Anthropic want them, and the whole result of MCP's tools/list.
    A parameter may say {"required": true} of itself. OpenAI's strict tools require all parameters,
    and let be null what may be left out: it is not required here. Local references are put in
    place, and a schema that says "a primitive value, or null" in another way becomes a flat one:
    see `flat_schema`. One that stays nested is kept; `menu_problem` is stricter.

    Args:
        value: the content of the file, a JSON value.

    Raises:
        ValueError: names the first entry that is no tool, the parameter at fault, and why.

    >>> read_menu([{"name": "f", "parameters": {"x": {"type": "string", "required": True}}}])[0]
    {'name': 'f', 'description': '', 'parameters': {'x': {'type': 'string'}}, 'required': ['x']}
    """
    # Refused: NaN, which is no bound, and half a surrogate pair, which is no text.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    for key in ("result", "tools"):
        value = value[key] if isinstance(value, dict) and key in value else value
    if not isinstance(value, list) or not value:
        raise ValueError("not a JSON list of tools")
    return [_read_written(element, number) for number, element in enumerate(value)]


def _read_written(element, number):
    """One tool of `read_menu`, the n-th of its list."""
    element, place = {k: v for k, v in unwrap(element).items() if v is not None}, ""
    root, lost = schema_of(element), []
    top = root
    try:
        if isinstance(root, dict):
            top = follow(root, root)
            top = top | {key: put_in_place(top[key], root) for key in _OPTIONS if key in top}
            if "properties" in top:
                lost = [key for key in _OPTIONS if _have_properties(top.get(key))]
            top = _one_option(top)
            if isinstance(top.get("required"), str):
                raise ValueError("its 'required' is no list of parameters")
            if isinstance(top.get("properties") or {}, list):
                raise ValueError("its 'properties' are no object {parameter: schema}")
        tool = normalise_tool({**element, "parameters": top})
        if not (lost or tool["parameters"]):
            lost = _lost_schemas(element, top)
        if lost:
            raise ValueError(f"its parameters stand under {lost[0]!r}, and are wanted as the "
                             "'properties' of 'parameters'")
        for name, schema in tool["parameters"].items():
            place = f"parameter {name!r} "
            schema = put_in_place(schema, root)
            if element.get("strict") is True and takes_null(schema) and name in tool["required"]:
                tool["required"].remove(name)
            schema = flat_schema(schema)
            flag = schema.get("required")
            if isinstance(flag, str):
                raise ValueError("says 'required' in quotes, and is wanted to say true or false")
            if isinstance(flag, bool):                    # a list is a nested schema's own
                schema = without(schema, "required")
                tool["required"] += [name] if flag and name not in tool["required"] else []
            tool["parameters"][name] = schema
    except ValueError as error:
        raise ValueError(f"tool {element.get('name', number)!r}: {place}{error}") from None
    return tool


def without(schema, key):
    """The dict without a key."""
    return {k: v for k, v in schema.items() if k != key}


def _have_properties(options):
    """Do some options of a tool's schema have properties of their own?"""
    return isinstance(options, list) and any(
        isinstance(option, dict) and "properties" in option for option in options)


def _lost_schemas(element, top):
    """The keys under which a tool that reads as one without parameters has some nevertheless."""
    if any(key in element for key in SCHEMA_KEYS):
        return [key for key, value in top.items() if key in (*_OPTIONS, "patternProperties")
                or key not in _NO_PARAMETERS and isinstance(value, dict) and "type" in value]
    return [key for key, value in element.items() if isinstance(value, dict) and value
            and not key.startswith(("return", "response", "output")) and (
        value.get("type") == "object" or "properties" in value or "$ref" in value
        or all(isinstance(schema, dict) and "type" in schema for schema in value.values()))]


# What else an object's schema may have that is a schema with a type.
_NO_PARAMETERS = ("additionalProperties", "unevaluatedProperties", "propertyNames", "not", "if",
                  "then", "else")

# ---------------------------------------------------------------------------------------------
# References and options


def follow(schema, root):
    """The schema, or what its "$ref" points to in `root`, with what stands beside the "$ref".

    Raises:
        ValueError: the reference leads out of the tool, nowhere, or in a circle.
    """
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        head, *parts = reference.split("/")
        target = root if head == "#" else None
        for part in parts:
            if isinstance(target, list):
                target = {str(index): option for index, option in enumerate(target)}
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ValueError(f"refers to {reference!r}, which is no schema in its tool")
        schema = target | without(schema, "$ref")
    raise ValueError("refers to itself")


def put_in_place(schema, root, depth=0, left=None):
    """The schema with every local reference in it replaced by what it points to: see `follow`.

    Args:
        left: what is left of a budget of MAX_BRACKETS lists and dicts: a few references can expand
            to very many.
    """
    if not isinstance(schema, (list, dict)):
        return schema
    left = left or iter(range(MAX_BRACKETS))
    if depth > 4 * MAX_DEPTH or next(left, None) is None:
        raise ValueError("refers to itself, is nested too deeply, or has too many parts")
    if isinstance(schema, list):
        return [put_in_place(part, root, depth + 1, left) for part in schema]
    return {key: put_in_place(part, root, depth + 1, left)
            for key, part in follow(schema, root).items()}


def takes_null(schema):
    """May a parameter be null?"""
    kinds = schema.get("type")
    options = [schema[key] for key in _OPTIONS if isinstance(schema.get(key), list)]
    return (schema.get("nullable") is True or None in (choices_of(schema) or ())
            or "null" in (kinds if isinstance(kinds, list) else [kinds])
            or any(takes_null(option) for option in sum(options, []) if isinstance(option, dict)))


def flat_schema(schema):
    """A parameter's schema with its null left out, and as {type, enum, ...} where it can be that.

    So are read: null among the types, the options or the enum, with its default of null;
    `nullable`; an enum or a const without a type; options that are constants; and an allOf, anyOf
    or oneOf of one. Whether a parameter may be left out is for `required` to say.

    >>> flat_schema({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}], "default": None})
    {'enum': ['a', 'b'], 'type': 'string'}
    """
    flat = _one_option(schema)
    if isinstance(flat.get("nullable"), bool):
        flat = without(flat, "nullable")
    if isinstance(flat.get("type"), list):
        kinds = [kind for kind in flat["type"] if kind != "null"]
        if set(kinds) in ({"string", "integer"}, {"string", "number"}) and _of_digits(flat):
            kinds.remove("string")                  # .NET: a number, also as a string of digits
        flat = flat | {"type": kinds[0] if len(kinds) == 1 else kinds}
    if isinstance(flat.get("enum"), list) and None in flat["enum"]:
        flat = flat | {"enum": [choice for choice in flat["enum"] if choice is not None]}
    kinds = {_KINDS.get(type(choice), "other") for choice in choices_of(flat) or ()}
    kinds = {"number"} if kinds == {"integer", "number"} else kinds
    if "type" not in flat and len(kinds) == 1 and kinds != {"other"}:
        flat = flat | {"type": kinds.pop()}
    changed_null = flat is not schema and "default" in flat and flat["default"] is None
    return without(flat, "default") if changed_null else flat


def _of_digits(schema):
    """Has the schema a pattern, and are the letters in it signs of digits or of an exponent?"""
    pattern = schema.get("pattern")
    return isinstance(pattern, str) and not re.search("[A-Za-z]", re.sub(r"\\d|[eE]", "", pattern))


_OPTIONS = ("allOf", "anyOf", "oneOf")
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _one_option(schema):
    """The schema with an allOf, anyOf or oneOf put in place if, null apart, it has one option; or
    if its options are constants, which are an enum."""
    for key in _OPTIONS:
        options = schema.get(key)
        if not isinstance(options, list) or not all(isinstance(o, dict) for o in options):
            continue
        options = [option for option in options if not _is_null(option)]
        constants = list(map(choices_of, options))
        if len(options) == 1:
            return _one_option(options[0] | without(schema, key))
        if key != "allOf" and constants and None not in constants:
            schema = {"enum": sum(constants, [])} | without(schema, key)
    return schema


def _is_null(schema):
    return schema.get("type") == "null" or choices_of(schema) == [None] or schema == {"not": {}}
