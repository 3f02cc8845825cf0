"""What several test files share: running the project's commands, and small complete runs."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Two tests run side by side, each on a core: small matrices only lose by a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--iterations", 1, "--generator_steps", 4, "--solver_steps", 3, "--generator_prompts", 3,
         "--solver_prompts", 3, "--group_size", 4, "--probes", 2, "--pool_size", 48,
         "--sample_rows", 16, "--verify_samples", 4, "--curriculum_size", 8,
         "--heldout_tasks", 16, "--save_every", 2]


def start(*command, variables=None, cwd=ROOT, **options):
    """A command in the project's directory, in a process group of its own.

    Args:
        variables: more of the environment.
    """
    env = {name: value for name, value in os.environ.items()
           if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE",
                           "MASTER_ADDR", "MASTER_PORT")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {name: str(value) for name, value in (variables or {}).items()}
    return subprocess.Popen([str(part) for part in command], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True, **options)


def call(*command, ok=True, **options):
    """Run a command to its end; its output, or (exit code, output) where it may fail."""
    process = start(*command, **options)
    try:
        output = process.communicate(timeout=300)[0]
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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The directory of a small complete run of one process."""
    path = tmp_path_factory.mktemp("runs") / "small"
    call(sys.executable, "selfplay.py", "--run_dir", path, *SMALL)
    return path
