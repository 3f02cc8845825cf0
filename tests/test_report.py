"""report.py on small run directories written here, finished and cut off at any point."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import report

ROOT = Path(__file__).resolve().parent.parent
TOOLS = [{"name": "book_train", "description": "Book a train.", "required": ["city"],
          "parameters": {"city": {"type": "string"}}}]
GOLD = [{"name": "book_train", "arguments": {"city": "Oslo"}}]
SPEC = {"domain": "travel", "context": "single_turn", "tools": 1, "calls": 1}


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def heldout(errors):
    return [{"question": f"q{n}", "tools": TOOLS, "gold": GOLD, "answer": f"a{n}", "error": error}
            for n, error in enumerate(errors)]


def candidate(reason, kept, p=None, question="Book a train to Oslo.", domain="travel"):
    task = {"question": question, "tools": TOOLS, "answer": GOLD, "spec": SPEC, "pass_rate": p,
            "bucket": p and "medium"}
    return {"text": "t", "spec": SPEC | {"domain": domain}, "reason": reason, "kept": kept,
            "task": None if reason == "unparsed" else task}


POOL = [candidate(None, True, 0.5), candidate(None, True, 0.8, "Book a train.", "weather"),
        candidate(None, False, 0.6), candidate("not_verified", False, 0.0),
        candidate("unparsed", False)]


def write_run(path, accuracy=(0.25, 0.5, 0.75), **config):
    """A run of two iterations with four steps per phase and four held-out tasks."""
    settings = {"preset": "tiny", "seed": 0, "iterations": 2, "generator_steps": 4,
                "solver_steps": 4, "probes": 2, "verify_samples": 10, "run_dir": str(path)} | config
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"config": settings}))
    metrics, timings = [], []
    for i, share in enumerate(accuracy):
        write_lines(path / f"iter{i}/heldout.jsonl",
                    heldout([None] * round(4 * share) + ["format"] * round(4 - 4 * share)))
        for phase in ("generator", "solver") if i else ():
            for step in range(4):
                metrics.append({"iteration": i, "phase": phase, "step": step, "reward": step,
                                "reward_format": 0.5, "dead_groups": 0.9, "truncated": 0,
                                "entropy": 0.1, "sampler_gap": 0.001,
                                "pass_rates": [step / 4, None]})
                timings.append({"iteration": i, "phase": phase, "step": step, "seconds": 10,
                                "sampling": 6, "training": 3, "peak_memory_mib": 7})
        if i:
            write_lines(path / f"iter{i}/pool.jsonl", POOL)
    write_lines(path / "metrics.jsonl", metrics)
    write_lines(path / "timings.jsonl", timings)
    return path


def test_the_page_has_the_numbers(tmp_path):
    path = write_run(tmp_path / "run")
    assert report.write(path) == f"report: {path}/report.md, curves.png"
    page = (path / "report.md").read_text()
    assert "| base | 25.0 | 4.6 to 69.9 | - | - | 3 | 0 | 0 |" in page      # Wilson, n = 4, by hand
    assert "| 2 | 75.0 | 30.1 to 95.4 | 1 | 0 | 1 | 0 | 0 |" in page
    assert "| reward | 0.00 -> 3.00 | 0.00 -> 3.00 |" in page
    assert "| candidates | 5 | 5 |" in page and "| **in the curriculum** | 2 | 2 |" in page
    assert "| dropped: `not_verified` | 1 | 1 |" in page and "| **sound, spare** | 1 | 1 |" in page
    assert "| 1 | 48 | 24 | 8 | 80 |" in page                               # seconds by kind
    assert "90.0 % of the groups are dead" in page
    assert "question: q1" in page and "gold:     book_train(city=\"Oslo\")" in page
    assert (path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_pass_rates_before_and_after(tmp_path):
    run = report.read_run(write_run(tmp_path / "run"))
    before, after = report.rates_before_and_after(run, 1)
    assert (before, after) == ([0.0, None], [0.75, None])
    assert report.graded(run, 1) == [0.5, 0.8, 0.6, 0.0]


def test_diversity_and_obedience_of_a_pool():
    found = report.diversity(POOL)
    assert found["questions"] == 2 / 4 and found["menus"] == 1 / 4
    assert found["domains"] == pytest.approx(1)              # one task of each of two domains
    assert report.diversity(POOL[:1] + POOL[2:])["domains"] == 1
    assert report.obedience(POOL) == {"tools": 1, "calls": 1}
    wrong = candidate(None, True, 0.5) | {"spec": SPEC | {"tools": 3}}
    assert report.obedience(POOL[:1] + [wrong]) == {"tools": 0.5, "calls": 1}


@pytest.mark.parametrize("missing", [
    ["iter1", "iter2", "iter0", "metrics.jsonl", "timings.jsonl"],
    ["iter1", "iter2", "timings.jsonl"], ["iter2/heldout.jsonl"],
    ["iter1/pool.jsonl", "iter2/pool.jsonl"], ["iter0"], ["metrics.jsonl"]])
def test_a_run_that_is_not_finished(tmp_path, missing):
    path = write_run(tmp_path / "run")
    for name in missing:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    report.write(path)
    assert "iterations evaluated" in (path / "report.md").read_text()


def test_a_log_cut_off_anywhere(tmp_path):
    path = write_run(tmp_path / "run")
    whole = (path / "metrics.jsonl").read_text()
    for size in (1, len(whole) // 3, len(whole) // 2 + 5, len(whole) - 1):
        (path / "metrics.jsonl").write_text(whole[:size])
        assert len(report.read_run(path).metrics) == whole[:size].count("\n")
    report.write(path)


def test_an_empty_curriculum(tmp_path):
    path = write_run(tmp_path / "run")
    write_lines(path / "iter1/pool.jsonl", [candidate("unparsed", False)])
    report.write(path)
    page = (path / "report.md").read_text()
    assert "100.0 % of the pool is dropped for one reason, `unparsed`" in page


def test_examples_and_cross_play_are_shown_where_logged(tmp_path):
    path = write_run(tmp_path / "run")
    write_lines(path / "iter2/examples.jsonl", [
        {"bucket": "hard", "task": POOL[0]["task"], "before": "two\nlines", "after": "done"}])
    (path / "cross_play.json").write_text(json.dumps(
        [{"solver": s, "curriculum": 1, "right": right, "tasks": 4}
         for s, right in ((0, 1), (1, 3))]))
    report.write(path)
    page = (path / "report.md").read_text()
    assert "Iteration 2, hard, pass rate 0.5" in page
    assert "    Solver 1: two\n              lines" in page
    assert "| curriculum 1: 4 tasks | 25.0 | 75.0 |" in page


def test_without_matplotlib_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run")
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert "pip install matplotlib" in report.write(path)
    assert "curves.png" not in (path / "report.md").read_text()
    assert not (path / "curves.png").exists()


def test_runs_are_grouped_by_settings_and_averaged_over_seeds(tmp_path):
    paths = [write_run(tmp_path / f"full{seed}", (0.25, 0.5, 0.5 + 0.25 * seed), seed=seed)
             for seed in range(3)]
    paths.append(write_run(tmp_path / "frozen", (0.25, 0.25), freeze=True))
    rows = report.compare([report.read_run(path) for path in paths])
    # gains of 25, 50, 75 points: mean 50, deviation 25, half interval 4.303 * 25 / sqrt(3) = 62.1
    assert ("| as most | 3 | 25.0 ± 0.0 | 50.0 ± 0.0 | 75.0 ± 25.0 | 50.0 ± 25.0 "
            "| -12.1 to +112.1 |") in rows
    assert "| freeze True | 1 | 25.0 | 25.0 | - | 0.0 | - |" in rows


@pytest.mark.parametrize("arguments, named", [([], "run directory"), (["nowhere"], "nowhere")])
def test_what_is_not_a_run_is_one_line(arguments, named):
    done = subprocess.run([sys.executable, ROOT / "report.py", *arguments], text=True,
                          capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and named in done.stderr
