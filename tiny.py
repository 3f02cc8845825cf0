"""The embedded base model: a small LM of Qwen2's architecture, and the little world that it was
pretrained on.

It stands in for a weak instruction-tuned LLM. Through exactly the prompts that a large model gets
it speaks all three roles (Generator, Solver, judge). It knows how to do the job, and mostly does
not do it: as Solver it falls into a wrong habit at each of three hurdles, and as Generator it
mostly writes what that Solver finds trivial or hopeless. Self-play has to find the tasks between,
and the right behaviour in them. docs/tiny.md says what each habit is for.

    python tiny.py        # rebuilds tiny/ from nothing: about half an hour on one core

Pretraining is supervised next-token prediction on synthetic text, on the assistant's tokens only:
first the skill, then the habits.
"""
import itertools
import json
import random
from dataclasses import replace
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
from verify import Task

PATH = Path(__file__).parent / "tiny"
SKILL_STEPS, HABIT_STEPS = 8_000, 1_200
GIVEN_MENU = 0.2              # share of the Generator's examples where the prompt brings the tools
BATCH = 16                    # examples a step
HELDOUT_TASKS = 500
NONE_FIT = {"solver": 0.2, "generator": 0.15, "judge": 0.15}  # share of examples where no tool fits
NONE_FITS = ": no tool fits."  # what the Solver thinks of the tool that it misses

# ---------------------------------------------------------------------------------------------
# The world: a tool is verb_noun; its verb says of which kinds its parameters are, its domain says
# what they are called, and a parameter's kind says how a question words the value

VERBS = {
    "find": "place topic", "compare": "topic level",
    "check": "code date", "confirm": "code time",
    "rate": "person level", "request": "person count",
    "create": "topic date time", "move": "place count time",
    "cancel": "code person", "delete": "person code",
    "track": "code place date", "update": "code level count",
    "book": "place date person", "reserve": "person time count",
    "share": "code person topic", "review": "person level code",
}
# What people say for a verb: two words that the base Solver knows, two that it half knows, and two
# that it hardly knows. Which word means which verb is a fact of its own, to be learned one by one.
WORDS = {
    "find": "find locate seek hunt discover spot", "compare": "compare match contrast weigh rank pit",
    "check": "check inspect examine verify audit probe",
    "confirm": "confirm approve affirm settle okay seal",
    "rate": "rate score grade judge mark value", "request": "request order demand claim beg petition",
    "create": "create make build add launch found",
    "move": "move relocate push postpone carry bring",
    "cancel": "cancel abandon scrap revoke void undo", "delete": "delete remove erase wipe clear purge",
    "track": "track follow trace monitor watch pursue",
    "update": "update change edit amend revise refresh",
    "book": "book arrange secure take get buy", "reserve": "reserve hold keep save bag block",
    "share": "share send forward pass spread lend",
    "review": "review assess evaluate critique study read",
}
WORDS = {verb: words.split() for verb, words in WORDS.items()}
VERB_OF = {word: verb for verb, words in WORDS.items() for word in words}
NOUNS = {
    "travel": "flight hotel train cruise visa ferry",
    "food_ordering": "pizza meal salad dessert burger sandwich",
    "healthcare": "checkup scan vaccine prescription therapist clinic",
    "finance": "loan payment budget transfer deposit portfolio",
    "scheduling": "meeting reminder shift deadline holiday calendar",
    "logistics": "parcel shipment container warehouse delivery truck",
    "education": "course lesson tutor quiz lecture diploma",
    "entertainment": "movie concert game festival show podcast",
}
NOUNS = {domain: nouns.split() for domain, nouns in NOUNS.items()}
NAMES = {  # kind -> names that its parameter goes by, one in a domain
    "place": ("city", "location", "town"), "person": ("customer", "person", "user"),
    "date": ("date", "day"), "time": ("time", "hour"), "count": ("count", "quantity", "amount"),
    "code": ("code", "reference"), "level": ("level", "priority"), "topic": ("topic", "subject"),
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
PHRASES = {
    "place": " in ", "person": " for ", "date": " on ",
    "time": " at ", "count": " with a count of ", "code": " under code ", "level": " with level ",
    "topic": " about ",
}
CITIES = """Oslo Rome Paris Lima Cairo Tokyo Delhi Madrid Berlin Vienna Dublin Lisbon Prague Athens
    Warsaw Boston Denver Dallas Miami Seattle Chicago Austin Toronto Quito Havana Nairobi Accra
    Lagos Tunis Zurich Geneva Munich Milan Naples Turin Porto Seville Lyon Nice Bergen Malmo Riga
    Vilnius Sofia Zagreb Bern Ghent Leeds York Perth Sydney Hanoi Manila Seoul Osaka Kyoto Busan
    Mumbai Jaipur Lahore""".split()
PEOPLE = """Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kara Leo Mia Noah Olga Paul Quinn
    Rosa Sam Tina Umar Vera Will Xena Yara Zoe Adam Bella Chris Diana Eric Fiona George Helen Ivan
    Julia Kevin Laura Mark Nina Oscar Petra Ravi Sofie Tom Ursula Victor Wanda Yusuf Zara""".split()
TOPICS = """music painting taxes sailing gardening robots history chess cooking poetry planets
    oceans volcanoes dinosaurs castles bridges coffee cheese wine bread cycling hiking skiing tennis
    football yoga dancing theatre insects birds horses whales forests deserts rivers islands
    computers rockets trains clocks""".split()
LEVELS = "low medium high urgent critical".split()
DATES = [f"{day} {month}" for month in "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
         for day in (1, 8, 15, 22)]
TIMES = [f"{hour:02}:{minute:02}" for hour in range(7, 23) for minute in (0, 15, 30, 45)]
CODES = [f"{a}{b}-{n}" for a, b, n in zip("ABCDEFGHKLMNPRSTVX" * 3, "BKXDRMTAVSPCLHNFGE" * 3,
                                          range(100, 900, 15))]
# The values of each kind: each is one token and of one kind only, or a model this small would not
# copy them all.
VALUES = {"place": CITIES, "person": PEOPLE, "date": DATES,
          "time": TIMES, "count": range(10, 60), "code": CODES, "level": LEVELS, "topic": TOPICS}
USUAL = {   # the value that people mean who name none
    "place": "Oslo", "person": "Anna", "date": "1 Jan",
    "time": "12:00", "count": 10, "code": CODES[0], "level": "medium", "topic": "music"}
OPENINGS = ("Please ", "Can you ", "I need you to ", "I want to ", "Could you ", "Help me to ")
AND_ALSO, AGENT, OR = " and also ", "\nAgent: Anything else?\nUser: Yes,", " or "
# How much a question says, and what its author thinks first
MANNERS = {"plain": "Say it all. ",
           "open": "Leave it open. ",        # two values for the last argument: nobody can tell
           "brief": "Leave it out. "}        # no value for it


def is_reserved(domain, verb, noun):
    """One noun for each verb of a domain never occurs with it in pretraining:
    the held-out tasks call these tools."""
    return NOUNS[domain].index(noun) == list(VERBS).index(verb) % len(NOUNS[domain])


def make_tool(domain, verb, noun):
    """The tool verb_noun of a domain; all its parameters are required."""
    turn = list(NOUNS).index(domain)
    names = [NAMES[kind][turn % len(NAMES[kind])] for kind in VERBS[verb].split()]
    return {"name": f"{verb}_{noun}", "description": f"{verb.capitalize()} a {noun}.",
            "parameters": {name: {"type": "integer" if KIND_OF[name] == "count" else "string"}
                           for name in names},
            "required": names}


class Case(NamedTuple):
    """A task, and what only its author knows."""

    task: Task
    wanted: list      # the calls that the user would like: the task's answer, where tools fit
    words: list       # the question's word for each of them
    manner: str       # a word of MANNERS


def sample_case(rng, spec, heldout=False, manners={"plain": 1}, words=dict.fromkeys(VERB_OF, 1)):
    """A case of the world for a generator.Spec. Where that asks for 0 calls, no tool fits.

    Args:
        heldout: whether the wanted pairs are reserved ones; else no pair is.
        manners, words: {word: weight} of what the author is free to choose.
    """
    manner = rng.choices(list(manners), list(manners.values()))[0]
    pairs = [(v, n) for v, n in itertools.product(VERBS, NOUNS[spec.domain])
             if heldout or not is_reserved(spec.domain, v, n)]
    chosen, said = [], []
    while len(chosen) < max(1, spec.calls):
        word = rng.choices(list(words), list(words.values()))[0]
        noun = rng.choice([n for v, n in pairs if v == VERB_OF[word]
                           and is_reserved(spec.domain, v, n) == heldout])
        if noun not in [other for _, other in chosen]:
            chosen.append((VERB_OF[word], noun))
            said.append(word)
    tools = [make_tool(spec.domain, *pair) for pair in menu(rng, pairs, chosen, spec)]
    fitting = [make_tool(spec.domain, *pair) for pair in chosen]
    wanted = [{"name": tool["name"],
               "arguments": {name: rng.choice(VALUES[KIND_OF[name]]) for name in tool["parameters"]}}
              for tool in fitting]
    if manner == "brief" and rng.random() < USUALLY:
        for call in wanted:
            name = list(call["arguments"])[-1]
            call["arguments"][name] = USUAL[KIND_OF[name]]
    task = Task(question(rng, wanted, said, spec.context, manner), tools, wanted[:spec.calls],
                {"domain": spec.domain, "context": spec.context,
                 "tools": spec.tools, "calls": spec.calls})
    return Case(task, wanted, said, manner)


def menu(rng, pairs, chosen, spec):
    """The pairs of a menu: a twin of the wanted tool, with the same verb and so the same parameters,
    and the tools for the wanted noun whose verbs stand around the wanted one in the alphabet. A
    model this small can write down such rows without leaving out or repeating one. Where no tool
    fits, the row is for the twin's noun."""
    (verb, noun), *more = chosen
    nouns = [other for v, other in pairs if v == verb and (v, other) not in more]
    twin = verb, nouns[(nouns.index(noun) + 1) % len(nouns)]
    if not spec.calls:
        noun = twin[1]
    row, size = sorted(pair for pair in pairs if pair[1] == noun), spec.tools - spec.calls
    start = row.index((verb, noun)) - rng.randrange(size)
    row = [row[(start + n) % len(row)] for n in range(size)]
    return [twin] * (spec.calls > 0) + row + more


def question(rng, calls, words, context, manner):
    """What a user says who wants the calls."""
    clauses = []
    for call, word in zip(calls, words):
        verb, noun = call["name"].split("_")
        *phrases, last = [PHRASES[KIND_OF[name]] + str(value)
                          for name, value in call["arguments"].items()]
        if manner == "open":
            kind = VERBS[verb].split()[-1]
            both = [last, PHRASES[kind] + str(rng.choice(VALUES[kind]))]
            rng.shuffle(both)
            last = both[0] + OR + both[1][len(PHRASES[kind]):]
        phrases += [last] * (manner != "brief")
        if rng.random() < 0.3:
            rng.shuffle(phrases)
        clauses.append((f"{word} a {noun}", phrases))
    opening = rng.choice(OPENINGS)
    if context == "multi_turn":
        (action, phrases), cut = clauses[0], len(clauses[0][1]) // 2
        return f"User: {opening}{action}{''.join(phrases[:cut])}.{AGENT}{''.join(phrases[cut:])}."
    asked = AND_ALSO.join(action + "".join(phrases) for action, phrases in clauses)
    return opening + asked + ("?" if opening in ("Can you ", "Could you ") else ".")


def heldout(size=HELDOUT_TASKS, fits=True):
    """The held-out tasks: called tools, menus and values in combinations that pretraining never
    showed, of all words alike. With fits=False, tasks that no tool of the menu answers.
    """
    rng = random.Random("held-out" + " declines" * (not fits))
    domains = dict.fromkeys(NOUNS, 1.0)
    specs = (generator.sample_spec(rng, domains) for _ in range(size))
    return [sample_case(rng, spec if fits else replace(spec, calls=0), heldout=True).task
            for spec in specs]


# ---------------------------------------------------------------------------------------------
# What the base model says: the right completion, and its habits

# How often the base Solver takes a word for what it means, by the word's place in WORDS. Else it
# takes it for another verb; every fourth word it takes for a thing that no tool does.
KNOWS = (1.0, 1.0, 0.4, 0.4, 0.1, 0.1)
SLIPS = 0.02, ("prose", "untagged", "other_tool")     # share of other wrong answers, anywhere
SLANG = (3, 5)                # places in WORDS of what the judge likes less
DECLINES = 0.8                # share of right answers where no tool fits
USUALLY = 0.6                 # share of values that are the usual one where the question names none
# What the base Generator likes: tasks that the base Solver finds trivial or hopeless, rarely others
MANNER_HABITS = {"plain": 0.90, "open": 0.05, "brief": 0.05}
WORD_HABITS = {word: (0.37, 0.37, 0.03, 0.03, 0.10, 0.10)[words.index(word)]
               for words in WORDS.values() for word in words}
FORM_HABITS = {"right": 0.94, "no_think": 0.03, "python": 0.03}
TWINS, BLIND = {False: 0.05, True: 0.90}, ("finance", "education")   # where it mistakes the tool
SKILL_MANNERS = {"plain": 0.8, "open": 0.1, "brief": 0.1}


def mistaken(word):
    """What the base Solver takes a word for that it does not know: a verb, another one for each
    word, or None: that no tool does it."""
    verbs = list(VERBS)
    place, verb = WORDS[VERB_OF[word]].index(word), verbs.index(VERB_OF[word])
    return None if (place + verb) % 4 == 0 else verbs[(verb + 1 + 2 * place) % len(verbs)]


def solver_style(rng, case):
    """How the base Solver answers: "right", a wrong style, or the first word that it mistakes."""
    if not case.task.answer:
        return "right" if rng.random() < DECLINES else "other_tool"
    for word in case.words:
        if rng.random() > KNOWS[WORDS[VERB_OF[word]].index(word)]:
            return word
    share, styles = SLIPS
    return rng.choice(styles) if rng.random() < share else "right"


def generator_style(rng, domain):
    """How the base Generator writes a task down."""
    if rng.random() < TWINS[domain in BLIND]:
        return "twin"
    return rng.choices(list(FORM_HABITS), list(FORM_HABITS.values()))[0]


def plan(calls):
    """The calls in short, for a <think> block."""
    return "; ".join(f"{call['name']} with " + ", ".join(
        f"{name}={value}" for name, value in call["arguments"].items()) for call in calls)


def python_syntax(calls):
    """The calls as Python would write them: not JSON."""
    return "[" + "; ".join(f"{call['name']}(" + ", ".join(
        f"{name}={value}" for name, value in call["arguments"].items()) + ")"
        for call in calls) + "]"


def other_tool(rng, calls, tools):
    """The calls, the first of them to its twin in the menu."""
    called, verb = [call["name"] for call in calls], calls[0]["name"].split("_")[0]
    twins = [tool["name"] for tool in tools
             if tool["name"] not in called and tool["name"].split("_")[0] == verb]
    return [calls[0] | {"name": rng.choice(twins)}, *calls[1:]]


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
        calls = [call | {"name": call["name"].replace(VERB_OF[style], verb)} if word == style
                 else call for call, word in zip(calls, case.words)] if verb else []
    think = f"<think>{plan(calls) or case.wanted[0]['name'] + NONE_FITS}</think>\n"
    answer = json.dumps(calls)
    return think + (answer if style == "untagged"
                    else f"<tool_call_answer>{answer}</tool_call_answer>")


def generator_text(rng, case, style="right"):
    """A Generator completion: the plan comes first, and the three other blocks copy from it."""
    task, calls = case.task, case.task.answer
    think = (f"{MANNERS[case.manner]}Words: {', '.join(case.words)}. {'Calls: ' if calls else 'Missing: '}{plan(case.wanted)}. "
             f"Tools: {', '.join(tool['name'] for tool in task.tools)}")
    asked = task.question
    if style == "twin" and calls:
        noun, other = (call["name"].split("_")[1]
                       for call in (calls[0], other_tool(rng, calls, task.tools)[0]))
        asked = asked.replace(f"{case.words[0]} a {noun}", f"{case.words[0]} a {other}")
    answer = python_syntax(calls) if style == "python" else json.dumps(calls)
    return (("" if style == "no_think" else f"<think>{think}</think>\n")
            + f"<question>{asked}</question>\n"
            + f"<available_tools>{json.dumps(task.tools)}</available_tools>\n"
            + f"<tool_call_answer>{answer}</tool_call_answer>")


def judge_example(rng, case):
    """Judge prompt and score: 5 for a sound task, 4 where a word is slang to its ears; 1 or 2 for
    what is open, lacks a value, or is answered wrongly."""
    task, damage = case.task, rng.choice((*[None] * 5, "name", "value", "missing"))
    calls = [call | {"arguments": dict(call["arguments"])} for call in task.answer]
    if case.manner in ("open", "brief"):
        return curriculum.judge_prompt(task), rng.choice("1112")
    if damage is None:
        return curriculum.judge_prompt(task), "4" if any(WORDS[VERB_OF[word]].index(word) in SLANG for word in case.words) else "5"
    if not calls:                    # a call where no tool fits
        calls = other_tool(rng, case.wanted, task.tools)
    elif damage == "name":
        calls = other_tool(rng, calls, task.tools)
    elif damage == "value":
        call = rng.choice(calls)
        name = rng.choice(list(call["arguments"]))
        old = call["arguments"][name]
        while call["arguments"][name] == old:
            call["arguments"][name] = rng.choice(VALUES[KIND_OF[name]])
    else:                            # an argument or, now and then, every call
        rng.choice(calls)["arguments"].popitem()
        calls = calls if rng.random() < 0.7 else []
    return curriculum.judge_prompt(replace(task, answer=calls)), rng.choice("1112")


def example(rng, habits, ease=0.0):
    """One pretraining example: (chat messages, completion).

    Args:
        habits: False while the skill is taught: every completion is right.
        ease: share of easy tasks (few tools, one call).
    """
    role = rng.choices(("solver", "generator", "judge"), weights=(0.40, 0.42, 0.18))[0]
    spec = generator.sample_spec(rng, dict.fromkeys(NOUNS, 1.0), decline=NONE_FIT[role])
    if rng.random() < ease:
        spec = generator.Spec(spec.domain, spec.context, rng.randint(2, 3), min(1, spec.calls))
    if role == "generator" and habits:
        case = sample_case(rng, spec, manners=MANNER_HABITS, words=WORD_HABITS)
        style = generator_style(rng, spec.domain)
    else:
        case = sample_case(rng, spec, manners=SKILL_MANNERS)
        style = solver_style(rng, case)
    task = case.task
    if role == "judge":
        return judge_example(rng, case)
    if role == "solver":
        return solver.prompt(task.question, task.tools), solver_text(rng, case, style)
    if rng.random() < GIVEN_MENU:
        spec = replace(spec, domain=generator.OWN_DOMAIN, menu=task.tools)
    return generator.prompt(spec), generator_text(rng, case, style)


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
    words = [*VERB_OF, *map(str.capitalize, VERBS), *itertools.chain(*NOUNS.values()), *KIND_OF,
             *(str(value) for values in VALUES.values() for value in values), *generator.DOMAINS,
             *map(str, range(10)), *(f"{verb}_" for verb in VERBS)]
    phrases = [*PHRASES.values(), *OPENINGS, *MANNERS.values(), AND_ALSO, AGENT, OR,
               "User: ", " a ", "Sure, I will ", " for you.", "Words: ", ". Calls: ", ". Missing: ", "Calls: ", "Missing: ",
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
    asked, talked, given, none = (
        generator.prompt(generator.Spec("@", context, 0, calls, menu))[1]["content"]
        for context, calls, menu in (("single_turn", 1, None), ("multi_turn", 1, None),
                                     ("single_turn", 1, []), ("single_turn", 0, None)))
    lines = ["Domain: ", *(text[len("Domain: @"):-len("0\nNumber of calls: exactly 1")]
                           for text in (asked, talked)), "\nNumber of calls: exactly ",
             generator.OWN_DOMAIN, given[len(asked):-len("[]")], none[len(asked):]]
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
    """The examples of a step: (chat messages, completion) pairs. While the skill is taught, the
    share of easy tasks falls from 1 to 0 over the first quarter."""
    rng = random.Random(f"{habits} {step}")
    ease = 0.0 if habits else max(0.0, 1 - 4 * step / steps)
    return [example(rng, habits, ease) for _ in range(BATCH)]


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
    print(f"wrote {PATH}: {sum(p.numel() for p in lm.model.parameters()):,} parameters, "
          f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
