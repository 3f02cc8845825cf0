"""Ways to spoil a right answer, for the tests of the scorer."""
import copy
import random


KINDS = ("extra call", "name", "extra argument", "missing call", "duplicate call",
         "missing argument",
         "wrong value")


def wrong_value(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 917
    if isinstance(value, str):
        return value + " qqq"
    if isinstance(value, list):
        return value + [wrong_value(value[0]) if value else "qqq"]
    return value | {"qqq": "qqq"}


def damages(gold, seed=0):
    """{kind: spoiled copy} of a list of gold calls; only the kinds that it allows."""
    rng, found = random.Random(seed), {}

    def spoil(kind, change):
        calls = copy.deepcopy(gold)
        change(calls)
        found[kind] = calls

    other = {"name": "some_other_tool", "arguments": {}}
    spoil("extra call", lambda calls: calls.append(other))
    if gold:
        n = rng.randrange(len(gold))
        spoil("name", lambda calls: calls[n].update(name=calls[n]["name"] + "_x"))
        spoil("extra argument", lambda calls: calls[n]["arguments"].update(qqq="qqq"))
        spoil("missing call", lambda calls: calls.pop(n))
        spoil("duplicate call", lambda calls: calls.append(copy.deepcopy(calls[n])))
        if gold[n]["arguments"]:
            key = rng.choice(sorted(gold[n]["arguments"]))
            spoil("missing argument", lambda calls: calls[n]["arguments"].pop(key))
            spoil("wrong value", lambda calls: calls[n]["arguments"].update(
                {key: wrong_value(calls[n]["arguments"][key])}))
    return found
