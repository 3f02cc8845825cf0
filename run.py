"""What runs the story: the models in memory, sampling, training steps, stopping, and what is said
and logged about it.

`start(config, story)` makes a Run and tells it the story, a function of the Run, as selfplay.py
has it. Import this file before torch.
"""
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import mean

if sys.platform == "linux":
    # Read when torch is loaded. ZeRO-3's gathers start more OpenMP threads than there are cores,
    # and then idle ones go to sleep at once: small operations take twice as long. "active" lets
    # them wait a little: a fraction of a millisecond, for another program may want the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "active")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
import torch.distributed as dist
from tqdm import tqdm

import check
import engine
import grpo
import model as lms
import report
from cli import Refused, checked
from config import record
from disk import MEND, Directory, write_json

SLICE = 16           # chunks of the sampler in a slice of a pool: what a kill loses at most, and
                     # how many ranks can share one
COLLAPSED = 0.2      # share of different questions below which we speak of a collapse
SAVE_SECONDS = 15    # to save the last step in; the launcher gives its ranks 30 s to end
GO_ON = "What is finished is saved; the same command goes on from there."


class Run:
    """What the story works with.

    Attributes:
        config, files: config.Config; disk.Directory.
        engine: engine.Engine, the policy in training.
        actor: model.LM, a plain copy of the role in training, which samples.
        frozen: model.LM, the Solver that probes, judges and is evaluated.
        iteration, phase, step: what is being done; step is None outside of training steps.
    """

    def __init__(self, config, files, tokenizer, score_ids, device):
        """
        Args:
            score_ids: token ids of the judge's scores 1..5.
        """
        self.config, self.files, self.tokenizer, self.score_ids = (
            config, files, tokenizer, score_ids)
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        self.actor = lms.load(config.base, tokenizer, dtype, device)      # and proved
        self.engine = engine.Engine(lms.build(config.base, dtype, device), config)
        self.frozen = lms.load(config.base, tokenizer, dtype, device)
        self.iteration = self.phase = self.step = None
        self.total = 0                        # training steps of the phase
        self.done = None                      # those that are finished; None outside of training
        self.tokens, self.seconds, self.said, self.reward = 0, Counter(), set(), 0.0
        self.stopper = Stopper(files, self.save_step)

    # Models ------------------------------------------------------------------------------------

    def generator_path(self, i):
        """Checkpoint of Generator i; the base for i = 0, or always where it is frozen."""
        frozen = i == 0 or self.config.freeze_generator
        return self.config.base if frozen else str(self.files.path / f"iter{i}/generator")

    def solver_path(self, i):
        """Checkpoint of Solver i; the base for i = 0."""
        return str(self.files.path / f"iter{i}/solver") if i else self.config.base

    def of_role(self, name):
        """A setting of the role in training."""
        return getattr(self.config, f"{self.phase}_{name}")

    def train_from(self, path):
        """Start training from the fp32 weights of a checkpoint."""
        self.engine.load(lms.read_weights(path), self.of_role("temperature"))
        self.engine.copy_to(self.actor.model)

    def load(self, lm, path):
        """Give the actor or the frozen Solver the weights of a checkpoint."""
        lms.fill(lm.model, lms.read_weights(path))

    def save(self):
        """Write the checkpoint of the role in training."""
        self.engine.save(self.files.path / f"iter{self.iteration}" / self.phase, self.actor)

    # Sampling ----------------------------------------------------------------------------------

    def key(self, purpose):
        """What randomness depends on: run seed, iteration, purpose, and the training step."""
        step = () if self.step is None else (self.step,)
        return (self.config.seed, self.iteration, purpose, *step)

    def seed(self, purpose):
        """The same for random.Random."""
        return " ".join(map(str, self.key(purpose)))

    def encode(self, chat, close=False):
        """Token ids of chat messages, as for model.encode_chat."""
        return lms.encode_chat(self.tokenizer, chat, close)

    def fits(self, chat):
        """Are the messages short enough to be a prompt?"""
        return len(self.encode(chat)) <= self.config.max_prompt

    def sample(self, lm, chats, samples, purpose, temperature, max_tokens, first=0):
        """model.sample for chat messages; time and tokens are counted."""
        with self.timed("sampling" if lm is self.actor else "probing"):
            groups = lms.sample(lm, [self.encode(chat) for chat in chats], samples,
                                self.key(purpose), temperature, max_tokens,
                                self.config.sample_rows, first)
        self.tokens += sum(len(rollout.ids) for rollout in lms.flat(groups))
        return groups

    def in_slices(self, purpose, items, samples, work):
        """[result for each item], kept on disk slice by slice, so that a killed run goes on.

        A slice is an eighth of the items, in whole chunks of the sampler, at most SLICE of them. It
        does not depend on the ranks, so that the same prompts stand together on any number.

        Args:
            samples: how many of each item; `work` passes it on.
            work: function of (run, items, samples, purpose, index of the first) to results.
        """
        chunk = max(1, self.config.sample_rows // samples)
        size = chunk * min(SLICE, max(1, len(items) // (8 * chunk)))
        name = f"slices/{self.iteration}-{purpose}.jsonl"
        results = self.files.kept_rows(name, size, len(items))
        with self.bar(purpose, len(items), len(results)) as bar:
            for start in range(len(results), len(items), size):
                new = work(self, items[start:start + size], samples, purpose, start)
                with self.stopper.critical:
                    self.files.append(name, *new)
                    self.files.commit()      # the time that it took
                results += new
                bar.update(len(new))
        return results

    # Phases and steps --------------------------------------------------------------------------

    def once(self, i, phase, work):
        """Do a phase unless it is finished; then record that it is, as the last thing."""
        if [i, phase] in self.files.state["finished"]:
            return
        self.iteration, self.phase, self.step = i, phase, None
        started, self.seconds = time.time(), Counter()
        work(self, i)
        self.step = self.done = None
        if phase in ("curriculum", "evaluation"):
            self.log({"seconds": time.time() - started, **self.seconds}, "timings.jsonl")
        dist.barrier()      # all of its files are there
        with self.stopper.critical:
            self.files.finish(i, phase)
        if phase == "evaluation" and i < self.config.iterations and self.files.rank == 0:
            report.write(self.files.path)      # the last time it is for `summarise` to do

    def steps(self, total):
        """The training steps of this phase that are still to do, under a progress bar; logs the
        time of each, and saves a resumable state now and then."""
        self.total, self.done = total, self.files.done_steps(self.iteration, self.phase)
        if self.done:
            self.engine.restore(on_every_rank(self.files.load_step))
            self.engine.copy_to(self.actor.model)
        with self.bar(self.phase, total, self.done) as bar:
            for self.step in range(self.done, total):
                started, self.tokens, self.seconds = time.time(), 0, Counter()
                yield self.step
                return_memory()
                seconds = time.time() - started
                sampling = self.seconds["sampling"] + self.seconds["probing"]
                self.log({"sampled_tokens_per_second": self.tokens / sampling,
                          "peak_memory_mib": peak_memory(), "seconds": seconds, **self.seconds},
                         "timings.jsonl")
                bar.set_postfix(reward=f"{self.reward:.2f}", refresh=False)
                bar.update()
                if self.done % self.config.save_every == 0 and self.done < total:
                    with self.stopper.critical:
                        self.save_step(60 * self.config.collective_timeout)

    def learn(self, groups, parts, metrics):
        """One GRPO step on sampled groups, and its lines in the logs.

        Args:
            parts: {name: reward} of each rollout, group after group; the reward is their sum.
            metrics: more to log.
        """
        config, rollouts = self.config, lms.flat(groups)
        reward_PG = torch.tensor([sum(part.values()) for part in parts]).view(len(groups), -1)
        rate = self.of_role("learning_rate") * (1 - self.step / self.total)      # linear to 0
        # Weights and logs change together. Where an error comes between, the lock stays held, and
        # no half of a step is saved.
        with self.timed("training"):
            metrics |= grpo.step(
                self.engine, groups, reward_PG, rate, config.micro_tokens, config.epsilon,
                config.inner_updates, commit=self.stopper.critical.acquire)
        metrics |= {"reward": reward_PG.mean().item(), "learning_rate": rate,
                    "truncated": mean(not rollout.finished for rollout in rollouts),
                    "completion_tokens": mean(len(rollout.ids) for rollout in rollouts)}
        metrics |= {f"reward_{name}": mean(part[name] for part in parts) for name in parts[0]}
        self.log(metrics)
        self.log_samples(rollouts, parts)
        self.done = self.step + 1
        self.stopper.critical.release()
        with self.timed("sync"):
            self.engine.copy_to(self.actor.model)
        if config.assert_invariants:
            check.check_step(config, groups, self.actor.eos, metrics)
        self.engine.write_events(self.phase, (self.iteration - 1) * self.total + self.step, metrics)
        self.reward = metrics["reward"]
        for kind, sentence in step_problems(reward_PG, metrics).items():
            if (self.iteration, self.phase, kind) not in self.said:      # once a phase
                self.said.add((self.iteration, self.phase, kind))
                self.say(f"iteration {self.iteration} {self.phase} step {self.step}: {sentence}")

    def save_step(self, patience):
        """Make the last finished step the one that the run resumes from, if the other ranks' parts
        come in `patience` seconds; returns what is saved, in words."""
        done = self.done      # the main thread may end the phase meanwhile
        if done is None:
            return "what is finished is saved"
        saved = self.files.done_steps(self.iteration, self.phase)
        if done > saved and self.files.save_step(
                self.iteration, self.phase, done, self.engine.state(), patience):
            saved = done
        return f"iteration {self.iteration} {self.phase} is saved after {saved} steps"

    # Logs and screen ---------------------------------------------------------------------------

    @contextmanager
    def timed(self, kind):
        """Count the seconds of a kind of work."""
        started = time.time()
        yield
        self.seconds[kind] += time.time() - started

    def log(self, values, name="metrics.jsonl"):
        """One line of a log. In metrics.jsonl are values that the seed determines."""
        step = {} if self.step is None else {"step": self.step}
        self.files.append(name, {"iteration": self.iteration, "phase": self.phase, **step,
                                 **values})

    def log_samples(self, rollouts, parts):
        """The best and the worst rollout of a step."""
        totals = [sum(part.values()) for part in parts]
        for kind, n in (("best", totals.index(max(totals))), ("worst", totals.index(min(totals)))):
            self.log({"kind": kind, "reward": parts[n],
                      "prompt": self.tokenizer.decode(rollouts[n].prompt),
                      "text": rollouts[n].text}, "samples.jsonl")

    def write_rows(self, name, rows):
        """Write a .jsonl file of this iteration."""
        self.files.write_rows(f"iter{self.iteration}/{name}", rows)

    def say(self, line):
        if self.files.rank == 0:
            tqdm.write(line)

    def bar(self, what, total, done):
        return tqdm(total=total, initial=done, desc=f"iteration {self.iteration} {what}",
                    disable=self.files.rank > 0, leave=False, dynamic_ncols=True)


def step_problems(reward_PG, metrics):
    """{kind: sentence} where a step taught nothing, or the Generator collapses. The run goes on."""
    found, distinct = {}, metrics.get("distinct_questions", 1)
    if metrics["dead_groups"] == 1:
        values = Counter(round(row[0].item(), 3) for row in reward_PG)
        found["dead"] = "every group is dead, nothing was learned: " + ", ".join(
            f"{count} of {len(reward_PG)} groups have only the reward {value}"
            for value, count in values.most_common())
        if metrics.get("reward_format") == 0:
            found["dead"] += (". The model never keeps to the format: give it a cold start first "
                              "(coldstart.py)")
    if distinct < COLLAPSED:
        found["collapse"] = (f"only {100 * distinct:.0f} % of the questions differ: the Generator "
                             "is collapsing, see samples.jsonl")
    return found


def return_memory():
    """Give freed host memory back to the system, where its C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory():
    """Peak memory of this process in MiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------------------------------
# Starting


def start(config, story):
    """The run, or what is left of it.

    Args:
        story: function of the Run.
    """
    tokenizer, score_ids, _, size = check.read_model(config)
    checked(lms.checkpoint_files, config.base)      # all are there, or it ends before it begins
    engine.settings(config)
    device = engine.init_distributed(config.collective_timeout)
    files = open_directory(config)
    if [config.iterations, "evaluation"] not in files.state["finished"]:
        on_rank0(lambda: files.see_room(check.disk_bytes(size, config.iterations)))
        try:
            run = Run(config, files, tokenizer, score_ids, device)
        except lms.BadCheckpoint as error:
            raise Refused(f"--model {config.model}: {error}") from None
        except (OSError, torch.OutOfMemoryError) as error:
            fail(f"--model {config.model} cannot be loaded: {lms.one_line(error)}. --check tells "
                 "how much memory it needs")
        if problem := check.turn_problem(tokenizer, run.actor.eos):
            run.say(problem)
        with unharmed(run):
            story(run)
    if files.rank == 0:
        summarise(config, files)


def open_directory(config):
    """The run's directory: claimed, seen by every rank, and brought back to its last saved step."""
    files = Directory(config.path, *lms.rank_and_world())
    on_rank0(files.claim)
    holder = on_rank0(lambda: (files.path / "lock").read_text())
    on_every_rank(lambda: see_lock(files.path, holder))
    on_rank0(lambda: write_json(files.path / "config.json", record(config) | {
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")}}))
    files.state = on_rank0(files.rewind)
    return files


def see_lock(path, holder):
    """Refused where this rank's machine does not see the directory that rank 0 has locked."""
    lock = path / "lock"
    if not lock.exists() or lock.read_text() != holder:
        raise Refused(f"{path.resolve()} is not on a file system that all ranks share: "
                      f"{socket.gethostname()} does not see it")


def on_every_rank(work):
    """Result of work() on this rank, once it has succeeded on all; what one refuses, all refuse."""
    result, problem = None, None
    try:
        result = work()
    except Refused as error:
        problem = str(error)
    except OSError as error:
        problem = f"a file cannot be read or written: {error}"
    for problem in filter(None, lms.of_every_rank(problem)):
        raise Refused(problem)
    return result


def on_rank0(work):
    """Result of work() on rank 0, on every rank; what it refuses there is refused on all."""
    mine = on_every_rank(work if lms.rank_and_world()[0] == 0 else lambda: None)
    return lms.of_every_rank(mine)[0]


def summarise(config, files):
    """Write summary.json and print the result."""
    rows = files.read_rows("metrics.jsonl")
    accuracy = [row["heldout_accuracy"] for row in rows if row["phase"] == "evaluation"]
    declined = [row["heldout_declined"] for row in rows if row["phase"] == "evaluation"]
    summary = {"preset": config.preset, "model": config.model, "seed": config.seed,
               "world_size": files.world, "wall_seconds": files.state["wall_seconds"],
               "heldout_accuracy": accuracy, "heldout_declined": declined,
               "funnel": [row["funnel"] for row in rows if row["phase"] == "curriculum"]}
    write_json(files.path / "summary.json", summary)
    tqdm.write("held-out accuracy: " + " -> ".join(f"{100 * a:.1f} %" for a in accuracy)
               + f"   ({summary['wall_seconds'] / 60:.1f} minutes; {files.path}/summary.json)")
    tqdm.write(report.write(files.path))


# ---------------------------------------------------------------------------------------------
# Ending early


@contextmanager
def unharmed(run):
    """Turn what can go wrong in the middle of a run into one line; what was finished stays."""
    files = run.files
    try:
        yield
    except lms.NonFinite as error:
        step, name = run.step or 0, f"failure-rank{files.rank}.json"
        write_json(files.path / name, {
            "iteration": run.iteration, "phase": run.phase, "step": step, "rank": files.rank,
            "what": str(error),
            "samples": [{"prompt": run.tokenizer.decode(rollout.prompt), "text": rollout.text,
                         "ids": rollout.ids} for rollout in error.rollouts]})
        fail(f"{error} in iteration {run.iteration}, {run.phase} step {step}, rank {files.rank}: "
             f"the samples are in {files.path / name}. Nothing was learned from them.")
    except lms.BadCheckpoint as error:
        raise Refused(f"{error}{MEND}") from None
    except OSError as error:
        fail(f"a file cannot be read or written: {error}. {GO_ON}")
    except torch.OutOfMemoryError as error:
        fail(f"{lms.one_line(error)}: give a smaller --micro_tokens or --sample_rows. {GO_ON}")
    except RuntimeError as error:
        # Another rank ended: either the run is being stopped, or it died.
        if run.stopper.stopping.wait(2):
            run.stopper.join()
        if files.world == 1 or not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        fail(f"rank {files.rank} lost another rank ({str(error).splitlines()[0][:200]}). {GO_ON}")


def fail(message):
    """End this rank with one line. The launcher ends the others."""
    tell(f"{Path(sys.argv[0]).name}: {message}")
    os._exit(1)


def tell(line):
    """The last line of a process, if anybody is left to read it."""
    with suppress(OSError, ValueError):
        print(f"\n{line}", file=sys.stderr, flush=True)
        sys.stdout.flush()


class Stopper(threading.Thread):
    """Ends the process in order on Ctrl-C, SIGTERM, or when the launcher is gone.

    A thread of its own: the main thread may hang in a collective, where Python runs no signal
    handler.

    Attributes:
        critical: lock held by the main thread while weights and logs change together.
        stopping: set once the end has begun.
    """

    def __init__(self, directory, save):
        """
        Args:
            directory: the run's Directory.
            save: function of the seconds that it may take, which saves the last finished step and
                returns a sentence.
        """
        super().__init__(daemon=True)
        self.directory, self.save = directory, save
        self.critical, self.stopping = threading.RLock(), threading.Event()
        # A rank's parents that are its launcher's: two under DeepSpeed's, one under torchrun.
        self.launchers = 2 if "LOCAL_SIZE" in os.environ else int("LOCAL_WORLD_SIZE" in os.environ)
        self.ancestors = ancestors()[:self.launchers]
        self.pipe, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)      # the thread reads the signal from the pipe
        self.start()

    def run(self):
        while True:
            ready, _, _ = select.select([self.pipe], [], [], 0.3)
            if ready:
                self.stop(os.read(self.pipe, 1)[0])
            elif (self.directory.stop_file.exists()
                  or ancestors()[:self.launchers] != self.ancestors):
                self.stop(signal.SIGTERM)

    def stop(self, number):
        """Save and end the process with the exit code that shells give to the signal."""
        self.stopping.set()
        with suppress(OSError):
            self.directory.stop_file.touch()
        deadline = time.time() + SAVE_SECONDS
        sentence = "the last step could not be saved"
        try:
            # A step that is changing the weights right now is finished first.
            if self.critical.acquire(timeout=SAVE_SECONDS):
                sentence = self.save(deadline - time.time())
        finally:      # whatever happens, the process has to end
            if self.directory.rank == 0:
                tell(f"stopped: {sentence}. The same command goes on from there.")
            os._exit(128 + number)


def ancestors():
    """(parent, grandparent) process ids."""
    parent = os.getppid()
    try:
        fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
        return parent, int(fields[1])
    except OSError:          # no such process, or no /proc
        return parent, 0
