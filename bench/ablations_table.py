"""The table of bench/ablations.sh: held-out accuracy of each variant, over its seeds.

    python bench/ablations_table.py runs/ablations

The paper's column is its mean accuracy over five benchmarks with Qwen2.5-1.5B, single runs.
"""
import json
import sys
from pathlib import Path
from statistics import mean, stdev

PAPER = {"full": "47.84", "shared_weights": "30.42", "freeze_generator": "41.65",
         "no_difficulty": "43.54", "rectangular_band": "44.10"}
WORDS = {"full": "full", "shared_weights": "one policy for both roles",
         "freeze_generator": "frozen Generator", "no_difficulty": "no difficulty reward",
         "rectangular_band": "rectangular band",
         "shuffled_order": "shuffled order", "no_judge": "no judge", "no_grounding": "no grounding",
         "no_cross_verification": "no cross-verification", "strict_values": "strict value shares"}


def row(name, folder):
    """Markdown row of a variant: accuracy in % of the base and after each iteration, as mean and
    standard deviation over the seeds, and the mean size of its curricula."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*/summary.json"))]
    if not runs:
        return None
    columns = [[100 * run["heldout_accuracy"][i] for run in runs] for i in range(4)]
    cells = [f"{mean(column):.1f}" + (f" ± {stdev(column):.1f}" if i and len(runs) > 1 else "")
             for i, column in enumerate(columns)]
    sizes = [size["curriculum"] for run in runs for size in run["funnel"]]
    return (f"| {WORDS[name]} | {' | '.join(cells)} | {mean(sizes):.0f} | {PAPER.get(name, '')} "
            f"| {len(runs)} |")


def main(folder):
    print("| | base | iteration 1 | 2 | 3 | tasks in a curriculum | paper, 1.5B | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in WORDS:
        line = row(name, Path(folder))
        if line:
            print(line)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/ablations")
