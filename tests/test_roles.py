"""Rewards of both roles, and the curriculum, against numbers worked out by hand."""
import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

import curriculum
import generator
import selfplay
import solver
from config import Config
from verify import Calls, Task

GOLD = [{"name": "f", "arguments": {"a": 1, "b": 2}}]


def answer(content, think="<think>x</think>"):
    return f"{think}<tool_call_answer>{content}</tool_call_answer>"


@pytest.mark.parametrize("text, reward", [
    ("no tag", 0.0), (answer("nope"), 0.3), (answer("[]"), 0.6), (answer("[7]"), 0.6),
    (answer('[{"name": "f", "arguments": {}}]'), 1.0)])
def test_solver_format(text, reward):
    assert solver.format_reward(text) == reward


@pytest.mark.parametrize("predicted, similarity", [
    ({"name": "f", "arguments": {"a": 1, "b": 2}}, 1.0),
    ({"name": "g", "arguments": {"a": 1, "b": 2}}, 0.8),
    ({"name": "f", "arguments": {"a": 1}}, 0.2 + 0.3 * 2 / 3 + 0.5),
    ({"name": "f", "arguments": {"a": 9, "b": 2}}, 0.2 + 0.3 + 0.25),
    ({"name": "f", "arguments": {}}, 0.2), ({"name": "f", "arguments": {"c": 1}}, 0.2)])
def test_call_similarity(predicted, similarity):
    assert solver.call_similarity(predicted, GOLD[0]) == pytest.approx(similarity)


def test_extra_predictions_cost_a_quarter_each():
    assert solver.accuracy_reward(Calls(GOLD * 2), GOLD) == pytest.approx(1 / 1.25)
    assert solver.accuracy_reward(Calls(GOLD, malformed=2), GOLD) == pytest.approx(1 / 1.5)


def test_accuracy_needs_a_think_block_but_success_does_not():
    right = '[{"name": "f", "arguments": {"b": "2", "a": 1.0}}]'
    thoughtless = answer(right, think="")
    assert solver.reward(answer(right), GOLD)["accuracy"] == 1
    assert solver.reward(thoughtless, GOLD)["accuracy"] == 0
    assert solver.reward(thoughtless, GOLD)["format"] == 1 and solver.is_right(thoughtless, GOLD)


TOOLS = ('[{"name": "book_train", "description": "Book a train.", "parameters": '
         '{"city": {"type": "string"}, "day": {"type": "string"}}, "required": ["city"]}]')
SPEC = generator.Spec("travel", "single_turn", 1, 1)


def completion(question="Please book a train to Oslo.", tools=TOOLS, think="plan",
               calls='[{"name": "book_train", "arguments": {"city": "Oslo"}}]'):
    return (f"<think>{think}</think><question>{question}</question><available_tools>{tools}"
            f"</available_tools><tool_call_answer>{calls}</tool_call_answer>")


@pytest.mark.parametrize("text, parts", [
    (completion(), (1, 1, 0.75)),
    (completion(think=""), (2 / 3, 1, 0.75)),
    (completion(tools="nope"), (2 / 3, 0, 0)),
    (completion(calls="book_train(Oslo)"), (2 / 3, 0, 0)),
    (completion(calls='[{"name": "book_bus", "arguments": {"city": "Oslo"}}]'), (1, 0.2, 0.75)),
    (completion(calls='[{"name": "book_train", "arguments": {}}]'), (1, 0.4, 0.75)),
    (completion(calls='[{"name": "book_train", "arguments": {"city": "Rome"}}]'), (1, 0.8, 0.75)),
    (completion(question="Hi"), (0, 0, 0))])
def test_generator_reward(text, parts):
    reward = generator.reward(generator.read(text), difficulty=1.0, semantic=0.5)
    assert [reward[part] for part in ("format", "validity", "curriculum")] == pytest.approx(parts)


@pytest.mark.parametrize("text, problem", [
    (completion(), None),
    ("", "unparsed"),
    (completion(question="Book a train to Oslo"), "question_too_short"),
    (completion(question="Define the word train for Oslo"), "question_stock"),
    (completion(question="What is the train that goes to Oslo?"), "question_stock"),
    (completion(question="Please book a train to Oslo \u4e2d"), "question_cjk"),
    (completion(question="Please book a train to Rome."), "not_grounded")])
def test_structural_checks(text, problem):
    draft = generator.read(text)
    assert curriculum.structural_problem(draft, draft.task(SPEC)) == problem


@pytest.mark.parametrize("change, problem", [
    ({}, None), ({"tools": 2}, "not_as_specified"), ({"calls": 2}, "not_as_specified")])
def test_a_pool_may_keep_only_what_was_asked_for(change, problem):
    draft = generator.read(completion())
    task = draft.task(replace(SPEC, **change))
    assert curriculum.structural_problem(draft, task) is None
    assert curriculum.structural_problem(draft, task, obey_spec=True) == problem


def test_specs_follow_the_stated_shares():
    rng = random.Random(0)
    specs = [generator.sample_spec(rng) for _ in range(20_000)]
    share = Counter((spec.context, spec.calls) for spec in specs)
    assert share["multi_turn", 2] == 0
    assert share["multi_turn", 1] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert share["single_turn", 2] / 20_000 == pytest.approx(0.18, abs=0.01)
    tools = Counter(spec.tools for spec in specs if spec.calls == 1)
    assert sum(tools[m] for m in (5, 6, 7, 8)) / sum(tools.values()) == pytest.approx(0.6, abs=0.02)
    assert len({spec.domain for spec in specs}) == 32


def graded(domain, p, n):
    return [Task(f"q{domain}{p}{k}", [], GOLD, {"domain": domain}, p, curriculum.bucket(p))
            for k in range(n)]


def test_selection_has_the_buckets_and_the_order():
    tasks = [task for domain in "ab" for p in (1.0, 0.5, 0.2) for task in graded(domain, p, 50)]
    chosen = curriculum.select(tasks, 40, {"a": 1.0, "b": 3.0}, seed=0)
    assert Counter(task.spec["domain"] for task in chosen) == {"a": 10, "b": 30}
    assert Counter(task.bucket for task in chosen) == {"easy": 8, "medium": 20, "hard": 12}
    rates = [task.pass_rate for task in chosen]
    assert rates == sorted(rates, reverse=True)


def test_short_buckets_and_domains_are_filled_from_others():
    chosen = curriculum.select(graded("a", 1.0, 30) + graded("b", 0.5, 2), 20, {"a": 1, "b": 1}, 0)
    assert Counter(task.bucket for task in chosen) == {"easy": 18, "medium": 2}
    assert len(curriculum.select(graded("a", 1.0, 3), 20, {"a": 1, "b": 1}, 0)) == 3


def test_a_repeat_is_dropped_though_its_digits_differ():
    run = SimpleNamespace(config=Config(), fits=lambda chat: True)
    texts = [completion(question=f"Please book train {n} to Oslo.") for n in (1, 22)]
    texts.insert(1, "no task")
    found = selfplay.sieve(run, [selfplay.read(SPEC, text) for text in texts])
    assert [candidate.reason for candidate in found] == [None, "unparsed", "duplicate"]


def test_an_empty_curriculum_has_no_steps():
    assert curriculum.spread(0, 50, 8) == []


def test_training_order_reaches_the_last_tasks():
    plan = curriculum.spread(2000, 50, 8)
    assert plan[0] == [0, 5, 10, 15, 20, 25, 30, 35] and plan[-1][-1] == 1995


@pytest.mark.parametrize("size, steps", [(128, 48), (29, 4), (100, 25), (9, 40)])
def test_the_copies_of_a_task_fall_into_different_steps(size, steps):
    plan = curriculum.spread(size, steps, 8)
    assert all(len(set(step)) == 8 for step in plan)
    counts = Counter(task for step in plan for task in step)
    assert set(counts) == set(range(size)) and max(counts.values()) - min(counts.values()) <= 1
    means = [sum(step) for step in plan]
    assert all(a <= b + 8 for a, b in zip(means, means[1:]))      # easy to hard


def test_a_users_menu_is_given_and_not_written():
    menu = generator.read(completion()).tools
    spec = generator.sample_spec(random.Random(0), {generator.OWN_DOMAIN: 1.0}, menu)
    assert spec.menu == menu and spec.tools == 1
    assert "book_train" in generator.prompt(spec)[1]["content"]
    without = re.sub("<available_tools>.*</available_tools>", "", completion())
    assert generator.format_reward(generator.read(without)) == pytest.approx(1 / 3)
    draft = generator.read(without, menu)
    assert draft.tools == menu and generator.format_reward(draft) == pytest.approx(1)
    other = [dict(menu[0], name="book_bus")]        # what a model writes all the same is ignored
    draft = generator.read(completion(), other)
    assert draft.tools == other and generator.validity_reward(draft) == pytest.approx(0.2)


def test_no_prompt_is_longer_than_the_longest():
    rng, longest = random.Random(0), len(generator.longest_prompt(len)[1]["content"])
    specs = [generator.sample_spec(rng, decline=0.5) for _ in range(300)]
    assert any(spec.calls == 0 and spec.context == "multi_turn" for spec in specs)
    assert all(len(generator.prompt(spec)[1]["content"]) <= longest for spec in specs)


def test_one_value_in_any_call_is_enough_to_be_grounded():
    bare = TOOLS[:-1] + ', {"name": "stop", "description": "Stop.", "parameters": {}}]'
    stop = '{"name": "stop", "arguments": {}}'
    train = '{"name": "book_train", "arguments": {"city": "Oslo"}}'
    for calls, pay in ((stop, 0.8), (f"{stop}, {train}", 1)):
        draft = generator.read(completion(tools=bare, calls=f"[{calls}]"))
        assert generator.validity_reward(draft) == pytest.approx(pay)
        assert generator.validity_reward(draft, grounding=False) == pytest.approx(1)


def test_ablations_of_the_generators_reward():
    draft = generator.read(completion(
        calls='[{"name": "book_train", "arguments": {"city": "Rome"}}]'))
    assert generator.reward(draft, 1.0, 0.0)["validity"] == pytest.approx(0.8)
    assert generator.reward(draft, 1.0, 0.0, grounding=False)["validity"] == pytest.approx(1.0)
    assert [generator.curriculum_reward(draft, *terms) for terms in
            ((1.0, 0.5), (None, 0.5), (1.0, None), (None, None))] == [0.75, 0.5, 1.0, 0.0]
    task = draft.task(SPEC)
    assert curriculum.structural_problem(draft, task) == "not_grounded"
    assert curriculum.structural_problem(draft, task, grounding=False) is None


NONE = generator.Spec("travel", "single_turn", 1, 0)


def test_declining_is_asked_for_only_where_the_user_wants_it():
    plain, some = ([generator.sample_spec(random.Random(7), decline=share) for _ in range(1)][0]
                   for share in (0.0, 0.999))
    assert plain.calls > 0 and some == generator.Spec(plain.domain, plain.context, plain.tools, 0)
    rng = random.Random(0)
    specs = [generator.sample_spec(rng, decline=0.1) for _ in range(10_000)]
    assert sum(spec.calls == 0 for spec in specs) / 10_000 == pytest.approx(0.1, abs=0.01)
    assert "empty, []" in generator.prompt(NONE)[1]["content"]
    assert "[]" not in generator.prompt(SPEC)[1]["content"]


def test_the_generator_is_paid_for_an_empty_list_only_where_no_call_was_asked():
    none, some = completion(calls="[]"), completion()
    for text, spec, parts in ((none, NONE, (1, 1, 0.75)), (none, SPEC, (2 / 3, 0, 0)),
                              (some, SPEC, (1, 1, 0.75)), (some, NONE, (2 / 3, 0, 0))):
        draft = generator.read(text, no_call=spec.calls == 0)
        paid = generator.reward(draft, difficulty=1.0, semantic=0.5)
        assert tuple(paid.values()) == pytest.approx(parts)
        assert (draft.task(spec) is not None) == (parts[0] == 1)
    task = generator.read(none, no_call=True).task(NONE)
    assert curriculum.structural_problem(generator.read(none, no_call=True), task) is None
    texts = [answer("[]"), answer('[{"name": "f"}]'), "no"]
    assert curriculum.pass_rate(texts, task.answer) == 1 / 3


@pytest.mark.parametrize("text, paid", [
    (answer("[]"), (1, 1)), (answer("[]", think=""), (1, 0)), (answer("nope"), (0.3, 0)),
    (answer('[{"name": "f", "arguments": {}}]'), (0.6, 0)), (answer("[7]"), (0.6, 0)),
    ("no tag", (0, 0))])
def test_where_no_tool_fits_the_solver_is_paid_for_an_empty_list_and_nothing_else(text, paid):
    for rules in ((False, False), (True, False), (False, True)):
        assert tuple(solver.reward(text, [], *rules).values()) == paid


def test_where_some_tasks_fit_no_tool_the_wrong_one_earns_nothing():
    right, wrong = (answer('[{"name": "%s", "arguments": {"a": 1, "b": 2}}]' % name)
                    for name in "fg")
    assert solver.reward(right, GOLD, same_tool=True)["accuracy"] == 1
    assert solver.reward(wrong, GOLD, same_tool=True)["accuracy"] == 0
    assert solver.reward(wrong, GOLD)["accuracy"] == pytest.approx(0.8)


def test_a_curriculum_holds_the_share_of_tasks_without_calls():
    none = [Task(f"n{k}", [], [], {"domain": "a"}, 0.5, "medium") for k in range(9)]
    for share, count in ((0.0, 0), (0.1, 2), (0.9, 9)):
        chosen = curriculum.select(graded("a", 0.5, 30) + none, 20, {"a": 1}, 0, decline=share)
        assert len(chosen) == 20 and sum(not task.answer for task in chosen) == count


def test_easy_tasks_without_calls_are_trained_on_from_the_first_step_to_the_last():
    none = [replace(task, answer=[]) for task in graded("a", 1.0, 200)]
    chosen = curriculum.select(graded("a", 0.5, 1800) + none, 2000, {"a": 1}, 0, decline=0.1)
    tasks = [chosen[k] for step in curriculum.spread(2000, 50, 8) for k in step]
    for half in (tasks[:200], tasks[200:]):
        assert 0.05 < sum(not task.answer for task in half) / 200 < 0.15


@pytest.mark.parametrize("band, pay", [("rectangular", [0, 0, 1, 1, 0, 0]),
                                       ("gaussian", [0, 0.5813, 1, 1, 0.5813, 0.1142])])
def test_every_band_pays_by_its_shape(band, pay):
    assert set(curriculum.BANDS) == {"gaussian", "rectangular"}
    found = [curriculum.band_pass(k / 8, 8, band) for k in (0, 1, 2, 6, 7, 8)]
    assert found == pytest.approx(pay, abs=1e-4)


def test_a_shuffled_curriculum_holds_the_same_tasks():
    tasks = [task for p in (1.0, 0.5, 0.2) for task in graded("a", p, 20)]
    ordered, shuffled = (curriculum.select(tasks, 30, {"a": 1.0}, 0, order)
                         for order in ("easy_first", "shuffled"))
    assert Counter(task.question for task in ordered) == Counter(task.question for task in shuffled)
    assert [task.pass_rate for task in shuffled] != [task.pass_rate for task in ordered]
