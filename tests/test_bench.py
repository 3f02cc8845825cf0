"""The benchmarks' own parts: turns, medians and ratios; the runs that need no other software."""
import json
import subprocess
import sys

import pytest

import tiny

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


@pytest.mark.slow
def test_log_probs_need_a_fraction_of_the_memory_and_have_the_plain_gradient(tmp_path):
    result = run("logprobs.py", tmp_path, "--tokens", "2048", "--hidden", "128", "--device", "cpu")
    assert result["others"]["plain"]["ratio"] > 4
    assert result["settings"]["gradient_gap"] < 1e-5
