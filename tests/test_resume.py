"""Interrupted, starved, damaged: a run ends as if nothing had happened,
or says in one line what to do."""
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import disk
import run as runs
from cli import Refused
from conftest import (ROOT, SMALL, call, is_free, kill_group, lines, same, start, steps_logged,
                      wait_for)


def selfplay(path, *more):
    return sys.executable, "selfplay.py", "--run_dir", path, *SMALL, *more


def seeded():
    """A random.Random whose seed a failure prints."""
    seed = time.time_ns()
    print("seed", seed)
    return random.Random(seed)


def kill_at_random(command, path, reference, times, rng):
    """Start a run, kill -9 all of it at a random moment, and so on; then let it end."""
    took = json.loads((reference / "summary.json").read_text())["wall_seconds"]
    for _ in range(times):
        process = start(*command)
        wait_for(lambda: process.poll() is not None or (path / "config.json").exists())
        time.sleep(rng.uniform(0, took))
        kill_group(process)
        process.wait()
    call(*command)


def test_killed_at_three_moments_it_ends_the_same(small_run, tmp_path):
    kill_at_random(selfplay(tmp_path / "run"), tmp_path / "run", small_run, 3,
                   seeded())
    assert same(tmp_path / "run", small_run) == []
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert not left & {"resume", "slices"} and not list((tmp_path / "run").glob("**/*.part*"))


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_the_same(small_run, tmp_path):
    rng = seeded()
    for n in range(10):
        path = tmp_path / f"run{n}"
        kill_at_random(selfplay(path), path, small_run, 2, rng)
        assert same(path, small_run) == []


@pytest.mark.parametrize("phase, number", [("generator", signal.SIGTERM),
                                           ("solver", signal.SIGINT)])
def test_a_signal_saves_the_last_finished_step(small_run, tmp_path, phase, number):
    """In the middle of a phase, between two of its periodic saves."""
    path = tmp_path / "run"
    rows = [row["phase"] for row in lines(small_run / "metrics.jsonl")]
    process = start(*selfplay(path, "--save_every", 100))
    wait_for(lambda: steps_logged(path) >= rows.index(phase) + 1)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + number
    assert f"iteration 1 {phase} is saved after" in output and "The same command goes on" in output
    state = json.loads((path / "state.json").read_text())
    assert state["step"]["phase"] == phase and state["step"]["done"] >= 1
    call(*selfplay(path))
    assert same(path, small_run) == []


def test_a_signal_ends_the_process_where_nobody_reads_what_it_says(tmp_path):
    """As Ctrl-C does to `selfplay.py | tee log`: tee is gone first."""
    code, _ = call(sys.executable, "-c", f"""
import os, signal, time, run, disk
run.Stopper(disk.Directory({str(tmp_path)!r}), lambda patience: "saved")
read_end, write_end = os.pipe()
os.close(read_end)
os.dup2(write_end, 2)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
""", ok=False)
    assert code == 128 + signal.SIGINT


def test_a_second_run_on_one_directory_is_refused(tmp_path):
    path = tmp_path / "run"
    process = start(*selfplay(path, "--generator_steps", 500))
    wait_for((path / "config.json").exists)
    code, output = call(*selfplay(path, "--generator_steps", 500), ok=False)
    assert code == 2 and "is in use by process" in output and "Traceback" not in output
    process.kill()
    process.wait()
    assert is_free(path)


@pytest.fixture
def stopped(small_run, tmp_path):
    """A copy of the run as an interruption in the Solver's phase leaves it, and its settings."""
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    state = json.loads((path / "state.json").read_text())
    state["finished"] = state["finished"][:3]
    state["phase_sizes"]["metrics.jsonl"] = len(disk.to_lines(
        row for row in lines(path / "metrics.jsonl") if row["phase"] != "solver"
        and (row["iteration"], row["phase"]) != (1, "evaluation")).encode())
    state["phase_sizes"]["samples.jsonl"] = len(disk.to_lines(
        row for row in lines(path / "samples.jsonl") if row["phase"] != "solver").encode())
    state["phase_sizes"]["timings.jsonl"] = 0
    (path / "state.json").write_text(json.dumps(state))
    return path


def test_resume_redoes_only_what_is_unfinished(stopped, small_run):
    before = (stopped / "iter1/generator/model.safetensors").stat().st_mtime_ns
    call(*selfplay(stopped))
    assert (stopped / "iter1/generator/model.safetensors").stat().st_mtime_ns == before
    assert same(stopped, small_run) == []


def damage(path, name):
    """Cut a file off, or change it so that it still is JSON."""
    if name in ("older", "edited", "older settings", "edited settings"):
        file = path / ("config.json" if "settings" in name else "state.json")
        content = json.loads(file.read_text())
        if name == "edited":
            content["finished"] = None
        elif name == "edited settings":
            content["files"] = []
        else:
            del content["files" if name == "older settings" else "phase_sizes"]
        file.write_text(json.dumps(content))
    elif name == "garbled":
        file = path / "iter1/curriculum.jsonl"
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join([rows[0], "?" + rows[1][1:], *rows[2:]]))
    elif name == "lost":
        (path / "state.json").unlink()
    elif name == "shortened":
        file = path / "iter1/curriculum.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    else:
        content = (path / name).read_bytes()
        end = -20 if name.endswith("safetensors") else len(content) // 2
        (path / name).write_bytes(content[:end])


@pytest.mark.parametrize("name, says", [
    ("state.json", "state.json is not JSON"), ("lost", "state.json is missing"),
    ("older", "is not what this version writes"),
    ("edited", "is not what this version writes"),
    ("older settings", "config.json is not what this version writes"),
    ("edited settings", "the file of --domains has changed"),
    ("shortened", "curriculum.jsonl has lost lines"), ("config.json", "config.json is not JSON"),
    ("metrics.jsonl", "metrics.jsonl has lost lines"),
    ("iter1/curriculum.jsonl", "curriculum.jsonl has lost lines"), ("garbled", "in line 2"),
    ("iter1/generator/model.safetensors", None)])
def test_a_damaged_file_is_named_in_one_line(stopped, name, says):
    if says is None:      # the Generator's weights are read when the curriculum is built
        state = json.loads((stopped / "state.json").read_text())
        state["finished"] = state["finished"][:2]
        (stopped / "state.json").write_text(json.dumps(state))
        says = "model.safetensors is damaged"
    damage(stopped, name)
    left = {file: file.read_bytes() for file in stopped.glob("iter*/**/*") if file.is_file()}
    code, output = call(*selfplay(stopped), ok=False)
    said = [line for line in output.splitlines() if line.startswith("selfplay.py:")]
    assert code == 2 and len(said) == 1 and says in said[0] and "Traceback" not in output
    assert all(file.read_bytes() == content for file, content in left.items())


def test_a_full_disk_is_one_line_and_loses_nothing(small_run, tmp_path):
    """A limit on file sizes stands for the disk: the pool is small enough, a checkpoint is not."""
    path = tmp_path / "run"
    code, output = call(*selfplay(path), ok=False, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (2**20, 2**20)))
    said = [line for line in output.splitlines() if line.startswith("selfplay.py:")]
    assert (code == 1 and len(said) == 1 and "cannot be read or written" in said[0]
            and "Traceback" not in output)
    call(*selfplay(path))
    assert same(path, small_run) == []


def test_a_disk_without_room_is_refused_before_any_work(tmp_path):
    (tmp_path / "there").write_bytes(bytes(2**20))
    disk.Directory(tmp_path).see_room(2**20)      # it counts what is there already
    with pytest.raises(Refused, match="needs 1048576.0 GiB more"):
        disk.Directory(tmp_path).see_room(2**50 + 2**20)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    code, output = call(*selfplay(tmp_path / "file" / "run"), ok=False)
    assert code == 2 and "cannot be read or written" in output and "Traceback" not in output


@pytest.mark.parametrize("where, what", [("reward", "the gradient"),
                                         ("weights", "a sampled log-probability")])
def test_a_number_that_is_not_finite_stops_with_the_samples(tmp_path, where, what):
    code, output = call(sys.executable, ROOT / "tests/nan_worker.py", where,
                        *selfplay(tmp_path / "run")[2:], ok=False)
    assert code == 1 and "Traceback" not in output
    assert f"{what} is not finite in iteration 1, generator step 1, rank 0" in output
    failure = json.loads((tmp_path / "run/failure-rank0.json").read_text())
    assert failure["step"] == 1 and len(failure["samples"]) == 12
    assert steps_logged(tmp_path / "run") == 2, "the base's evaluation and the first step"


def test_without_memory_a_line_says_what_to_lower_and_the_run_goes_on_with_it(tmp_path):
    flags = selfplay(tmp_path / "run")[2:]
    code, output = call(sys.executable, ROOT / "tests/nan_worker.py", "memory", *flags, ok=False)
    assert code == 1 and "Traceback" not in output
    assert "give a smaller --micro_tokens or --sample_rows" in output
    call(*selfplay(tmp_path / "run"), "--micro_tokens", 2000, "--sample_rows", 8)


def test_a_pool_goes_on_after_its_last_whole_slice(tmp_path):
    folder, name = disk.Directory(tmp_path), "slices/1-pool.jsonl"
    assert folder.kept_rows(name, 3, 8) == []
    folder.append(name, *range(7))
    with open(tmp_path / name, "a") as file:
        file.write('{"a')      # what a kill leaves
    assert folder.kept_rows(name, 3, 8) == [0, 1, 2, 3, 4, 5]
    folder.append(name, 6, 7)
    assert folder.kept_rows(name, 3, 8) == list(range(8))


def test_the_time_of_a_pool_is_on_disk_slice_by_slice(tmp_path):
    """A stop within a pool keeps its slices, and what they took."""
    kept = []

    def work(run, items, *_):
        state = tmp_path / "state.json"
        kept.append(json.loads(state.read_text())["wall_seconds"] if state.exists() else 0)
        return items

    bar = SimpleNamespace(update=lambda n: None)
    run = SimpleNamespace(
        config=SimpleNamespace(sample_rows=2), iteration=1, files=disk.Directory(tmp_path),
        stopper=SimpleNamespace(critical=nullcontext()), bar=lambda *_: nullcontext(bar))
    assert runs.Run.in_slices(run, "pool", [0, 1, 2, 3, 4], 1, work) == [0, 1, 2, 3, 4]
    assert kept[0] == 0 and 0 < kept[1] < kept[2]


def test_json_lines_are_read_with_the_number_of_a_bad_one(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(Refused, match="line 2"):
        disk.read_lines(tmp_path / "rows.jsonl")


@pytest.mark.slow
def test_ten_iterations_need_no_more_than_three(tmp_path):
    """Host memory, open files, threads, and files on disk."""
    path, held = tmp_path / "run", {}
    process = start(*selfplay(path, "--iterations", 10))
    for i in (3, 9):
        wait_for(lambda: [i, "evaluation"] in finished(path), 900)
        held[i] = [len(os.listdir(f"/proc/{process.pid}/{kind}")) for kind in ("fd", "task")]
    process.communicate(timeout=300)
    assert process.returncode == 0 and held[9][0] <= held[3][0] + 1 and held[9][1] <= held[3][1]
    memory = {row["iteration"]: row["peak_memory_mib"] for row in lines(path / "timings.jsonl")
              if row["phase"] == "solver"}
    assert memory[10] < 1.1 * memory[3], memory
    files = {i: sorted(str(file.relative_to(path / f"iter{i}"))
                       for file in (path / f"iter{i}").rglob("*")) for i in (3, 10)}
    assert files[3] == files[10]
    assert {file.name for file in path.iterdir() if not file.name.startswith("iter")} == {
        "config.json", "state.json", "summary.json", "lock", "metrics.jsonl", "samples.jsonl",
        "timings.jsonl", "report.md", "curves.png"}


def finished(path):
    file = path / "state.json"
    return json.loads(file.read_text())["finished"] if file.exists() else []
