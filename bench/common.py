"""What the benchmarks share: models, taking turns, medians, the table, the JSON file."""
import argparse
import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from cli import positive      # noqa: E402


def parser(description, rounds=5):
    """A command line with --rounds and --json."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--rounds", type=positive, default=rounds, help="measurements of each")
    parser.add_argument("--json", help="file for the result")
    return parser


def add_model(parser, default):
    """--model and --dtype."""
    parser.add_argument("--model", default=default, type=checkpoint,
                        help="directory of a checkpoint")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))


def checkpoint(path):
    """A checkpoint, as a type of an argument."""
    import model as lms      # loads torch: a script may have something to say before it
    try:
        lms.checkpoint_files(path)
        return path
    except lms.BadCheckpoint as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def fresh(command):
    """The JSON that a process of its own prints last."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(contestants, rounds):
    """{name: [result of each round]}; the contestants alternate, so that whatever else the machine
    does hits all of them. One round before the first is not counted.

    Args:
        contestants: {name: function of the round's number}.
    """
    results = {name: [] for name in contestants}
    for n in range(rounds + 1):
        for name, run in contestants.items():
            result = run(n)
            print(f"round {n} of {rounds}: {name} {result}", file=sys.stderr, flush=True)
            if n:
                results[name].append(result)
    return results


def seconds(work, *args):
    """(how long work(*args) took, what it returned)."""
    started = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - started, result


def worker(command, first=None, **options):
    """A contestant in a process of its own, as a function of the round's number: for each line that
    the process reads it takes a turn, and says what it measured. Between its turns it is stopped,
    so that its threads cost the others nothing.

    Args:
        command: its command line.
        first: a line for it before the first turn.
        options: for subprocess.Popen.
    """
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               start_new_session=True, **options)

    def send(signal_number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)

    atexit.register(send, signal.SIGKILL)

    def turn(n):
        send(signal.SIGCONT)
        line = first + "\n" if first and n == 0 else ""
        with contextlib.suppress(BrokenPipeError):      # it has ended: what follows says so
            process.stdin.write(line + "go\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith("measured "):
                send(signal.SIGSTOP)
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(map(str, command))} ended early")

    return turn


def say(value):
    """A worker's measurement: one line among whatever else is printed."""
    print(f"\nmeasured {value}", flush=True)


def report(results, unit, settings, file=None, more_is_better=True):
    """Print a table of medians and ratios, and write the JSON file.

    Args:
        results: {name: [value of each round]}, with "ours" among the names.
        unit: of the values.
        settings: what was measured, for the file.
        more_is_better: True for speeds, False for times and bytes. Above 1, a ratio is better for
            us.
    """
    medians = {name: median(values) for name, values in results.items()}
    ours, others = medians["ours"], {}
    print(f"{'':24}{'median':>12}  {'range':>23}  ours is better by     ({unit})")
    for name, values in results.items():
        ratio = ours / medians[name] if more_is_better else medians[name] / ours
        if name != "ours":
            others[name] = {"value": medians[name], "ratio": ratio}
        print(f"{name:24}{medians[name]:12.4g}  {min(values):11.4g} {max(values):11.4g}"
              + (f"  {ratio:.2f} x" if name != "ours" else ""))
    if file:
        write(file, ours, others, settings)


def write(file, ours, others, settings):
    """The JSON file: {"ours": value, "others": {name: {"value", "ratio"}}, "settings"}."""
    result = {"ours": ours, "others": others, "settings": settings}
    Path(file).write_text(json.dumps(result, indent=2) + "\n")
