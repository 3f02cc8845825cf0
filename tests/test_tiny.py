"""The little world, its tokenizer, and whether the base model is a fair picture of a weak LLM."""
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

import coldstart
import curriculum
import generator
import model as lms
import solver
import tiny
from toolfiles import read_menu
from verify import call_problem

ROOT = Path(__file__).parent.parent
DOMAINS = dict.fromkeys(tiny.VERBS, 1.0)


def cases(count, seed=0, manner="plain", **options):
    """Cases of the world, of one manner."""
    print("seed", seed)
    rng = random.Random(seed)
    return rng, [tiny.sample_case(rng, generator.sample_spec(rng, DOMAINS),
                                  manners={manner: 1}, **options) for _ in range(count)]


def test_a_plain_case_is_sound_and_right_is_paid_in_full():
    rng, made = cases(100, heldout=True)
    for case in made:
        spec, task = generator.Spec(**case.task.spec), case.task
        draft = generator.read(tiny.generator_text(rng, case))
        assert curriculum.structural_problem(draft, draft.task(spec)) is None
        paid = generator.reward(draft, 1.0, 1.0)
        assert list(paid.values()) == pytest.approx([1, 1, 1])
        assert list(solver.reward(tiny.solver_text(rng, case), task.answer).values()) == [1, 1]
        for style in (*tiny.SLIPS[1], "other_tool", case.word):
            assert not solver.is_right(tiny.solver_text(rng, case, style), task.answer), style
        assert len(task.tools) == spec.tools and not call_problem(task.answer, task.tools)


def test_where_no_tool_fits_the_world_declines_and_is_paid_in_full():
    rng = random.Random(1)
    spec = generator.Spec("book", "single_turn", 4, 0)
    case = tiny.sample_case(rng, spec)
    draft = generator.read(tiny.generator_text(rng, case), no_call=True)
    assert curriculum.structural_problem(draft, draft.task(spec)) is None
    assert list(generator.reward(draft, 1.0, 1.0).values()) == pytest.approx([1, 1, 1])
    assert list(solver.reward(tiny.solver_text(rng, case), []).values()) == [1, 1]
    assert not solver.is_right(tiny.solver_text(rng, case, "other_tool"), [])


def test_each_failure_of_the_generator_is_what_its_part_of_the_method_looks_for():
    """An open question is grounded and valid, and says nothing that tells a tool from its twin; a
    brief one lacks a value, which grounding sees; a twin is grounded and valid, and its question
    asks for the other tool."""
    rng, made = cases(50, 2, "open")
    for case in made:
        draft = generator.read(tiny.generator_text(rng, case))
        assert curriculum.structural_problem(draft, case.task) is None
        assert not tiny.VERB_OF.keys() & case.task.question.split()
        assert curriculum.structural_problem(draft, replace(case.task, answer=tiny.other_tool(
            rng, case.wanted, case.task.tools))) is None
    (rng, made), chances = cases(50, 3, "brief"), 0
    for case in made:
        draft = generator.read(tiny.generator_text(rng, case))
        by_chance = curriculum.structural_problem(draft, case.task) is None     # 14 in "14:00"
        assert generator.validity_reward(draft) == pytest.approx(1.0 if by_chance else 0.8)
        chances += by_chance
    assert chances <= 2
    rng, made = cases(50, 4)
    for case in made:
        draft = generator.read(tiny.generator_text(rng, case, "twin"))
        assert generator.validity_reward(draft) == pytest.approx(1)
        other = tiny.WORDS[tiny.twin(case.task.spec["domain"])][tiny.REGISTER_OF[case.word]]
        assert draft.question == case.task.question.replace(f"{case.word} a ", f"{other} a ")


def test_each_word_means_one_verb_and_is_mistaken_for_another_that_is_not_its_twin():
    words = [word for words in tiny.WORDS.values() for word in words]
    assert len(words) == len(set(words)) == len(tiny.REGISTERS) * len(tiny.VERBS)
    mistaken = [tiny.mistaken(word) for word in words]
    assert not any(verb in (tiny.VERB_OF[word], tiny.twin(tiny.VERB_OF[word]))
                   for word, verb in zip(words, mistaken))
    assert mistaken.count(None) == len(words) / 8


def test_pretraining_never_shows_a_reserved_tool():
    """All roles, menus and numbers of calls, 0 among them. (A Solver that mistakes a word may name
    one, which no menu of its own holds.)"""
    seen = "".join(chat[-1]["content"] + said * (chat[0]["content"] != solver.SYSTEM)
                   for habits in (False, True) for step in range(64)
                   for chat, said in tiny.examples(step, 64, habits))
    names = {tool["name"] for verb in tiny.VERBS for noun in tiny.NOUNS
             for tool in [tiny.make_tool(verb, noun)] if tiny.is_reserved(verb, noun)}
    assert "Missing: " in seen and not [name for name in names if name in seen]
    held = {call["name"] for task in tiny.heldout() for call in task.answer}
    assert held <= names


def test_heldout_tasks_are_all_different():
    tasks = tiny.heldout()
    assert len(tasks) == 500 and len({repr(task) for task in tasks}) == 500


def test_a_given_menu_is_not_written_and_offers_the_twin():
    rng, made = cases(50, 7, given=True)
    for case in made:
        draft = generator.read(tiny.generator_text(rng, case, given=True), case.task.tools)
        assert curriculum.structural_problem(draft, draft.task(generator.Spec(**case.task.spec))) \
            is None
        names = [tool["name"] for tool in case.task.tools]
        verb, noun = case.task.answer[0]["name"].split("_")
        assert f"{tiny.twin(verb)}_{noun}" in names and len(names) == case.task.spec["tools"]


def test_where_no_tool_fits_the_wanted_one_is_not_in_the_menu():
    tasks = tiny.heldout(200, fits=False)
    for task in tasks:
        wanted, = {f"{verb}_{noun}" for word, verb in tiny.VERB_OF.items() for noun in tiny.NOUNS
                   if f" {word} a {noun}" in task.question}
        assert wanted not in {tool["name"] for tool in task.tools}
        assert task.answer == [] and len(task.tools) == task.spec["tools"]
    assert len({repr(task) for task in tasks}) == 200


@pytest.mark.parametrize("text", [
    "", "na\u00efve \u4e2d\u6587 \U0001f600\n\t", '{"a": [1, "x"]}', "Oslo on 2026-01-02",
    solver.SYSTEM])
def test_any_text_survives_the_tokenizer(text):
    tokenizer = lms.load_tokenizer(tiny.PATH)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_committed_tokenizer_is_the_one_in_the_code():
    assert lms.load_tokenizer(tiny.PATH).get_vocab() == tiny.build_tokenizer().get_vocab()


def test_pretraining_learns():
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    lm = lms.LM(tiny.build_model(tokenizer), tokenizer, (tokenizer.eos_token_id,))
    unseen = tiny.examples(40, 40, False)      # the steps 0 to 39 are learned
    before, _ = coldstart.Trainer(lm, 1, 0.0).train_step(unseen)
    tiny.train(lm, False, 40, 3e-3)
    after, _ = coldstart.Trainer(lm, 1, 0.0).train_step(unseen)
    assert after < 0.8 * before


@pytest.fixture(scope="module")
def base():
    return lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH))


def test_the_base_solves_some_tasks_and_could_solve_most(base):
    tasks = tiny.heldout(250)
    prompts = [lms.encode_chat(base.tokenizer, solver.prompt(task.question, task.tools))
               for task in tasks]
    greedy = lms.sample(base, prompts, 1, (0,), 0, 128, 250)
    assert 0.15 <= mean(solver.is_right(g[0].text, t.answer) for g, t in zip(greedy, tasks)) <= 0.45
    groups = lms.sample(base, prompts[:100], 8, (1,), 0.7, 128, 200)
    assert mean(any(solver.is_right(r.text, task.answer) for r in group)
                for group, task in zip(groups, tasks)) >= 0.6


def test_the_base_knows_common_words_half_knows_casual_ones_and_hardly_any_rare_one(base):
    for register, least, most in (("common", 0.85, 1), ("casual", 0.25, 0.45), ("rare", 0, 0.15)):
        _, made = cases(64, 7, heldout=True, registers={register: 1})
        prompts = [lms.encode_chat(base.tokenizer, solver.prompt(case.task.question,
                                                                 case.task.tools)) for case in made]
        groups = lms.sample(base, prompts, 8, (1,), 0.7, 128, 200)
        p = mean(curriculum.pass_rate([r.text for r in group], case.task.answer)
                 for group, case in zip(groups, made))
        assert least <= p <= most, register


def test_where_the_base_solver_takes_a_casual_word_for_the_twins(base):
    rng, made = cases(64, 7, heldout=True, registers={"casual": 1})
    prompts = [lms.encode_chat(base.tokenizer, solver.prompt(case.task.question, case.task.tools))
               for case in made]
    shares = {True: [], False: []}
    for group, case in zip(lms.sample(base, prompts, 8, (1,), 0.7, 128, 200), made):
        other = tiny.other_tool(rng, case.wanted, case.task.tools)
        shares[tiny.tempts(case)].append(
            curriculum.pass_rate([r.text for r in group], other))
    assert 0.2 <= mean(shares[True]) <= 0.4 and mean(shares[False]) <= 0.05


def test_the_base_generates(base):
    rng = random.Random(5)
    specs = [generator.sample_spec(rng, dict.fromkeys(tiny.VERBS, 1.0)) for _ in range(64)]
    prompts = [lms.encode_chat(base.tokenizer, generator.prompt(spec)) for spec in specs]
    drafts = [generator.read(group[0].text)
              for group in lms.sample(base, prompts, 1, (2,), 0.7, 320, 64)]
    assert mean(generator.format_reward(draft) == 1 for draft in drafts) >= 0.85
    assert 0.6 <= mean(generator.validity_reward(draft) > 0.99 for draft in drafts) <= 0.95


@pytest.mark.parametrize("manner, damage, blind, sound", [
    ("plain", None, None, True), ("open", None, None, False), ("brief", None, None, False),
    ("plain", "missing", None, False), ("plain", "name", False, False),
    ("plain", "name", True, True)])
def test_the_base_judges_what_is_missing_and_outside_blind_domains_which_tool_is_wrong(
        base, manner, damage, blind, sound):
    rng, made = cases(80, 6, manner, heldout=True)
    made = [case for case in made if blind is None or tiny.is_blind(case) == blind]
    tasks = [replace(case.task, answer=tiny.damaged(rng, case, damage)) if damage else case.task
             for case in made]
    asked = [curriculum.judge_prompt(task) for task in tasks]
    ids = lms.choice_ids(base.tokenizer, asked[0], curriculum.SCORES)
    picks = lms.choose(base, [lms.encode_chat(base.tokenizer, chat) for chat in asked], ids, 64)
    assert mean(pick == 4 for pick in picks) >= 0.9 if sound else mean(picks) <= 0.4, picks


def test_the_base_writes_tasks_for_the_tools_of_the_example(base):
    rng = random.Random(8)
    tools = read_menu(json.loads((ROOT / "example_tools.json").read_text()))
    assert all(tiny.is_reserved(*tool["name"].split("_")) for tool in tools)
    specs = [generator.sample_spec(rng, {generator.OWN_DOMAIN: 1.0}, tools) for _ in range(32)]
    prompts = [lms.encode_chat(base.tokenizer, generator.prompt(spec)) for spec in specs]
    drafts = [generator.read(group[0].text, spec.menu) for spec, group in
              zip(specs, lms.sample(base, prompts, 1, (3,), 0.7, 320, 32))]
    sound = [curriculum.structural_problem(draft, draft.task(spec)) is None
             for draft, spec in zip(drafts, specs)]
    assert mean(sound) >= 0.6
