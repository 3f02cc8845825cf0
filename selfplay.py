"""Tool-R0: a Generator and a Solver teach each other to call tools, from zero task data.

    deepspeed selfplay.py                        # the embedded model, on anything, in minutes
    deepspeed selfplay.py --preset paper         # Qwen2.5-1.5B-Instruct with the paper's settings
    python selfplay.py --seed 1 --run_dir runs/seed1
    python selfplay.py --preset paper --check    # what it will need, and what there is
    python selfplay.py --explain                 # every setting and where its value comes from

One iteration: train the Generator against the frozen Solver; let it write a pool of tasks and build
the curriculum; train the Solver on it. The same command again resumes after the last saved step.
"""
import ctypes
import dataclasses
import math
import os
import random
import resource
import socket
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean

if sys.platform == "linux":
    # Read when torch is loaded. ZeRO-3's gathers start more OpenMP threads than there are cores,
    # and then idle ones go to sleep at once: small operations take twice as long. "active" lets
    # them wait a little; the second line keeps the usual wait while there is a core for each.
    # bench/step.py imports this file for it.
    os.environ.setdefault("OMP_WAIT_POLICY", "active")
    os.environ.setdefault("GOMP_SPINCOUNT", "300000")

import torch
import torch.distributed as dist
import transformers
from tqdm import tqdm

import check
import curriculum
import eval as evaluation
import generator
import grpo
import model as lms
import report
import solver
import tiny
from benchmarks.score import error_class
from cli import Refused, refuse
from config import explain, parse, record
from curriculum import signature
from disk import Directory, Stopper, write_json
from verify import Task

SLICE = 16           # chunks of the sampler in a slice of a pool: what a kill loses, at most, and
                     # the most ranks that share it
COLLAPSED = 0.2      # share of different questions below which we speak of a collapse


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


def train_generator(run, i):
    """Phase 1: GRPO on the Generator, paid by the frozen Solver of the previous iteration."""
    config = run.config
    if config.freeze_generator:
        return
    run.train_from(run.solver(i - 1) if config.shared_weights else run.generator(i - 1))
    run.opponent_becomes(run.solver(i - 1))
    for step in run.steps(i, "generator", config.generator_steps):
        rng = random.Random(f"{config.seed} {i} generator {step}")
        specs = [generator.sample_spec(rng, config.domain_weights, config.own_tools)
                 for _ in range(config.generator_prompts)]
        groups = run.sample(run.actor, [generator.prompt(spec) for spec in specs],
                            config.group_size, (i, "generator", step), 1.0, config.max_completion)
        specs = [spec for spec in specs for _ in range(config.group_size)]
        drafts = [generator.read(rollout.text, spec.menu)
                  for spec, rollout in zip(specs, flat(groups))]
        tasks = [draft.task(spec) for draft, spec in zip(drafts, specs)]
        rates, scores = probe(run, tasks, (i, "probe", step)), judge(run, tasks)
        parts = [generator.reward(draft, difficulty(config, p), semantic(config, score),
                                  not config.no_grounding)
                 for draft, p, score in zip(drafts, rates, scores)]
        run.learn(i, "generator", step, groups, parts,
                  {"valid": mean(part["validity"] > 0.999 for part in parts)}
                  | difficulty_metrics(rates) | diversity_metrics(drafts, tasks))
    run.save("generator", i)


def difficulty(config, p):
    """r_diff of a pass rate (None: no task), or None where the ablation leaves it out."""
    if config.no_difficulty:
        return None
    band = "rectangular" if config.rectangular_band else "gaussian"
    return 0.0 if p is None else curriculum.band_pass(p, config.probes, band)


def semantic(config, score):
    """r_sem of a judge's score (None: no task), or None where the ablation leaves it out."""
    if config.no_judge:
        return None
    return 0.0 if score is None else curriculum.semantic_reward(score)


def difficulty_metrics(rates):
    """Where the tasks of a step stand: a rate is None where there is no task."""
    return {"in_band": mean(p is not None and curriculum.in_band(p) for p in rates),
            "pass_rate": mean([p for p in rates if p is not None] or [0.0]), "pass_rates": rates}


def diversity_metrics(drafts, tasks):
    """Does the Generator do as the spec says, and does it say the same thing again and again?"""
    there = [task for task in tasks if task]
    questions = [draft.question for draft in drafts if draft.question]
    domains = Counter(task.spec["domain"] for task in there)
    return {"distinct_questions": len(set(questions)) / len(questions) if questions else 1.0,
            "distinct_signatures": len({signature(task) for task in there}) / max(1, len(there)),
            "domain_entropy": -sum(n / len(there) * math.log(n / len(there))
                                   for n in domains.values()),
            "spec_tools": mean([len(task.tools) == task.spec["tools"] for task in there] or [0.0]),
            "spec_calls": mean([len(task.answer) == task.spec["calls"] for task in there] or [0.0])}


def probe(run, tasks, key):
    """Pass rate of each task on K Solver samples (Eq. 3);
    None where there is no task, or none that fits."""
    chosen = [n for n, task in enumerate(tasks) if task and run.fits(task)]
    rates = [None] * len(tasks)
    for n, p in zip(chosen, pass_rates(run, [tasks[n] for n in chosen], run.config.probes, key)):
        rates[n] = p
    return rates


def pass_rates(run, tasks, samples, key, first=0):
    """The frozen Solver's pass rate on each task; `first` is the index of the first one."""
    groups = run.sample(run.opponent, [solver.prompt(task.question, task.tools) for task in tasks],
                        samples, key, run.config.probe_temperature, run.config.max_verify,
                        "probing", first)
    return [curriculum.pass_rate([rollout.text for rollout in group], task.answer)
            for group, task in zip(groups, tasks)]


def judge(run, tasks):
    """The frozen Solver's score 1..5 of each task; None where there is no task to judge."""
    scores = [None] * len(tasks)
    if run.config.no_judge:
        return scores
    prompts = [run.encode(curriculum.judge_prompt(task)) if task else None for task in tasks]
    chosen = [n for n, ids in enumerate(prompts) if ids and len(ids) <= run.config.max_prompt]
    with run.timed("probing"):
        picks = lms.choose(run.opponent, [prompts[n] for n in chosen], run.score_ids,
                           run.config.sample_rows)
    for n, pick in zip(chosen, picks):
        scores[n] = pick + 1
    return scores


def build_curriculum(run, i):
    """Phase 2: the trained Generator writes a pool;
    the sound, fresh, solvable tasks become a curriculum."""
    config = run.config
    rng = random.Random(f"{config.seed} {i} pool")
    specs = [generator.sample_spec(rng, config.domain_weights, config.own_tools)
             for _ in range(config.pool_size)]
    run.actor_becomes(run.generator(i))
    run.opponent_becomes(run.generator(i) if config.shared_weights else run.solver(i - 1))
    texts = write_pool(run, i, specs)
    drafts = [generator.read(text, spec.menu) for text, spec in zip(texts, specs)]
    tasks = [draft.task(spec) for draft, spec in zip(drafts, specs)]
    reasons = sieve(run, drafts, tasks)
    grade(run, i, tasks, reasons)
    graded = [task for task, reason in zip(tasks, reasons) if reason is None]
    chosen = curriculum.select(graded, config.curriculum_size, config.domain_weights,
                               f"{config.seed} {i} curriculum", config.order)
    kept = set(map(id, chosen))
    run.files.write_rows(f"iter{i}/pool.jsonl", (
        {"text": text, "spec": dataclasses.asdict(spec), "task": task and dataclasses.asdict(task),
         "reason": reason, "kept": id(task) in kept}
        for text, spec, task, reason in zip(texts, specs, tasks, reasons)))
    run.files.write_rows(f"iter{i}/curriculum.jsonl", map(dataclasses.asdict, chosen))
    write_examples(run, i, chosen)
    dropped = Counter(reason for reason in reasons if reason)
    run.log(i, "curriculum", config.pool_size, {
        "funnel": {"pool": len(texts), **dropped,
                   "survivors": len(graded), "curriculum": len(chosen)},
        "buckets": Counter(task.bucket for task in chosen),
        "mean_pass_rate": mean([task.pass_rate for task in chosen] or [0.0]),
        **diversity_metrics(drafts, tasks)})
    if len(chosen) < config.curriculum_size:
        run.say(f"iteration {i}: {len(chosen)} of {config.curriculum_size} wanted tasks survived; "
                "dropped: "
                + ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()))


def sieve(run, drafts, tasks):
    """Why each candidate is dropped before the Solver sees it; None for those that stay."""
    reasons = [curriculum.structural_problem(draft, task, not run.config.no_grounding)
               for draft, task in zip(drafts, tasks)]
    sound = [task if reason is None else None for task, reason in zip(tasks, reasons)]
    for n, repeat in enumerate(curriculum.duplicates(sound)):
        if repeat:
            reasons[n] = "duplicate"
        elif sound[n] and not run.fits(sound[n]):
            reasons[n] = "prompt_too_long"
    return reasons


def write_pool(run, i, specs):
    """One completion of the frozen Generator for each spec, kept on disk slice by slice."""
    config, name = run.config, f"iter{i}/pool.part.jsonl"
    size = run.slice_size(1, len(specs))
    texts = run.files.kept_rows(name, size, len(specs))
    with run.bar(i, "pool", len(specs), len(texts)) as bar:
        for start in range(len(texts), len(specs), size):
            prompts = [generator.prompt(spec) for spec in specs[start:start + size]]
            groups = run.sample(run.actor, prompts, 1, (i, "pool"), config.probe_temperature,
                                config.max_completion, first=start)
            new = [rollout.text for rollout in flat(groups)]
            run.files.append(name, *new)
            texts += new
            run.advance(bar, len(new))
    return texts


def grade(run, i, tasks, reasons):
    """Cross-verification and grading: sets pass_rate and bucket of each task,
    or its reason to be dropped."""
    config, name = run.config, f"iter{i}/verify.part.jsonl"
    chosen = [task for task, reason in zip(tasks, reasons) if reason is None]
    size = run.slice_size(config.verify_samples, len(chosen))
    rates = run.files.kept_rows(name, size, len(chosen))
    with run.bar(i, "verify", len(chosen), len(rates)) as bar:
        for start in range(len(rates), len(chosen), size):
            new = pass_rates(run, chosen[start:start + size], config.verify_samples,
                             (i, "verify"), start)
            run.files.append(name, *new)
            rates += new
            run.advance(bar, len(new))
    rate = iter(rates)
    for n, task in enumerate(tasks):
        if reasons[n] is None:
            task.pass_rate = next(rate)
            task.bucket = curriculum.bucket(task.pass_rate)
            if task.pass_rate < curriculum.MIN_AGREEMENT and not config.no_cross_verification:
                reasons[n] = "not_verified"


def write_examples(run, i, chosen):
    """Up to three tasks of each bucket, with the Solver's answer before it is trained on them."""
    tasks = []
    for name in curriculum.BUCKETS:
        tasks += [task for task in chosen if task.bucket == name][:3]
    answers = evaluation.solve(run.opponent, tasks, run.config.max_verify, run.config.sample_rows)
    run.files.write_rows(f"iter{i}/examples.jsonl", (
        {"bucket": task.bucket, "task": dataclasses.asdict(task), "before": answer.text}
        for task, answer in zip(tasks, answers)))


def read_curriculum(run, i):
    """The tasks of a curriculum, in training order; refused unless they are as many as logged."""
    logged = [row["funnel"]["curriculum"] for row in run.files.read_rows("metrics.jsonl")
              if (row["iteration"], row["phase"]) == (i, "curriculum")][-1]
    tasks = [Task(**row) for row in run.files.read_rows(f"iter{i}/curriculum.jsonl")]
    if len(tasks) != logged:
        raise Refused(f"{run.files.path}/iter{i}/curriculum.jsonl holds {len(tasks)} of {logged} "
                      "tasks: put back a copy, or give another --run_dir")
    return tasks


def train_solver(run, i):
    """Phase 3: GRPO on the Solver over the curriculum, easy to hard."""
    config = run.config
    run.train_from(run.generator(i) if config.shared_weights else run.solver(i - 1))
    tasks = read_curriculum(run, i)
    if tasks:
        plan = curriculum.spread(len(tasks), config.solver_steps, config.solver_prompts)
        for step in run.steps(i, "solver", config.solver_steps):
            batch = [tasks[n] for n in plan[step]]
            groups = run.sample(
                run.actor, [solver.prompt(task.question, task.tools) for task in batch],
                config.group_size, (i, "solver", step), 1.0, config.max_completion)
            golds = [task.answer for task in batch for _ in range(config.group_size)]
            texts = [rollout.text for rollout in flat(groups)]
            parts = [solver.reward(text, gold, config.strict_values)
                     for text, gold in zip(texts, golds)]
            run.learn(i, "solver", step, groups, parts, {
                "right": mean(map(solver.is_right, texts, golds)),
                "task_pass_rate": mean(task.pass_rate for task in batch)})
    else:
        run.say(f"iteration {i}: no task survived, so the Solver stays as it is: "
                f"see iter{i}/pool.jsonl")
    run.save("solver", i)


def evaluate(run, i):
    """Held-out greedy accuracy of Solver i (0: the base)."""
    run.opponent_becomes(run.solver(i))
    tasks = tiny.heldout(run.config.heldout_tasks)
    with run.timed("sampling"):
        answers = evaluation.solve(run.opponent, tasks,
                                   run.config.max_verify, run.config.sample_rows)
    rows = [{"question": task.question, "tools": task.tools, "gold": task.answer,
             "answer": answer.text, "error": error_class(answer.text, task.answer)}
            for task, answer in zip(tasks, answers)]
    run.files.write_rows(f"iter{i}/heldout.jsonl", rows)
    examples = run.files.read_rows(f"iter{i}/examples.jsonl")
    after = evaluation.solve(run.opponent, [Task(**row["task"]) for row in examples],
                             run.config.max_verify, run.config.sample_rows)
    if examples:
        run.files.write_rows(f"iter{i}/examples.jsonl", (
            row | {"after": answer.text} for row, answer in zip(examples, after)))
    accuracy = mean(row["error"] is None for row in rows)
    run.log(i, "evaluation", 0, {"heldout_accuracy": accuracy,
                                 "errors": Counter(row["error"] for row in rows if row["error"])})
    run.say_iteration(i, accuracy)
    if run.rank == 0:
        report.write(run.files.path)


def flat(groups):
    """Rollouts of all groups in one list."""
    return [rollout for group in groups for rollout in group]


# ---------------------------------------------------------------------------------------------
# The run: models in memory, and what is said and logged about them


class Run:
    """Everything the story needs: the models of this rank, the directory, the screen."""

    def __init__(self, config, files, tokenizer, score_ids, device):
        """
        Args:
            files: run.Directory.
            score_ids: token ids of the judge's scores 1..5.
        """
        self.config, self.files, self.tokenizer, self.score_ids = (
            config, files, tokenizer, score_ids)
        self.rank, self.world = files.rank, files.world
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        self.trainer = grpo.Trainer(lms.build(config.base, dtype, device), config)
        self.actor = lms.load(config.base, tokenizer, dtype, device)       # plays the trained role
        self.opponent = lms.load(config.base, tokenizer, dtype, device)    # the frozen Solver
        self.now = None                       # (iteration, phase)
        self.done = None                      # (iteration, phase, finished steps) while training
        self.tokens, self.seconds, self.said, self.latest = 0, Counter(), set(), {}
        self.stopper = Stopper(files, self.save_now, launched="LOCAL_SIZE" in os.environ)

    # Models ------------------------------------------------------------------------------------

    def generator(self, i):
        """Checkpoint of Generator i; the base for i = 0, or always where it is frozen."""
        return (self.config.base if i == 0 or self.config.freeze_generator
                else self._checkpoint(i, "generator"))

    def solver(self, i):
        """Checkpoint of Solver i; the base for i = 0."""
        return self._checkpoint(i, "solver") if i else self.config.base

    def _checkpoint(self, i, role):
        return str(self.files.path / f"iter{i}" / role)

    def train_from(self, path):
        """Start a training phase from the fp32 weights of a checkpoint."""
        self.trainer.load(lms.read_weights(path))
        self.trainer.copy_to(self.actor.model)

    def opponent_becomes(self, path):
        """Give the opponent the weights of a checkpoint."""
        lms.fill(self.opponent.model, lms.read_weights(path))

    def actor_becomes(self, path):
        """Give the actor the weights of a checkpoint."""
        lms.fill(self.actor.model, lms.read_weights(path))

    def encode(self, messages):
        return lms.encode_chat(self.tokenizer, messages)

    def fits(self, task):
        """Is the task short enough to be put to the Solver?"""
        return len(self.encode(solver.prompt(task.question, task.tools))) <= self.config.max_prompt

    def slice_size(self, samples, total):
        """Prompts of a pool that are sampled, and kept on disk, at a time: an eighth of `total`, in
        whole chunks of the sampler, at most SLICE of them. It does not depend on the ranks, so
        that the same prompts stand together on any number of them."""
        chunk = max(1, self.config.sample_rows // samples)
        return chunk * min(SLICE, max(1, total // (8 * chunk)))

    def sample(self, lm, chats, samples, key, temperature, max_tokens, kind="sampling", first=0):
        """model.sample for chat messages, with the run's seed in the key;
        time and tokens are counted."""
        with self.timed(kind):
            groups = lms.sample(lm, [self.encode(chat) for chat in chats], samples,
                                (self.config.seed, *key), temperature, max_tokens,
                                self.config.sample_rows, first)
        self.tokens += sum(len(rollout.ids) for rollout in flat(groups))
        return groups

    def learn(self, i, phase, step, groups, parts, metrics):
        """One GRPO step on sampled groups, and its lines in the logs.

        Args:
            parts: reward parts of each rollout, group after group; the reward is their sum.
            metrics: more to log.
        """
        config, rollouts = self.config, flat(groups)
        reward_PG = torch.tensor([sum(part.values()) for part in parts]).view(len(groups), -1)
        steps = config.generator_steps if phase == "generator" else config.solver_steps
        rate = config.learning_rate * (1 - step / steps)
        with self.timed("training"):
            pending = self.trainer.backward(groups, reward_PG)
        with self.stopper.critical:      # weights and logs change together
            with self.timed("training"):
                metrics |= self.trainer.update(pending, rate)
            metrics |= {"reward": reward_PG.mean().item(), "learning_rate": rate,
                        "truncated": mean(not rollout.finished for rollout in rollouts),
                        "completion_tokens": mean(len(rollout.ids) for rollout in rollouts)}
            metrics |= {f"reward_{name}": mean(part[name] for part in parts) for name in parts[0]}
            self.log(i, phase, step, metrics)
            self._log_samples(i, phase, step, rollouts, parts)
            self.done = (i, phase, step + 1)
        with self.timed("sync"):
            self.trainer.copy_to(self.actor.model)
        if config.assert_invariants:
            check.check_step(config, groups, reward_PG, self.actor.eos, metrics)
            self.trainer.check_copy(self.actor.model)
        self.trainer.write_events(phase, (i - 1) * steps + step, metrics)
        self._warn(i, phase, step, reward_PG, metrics)

    def _log_samples(self, i, phase, step, rollouts, parts):
        """The best and the worst rollout of a step."""
        totals = [sum(part.values()) for part in parts]
        for kind, n in (("best", totals.index(max(totals))), ("worst", totals.index(min(totals)))):
            self.files.append("samples.jsonl", {
                "iteration": i, "phase": phase, "step": step, "kind": kind, "reward": parts[n],
                "prompt": self.tokenizer.decode(rollouts[n].prompt), "text": rollouts[n].text})

    def _warn(self, i, phase, step, reward_PG, metrics):
        """Say in words, once a phase, when a step taught nothing or the Generator collapses.
        The run goes on."""
        where = f"iteration {i} {phase} step {step}"
        if metrics["dead_groups"] == 1 and self._first((i, phase, "dead")):
            values = Counter(round(row[0].item(), 3) for row in reward_PG)
            self.say(f"{where}: every group is dead, nothing was learned: " + ", ".join(
                f"{count} of {len(reward_PG)} groups have only the reward {value}"
                for value, count in values.most_common()))
        if metrics.get("distinct_questions", 1) < COLLAPSED and self._first((i, phase, "collapse")):
            self.say(f"{where}: only {100 * metrics['distinct_questions']:.0f} % of the "
                     f"{reward_PG.numel()} questions differ: the Generator is collapsing, "
                     "see samples.jsonl")

    def _first(self, key):
        fresh = key not in self.said
        self.said.add(key)
        return fresh

    def save(self, role, i):
        """Write the trained role's checkpoint."""
        self.trainer.save(self._checkpoint(i, role), self.actor)

    # Phases, steps, stopping -------------------------------------------------------------------

    def once(self, i, phase, work):
        """Do a phase unless it is finished; then record that it is, as the last thing."""
        if [i, phase] in self.files.state["finished"]:
            return
        self.now, started, self.seconds = (i, phase), time.time(), Counter()
        work(self, i)
        self.done = None
        if phase in ("curriculum", "evaluation"):
            self.files.append("timings.jsonl", {"iteration": i, "phase": phase,
                                                "seconds": time.time() - started, **self.seconds})
        self.barrier()
        with self.stopper.critical:
            self.files.finish(i, phase)

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def steps(self, i, phase, total):
        """The numbers of a phase's training steps that are still to do, under a progress bar; logs
        the time of each, and saves a resumable state now and then."""
        done = self.files.done_steps(i, phase)
        if done:
            self.trainer.restore(on_every_rank(self.files.load_step))
            self.trainer.copy_to(self.actor.model)
        self.done = (i, phase, done)
        with self.bar(i, phase, total, done) as bar:
            for step in range(done, total):
                started, before, self.seconds = time.time(), self.tokens, Counter()
                yield step
                return_memory()
                seconds = time.time() - started
                self.files.append("timings.jsonl", {
                    "iteration": i, "phase": phase, "step": step,
                    "seconds": seconds, **self.seconds,
                    "sampled_tokens_per_second": (self.tokens - before) / seconds,
                    "peak_memory_mib": peak_memory(), "resident_memory_mib": resident_memory()})
                self.advance(bar, 1, reward=f"{self.latest['reward']:.2f}")
                if (step + 1) % self.config.save_every == 0 and step + 1 < total:
                    with self.stopper.critical:
                        saved = self.files.save_step(i, phase, step + 1, self.trainer.state(),
                                                     60 * self.config.collective_timeout)
                    if not saved:
                        self.say(f"iteration {i} {phase}: step {step + 1} is not saved, since a "
                                 "rank's part of it did not come")

    def save_now(self, patience):
        """Save the last finished step while the run is being stopped; returns what to say.

        Args:
            patience: seconds to wait for the other ranks.
        """
        if self.done is None:
            return "what is finished is saved"
        i, phase, done = self.done
        saved = self.files.done_steps(i, phase)
        if done > saved and self.files.save_step(i, phase, done, self.trainer.state(), patience):
            saved = done
        return f"iteration {i} {phase} is saved after {saved} steps"

    # Log and screen ----------------------------------------------------------------------------

    @contextmanager
    def timed(self, kind):
        """Count the seconds of a kind of work."""
        started = time.time()
        yield
        self.seconds[kind] += time.time() - started

    def log(self, i, phase, step, metrics):
        """One line of metrics.jsonl: values that the seed determines."""
        self.latest = metrics
        self.files.append("metrics.jsonl", {"iteration": i, "phase": phase, "step": step} | metrics)

    def say(self, line):
        if self.rank == 0:
            tqdm.write(line)

    def say_iteration(self, i, accuracy):
        """The one line of an iteration."""
        funnels = ([row["funnel"] for row in self.files.read_rows("metrics.jsonl")
                    if (row["iteration"], row["phase"]) == (i, "curriculum")]
                   if self.rank == 0 else [])
        pool = "".join(f" | pool {funnel['pool']} -> sound and solvable {funnel['survivors']} "
                       f"-> curriculum {funnel['curriculum']}" for funnel in funnels)
        self.say(f"iteration {i}: held-out accuracy {100 * accuracy:.1f} %{pool or ' (base)'}")

    def bar(self, i, what, total, done=0):
        self.tokens, self.bar_started = 0, time.time()
        return tqdm(total=total, initial=done, desc=f"iteration {i} {what}", disable=self.rank > 0,
                    leave=False, dynamic_ncols=True)

    def advance(self, bar, count, **shown):
        """Move a progress bar on, with tokens per second since it began."""
        speed = self.tokens / (time.time() - self.bar_started)
        bar.set_postfix(shown | {"tok/s": f"{speed:.0f}"}, refresh=False)
        bar.update(count)


def summarise(config, files):
    """Write summary.json and print the result."""
    rows = files.read_rows("metrics.jsonl")
    accuracy = [row["heldout_accuracy"] for row in rows if row["phase"] == "evaluation"]
    summary = {"preset": config.preset, "model": config.model, "seed": config.seed,
               "world_size": files.world, "wall_seconds": files.state["wall_seconds"],
               "heldout_accuracy": accuracy,
               "funnel": [row["funnel"] for row in rows if row["phase"] == "curriculum"]}
    write_json(files.path / "summary.json", summary)
    tqdm.write("held-out accuracy: " + " -> ".join(f"{100 * a:.1f} %" for a in accuracy)
               + f"   ({summary['wall_seconds'] / 60:.1f} minutes; {files.path}/summary.json)")
    tqdm.write(report.write(files.path))


def return_memory():
    """Give freed host memory back to the system, where its C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory():
    """Host memory of this process in MiB, or None where the system does not tell."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_memory():
    """Peak memory of this process in MiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------------------------------
# Starting


def on_rank0(work):
    """Result of work() on rank 0, on every rank; what rank 0 refuses is refused on all."""
    outcome = [None, None]
    if lms.rank_and_world()[0] == 0:
        try:
            outcome[0] = work()
        except (Refused, OSError) as problem:
            outcome[1] = str(problem)
    if lms.rank_and_world()[1] > 1:
        dist.broadcast_object_list(outcome)
    if outcome[1]:
        raise Refused(outcome[1])
    return outcome[0]


def on_every_rank(work):
    """Result of work() on this rank, once it has succeeded on all; what one refuses, all refuse."""
    result, problem = None, None
    try:
        result = work()
    except Refused as refused:
        problem = str(refused)
    problems = [problem]
    if lms.rank_and_world()[1] > 1:
        problems = [None] * lms.rank_and_world()[1]
        dist.all_gather_object(problems, problem)
    for problem in filter(None, problems):
        raise Refused(problem)
    return result


def see_lock(path, holder):
    """Refused where this rank's machine does not see the directory that rank 0 has locked."""
    lock = path / "lock"
    if not lock.exists() or lock.read_text() != holder:
        raise Refused(f"{path.resolve()} is not on a file system that all ranks share: "
                      f"{socket.gethostname()} does not see it")


def open_directory(config, needed):
    """The run's directory, claimed, seen by every rank, and brought back to its last saved step.

    Args:
        needed: bytes that the run will write.
    """
    files = Directory(config.path, *lms.rank_and_world())
    on_rank0(lambda: files.claim(needed))
    holder = on_rank0(lambda: (files.path / "lock").read_text())
    on_every_rank(lambda: see_lock(files.path, holder))
    on_rank0(lambda: write_json(files.path / "config.json", record(config) | {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "deepspeed": grpo.deepspeed.__version__}}))
    files.state, told = on_rank0(files.rewind)
    return files, told


def longest_prompt(config, tokenizer):
    """Tokens of the longest prompt that the Generator can get."""
    menu = None
    if config.own_tools:
        menu = sorted(config.own_tools, key=lambda tool: len(str(tool)))[-generator.MOST_TOOLS:]
    spec = generator.Spec(generator.OWN_DOMAIN, "multi_turn", generator.MOST_TOOLS, 1, menu)
    return len(lms.encode_chat(tokenizer, generator.prompt(spec)))


def start(config):
    """The run, or what is left of it."""
    try:
        tokenizer = lms.load_tokenizer(config.base)
        score_ids = lms.choice_ids(tokenizer, curriculum.judge_prompt(tiny.heldout(1)[0]),
                                   curriculum.SCORES)
        shape = lms.read_config(config.base)
        lms.checkpoint_files(config.base)
        longest = longest_prompt(config, tokenizer)
        if longest > config.max_prompt:
            raise Refused(f"--max_prompt is {config.max_prompt}, the Generator's longest prompt "
                          f"takes {longest} tokens")
        room = getattr(shape, "max_position_embeddings", math.inf)
        if config.max_prompt + max(config.max_completion, config.max_verify) > room:
            raise ValueError(f"it has {room} positions, and --max_prompt and --max_completion or "
                             "--max_verify add up to more")
    except ValueError as error:
        raise Refused(f"--model {config.model}: {error}") from None
    device = grpo.init_distributed(config.collective_timeout)
    needed = check.disk_bytes(check.count_parameters(shape), config.iterations)
    files, told = open_directory(config, needed)
    if [config.iterations, "evaluation"] not in files.state["finished"]:
        try:
            run = Run(config, files, tokenizer, score_ids, device)
        except lms.BadCheckpoint as error:
            raise Refused(f"--model {config.model}: {error}") from None
        if told:
            run.say(told)
        with unharmed(run):
            self_play(run)
    if files.rank == 0:
        summarise(config, files)


@contextmanager
def unharmed(run):
    """Turn what can go wrong in the middle of a run into one line; what was finished stays."""
    again = "What is finished is saved; the same command goes on from there."
    try:
        yield
    except grpo.NonFinite as error:
        i, phase = run.now
        step = run.done[2] if run.done else 0
        name = f"failure-rank{run.rank}.json"
        write_json(run.files.path / name, {
            "iteration": i, "phase": phase, "step": step, "rank": run.rank, "what": str(error),
            "samples": [{"prompt": run.tokenizer.decode(rollout.prompt), "text": rollout.text,
                         "ids": rollout.ids} for rollout in error.rollouts]})
        fail(run, f"{error} is not finite in iteration {i}, {phase} step {step}, rank {run.rank}: "
                  f"the samples are in {run.files.path / name}. Nothing was learned from them.")
    except lms.BadCheckpoint as error:
        raise Refused(f"{error}: put back a copy, or give another --run_dir") from None
    except OSError as error:
        fail(run, f"{error.filename or run.files.path} cannot be read or written: "
                  f"{error.strerror or error}. {again}")
    except RuntimeError as error:
        # Another rank ended: either the run is being stopped, or it died.
        if run.stopper.stopping.wait(2):
            run.stopper.join()
        if run.world == 1 or not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        for failure in run.files.path.glob("failure-rank*.json"):
            again = f"It left {failure}."
        fail(run, f"rank {run.rank} lost another rank ({str(error).splitlines()[0][:200]}). "
                  f"{again}")


def fail(run, message):
    """End this rank with one line. The launcher ends the others."""
    sys.stdout.flush()
    print(f"\nselfplay.py: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def main(argv=None):
    warnings.filterwarnings("ignore", category=FutureWarning)
    config, action = parse(argv)
    try:
        if action is None:
            start(config)
        elif os.environ.get("RANK", "0") == "0":
            {"explain": explain, "check": check.report}[action](config)
        lms.leave_group()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)
    except KeyboardInterrupt:      # before the run; later the Stopper takes it
        refuse("stopped before the run began", 130)


if __name__ == "__main__":
    main()
