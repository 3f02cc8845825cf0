"""The ablations: one row each, the commands that run them, and the table of what they gave.

    bash bench/ablations.sh [DIR]            # runs them all, two at a time, and prints the table
    python bench/ablations.py table DIR
    python bench/ablations.py commands DIR
"""
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent))

from disk import read_json      # noqa: E402
from report import spread, table

SEEDS = range(3)
ROWS = {   # name: its flags, and the paper's mean over five benchmarks with Qwen2.5-1.5B
    "full": ("", "47.84"),
    "one policy for both roles": ("--shared_weights", "30.42"),
    "frozen Generator": ("--freeze_generator", "41.65"),
    "no difficulty reward": ("--no_difficulty", "43.54"),
    "rectangular band": ("--band rectangular", "44.10"),
    "shuffled order": ("--order shuffled", ""),
    "no judge": ("--no_judge", ""),
    "no grounding": ("--no_grounding", ""),
    "no cross-verification": ("--no_cross_verification", ""),
    "strict value shares": ("--strict_values", ""),
}


def place(folder, name, seed):
    """Run directory of a row and a seed."""
    return Path(folder) / f"{name.replace(' ', '_')}-{seed}"


def commands(folder):
    """A line for each run, seed by seed, so that the rows grow together."""
    for seed in SEEDS:
        for name, (flags, _) in ROWS.items():
            run_dir = place(folder, name, seed)
            yield (f"python selfplay.py --preset ablation --seed {seed} {flags} --run_dir {run_dir}"
                   f" >{run_dir}.log 2>&1 || echo {run_dir} failed: see {run_dir}.log")


def row(folder, name):
    """Cells of a row: accuracy in % of the base and after each iteration, and the mean size of its
    curricula, over the seeds that are finished."""
    files = [place(folder, name, seed) / "summary.json" for seed in SEEDS]
    runs = [read_json(file) for file in files if file.exists()]
    accuracies = zip(*(run["heldout_accuracy"] for run in runs))
    sizes = [size["curriculum"] for run in runs for size in run["funnel"]]
    return [name, *(spread([100 * share for share in shares]) for shares in accuracies),
            f"{mean(sizes or [0]):.0f}", ROWS[name][1], len(runs)]


def main(what, folder="runs/ablations"):
    if what == "commands":
        lines = commands(folder)
    else:
        rows = [row(folder, name) for name in ROWS]
        lines = table(["", "base", "iteration 1", "2", "3", "tasks in a curriculum", "paper, 1.5B",
                       "seeds"], [cells for cells in rows if cells[-1]])
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
