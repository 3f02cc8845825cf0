"""Evaluation: solve benchmarks greedily, score by exact match, and say how the wrong ones fail.

    python eval.py --model runs/tiny/iter3/solver                     # the embedded model's world
    python eval.py --model M --benchmarks toolalpaca,sealtools,nexusraven,apibank,snips,bfcl \\
                   --data DIR --out results/M                         # DIR: see docs/evaluation.md
    deepspeed eval.py ...                                             # the same over all GPUs
    python eval.py --score results/M                                  # again, without a model
    python eval.py --compare results/A results/B                      # paired, row by row
    python eval.py --overlap runs/tiny --benchmarks tiny              # zero-data audit
    python eval.py --model M --native ...                             # in the model's own prompt
    python eval.py --model M --tools tools.json --ask "..."           # one's own question
    python eval.py --model M --tools tools.json --questions FILE --json     # many of them
    python eval.py --cross_play runs/tiny                             # curricula x Solvers

Prompt, reader and sampler are those of training; with --native, prompt and reader are the model's
own. The formats of the benchmarks, the verdicts, and what is printed and written are in
benchmarks/.
"""
import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import coldstart_world
import model as lms
import native
import solver
import tiny
from benchmarks import results, score
from benchmarks.loaders import BENCHMARKS, LOADERS, Row, curricula, load
from cli import Parser, Refused, checked, positive, refuse
from disk import read_json, read_json_as, read_text, write_json
from generator import TAGS
from toolfiles import read_menu
from verify import Task, call_problem, last_block

DATA = Path("data")      # where --data points unless it is given

# ---------------------------------------------------------------------------------------------
# Solve


def encode(lm, task):
    """Ids of the prompt that asks for a task's calls."""
    return lms.encode_chat(lm.tokenizer, solver.prompt(task.question, task.tools))


def solve(lm, prompts, max_tokens, rows, label=None):
    """The model's greedy answer to each prompt: list of texts.
    All ranks call it, all get everything.

    Args:
        prompts: lists of ids.
        rows: prompts decoded together.
        label: of a progress bar; None shows none.
    """
    rank, world = lms.rank_and_world()
    order, texts = sorted(range(len(prompts)), key=lambda n: len(prompts[n])), [None] * len(prompts)
    # A chunk for each rank at a time, in the sampler's own order: what stands in a chunk does not
    # depend on the ranks. Longest first: memory runs out at once or never.
    starts = range(0, len(prompts), rows * world)[::-1]
    for start in tqdm(starts, label, disable=label is None or rank > 0, leave=False):
        some = order[start:start + rows * world]
        groups = lms.sample(lm, [prompts[n] for n in some], 1, (), 0, max_tokens, rows)
        for n, (rollout,) in zip(some, groups):
            texts[n] = rollout.text
    return texts


def answer(lm, label, rows, args):
    """(texts, problems) for rows; a row with a problem has no text."""
    encoder = native.encode if args.native else encode
    room = min(lms.positions(lm.model.config) - args.max_completion,
               args.max_prompt or sys.maxsize)
    prompts = [encoder(lm, row.task) for row in rows]
    problems = ["broken row" if row.problem else "prompt too long" if len(ids) > room else None
                for row, ids in zip(rows, prompts)]
    asked = [ids for ids, problem in zip(prompts, problems) if problem is None]
    texts = iter(solve(lm, asked, args.max_completion, args.rows, label))
    return [next(texts) if problem is None else None for problem in problems], problems


def join_ranks():
    """Device of this process; under the launcher it joins the ranks' group first."""
    if "RANK" in os.environ:
        import engine               # DeepSpeed takes seconds to start: only where there are ranks
        return engine.init_distributed()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path, device, dtype=torch.bfloat16):
    """LM from a directory, a hub name, or "tiny"."""
    path = tiny.PATH if path == "tiny" else path
    return checked(lms.load, path, checked(lms.load_tokenizer, path, TAGS), dtype, device)


# ---------------------------------------------------------------------------------------------
# What can be asked of this file


def evaluate(args):
    """Load, solve, score, print."""
    sets, verdicts = load_sets(args), {}
    if args.out:
        checked(lambda: args.out.mkdir(parents=True, exist_ok=True))
    lm = load_model(args.model, join_ranks())
    positions = lms.positions(lm.model.config)
    if positions <= args.max_completion:
        raise Refused(f"--max_completion {args.max_completion} leaves no room for a prompt: "
                      f"the model has {positions} positions")
    convention = native.convention(lm.tokenizer, args.native)
    if convention:
        say(f"prompt: the model's own, answers read as {convention['native']}")
    made = results.settings(args.model, args.data or DATA, args.limit, convention)
    if args.out:
        results.see_settings(args.out, made, sets)
    out = args.out if lms.rank_and_world()[0] == 0 else None
    if out:
        write_json(out / results.SETTINGS, made)
    for name, rows in sets.items():
        texts, problems = answer(lm, name, rows, args)
        verdicts[name] = conclude(name, rows, texts, problems, native.reader(convention))
        if out:
            results.write(out, name, rows, texts, verdicts[name])
    say("", *results.summary_lines(verdicts))


def conclude(name, rows, texts, problems, read):
    """Verdicts on a set, printed."""
    verdicts = [score.judge(*row, read) for row in zip(rows, texts, problems)]
    say(*results.set_lines(name, rows, verdicts))
    return verdicts


def load_sets(args):
    """{set: rows} of --benchmarks."""
    for name in args.benchmarks:
        if name not in (*BENCHMARKS, *LOADERS):
            raise Refused(f"no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return {name: load(name, args.data or DATA, args.limit) for name in LOADERS
            if {name, name.partition("_")[0]} & {*args.benchmarks}}


def score_again(args):
    """Score the files of --score again, with the data and the limit that they were made with."""
    settings, verdicts = results.read_settings(args.score), {}
    for name in LOADERS:
        stored = results.read(args.score, name)
        if stored:
            rows = load(name, args.data or settings.get("data") or DATA, settings.get("limit"))
            texts, problems = results.stored_answers(stored, name, rows)
            verdicts[name] = conclude(name, rows, texts, problems, native.reader(settings))
    if not verdicts:
        raise Refused(f"{args.score} holds no <set>.jsonl: give a directory that --out has written")
    say("", *results.summary_lines(verdicts))


def compare(args):
    """Two result directories side by side."""
    say(*results.compare_lines(*args.compare))


def overlap(args):
    """Which questions of a run's curricula, or of a cold start's examples, share an 8-gram with a
    benchmark's question?"""
    record = args.overlap / coldstart_world.RECORD
    if record.exists():
        questions = coldstart_questions(**read_json(record)["settings"])
    else:
        questions = [(f"iteration {i}, line {n}", task.question)
                     for i, tasks in curricula(args.overlap).items()
                     for n, task in enumerate(tasks, 1)]
    for name, rows in load_sets(args).items():
        found = score.overlaps([question for _, question in questions], rows)
        say(f"{name}: {len(found)} of {len(questions)} training questions share {score.NGRAM} "
            f"words in a row with one of {len(rows)} benchmark questions")
        for i, (ids, gram) in found.items():
            where, question = questions[i]
            more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
            say(f"    {where}: {question!r} shares {gram!r} with {', '.join(ids[:3])}{more}")


def coldstart_questions(seed, steps, batch, **_):
    """[(where it stands, question)] of every example of a cold start, made again."""
    return [(f"step {step}, example {n}", question) for step in range(steps)
            for n, question in enumerate(coldstart_world.questions(seed, step, steps, batch), 1)]


def ask(args):
    """The model's reasoning and calls for one's own questions and tools."""
    questions, menu = own_questions(args), read_json_as(args.tools, read_menu)
    rows = [Row(f"question {n}", Task(text, menu, [])) for n, text in enumerate(questions, 1)]
    lm = load_model(args.model, join_ranks())
    read = native.reader(native.convention(lm.tokenizer, args.native))
    texts, problems = answer(lm, "questions" if len(rows) > 1 else None, rows, args)
    for row, text, problem in zip(rows, texts, problems):
        calls, fault = (None, problem) if problem else read(text)
        found = call_problems(calls, fault, menu)
        if args.json:
            say(as_json(row.task.question, text or "", calls, found))
        else:
            say(*["", f"> {row.task.question}"] * (len(rows) > 1),
                *as_lines(text or "", calls, found))


def own_questions(args):
    """Those of --ask, then the lines of --questions."""
    text = ""
    if args.questions == "-":
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise Refused("--questions - reads standard input, which several ranks cannot share: "
                          "give a file")
        text = checked(sys.stdin.read)
    elif args.questions:
        text = read_text(args.questions)
    questions = args.ask + [line.strip() for line in text.split("\n") if line.strip()]
    if not questions:
        raise Refused(f"--questions {args.questions}: there is no question in it")
    return questions


def call_problems(calls, fault, menu):
    """What is wrong with an answer: [(number of the call, or 0 for the whole, words)]."""
    if calls is None:
        return [(0, f"no calls can be read: {fault}")]
    found = [(n, call_problem([call], menu)) for n, call in enumerate(calls.calls, 1)]
    found = [(n, problem.replace("_", " ")) for n, problem in found if problem]
    if calls.malformed:
        found.append((0, f"elements that are no calls: {calls.malformed}"))
    elif not calls.calls:
        found.append((0, "no call"))
    return found


def as_lines(text, calls, found):
    """The thought, and each call with what is wrong with it; without calls the text as it is."""
    lines = [last_block(text, "think") or "(no reasoning)", ""] if calls else [text]
    for n, call in enumerate(calls.calls if calls else (), 1):
        lines.append(json.dumps(call, ensure_ascii=False))
        lines += [f"  ! {words}" for at, words in found if at == n]
    return lines + [f"  ! {words}" for at, words in found if at == 0]


def as_json(question, text, calls, found):
    """The same in a line; null for a thought or calls that cannot be read."""
    return json.dumps({"question": question, "thinking": last_block(text, "think"),
                       "calls": calls and calls.calls,
                       "problems": [f"call {n}: {words}" if n else words for n, words in found]},
                      ensure_ascii=False)


def cross_play(args):
    """Each iteration's curriculum solved by each iteration's Solver, the base being Solver 0."""
    run, chosen = args.cross_play, curricula(args.cross_play)
    config = read_json(run / "config.json")["config"]
    solvers = {0: config["model"]} | {i: run / f"iter{i}/solver" for i in chosen
                                      if (run / f"iter{i}/solver").is_dir()}
    dtype = torch.bfloat16 if config["dtype"] == "bf16" else torch.float32
    cells, device = [], join_ranks()
    for i, path in solvers.items():
        lm = load_model(path, device, dtype)
        for j, tasks in chosen.items():
            texts = solve(lm, [encode(lm, task) for task in tasks], config["max_verify"],
                          config["sample_rows"], f"Solver {i}, curriculum {j}")
            right = sum(solver.is_right(text, task.answer) for text, task in zip(texts, tasks))
            cells.append({"solver": i, "curriculum": j, "right": right, "tasks": len(tasks),
                          "success": right / len(tasks) if tasks else None})
            say(f"Solver {i} on curriculum {j}: {right} of {len(tasks)} right")
    if lms.rank_and_world()[0] == 0:
        write_json(run / "cross_play.json", cells)


# ---------------------------------------------------------------------------------------------
# Command line


def say(*lines):
    if lms.rank_and_world()[0] == 0:
        print(*lines, sep="\n", flush=True)


def parse(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="directory, hub name, or tiny")
    parser.add_argument("--benchmarks", default=["tiny"], type=lambda text: text.split(","),
                        help=f"comma-separated: {', '.join(BENCHMARKS)}")
    parser.add_argument("--data", type=Path, help=f"directory of their files (default: {DATA})")
    parser.add_argument("--limit", type=positive, help="rows of each set, spread evenly over it")
    parser.add_argument("--out", type=Path, help="directory for one <set>.jsonl each")
    parser.add_argument("--max_completion", type=positive, default=1024, help="tokens")
    parser.add_argument("--max_prompt", type=positive, help="tokens (default: what fits)")
    parser.add_argument("--rows", type=positive, default=64, help="answers decoded together")
    parser.add_argument("--score", type=Path, metavar="DIR", help="score what --out wrote again")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two of --out")
    parser.add_argument("--overlap", type=Path, metavar="RUN",
                        help="audit a run's curricula, or a cold start")
    parser.add_argument("--cross_play", type=Path, metavar="RUN", help="writes RUN/cross_play.json")
    parser.add_argument("--native", nargs="?", const="auto", choices=native.NAMES, metavar="READER",
                        help="ask in the model's own prompt with tools=, and read the answer as "
                             "hermes, llama or response (the checkpoint's response template); "
                             "without a value, as its chat template writes calls")
    parser.add_argument("--ask", metavar="QUESTION", action="append", default=[],
                        help="with --tools: answer this question; may be repeated")
    parser.add_argument("--questions", metavar="FILE",
                        help="with --tools: answer every line of a file, or of - (standard input)")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON file of tools")
    parser.add_argument("--json", action="store_true",
                        help="answers to questions as one JSON object a line")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    own = bool(args.ask or args.questions)
    mode = (score_again if args.score else compare if args.compare else overlap if args.overlap
            else cross_play if args.cross_play else ask if own else evaluate)
    try:
        if own != bool(args.tools) or args.json and not own:
            raise Refused("--ask or --questions go together with --tools, and --json with them")
        if args.native and mode not in (ask, evaluate):
            raise Refused("--native is for asking a model: --score and --compare find it in the "
                          "results")
        mode(args)
        lms.leave_group()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)


if __name__ == "__main__":
    main()
