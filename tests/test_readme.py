"""What README and docs/ say: numbers from one source, code that runs, names that exist."""
import inspect
import re
import sys
from statistics import mean

import pytest
from safetensors.torch import load_file

import selfplay
import tiny
from config import Config
from conftest import ROOT, SHORT, call, lines
from memory_table import memory_table

README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def test_the_first_numbers_are_the_means_of_the_seeds():
    first = re.search(r"^\| embedded model.*\| (.*) \| (.*) \| (.*) \| (.*) \|$", README, re.M)
    base, *iterations = map(float, first.groups())
    rows = re.findall(r"^\| iteration \d \| (.*) \|$", README, re.M)
    assert len(rows) == 3 and f"the base has {base}:" in README
    for shown, row in zip(iterations, rows):
        *seeds, average = map(float, row.split(" | "))
        assert len(seeds) == 5 and shown == average == round(mean(seeds), 1)


def test_the_number_of_parameters_is_the_files():
    count = sum(weight.numel() for weight in load_file(tiny.PATH / "model.safetensors").values())
    assert f"{count / 1e6:.1f} million parameters" in README


def test_the_story_stands_in_the_readme_as_it_is():
    assert inspect.getsource(selfplay.self_play) in README


def test_the_readme_is_short():
    assert README.count("\n") <= 180


def test_every_file_and_page_that_is_named_exists():
    for text in (README, *DOCS.values()):
        for name in re.findall(r"`((?:bench/|tests/|docs/|benchmarks/)?\w+\.(?:py|sh))`", text):
            there = (ROOT / name).exists() or (ROOT / "tests" / name).exists()
            assert there or name == "mine.py", name
        for link in re.findall(r"\]\((docs/\S+?)\)", text):
            assert (ROOT / link).exists(), link


def test_every_test_that_is_named_exists():
    source = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(?:test_\w+\.py::)?(test_\w+)\.\.\.`", DOCS["reliability.md"]):
        assert f"def {name}" in source, name


def test_the_memory_table_is_todays():
    assert memory_table(Config()) in DOCS["deployment.md"]


def test_the_metrics_page_has_every_metric_of_a_run(small_run):
    table = DOCS["metrics.md"]
    for row in lines(small_run / "metrics.jsonl"):
        for name in set(row) - {"iteration", "phase", "step"}:
            assert f"`{name}`" in table or "reward_" in name and "`reward_*`" in table, name


@pytest.mark.parametrize("number", range(3))
def test_the_changes_in_the_docs_run(number, tmp_path):
    """Each is a file of a reader's own beside the others."""
    code = re.findall(r"```python\n(.*?)```", DOCS["changing.md"], re.S)[number]
    (tmp_path / "mine.py").write_text(code)
    command = re.findall(r"^    python (mine\.py.*)$", DOCS["changing.md"], re.M)[number].split()
    arguments = [*command[1:], "--run_dir", tmp_path / "run", *SHORT] if number < 2 else []
    output = call(sys.executable, tmp_path / "mine.py", *arguments)
    if number == 1:
        rows = [row for row in lines(tmp_path / "run/metrics.jsonl") if row["phase"] == "solver"]
        assert all(0 < row["reward_brevity"] <= 0.2 for row in rows)
        assert "`reward_brevity`" in (tmp_path / "run/report.md").read_text()
    if number == 2:
        rewards = [float(line.split()[1]) for line in output.splitlines() if line[:6] == "reward"]
        assert len(rewards) == 8 and rewards[-1] > rewards[0]


def test_the_page_on_changes_is_short():
    assert DOCS["changing.md"].count("\n") <= 60
