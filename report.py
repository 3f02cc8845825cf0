"""What self-play did: one page and one picture per run, and a table that compares runs.

    python report.py runs/tiny                     # writes runs/tiny/report.md and runs/tiny/curves.png
    python report.py runs/seed0 runs/seed1 ...     # the same for each, and prints the comparison

Reads the logs of run directories, finished or not, and computes nothing that needs a model. The
picture needs matplotlib; everything else here is the standard library. What a run has not logged
(yet) is left out.
"""
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import curriculum

ROLES = {"generator": "Generator", "solver": "Solver"}
ERRORS = ("format", "structural", "semantic")
KINDS = ("sampling", "probing", "training", "sync")
PARTS = {"generator": ("format", "validity", "curriculum"), "solver": ("format", "accuracy")}


# ---------------------------------------------------------------------------------------------
# Reading a run


@dataclass
class Run:
    """What a run directory holds; a part that is not there yet is empty."""

    path: Path
    config: dict
    metrics: list        # rows of metrics.jsonl
    timings: list        # rows of timings.jsonl
    pools: dict          # {iteration: rows of pool.jsonl}
    heldout: dict        # {iteration: rows of heldout.jsonl}
    examples: dict       # {iteration: rows of examples.jsonl}
    cross_play: dict

    @property
    def iterations(self):
        """Iterations that have logged anything, from 1 on."""
        return sorted({row["iteration"] for row in self.metrics} - {0})

    def steps(self, i, phase):
        """Rows of metrics.jsonl of one phase."""
        return [row for row in self.metrics if (row["iteration"], row["phase"]) == (i, phase)]


def read_run(path):
    """The Run in a directory, as far as it has come."""
    path = Path(path)
    iterations = sorted(int(p.name[4:]) for p in path.glob("iter*") if p.name[4:].isdigit())

    def each(name):
        found = {i: read_lines(path / f"iter{i}" / name) for i in iterations}
        return {i: rows for i, rows in found.items() if rows}
    return Run(path, read_json(path / "config.json").get("config", {}), read_lines(path / "metrics.jsonl"),
               read_lines(path / "timings.jsonl"), each("pool.jsonl"), each("heldout.jsonl"),
               each("examples.jsonl"), read_json(path / "cross_play.json"))


def read_json(file):
    """The object in a file; empty if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else {}


def read_lines(file):
    """Rows of a .jsonl file; none if it is not there. A last line that is still being written is
    left out."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------
# Numbers

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
      2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)


def wilson(right, total):
    """95 % interval of a share of independent tasks: (low, high), Wilson's score interval.

    >>> [round(bound, 4) for bound in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    z, p = 1.96, right / total
    middle, scale = p + z * z / (2 * total), 1 + z * z / total
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def t_interval(values):
    """95 % interval of the mean over seeds, Student's t: (low, high), or None for fewer than two.

    >>> [round(bound, 3) for bound in t_interval([1, 2, 3])]
    [-0.484, 4.484]
    """
    n = len(values)
    if n < 2:
        return None
    half = (_T[n - 2] if n - 2 < len(_T) else 1.96) * stdev(values) / math.sqrt(n)
    return mean(values) - half, mean(values) + half


def accuracy(run):
    """{iteration: (right, tasks)} on the held-out tasks; 0 is the base model."""
    return {i: (sum(row["error"] is None for row in rows), len(rows)) for i, rows in run.heldout.items()}


def ends(run, i, phase, key):
    """Mean of a metric over the first and over the last quarter of a phase's steps, or None."""
    values = [row[key] for row in run.steps(i, phase) if row.get(key) is not None]
    quarter = max(1, len(values) // 4)
    return (mean(values[:quarter]), mean(values[-quarter:])) if values else None


def rates_before_and_after(run, i):
    """Pass rates of the Generator's completions in the first and in the last quarter of its phase:
    two lists, None for a completion that is no task. Empty where they are not logged."""
    rows = [row["pass_rates"] for row in run.steps(i, "generator") if "pass_rates" in row]
    quarter = max(1, len(rows) // 4)
    return sum(rows[:quarter], []), sum(rows[-quarter:], [])


def histogram(rates, samples):
    """Share of all completions at each pass rate 0, 1/K, ..., 1, and the share that is no task.

    >>> histogram([0.0, 0.5, 0.5, None], 2)
    ([0.25, 0.5, 0.0], 0.25)
    """
    counts = Counter(None if p is None else round(p * samples) for p in rates)
    return [counts[k] / len(rates) for k in range(samples + 1)], counts[None] / len(rates)


def funnel(run, i):
    """Fate of the pool's candidates: Counter of "kept", "spare" (sound, not chosen) and drop
    reasons."""
    return Counter("kept" if row["kept"] else row["reason"] or "spare" for row in run.pools[i])


def diversity(rows):
    """How varied a pool is, each in 0..1: distinct questions and distinct menus (tool names) as
    shares of the parsed tasks, and the entropy over domains of the tasks kept, as a share of the
    highest possible."""
    tasks = [row["task"] for row in rows if row["task"]]
    kept = Counter(row["spec"]["domain"] for row in rows if row["kept"])
    total, domains = sum(kept.values()), len({row["spec"]["domain"] for row in rows})
    entropy = -sum(n / total * math.log(n / total) for n in kept.values())
    return {
        "questions": len({task["question"] for task in tasks}) / max(1, len(tasks)),
        "menus": len({tuple(sorted(tool["name"] for tool in task["tools"])) for task in tasks})
        / max(1, len(tasks)),
        "domains": entropy / math.log(domains) if domains > 1 else 1.0}


def obedience(rows):
    """Shares of a pool's parsed tasks with as many tools (m), and calls (n), as the spec asked."""
    pairs = [(row["task"], row["spec"]) for row in rows if row["task"]]
    return {"tools": mean([len(task["tools"]) == spec["tools"] for task, spec in pairs] or [0]),
            "calls": mean([len(task["answer"]) == spec["calls"] for task, spec in pairs] or [0])}


def time_by_kind(run, i):
    """{kind: seconds} of an iteration: sampling, probing, training, sync and other where logged,
    else by phase."""
    rows, spent = [row for row in run.timings if row["iteration"] == i], Counter()
    for row in rows:
        named = {kind: row[kind] for kind in KINDS if kind in row}
        rest = "other" if named else f"{ROLES.get(row['phase'], row['phase'])} steps"
        spent.update(named | {rest: max(0.0, row["seconds"] - sum(named.values()))})
    return dict(spent)


# ---------------------------------------------------------------------------------------------
# The picture: small multiples over one axis, the iterations

SHADES = {"generator": ("#d9622b", "#f2a97e", "#8c3a12", "#c9a227"),
          "solver": ("#2464a4", "#86b6e2", "#143a63")}
GREY, BAND = "#8a8a8a", "#dcecd6"
ERROR_SHADES = ("#d4d4d4", "#a3a3a3", "#6b6b6b")
KIND_SHADES = ("#7a9cc6", "#e3b565", "#7fb28a", "#b58fb8", "#c8c8c8")


def draw(run, file):
    """Write the picture of a run."""
    from matplotlib.figure import Figure
    chosen, columns = panels(run), 3
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(12, 2.75 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, chosen):
        axes.tick_params(labelsize=8, length=2, colors="#444444")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        panel(axes, run)
    for axes in grid[len(chosen):]:
        axes.remove()
    figure.savefig(file, dpi=150)


def panels(run):
    """The functions that draw what this run's logs allow, in order."""
    trained = {phase: any(row["phase"] == phase for row in run.metrics) for phase in ROLES}
    pool = bool(run.pools)
    wanted = [(heldout_panel, run.heldout), (errors_panel, run.heldout),
              (solver_panel, trained["solver"]), (generator_panel, trained["generator"]),
              (tasks_panel, trained["generator"]), (funnel_panel, pool)]
    wanted += [(rates_panel(i), True) for i in run.iterations
               if i in run.pools or any(rates_before_and_after(run, i))]
    wanted += [(dead_panel, any(trained.values())), (entropy_panel, any(trained.values())),
               (gap_panel, any(trained.values())), (diversity_panel, pool), (time_panel, run.timings),
               (cross_play_panel, run.cross_play)]
    return [panel for panel, there in wanted if there]


def title(axes, text, note=""):
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold", color="#222222")
    axes.set_title(note, loc="right", fontsize=7.5, color=GREY)


def percent(axes, top=None):
    """A vertical axis of shares, written as percentages, from 0."""
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def legend(axes, **places):
    axes.legend(fontsize=7.5, frameon=False, handlelength=1.4, labelcolor="#333333",
                **{"loc": "best", "borderaxespad": 0.2, "labelspacing": 0.25} | places)


def iteration_axis(axes, run):
    """Iterations as alternating ground: iteration i lies between i - 1 and i."""
    last = max(run.iterations, default=1)
    for i in range(1, last + 1):
        axes.axvspan(i - 1, i, color="#f5f5f5" if i % 2 else "white", zorder=0, linewidth=0)
    axes.set_xlim(0, last)
    axes.set_xticks([i - 0.5 for i in range(1, last + 1)],
                    [f"iteration {i}" for i in range(1, last + 1)])
    axes.tick_params(axis="x", length=0)


def smooth(values, reach=2):
    """Mean over each value and its `reach` neighbours on both sides.

    >>> smooth([0, 3, 0, 3], reach=1)
    [1.5, 1, 2, 1.5]
    """
    return [mean(values[max(0, n - reach):n + reach + 1]) for n in range(len(values))]


def line(axes, run, phase, key, label, **style):
    """A metric over the steps of one role's phases: thin as logged, thick smoothed over five."""
    for i in run.iterations:
        rows = [row for row in run.steps(i, phase) if row.get(key) is not None]
        steps = max(run.config.get(f"{phase}_steps", 1), len(rows))
        x, y = [i - 1 + (row["step"] + 0.5) / steps for row in rows], [row[key] for row in rows]
        axes.plot(x, y, linewidth=0.7, alpha=0.3, color=style["color"])
        axes.plot(x, smooth(y), linewidth=1.8, label=label if rows else None, **style)
        label = None if rows else label


def heldout_panel(axes, run):
    title(axes, "Held-out accuracy", "greedy; 95 % Wilson interval")
    found = accuracy(run)
    x, y = list(found), [right / total for right, total in found.values()]
    bounds = [wilson(*pair) for pair in found.values()]
    error = [[p - low for p, (low, _) in zip(y, bounds)], [high - p for p, (_, high) in zip(y, bounds)]]
    axes.errorbar(x, y, yerr=error, color=SHADES["solver"][0], marker="o", markersize=4.5, linewidth=2,
                  elinewidth=1.2, capsize=3)
    for i, p in zip(x, y):
        axes.annotate(f"{100 * p:.1f}", (i, p), (7, -11), textcoords="offset points", fontsize=8,
                      color=SHADES["solver"][2])
    axes.set_xlim(-0.25, max(x) + 0.45)
    axes.set_xticks(x, ["base" if i == 0 else f"Solver {i}" for i in x])
    percent(axes, 1)


def errors_panel(axes, run):
    title(axes, "Held-out answers by kind")
    bottom = dict.fromkeys(run.heldout, 0.0)
    for kind, color in zip((None, *reversed(ERRORS)), (SHADES["solver"][0], *reversed(ERROR_SHADES))):
        shares = {i: mean(row["error"] == kind for row in rows) for i, rows in run.heldout.items()}
        axes.bar(list(shares), list(shares.values()), bottom=list(bottom.values()), width=0.62, color=color,
                 label=f"wrong: {kind}" if kind else "right")
        bottom = {i: bottom[i] + share for i, share in shares.items()}
    axes.set_xticks(list(bottom), ["base" if i == 0 else f"Solver {i}" for i in bottom])
    axes.set_xlim(-0.5, max(bottom) + 1.75)
    percent(axes, 1)
    handles, labels = axes.get_legend_handles_labels()
    legend(axes, handles=handles[::-1], labels=labels[::-1], loc="center right")


def solver_panel(axes, run):
    title(axes, "Solver: reward parts", "tasks go from easy to hard in each iteration")
    iteration_axis(axes, run)
    for key, label, color in zip(("reward_accuracy", "reward_format", "right"),
                                 ("accuracy", "format", "exactly right"), SHADES["solver"]):
        line(axes, run, "solver", key, label, color=color)
    percent(axes, 1.02)
    legend(axes)


def generator_panel(axes, run):
    title(axes, "Generator: reward parts")
    iteration_axis(axes, run)
    for part, color in zip(PARTS["generator"], SHADES["generator"]):
        line(axes, run, "generator", f"reward_{part}", part, color=color)
    percent(axes, 1.02)
    legend(axes)


def tasks_panel(axes, run):
    title(axes, "Generator: its tasks", "share of completions")
    iteration_axis(axes, run)
    for key, label, color in zip(("valid", "in_band", "spec_tools", "spec_calls"),
                                 ("fully valid", "pass rate in the band", "m tools, as asked",
                                  "n calls, as asked"), SHADES["generator"]):
        line(axes, run, "generator", key, label, color=color)
    percent(axes, 1.02)
    legend(axes)


def funnel_panel(axes, run):
    title(axes, "What became of the pool", "share of candidates")
    fates = {i: funnel(run, i) for i in run.pools}
    total = sum(fates.values(), Counter())
    reasons = [reason for reason, _ in total.most_common() if reason not in ("kept", "spare")]
    names = ["kept"] + ["spare"] * ("spare" in total) + reasons[:7]
    height = 0.8 / len(fates)
    for n, (i, fate) in enumerate(fates.items()):
        fate["kept"] += 0
        shown = [fate[name] / fate.total() for name in names]
        axes.barh([k + n * height for k in range(len(names))], shown, height=height * 0.9, label=f"iteration {i}",
                  color=SHADES["generator"][0], alpha=(n + 1) / len(fates))
    axes.set_yticks([k + 0.4 - height / 2 for k in range(len(names))],
                    [{"kept": "in the curriculum", "spare": "sound, not chosen"}.get(name, name.replace("_", " "))
                     for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    legend(axes, loc="lower right")


def rates_panel(i):
    """The panel of iteration i's pass rates."""
    def panel(axes, run):
        before, after = rates_before_and_after(run, i)
        axes.axvspan(curriculum.P_LOW, curriculum.P_HIGH, color=BAND, zorder=0, linewidth=0)
        if after:
            samples = run.config["probes"]
            (first, none_first), (last, none_last) = histogram(before, samples), histogram(after, samples)
            x = [k / samples for k in range(samples + 1)]
            axes.bar(x, last, width=0.8 / samples, color=SHADES["generator"][0], label="last quarter of its steps")
            axes.step([v - 0.5 / samples for v in x] + [1 + 0.5 / samples], first + first[-1:], where="post",
                      color="#444444", linewidth=1.3, label="first quarter")
            note = f"no task: {100 * none_first:.0f} -> {100 * none_last:.0f} %"
        else:
            samples = run.config["verify_samples"]
            graded = [row["task"]["pass_rate"] for row in run.pools[i]
                      if row["task"] and row["task"]["pass_rate"] is not None]
            axes.bar([k / samples for k in range(samples + 1)], histogram(graded, samples)[0], width=0.8 / samples,
                     color=SHADES["generator"][0], label="sound tasks of its pool")
            note = f"{len(graded)} tasks"
        title(axes, f"Pass rates, Generator {i} on Solver {i - 1}", note)
        axes.set_xlabel("pass rate p; green: the band", fontsize=8, color="#444444")
        percent(axes)
        legend(axes)
    return panel


def dead_panel(axes, run):
    title(axes, "Dead groups, truncated completions", "share; they teach nothing, or little")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "dead_groups", f"{name}: dead", color=SHADES[phase][0])
        line(axes, run, phase, "truncated", f"{name}: truncated", color=SHADES[phase][1], linestyle="--")
    percent(axes)
    legend(axes)


def entropy_panel(axes, run):
    title(axes, "Entropy", "nats per token")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "entropy", name, color=SHADES[phase][0])
    axes.set_ylim(0)
    legend(axes)


def gap_panel(axes, run):
    title(axes, "Sampler-trainer gap", "nats per token, mean |difference| of log-probs")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "sampler_gap", name, color=SHADES[phase][0])
    axes.set_ylim(0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    legend(axes)


def diversity_panel(axes, run):
    title(axes, "Diversity", "share of tasks; of the greatest entropy")
    iteration_axis(axes, run)
    line(axes, run, "generator", "distinct_questions", "questions, steps", color=SHADES["generator"][0])
    line(axes, run, "generator", "distinct_signatures", "tool signatures, steps", color=SHADES["generator"][1])
    found = {i: diversity(rows) for i, rows in run.pools.items()}
    for (key, label), marker in zip({"questions": "questions, pool", "menus": "menus, pool",
                                     "domains": "entropy of domains, curriculum"}.items(), "osD"):
        axes.plot([i - 0.02 for i in found], [row[key] for row in found.values()], marker=marker, linestyle="",
                  markersize=5, color=SHADES["generator"][2], label=label, clip_on=False)
    percent(axes, 1.05)
    legend(axes)


def time_panel(axes, run):
    title(axes, "Time", "seconds")
    spent = {i: time_by_kind(run, i) for i in run.iterations}
    kinds = list(dict.fromkeys(kind for parts in spent.values() for kind in parts))
    left = dict.fromkeys(spent, 0.0)
    for kind, color in zip(kinds, KIND_SHADES):
        parts = [spent[i].get(kind, 0.0) for i in spent]
        axes.barh(list(spent), parts, left=list(left.values()), height=0.6, color=color, label=kind)
        left = {i: left[i] + part for i, part in zip(left, parts)}
    axes.set_yticks(list(spent), [f"iteration {i}" for i in spent])
    axes.set_ylim(max(spent, default=1) + 0.5, -0.4)
    axes.tick_params(axis="y", length=0)
    legend(axes, loc="upper left", ncols=3)


def cross_play_panel(axes, run):
    title(axes, "Cross-play", "% right")
    found = run.cross_play
    shares = [[right / total for right in row] for row, total in zip(found["right"], found["total"])]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for c, row in enumerate(shares):
        for s, share in enumerate(row):
            axes.text(s, c, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
                      color="white" if share > 0.55 else "#222222")
    axes.set_xticks(range(len(found["solvers"])), [f"Solver {s}" if s else "base" for s in found["solvers"]])
    axes.set_yticks(range(len(found["curricula"])), [f"curriculum {c}" for c in found["curricula"]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
