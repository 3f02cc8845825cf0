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
from verify import Task, last_block

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
    order, texts = sorted(range(len(prompts)), key=lambda n: len(prompts[n])), {}
    # A chunk for each rank at a time, in the sampler's own order: what stands in a chunk does not
    # depend on the ranks. Longest first: memory runs out at once or never.
    starts = range(0, len(prompts), rows * world)[::-1]
    for start in tqdm(starts, label, disable=label is None or rank > 0, leave=False):
        some = order[start:start + rows * world]
        groups = lms.sample(lm, [prompts[n] for n in some], 1, (), 0, max_tokens, rows)
        texts |= {n: rollout.text for n, (rollout,) in zip(some, groups)}
    return [texts[n] for n in range(len(prompts))]


def answer(lm, label, rows, args):
    """Texts that answer rows; None for a broken row, and where the prompt is too long."""
    encoder = native.encode if args.native else encode
    room = lms.positions(lm.model.config) - args.max_completion
    if room < 1:
        raise Refused(f"--max_completion {args.max_completion} leaves no room for a prompt")
    prompts = {n: encoder(lm, row.task) for n, row in enumerate(rows) if not row.problem}
    prompts = {n: ids for n, ids in prompts.items() if len(ids) <= room}
    texts = solve(lm, list(prompts.values()), args.max_completion, args.rows, label)
    said = dict(zip(prompts, texts))
    return [said.get(n) for n in range(len(rows))]


def join_ranks():
    """Device of this process; under the launcher it joins the ranks' group first."""
    if "RANK" in os.environ:
        import engine               # DeepSpeed takes seconds to start: only where there are ranks
        return engine.init_distributed()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path, device, fp32=False):
    """LM from a directory, a hub name, or "tiny", which computes in bf16 unless fp32 is asked
    for."""
    dtype = torch.float32 if fp32 else torch.bfloat16
    path = tiny.PATH if path == "tiny" else path
    return checked(lms.load, path, checked(lms.load_tokenizer, path, TAGS), dtype, device)


# ---------------------------------------------------------------------------------------------
# What can be asked of this file


def evaluate(args):
    """Load, solve, score, print."""
    sets, verdicts = load_sets(args), {}
    lm = load_model(args.model, join_ranks(), args.fp32)
    convention = native.convention(lm.tokenizer, args.native)
    if convention:
        say(f"prompt: the model's own, answers read as {convention['native']}")
    if args.out:
        made = {"model": args.model, "data": str((args.data or DATA).resolve()),
                "limit": args.limit, "max_completion": args.max_completion, "fp32": args.fp32,
                "weights": results.weights_hash(lm.model), "native": None} | convention
        checked(lambda: args.out.mkdir(parents=True, exist_ok=True))
        results.see_settings(args.out, made)
        if lms.rank_and_world()[0] == 0:
            write_json(args.out / results.SETTINGS, made)
    for name, rows in sets.items():
        texts = answer(lm, name, rows, args)
        verdicts[name] = conclude(name, rows, texts, native.reader(convention), args.out)
    say("", *results.summary_lines(verdicts))


def conclude(name, rows, texts, read, out):
    """Verdicts on a set, printed, and written where there is a directory for them."""
    verdicts = [score.judge(row, text, read) for row, text in zip(rows, texts)]
    say(*results.set_lines(name, rows, verdicts))
    if out and lms.rank_and_world()[0] == 0:
        results.write(out, name, rows, texts, verdicts)
    return verdicts


def load_sets(args):
    """{set: rows} of --benchmarks."""
    if unknown := {*args.benchmarks} - {*BENCHMARKS, *LOADERS}:
        raise Refused(f"no benchmark {min(unknown)!r}: choose from {', '.join(BENCHMARKS)}")
    return {name: load(name, args.data or DATA, args.limit) for name in LOADERS
            if {name, name.partition("_")[0]} & {*args.benchmarks}}


def score_again(args):
    """Score the files of --score again, with the data and the limit that they were made with, and
    write the verdicts of today."""
    made, verdicts = read_json(args.score / results.SETTINGS), {}
    for name in LOADERS:
        if stored := results.read(args.score, name):
            rows = load(name, args.data or made["data"], made["limit"])
            texts = results.stored_texts(stored, name, rows)
            verdicts[name] = conclude(name, rows, texts, native.reader(made), args.score)
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
        made = read_json(record)
        if made.get("roles", coldstart_world.ROLES) != coldstart_world.ROLES:
            raise Refused(f"{record} is of other ROLES than coldstart_world.py has")
        made = made["settings"]
        questions = [question for step in range(made["steps"]) for question in
                     coldstart_world.questions(made["seed"], step, made["steps"], made["batch"])]
    else:
        questions = [task.question for tasks in curricula(args.overlap).values() for task in tasks]
    for name, rows in load_sets(args).items():
        found = score.overlaps(questions, rows)
        say(f"{name}: {len(found)} of {len(questions)} training questions share {score.NGRAM} "
            f"words in a row, or all of fewer, with one of {len(rows)} benchmark questions")
        for question, gram, ids in found:
            say(f"    {question!r} shares {gram!r} with {', '.join(ids)}")


def ask(args):
    """The model's reasoning and calls for one's own questions and tools."""
    lines = read_text(args.questions).split("\n") if args.questions else []
    questions = [line.strip() for line in [*args.ask, *lines] if line.strip()]
    if not questions:
        raise Refused("there is no question")
    checked("".join(questions).encode)      # half a surrogate pair is no text
    menu = read_json_as(args.tools, read_menu)
    rows = [Row(f"question {n}", Task(text, menu, [])) for n, text in enumerate(questions, 1)]
    lm = load_model(args.model, join_ranks(), args.fp32)
    read = native.reader(native.convention(lm.tokenizer, args.native))
    for row, text in zip(rows, answer(lm, "questions", rows, args)):
        calls, fault = (None, "prompt too long") if text is None else read(text)
        said = {"question": row.task.question, "thinking": last_block(text or "", "think"),
                "calls": calls and calls.calls,
                "problems": results.call_problems(calls, fault, menu)}
        say(*([json.dumps(said, ensure_ascii=False)] if args.json
              else results.answer_lines(said, text or "")))


def cross_play(args):
    """Each iteration's curriculum solved by each iteration's Solver, the base being Solver 0."""
    run, chosen = args.cross_play, curricula(args.cross_play)
    config = read_json(run / "config.json")["config"]
    solvers = {0: config["model"]} | {i: run / f"iter{i}/solver" for i in chosen
                                      if (run / f"iter{i}/solver").is_dir()}
    cells, device = [], join_ranks()
    for i, path in solvers.items():
        lm = None      # the last one goes before the next one comes
        lm = load_model(path, device, config["dtype"] == "fp32")
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
    parser.add_argument("--rows", type=positive, default=64, help="answers decoded together")
    parser.add_argument("--fp32", action="store_true", help="compute in fp32, not in bf16")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--score", type=Path, metavar="DIR", help="score what --out wrote again")
    one_of.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two of --out")
    one_of.add_argument("--overlap", type=Path, metavar="RUN",
                        help="audit a run's curricula, or a cold start")
    one_of.add_argument("--cross_play", type=Path, metavar="RUN", help="writes RUN/cross_play.json")
    one_of.add_argument("--native", nargs="?", const="auto", choices=native.NAMES, metavar="READER",
                        help="ask in the model's own prompt with tools=, and read the answer as "
                             "hermes, llama or response (the checkpoint's response template); "
                             "without a value, as its chat template writes calls")
    parser.add_argument("--ask", metavar="QUESTION", action="append", default=[],
                        help="with --tools: answer this question; may be repeated")
    parser.add_argument("--questions", metavar="FILE",
                        help="with --tools: answer every line of a file")
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
        if own and (args.out or mode is not ask):
            raise Refused("--ask and --questions print their answers: leave the other modes out")
        mode(args)
        lms.leave_group()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)
    except torch.OutOfMemoryError as error:
        refuse(f"{lms.one_line(error)}: give a smaller --rows", everywhere=True)
    except (OSError, lms.NonFinite) as error:
        refuse(error, everywhere=True)
    except KeyboardInterrupt:
        refuse("stopped", 130)


if __name__ == "__main__":
    main()
