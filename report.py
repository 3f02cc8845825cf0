"""What self-play did: one page and one picture per run, and a table that compares runs.

    python report.py runs/tiny                   # writes report.md and curves.png in it
    python report.py runs/seed0 runs/seed1 ...   # the same for each, and prints the comparison

Reads the logs of run directories, finished or not, and computes nothing that needs a model. The
picture needs matplotlib; everything else here is the standard library. What a run has not logged
(yet) is left out.
"""
import importlib.util
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
FATES = {"kept": "in the curriculum", "spare": "sound, spare"}
KINDS = ("sampling", "probing", "training", "sync")


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
    cross_play: list     # what eval.py --cross_play wrote

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
    return Run(path, read_json(path / "config.json").get("config", {}),
               read_lines(path / "metrics.jsonl"), read_lines(path / "timings.jsonl"),
               each("pool.jsonl"), each("heldout.jsonl"), each("examples.jsonl"),
               read_json(path / "cross_play.json"))


def read_json(file):
    """The object in a file; empty if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else {}


def read_lines(file):
    """Rows of a .jsonl file; none if it is not there.
    A last line that is still being written is left out."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------
# Numbers

# Student's t at 97.5 % for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
      2.052, 2.048, 2.045)



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
    return {i: (sum(row["error"] is None for row in rows), len(rows))
            for i, rows in run.heldout.items()}


def solver_name(i):
    return f"Solver {i}" if i else "base"


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


def graded(run, i):
    """Pass rates of the sound tasks in a pool, dropped as not verified or not."""
    return [row["task"]["pass_rate"] for row in run.pools.get(i, [])
            if row["task"] and row["task"]["pass_rate"] is not None]


def histogram(rates, samples):
    """Share of all completions at each pass rate 0, 1/K, ..., 1, and the share that is no task.

    >>> histogram([0.0, 0.5, 0.5, None], 2)
    ([0.25, 0.5, 0.0], 0.25)
    """
    counts = Counter(None if p is None else round(p * samples) for p in rates)
    return [counts[k] / len(rates) for k in range(samples + 1)], counts[None] / len(rates)


def funnel(run, i):
    """Fate of the pool's candidates: Counter of "kept", "spare" (sound, not chosen)
    and drop reasons."""
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
    """{kind: seconds} of an iteration:
    sampling, probing, training, sync and other where logged, else by phase."""
    rows, spent = [row for row in run.timings if row["iteration"] == i], Counter()
    for row in rows:
        named = {kind: row[kind] for kind in KINDS if kind in row}
        rest = "other" if named else f"{ROLES.get(row['phase'], row['phase'])} steps"
        spent.update(named | {rest: max(0.0, row["seconds"] - sum(named.values()))})
    return dict(spent)


# ---------------------------------------------------------------------------------------------
# The picture: small multiples over one axis, the iterations

# Orange is the Generator, blue the Solver, in every panel
SHADES = {"generator": ("#d9622b", "#f2a97e", "#8c3a12", "#c9a227"),
          "solver": ("#2464a4", "#86b6e2", "#143a63")}
GREY, BAND = "#8a8a8a", "#dcecd6"
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
               if graded(run, i) or any(rates_before_and_after(run, i))]
    wanted += [(dead_panel, any(trained.values())), (entropy_panel, any(trained.values())),
               (gap_panel, any(trained.values())), (diversity_panel, pool),
               (time_panel, any(time_by_kind(run, i) for i in run.iterations)),
               (cross_play_panel, run.cross_play)]
    return [panel for panel, there in wanted if there]


def title(axes, text, note):
    """A bold title with a grey line under it: the unit, or how to read the panel."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color="#222222", pad=17)
    grey = axes.annotate(note, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
                         fontsize=8, color="#777777")
    grey.set_in_layout(False)      # else a long line would push the panels apart


def percent(axes, whole=False, room=1.35):
    """A vertical axis of shares, written as percentages, from 0, with room for a legend on top.

    Args:
        whole: up to 100 %; else up to the greatest value drawn.
    """
    axes.yaxis.get_major_locator().set_params(nbins=5, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    if whole:
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(0, room * (1 if whole else max(axes.dataLim.y1, 0.01)))


def legend(axes, columns=2, loc="upper left", **more):
    """A small legend without a frame, where there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=columns, loc=loc, fontsize=7.5, frameon=False, labelcolor="#333333",
                    handlelength=1.3, borderaxespad=0.1, labelspacing=0.25, columnspacing=1, **more)


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
    low, high = zip(*(wilson(*pair) for pair in found.values()))
    error = [[p - bound for p, bound in zip(y, low)], [bound - p for p, bound in zip(y, high)]]
    axes.errorbar(x, y, yerr=error, color=SHADES["solver"][0], marker="o", markersize=4.5,
                  linewidth=2, elinewidth=1.2, capsize=3)
    for i, p in zip(x, y):
        axes.annotate(f"{100 * p:.1f}", (i, p), (7, -11), textcoords="offset points", fontsize=8,
                      color=SHADES["solver"][2])
    axes.set_xlim(-0.25, max(x) + 0.45)
    axes.set_xticks(x, map(solver_name, x))
    percent(axes, whole=True, room=1)


def errors_panel(axes, run):
    title(axes, "Held-out answers by kind", "share of answers, base and Solvers")
    bottom = dict.fromkeys(run.heldout, 0.0)
    shades = (SHADES["solver"][0], "#6b6b6b", "#a3a3a3", "#d4d4d4")
    for kind, color in zip((None, *reversed(ERRORS)), shades):
        shares = {i: mean(row["error"] == kind for row in rows) for i, rows in run.heldout.items()}
        axes.bar(list(shares), list(shares.values()), bottom=list(bottom.values()), width=0.62,
                 color=color, label=f"wrong: {kind}" if kind else "right")
        bottom = {i: bottom[i] + share for i, share in shares.items()}
    axes.set_xticks(list(bottom), [i or "base" for i in bottom])
    percent(axes, whole=True, room=1)
    axes.set_xlim(-0.5, 1.5 * len(bottom))
    handles, labels = axes.get_legend_handles_labels()
    legend(axes, 1, handles=handles[::-1], labels=labels[::-1], loc="center right")


def solver_panel(axes, run):
    title(axes, "Solver: reward parts", "from easy to hard tasks in each iteration")
    iteration_axis(axes, run)
    line(axes, run, "solver", "task_pass_rate", "pass rate before", color=GREY, linestyle="--")
    for key, label, color in zip(("reward_accuracy", "reward_format", "right"),
                                 ("accuracy", "format", "exactly right"), SHADES["solver"]):
        line(axes, run, "solver", key, label, color=color)
    percent(axes, whole=True)
    legend(axes)


def generator_panel(axes, run):
    title(axes, "Generator: reward parts", "mean over completions")
    iteration_axis(axes, run)
    for part, color in zip(("format", "validity", "curriculum"), SHADES["generator"]):
        line(axes, run, "generator", f"reward_{part}", part, color=color)
    percent(axes, whole=True)
    legend(axes)


def tasks_panel(axes, run):
    title(axes, "Generator: its tasks", "share of completions")
    iteration_axis(axes, run)
    for key, label, color in zip(("valid", "in_band", "spec_tools", "spec_calls"),
                                 ("fully valid", "pass rate in the band", "m tools, as asked",
                                  "n calls, as asked"), SHADES["generator"]):
        line(axes, run, "generator", key, label, color=color)
    percent(axes, whole=True)
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
        axes.barh([k + n * height for k in range(len(names))], shown, height=height * 0.9,
                  label=f"iteration {i}", color=SHADES["generator"][0], alpha=(n + 1) / len(fates))
    axes.set_yticks([k + 0.4 - height / 2 for k in range(len(names))],
                    [FATES.get(name, name.replace("_", " ")) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    legend(axes, 1, loc="lower right")


def rates_panel(i):
    """The panel of iteration i's pass rates."""
    def panel(axes, run):
        before, after = rates_before_and_after(run, i)
        axes.axvspan(curriculum.P_LOW, curriculum.P_HIGH, color=BAND, zorder=0, linewidth=0)
        samples = run.config["probes" if after else "verify_samples"]
        shares, untaken = histogram(after or graded(run, i), samples)
        x = [k / samples for k in range(samples + 1)]
        axes.bar(x, shares, width=0.8 / samples, color=SHADES["generator"][0], label="last quarter")
        note = f"{len(graded(run, i))} sound tasks of the pool; green: the band"
        if after:
            first, untaken_first = histogram(before, samples)
            axes.step([v - 0.5 / samples for v in x] + [1 + 0.5 / samples], first + first[-1:],
                      where="post", color="#444444", linewidth=1.3, label="first quarter of steps")
            note = f"green: the band; no task: {100 * untaken_first:.0f} % -> {100 * untaken:.0f} %"
            legend(axes)
        title(axes, f"Pass rates, Generator {i} on {solver_name(i - 1)}", note)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        percent(axes)
    return panel


def dead_panel(axes, run):
    title(axes, "Dead groups, truncated completions", "share of groups, of completions")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "dead_groups", f"{name}: dead", color=SHADES[phase][0])
        line(axes, run, phase, "truncated", f"{name}: truncated", color=SHADES[phase][1],
             linestyle="--")
    percent(axes)
    legend(axes)


def entropy_panel(axes, run):
    title(axes, "Entropy", "of the next token, in nats")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "entropy", name, color=SHADES[phase][0])
    axes.set_ylim(0, 1.25 * axes.dataLim.y1)
    legend(axes)


def gap_panel(axes, run):
    title(axes, "Sampler-trainer gap", "mean |difference| of log-probs, in nats / 1000")
    iteration_axis(axes, run)
    for phase, name in ROLES.items():
        line(axes, run, phase, "sampler_gap", name, color=SHADES[phase][0])
    axes.set_ylim(0, 1.25 * axes.dataLim.y1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{1000 * value:.3g}")
    legend(axes)


def diversity_panel(axes, run):
    title(axes, "Diversity", "share of distinct ones; domains: entropy of the greatest")
    iteration_axis(axes, run)
    for key, label, color in zip(("distinct_questions", "distinct_signatures"),
                                 ("questions, steps", "signatures, steps"), SHADES["generator"]):
        line(axes, run, "generator", key, label, color=color)
    found = {i: diversity(rows) for i, rows in run.pools.items()}
    for (key, label), marker in zip({"questions": "questions, pool", "menus": "menus, pool",
                                     "domains": "domains, curriculum"}.items(), "osD"):
        axes.plot([i - 0.02 for i in found], [row[key] for row in found.values()], marker=marker,
                  linestyle="", markersize=5, color=SHADES["generator"][2], label=label)
    percent(axes, whole=True, room=1.5)
    legend(axes)


def time_panel(axes, run):
    title(axes, "Time", "seconds per iteration, rank 0")
    spent = {i: time_by_kind(run, i) for i in run.iterations}
    kinds = list(dict.fromkeys(kind for parts in spent.values() for kind in parts))
    left = dict.fromkeys(spent, 0.0)
    for kind, color in zip(kinds, KIND_SHADES):
        parts = [spent[i].get(kind, 0.0) for i in spent]
        axes.barh(list(spent), parts, left=list(left.values()), height=0.6, color=color, label=kind)
        left = {i: left[i] + part for i, part in zip(left, parts)}
    axes.set_yticks(list(spent))
    axes.set_ylim(max(spent, default=1) + 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    legend(axes, 3)


def cross_play_panel(axes, run):
    title(axes, "Cross-play", "% right; down: tasks of which iteration; across: Solvers")
    curricula, solvers, cells = cross_play_cells(run)
    shares = [[cells[c, s]["right"] / max(1, cells[c, s]["tasks"]) for s in solvers]
              for c in curricula]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for c, row in enumerate(shares):
        for s, share in enumerate(row):
            axes.text(s, c, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
                      color="white" if share > 0.55 else "#222222")
    axes.set_xticks(range(len(solvers)), map(solver_name, solvers))
    axes.set_yticks(range(len(curricula)), curricula)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# ---------------------------------------------------------------------------------------------
# The page


def page(run, picture):
    """report.md as a string.

    Args:
        picture: is there a curves.png beside it?
    """
    preset, model, seed, iterations = (run.config.get(name, "?")
                                       for name in ("preset", "model", "seed", "iterations"))
    lines = [f"# {run.path.resolve().name}", "",
             f"Preset {preset}, model {model}, seed {seed}; {max(run.heldout, default=0)} of "
             f"{iterations} iterations evaluated.", ""]
    if picture:
        lines += ["![curves](curves.png)", ""]
    sections = {"Held-out accuracy": heldout_section, "Worth a look": findings_section,
                "Training": training_section, "The pool": pool_section, "Time": time_section,
                "Cross-play": cross_play_section, "Tasks to read": tasks_section,
                "Held-out answers to read": answers_section}
    for heading, section in sections.items():
        body = section(run)
        if body:
            lines += [f"## {heading}", "", *body, ""]
    return "\n".join(lines)


def table(head, rows):
    """Markdown lines of a table."""
    return [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]]


def share(value):
    """A share as a percentage; a dash for None.

    >>> share(0.1234), share(None)
    ('12.3', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}"


def won_and_lost(run, i):
    """Held-out tasks that Solver i has right and the one before had wrong, and the other way round;
    (None, None) for the base."""
    if i - 1 not in run.heldout or i not in run.heldout:
        return None, None
    pairs = [(a["error"] is None, b["error"] is None)
             for a, b in zip(run.heldout[i - 1], run.heldout[i])]
    return pairs.count((False, True)), pairs.count((True, False))


def heldout_section(run):
    rows = []
    for i, (right, total) in accuracy(run).items():
        low, high = wilson(right, total)
        errors = Counter(row["error"] for row in run.heldout[i])
        rows.append([i or "base", share(right / total), f"{share(low)} to {share(high)}",
                     *("-" if count is None else count for count in won_and_lost(run, i)),
                     *(errors[kind] for kind in ERRORS)])
    return rows and table(["Solver", "right, %", "95 % interval", "newly right", "forgotten",
                           *(f"wrong: {kind}" for kind in ERRORS)], rows) + [
        "", "Greedy answers, to the same tasks every time; Wilson's interval. Newly right and "
        "forgotten count tasks against the row above."]


def findings_section(run):
    """Sentences about what a reader should not overlook: waste, collapse, forgetting."""
    found = [step_findings(run, i, phase) for i in run.iterations for phase in ROLES]
    found = sum(found, [])
    for i in run.iterations:
        if i in run.pools:
            reason, count = funnel(run, i).most_common(1)[0]
            lost_share = count / len(run.pools[i])
            if reason not in FATES and lost_share > 1 / 3:
                found.append(f"Iteration {i}: {share(lost_share)} % of the pool is dropped for one "
                             f"reason, `{reason}`.")
        won, lost = won_and_lost(run, i)
        if lost and lost > 0.05 * len(run.heldout[i]):
            found.append(f"Iteration {i}: Solver {i} forgot {lost} held-out tasks that "
                         f"{solver_name(i - 1)} had right, and learned {won}.")
    return [f"- {sentence}" for sentence in found]


def step_findings(run, i, phase):
    """What a reader should look at in the steps of one phase."""
    def at_end(key):
        return (ends(run, i, phase, key) or (0.0, 0.0))[1]
    found = []
    if at_end("dead_groups") > 0.5:
        found.append(f"{share(at_end('dead_groups'))} % of the groups are dead: nothing to learn.")
    if at_end("truncated") > 0.1:
        found.append(f"{share(at_end('truncated'))} % of the completions are truncated.")
    if at_end("sampler_gap") > 0.05:
        found.append(f"sampler and trainer differ by {at_end('sampler_gap'):.3f} nats per token.")
    before, after = ends(run, i, phase, "entropy") or (0.0, 0.0)
    if after < 0.3 * before:
        found.append(f"entropy fell from {before:.3f} to {after:.3f} nats: a collapse?")
    distinct = ends(run, i, phase, "distinct_questions")
    if distinct and distinct[1] < 0.7:
        found.append(f"only {share(distinct[1])} % of its questions differ: a collapse?")
    return [f"Iteration {i}, {ROLES[phase]}, last quarter of its steps: {what}" for what in found]


# metric, its name for readers, digits after the point
MEASURES = [("reward", "reward", 2), ("reward_format", "format, %", 1),
            ("reward_validity", "validity, %", 1), ("reward_curriculum", "curriculum, %", 1),
            ("reward_accuracy", "accuracy, %", 1), ("right", "exactly right, %", 1),
            ("task_pass_rate", "pass rate before, %", 1), ("valid", "fully valid, %", 1),
            ("in_band", "pass rate in the band, %", 1), ("spec_tools", "m tools, as asked, %", 1),
            ("spec_calls", "n calls, as asked, %", 1),
            ("distinct_questions", "distinct questions, %", 1),
            ("distinct_signatures", "distinct signatures, %", 1),
            ("dead_groups", "dead groups, %", 1), ("truncated", "truncated, %", 1),
            ("entropy", "entropy, nats", 3), ("sampler_gap", "sampler-trainer gap, nats", 4)]


def training_section(run):
    lines = []
    for phase, name in ROLES.items():
        trained, rows = [i for i in run.iterations if run.steps(i, phase)], []
        for key, label, digits in MEASURES:
            pairs, scale = [ends(run, i, phase, key) for i in trained], 100 if "%" in label else 1
            if any(pairs):
                rows.append([label, *(
                    " -> ".join(f"{scale * value:.{digits}f}" for value in pair) if pair else "-"
                    for pair in pairs)])
        if rows:
            lines += table([name, *(f"iteration {i}" for i in trained)], rows) + [""]
    return lines and lines + [
        "Means over the first and the last quarter of a phase's steps. The Solver's tasks get "
        "harder within a phase: compare `exactly right` with `pass rate before`, which the Solver "
        "before had on the same tasks when they were graded. Grading sampled at a lower "
        "temperature, and the easy end was in part lucky, so that falling short of it there is not "
        "forgetting."]


def pool_section(run):
    if not run.pools:
        return []
    fates = {i: funnel(run, i) for i in run.pools}
    rows = [["candidates", *(len(rows) for rows in run.pools.values())]]
    for name, _ in sum(fates.values(), Counter()).most_common():
        rows.append([f"**{FATES[name]}**" if name in FATES else f"dropped: `{name}`",
                     *(fate[name] for fate in fates.values())])
    rates = [graded(run, i) for i in fates]
    rows.append(["pass rate in the band, % of the sound tasks", *(
        share(mean(map(curriculum.in_band, found)) if found else None) for found in rates)])
    varied = [diversity(rows) | obedience(rows) for rows in run.pools.values()]
    for key, label in (("questions", "distinct questions, %"), ("menus", "distinct menus, %"),
                       ("domains", "domain entropy of the curriculum, % of the greatest"),
                       ("tools", "m tools, as asked, %"), ("calls", "n calls, as asked, %")):
        rows.append([label, *(share(row[key]) for row in varied)])
    return table(["", *(f"iteration {i}" for i in fates)], rows)


def time_section(run):
    spent = {i: time_by_kind(run, i) for i in run.iterations}
    kinds = list(dict.fromkeys(kind for parts in spent.values() for kind in parts))
    rows = [[i, *(f"{parts.get(kind, 0):.0f}" for kind in kinds), f"{sum(parts.values()):.0f}"]
            for i, parts in spent.items()]
    peak = max((row.get("peak_memory_mib", 0) for row in run.timings), default=0)
    return kinds and table(["iteration", *(f"{kind}, s" for kind in kinds), "all, s"], rows) + [
        "", f"Seconds of rank 0, which had at most {peak:.0f} MiB of memory in use."]


def cross_play_section(run):
    curricula, solvers, cells = cross_play_cells(run)
    rows = [[f"curriculum {c}: {cells[c, solvers[0]]['tasks']} tasks",
             *(share(cells[c, s]["right"] / max(1, cells[c, s]["tasks"])) for s in solvers)]
            for c in curricula]
    return rows and table(["% right", *map(solver_name, solvers)], rows)


def cross_play_cells(run):
    """(curricula, Solvers, {(curriculum, Solver): cell}) of what `eval.py --cross_play` wrote."""
    cells = {(cell["curriculum"], cell["solver"]): cell for cell in run.cross_play}
    return sorted({c for c, _ in cells}), sorted({s for _, s in cells}), cells


def tasks_section(run):
    """Three tasks per bucket of the last curriculum, with the Solver's answers before and after it
    where they are logged."""
    last, lines = max(run.examples or run.pools, default=0), []
    rows = run.examples.get(last) or [
        {"bucket": row["task"]["bucket"], "task": row["task"]} for row in run.pools.get(last, ())
        if row["kept"]]
    for bucket in curriculum.BUCKETS:
        for row in [row for row in rows if row["bucket"] == bucket][:3]:
            lines += readable(
                f"Iteration {last}, {bucket}, pass rate {row['task']['pass_rate']:.1f}",
                row["task"], row["task"]["answer"],
                [(solver_name(last - 1), row.get("before")), (solver_name(last), row.get("after"))])
    return lines


def answers_section(run):
    """Held-out tasks, three each, that the last Solver has newly right, forgot, and never knew."""
    last, lines = max(run.heldout, default=0), []
    if last == 0 or 0 not in run.heldout:
        return []
    for heading, wanted in (("newly right", (False, True)), ("forgotten", (True, False)),
                            ("still wrong", (False, False))):
        pairs = [(a, b) for a, b in zip(run.heldout[0], run.heldout[last])
                 if (a["error"] is None, b["error"] is None) == wanted]
        for a, b in pairs[:3]:
            lines += readable(f"Held out, {heading}", b, b["gold"],
                              [("base", a["answer"]), (solver_name(last), b["answer"])])
    return lines


def readable(heading, task, gold, answers):
    """Markdown lines of one task: question, menu, gold calls, answers (None: not logged)."""
    menu = ", ".join(f"{tool['name']}({', '.join(tool['parameters'])})" for tool in task["tools"])
    rows = [("question", task["question"]), ("menu", menu), ("gold", ", ".join(map(as_call, gold)))]
    lines = [f"**{heading}**", ""]
    for name, text in rows + [row for row in answers if row[1] is not None]:
        first, *rest = text.split("\n")
        lines += [f"    {name + ':':10}{first}", *(14 * " " + part for part in rest)]
    return lines + [""]


def as_call(call):
    """A call as people write it.

    >>> as_call({"name": "f", "arguments": {"city": "Oslo", "n": 2}})
    'f(city="Oslo", n=2)'
    """
    arguments = (f"{name}={json.dumps(value)}" for name, value in call["arguments"].items())
    return f"{call['name']}({', '.join(arguments)})"


# ---------------------------------------------------------------------------------------------
# Several runs


def compare(runs):
    """Markdown lines: held-out accuracy, averaged over the runs that differ in their seed only."""
    last = max(max(run.heldout, default=0) for run in runs)
    rows = []
    for settings, members in grouped(runs).items():
        found = [{i: 100 * right / total for i, (right, total) in accuracy(run).items()}
                 for run in members]
        gains = [by[max(by)] - by[0] for by in found if 0 in by and max(by) > 0]
        interval = t_interval(gains)
        rows.append([settings, len(members),
                     *(spread([by[i] for by in found if i in by]) for i in range(last + 1)),
                     spread(gains),
                     f"{interval[0]:+.1f} to {interval[1]:+.1f}" if interval else "-"])
    return table(["settings", "runs", "base, %", *(f"Solver {i}, %" for i in range(1, last + 1)),
                  "gain, points", "95 % interval"], rows) + [
        "", "Held-out accuracy, mean and standard deviation over runs; the interval of the mean "
        "gain is Student's t. Seeds share the held-out tasks: it says how training varies."]


def grouped(runs):
    """{settings: runs}; a group is named by the settings in which it departs from most runs."""
    unlike = {"run_dir", "seed", "iterations"}
    names = sorted({name for run in runs for name in run.config} - unlike)
    usual = {name: Counter(str(run.config.get(name)) for run in runs).most_common(1)[0][0]
             for name in names}
    groups = {}
    for run in runs:
        own = [f"{name} {run.config.get(name)}" for name in names
               if str(run.config.get(name)) != usual[name]]
        groups.setdefault(", ".join(own) or "as most", []).append(run)
    return groups


def spread(values):
    """Mean and standard deviation as text.

    >>> spread([1, 2, 3]), spread([4]), spread([])
    ('2.0 ± 1.0', '4.0', '-')
    """
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


# ---------------------------------------------------------------------------------------------
# Command line


def write(run_dir):
    """Write report.md of a run, finished or not, and curves.png where matplotlib is installed.

    Returns:
        One line for the screen: what was written.
    """
    run, drawn = read_run(run_dir), importlib.util.find_spec("matplotlib") is not None
    if drawn and panels(run):
        draw(run, run.path / "curves.png")
    (run.path / "report.md").write_text(page(run, (run.path / "curves.png").exists()))
    return f"report: {run.path}/report.md" + (
        ", curves.png" if drawn else " (pip install matplotlib for the picture)")


def main(paths):
    missing = [path for path in paths if not (Path(path) / "config.json").exists()]
    if missing or not paths:
        print(f"report.py: {missing[0]} is not a run directory: it has no config.json" if missing
              else "report.py: name one run directory or more, such as runs/tiny", file=sys.stderr)
        sys.exit(2)
    for path in paths:
        print(write(path))
    if len(paths) > 1:
        print("\n".join(["", *compare([read_run(path) for path in paths])]))


if __name__ == "__main__":
    main(sys.argv[1:])
