"""report.py on small run directories written here, finished and cut off at any point."""
import json
import runpy
import shutil
import sys
import types

import pytest
from conftest import ROOT
from matplotlib.figure import Figure

import config
import report
import tiny
from cli import Refused

TOOLS = [{"name": "book_train", "description": "Book a train.", "required": ["city"],
          "parameters": {"city": {"type": "string"}}}]
GOLD = [{"name": "book_train", "arguments": {"city": "Oslo"}}]


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def heldout(errors):
    return [{"question": f"q{n}", "tools": TOOLS, "gold": GOLD, "answer": f"a{n}", "error": error}
            for n, error in enumerate(errors)]


OF_PHASE = {"generator": {"valid": 0.4, "in_band": 0.3, "distinct_questions": 1,
                          "pass_rates": [0.5, 0.0, None]},
            "solver": {"right": 0.5, "task_pass_rate": 0.6}}
FUNNEL = {"pool": 5, "not_verified": 1, "unparsed": 1, "survivors": 3, "curriculum": 2}


def write_run(path, accuracy=(0.25, 0.5, 0.75), funnel=FUNNEL, more=None, **config):
    """A run of two iterations with four steps per phase and four held-out tasks.

    Args:
        more: metrics of each training step beside the usual ones.
    """
    settings = {"preset": "tiny", "model": "tiny", "seed": 0, "iterations": 2, "generator_steps": 4,
                "solver_steps": 4, "run_dir": str(path)} | config
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
                                **OF_PHASE[phase], **(more or {})})
                timings.append({"iteration": i, "phase": phase, "step": step, "seconds": 10,
                                "sampling": 6, "training": 3, "peak_memory_mib": 7})
        metrics.append({"iteration": i, "phase": "evaluation", "heldout_declined": 0.5})
        if i:
            metrics.append({"iteration": i, "phase": "curriculum", "step": 5, "funnel": funnel,
                            "mean_pass_rate": 0.65, "distinct_questions": 0.9})
    write_lines(path / "metrics.jsonl", metrics)
    write_lines(path / "timings.jsonl", timings)
    return path


def pictured(run_dir, monkeypatch):
    """The axes that report.py draws for a run."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    report.draw(report.Run(run_dir), "unused")
    return figures[0].axes


def test_the_page_has_accuracy_training_pool_and_time_in_numbers(tmp_path):
    path = write_run(tmp_path / "run")
    assert report.write(path) == f"report: {path}/report.md, curves.png"
    page = (path / "report.md").read_text()
    # Wilson's interval for n = 4, by hand.
    assert "| base | 25.0 | 4.6 to 69.9 | 50.0 | 0 | 0 | 3 |" in page
    assert "| Solver 2 | 75.0 | 30.1 to 95.4 | 50.0 | 0 | 0 | 1 |" in page
    assert "| `reward` | 0 -> 3 | 0 -> 3 |" in page
    assert "| in the curriculum | 2 | 2 |" in page and "| sound, spare | 1 | 1 |" in page
    assert "| not_verified | 1 | 1 |" in page and "| `mean_pass_rate` | 0.65 | 0.65 |" in page
    assert ("Rank 0: 160 seconds, 96 sampling, 0 probing, 48 training, 0 sync; "
            "at most 7 MiB of memory.") in page
    assert (path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_the_picture_has_nine_panels_and_none_is_empty(tmp_path, monkeypatch):
    panels = pictured(write_run(tmp_path / "run"), monkeypatch)
    assert len(panels) == 9
    assert all(axes.lines or axes.patches or axes.collections for axes in panels)
    legends = [text.get_text() for axes in panels if axes.get_legend()
               for text in axes.get_legend().get_texts()]
    assert {"valid", "in band", "distinct questions", "right", "task pass rate", "never solved",
            "Generator: dead groups", "Solver: truncated"} <= set(legends)


def test_a_new_reward_part_appears_in_table_and_picture_by_itself(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run", more={"reward_brevity": -0.25})
    report.write(path)
    assert "| `reward_brevity` | -0.25 -> -0.25 |" in (path / "report.md").read_text()
    panels = [axes for axes in pictured(path, monkeypatch)
              if axes.get_title(loc="left").endswith("reward parts")]
    assert len(panels) == 2
    for axes in panels:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["format", "brevity"]
        assert axes.get_ylim()[0] == -0.25


def test_pass_rates_are_told_apart_by_the_band():
    assert [report.standing(p) for p in (None, 0, 1 / 8, 0.25, 0.75, 7 / 8)] == [
        "no task", "never solved", "below the band", "in the band", "in the band",
        "above the band"]


@pytest.mark.parametrize("missing", [
    ["iter1", "iter2", "iter0", "metrics.jsonl", "timings.jsonl"],
    ["iter1", "iter2", "timings.jsonl"], ["iter2/heldout.jsonl"], ["iter0"], ["metrics.jsonl"]])
def test_an_unfinished_run_is_reported_as_far_as_it_has_come(tmp_path, missing):
    path = write_run(tmp_path / "run")
    for name in missing:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    report.write(path)
    done = max((i for i in range(3) if (path / f"iter{i}/heldout.jsonl").exists()), default=0)
    assert f"{done} of 2 iterations evaluated" in (path / "report.md").read_text()


def test_a_log_cut_off_anywhere_is_read_up_to_its_last_whole_line(tmp_path):
    path = write_run(tmp_path / "run")
    whole = (path / "metrics.jsonl").read_text()
    for size in (0, 1, len(whole) // 3, len(whole) // 2 + 5, len(whole) - 1, len(whole)):
        (path / "metrics.jsonl").write_text(whole[:size])
        assert len(report.Run(path).metrics) == whole[:size].count("\n")
    (path / "metrics.jsonl").write_text(whole[:len(whole) // 3])
    report.write(path)


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path = write_run(tmp_path / "run")
    rows = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join([rows[0], rows[1][:9] + "\n", *rows[2:]]))
    with pytest.raises(Refused, match="metrics.jsonl is damaged in line 2"):
        report.write(path)


def test_an_empty_curriculum_is_shown_as_such(tmp_path):
    funnel = {"pool": 5, "unparsed": 5, "survivors": 0, "curriculum": 0}
    path = write_run(tmp_path / "run", funnel=funnel)
    report.write(path)
    page = (path / "report.md").read_text()
    assert "| in the curriculum | 0 | 0 |" in page and "| unparsed | 5 | 5 |" in page


def test_tasks_are_shown_with_the_answers_before_and_after(tmp_path):
    path = write_run(tmp_path / "run")
    task = {"question": "Book a train to Oslo.", "tools": TOOLS, "answer": GOLD, "pass_rate": 0.3}
    write_lines(path / "iter2/examples.jsonl", [
        {"bucket": "hard", "task": task, "before": "two\nlines", "after": "done"}])
    report.write(path)
    page = (path / "report.md").read_text()
    assert "**Iteration 2, hard, pass rate 0.3**" in page
    assert "    menu:     book_train(city)\n" in page
    assert "    Solver 1: two\n              lines\n    Solver 2: done\n" in page


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
    rows = report.compare([report.Run(path) for path in paths])
    # gains of 25, 50, 75 points: mean 50, deviation 25, half interval 4.303 * 25 / sqrt(3) = 62.1
    assert ("| as most | 3 | 25.0 ± 0.0 | 50.0 ± 0.0 | 75.0 ± 25.0 | 50.0 ± 25.0 "
            "| -12.1 to +112.1 |") in rows
    assert "| freeze True | 1 | 25.0 | 25.0 | - | 0.0 | - |" in rows


def test_the_gain_is_that_of_the_last_iteration_that_all_runs_of_a_row_have(tmp_path):
    paths = [write_run(tmp_path / "whole", (0.25, 0.5, 1.0)),
             write_run(tmp_path / "unfinished", (0.25, 0.5), seed=1)]
    rows = report.compare([report.Run(path) for path in paths])
    assert ("| as most | 2 | 25.0 ± 0.0 | 50.0 ± 0.0 | 100.0 (1) | 25.0 ± 0.0 | +25.0 to +25.0 |"
            in rows)


@pytest.mark.parametrize("name, other", [("script", "mine.py"), ("code", "0a1b2c3d")])
def test_another_script_is_another_row_and_what_changes_no_result_is_not(tmp_path, name, other):
    paths = [write_run(tmp_path / f"{n}", (0.25, 0.5), seed=n, save_every=n) for n in range(3)]
    saved = json.loads((paths[2] / "config.json").read_text())
    (paths[2] / "config.json").write_text(json.dumps(saved | {name: other}))
    rows = report.compare([report.Run(path) for path in paths])
    assert [row.split(" | ")[:2] for row in rows[2:4]] == [["| as most", "2"],
                                                           [f"| {name} {other}", "1"]]


def test_edited_code_is_told_by_its_hash(tmp_path, monkeypatch):
    mine = types.ModuleType("mine")
    mine.__file__ = str(tmp_path / "mine.py")
    monkeypatch.setitem(sys.modules, "mine", mine)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "config.py"))
    (tmp_path / "config.py").touch()
    monkeypatch.chdir(tmp_path)      # torch has modules whose file is a bare name, and none
    hashes = []
    for name, text in (("mine.py", "1"), ("notes.py", "nothing loads it"), ("mine.py", "2")):
        (tmp_path / name).write_text(text)
        hashes.append(config.code_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_ablation_table_has_a_row_for_each_finished_variant(tmp_path, monkeypatch, capsys):
    for name, last in (("no_judge-0", 0.5), ("no_judge-1", 0.7), ("full-0", 0.9), ("full-1", 0.8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(
            {"heldout_accuracy": [0.25, 0.3, 0.4, last], "funnel": [{"curriculum": 48}] * 3,
             "heldout_declined": [0.8, 0.7, 0.6, 0.5]}))
    (tmp_path / "no_grounding-0").mkdir()
    monkeypatch.setattr(sys, "argv", ["ablations.py", "table", str(tmp_path)])
    runpy.run_path(ROOT / "bench/ablations.py", run_name="__main__")
    table = capsys.readouterr().out.splitlines()
    assert table[2:] == [
        "| full | 25.0 ± 0.0 | 30.0 ± 0.0 | 40.0 ± 0.0 | 85.0 ± 7.1 |  |  | 80.0 ± 0.0 "
        "| 50.0 ± 0.0 | 48 | 47.84 | 2 |",
        # 50 and 70: mean 60, deviation sqrt(2 * 10^2 / 1) = 14.1. Against full -40 and -10: mean
        # -25, deviation 21.2, half interval 12.706 * 21.2 / sqrt(2) = 190.6
        "| no judge | 25.0 ± 0.0 | 30.0 ± 0.0 | 40.0 ± 0.0 | 60.0 ± 14.1 | -25.0 "
        "| -215.6 to +165.6 | 80.0 ± 0.0 | 50.0 ± 0.0 | 48 |  | 2 |"]


@pytest.mark.parametrize("arguments, named", [([], "RUN"), (["nowhere"], "nowhere"),
                                              ([str(tiny.PATH)], "something else")])
def test_what_is_not_a_run_is_refused_in_one_line(monkeypatch, capsys, arguments, named):
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    with pytest.raises(SystemExit) as end:
        report.main()
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.count("\n") == 1 and named in told
