"""The benchmarks: one short function for each format, from upstream's files to rows.

    DIR/hammer/   a clone of MadeAgents/Hammer, or its data/test/original/*.json alone:
                  toolalpaca, sealtools, nexusraven, apibank (two levels)
    DIR/snips/    a clone of sonos/nlu-benchmark, or its intents' folders alone: snips
    bfcl          in the installed package bfcl-eval (found, not imported), or anywhere under DIR
    tiny          the held-out tasks of tiny.py; needs no file

A file that is missing or broken is refused in one line. A broken row becomes a Row with a
`problem`: it is counted as wrong and reported, never dropped. For a benchmark of your own write a
function that fills a row, and a loader beside the others.
"""
import glob
import importlib.util
import json
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tiny
from benchmarks.gold import accepted_call, resolve
from cli import Refused
from disk import read_json, read_lines, read_text
from toolfiles import read_menu
from verify import Task, load_json, strip_fence

INTENTS = ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook",
           "SearchCreativeWork", "SearchScreeningEvent")
NON_LIVE = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
LIVE = ("live_simple", "live_multiple")
HAMMER_FILES = {"toolalpaca": "toolalpaca.json", "sealtools": "sealtool.json",
                "nexusraven": "NexusRaven.json", "apibank_l1": "apibank_l1.json",
                "apibank_l2": "apibank_l2.json"}


@dataclass
class Row:
    """One row of a benchmark."""

    id: str                        # set and index, or upstream's own id
    task: Task = field(default_factory=lambda: Task("", [], []))
    part: str = ""                 # category of BFCL, intent of SNIPS
    problem: str | None = None     # why the row cannot be asked
    accepted: list | None = None   # BFCL: gold calls whose arguments are lists of accepted values
    ours: bool = False             # gold of our own world: compared strictly, as inside a run

    def gold(self, calls):
        """The gold calls to score `calls` against. Where several values are accepted, those
        nearest to it."""
        return self.task.answer if self.accepted is None else resolve(calls, self.accepted)


# ---------------------------------------------------------------------------------------------
# What the formats share


def find(*places):
    """The first of the places that is a file."""
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise Refused(f"{places[0]} is missing: docs/evaluation.md says how to fetch it")
    return path


def make_rows(path, elements, fill, stem, part=""):
    """Rows from the elements of a file. Refused if not one of them can be read.

    Args:
        fill: function of a Row and an element that sets the row's task; ValueError says what is
            wrong with the element.
        stem: of the ids, before the index.
    """
    rows = []
    for i, element in enumerate(elements if isinstance(elements, list) else ()):
        row = Row(f"{stem}{i}", part=part)
        try:
            fill(row, element)
        except ValueError as error:
            row.problem = str(error)
        rows.append(row)
    if all(row.problem for row in rows):
        raise Refused(f"{path}: no row can be read: "
                      + (rows[0].problem if rows else "there is no list of rows"))
    return rows


def fields(element, *names):
    """Values of the fields that an object must have."""
    if not isinstance(element, dict) or not set(names) <= set(element):
        raise ValueError(f"not an object with {', '.join(names)}")
    return [element[name] for name in names]


def unquoted(value):
    """The value, or what it says if it is JSON in a string."""
    return load_json(value) if isinstance(value, str) else value


SPEAKERS = {"user": "User", "agent": "Agent", "assistant": "Call", "tool": "Result",
            "system": "System"}


def render(conversation):
    """A conversation as lines "User: ...", "Agent: ...", "Call: ..." and "Result: ...".

    >>> render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "```[]```"}])
    'User: Hi\\nCall: []'
    """
    lines = []
    for turn in conversation:
        role, content = fields(turn, "role", "content")
        speaker = SPEAKERS.get(str(role))
        if speaker is None or not isinstance(content, str):
            raise ValueError(f"a turn is not one of {', '.join(SPEAKERS)} with a text")
        lines.append(f"{speaker}: {strip_fence(content.strip())}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# The formats


def hammer(name, data):
    """Rows of one of Hammer's files: [{query, tools, answers}]; queries may be conversations."""
    folder, file = data / "hammer", HAMMER_FILES[name]
    path = find(folder / file, folder / "data/test/original" / file)
    return make_rows(path, read_json(path), hammer_row, f"{name}_")


def hammer_row(row, element):
    query, tools, answers = fields(element, "query", "tools", "answers")
    question = render(query) if isinstance(query, list) else query
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the query is empty, or neither text nor a conversation")
    # API-Bank's marker for "your turn" is no part of the conversation.
    question = question.strip().removesuffix("Generate API Request:").rstrip()
    answers = unquoted(answers)
    answers = [answers] if isinstance(answers, dict) else answers
    if not isinstance(answers, list):
        raise ValueError("the answers are no list")
    row.task = Task(question, read_menu(unquoted(tools)), list(map(gold_call, answers)))


def gold_call(element):
    """{name, arguments} of a gold call; Seal-Tools writes {tool, parameters}."""
    if isinstance(element, dict):
        name = element.get("name", element.get("tool"))
        arguments = element.get("arguments", element.get("parameters"))
        if isinstance(name, str) and name.strip() and isinstance(arguments, dict):
            return {"name": name.strip(), "arguments": arguments}
    raise ValueError("a gold call has no name or no arguments")


def snips(data):
    """Rows of the seven intents' validation files: {intent: [{data: [{text, entity?}]}]}.

    Every row offers all seven intents as tools; the slots of an intent's rows are its optional
    string parameters.
    """
    rows, tools = [], []
    for intent in INTENTS:
        place = f"{intent}/validate_{intent}.json"
        path = find(data / "snips" / place, data / "snips/2017-06-custom-intent-engines" / place)
        content = read_json(path)
        utterances = content.get(intent) if isinstance(content, dict) else None
        found = make_rows(path, utterances, snips_row, f"{intent}_", intent)
        slots = {slot for row in found for call in row.task.answer for slot in call["arguments"]}
        tools.append({"name": intent, "description": re.sub("(?<!^)(?=[A-Z])", " ", intent) + ".",
                      "parameters": {slot: {"type": "string"} for slot in sorted(slots)},
                      "required": []})
        rows += found
    for row in rows:
        row.task.tools = tools
    return rows


def snips_row(row, element):
    """The question is the utterance, the gold one call with its slots. `snips` adds the tools."""
    pieces, = fields(element, "data")
    if not isinstance(pieces, list) or not pieces or not all(
            isinstance(piece, dict) and isinstance(piece.get("text"), str) for piece in pieces):
        raise ValueError("the utterance is no list of pieces with a text")
    slots = [(piece["entity"], piece["text"].strip()) for piece in pieces
             if isinstance(piece.get("entity"), str)]
    if len(dict(slots)) < len(slots):
        raise ValueError("a slot is filled twice")
    question = "".join(piece["text"] for piece in pieces).strip()
    row.task = Task(question, [], [{"name": row.part, "arguments": dict(slots)}])


def bfcl(categories, data):
    """Rows of single-turn categories of BFCL: JSON Lines {id, question, function}, and gold in
    possible_answer/ under the same id."""
    folder, rows = bfcl_folder(data), []
    for category in categories:
        path, gold = find(folder / f"BFCL_v4_{category}.json"), None
        if category != "irrelevance":
            truths = read_lines(find(folder / "possible_answer" / path.name))
            gold = {truth.get("id"): truth.get("ground_truth") for truth in truths
                    if isinstance(truth, dict)}
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        rows += make_rows(path, lines, partial(bfcl_row, gold), f"{category}_line", category)
    return rows


def bfcl_folder(data):
    """Where BFCL's data lies: under DIR, or in the installed package."""
    name = f"BFCL_v4_{NON_LIVE[0]}.json"
    # Not Path.rglob, which does not go into linked folders.
    paths = map(Path, sorted(glob.glob(f"{glob.escape(str(data))}/**/{name}", recursive=True)))
    found = [path.parent for path in paths if path.parent.name != "possible_answer"]
    spec = importlib.util.find_spec("bfcl_eval")
    found += [Path(place) / "data" for place in spec and spec.submodule_search_locations or ()]
    if not found:
        raise Refused(f"bfcl: {name} is neither under {data} nor in an installed bfcl-eval: "
                      "pip install --no-deps bfcl-eval")
    return found[0]


def bfcl_row(gold, row, line):
    """The task's own answer has the first accepted values.

    Args:
        gold: {id: ground truth}; None where no call is right.
    """
    row.id, turns, functions = fields(json.loads(line), "id", "question", "function")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list):
        raise ValueError("the question is not one turn")
    question, tools = render(turns[0]), read_menu(functions)
    if len(turns[0]) == 1:
        question = turns[0][0]["content"].strip()
    if gold is not None:
        if not isinstance(gold.get(row.id), list) or not gold[row.id]:
            raise ValueError("the row has no gold in possible_answer")
        row.accepted = [accepted_call(element, tools) for element in gold[row.id]]
    row.task = Task(question, tools, row.gold([]))


def tiny_heldout(data):
    """The held-out tasks of the embedded model's world."""
    return [Row(f"tiny_{i}", task, ours=True) for i, task in enumerate(tiny.heldout())]


# ---------------------------------------------------------------------------------------------
# All of them

LOADERS = {name: partial(hammer, name) for name in HAMMER_FILES} | {
    "snips": snips, "bfcl_nonlive": partial(bfcl, NON_LIVE), "bfcl_live": partial(bfcl, LIVE),
    "tiny": tiny_heldout}
BENCHMARKS = list(dict.fromkeys(name.partition("_")[0] for name in LOADERS))   # of several sets


def load(name, data, limit=None):
    """Rows of a set of LOADERS; with a limit, so many of them spread evenly over it."""
    rows = LOADERS[name](Path(data))
    count = min(limit or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def curricula(run):
    """{iteration: its curriculum, list of Task} of a run directory, in order."""
    found = {int(path.parent.name.removeprefix("iter")): [Task(**row) for row in read_lines(path)]
             for path in run.glob("iter[0-9]*/curriculum.jsonl")}
    if not found:
        raise Refused(f"{run} holds no iter*/curriculum.jsonl: give a run directory")
    return dict(sorted(found.items()))
