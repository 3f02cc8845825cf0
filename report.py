"""What self-play did: one page and one picture per run, and a table that compares runs.

    python report.py runs/tiny                   # writes report.md and curves.png in it
    python report.py runs/seed0 runs/seed1 ...   # the same for each, and prints the comparison

Reads what a run has logged, finished or not, and computes nothing that needs a model. Parts of a
reward and metrics are shown under the names they are logged with, so that a new one appears by
itself. The picture needs matplotlib.
"""
import importlib.util
import json
import math
from collections import Counter
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

import curriculum
from benchmarks.score import wilson
from cli import Parser, Refused, refuse
from config import CHANGEABLE
from disk import read_json, read_lines, read_log, replace_file

ROLES = {"generator": "Generator", "solver": "Solver"}
SPENT = ("seconds", "sampling", "probing", "training", "sync")      # columns of timings.jsonl

# ---------------------------------------------------------------------------------------------
# Reading a run


class Run:
    """What a run directory holds, as far as it has come; a part that is not there yet is empty."""

    def __init__(self, path):
        """Refused if the directory is no run, or is damaged."""
        self.path = Path(path)
        try:
            saved = read_json(self.path / "config.json")
            self.config = saved["config"] | {"script": saved.get("script", "selfplay.py"),
                                             "code": saved.get("code")}
        except (KeyError, TypeError):
            raise Refused(f"{path} is no run: its config.json is of something else") from None
        self.metrics = read_log(self.path / "metrics.jsonl")
        self.timings = read_log(self.path / "timings.jsonl")
        # Counters of held-out answers: right, or the class of the error
        self.answers = {i: Counter(row["error"] or "right" for row in rows)
                        for i, rows in self.read_iterations("heldout.jsonl").items()}
        self.examples = self.read_iterations("examples.jsonl")

    def read_iterations(self, name):
        """{iteration: rows of its .jsonl file of this name}; 0 is the base model."""
        files = {i: self.path / f"iter{i}" / name for i in range(self.config["iterations"] + 1)}
        return {i: rows for i, file in files.items() if (rows := read_lines(file))}

    @property
    def iterations(self):
        """Iterations that have logged anything, from 1 on."""
        return sorted({row["iteration"] for row in self.metrics} - {0})

    def metric(self, i, phase, name):
        """{step: value} of a metric in one phase."""
        return {row.get("step"): row[name] for row in self.metrics
                if (row["iteration"], row["phase"]) == (i, phase) and name in row}

    def names(self, phase):
        """The metrics of a phase that are numbers, reward and its parts first."""
        names = dict.fromkeys(name for row in self.metrics if row["phase"] == phase
                              for name, value in row.items() if isinstance(value, int | float))
        return sorted((name for name in names if name not in ("iteration", "step")),
                      key=lambda name: not name.startswith("reward"))

    @property
    def pools(self):
        """{iteration: what became of the candidates of its pool, see `fates`}."""
        return {row["iteration"]: fates(row["funnel"]) for row in self.metrics
                if row["phase"] == "curriculum"}


def fates(funnel):
    """What became of the candidates: those that were dropped are under their reasons.

    >>> fates({"pool": 9, "survivors": 7, "curriculum": 4, "unparsed": 2})
    Counter({'in the curriculum': 4, 'sound, spare': 3, 'unparsed': 2})
    """
    ends = {"in the curriculum": funnel["curriculum"],
            "sound, spare": funnel["survivors"] - funnel["curriculum"]}
    return Counter(ends | {reason: count for reason, count in funnel.items()
                           if reason not in ("pool", "survivors", "curriculum")})


# ---------------------------------------------------------------------------------------------
# Numbers

# Student's t at 97.5 % for 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def t_interval(values):
    """95 % interval of the mean over seeds, Student's t, as text; a little too wide above 10 seeds.

    >>> t_interval([1, 2, 3]), t_interval([4])
    ('-0.5 to +4.5', '-')
    """
    n = len(values)
    if n < 2:
        return "-"
    half = T[min(n - 2, len(T) - 1)] * stdev(values) / math.sqrt(n)
    return f"{mean(values) - half:+.1f} to {mean(values) + half:+.1f}"


def smooth(values):
    """Mean over each value and its two neighbours on both sides.

    >>> smooth([0, 6, 0, 6])
    [2, 3, 3, 4]
    """
    return [mean(values[max(0, n - 2):n + 3]) for n in range(len(values))]


def standing(p):
    """Where a task stands whose pass rate is p; None is a completion that is no task.

    >>> [standing(p) for p in (0.9, 0.5, 0.1, 0.0)]
    ['above the band', 'in the band', 'below the band', 'never solved']
    """
    if p is None:
        return "no task"
    return ("never solved" if p == 0 else "in the band" if curriculum.in_band(p)
            else "below the band" if p < curriculum.P_LOW else "above the band")


def spread(values):
    """Mean and standard deviation as text.

    >>> spread([1, 2, 3]), spread([4]), spread([])
    ('2.0 ± 1.0', '4.0', '-')
    """
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


# ---------------------------------------------------------------------------------------------
# The picture

STYLE = {"axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold",
         "axes.titlepad": 17, "axes.labelsize": 8, "axes.edgecolor": "#999999",
         "axes.spines.top": False, "axes.spines.right": False, "xtick.labelsize": 8,
         "ytick.labelsize": 8, "xtick.major.size": 0, "ytick.major.size": 0,
         "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
         "legend.fontsize": 7.5, "legend.frameon": False, "legend.loc": "upper left",
         "legend.handlelength": 1.3}
# Orange is the Generator, blue the Solver, in every panel
SHADES = {"generator": ("#d9622b", "#f2a97e", "#8c3a12", "#c9a227", "#7d5ba6"),
          "solver": ("#2464a4", "#86b6e2", "#143a63", "#5aa9a3", "#8d7bc0")}
KINDS = {"right": "#2464a4", "semantic": "#6b6b6b", "structural": "#a3a3a3", "format": "#d4d4d4"}
STANDINGS = {"above the band": "#b7d3ea", "in the band": "#7fb28a", "below the band": "#f6cfae",
             "never solved": "#d9622b", "no task": "#d4d4d4"}


def draw(run, file):
    """Write the picture of a run: small panels, three in a row."""
    import matplotlib.figure
    chosen = panels(run)
    rows = math.ceil(len(chosen) / 3)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(12, 2.75 * rows), layout="constrained")
        for place, (title, note, panel, *options) in enumerate(chosen, 1):
            axes = figure.add_subplot(rows, 3, place, title=title)
            axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=8, color="#777777")
            panel(axes, run, *options)
        figure.savefig(file, dpi=150)


def panels(run):
    """(title, how to read it, function of axes and run that draws it, its options...) of each panel
    that has something to show."""
    task, answer = ([name for name in run.names(phase) if name.startswith("reward_")]
                    for phase in ROLES)
    wanted = [
        (run.answers, "Held-out accuracy", "greedy; 95 % Wilson interval", accuracy_panel),
        (run.answers, "Held-out answers by kind", "right, or the class of the error", kinds_panel),
        (run.pools, "What became of the pool", "share of candidates", pool_panel),
        (task, "Generator: reward parts", "mean over completions", curves, ["generator"], task),
        (task, "Generator: its tasks", "share of completions; of questions",
         curves, ["generator"], ["valid", "in_band", "distinct_questions"]),
        (task, "Generator: pass rates of its tasks", "share of completions", rates_panel),
        (answer, "Solver: reward parts", "mean over completions, from easy to hard tasks",
         curves, ["solver"], answer),
        (answer, "Solver: right answers", "task pass rate: the Solver's before, which chose them",
         curves, ["solver"], ["right", "task_pass_rate"]),
        (task or answer, "What teaches nothing", "dead: share of groups; truncated: of completions",
         curves, ROLES, ["dead_groups", "truncated"], 0.1)]
    return [panel for there, *panel in wanted if there]


def accuracy_panel(axes, run):
    x = list(run.answers)
    y, low, high = zip(*(wilson(count["right"], count.total()) for count in run.answers.values()))
    axes.plot(x, y, "o-", color=SHADES["solver"][0], markersize=4.5, linewidth=2)
    axes.vlines(x, low, high, color=SHADES["solver"][0], linewidth=1.2)
    for i, p in list(zip(x, y))[::max(1, len(x) // 6)]:      # more would overlap
        axes.annotate(f"{100 * p:.1f}", (i, p), (7, -11), textcoords="offset points", fontsize=8)
    axes.set_xlim(-0.3, max(x) + 0.6)
    axes.set(xlabel="Solver", xticks=x, xticklabels=[i or "base" for i in x])
    share_axis(axes, columns=0)


def kinds_panel(axes, run):
    x, bottom = list(run.answers), [0] * len(run.answers)
    for kind, color in KINDS.items():
        heights = [count[kind] / count.total() for count in run.answers.values()]
        axes.bar(x, heights, 0.62, bottom, color=color, label=kind)
        bottom = [sum(pair) for pair in zip(bottom, heights)]
    axes.set(xlabel="Solver", xticks=x, xticklabels=[i or "base" for i in x])
    share_axis(axes)


def pool_panel(axes, run):
    names = fate_names(run)[:9]
    shares = {i: [fate[name] / fate.total() for name in names] for i, fate in run.pools.items()}
    height = 0.8 / len(shares)
    for n, (i, row) in enumerate(shares.items()):
        axes.barh([k + n * height for k in range(len(names))], row, height=0.9 * height,
                  label=f"iteration {i}", color=SHADES["generator"][0], alpha=(n + 1) / len(shares))
    for k, (name, row) in enumerate(zip(names, zip(*shares.values()))):
        # beside the bars: tick labels on the left would part the panels
        axes.text(max(row), k + 0.4, "  " + name.replace("_", " "), fontsize=8)
    axes.set(xlim=(0, 1.4 * axes.dataLim.x1), ylim=(len(names), -0.5), yticks=[])
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(loc="lower right")


def rates_panel(axes, run):
    for i in run.iterations:
        rates = run.metric(i, "generator", "pass_rates")
        counts = [Counter(map(standing, row)) for row in rates.values()]
        shares = [smooth([count[name] / count.total() for count in counts]) for name in STANDINGS]
        axes.stackplot(positions(run, i, "generator", rates), shares, colors=STANDINGS.values(),
                       labels=STANDINGS if i == 1 else ())
    iteration_axis(axes, run)
    share_axis(axes, columns=3)


def curves(axes, run, phases, names, top=1):
    """Metrics over the steps of one or both roles: thin as logged, thick smoothed over five."""
    for phase in phases:
        for name, color in zip(names, cycle(SHADES[phase])):
            label = name.removeprefix("reward_").replace("_", " ")
            label = label if len(phases) == 1 else f"{ROLES[phase]}: {label}"
            for i in run.iterations:
                values = run.metric(i, phase, name)
                x, y = positions(run, i, phase, values), list(values.values())
                axes.plot(x, y, linewidth=0.7, alpha=0.3, color=color)
                axes.plot(x, smooth(y), linewidth=1.8, color=color, label=label if y else None)
                label = None if y else label
    iteration_axis(axes, run)
    share_axis(axes, top, columns=2 if len(phases) > 1 else 3)


def positions(run, i, phase, steps):
    """Where steps of a phase lie on the axis, where iteration i reaches from i - 1 to i."""
    return [i - 1 + (step + 0.5) / run.config[f"{phase}_steps"] for step in steps]


def iteration_axis(axes, run):
    """A horizontal axis of iterations, on alternating ground."""
    last = max(run.iterations)
    for i in range(1, last + 1, 2):
        axes.axvspan(i - 1, i, color="#f5f5f5", zorder=0, linewidth=0)
    axes.set(xlabel="iteration", xlim=(0, last))
    axes.set_xticks([i - 0.5 for i in run.iterations], run.iterations)


def share_axis(axes, top=1, columns=2):
    """A vertical axis in percent, up to `top` or as far as the data go, and above it a legend in so
    many columns."""
    low, high = min(0, axes.dataLim.y0), max(top, axes.dataLim.y1)
    axes.set_ylim(low, high + 0.35 * bool(columns) * (high - low))
    axes.yaxis.get_major_locator().set_params(nbins=7, steps=[1, 2, 5, 10])
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high + 1e-9])
    axes.yaxis.set_major_formatter("{x:.0%}")
    if columns:
        axes.legend(ncols=columns)


# ---------------------------------------------------------------------------------------------
# The page


def page(run):
    """report.md as a string."""
    done = max(run.answers, default=0)
    lines = [f"# {run.path.resolve().name}", "",
             "Preset {preset}, model {model}, seed {seed}; {done} of {iterations} iterations "
             "evaluated.".format(done=done, **run.config), time_spent(run), ""]
    if (run.path / "curves.png").exists():
        lines += ["![curves](curves.png)", ""]
    sections = {"Held-out accuracy": heldout_section, "Training": training_section,
                "The pool": pool_section, "Tasks to read": tasks_section}
    for heading, section in sections.items():
        if body := section(run):
            lines += [f"## {heading}", "", *body, ""]
    return "\n".join(lines)


def time_spent(run):
    """A sentence: seconds in all and by kind of work, and memory, of rank 0."""
    spent = (f"{sum(row.get(kind, 0) for row in run.timings):.0f} {kind}" for kind in SPENT)
    peak = max((row.get("peak_memory_mib", 0) for row in run.timings), default=0)
    return f"Rank 0: {', '.join(spent)}; at most {peak:.0f} MiB of memory."


def table(head, rows):
    """Markdown lines of a table."""
    return [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]]


def solver_name(i):
    return f"Solver {i}" if i else "base"


def heldout_section(run):
    wrong, rows = list(KINDS)[1:], []
    for i, count in run.answers.items():
        p, low, high = (f"{100 * bound:.1f}" for bound in wilson(count["right"], count.total()))
        declined = [100 * x for x in run.metric(i, "evaluation", "heldout_declined").values()]
        rows.append([solver_name(i), p, f"{low} to {high}", spread(declined),
                     *(count[kind] for kind in wrong)])
    head = ["", "right, %", "95 % interval", "declined, %", *wrong]
    return rows and table(head, rows) + [
        "", "Greedy answers; Wilson's interval. Declined: where no tool fits. Then come the wrong "
        "answers by kind."]


def training_section(run):
    tables = [metrics_table(run, phase, role) + [""] for phase, role in ROLES.items()
              if run.names(phase)]
    return tables and sum(tables, []) + [
        "Means over the first and the last quarter of a phase's steps. The Solver's tasks go from "
        "easy to hard: `task_pass_rate` is what the Solver before had right of them, when graded; "
        "that chose them, and was at --probe_temperature, so that `right` may lie below it with "
        "nothing unlearned, and above it where it is low."]


def metrics_table(run, phase, head):
    """Markdown lines: every metric of a phase that is a number, for each iteration."""
    return table([head, *(f"iteration {i}" for i in run.iterations)], [
        [f"`{name}`", *(change(list(run.metric(i, phase, name).values())) for i in run.iterations)]
        for name in run.names(phase)])


def change(values):
    """Means over the first and the last quarter of the values; a single value as it is.

    >>> change([1, 2, 3, 4.25]), change([0.5]), change([])
    ('1 -> 4.25', '0.5', '-')
    """
    quarter = max(1, len(values) // 4)
    ends = [values[:quarter], values[-quarter:]] if len(values) > 1 else [values]
    return " -> ".join(f"{mean(part):.4g}" for part in ends) if values else "-"


def pool_section(run):
    pools = run.pools
    rows = [[name, *(fate[name] for fate in pools.values())] for name in fate_names(run)]
    return pools and table(["candidates", *(f"iteration {i}" for i in pools)], rows) + [
        "", *metrics_table(run, "curriculum", "their tasks"), "",
        "`mean_pass_rate` is that of the curriculum; all else is of the pool."]


def fate_names(run):
    """What became of candidates, the most frequent first."""
    pools = run.pools.values()
    names = dict.fromkeys(name for fate in pools for name in fate)
    return sorted(names, key=lambda name: -sum(fate[name] for fate in pools))


def tasks_section(run):
    """The logged tasks of the last curriculum, with the Solver's answers before and after it."""
    last, lines = max(run.examples, default=0), []
    for row in run.examples.get(last, []):
        task = row["task"]
        menu = (f"{tool['name']}({', '.join(tool['parameters'])})" for tool in task["tools"])
        texts = {"question": task["question"], "menu": ", ".join(menu),
                 "gold": json.dumps(task["answer"], ensure_ascii=False),
                 solver_name(last - 1): row["before"], solver_name(last): row.get("after", "-")}
        lines += [f"**Iteration {last}, {row['bucket']}, pass rate {task['pass_rate']:.1f}**", ""]
        for name, text in texts.items():
            lines += f"    {name + ':':10}{text}".replace("\n", "\n" + 14 * " ").split("\n")
        lines.append("")
    return lines


# ---------------------------------------------------------------------------------------------
# Several runs


def compare(runs):
    """Markdown lines: held-out accuracy, averaged over the runs that differ in their seed only."""
    last = max(max(run.answers, default=0) for run in runs)
    rows = []
    for settings, members in grouped(runs).items():
        found = [{i: 100 * count["right"] / count.total() for i, count in run.answers.items()}
                 for run in members]
        done = min(max(by, default=0) for by in found)      # the last that all of them have
        gains = [by[done] - by[0] for by in found if done > 0 and 0 in by]
        reached = [[by[i] for by in found if i in by] for i in range(last + 1)]
        rows.append([settings, len(members),
                     *(spread(values) + f" ({len(values)})" * (0 < len(values) < len(members))
                       for values in reached), spread(gains), t_interval(gains)])
    return table(["settings", "runs", "base, %", *(f"Solver {i}, %" for i in range(1, last + 1)),
                  "gain, points", "95 % interval"], rows) + [
        "", "Mean and standard deviation of held-out accuracy, (n): of so many runs; the gain at "
        "the last iteration that all runs of a row have, with Student's t interval. Seeds share "
        "the held-out tasks, so that it says how training varies."]


def grouped(runs):
    """{settings: runs}; a group is named by the settings in which it departs from most runs."""
    names = {name for run in runs for name in run.config} - CHANGEABLE - {"seed"}
    usual = {name: Counter(str(run.config.get(name)) for run in runs).most_common(1)[0][0]
             for name in names}
    groups = {}
    for run in runs:
        own = [f"{name} {run.config.get(name)}" for name in sorted(names)
               if str(run.config.get(name)) != usual[name]]
        groups.setdefault(", ".join(own) or "as most", []).append(run)
    return groups


# ---------------------------------------------------------------------------------------------
# Command line


def write(run_dir):
    """Write report.md of a run, finished or not, and curves.png where matplotlib is installed.

    Returns:
        One line for the screen: what was written.
    """
    run, able = Run(run_dir), importlib.util.find_spec("matplotlib") is not None
    drawn = able and bool(panels(run))
    if drawn:
        draw(run, run.path / "curves.png")
    replace_file(run.path / "report.md", page(run))
    return f"report: {run.path}/report.md" + (
        ", curves.png" * drawn if able else " (pip install matplotlib for the picture)")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    try:
        paths = {Path(path).resolve(): path for path in parser.parse_args().runs}      # each once
        runs = [Run(path) for path in paths.values()]
        for run in runs:
            print(write(run.path))
    except (Refused, OSError) as problem:
        refuse(problem)
    if len(runs) > 1:
        print("\n".join(["", *compare(runs)]))


if __name__ == "__main__":
    main()
