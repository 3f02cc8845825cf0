"""The little world, its tokenizer, and whether the base model is a fair picture of a weak LLM."""
import random
from statistics import mean

import pytest
import torch

import coldstart
import curriculum
import generator
import model as lms
import solver
import tiny
from verify import call_problem


def test_the_world_is_sound():
    rng = random.Random(0)
    for task in tiny.heldout(100):
        spec = generator.Spec(**task.spec)
        draft = generator.read(tiny.generator_text(rng, task))
        assert curriculum.structural_problem(draft, draft.task(spec)) is None
        paid = generator.reward(draft, 1.0, 1.0)
        assert all(paid[part] == pytest.approx(1) for part in ("format", "validity", "curriculum"))
        paid = solver.reward(tiny.solver_text(rng, task), task.answer)
        assert paid["format"] == paid["accuracy"] == 1
        for style in tiny.SOLVER_WRONG:
            assert not solver.is_right(tiny.solver_text(rng, task, style), task.answer), style
        assert len(task.tools) == spec.tools and not call_problem(task.answer, task.tools)


def test_pretraining_never_shows_a_reserved_tool():
    rng = random.Random(1)
    seen = set()
    for _ in range(500):
        spec = generator.sample_spec(rng, dict.fromkeys(tiny.NOUNS, 1.0))
        seen |= {tool["name"] for tool in tiny.sample_task(rng, spec).tools}
    held = {call["name"] for task in tiny.heldout() for call in task.answer}
    assert held and not held & seen


def test_heldout_tasks_are_all_different():
    tasks = tiny.heldout()
    assert len(tasks) == 500 and len({repr(task) for task in tasks}) == 500


def test_where_no_tool_fits_the_wanted_one_is_not_in_the_menu():
    tasks = tiny.heldout(200, fits=False)
    for task in tasks:
        wanted = {f"{verb}_{noun}" for verb in tiny.VERBS for noun in tiny.NOUNS[task.spec["domain"]]
                  if f"{verb} a {noun}" in task.question}
        assert len(wanted) == 1 and not wanted & {tool["name"] for tool in task.tools}
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
    unseen = tiny.examples(16, 16, False)
    before, _ = coldstart.Trainer(lm, 1, 0.0).train_step(unseen)
    tiny.train(lm, False, 40, 3e-3)
    after, _ = coldstart.Trainer(lm, 1, 0.0).train_step(unseen)
    assert after < 0.8 * before


@pytest.fixture(scope="module")
def base():
    return lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH))


def test_the_base_solves_some_tasks_and_could_solve_most(base):
    tasks = tiny.heldout(100)
    prompts = [lms.encode_chat(base.tokenizer, solver.prompt(task.question, task.tools))
               for task in tasks]
    greedy = lms.sample(base, prompts, 1, (0,), 0, 128, 100)
    assert 0.15 <= mean(solver.is_right(g[0].text, t.answer) for g, t in zip(greedy, tasks)) <= 0.45
    groups = lms.sample(base, prompts, 8, (1,), 0.7, 128, 200)
    rates = [curriculum.pass_rate([r.text for r in group], task.answer)
             for group, task in zip(groups, tasks)]
    assert mean(p > 0 for p in rates) >= 0.75
    assert len(set(rates)) >= 6


def test_the_base_generates_and_judges(base):
    rng = random.Random(5)
    specs = [generator.sample_spec(rng, dict.fromkeys(tiny.NOUNS, 1.0)) for _ in range(64)]
    prompts = [lms.encode_chat(base.tokenizer, generator.prompt(spec)) for spec in specs]
    drafts = [generator.read(group[0].text)
              for group in lms.sample(base, prompts, 1, (2,), 1.0, 320, 64)]
    assert 0.3 <= mean(generator.format_reward(draft) == 1 for draft in drafts) <= 0.8
    good, bad = [], []
    for task in tiny.heldout(60):
        messages, score = tiny.judge_example(rng, task)
        (good if score in "45" else bad).append(lms.encode_chat(base.tokenizer, messages))
    ids = lms.choice_ids(base.tokenizer, messages, "12345")
    scores = [mean(lms.choose(base, rows, ids, 64)) for rows in (good, bad)]
    assert scores[0] > scores[1] + 0.5
