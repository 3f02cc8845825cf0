"""When does an answer equal gold that others wrote?

Inside a run gold comes from the Generator and calls are compared by `verify.calls_equal` alone.
Gold of published benchmarks is written in many hands: calls are loosened on both sides first
(`loosen_call`). BFCL also accepts several values for an argument: `resolve` finds the ordinary gold
calls that are nearest to an answer.
"""
import ast
import json
import warnings

from verify import MAX_QUESTION, load_json, values_equal

# ---------------------------------------------------------------------------------------------
# A looser equality


def loosen_call(call):
    """The call without its null arguments, and with strings that hold a list or dict read."""
    return {"name": call["name"], "arguments": {name: loosen(value) for name, value
                                                in call["arguments"].items() if value is not None}}


def loosen(value):
    """The value with every string in it that is the literal of a list or dict replaced by that."""
    if isinstance(value, str):
        container = read_literal(value)
        return value if container is None else loosen(container)
    if isinstance(value, list):
        return list(map(loosen, value))
    return {k: loosen(v) for k, v in value.items()} if isinstance(value, dict) else value


def read_literal(text):
    """The list or dict whose JSON or Python literal the text is, or None. Never raises.

    >>> read_literal("['a', True, None]"), read_literal("[1"), read_literal("12")
    (['a', True, None], None, None)
    """
    text = text.strip()
    if len(text) > MAX_QUESTION or (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    try:
        return load_json(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # the compiler's opinion on odd escapes
            value = ast.literal_eval(text)
        # A tuple, or a key that is no string, comes back from JSON as something else.
        return value if value == load_json(json.dumps(value)) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


# ---------------------------------------------------------------------------------------------
# Several accepted values (BFCL)


def accepted_call(element, tools):
    """{name, arguments: {argument: choices}} of BFCL's {name: {argument: accepted values}}."""
    (name, arguments), = element.items()
    if not all(isinstance(accepted, list) for accepted in arguments.values()):
        raise ValueError("a gold argument is no list of accepted values")
    required = next((tool["required"] for tool in tools if tool["name"] == name), ())
    return {"name": name,
            "arguments": {k: choices_of(v, k in required) for k, v in arguments.items()}}


def choices_of(accepted, required=False):
    """Accepted values as choices, with None among them where the argument may be left out.

    BFCL writes "" for that; in a required argument "" is only a value. Where it lists no accepted
    value at all, it means the empty list (7 arguments in 2 rows).
    """
    choices = list(map(choice_of, accepted)) or [[]]
    return choices + [None] if "" in choices and not required else choices


def choice_of(value):
    """One accepted value; in a dict, also one in a list, every key has choices of its own."""
    if isinstance(value, dict):
        return {k: choices_of(v) if isinstance(v, list) else [v] for k, v in value.items()}
    return list(map(choice_of, value)) if isinstance(value, list) else value


def accepts(choices, value):
    """Does the value fit one of the choices?

    >>> accepts([{"unit": ["C", "F"], "day": ["today", None]}], {"unit": "F"})
    True
    """
    return any(fits(choice, value) for choice in choices)


def fits(choice, value):
    if isinstance(choice, dict) and isinstance(value, dict):
        return set(value) <= set(choice) and all(
            accepts(choices, value.get(key)) for key, choices in choice.items())
    if isinstance(choice, list) and isinstance(value, list):
        return len(choice) == len(value) and all(map(fits, choice, value))
    return values_equal(loosen(choice), value)


def call_fits(call, gold):
    """Is a call, as `loosen_call` gives it, right for a gold call with choices?"""
    return call["name"] == gold["name"] and fits(gold["arguments"], call["arguments"])


def resolve(calls, accepted):
    """Ordinary gold calls nearest to `calls`: equal to them exactly if they are right.

    As many gold calls as possible are paired with a call that is right for them, the others with a
    spare call of their name. An argument takes its partner's value where that is accepted, else the
    first accepted one; it is left out where it may be and the partner has none.
    """
    calls = list(map(loosen_call, calls))
    partner, gold = pair(calls, accepted), []
    for g, call in enumerate(accepted):
        spare = [i for i, other in enumerate(calls)
                 if i not in partner.values() and other["name"] == call["name"]]
        if g not in partner and spare:
            partner[g] = spare[0]
        given = calls[partner[g]]["arguments"] if g in partner else {}
        nearest = {k: given.get(k) if accepts(choices, given.get(k)) else first(choices)
                   for k, choices in call["arguments"].items()}
        gold.append({"name": call["name"],
                     "arguments": {k: v for k, v in nearest.items() if v is not None}})
    return gold


def first(choices):
    """The first choice as a value, with the first ones inside it."""
    return next((plain(choice) for choice in choices if choice not in ("", None)), choices[-1])


def plain(choice):
    """A choice as a value: its dicts take the first of each key's choices, where one is needed."""
    if isinstance(choice, dict):
        return {k: first(choices) for k, choices in choice.items() if None not in choices}
    return list(map(plain, choice)) if isinstance(choice, list) else choice


def pair(calls, accepted):
    """{index of a gold call: index of a call right for it}, as many pairs as there can be.

    Taking the first call that fits can leave a later gold call without one; so a call that is taken
    is given up where its owner finds another (augmenting paths).
    """
    right = [[i for i, call in enumerate(calls) if call_fits(call, gold)] for gold in accepted]
    owner = {}
    for g in range(len(accepted)):
        place(g, right, owner, set())
    return {g: i for i, g in owner.items()}


def place(g, right, owner, seen):
    """Find a call for gold call g, moving others if need be. True if there is one.

    Args:
        right: for each gold call, the indices of calls right for it.
        owner: {index of a call: gold call that has it}; changed.
        seen: calls already tried for this g.
    """
    for i in right[g]:
        if i not in seen:
            seen.add(i)
            if i not in owner or place(owner[i], right, owner, seen):
                owner[i] = g
                return True
    return False
