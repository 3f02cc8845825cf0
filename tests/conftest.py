"""What several test files share: running the project's commands, and small complete runs."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import disk
from cli import Refused
from forks import Script

# Two tests run side by side, each on a core: small matrices only lose by a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--iterations", 1, "--generator_steps", 4, "--solver_steps", 3, "--generator_prompts", 3,
         "--solver_prompts", 3, "--group_size", 4, "--probes", 2, "--pool_size", 48,
         "--sample_rows", 32, "--verify_samples", 4, "--curriculum_size", 8,
         "--heldout_tasks", 16, "--save_every", 2]
SHORT = [*SMALL, "--generator_steps", 1, "--solver_steps", 1]      # for what one step shows


def start(*command, variables=None, cwd=ROOT, fresh=False, **options):
    """A command in the project's directory, in a process group of its own.

    Args:
        variables: more of the environment.
        fresh: start a Python of its own also for a script, which would do as a fork: see forks.py.
        options: of subprocess.Popen, for a command that is no script.
    """
    env = {name: value for name, value in os.environ.items()
           if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE",
                           "MASTER_ADDR", "MASTER_PORT")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {name: str(value) for name, value in (variables or {}).items()}
    command = [str(part) for part in command]
    is_script = command[0] == sys.executable and command[1].endswith(".py")
    if is_script and not (fresh or options or torch.cuda.is_available()):
        return Script(command[1:], env, cwd)
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True, **options)


def start_ranks(world, *command, folders=None):
    """A command on several ranks, without the launcher: a list of what `start` gives.

    Args:
        folders: the working directory of each rank.
    """
    port = free_port()
    return [start(*command, cwd=folders[rank] if folders else ROOT, variables={
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port}) for rank in range(world)]


def call_ranks(world, *command):
    """Run a command on several ranks to its end; their outputs."""
    ranks = start_ranks(world, *command)
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs[0][-4000:]
    return outputs


def call(*command, ok=True, **options):
    """Run a command to its end; its output, or (exit code, output) where it may fail."""
    process = start(*command, **options)
    try:
        output = process.communicate(timeout=600)[0]
    finally:
        kill_group(process)
    assert not ok or process.returncode == 0, output[-4000:]
    return output if ok else (process.returncode, output)


def kill_group(process):
    """End a started command and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def free_port():
    """A port that nobody listens on: fixtures may be made in two test processes at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# Runs that are interrupted -----------------------------------------------------------------------

KEPT = ("metrics.jsonl", "samples.jsonl", "iter1/pool.jsonl", "iter1/curriculum.jsonl",
        "iter1/examples.jsonl", "iter1/generator/model.safetensors",
        "iter1/solver/model.safetensors", "iter1/heldout.jsonl")


def same(path, reference):
    """Which files of two runs differ."""
    return [name for name in KEPT if (path / name).read_bytes() != (reference / name).read_bytes()]


def wait_for(condition, seconds=300):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)


def steps_logged(path):
    file = path / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def is_free(path):
    """Could a run begin in this directory?"""
    try:
        disk.Directory(path).claim()
    except Refused:
        return False
    return True


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The directory of a small complete run of one process, started as a user starts it."""
    path = tmp_path_factory.mktemp("runs") / "small"
    call(sys.executable, "selfplay.py", "--run_dir", path, *SMALL, fresh=True)
    return path
