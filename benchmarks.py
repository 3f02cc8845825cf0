"""The benchmarks: one short function for each format, from upstream's files to rows.

    DIR/hammer/   a clone of MadeAgents/Hammer, or its data/test/original/*.json alone:
                  toolalpaca, sealtools, nexusraven, apibank (two levels)
    DIR/snips/    a clone of sonos/nlu-benchmark, or its intents' folders alone: snips
    bfcl          in the installed package bfcl-eval (found, not imported), or anywhere under DIR
    tiny          the held-out tasks of tiny.py; needs no file

A loader raises ValueError, one line, for a file that is missing or broken. A broken row becomes a
Row with a `problem`: it is counted as wrong and reported, never dropped.
"""
import functools
import glob
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

import tiny
from verify import Task, answers_equal, load_json, normalise_tool, strip_fence

FETCH = ": the README says how to fetch it"
INTENTS = ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook",
           "SearchCreativeWork", "SearchScreeningEvent")
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple",
              "live_multiple", "irrelevance")
HAMMER_FILES = {"toolalpaca": "toolalpaca.json", "sealtools": "sealtool.json",
                "nexusraven": "NexusRaven.json", "apibank_l1": "apibank_l1.json",
                "apibank_l2": "apibank_l2.json"}


@dataclass
class Row:
    """One row of a benchmark."""

    id: str                        # set and index, or upstream's own id
    task: Task
    part: str = ""                 # category of BFCL, intent of SNIPS
    problem: str | None = None     # why the row cannot be asked
    accepted: list | None = None   # BFCL: gold calls whose arguments are lists of accepted values

    def gold(self, calls):
        """The gold calls to score `calls` against: with several accepted values,
        those nearest to it."""
        return self.task.answer if self.accepted is None else resolve(calls, self.accepted)


def make_rows(ids, part, make, elements):
    """Rows from the elements of a file. ValueError if not one of them can be read.

    Args:
        ids: one for each element.
        make: function of an element to a Row's (task, accepted); ValueError says what is wrong.
    """
    rows = []
    for row_id, element in zip(ids, elements):
        try:
            task, accepted = make(element)
            rows.append(Row(row_id, task, part, accepted=accepted))
        except ValueError as error:
            rows.append(Row(row_id, Task("", [], []), part, problem=str(error)))
    if not rows or all(row.problem for row in rows):
        raise ValueError(f"no row can be read: {rows[0].problem if rows else 'there is none'}")
    return rows


def read_file(*places, hint=""):
    """(path, text) of the first place that exists. ValueError if none does, with a hint."""
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"{places[0]} is missing{hint}")
    try:
        return path, path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def explained(path, work):
    """work(), with the path put before what a ValueError says."""
    try:
        return work()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------------------------
# What the formats share


def menu(tools):
    """Tools of any benchmark, also OpenAI's format, in the form that training uses.

    `required` is collected from the tool, its schema and its parameters; what a tool returns is
    left out. ValueError names the first that is no tool.
    """
    if isinstance(tools, str):
        tools = load_json(tools)
    if not isinstance(tools, list) or not tools:
        raise ValueError("the tools are not a list with a tool in it")
    found = [normalise_tool(element) for element in tools]
    if None in found:
        raise ValueError(f"tool {found.index(None)} has no name, or its parameters are no object")
    for tool in found:
        flagged = [p for p, schema in tool["parameters"].items() if schema.get("required") is True]
        tool["required"] = list(dict.fromkeys(tool["required"] + flagged))
        # The list says it; a nested schema's own list of required keys stays.
        tool["parameters"] = {
            p: {k: v for k, v in schema.items() if k != "required" or not isinstance(v, bool)}
            for p, schema in tool["parameters"].items()}
    return found


SPEAKERS = {"user": "User", "agent": "Agent", "assistant": "Call", "tool": "Result",
            "system": "System"}


def render(conversation):
    """A conversation as lines "User: ...", "Agent: ...", "Call: ..." and "Result: ...".

    >>> render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "```[]```"}])
    'User: Hi\\nCall: []'
    """
    lines = []
    for turn in conversation:
        turn = turn if isinstance(turn, dict) else {}
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(content, str) or not isinstance(role, str) or role not in SPEAKERS:
            raise ValueError(f"a turn is not one of {', '.join(SPEAKERS)} with a text")
        lines.append(f"{SPEAKERS[role]}: {strip_fence(content.strip())}")
    return "\n".join(lines)


def gold_call(element):
    """{name, arguments} of a gold call; Seal-Tools writes {tool, parameters}."""
    if isinstance(element, dict):
        name = element.get("name", element.get("tool"))
        arguments = element.get("arguments", element.get("parameters"))
        if isinstance(name, str) and name.strip() and isinstance(arguments, dict):
            return {"name": name.strip(), "arguments": arguments}
    raise ValueError("a gold call has no name or no arguments")


# ---------------------------------------------------------------------------------------------
# The formats


def hammer(name, data):
    """Rows of one of Hammer's files: [{query, tools, answers}]; queries may be conversations."""
    folder, file = data / "hammer", HAMMER_FILES[name]
    path, text = read_file(folder / file, folder / "data/test/original" / file, hint=FETCH)

    def work():
        elements = json.loads(text)
        if not isinstance(elements, list):
            raise ValueError("not a JSON list of rows")
        ids = [f"{name}_{i}" for i in range(len(elements))]
        return make_rows(ids, "", hammer_row, elements)

    return explained(path, work)


def hammer_row(element):
    """(Task, None) of {query, tools, answers}."""
    if not isinstance(element, dict) or not {"query", "tools", "answers"} <= set(element):
        raise ValueError("a row needs query, tools and answers")
    query, answers = element["query"], element["answers"]
    question = render(query) if isinstance(query, list) else query
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the query is empty, or neither text nor a conversation")
    # API-Bank's marker for "your turn" is no part of the conversation.
    question = question.strip().removesuffix("Generate API Request:").rstrip()
    answers = load_json(answers) if isinstance(answers, str) else answers
    answers = [answers] if isinstance(answers, dict) else answers
    if not isinstance(answers, list):
        raise ValueError("the answers are no list")
    return Task(question, menu(element["tools"]), list(map(gold_call, answers))), None


def snips(data):
    """Rows of the seven intents' validation files: {intent: [{data: [{text, entity?}]}]}.

    Every row offers all seven intents as tools; the slots of an intent's file are its optional
    string parameters.
    """
    utterances, paths = {}, {}
    for intent in INTENTS:
        place = Path(intent) / f"validate_{intent}.json"
        clone = data / "snips/2017-06-custom-intent-engines"
        path, text = read_file(data / "snips" / place, clone / place, hint=FETCH)
        utterances[intent] = explained(path, functools.partial(snips_utterances, intent, text))
        paths[intent] = path
    tools = [intent_tool(intent, utterances[intent]) for intent in INTENTS]
    rows = []
    for intent in INTENTS:
        ids = [f"{intent}_{i}" for i in range(len(utterances[intent]))]
        make = functools.partial(snips_row, intent, tools)
        rows += explained(paths[intent], functools.partial(
            make_rows, ids, intent, make, utterances[intent]))
    return rows


def snips_utterances(intent, text):
    content = json.loads(text)
    elements = content.get(intent) if isinstance(content, dict) else None
    if not isinstance(elements, list):
        raise ValueError(f"not an object with a list under {intent!r}")
    return elements


def snips_pieces(element):
    """[(text, slot or None)] of an utterance."""
    pieces = element.get("data") if isinstance(element, dict) else None
    if not isinstance(pieces, list) or not pieces:
        raise ValueError("an utterance has no list of data")
    for piece in pieces:
        if not isinstance(piece, dict) or not isinstance(piece.get("text"), str):
            raise ValueError("a piece of an utterance has no text")
    return [(piece["text"], piece.get("entity")) for piece in pieces]


def intent_tool(intent, elements):
    """The tool for an intent, with the slots that occur in its file."""
    slots = set()
    for element in elements:
        try:
            slots.update(slot for _, slot in snips_pieces(element) if isinstance(slot, str))
        except ValueError:
            continue          # the row itself is reported
    return {"name": intent, "description": " ".join(re.findall("[A-Z][a-z]*", intent)) + ".",
            "parameters": {slot: {"type": "string"} for slot in sorted(slots)}, "required": []}


def snips_row(intent, tools, element):
    """(Task, None): the question is the utterance, the gold one call with its slots."""
    pieces = snips_pieces(element)
    slots = [(slot, text.strip()) for text, slot in pieces if isinstance(slot, str)]
    if len(dict(slots)) < len(slots):
        raise ValueError("a slot is filled twice")
    question = "".join(text for text, _ in pieces).strip()
    return Task(question, tools, [{"name": intent, "arguments": dict(slots)}]), None


def bfcl(data):
    """Rows of BFCL's single-turn categories: JSON Lines {id, question, function}, and gold in
    possible_answer/ under the same id."""
    folder, rows = bfcl_folder(data), []
    for category in CATEGORIES:
        name = f"BFCL_v4_{category}.json"
        path, text = read_file(folder / name, hint=FETCH)
        gold = None if category == "irrelevance" else bfcl_gold(folder / "possible_answer" / name)
        lines = [line for line in text.split("\n") if line.strip()]
        ids = [line_id(line, f"{category}_line{i}") for i, line in enumerate(lines)]
        make = functools.partial(bfcl_row, gold)
        rows += explained(path, functools.partial(make_rows, ids, category, make, lines))
    return rows


def bfcl_folder(data):
    """Where BFCL's data lies: under DIR, or in the installed package."""
    name = f"BFCL_v4_{CATEGORIES[0]}.json"
    # Not Path.rglob, which does not go into linked folders.
    paths = map(Path, sorted(glob.glob(f"{glob.escape(str(data))}/**/{name}", recursive=True)))
    found = [path.parent for path in paths if path.parent.name != "possible_answer"]
    spec = importlib.util.find_spec("bfcl_eval")
    if not found and spec is not None:
        found = [Path(place) / "data" for place in spec.submodule_search_locations or ()]
    if not found:
        raise ValueError(f"bfcl: {name} is neither under {data} nor in an installed bfcl-eval: "
                         "pip install --no-deps bfcl-eval")
    return found[0]


def line_id(line, otherwise):
    try:
        value = json.loads(line)
    except ValueError:
        return otherwise
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else otherwise


def bfcl_gold(path):
    """{id: ground truth} of a file in possible_answer/."""

    def work():
        lines = read_file(path, hint=FETCH)[1].split("\n")
        entries = [json.loads(line) for line in lines if line.strip()]
        return {entry["id"]: entry["ground_truth"] for entry in entries
                if isinstance(entry, dict) and {"id", "ground_truth"} <= set(entry)}

    return explained(path, work)


def bfcl_row(gold, line):
    """(Task, accepted calls) of a line. The task's own answer has the first accepted values."""
    entry = json.loads(line)
    if not isinstance(entry, dict) or not {"id", "question", "function"} <= set(entry):
        raise ValueError("a row needs id, question and function")
    turns = entry["question"]
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list):
        raise ValueError("the question is not one turn")
    question = render(turns[0])
    if len(turns[0]) == 1:
        question = turns[0][0]["content"].strip()
    if gold is None:
        return Task(question, menu(entry["function"]), []), None
    if not isinstance(gold.get(entry["id"]), list) or not gold[entry["id"]]:
        raise ValueError("the row has no gold in possible_answer")
    tools = menu(entry["function"])
    accepted = [accepted_call(element, tools) for element in gold[entry["id"]]]
    return Task(question, tools, resolve([], accepted)), accepted


# ---------------------------------------------------------------------------------------------
# BFCL: several accepted values


def accepted_call(element, tools):
    """{name, arguments: {argument: choices}} of BFCL's {name: {argument: accepted values}}."""
    if not isinstance(element, dict) or len(element) != 1:
        raise ValueError("a gold call is not an object with one name")
    (name, arguments), = element.items()
    if not isinstance(arguments, dict) or not all(isinstance(v, list) for v in arguments.values()):
        raise ValueError("a gold argument is no list of accepted values")
    required = next((tool["required"] for tool in tools if tool["name"] == name), ())
    return {"name": name,
            "arguments": {k: choices_of(v, k in required) for k, v in arguments.items()}}


def choices_of(accepted, required=False):
    """Accepted values as choices, with None among them where the argument may be left out.

    BFCL writes "" for that, which in a required argument is only a value. It writes no accepted
    value at all where it means the empty list (7 arguments in 2 rows).
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
    return values_fit(choice, value)


def values_fit(choice, value):
    """Evaluation's equality of two values: that of one-argument calls."""
    return answers_equal([{"name": "", "arguments": {"": value}}],
                         [{"name": "", "arguments": {"": choice}}])


def call_fits(call, gold):
    """Is a call right for a gold call with choices? A null argument counts as absent."""
    given = call["arguments"]
    return (call["name"] == gold["name"]
            and {k for k, v in given.items() if v is not None} <= set(gold["arguments"])
            and all(accepts(choices, given.get(k)) for k, choices in gold["arguments"].items()))


def resolve(calls, accepted):
    """Ordinary gold calls nearest to `calls`: equal to them exactly if they are right.

    Each gold call is paired with a call that is right for it, as many as can be, else with a spare
    call of its name. An argument takes its partner's value where that is accepted, else the first
    accepted one; it is left out where it may be and the partner has none.
    """
    partner = match(calls, accepted)
    spare = [call for i, call in enumerate(calls) if i not in partner.values()]
    gold = []
    for g, call in enumerate(accepted):
        mate = calls[partner[g]] if g in partner else next(
            (c for c in spare if c["name"] == call["name"]), None)
        if g not in partner and mate is not None:
            spare.remove(mate)
        given = mate["arguments"] if mate else {}
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


def match(calls, accepted):
    """{index of a gold call: index of a call right for it},
    as many pairs as there can be (augmenting paths)."""
    edges = [[i for i, call in enumerate(calls) if call_fits(call, gold)] for gold in accepted]
    owner = {}                                  # call -> gold

    def place(g, seen):
        for i in edges[g]:
            if i not in seen:
                seen.add(i)
                if i not in owner or place(owner[i], seen):
                    owner[i] = g
                    return True
        return False

    for g in range(len(accepted)):
        place(g, set())
    return {g: i for i, g in owner.items()}


# ---------------------------------------------------------------------------------------------
# A run's own tasks


def curricula(run):
    """{iteration: its curriculum, list of Task} of a run directory, in order."""
    found = {}
    for path in run.glob("iter[0-9]*/curriculum.jsonl"):
        lines = [line for line in read_file(path)[1].split("\n") if line]
        tasks = explained(path, lambda lines=lines: [Task(**json.loads(line)) for line in lines])
        found[int(path.parent.name.removeprefix("iter"))] = tasks
    if not found:
        raise ValueError(f"{run} holds no iter*/curriculum.jsonl: give a run directory")
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------
# All of them


def tiny_heldout(data):
    """The held-out tasks of the embedded model's world."""
    return [Row(f"tiny_{i}", task) for i, task in enumerate(tiny.heldout())]


LOADERS = {name: functools.partial(hammer, name) for name in HAMMER_FILES} | {
    "snips": snips, "bfcl": bfcl, "tiny": tiny_heldout}
BENCHMARKS = {"toolalpaca": ["toolalpaca"], "sealtools": ["sealtools"],
              "nexusraven": ["nexusraven"], "apibank": ["apibank_l1", "apibank_l2"],
              "snips": ["snips"], "bfcl": ["bfcl"], "tiny": ["tiny"]}


def load(name, data, limit=None):
    """Rows of a set of LOADERS; with a limit, so many of them spread evenly over it."""
    rows = LOADERS[name](Path(data))
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]
