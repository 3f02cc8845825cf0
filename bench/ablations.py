"""The ablations: one row each, the commands that run them, and the table of what they gave.

    bash bench/ablations.sh [DIR]            # runs them all, two at a time, and prints the table
    python bench/ablations.py table DIR
    python bench/ablations.py commands DIR
"""
import shlex
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent))

from cli import Parser, Refused, refuse      # noqa: E402
from disk import read_json
from report import spread, t_interval, table

SEEDS = range(5)
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
    "declining taught": ("--decline 0.1", ""),
}
HEAD = ["", "base", "iteration 1", "2", "3", "3 against full", "95 %, paired",
        "declined: base", "3", "tasks in a curriculum", "paper, 1.5B", "seeds"]


def place(folder, name, seed):
    """Run directory of a row and a seed."""
    return Path(folder) / f"{name.replace(' ', '_')}-{seed}"


def commands(folder):
    """A line for each run, seed by seed, so that the rows grow together."""
    for seed in SEEDS:
        for name, (flags, _) in ROWS.items():
            run_dir = shlex.quote(str(place(folder, name, seed)))
            yield (f"python selfplay.py --preset ablation --seed {seed} {flags} --run_dir {run_dir}"
                   f" >{run_dir}.log 2>&1 || echo {run_dir} failed: see {run_dir}.log")


def finished(folder, name):
    """{seed: summary} of the runs of a row that are finished."""
    files = {seed: place(folder, name, seed) / "summary.json" for seed in SEEDS}
    return {seed: read_json(file) for seed, file in files.items() if file.exists()}


def row(folder, name):
    """Cells of a row: accuracy in % of the base and after each iteration; the difference of the
    last one to `full`, and its interval, over the seeds that both have; what is declined where no
    tool fits; the mean size of the curricula."""
    runs, full = finished(folder, name), finished(folder, "full")
    accuracies, declined = (
        [[100 * share for share in shares] for shares in zip(*(run[what] for run in runs.values()))]
        for what in ("heldout_accuracy", "heldout_declined"))
    pairs = [100 * (runs[seed]["heldout_accuracy"][-1] - full[seed]["heldout_accuracy"][-1])
             for seed in runs if seed in full and name != "full"]
    sizes = [size["curriculum"] for run in runs.values() for size in run["funnel"]]
    return [name, *map(spread, accuracies), f"{mean(pairs):+.1f}" if pairs else "",
            t_interval(pairs) if pairs else "", *(spread(column) for column in declined[::3]),
            f"{mean(sizes or [0]):.0f}", ROWS[name][1], len(runs)]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=("table", "commands"))
    parser.add_argument("folder", nargs="?", default="runs/ablations")
    args = parser.parse_args()
    if args.what == "commands":
        lines = commands(args.folder)
    else:
        rows = [row(args.folder, name) for name in ROWS]
        lines = table(HEAD, [cells for cells in rows if cells[-1]])
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except Refused as problem:
        refuse(problem)
