"""The table of bench/ablations.sh: held-out accuracy of each variant in %, over its seeds.

    python bench/ablations_table.py runs/ablations

A variant is named as its folders are, by its flag. The paper's column is its mean accuracy over
five benchmarks with Qwen2.5-1.5B, single runs.
"""
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent))

from disk import read_json
from report import spread, table

PAPER = {"full": "47.84", "shared_weights": "30.42", "freeze_generator": "41.65",
         "no_difficulty": "43.54", "rectangular_band": "44.10"}


def variants(folder):
    """{name: summaries of its finished runs}, the full method first."""
    found = defaultdict(list, full=[])
    for path in sorted(Path(folder).glob("*-*/summary.json")):
        found[path.parent.name.rpartition("-")[0]].append(read_json(path))
    return found


def row(name, runs):
    """Accuracy of the base and after each iteration, the mean size of a curriculum, the paper's
    number, and how many seeds."""
    accuracy = [spread([100 * p for p in column])
                for column in zip(*(run["heldout_accuracy"] for run in runs))]
    size = mean(funnel["curriculum"] for run in runs for funnel in run["funnel"])
    return [name.replace("_", " "), *accuracy, f"{size:.0f}", PAPER.get(name, ""), len(runs)]


if __name__ == "__main__":
    head = ["", "base", "iteration 1", "2", "3", "tasks in a curriculum", "paper, 1.5B", "seeds"]
    rows = [row(name, runs) for name, runs in
            variants(sys.argv[1] if len(sys.argv) > 1 else "runs/ablations").items() if runs]
    print("\n".join(table(head, rows)))
