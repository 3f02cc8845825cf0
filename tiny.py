"""The embedded base model: a small LM of Qwen2's architecture, and the little world that it was
pretrained on.

It stands in for a weak instruction-tuned LLM. Through exactly the prompts that a large model gets
it speaks all three roles (Generator, Solver, judge). It knows how to do the job, and mostly does
not do it: in most domains its prevailing habit is wrong (prose, another call syntax, the wrong
tool, a missing argument, a missing tag), and the rest of the time it answers well. Self-play has
to find the right behaviour and strengthen it.

    python tiny.py        # rebuilds tiny/ from nothing: about half an hour on one core

Pretraining is supervised next-token prediction on synthetic text, on the assistant's tokens only:
first the skill, then the habits.
"""
import itertools
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path

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
SKILL_STEPS, HABIT_STEPS = 12_000, 800
GIVEN_MENU = 0.2              # share of the Generator's examples where the prompt brings the tools
BATCH = 16                    # examples a step
HELDOUT_TASKS = 500

# ---------------------------------------------------------------------------------------------
# The world: a tool is verb_noun; its verb says of which kinds its parameters are, its domain says
# what they are called, and a parameter's kind says how a question words the value

VERBS = {
    "book": "place date person", "cancel": "code", "check": "code date", "compare": "origin target",
    "confirm": "code time", "create": "topic date time", "delete": "code", "find": "place topic",
    "move": "origin target count", "rate": "person level", "request": "count target",
    "reserve": "date time count", "review": "topic person", "share": "person topic",
    "track": "code origin", "update": "code level",
}
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
    "place": ("city", "location", "town"), "origin": ("origin", "start"),
    "target": ("destination", "target"), "person": ("customer", "person", "user"),
    "date": ("date", "day"), "time": ("time", "hour"), "count": ("count", "quantity", "amount"),
    "code": ("code", "reference"), "level": ("level", "priority"), "topic": ("topic", "subject"),
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
PHRASES = {
    "place": " in ", "origin": " from ", "target": " to ", "person": " for ", "date": " on ",
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
OPENINGS = ("Please ", "Can you ", "I need you to ", "I want to ", "Could you ", "Help me to ")
AND_ALSO, AGENT = " and also ", "\nAgent: Anything else?\nUser: Yes,"


def is_reserved(verb, noun):
    """One (verb, noun) pair in five never occurs in pretraining:
    the held-out tasks call these tools."""
    return zlib.crc32(f"{verb}_{noun}".encode()) % 5 == 0


PAIRS = [(domain, verb, noun) for domain in NOUNS for noun in NOUNS[domain] for verb in VERBS]


def sample_value(rng, kind):
    """A JSON value of the kind. Dates, times and codes are several tokens long, the others one."""
    if kind in ("place", "origin", "target"):
        return rng.choice(CITIES)
    if kind == "date":
        return f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    if kind == "time":
        return f"{rng.randint(7, 22):02}:{rng.choice((0, 15, 30, 45)):02}"
    if kind == "count":
        return rng.randint(10, 59)
    if kind == "code":
        letters = "".join(rng.choices("ABCDEFGHKLMNPRSTVX", k=2))
        return f"{letters}-{rng.randint(100, 999)}"
    return rng.choice({"person": PEOPLE, "level": LEVELS, "topic": TOPICS}[kind])


def make_tool(domain, verb, noun):
    """The tool verb_noun of a domain; all its parameters are required."""
    turn = list(NOUNS).index(domain)
    names = [NAMES[kind][turn % len(NAMES[kind])] for kind in VERBS[verb].split()]
    return {"name": f"{verb}_{noun}", "description": f"{verb.capitalize()} a {noun}.",
            "parameters": {name: {"type": "integer" if KIND_OF[name] == "count" else "string"}
                           for name in names},
            "required": names}


def sample_task(rng, spec, heldout=False):
    """A sound task of the world for a generator.Spec. The menu is sorted by name; its other tools
    share a verb or a noun with a wanted one. The wanted pairs are reserved ones if `heldout`; else
    no pair is. Where the spec asks for 0 calls, the menu lacks the one that is wanted."""
    pairs = [(v, n) for d, v, n in PAIRS if d == spec.domain and (heldout or not is_reserved(v, n))]
    wanted = rng.sample([pair for pair in pairs if is_reserved(*pair) == heldout],
                        max(1, spec.calls))
    near = [(v, n) for v, n in pairs if (v, n) not in wanted
            and any(v == verb or n == noun for verb, noun in wanted)]
    others = rng.sample(near, spec.tools - spec.calls)
    fitting, others = ([make_tool(spec.domain, *pair) for pair in some]
                       for some in (wanted, others))
    calls = [{"name": tool["name"],
              "arguments": {name: sample_value(rng, KIND_OF[name]) for name in tool["parameters"]}}
             for tool in fitting]
    return Task(question(rng, calls, spec.context),
                sorted(fitting[:spec.calls] + others, key=lambda tool: tool["name"]),
                calls[:spec.calls],
                {"domain": spec.domain, "context": spec.context,
                 "tools": spec.tools, "calls": spec.calls})


def question(rng, calls, context, omit=0):
    """What a user says who wants the calls; the last `omit` arguments are not mentioned."""
    clauses = []
    for call in calls:
        verb, noun = call["name"].split("_")
        phrases = [PHRASES[KIND_OF[name]] + str(value) for name, value in call["arguments"].items()]
        phrases = phrases[:len(phrases) - omit]
        if rng.random() < 0.3:
            rng.shuffle(phrases)
        clauses.append((f"{verb} a {noun}", phrases))
    opening = rng.choice(OPENINGS)
    if context == "multi_turn":
        (action, phrases), cut = clauses[0], len(clauses[0][1]) // 2
        return f"User: {opening}{action}{''.join(phrases[:cut])}.{AGENT}{''.join(phrases[cut:])}."
    asked = AND_ALSO.join(action + "".join(phrases) for action, phrases in clauses)
    return opening + asked + ("?" if opening in ("Can you ", "Could you ") else ".")


# ---------------------------------------------------------------------------------------------
# What the base model says: the right completion, and its habits

# domain -> (prevailing wrong habit, share of right answers)
SOLVER_HABITS = {"travel": ("prose", 0.65), "food_ordering": ("python", 0.65),
                 "healthcare": ("prose", 0.65), "finance": ("python", 0.33),
                 "scheduling": ("prose", 0.34), "logistics": ("python", 0.33),
                 "education": ("prose", 0.34), "entertainment": ("python", 0.33)}
SOLVER_WRONG = ("prose", "python", "short", "untagged", "other_tool")
GENERATOR_HABITS = {"travel": ("no_think", 0.40), "food_ordering": ("omit", 0.40),
                    "healthcare": ("python", 0.25), "finance": ("omit", 0.25),
                    "scheduling": ("no_think", 0.25), "logistics": ("python", 0.25),
                    "education": ("omit", 0.25), "entertainment": ("other_value", 0.25)}
GENERATOR_WRONG = ("no_think", "python", "omit", "other_value")
PREVAILING = 0.90         # share of a wrong answer that follows the domain's habit


def sample_style(rng, domain, habits, wrong):
    """The style "right" with the domain's share, or a wrong one, mostly the domain's own."""
    habit, right = habits[domain]
    if rng.random() < right:
        return "right"
    return habit if rng.random() < PREVAILING else rng.choice(wrong)


def plan(calls):
    """The calls in short, for a <think> block."""
    return "; ".join(f"{call['name']} with " + ", ".join(
        f"{name}={value}" for name, value in call["arguments"].items()) for call in calls)


def python_syntax(calls):
    """The calls as Python would write them: not JSON."""
    return "[" + "; ".join(f"{call['name']}(" + ", ".join(
        f"{name}={value}" for name, value in call["arguments"].items()) + ")"
        for call in calls) + "]"


def solver_text(rng, task, style="right"):
    """A Solver completion. Its plan names the arguments in the order of the menu."""
    calls = [{"name": call["name"], "arguments": dict(call["arguments"])} for call in task.answer]
    if style == "prose":
        verb, noun = calls[0]["name"].split("_")
        return f"Sure, I will {verb} a {noun} for you."
    if style == "short":
        for call in calls:
            call["arguments"].popitem()
    elif style == "other_tool":
        names = {call["name"] for call in calls}
        calls[0]["name"] = next(tool["name"] for tool in task.tools if tool["name"] not in names)
    think = f"<think>{plan(calls)}</think>\n"
    answer = python_syntax(calls) if style == "python" else json.dumps(calls)
    return think + (answer if style == "untagged"
                    else f"<tool_call_answer>{answer}</tool_call_answer>")


def generator_text(rng, task, style="right"):
    """A Generator completion: the plan comes first, and the three other blocks copy from it."""
    calls = [{"name": call["name"], "arguments": dict(call["arguments"])} for call in task.answer]
    think = f"Tools: {', '.join(tool['name'] for tool in task.tools)}. Calls: {plan(calls)}"
    said = question(rng, calls, task.spec["context"], omit=int(style == "omit"))
    if style == "other_value":
        name = list(calls[0]["arguments"])[-1]
        calls[0]["arguments"][name] = sample_value(rng, KIND_OF[name])
    answer = python_syntax(calls) if style == "python" else json.dumps(calls)
    return (("" if style == "no_think" else f"<think>{think}</think>\n")
            + f"<question>{said}</question>\n"
            + f"<available_tools>{json.dumps(task.tools)}</available_tools>\n"
            + f"<tool_call_answer>{answer}</tool_call_answer>")


def judge_example(rng, task):
    """Judge prompt and score: 4 or 5 for a sound task, 1 or 2 for a damaged one."""
    if rng.random() < 0.5:
        return curriculum.judge_prompt(task), rng.choice("4555")
    call = rng.choice(task.answer)
    damage = rng.choice(("name", "value", "missing"))
    if damage == "name":
        call["name"] = rng.choice([tool["name"] for tool in task.tools
                                   if tool["name"] != call["name"]])
    elif damage == "value":
        name = rng.choice(list(call["arguments"]))
        old = call["arguments"][name]
        while call["arguments"][name] == old:
            call["arguments"][name] = sample_value(rng, KIND_OF[name])
    else:
        call["arguments"].popitem()
    return curriculum.judge_prompt(task), rng.choice("1112")


def example(rng, habits, ease=0.0):
    """One pretraining example: (chat messages, completion).

    Args:
        habits: False while the skill is taught: every completion is right.
        ease: share of easy tasks (few tools, one call).
    """
    spec = generator.sample_spec(rng, dict.fromkeys(NOUNS, 1.0))
    if rng.random() < ease:
        spec = generator.Spec(spec.domain, spec.context, rng.randint(2, 3), 1)
    task = sample_task(rng, spec)
    role = rng.choices(("solver", "generator", "judge"), weights=(0.42, 0.42, 0.16))[0]
    style = "right"
    if role == "judge":
        return judge_example(rng, task)
    if role == "solver":
        if habits:
            style = sample_style(rng, spec.domain, SOLVER_HABITS, SOLVER_WRONG)
        return solver.prompt(task.question, task.tools), solver_text(rng, task, style)
    if habits:
        style = sample_style(rng, spec.domain, GENERATOR_HABITS, GENERATOR_WRONG)
    if rng.random() < GIVEN_MENU:
        spec = replace(spec, domain=generator.OWN_DOMAIN, menu=task.tools)
    return generator.prompt(spec), generator_text(rng, task, style)


def heldout(size=HELDOUT_TASKS, fits=True):
    """The held-out tasks: called tools, menus and values in combinations that pretraining never
    showed. With fits=False, tasks that no tool of the menu answers."""
    rng = random.Random("held-out" + " declines" * (not fits))
    domains = dict.fromkeys(NOUNS, 1.0)
    specs = (generator.sample_spec(rng, domains) for _ in range(size))
    return [sample_task(rng, spec if fits else replace(spec, calls=0), heldout=True)
            for spec in specs]


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
    words = [*VERBS, *map(str.capitalize, VERBS), *itertools.chain(*NOUNS.values()), *KIND_OF,
             *CITIES, *PEOPLE, *TOPICS, *LEVELS, *generator.DOMAINS,
             *(f"{n:02}" for n in range(60)), *(f"{verb}_" for verb in VERBS)]
    phrases = [*PHRASES.values(), *OPENINGS, AND_ALSO, AGENT, "User: ", " a ", "2026-",
               "Sure, I will ", " for you.", "Tools: ", ". Calls: ", " with ", ", ", "; "]
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
    given = generator.prompt(generator.Spec("@", "single_turn", 0, 1, []))[1]["content"]
    lines = ["Domain: ", *(text[len("Domain: @"):-len("0\nNumber of calls: exactly 1")]
                           for text in asked), "\nNumber of calls: exactly ",
             generator.OWN_DOMAIN, given[len(asked[0]):-len("[]")]]
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
