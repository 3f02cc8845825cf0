"""The Generator: task specifications, its prompt, reading its completion, and its reward terms
(Tool-R0 sections 3.1 and 3.2, Eqs. 1, 2 and 5).

The list of domains is all that a person writes about the tasks. To teach a model your own APIs, you
give the tools as well.
"""
import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from verify import Task, grounded, last_block, read_calls, read_tools

DOMAINS = {domain: 1.0 for domain in """
    finance healthcare productivity retail_ecommerce scheduling database cloud_infrastructure system
    programming geolocation logistics communication iot cybersecurity insurance legal news weather
    sports entertainment education real_estate food_ordering translation utilities government
    memory_management web_search social_media math vehicle_control travel""".split()}

MOST_TOOLS = 8                                 # in a menu
OWN_DOMAIN = "that of the tools below"      # where the user brings the tools

SYSTEM = """\
You invent tasks that test whether an assistant can call tools. A task is a user's question, a list
of available tools, and the calls that answer the question. Write four blocks in this order:
<think> your plan: the tools, then the calls with their values </think>
<question> what the user says, with every argument value of the calls written in it </question>
<available_tools> a JSON list of tools, each {"name": ..., "description": ..., "parameters":
{"<parameter>": {"type": ...}}, "required": [...]}, with flat parameters of type string, integer,
number or boolean </available_tools>
<tool_call_answer> a JSON list of calls, each {"name": ..., "arguments": {...}}, that use only these
tools, give every required argument, and nest nothing </tool_call_answer>
Copy every argument value literally into the question. The question is natural and specific, and
never mentions tools. Other tools in the list are plausible but wrong."""

NO_CALL = """
The user asks for something that none of the tools does: the list of calls is empty, []."""

GIVEN_TOOLS = "\nThe tools are given, so leave out <available_tools>:\n"

TAGS = ("think", "question", "available_tools", "tool_call_answer")
ECHOES = ("what the user says, with every argument value",      # the prompt, and others like it
          "the user's question", "your question here", "question text")


@dataclass(frozen=True)
class Spec:
    """What the Generator is asked for: domain d, context c, number of tools m and of gold calls n;
    n = 0 (ours) asks for a question that none of the tools answers.

    Where the user brings tools, `menu` holds the m of them that the task offers.
    """

    domain: str
    context: str
    tools: int
    calls: int
    menu: list | None = None


def sample_spec(rng, domains=DOMAINS, tools=None, decline=0.0):
    """A fresh specification (section 3.1, numbers from the authors' code).

    Multi-turn with 0.1, then one call; else one call with 0.8 and two with 0.2.
    Two calls: 3, 4 or 5 tools with 0.3, 0.4, 0.3.
    One call: 2..4 tools with 0.4, 5..8 with 0.6, uniform inside.

    Args:
        rng: random.Random.
        domains: {domain: weight}.
        tools: the user's own tools, of which m are drawn; None lets the Generator invent them.
        decline: share of specs with 0 calls (ours).
    """
    domain = rng.choices(list(domains), weights=list(domains.values()))[0]
    context = "multi_turn" if rng.random() < 0.1 else "single_turn"
    calls = 2 if context == "single_turn" and rng.random() < 0.2 else 1
    if calls == 2:
        size = rng.choices((3, 4, 5), weights=(0.3, 0.4, 0.3))[0]
    else:
        size = rng.randint(2, 4) if rng.random() < 0.4 else rng.randint(5, MOST_TOOLS)
    size = min(size, len(tools)) if tools else size
    menu = tools and sorted(rng.sample(tools, size), key=lambda tool: tool["name"])
    if decline and rng.random() < decline:
        calls = 0
    return Spec(domain, context, size, calls, menu)


def prompt(spec):
    """Chat messages that ask for one task of the given specification."""
    context = ("a short conversation between User and Agent, all inside the question"
               if spec.context == "multi_turn" else "a single message of the user")
    request = (f"Domain: {spec.domain}\nContext: {context}\nNumber of tools: exactly {spec.tools}\n"
               f"Number of calls: exactly {spec.calls}{'' if spec.calls else NO_CALL}")
    if spec.menu is not None:
        request += f"{GIVEN_TOOLS}{json.dumps(spec.menu, ensure_ascii=False)}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]


def longest_prompt(size, domains=(), tools=None):
    """The messages of the longest prompt there can be; with the user's tools, of their longest.

    Args:
        size: function of a text to its number of tokens.
    """
    menu = tools and sorted(tools, key=lambda tool: size(
        json.dumps(tool, ensure_ascii=False)))[-MOST_TOOLS:]
    domain = max([OWN_DOMAIN, *domains], key=size)
    return prompt(Spec(domain, "multi_turn", MOST_TOOLS, 0, menu))


class Draft(NamedTuple):
    """A Generator completion as read: what is missing or does not parse is None."""

    tags: bool                # all blocks that were asked for are there and not empty
    question: str | None
    tools: list | None
    calls: list | None        # the well-formed gold calls; None where they are not what was asked
    malformed: int            # ill-formed elements of the gold list

    def task(self, spec):
        """The Task, or None where the question, the tools or the gold calls are missing."""
        if not (self.question and self.tools) or self.calls is None:
            return None
        return Task(self.question, self.tools, self.calls, asdict(spec))


def read(text, menu=None, no_call=False):
    """Read the blocks of a completion.

    Args:
        menu: where the user brings the tools. It stands for the block of tools, which a model would
            have to copy token by token; one that is written all the same is ignored.
        no_call: whether 0 calls were asked for; then an empty list is what counts as gold, and a
            call is not; else it is the other way round.
    """
    blocks = {tag: last_block(text, tag) for tag in TAGS
              if menu is None or tag != "available_tools"}
    found = read_calls(blocks["tool_call_answer"] or "")
    tools = read_tools(blocks["available_tools"] or "") if menu is None else menu
    as_asked = found is not None and (found == ([], 0) if no_call else bool(found.calls))
    return Draft(all(blocks.values()), blocks["question"], tools,
                 found.calls if as_asked else None, found.malformed if found else 0)


def format_reward(draft):
    """r_fmt = (1/3)[all four tags] + (1/3)[tools parse] + (1/3)[gold parses as calls]   (Eq. 1)

    Where 0 calls were asked for, gold parses as calls when it is an empty list, and only then: a
    call there is another kind of task, as an empty list is elsewhere. Where the user brings the
    tools they parse, and their tag is not asked for.
    """
    return (draft.tags + (draft.tools is not None) + (draft.calls is not None)) / 3


def validity_reward(draft, grounding=True):
    """r_valid = 0.4 [gold tools in the menu] + 0.4 [required all given]
              + 0.2 [values grounded]   (Eq. 2)

    Every gold call must pass; 0 unless tools and gold parse and every call is well-formed. A menu
    with a name twice holds no tool (ours): the pool drops it, and a Generator soon finds that in a
    menu which repeats the called tool there is no wrong one to choose. Without `grounding` (an
    ablation) the last term is always paid.

    Calls that have no value at all have none grounded (ours): paid in full they are where a weak
    Generator goes, for nothing can be wrong with them. An empty list that was asked for is valid,
    since it holds no call that could fail. Whether really no tool fits is left to r_curr: a
    question that a tool answers is one where the Solver calls it, and there p = 0.
    """
    if not draft.tools or draft.calls is None or draft.malformed:
        return 0.0
    menu = {tool["name"]: set(tool["required"]) for tool in draft.tools}
    known = len(menu) == len(draft.tools) and all(call["name"] in menu for call in draft.calls)
    # A tool that is not there needs what no call can give.
    required = all(menu.get(call["name"], {None}) <= set(call["arguments"]) for call in draft.calls)
    valued = not draft.calls or any(call["arguments"] for call in draft.calls)
    return 0.4 * known + 0.4 * required + 0.2 * (
        not grounding or valued and grounded(draft.calls, draft.question or ""))


def curriculum_reward(draft, difficulty, semantic):
    """r_curr = 0.5 r_diff + 0.5 r_sem, 0 unless tools and gold parse   (Eq. 5)

    A term that is None (an ablation) leaves the other one alone with the whole weight.
    """
    terms = [term for term in (difficulty, semantic) if term is not None]
    parses = draft.tools and draft.calls is not None
    return sum(terms) / len(terms) if terms and parses else 0.0


def is_placeholder(question):
    """Is the question an echo of the prompt, or under 8 characters?"""
    text = question.strip().lower()
    return (len(text) < 8 or text.startswith(("...", "<", "[", "{"))
            or any(echo in text for echo in ECHOES))


def reward(draft, difficulty, semantic, grounding=True):
    """Reward parts of one completion, each in 0..1; the total is the sum (all weights are 1).

    A placeholder question gets 0 in every part; without a question block the other parts count.
    The names in this dict are the only ones: logs and tables take them from here.

    Args:
        draft: from `read`.
        difficulty: r_diff, curriculum.band_pass of the Solver's pass rate; None leaves it out.
        semantic: r_sem, the judge's score; None leaves it out.
        grounding: whether r_valid asks for grounded values.
    """
    parts = {"format": format_reward(draft),
             "validity": validity_reward(draft, grounding),
             "curriculum": curriculum_reward(draft, difficulty, semantic)}
    placeholder = draft.question is not None and is_placeholder(draft.question)
    return dict.fromkeys(parts, 0.0) if placeholder else parts
