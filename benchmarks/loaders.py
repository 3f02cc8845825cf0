"""The benchmarks: one short function for each format, from upstream's files to rows.

    DIR/hammer/   a clone of MadeAgents/Hammer, or its data/test/original/*.json alone:
                  toolalpaca, sealtools, nexusraven, apibank (two levels)
    DIR/snips/    a clone of sonos/nlu-benchmark, or its intents' folders alone: snips
    bfcl          in the installed package bfcl-eval (found, not imported), or DIR/bfcl_eval/data
    tiny          the held-out tasks of tiny.py; needs no file

A file that is missing or broken is refused in one line. A broken row becomes a Row with a
`problem`: it is counted as wrong and reported, never dropped. For a benchmark of your own write a
function that fills a row, and a loader beside the others.
"""
import importlib.util
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tiny
from benchmarks.gold import accepted_call, resolve
from cli import Refused
from disk import read_json, read_lines
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
        fill: function of a Row and an element that sets the row's task. It takes the element to be
            in its format; what it raises where that is not so is the row's problem.
        stem: of the ids, before the index.
    """
    rows = []
    for i, element in enumerate(elements if isinstance(elements, list) else ()):
        row = Row(f"{stem}{i}", part=part)
        try:
            fill(row, element)
            if not row.task.question.encode():      # nor is half a surrogate pair text
                raise ValueError("the question is empty")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            row.problem = repr(error)
        rows.append(row)
    if all(row.problem for row in rows):
        problem = rows[0].problem if rows else "there is no list of rows"
        raise Refused(f"{path}: no row can be read: {problem}")
    return rows


def unquoted(value):
    """The value, or what it says if it is JSON in a string."""
    return load_json(value) if isinstance(value, str) else value


SPEAKERS = {"user": "User", "agent": "Agent", "assistant": "Call", "tool": "Result",
            "system": "System"}


def render(conversation):
    """A conversation as lines that say whose turn it is: see SPEAKERS.

    >>> render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "```[]```"}])
    'User: Hi\\nCall: []'
    """
    return "\n".join(f"{SPEAKERS[turn['role']]}: {strip_fence(turn['content'])}"
                     for turn in conversation)


# ---------------------------------------------------------------------------------------------
# The formats


def hammer(name, data):
    """Rows of one of Hammer's files: [{query, tools, answers}]; queries may be conversations."""
    folder, file = data / "hammer", HAMMER_FILES[name]
    path = find(folder / file, folder / "data/test/original" / file)
    return make_rows(path, read_json(path), hammer_row, f"{name}_")


def hammer_row(row, element):
    query, answers = element["query"], unquoted(element["answers"])
    question = render(query) if isinstance(query, list) else query
    # API-Bank's marker for "your turn" is no part of the conversation.
    question = question.strip().removesuffix("Generate API Request:").rstrip()
    answers = [answers] if isinstance(answers, dict) else answers
    row.task = Task(question, read_menu(unquoted(element["tools"])), list(map(gold_call, answers)))


def gold_call(element):
    """{name, arguments} of a gold call; Seal-Tools writes {tool, parameters}."""
    name = element.get("name", element.get("tool"))
    arguments = element.get("arguments", element.get("parameters"))
    if not name.strip() or not isinstance(arguments, dict):
        raise ValueError("a gold call has no name or no arguments")
    return {"name": name.strip(), "arguments": arguments}


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
    pieces = element["data"]
    slots = [(piece["entity"], piece["text"].strip()) for piece in pieces if "entity" in piece]
    if len(dict(slots)) < len(slots):
        raise ValueError("a slot is filled twice")
    question = "".join(piece["text"] for piece in pieces).strip()
    row.task = Task(question, [], [{"name": row.part, "arguments": dict(slots)}])


def bfcl(categories, data):
    """Rows of single-turn categories of BFCL: JSON Lines {id, question, function}, and gold in
    possible_answer/ under the same id."""
    folder, rows = bfcl_folder(data), []
    for category in categories:
        path = find(folder / f"BFCL_v4_{category}.json")
        truths = read_lines(folder / "possible_answer" / path.name)    # irrelevance has none
        gold = {truth.get("id"): truth.get("ground_truth") for truth in truths
                if isinstance(truth, dict)}
        rows += make_rows(path, read_lines(path), partial(bfcl_row, gold), f"{category}_", category)
    return rows


def bfcl_folder(data):
    """Where BFCL's data lies: under DIR, or in the installed package."""
    spec = importlib.util.find_spec("bfcl_eval")
    installed = [Path(place) for place in spec and spec.submodule_search_locations or ()]
    return find(*(place / f"data/BFCL_v4_{NON_LIVE[0]}.json"
                  for place in [data / "bfcl_eval", *installed])).parent


def bfcl_row(gold, row, element):
    """The task's own answer has the first accepted values.

    Args:
        gold: {id: ground truth}.
    """
    row.id = element["id"]
    turn, = element["question"]
    question = render(turn) if len(turn) > 1 else turn[0]["content"].strip()
    tools = read_menu(element["function"])
    truth = [] if row.part == "irrelevance" else gold.get(row.id)
    if not truth and row.part != "irrelevance":
        raise ValueError("the row has no gold in possible_answer")
    row.accepted = [accepted_call(call, tools) for call in truth]
    row.task = Task(question, tools, row.gold([]))


def tiny_heldout(data):
    """The held-out tasks of the embedded model's world."""
    return [Row(f"tiny_{i}", task, ours=True) for i, task in enumerate(tiny.heldout())]


# ---------------------------------------------------------------------------------------------
# All of them

LOADERS = {name: partial(hammer, name) for name in HAMMER_FILES} | {
    "snips": snips, "bfcl_nonlive": partial(bfcl, NON_LIVE), "bfcl_live": partial(bfcl, LIVE),
    "tiny": tiny_heldout}
# Each is one set of rows or several.
BENCHMARKS = list(dict.fromkeys(name.partition("_")[0] for name in LOADERS))


def load(name, data, limit=None):
    """Rows of a set of LOADERS; with a limit, so many of them spread evenly over it."""
    rows = LOADERS[name](Path(data))
    count = min(limit or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def curricula(run):
    """{iteration: its curriculum, list of Task} of a run directory, in order."""
    found = {int(path.parent.name.removeprefix("iter")): [Task(**row) for row in read_lines(path)]
             for path in run.glob("iter*/curriculum.jsonl")
             if path.parent.name.removeprefix("iter").isdecimal()}
    if not found:
        raise Refused(f"{run} holds no iter*/curriculum.jsonl: give a run directory")
    return dict(sorted(found.items()))
