"""Tool-R0: a Generator and a Solver teach each other to call tools, from zero task data.

    deepspeed selfplay.py                        # the embedded model, on anything, in minutes
    deepspeed selfplay.py --preset paper         # Qwen2.5-1.5B-Instruct with the paper's settings
    python selfplay.py --seed 1 --run_dir runs/seed1

One iteration: train the Generator against the frozen Solver; let it write a pool of tasks and build
the curriculum; train the Solver on it. The same command again resumes at the first unfinished
phase.
"""
import argparse
import dataclasses
import json
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import transformers
from tqdm import tqdm

import curriculum
import eval as evaluation
import generator
import grpo
import model as lms
import solver
import tiny
from verify import Task


@dataclass(frozen=True)
class Config:
    """All settings of a run, each a flag. Sources: P the paper, C its authors' code, us: our
    choice."""

    preset: str = "paper"
    model: str = "Qwen/Qwen2.5-1.5B-Instruct"   # P; a directory, a hub name, or "tiny"
    run_dir: str = ""                    # empty: runs/<preset>
    seed: int = 0
    iterations: int = 3                  # P
    generator_steps: int = 50            # P: optimizer steps of a phase
    solver_steps: int = 50               # P
    generator_prompts: int = 6           # C: 24 completions a step, over all ranks
    solver_prompts: int = 8              # C: 32 completions a step
    group_size: int = 4                  # C: G, completions of a prompt
    probes: int = 8                      # P: K of Eq. 3
    probe_temperature: float = 0.7       # C: of probes, pool and cross-verification
    pool_size: int = 10_000              # P
    verify_samples: int = 10             # C: Solver samples of a candidate task
    curriculum_size: int = 2000          # P
    domains: str = "all"                 # P: uniform over 32; or "travel:2,weather:1"
    max_prompt: int = 4096               # us: tokens; longer tasks are dropped, never cut
    max_completion: int = 2048           # C: tokens, in training
    max_verify: int = 1024               # C: tokens of a verification sample, probe or answer
    learning_rate: float = 1e-6          # C: falls linearly to 0 over a phase
    inner_updates: int = 1               # C: mu
    epsilon: float = 0.2                 # C: clipping range
    max_grad_norm: float = 1.0           # C
    dtype: str = "bf16"                  # P; "fp32" for tests
    micro_batch: int = 4                 # us: completions per forward pass and rank
    sample_rows: int = 64                # us: samples decoded together on a rank
    gradient_checkpointing: bool = True  # us: trades a second forward pass for memory
    heldout_tasks: int = 500             # us: tasks of tiny.py, solved greedily after every iteration

    @property
    def path(self):
        """Directory of the run."""
        return Path(self.run_dir or f"runs/{self.preset}")

    @property
    def domain_weights(self):
        """{domain: weight}."""
        if self.domains == "all":
            return generator.DOMAINS
        pairs = (item.strip().partition(":") for item in self.domains.split(","))
        return {name: float(weight or 1) for name, _, weight in pairs}


PRESETS = {
    "paper": {},
    "tiny": dict(
        model="tiny", domains=",".join(tiny.NOUNS), generator_steps=24, solver_steps=12,
        generator_prompts=8, solver_prompts=8, group_size=8, pool_size=384, curriculum_size=128,
        max_prompt=1024, max_completion=320, max_verify=128, learning_rate=3e-5, micro_batch=32,
        sample_rows=256, gradient_checkpointing=False),
}
CHANGEABLE = {"run_dir", "iterations"}      # what may differ when a run is resumed


# ---------------------------------------------------------------------------------------------
# The story


def self_play(run):
    """The whole of Tool-R0."""
    run.once(0, "evaluation", evaluate)
    for i in range(1, run.config.iterations + 1):
        run.once(i, "generator", train_generator)      # 1. learn to write tasks at the Solver's edge
        run.once(i, "curriculum", build_curriculum)    # 2. write many, keep the sound and the gradable
        run.once(i, "solver", train_solver)            # 3. learn to solve them, easy to hard
        run.once(i, "evaluation", evaluate)


def train_generator(run, i):
    """Phase 1: GRPO on the Generator, paid by the frozen Solver of the previous iteration."""
    config = run.config
    run.train_from(run.weights_path("generator", i - 1))
    run.freeze_solver(i - 1)
    for step in run.steps(i, "generator", config.generator_steps):
        rng = random.Random(f"{config.seed} {i} generator {step}")
        specs = [generator.sample_spec(rng, config.domain_weights)
                 for _ in range(config.generator_prompts)]
        prompts = [run.encode(generator.prompt(spec)) for spec in specs]
        groups = run.sample(run.actor, prompts, config.group_size, (i, "generator", step), 1.0,
                            config.max_completion)
        drafts = [generator.read(rollout.text) for group in groups for rollout in group]
        tasks = [draft.task(specs[n // config.group_size]) for n, draft in enumerate(drafts)]
        rates, scores = probe(run, tasks, (i, "probe", step)), judge(run, tasks)
        parts = [generator.reward(draft, curriculum.band_pass(p, config.probes) if p is not None else 0.0,
                                  curriculum.semantic_reward(score) if score else 0.0)
                 for draft, p, score in zip(drafts, rates, scores)]
        run.learn(i, "generator", step, groups, parts, {
            "valid": mean(part["validity"] > 0.999 for part in parts),
            "in_band": mean(p is not None and curriculum.in_band(p) for p in rates),
            "pass_rate": mean([p for p in rates if p is not None] or [0.0]),
            "distinct_questions": len({draft.question for draft in drafts}) / len(drafts)})
    run.save("generator", i)


def probe(run, tasks, key):
    """Pass rate of each task on K Solver samples (Eq. 3); None where there is no task to solve."""
    return pass_rates(run, tasks, run.config.probes, key)


def pass_rates(run, tasks, samples, key):
    """The frozen Solver's pass rate on each task; None for None and for prompts that are too
    long."""
    prompts = [run.encode(solver.prompt(task.question, task.tools)) if task else None for task in tasks]
    chosen = [n for n, ids in enumerate(prompts) if ids and len(ids) <= run.config.max_prompt]
    groups = run.sample(run.opponent, [prompts[n] for n in chosen], samples, key,
                        run.config.probe_temperature, run.config.max_verify)
    rates = [None] * len(tasks)
    for n, group in zip(chosen, groups):
        rates[n] = curriculum.pass_rate([rollout.text for rollout in group], tasks[n].answer)
    return rates


def judge(run, tasks):
    """The frozen Solver's score 1..5 of each task; None where there is no task to judge."""
    prompts = [run.encode(curriculum.judge_prompt(task)) if task else None for task in tasks]
    chosen = [n for n, ids in enumerate(prompts) if ids and len(ids) <= run.config.max_prompt]
    picks = lms.choose(run.opponent, [prompts[n] for n in chosen], run.score_ids, run.config.sample_rows)
    scores = [None] * len(tasks)
    for n, pick in zip(chosen, picks):
        scores[n] = pick + 1
    return scores


def build_curriculum(run, i):
    """Phase 2: the trained Generator writes a pool; the sound, fresh, solvable tasks become a
    curriculum."""
    config = run.config
    rng = random.Random(f"{config.seed} {i} pool")
    specs = [generator.sample_spec(rng, config.domain_weights) for _ in range(config.pool_size)]
    run.freeze_generator(i)
    run.freeze_solver(i - 1)
    texts = write_pool(run, i, specs)
    drafts = [generator.read(text) for text in texts]
    tasks = [draft.task(spec) for draft, spec in zip(drafts, specs)]
    reasons = [curriculum.structural_problem(draft, task) for draft, task in zip(drafts, tasks)]
    sound = [task if reason is None else None for task, reason in zip(tasks, reasons)]
    for n, repeat in enumerate(curriculum.duplicates(sound)):
        if repeat:
            reasons[n], sound[n] = "duplicate", None
    grade(run, i, sound, reasons)
    graded = [task for task, reason in zip(tasks, reasons) if reason is None]
    chosen = curriculum.select(graded, config.curriculum_size, config.domain_weights,
                               f"{config.seed} {i} curriculum")
    kept = set(map(id, chosen))
    run.write_lines(f"iter{i}/pool.jsonl", (
        {"text": text, "spec": dataclasses.asdict(spec), "task": task and dataclasses.asdict(task),
         "reason": reason, "kept": id(task) in kept}
        for text, spec, task, reason in zip(texts, specs, tasks, reasons)))
    run.write_lines(f"iter{i}/curriculum.jsonl", map(dataclasses.asdict, chosen))
    obedient = [len(task.tools) == spec.tools and len(task.answer) == spec.calls
                for task, spec in zip(tasks, specs) if task]
    run.log(i, "curriculum", config.pool_size, {
        "funnel": {"pool": len(texts), **Counter(reason for reason in reasons if reason),
                   "survivors": len(graded), "curriculum": len(chosen)},
        "buckets": Counter(task.bucket for task in chosen),
        "mean_pass_rate": mean([task.pass_rate for task in chosen] or [0.0]),
        "spec_obeyed": mean(obedient or [0.0])})
    if len(chosen) < config.curriculum_size:
        run.say(f"iteration {i}: {len(chosen)} of {config.curriculum_size} wanted tasks survived")


def write_pool(run, i, specs):
    """One completion of the frozen Generator for each spec."""
    config, texts = run.config, []
    size = run.slice_size(1)
    with run.bar(i, "pool", len(specs)) as bar:
        for start in range(0, len(specs), size):
            prompts = [run.encode(generator.prompt(spec)) for spec in specs[start:start + size]]
            groups = run.sample(run.actor, prompts, 1, (i, "pool", start), config.probe_temperature,
                                config.max_completion)
            texts += [group[0].text for group in groups]
            run.advance(bar, len(prompts))
    return texts


def grade(run, i, sound, reasons):
    """Cross-verification and grading: sets pass_rate and bucket of each task, or its reason to be
    dropped."""
    config, size = run.config, run.slice_size(run.config.verify_samples)
    with run.bar(i, "verify", len(sound)) as bar:
        for start in range(0, len(sound), size):
            batch = sound[start:start + size]
            rates = pass_rates(run, batch, config.verify_samples, (i, "verify", start))
            for n, (task, p) in enumerate(zip(batch, rates), start):
                if task is None:
                    continue
                if p is None:
                    reasons[n] = "prompt_too_long"
                    continue
                task.pass_rate, task.bucket = p, curriculum.bucket(p)
                if p < curriculum.MIN_AGREEMENT:
                    reasons[n] = "not_verified"
            run.advance(bar, len(batch))


def train_solver(run, i):
    """Phase 3: GRPO on the Solver over the curriculum, easy to hard."""
    config = run.config
    run.train_from(run.weights_path("solver", i - 1))
    tasks = [Task(**row) for row in run.read_lines(f"iter{i}/curriculum.jsonl")]
    if tasks:
        plan = curriculum.spread(len(tasks), config.solver_steps, config.solver_prompts)
        for step in run.steps(i, "solver", config.solver_steps):
            batch = [tasks[n] for n in plan[step]]
            prompts = [run.encode(solver.prompt(task.question, task.tools)) for task in batch]
            groups = run.sample(run.actor, prompts, config.group_size, (i, "solver", step), 1.0,
                                config.max_completion)
            parts = [solver.reward(rollout.text, task.answer)
                     for group, task in zip(groups, batch) for rollout in group]
            run.learn(i, "solver", step, groups, parts, {
                "right": mean(solver.is_right(rollout.text, task.answer)
                              for group, task in zip(groups, batch) for rollout in group),
                "task_pass_rate": mean(task.pass_rate for task in batch)})
    else:
        run.say(f"iteration {i}: no task survived, so the Solver stays as it is: see iter{i}/pool.jsonl")
    run.save("solver", i)


def evaluate(run, i):
    """Held-out greedy accuracy of Solver i (0: the base)."""
    run.freeze_solver(i)
    tasks = tiny.heldout(run.config.heldout_tasks)
    answers = evaluation.solve(run.opponent, tasks, run.config.max_verify, run.config.sample_rows)
    rows = [{"question": task.question, "tools": task.tools, "gold": task.answer, "answer": answer.text,
             "error": evaluation.error_class(answer.text, task.answer)}
            for task, answer in zip(tasks, answers)]
    run.write_lines(f"iter{i}/heldout.jsonl", rows)
    accuracy = mean(row["error"] is None for row in rows)
    errors = Counter(row["error"] for row in rows if row["error"])
    run.log(i, "evaluation", 0, {"heldout_accuracy": accuracy, "errors": errors})
    funnel = run.phase_metrics(i, "curriculum").get("funnel", {})
    run.say(f"iteration {i}: held-out accuracy {100 * accuracy:.1f} %" + (
        f" | pool {funnel['pool']} -> sound and solvable {funnel['survivors']} -> "
        f"curriculum {funnel['curriculum']}" if funnel else " (base)"))


# ---------------------------------------------------------------------------------------------
# The run: directory, models, log


class Run:
    """The models in memory and the run's directory on disk."""

    def __init__(self, config, tokenizer, score_ids, device):
        self.config, self.tokenizer, self.score_ids = config, tokenizer, score_ids
        self.rank, self.world = lms.rank_and_world()
        self.path, self.base = config.path, base_path(config)
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        self.actor = lms.load(self.base, tokenizer, dtype, device)       # samples as the trained role
        self.opponent = lms.load(self.base, tokenizer, dtype, device)    # the frozen Solver
        self.trainer = grpo.Trainer(lms.load(self.base, tokenizer).model, config)
        self.state = self._read_state()
        self.started, self.tokens = time.time(), 0
        if self.rank == 0:
            self._forget_unfinished()
        self._barrier()

    # Models ------------------------------------------------------------------------------------

    def weights_path(self, role, i):
        """Checkpoint of a role after iteration i; the base model for i = 0."""
        return self.path / f"iter{i}" / role if i else self.base

    def _read_weights(self, path):
        return dict(lms.load(path, self.tokenizer).model.named_parameters())

    def train_from(self, path):
        """Start a training phase from the fp32 weights of a checkpoint."""
        self.trainer.load(self._read_weights(path))
        self.trainer.copy_to(self.actor.model)

    def freeze_solver(self, i):
        """Make the opponent the Solver of iteration i."""
        self._fill(self.opponent, self.weights_path("solver", i))

    def freeze_generator(self, i):
        """Make the actor the Generator of iteration i."""
        self._fill(self.actor, self.weights_path("generator", i))

    @torch.no_grad()
    def _fill(self, lm, path):
        target = dict(lm.model.named_parameters())
        for name, weight in self._read_weights(path).items():
            target[name].copy_(weight)

    def encode(self, messages):
        return lms.encode_chat(self.tokenizer, messages)

    def sample(self, lm, prompts, samples, key, temperature, max_tokens):
        """model.sample, with the run's seed in the key and its tokens counted."""
        groups = lms.sample(lm, prompts, samples, (self.config.seed, *key), temperature, max_tokens,
                            self.config.sample_rows)
        self.tokens += sum(len(rollout.ids) for group in groups for rollout in group)
        return groups

    def slice_size(self, samples):
        """Prompts sampled between two ticks of a progress bar: a whole chunk for every rank."""
        return max(1, self.config.sample_rows // samples) * self.world

    def learn(self, i, phase, step, groups, parts, metrics):
        """One GRPO step on sampled groups, and its lines in the logs.

        Args:
            parts: reward parts of each rollout, group after group; the reward is their sum.
            metrics: more to log.
        """
        config = self.config
        total_steps = config.generator_steps if phase == "generator" else config.solver_steps
        reward_PG = torch.tensor([sum(part.values()) for part in parts]).view(len(groups), -1)
        rate = config.learning_rate * (1 - step / total_steps)
        metrics |= self.trainer.step(groups, reward_PG, rate)
        self.trainer.copy_to(self.actor.model)
        rollouts = [rollout for group in groups for rollout in group]
        metrics |= {"reward": reward_PG.mean().item(), "learning_rate": rate,
                    "truncated": mean(not rollout.finished for rollout in rollouts),
                    "completion_tokens": mean(len(rollout.ids) for rollout in rollouts)}
        metrics |= {f"reward_{name}": mean(part[name] for part in parts) for name in parts[0]}
        self.log(i, phase, step, metrics)
        flat = reward_PG.flatten()
        for kind, n in (("best", int(flat.argmax())), ("worst", int(flat.argmin()))):
            self._append("samples.jsonl", {
                "iteration": i, "phase": phase, "step": step, "kind": kind, "reward": parts[n],
                "prompt": self.tokenizer.decode(rollouts[n].prompt), "text": rollouts[n].text})

    def save(self, role, i):
        """Write the trained role's checkpoint."""
        self.trainer.save(self.path / f"iter{i}" / role, self.actor)

    # Phases and files --------------------------------------------------------------------------

    def once(self, i, phase, work):
        """Do a phase unless it is finished; then record that it is, as the last thing."""
        if [i, phase] in self.state["finished"]:
            return
        work(self, i)
        self._barrier()
        self.state["finished"].append([i, phase])
        self.state["wall_seconds"] += time.time() - self.started
        self.started = time.time()
        if self.rank == 0:
            write_json(self.path / "state.json", self.state)

    def _read_state(self):
        file = self.path / "state.json"
        if file.exists():
            return json.loads(file.read_text())
        return {"finished": [], "wall_seconds": 0.0}

    def _forget_unfinished(self):
        """Drop what an interrupted phase has logged: it is done again from its start."""
        for name in ("metrics.jsonl", "samples.jsonl", "timings.jsonl"):
            if (self.path / name).exists():
                rows = self.read_lines(name)
                self.write_lines(name, [row for row in rows
                                        if [row["iteration"], row["phase"]] in self.state["finished"]])

    def _barrier(self):
        if self.world > 1:
            torch.distributed.barrier()

    def read_lines(self, name):
        with open(self.path / name) as file:
            return [json.loads(line) for line in file]

    def write_lines(self, name, rows):
        """Write a .jsonl file, replacing it as a whole."""
        if self.rank == 0:
            replace_file(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))

    def _append(self, name, row):
        if self.rank == 0:
            with open(self.path / name, "a") as file:
                file.write(json.dumps(row) + "\n")

    def log(self, i, phase, step, metrics):
        """One line of metrics.jsonl: values that the seed determines."""
        self.latest = metrics
        self._append("metrics.jsonl", {"iteration": i, "phase": phase, "step": step} | metrics)

    def phase_metrics(self, i, phase):
        """The last metrics of a phase, from the log of rank 0; empty if there are none."""
        file = self.path / "metrics.jsonl"
        rows = self.read_lines("metrics.jsonl") if self.rank == 0 and file.exists() else []
        rows = [row for row in rows if (row["iteration"], row["phase"]) == (i, phase)]
        return rows[-1] if rows else {}

    # Screen ------------------------------------------------------------------------------------

    def say(self, line):
        if self.rank == 0:
            tqdm.write(line)

    def bar(self, i, what, total):
        self.tokens, self.bar_started = 0, time.time()
        return tqdm(total=total, desc=f"iteration {i} {what}", disable=self.rank > 0, leave=False,
                    dynamic_ncols=True)

    def advance(self, bar, count, **shown):
        """Move a progress bar on, with tokens per second since it began."""
        speed = self.tokens / (time.time() - self.bar_started)
        bar.set_postfix(shown | {"tok/s": f"{speed:.0f}"}, refresh=False)
        bar.update(count)

    def steps(self, i, phase, total):
        """The numbers of a phase's training steps, under a progress bar; logs the time of each."""
        with self.bar(i, phase, total) as bar:
            for step in range(total):
                started, before = time.time(), self.tokens
                yield step
                seconds = time.time() - started
                self._append("timings.jsonl", {
                    "iteration": i, "phase": phase, "step": step, "seconds": seconds,
                    "sampled_tokens_per_second": (self.tokens - before) / seconds,
                    "peak_memory_mib": peak_memory()})
                self.advance(bar, 1, reward=f"{self.latest['reward']:.2f}")

    def summarise(self):
        """Write summary.json and print the result."""
        if self.rank > 0:
            return
        rows = self.read_lines("metrics.jsonl")
        accuracy = [row["heldout_accuracy"] for row in rows if row["phase"] == "evaluation"]
        summary = {"preset": self.config.preset, "model": self.config.model, "seed": self.config.seed,
                   "world_size": self.world, "wall_seconds": self.state["wall_seconds"],
                   "heldout_accuracy": accuracy,
                   "funnel": [row["funnel"] for row in rows if row["phase"] == "curriculum"]}
        write_json(self.path / "summary.json", summary)
        self.say("held-out accuracy: " + " -> ".join(f"{100 * a:.1f} %" for a in accuracy)
                 + f"   ({summary['wall_seconds'] / 60:.1f} minutes; {self.path}/summary.json)")


def peak_memory():
    """Peak memory of this process in MiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_json(path, value):
    replace_file(path, json.dumps(value, indent=2) + "\n")


def replace_file(path, text):
    """Write a file so that a reader, or a crash, sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


# ---------------------------------------------------------------------------------------------
# Command line


def base_path(config):
    return tiny.PATH if config.model == "tiny" else config.model


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line and exit code 2."""

    def error(self, message):
        refuse(message)


def refuse(message):
    if os.environ.get("RANK", "0") == "0":
        print(f"selfplay.py: {message}", file=sys.stderr)
    sys.exit(2)


def boolean(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def parse(argv):
    """Config from the command line: the preset, with the flags that were given over it."""
    parser = OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)     # the launcher passes it
    for field in dataclasses.fields(Config):
        if field.name != "preset":
            parser.add_argument(f"--{field.name}", type=boolean if field.type is bool else field.type,
                                default=argparse.SUPPRESS, help=f"paper: {field.default}")
    given = vars(parser.parse_args(argv))
    given.pop("local_rank")
    config = Config(**PRESETS[given["preset"]] | given)
    problem = find_problem(config)
    if problem:
        refuse(problem)
    return config


def find_problem(config):
    """What is wrong with the settings, in one line, or None."""
    for field in dataclasses.fields(config):
        value, least = getattr(config, field.name), 2 if field.name == "group_size" else 1
        if field.type is int and field.name != "seed" and value < least:
            return f"--{field.name} is {value}: it must be at least {least}"
        if field.type is float and not 0 < value < float("inf"):
            return f"--{field.name} is {value}: it must be above 0"
    if config.epsilon >= 1:
        return f"--epsilon is {config.epsilon}: it must be below 1"
    if config.dtype not in ("bf16", "fp32"):
        return f"--dtype is {config.dtype!r}: choose bf16 or fp32"
    try:
        weights = config.domain_weights
    except ValueError:
        return f"--domains {config.domains!r}: write domain or domain:weight, separated by commas"
    if not all(weights) or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        return f"--domains {config.domains!r}: names may not be empty, weights not negative or all zero"
    return directory_problem(config)


def directory_problem(config):
    """How an existing run directory disagrees with the settings, or None."""
    file = config.path / "config.json"
    if not file.exists():
        return None
    before, now = json.loads(file.read_text())["config"], dataclasses.asdict(config)
    differing = [f"--{name} was {before.get(name)!r} and is {value!r}" for name, value in now.items()
                 if name not in CHANGEABLE and before.get(name) != value]
    if differing:
        return f"{config.path} holds a run with other settings: {'; '.join(differing)}. Give another --run_dir"
    return None


def main(argv=None):
    warnings.filterwarnings("ignore", category=FutureWarning)
    config = parse(argv)
    try:
        tokenizer = lms.load_tokenizer(base_path(config))
        sample_task = tiny.heldout(1)[0]
        score_ids = lms.choice_ids(tokenizer, curriculum.judge_prompt(sample_task), curriculum.SCORES)
    except ValueError as error:
        refuse(f"--model {config.model}: {error}")
    device = grpo.init_distributed()
    if lms.rank_and_world()[0] == 0:
        write_json(config.path / "config.json", {
            "config": dataclasses.asdict(config),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                         "deepspeed": grpo.deepspeed.__version__}})
    run = Run(config, tokenizer, score_ids, device)
    self_play(run)
    run.summarise()


if __name__ == "__main__":
    main()
