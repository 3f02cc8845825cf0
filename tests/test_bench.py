"""The benchmarks' own parts: turns, medians and ratios; the runs that need no other software."""
import json
import subprocess
import sys

import pytest

import tiny
import verify
from config import DOMAIN_SETS
from conftest import call, lines

BENCH = tiny.PATH.parent / "bench"


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import common
    return common


def test_contestants_alternate_and_the_first_round_does_not_count(common):
    order = []
    results = common.take_turns({"ours": lambda n: order.append("ours") or n,
                                 "other": lambda n: order.append("other") or 10 * n}, 2)
    assert order == ["ours", "other"] * 3
    assert results == {"ours": [1, 2], "other": [10, 20]}


@pytest.mark.parametrize("more_is_better, ratio", [(True, 2.0), (False, 0.5)])
def test_a_ratio_above_one_is_better_for_us(common, tmp_path, capsys, more_is_better, ratio):
    results = {"ours": [1.0, 8.0, 6.0], "other": [3.0, 3.0, 9.0]}
    common.report(results, "units", {"a": 1}, tmp_path / "out.json", more_is_better)
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "ours": 6.0, "others": {"other": {"value": 3.0, "ratio": ratio}}, "settings": {"a": 1}}
    assert f"{ratio:.2f} x" in capsys.readouterr().out


def test_a_worker_takes_a_turn_for_each_line(common):
    script = ("import sys; print('first', sys.stdin.readline(), file=sys.stderr)\n"
              "for n, line in enumerate(sys.stdin): print('noise'); print(f'measured {n}.5')")
    turn = common.worker([sys.executable, "-uc", script], "what to do")
    assert [turn(n) for n in range(3)] == [0.5, 1.5, 2.5]


def test_a_worker_that_ends_early_is_named(common):
    turn = common.worker([sys.executable, "-c", "input()"])
    with pytest.raises(SystemExit, match="ended early"):
        turn(0)


def test_a_model_that_is_not_there_is_one_line(common, capsys):
    parser = common.parser("A bench.")
    common.add_model(parser, None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--model", "/no/such/model"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(
        "and the hub does not know it or cannot be reached")


def test_the_gpu_script_runs_on_a_cpu(tmp_path):
    """All of it, with tiny sizes: what a GPU alone can do is skipped with a reason."""
    variables = {"OUT": str(tmp_path), "PYTHON": sys.executable}
    printed = call("bash", BENCH / "gpu.sh", "--device", "cpu", variables=variables)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert len(parts) == 7 and not any("failed" in part for part in parts.values()), printed
    assert parts.pop("graph") == {"skipped": "a CPU has no graphs"}
    assert not any("skipped" in part for part in parts.values())
    exact = parts["samples in fp32"]
    assert exact["completions"] == exact["equal to the CPU's"] == 128
    assert parts["gap in bf16"]["mean, embedded model"] < 0.02
    assert parts["NCCL"]["sum and texts arrive"] and parts["DeepSpeed"]["the copy has the weights"]
    for name, part in parts.items():
        assert all(f"{name:18}{what:44}" in printed for what in part)


def test_parts_that_want_deepspeed_are_skipped_where_it_is_not(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    for name in ("check", "engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert gpu.here("DeepSpeed", "cpu") == {"skipped": "deepspeed is not installed"}


def test_a_part_that_fails_or_dies_costs_no_other(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    def fails(size, device):
        raise RuntimeError("no\nluck")

    out = tmp_path / "runs" / "gpu.json"
    monkeypatch.setattr(gpu, "PARTS", {"one": (fails, 9), "two": (lambda *_: {"value": 1.5}, 9)})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(out)])
    gpu.main()
    assert json.loads(out.read_text())["parts"] == {
        "one": {"failed": "RuntimeError: no luck"}, "two": {"value": 1.5}}
    # In the place of Python, programs that end with a result and without one.
    for line, result in (("echo 'result {\"value\": 1.5}'", {"value": 1.5}),
                         ("exit 7", {"failed": "ended with code 7"})):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        assert gpu.apart("one", "cuda", 60) == result
    assert gpu.apart("one", "cuda", 3) == {"skipped": "no time is left"}


def run(script, tmp_path, *arguments):
    command = [sys.executable, BENCH / script, "--rounds", "1", "--json", tmp_path / "out.json",
               *arguments]
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.slow
def test_probes_share_their_prompts(tmp_path):
    """Eight samples cost far less than eight times one (the bound for an idle machine is 3)."""
    result = run("rollout.py", tmp_path, "--probes")
    assert result["others"]["K = 1"]["ratio"] > 1 / 6


def test_log_probs_of_the_default_model_are_measured(tmp_path):
    result = run("logprobs.py", tmp_path, "--tokens", "16", "--hidden", "128", "--rounds", "1",
                 "--device", "cpu")
    assert result["settings"]["gradient_gap"] < 1e-5


@pytest.mark.slow
def test_log_probs_need_a_fraction_of_the_memory_and_have_the_plain_gradient(tmp_path):
    result = run("logprobs.py", tmp_path, "--tokens", "2048", "--hidden", "128", "--device", "cpu")
    assert result["others"]["plain"]["ratio"] > 4
    assert result["settings"]["gradient_gap"] < 1e-5


def test_an_oracle_writes_the_pool_in_place_of_the_generator(tmp_path):
    call(sys.executable, BENCH / "oracle.py", "--iterations", 1,
         "--pool_size", 24, "--curriculum_size", 4, "--solver_steps", 1, "--heldout_tasks", 2,
         "--no_cross_verification", "--run_dir", tmp_path, fresh=True)
    rows = lines(tmp_path / "iter1/pool.jsonl")
    tasks = [row["task"] for row in rows if row["reason"] is None]
    assert len(rows) == 24 and len(tasks) > 12
    # The embedded Generator, had it written them, knows its own domains alone.
    assert {task["spec"]["domain"] for task in tasks} - set(DOMAIN_SETS["tiny"])
    for task in tasks:
        assert verify.call_problem(task["answer"], task["tools"]) is None, task
        assert len(task["answer"]) == task["spec"]["calls"]
    assert (tmp_path / "iter1/solver/model.safetensors").exists()
