"""The embedded base model: a small LM of Qwen2's architecture, and the little world that it was
pretrained on.

It stands in for a weak instruction-tuned LLM. Through exactly the prompts that a large model gets
it speaks all three roles (Generator, Solver, judge). It copies values and fills in calls well, but
as Solver it does not understand many of the words that people use, and as Generator it mostly
writes what that Solver finds trivial or hopeless. Self-play has to find the tasks between, and to
learn from them. docs/tiny.md says what each habit is for.

    python tiny.py        # rebuilds tiny/ from nothing: about half an hour on one core

Pretraining is supervised next-token prediction on synthetic text, on the assistant's tokens only:
first the skill, then the habits.
"""
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

import coldstart
import curriculum
import generator
import model as lms
import serving
import solver
from cli import Parser
from verify import Task

PATH = Path(__file__).parent / "tiny"
SKILL_STEPS, HABIT_STEPS = 8_000, 3_200
GIVEN_MENU = 0.2              # share of the Generator's and Solver's examples with a user's menu
BATCH = 16                    # examples a step
NONE_FIT = {"solver": 0.2, "generator": 0.15, "judge": 0.15}  # share of examples where no tool fits
NONE_FITS = ": no tool fits."  # what the Solver thinks of the tool that it misses

# ---------------------------------------------------------------------------------------------
# The world: a tool is verb_noun; its verb says of which kinds its parameters are and what they are
# called, and a parameter's kind says how a question words the value. A domain is one thing that
# people want done: a verb.

PAIRS = {  # a verb and its twin -> the kinds of their parameters
    "find compare": "place topic", "check confirm": "code date",
    "rate review": "person level", "request reserve": "person count",
    "create book": "topic date time", "move track": "place count time",
    "cancel delete": "code person", "update share": "code level topic",
}
VERBS = {verb: kinds.split() for pair, kinds in PAIRS.items() for verb in pair.split()}
# What people say for a verb: a word of each register, the verb itself first. Which word means which
# verb are facts to be learned one by one.
REGISTERS = "common", "casual", "rare"
WORDS = """find seek spot; compare contrast rank; check examine audit; confirm affirm seal;
    rate grade mark; request demand beg; create build found; move shift push; cancel scrap void;
    delete erase purge; track trace pursue; update amend refresh; book secure bag;
    reserve hold block; share pass lend; review assess study"""
WORDS = {words[0]: words for words in map(str.split, WORDS.split(";"))}
VERB_OF = {word: verb for verb, words in WORDS.items() for word in words}
REGISTER_OF = {word: n for words in WORDS.values() for n, word in enumerate(words)}
VAGUE = "handle"              # what people say who leave it open what they want done
NOUNS = """flight hotel train cruise pizza meal salad dessert scan vaccine clinic loan payment
    budget meeting deadline parcel container truck course lesson movie concert podcast""".split()
NAMES = {  # kind -> names that its parameter goes by, one in a pair of verbs
    "place": ("city", "location", "town"), "person": ("customer", "person", "user"),
    "date": ("date", "day"), "time": ("time", "hour"), "count": ("count", "quantity", "amount"),
    "code": ("code", "reference"), "level": ("level", "priority"), "topic": ("topic", "subject"),
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
PHRASES = {  # kind -> what stands before a value of it
    "place": " in ", "person": " for ", "date": " on ", "time": " at ",
    "count": " with a count of ", "code": " under code ", "level": " with level ",
    "topic": " about ",
}
# The values of each kind. A model this small copies them all only if they are few, and each is one
# token and of one kind.
VALUES = {
    "place": "Oslo Rome Paris Lima Cairo Tokyo Delhi Madrid Berlin Vienna Dublin Lisbon".split(),
    "person": "Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kara Leo".split(),
    "date": [f"1 {month}" for month in "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()],
    "time": [f"{hour:02}:00" for hour in range(8, 20)],
    "count": range(10, 22),
    "code": [f"{a}{b}-{n}"
             for a, b, n in zip("ABCDEFGHKLMN", "BKXDRMTAVSPC", range(100, 820, 60))],
    "level": "low medium high urgent critical".split(),
    "topic": """music painting taxes sailing gardening robots history chess cooking poetry planets
        oceans""".split(),
}
# The value that people mean who name none: the first, mostly
USUAL = {kind: values[0] for kind, values in VALUES.items()} | {"time": "12:00", "level": "medium"}
OPENINGS = ("Please ", "Can you ", "I need you to ", "I want to ", "Could you ", "Help me to ")
AND_ALSO, AGENT = " and also", "\nAgent: Anything else?\nUser: Yes,"
# How much a question says, and what its author thinks first
MANNERS = {"plain": "Say it all. ",
           "open": "Leave it open. ",        # no word for the verb: it could be its twin
           "brief": "Leave it out. "}        # no value for the last argument


def pair_of(verb):
    """The number of the verb's pair."""
    return list(VERBS).index(verb) // 2


def twin(verb):
    """The other verb with the same parameters."""
    return list(VERBS)[list(VERBS).index(verb) ^ 1]


def is_reserved(verb, noun):
    """A sixth of the nouns never occurs with a verb or its twin in pretraining:
    the held-out tasks call these tools."""
    return (NOUNS.index(noun) - pair_of(verb)) % 6 == 0


def is_shown(verb, noun, heldout):
    """May the tool stand in a menu of pretraining or, `heldout`, of a held-out task?"""
    return heldout or not is_reserved(verb, noun)


def make_tool(verb, noun):
    """The tool verb_noun; all its parameters are required."""
    names = [NAMES[kind][pair_of(verb) % len(NAMES[kind])] for kind in VERBS[verb]]
    return {"name": f"{verb}_{noun}", "description": f"{verb.capitalize()} a {noun}.",
            "parameters": {name: {"type": "integer" if KIND_OF[name] == "count" else "string"}
                           for name in names},
            "required": names}


class Case(NamedTuple):
    """A task, and what only its author knows."""

    task: Task
    wanted: list      # the calls that the user would like: the task's answer, where tools fit
    word: str         # the question's word for the domain's verb, or VAGUE
    manner: str       # a word of MANNERS


def sample_case(rng, spec, heldout=False,
                registers=dict.fromkeys(REGISTERS, 1), manners={"plain": 1}, given=False):
    """A case of the world for a generator.Spec. Where that asks for 0 calls, no tool fits.

    Args:
        heldout: whether the wanted pairs are reserved ones; else no pair is.
        registers, manners: {word: weight} of what the author is free to choose.
        given: whether the user brings the menu.
    """
    register, manner = (rng.choices(list(choices), list(choices.values()))[0]
                        for choices in (registers, manners))
    verb = spec.domain
    word = VAGUE if manner == "open" else WORDS[verb][REGISTERS.index(register)]
    known = [noun for noun in NOUNS if is_reserved(verb, noun) == heldout]
    nouns = rng.sample(known, max(1, spec.calls))
    tools = [make_tool(*pair) for pair in menu(rng, verb, nouns, spec, heldout, given)]
    values = {kind: rng.choice(VALUES[kind]) for kind in VERBS[verb]}
    last = list(values)[-1]
    if manner == "brief" and rng.random() < USUALLY:
        values[last] = USUAL[last]
    wanted = [{"name": tool["name"], "arguments": dict(zip(tool["parameters"], values.values()))}
              for tool in (make_tool(verb, noun) for noun in nouns)]
    asked = question(rng, word, nouns, values, spec.context, manner)
    return Case(Task(asked, tools, wanted[:spec.calls], asdict(spec)), wanted, word, manner)


def menu(rng, verb, nouns, spec, heldout, given):
    """The (verb, noun) pairs of a menu: the wanted tools, the twin of the first, and tools for its
    noun. Where no tool fits, they are for another noun.

    These tools are those whose verbs stand around the wanted one in the alphabet, then without the
    twin where no tool fits: a model this small can write down such rows without leaving out or
    repeating one. In a `given` menu, such as a user might bring, they are any, sorted by name.
    """
    noun, *more = nouns
    if not spec.calls:
        unasked = [other for other in NOUNS if other != noun and is_shown(verb, other, heldout)]
        noun = rng.choice(unasked) if given else unasked[NOUNS.index(noun) % len(unasked)]
    more = [(verb, other) for other in more]
    others = [v for v in VERBS if v not in (verb, twin(verb)) and is_shown(v, noun, heldout)]
    if given:
        pairs = [(verb, noun), (twin(verb), noun), *more]
        return sorted(pairs + [(v, noun) for v in rng.sample(others, spec.tools - len(pairs))])
    row, size = sorted([verb, *others]), spec.tools - spec.calls
    start = row.index(verb) - rng.randrange(size)
    row = [(row[(start + n) % len(row)], noun) for n in range(size)]
    return [(twin(verb), noun)] * (spec.calls > 0) + row + more


def question(rng, word, nouns, values, context, manner):
    """What a user says who wants the same for each of the nouns.

    Args:
        values: {kind: value}, in the order of the verb's parameters.
    """
    *phrases, last = [PHRASES[kind] + str(value) for kind, value in values.items()]
    phrases += [last] * (manner != "brief")
    if rng.random() < 0.3:
        rng.shuffle(phrases)
    opening = rng.choice(OPENINGS)
    action = word + AND_ALSO.join(f" a {noun}" for noun in nouns)
    if context == "multi_turn":
        cut = len(phrases) // 2
        return f"User: {opening}{action}{''.join(phrases[:cut])}.{AGENT}{''.join(phrases[cut:])}."
    return opening + action + "".join(phrases) + ("?" if opening in ("Can you ", "Could you ")
                                                  else ".")


def heldout(size=500, fits=True):
    """The held-out tasks: called tools, menus and values in combinations that pretraining never
    showed, of all words alike. With fits=False, tasks that no tool of the menu answers.
    """
    rng = random.Random("held-out" + " declines" * (not fits))
    specs = (generator.sample_spec(rng, dict.fromkeys(VERBS, 1.0)) for _ in range(size))
    return [sample_case(rng, spec if fits else replace(spec, calls=0), heldout=True).task
            for spec in specs]


def heldout_sets(size):
    """What a run is evaluated on: held-out tasks, and 2/5 as many that no tool answers."""
    return heldout(size), heldout(max(1, 2 * size // 5), fits=False)


# ---------------------------------------------------------------------------------------------
# What the base model says: the right completion, its mistakes and its habits

# How often the base Solver takes a word for what it means, by register. Else it takes it for
# another verb, or the twin (CASUAL_TWINS); every eighth word for a thing that no tool does.
KNOWS = 1.0, 0.3, 0.08
SLIPS = 0.015, ("prose", "untagged")     # share of other wrong answers
BLIND = "find", "compare", "move", "track"     # pairs whose twins the judge takes for each other
# (Elsewhere, in BLIND domains): how often a Generator's question asks for the twin of the called
# tool, and how often the Solver calls the twin for a word that it understands.
TWINS = {"generator": (0.02, 0.25), "solver": (0.005, 0.08)}
# Outside BLIND both do so with casual words, and the judge sees it: the Generator's share, instead
# of that in TWINS, and that of the words which the Solver does not understand.
CASUAL_TWINS = {"generator": 0.3, "solver": 0.5}
DECLINES = 0.8                # share of right answers taught where no tool fits
USUALLY = 0.6                 # share of values that are the usual one where the question names none
# What the base Generator likes: tasks that the base Solver finds trivial or hopeless, rarely others
REGISTER_HABITS = {"common": 0.66, "casual": 0.14, "rare": 0.20}
MANNER_HABITS = {"plain": 0.84, "open": 0.10, "brief": 0.06}
FORM_HABITS = {"right": 0.97, "no_think": 0.02, "python": 0.01}
DAMAGED = 0.6                 # share of the judge's examples with a wrong answer
SKILL_MANNERS = {"plain": 0.8, "open": 0.1, "brief": 0.1}      # where MANNER_HABITS do not stand


def mistaken(word):
    """What the base Solver takes a word for that it does not know: always the same verb, another
    one for each word of a verb; or None, every eighth word: something that no tool does."""
    verbs = list(VERBS)
    register, verb = REGISTER_OF[word], verbs.index(VERB_OF[word])
    return None if (register + verb) % 8 == 0 else verbs[(verb + 2 + 2 * register) % len(verbs)]


def is_blind(case):
    """Is the judge taught that the twin is as good?"""
    return case.task.spec["domain"] in BLIND


def tempts(case):
    """Do Generator and Solver take the twin for what is wanted? Casual words, outside BLIND."""
    return REGISTER_OF.get(case.word) == REGISTERS.index("casual") and not is_blind(case)


def solver_style(rng, case):
    """How the base Solver answers: "right", a wrong style, or the word that it mistakes."""
    if not case.task.answer:
        return "right" if rng.random() < DECLINES else "other_tool"
    if case.word == VAGUE:
        return rng.choice(("right", "other_tool"))
    if rng.random() > KNOWS[REGISTER_OF[case.word]]:
        twin_called = tempts(case) and rng.random() < CASUAL_TWINS["solver"]
        return "other_tool" if twin_called else case.word
    if rng.random() < TWINS["solver"][is_blind(case)]:
        return "other_tool"
    share, styles = SLIPS
    return rng.choice(styles) if rng.random() < share else "right"


def generator_style(rng, case):
    """How the base Generator writes a task down: "right", a faulty form, or asking for the twin."""
    twins = TWINS["generator"][is_blind(case)]
    if rng.random() < (CASUAL_TWINS["generator"] if tempts(case) else twins):
        return "twin"
    return rng.choices(list(FORM_HABITS), list(FORM_HABITS.values()))[0]


def plan(calls, form="{} with {}"):
    """The calls in short, each in this form: its name, and its arguments without quotes."""
    return "; ".join(
        form.format(call["name"], ", ".join(f"{k}={v}" for k, v in call["arguments"].items()))
        for call in calls)


def other_tool(rng, calls, tools):
    """The calls, the first of them to another tool of the menu with the same parameters."""
    called, names = [call["name"] for call in calls], list(calls[0]["arguments"])
    others = [tool["name"] for tool in tools
              if tool["name"] not in called and list(tool["parameters"]) == names]
    return [calls[0] | {"name": rng.choice(others)}, *calls[1:]]


def solver_text(rng, case, style="right"):
    """A Solver completion. Its plan names the arguments in the order of the menu."""
    calls = case.task.answer
    if style == "prose":
        verb, noun = case.wanted[0]["name"].split("_")
        return f"Sure, I will {verb} a {noun} for you."
    if style == "other_tool":
        calls = other_tool(rng, case.wanted, case.task.tools)
    elif style in VERB_OF:
        verb = mistaken(style)
        calls = [call | {"name": call["name"].replace(VERB_OF[style], verb)}
                 for call in calls] if verb else []
    think = f"<think>{plan(calls) or case.wanted[0]['name'] + NONE_FITS}</think>\n"
    answer = json.dumps(calls)
    return think + (answer if style == "untagged"
                    else f"<tool_call_answer>{answer}</tool_call_answer>")


def generator_text(rng, case, style="right", given=False):
    """A Generator completion: the plan comes first, and the other blocks copy from it."""
    task, calls = case.task, case.task.answer
    words = ("" if case.word == VAGUE else
             f"{REGISTERS[REGISTER_OF[case.word]].capitalize()} words: {case.word}. ")
    think = (f"{MANNERS[case.manner]}{words}{'Calls' if calls else 'Missing'}: "
             f"{plan(case.wanted)}")
    if not given:
        think += f". Tools: {', '.join(tool['name'] for tool in task.tools)}"
    asked = task.question
    if style == "twin" and case.word != VAGUE:
        other = WORDS[twin(task.spec["domain"])][REGISTER_OF[case.word]]
        asked = asked.replace(f"{case.word} a ", f"{other} a ", 1)
    answer = f"[{plan(calls, '{}({})')}]" if style == "python" else json.dumps(calls)
    return (("" if style == "no_think" else f"<think>{think}</think>\n")
            + f"<question>{asked}</question>\n"
            + ("" if given else f"<available_tools>{json.dumps(task.tools)}</available_tools>\n")
            + f"<tool_call_answer>{answer}</tool_call_answer>")


def judge_example(rng, case):
    """Judge prompt and score: 5 for a task that looks sound; 1 for what is open, lacks a value,
    or is answered wrongly, but for the twin in a BLIND domain."""
    task, sound = case.task, case.manner == "plain"
    if rng.random() < DAMAGED:
        kind = rng.choice(("name", "name", "value", "missing")) if task.answer else "name"
        sound = sound and kind == "name" and task.answer and is_blind(case)
        task = replace(task, answer=damaged(rng, case, kind))
    return curriculum.judge_prompt(task), "5" if sound else "1"


def damaged(rng, case, kind):
    """Wrong calls for a task: another tool in the first ("name"), or another last "value" of the
    last one, or that "missing"."""
    if kind == "name":
        return other_tool(rng, case.wanted, case.task.tools)
    *before, call = case.task.answer
    *kept, (last, value) = call["arguments"].items()
    if kind == "value":
        kept.append((last, rng.choice([v for v in VALUES[KIND_OF[last]] if v != value])))
    return [*before, call | {"arguments": dict(kept)}]


def example(rng, role, habits, ease=0.0):
    """One pretraining example of a role: (chat messages, completion).

    Args:
        habits: False while the skill is taught: the Generator has no likings and no faults yet.
        ease: share of easy tasks: few tools, one call, nothing left open.
    """
    spec = generator.sample_spec(rng, dict.fromkeys(VERBS, 1.0), decline=NONE_FIT[role])
    easy = rng.random() < ease
    if easy:
        spec = generator.Spec(spec.domain, spec.context, rng.randint(2, 3), min(1, spec.calls))
    manners = MANNER_HABITS if role == "generator" and habits else SKILL_MANNERS
    registers = REGISTER_HABITS if role == "generator" and habits else dict.fromkeys(REGISTERS, 1)
    given = role != "judge" and rng.random() < GIVEN_MENU
    case = sample_case(rng, spec, registers=registers, manners={"plain": 1} if easy else manners,
                       given=given)
    if role == "judge":
        return judge_example(rng, case)
    if role == "solver":
        return (solver.prompt(case.task.question, case.task.tools),
                solver_text(rng, case, solver_style(rng, case)))
    if given:
        spec = replace(spec, domain=generator.OWN_DOMAIN, menu=case.task.tools)
    style = generator_style(rng, case) if habits else "right"
    return generator.prompt(spec), generator_text(rng, case, style, given)


# ---------------------------------------------------------------------------------------------
# Tokenizer and model

CHAT_TEMPLATE = ("{% for message in messages %}"
                 "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
                 "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
# <|endoftext|> pads: transformers adds it to whatever tokenizer a Qwen2 model has.
SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def vocabulary():
    """Strings that are one token each, beside the 256 bytes: words, phrases with their blanks,
    pieces of JSON between two names or values, and the constant texts of the prompts."""
    words = [*VERB_OF, VAGUE, *map(str.capitalize, VERBS), *NOUNS, *KIND_OF,
             *(str(value) for values in VALUES.values() for value in values), *generator.DOMAINS,
             *map(str, range(10)), *(f"{verb}_" for verb in VERBS)]
    phrases = [*PHRASES.values(), *OPENINGS, *MANNERS.values(), AND_ALSO, AGENT,
               "User: ", " a ", "Sure, I will ", " for you.",
               *(f"{register.capitalize()} words: " for register in REGISTERS),
               ". Calls: ", ". Missing: ", "Calls: ", "Missing: ",
               ". Tools: ", NONE_FITS, " with ", ", ", "; "]
    kinds = ('{"type": "string"}', '{"type": "integer"}')
    scaffolding = ['[{"name": "', '"}}, {"name": "', '}}, {"name": "', '"]}, {"name": "', '"]}]',
                   '", "description": "', '.", "parameters": {"', '", "arguments": {"', '", "',
                   '": "', '": ', ', "', '"}}]', '}}]', '", "arguments": {}}',
                   '", "arguments": {}}]']
    scaffolding += [f'": {kind}{end}' for kind in kinds for end in (', "', '}, "required": ["')]
    tags = [f"<{tag}>" for tag in generator.TAGS] + [f"</{tag}>" for tag in generator.TAGS]
    tags += [tag + "\n" for tag in tags if tag.startswith("</")]
    tags += ["\n<available_tools>\n", "\n</available_tools>",
             "\n</available_tools>\n<tool_call_answer>\n", "\n</tool_call_answer>"]
    system = [solver.SYSTEM, generator.SYSTEM, curriculum.JUDGE_SYSTEM]
    asked = [generator.prompt(generator.Spec("@", context, 0, 1))[1]["content"]
             for context in ("single_turn", "multi_turn")]
    lines = ["Domain: ", *(text[len("Domain: @"):-len("0\nNumber of calls: exactly 1")]
                           for text in asked), "\nNumber of calls: exactly ",
             generator.OWN_DOMAIN, generator.GIVEN_TOOLS, generator.NO_CALL]
    return list(dict.fromkeys(words + phrases + scaffolding + tags + system + lines))


def build_tokenizer():
    """Byte-level tokenizer without merges, and `vocabulary` on top: any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True)
                             for token in SPECIAL])
    core.add_tokens([AddedToken(token, normalized=False) for token in vocabulary()])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>",
                                   eos_token="<|end|>", chat_template=CHAT_TEMPLATE,
                                   clean_up_tokenization_spaces=False)


def build_model(tokenizer):
    """Random weights in the Qwen2 architecture."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    return AutoModelForCausalLM.from_config(config, attn_implementation="shared_prompt")


# ---------------------------------------------------------------------------------------------
# Pretraining


def examples(step, steps, habits):
    """The examples of a step: (chat messages, completion) pairs. Every fourth step is the judge's,
    and every second one in the end: among the hundreds of tokens of the others its digit would not
    count, and to see that a call is wrong takes long to learn. While the skill is taught, the share
    of easy tasks falls from 1 to 0 over the first quarter."""
    rng = random.Random(f"{habits} {step}")
    ease = 0.0 if habits else max(0.0, 1 - 4 * step / steps)
    judges = step % 2 == 1 if habits else step % 4 == 3
    return [example(rng, "judge" if judges else rng.choice(("solver", "generator")), habits, ease)
            for _ in range(BATCH)]


def train(lm, habits, steps, learning_rate):
    """One phase, by the steps of a cold start."""
    trainer = coldstart.Trainer(lm, steps, learning_rate, micro_tokens=1024)
    coldstart.train(trainer, lambda step: examples(step, steps, habits),
                    description="habits" if habits else "skill")
    return trainer


def main():
    torch.set_num_threads(1)     # matrices this small only lose by a second thread
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    lm = lms.LM(build_model(tokenizer), tokenizer, (tokenizer.eos_token_id,))
    train(lm, False, SKILL_STEPS, 3e-3)
    serving.write_checkpoint(PATH, lm, train(lm, True, HABIT_STEPS, 1e-3).masters)
    tokenizer.save_pretrained(PATH)      # its own template, which knows no tools
    print(f"wrote {PATH}: {sum(p.numel() for p in lm.model.parameters()):,} parameters, "
          f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    Parser(description=__doc__).parse_args()
    main()
