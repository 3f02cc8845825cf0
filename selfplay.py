"""Tool-R0: a Generator and a Solver teach each other to call tools, from zero task data.

    deepspeed selfplay.py                        # the embedded model, in minutes, without a GPU
    deepspeed selfplay.py --preset paper         # Qwen2.5-1.5B-Instruct with the paper's settings
    python selfplay.py --seed 1 --run_dir runs/seed1
    python selfplay.py --preset paper --check    # what it will need, and what there is
    python selfplay.py --explain                 # every setting and where its value comes from

One iteration: train the Generator against the frozen Solver; let it write a pool of tasks and build
the curriculum; train the Solver on it. The same command again resumes after the last saved step.
"""
from run import start      # first: it says how threads wait, before torch is loaded

import math
import os
import random
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import mean

import check
import curriculum
import eval as evaluation
import generator
import model as lms
import solver
import tiny
from benchmarks.score import error_class
from cli import Refused, refuse
from config import explain, parse
from verify import Task


# ---------------------------------------------------------------------------------------------
# The story


def self_play(run):
    """The whole of Tool-R0."""
    run.once(0, "evaluation", evaluate)
    for i in range(1, run.config.iterations + 1):
        run.once(i, "generator", train_generator)     # 1. learn to write tasks at the Solver's edge
        run.once(i, "curriculum", build_curriculum)   # 2. write many, keep the sound and gradable
        run.once(i, "solver", train_solver)           # 3. learn to solve them, easy to hard
        run.once(i, "evaluation", evaluate)


@dataclass
class Candidate:
    """What the Generator wrote, on its way to become a task of the curriculum."""

    spec: generator.Spec
    text: str                    # the completion
    draft: generator.Draft       # as read
    task: Task | None            # None where a part of it is missing
    reason: str | None = None    # why it was dropped


def read(spec, text):
    """The Candidate in a completion of the Generator."""
    draft = generator.read(text, spec.menu, no_call=spec.calls == 0)
    return Candidate(spec, text, draft, draft.task(spec))


def train_generator(run, i):
    """Phase 1: GRPO on the Generator, paid by the frozen Solver of the previous iteration."""
    config = run.config
    if config.freeze_generator:
        return
    run.train_from(run.solver_path(i - 1) if config.shared_weights else run.generator_path(i - 1))
    run.load(run.frozen, run.solver_path(i - 1))
    for step in run.steps(config.generator_steps):
        specs = draw_specs(run, "generator", config.generator_prompts)
        groups = run.sample(run.actor, map(generator.prompt, specs), config.group_size,
                            "generator", config.generator_temperature, config.max_completion)
        candidates = [read(spec, rollout.text)
                      for spec, group in zip(specs, groups) for rollout in group]
        probe(run, candidates)
        parts = [generator.reward(candidate.draft, difficulty(config, candidate.task), semantic,
                                  not config.no_grounding)
                 for candidate, semantic in zip(candidates, judge(run, candidates))]
        run.learn(groups, parts, {"valid": mean(part.get("validity", 0) > 0.999 for part in parts)}
                  | difficulty_metrics(candidates) | diversity_metrics(candidates))
    run.save()


def build_curriculum(run, i):
    """Phase 2: the trained Generator writes a pool;
    the sound, fresh, solvable tasks become a curriculum."""
    config = run.config
    run.load(run.actor, run.generator_path(i))
    run.load(run.frozen, run.generator_path(i) if config.shared_weights else run.solver_path(i - 1))
    specs = draw_specs(run, "pool", config.pool_size)
    texts = run.in_slices("pool", specs, 1, write)
    candidates = grade(run, sieve(run, list(map(read, specs, texts))))
    graded = [candidate.task for candidate in candidates if candidate.reason is None]
    chosen = curriculum.select(graded, config.curriculum_size, config.domain_weights,
                               run.seed("curriculum"), config.order, config.decline)
    record_curriculum(run, candidates, chosen)


def train_solver(run, i):
    """Phase 3: GRPO on the Solver over the curriculum, easy to hard."""
    config = run.config
    run.train_from(run.generator_path(i) if config.shared_weights else run.solver_path(i - 1))
    tasks = read_curriculum(run, i)
    plan = curriculum.spread(len(tasks), config.solver_steps, config.solver_prompts)
    for step in run.steps(len(plan)):
        batch = [tasks[n] for n in plan[step]]
        groups = run.sample(run.actor, map(question, batch), config.group_size, "solver",
                            config.solver_temperature, config.max_completion)
        answers = [(rollout.text, task.answer)
                   for task, group in zip(batch, groups) for rollout in group]
        parts = [solver.reward(text, gold, config.strict_values, config.decline > 0)
                 for text, gold in answers]
        run.learn(groups, parts, {"right": mean(solver.is_right(*answer) for answer in answers),
                                  "task_pass_rate": mean(task.pass_rate for task in batch)})
    if not tasks:
        run.say(f"iteration {i}: no task survived, so the Solver stays as it is: "
                f"see iter{i}/pool.jsonl")
    run.save()


def evaluate(run, i):
    """Held-out greedy accuracy of Solver i (0: the base), where a tool fits and where none does;
    and its answers to a few tasks."""
    if i > 0:
        write_examples(run, i)
    run.load(run.frozen, run.solver_path(i))
    rows, none_fits = (solve(run, tasks) for tasks in tiny.heldout_sets(run.config.heldout_tasks))
    run.write_rows("heldout.jsonl", rows)
    run.write_rows("none_fits.jsonl", none_fits)
    accuracy, declined = (mean(row["error"] is None for row in some) for some in (rows, none_fits))
    run.log({"heldout_accuracy": accuracy, "heldout_declined": declined,
             "errors": Counter(row["error"] for row in rows if row["error"])})
    run.say(f"iteration {i}: held-out accuracy {100 * accuracy:.1f} %; {100 * declined:.1f} % "
            "declined where no tool fits" + " (base)" * (i == 0))


# ---------------------------------------------------------------------------------------------
# Phase 1: what the Generator is paid for


def draw_specs(run, purpose, count):
    """Fresh specifications, drawn from the run's seed."""
    rng = random.Random(run.seed(purpose))
    return [generator.sample_spec(rng, run.config.domain_weights, run.config.own_tools,
                                  run.config.decline) for _ in range(count)]


def question(task):
    """The chat messages that put a task to the Solver."""
    return solver.prompt(task.question, task.tools)


def probe(run, candidates):
    """Measure the pass rate of each task on K Solver samples (Eq. 3), where its prompt fits."""
    tasks = [c.task for c in candidates if c.task and run.fits(question(c.task))]
    for task, p in zip(tasks, pass_rates(run, tasks, run.config.probes, "probe", 0)):
        task.pass_rate = p


def pass_rates(run, tasks, samples, purpose, first):
    """The frozen Solver's pass rate on each task; `first` is the index of the first one."""
    groups = run.sample(run.frozen, map(question, tasks), samples, purpose,
                        run.config.probe_temperature, run.config.max_verify, first)
    return [curriculum.pass_rate([rollout.text for rollout in group], task.answer)
            for group, task in zip(groups, tasks)]


def judge(run, candidates):
    """r_sem of each task, by the frozen Solver's score; 0 where there is no task, or its prompt is
    too long. None where the ablation leaves it out."""
    if run.config.no_judge:
        return [None] * len(candidates)
    prompts = {n: run.encode(curriculum.judge_prompt(candidate.task), close=True)
               for n, candidate in enumerate(candidates) if candidate.task}
    prompts = {n: ids for n, ids in prompts.items() if len(ids) <= run.config.max_prompt}
    with run.timed("probing"):
        picks = lms.choose(run.frozen, list(prompts.values()), run.score_ids,
                           run.config.sample_rows)
    found = {n: curriculum.semantic_reward(pick + 1) for n, pick in zip(prompts, picks)}
    return [found.get(n, 0.0) for n in range(len(candidates))]


def difficulty(config, task):
    """r_diff of a task's pass rate, 0 where there is no task or its prompt is too long; None where
    the ablation leaves it out."""
    if config.no_difficulty:
        return None
    p = task and task.pass_rate
    return 0.0 if p is None else curriculum.band_pass(p, config.probes, config.band)


def difficulty_metrics(candidates):
    """Where the tasks of a step stand: a rate is None where no task fits."""
    rates = [candidate.task and candidate.task.pass_rate for candidate in candidates]
    return {"in_band": mean(p is not None and curriculum.in_band(p) for p in rates),
            "pass_rate": mean([p for p in rates if p is not None] or [0.0]), "pass_rates": rates}


def diversity_metrics(candidates):
    """Does the Generator do as the spec says, and does it say the same thing again and again?"""
    tasks = [candidate.task for candidate in candidates if candidate.task]
    questions = [c.draft.question for c in candidates if c.draft.question]
    domains = Counter(task.spec["domain"] for task in tasks)
    return {"distinct_questions": len(set(questions)) / len(questions) if questions else 1.0,
            "distinct_signatures": len(set(map(curriculum.signature, tasks))) / max(1, len(tasks)),
            "domain_entropy": -sum(n / len(tasks) * math.log(n / len(tasks))
                                   for n in domains.values()),
            "spec_tools": mean([len(t.tools) == t.spec["tools"] for t in tasks] or [0.0]),
            "spec_calls": mean([len(t.answer) == t.spec["calls"] for t in tasks] or [0.0])}


# ---------------------------------------------------------------------------------------------
# Phase 2: from the pool to the curriculum


def write(run, specs, samples, purpose, first):
    """One completion of the trained Generator for each spec."""
    groups = run.sample(run.actor, map(generator.prompt, specs), samples, purpose,
                        run.config.probe_temperature, run.config.max_completion, first)
    return [rollout.text for rollout in lms.flat(groups)]


def sieve(run, candidates):
    """Drop what is not sound, what repeats an earlier one, and what does not fit into a prompt."""
    seen = set()
    for candidate in candidates:
        candidate.reason = curriculum.structural_problem(
            candidate.draft, candidate.task, not run.config.no_grounding, run.config.obey_spec)
        if candidate.reason is None:
            signature = curriculum.signature(candidate.task)
            if signature in seen:
                candidate.reason = "duplicate"
            elif not run.fits(question(candidate.task)):
                candidate.reason = "prompt_too_long"
            seen.add(signature)
    return candidates


def grade(run, candidates):
    """Cross-verify and grade: pass rate and bucket from the same Solver samples; drop the tasks
    whose gold calls the Solver hardly ever agrees with."""
    sound = [candidate for candidate in candidates if candidate.reason is None]
    rates = run.in_slices("verify", [candidate.task for candidate in sound],
                          run.config.verify_samples, pass_rates)
    for candidate, p in zip(sound, rates):
        candidate.task.pass_rate, candidate.task.bucket = p, curriculum.bucket(p)
        if p < curriculum.MIN_AGREEMENT and not run.config.no_cross_verification:
            candidate.reason = "not_verified"
    return candidates


def record_curriculum(run, candidates, chosen):
    """Write the pool with the fate of every candidate, and the curriculum; say what became of
    them."""
    kept = set(map(id, chosen))
    run.write_rows("pool.jsonl", (
        {"text": c.text, "spec": asdict(c.spec), "task": c.task and asdict(c.task),
         "reason": c.reason, "kept": id(c.task) in kept} for c in candidates))
    run.write_rows("curriculum.jsonl", map(asdict, chosen))
    dropped = Counter(c.reason for c in candidates if c.reason)
    survivors = len(candidates) - dropped.total()
    run.log({"funnel": {"pool": len(candidates), **dropped, "survivors": survivors,
                        "curriculum": len(chosen)},
             "buckets": Counter(task.bucket for task in chosen),
             "mean_pass_rate": mean([task.pass_rate for task in chosen] or [0.0]),
             **diversity_metrics(candidates)})
    run.say(f"iteration {run.iteration}: pool {len(candidates)} -> sound and solvable {survivors} "
            f"-> curriculum {len(chosen)}")
    if len(chosen) < run.config.curriculum_size:
        run.say(f"    {run.config.curriculum_size} were wanted; dropped: "
                + ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()))


def read_curriculum(run, i):
    """The tasks of a curriculum, in training order."""
    return [Task(**row) for row in run.files.read_rows(f"iter{i}/curriculum.jsonl")]


# ---------------------------------------------------------------------------------------------
# Evaluation


def write_examples(run, i):
    """Up to three tasks of each bucket, with the answers of the Solvers before and after them."""
    tasks = read_curriculum(run, i)
    tasks = [task for name in curriculum.BUCKETS
             for task in [task for task in tasks if task.bucket == name][:3]]
    run.load(run.frozen, run.solver_path(i - 1))
    before = solve(run, tasks)
    run.load(run.frozen, run.solver_path(i))
    run.write_rows("examples.jsonl", (
        {"bucket": task.bucket, "task": asdict(task), "before": old["answer"],
         "after": new["answer"]} for task, old, new in zip(tasks, before, solve(run, tasks))))


def solve(run, tasks):
    """The frozen Solver's greedy answers, as rows of a file: with the task, and the class of the
    error."""
    prompts = [run.encode(question(task)) for task in tasks]
    texts = evaluation.solve(run.frozen, prompts, run.config.max_verify, run.config.sample_rows)
    return [{"question": task.question, "tools": task.tools, "gold": task.answer, "answer": text,
             "error": error_class(text, task.answer)} for task, text in zip(tasks, texts)]


def main(argv=None):
    try:
        config, action = parse(argv)
        if action is None:
            start(config, self_play)
        elif os.environ.get("RANK", "0") == "0":
            {"explain": explain, "check": check.report}[action](config)
        lms.leave_group()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)
    except KeyboardInterrupt:      # before the run; later it is caught by a thread of its own
        refuse("stopped before the run began", 130)


if __name__ == "__main__":
    main()
