"""Evaluation: solve benchmarks greedily, score by exact match, and say how the wrong ones fail.

    python eval.py --model runs/tiny/iter3/solver                     # the embedded model's world
    python eval.py --model M --benchmarks toolalpaca,sealtools,nexusraven,apibank,snips,bfcl \\
                   --data DIR --out results/M                         # DIR: see benchmarks.py
    deepspeed eval.py ...                                             # the same over all GPUs
    python eval.py --score results/M                                  # again, without a model
    python eval.py --compare results/A results/B                      # paired, row by row
    python eval.py --overlap runs/tiny --benchmarks tiny              # zero-data audit
    python eval.py --model M --tools tools.json --ask "..."           # one's own question
    python eval.py --cross_play runs/tiny                             # curricula x Solvers

Prompt, reader and sampler are those of training. Loaders are in benchmarks.py, verdicts and
statistics in score.py, what is printed and written in results.py.
"""
import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import benchmarks
import model as lms
import results
import score
import solver
import tiny
from cli import Parser, Refused, checked, positive, refuse
from verify import Task, last_block

DATA = Path("data")      # where --data points unless it is given

# ---------------------------------------------------------------------------------------------
# Solve


def solve(lm, tasks, max_tokens, rows, bar=None):
    """The model's greedy answer to each task: list of Rollouts.
    All ranks call it, all get everything."""
    prompts = [lms.encode_chat(lm.tokenizer, messages(task)) for task in tasks]
    return greedy(lm, prompts, max_tokens, rows, bar)


def messages(task):
    return solver.prompt(task.question, task.tools)


def greedy(lm, prompts, max_tokens, rows, bar=None):
    """A greedy Rollout for each prompt.

    Args:
        prompts: lists of ids, the same on every rank.
        rows: prompts decoded together.
        bar: a tqdm bar to move on.
    """
    # A chunk for each rank at a time: what stands in a chunk does not depend on the ranks.
    size, answers = rows * lms.rank_and_world()[1], []
    for start in range(0, len(prompts), size):
        chunk = prompts[start:start + size]
        answers += [group[0] for group in lms.sample(lm, chunk, 1, (), 0, max_tokens, rows)]
        if bar is not None:
            bar.update(len(chunk))
    return answers


def answer(lm, name, rows, args):
    """(texts, problems) for the rows of a set; a row with a problem has no text."""
    room = min(lm.model.config.max_position_embeddings - args.max_completion,
               args.max_prompt or sys.maxsize)
    prompts = [None if row.problem else lms.encode_chat(lm.tokenizer, messages(row.task))
               for row in rows]
    problems = ["broken row" if ids is None else "prompt too long" if len(ids) > room else None
                for ids in prompts]
    # Longest first: rows of a chunk are alike, and memory runs out at once or never.
    chosen = sorted((n for n, problem in enumerate(problems) if problem is None),
                    key=lambda n: -len(prompts[n]))
    texts = [None] * len(rows)
    with progress(name, len(chosen)) as bar:
        rollouts = greedy(lm, [prompts[n] for n in chosen], args.max_completion, args.rows, bar)
    for n, rollout in zip(chosen, rollouts):
        texts[n] = rollout.text
    return texts, problems


def progress(what, total):
    return tqdm(total=total, desc=what, disable=lms.rank_and_world()[0] > 0, leave=False,
                dynamic_ncols=True)


def join_ranks():
    """Device of this process; under the launcher it joins the ranks' group first."""
    if "RANK" in os.environ:
        import engine               # DeepSpeed takes seconds to start: only where there are ranks
        return engine.init_distributed()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path, device, dtype=torch.bfloat16):
    """LM from a directory, a hub name, or "tiny". ValueError says what is wrong, in one line."""
    path = tiny.PATH if path == "tiny" else path
    tokenizer = lms.load_tokenizer(path)
    return lms.load(path, tokenizer, dtype, device)


# ---------------------------------------------------------------------------------------------
# What can be asked of this file


def evaluate(args):
    """Load, solve, score, print."""
    sets = checked(load_sets, args)
    if args.out:
        checked(lambda: args.out.mkdir(parents=True, exist_ok=True))
    lm = checked(load_model, args.model, join_ranks())
    if lm.model.config.max_position_embeddings <= args.max_completion:
        raise Refused(f"--max_completion {args.max_completion} leaves no room for a prompt: the model has "
               f"{lm.model.config.max_position_embeddings} positions")
    out, verdicts = args.out if lms.rank_and_world()[0] == 0 else None, {}
    if out:
        results.write_settings(out, args.model, args.data or DATA, args.limit)
    for name, rows in sets.items():
        texts, problems = answer(lm, name, rows, args)
        verdicts[name] = conclude(name, rows, texts, problems)
        if out:
            results.write(out, name, rows, texts, verdicts[name])
    say("", *results.summary_lines(verdicts))


def conclude(name, rows, texts, problems):
    """Verdicts on a set, printed."""
    verdicts = [score.judge(*row) for row in zip(rows, texts, problems)]
    say(*results.set_lines(name, rows, verdicts))
    return verdicts


def load_sets(args):
    """{set: rows} of --benchmarks. ValueError says what is missing."""
    unknown = [name for name in args.benchmarks if name not in benchmarks.BENCHMARKS]
    if unknown:
        raise ValueError(f"no benchmark {unknown[0]!r}: choose from "
                         + ", ".join(benchmarks.BENCHMARKS))
    wanted = {name for benchmark in args.benchmarks for name in benchmarks.BENCHMARKS[benchmark]}
    return {name: benchmarks.load(name, args.data or DATA, args.limit)
            for name in benchmarks.LOADERS if name in wanted}


def score_again(args):
    """Score the files of --score again, with the data and the limit that they were made with."""
    data, limit = checked(results.read_settings, args.score)
    verdicts = {}
    for name in benchmarks.LOADERS:
        if (args.score / f"{name}.jsonl").exists():
            rows = checked(benchmarks.load, name, args.data or data or DATA, limit)
            answers = checked(results.stored_answers, args.score, name, rows)
            verdicts[name] = conclude(name, rows, *answers)
    if not verdicts:
        raise Refused(f"{args.score} holds no <set>.jsonl: give a directory that --out has written")
    say("", *results.summary_lines(verdicts))


def compare(args):
    """Two result directories side by side."""
    for line in checked(results.compare_lines, *args.compare):
        say(line)


def overlap(args):
    """Which questions of a run's curricula share an 8-gram with a benchmark's question?"""
    curricula, sets = checked(benchmarks.curricula, args.overlap), checked(load_sets, args)
    questions = [(f"iteration {i}, line {n}", task.question)
                 for i, tasks in curricula.items() for n, task in enumerate(tasks, 1)]
    for name, rows in sets.items():
        found = score.overlaps([question for _, question in questions], rows)
        say(f"{name}: {len(found)} of {len(questions)} curriculum questions share {score.NGRAM} "
            f"words in a row with one of {len(rows)} benchmark questions")
        for i, (ids, gram) in found.items():
            where, question = questions[i]
            more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
            say(f"    {where}: {question!r} shares {gram!r} with {', '.join(ids[:3])}{more}")


def read_tools(path):
    """The menu in a file: a JSON list of tools. ValueError says what is wrong."""
    text = benchmarks.read_file(path)[1]
    return benchmarks.explained(path, lambda: benchmarks.menu(json.loads(text)))


def ask(args):
    """The model's reasoning and calls for one's own question and tools."""
    tools = checked(read_tools, args.tools)
    lm = checked(load_model, args.model, join_ranks())
    text = solve(lm, [Task(args.ask, tools, [])], args.max_completion, 1)[0].text
    calls = solver.read(text)
    if calls is None:
        say("No calls can be read from the answer:", text)
        return
    say(last_block(text, "think") or "(no reasoning)", "", *map(json.dumps, calls.calls))
    if not calls.calls:
        say("(no call)")


def cross_play(args):
    """Each iteration's curriculum solved by each iteration's Solver,
    0 being the base: cross_play.json."""
    run, curricula = args.cross_play, checked(benchmarks.curricula, args.cross_play)
    config = json.loads(checked(benchmarks.read_file, run / "config.json")[1])["config"]
    solvers = {0: config["model"]} | {i: run / f"iter{i}/solver" for i in curricula
                                      if (run / f"iter{i}/solver").is_dir()}
    dtype = torch.bfloat16 if config["dtype"] == "bf16" else torch.float32
    cells, device = [], join_ranks()
    for i, path in solvers.items():
        lm = checked(load_model, path, device, dtype)
        for j, tasks in curricula.items():
            with progress(f"Solver {i}, curriculum {j}", len(tasks)) as bar:
                answers = solve(lm, tasks, config["max_verify"], config["sample_rows"], bar)
            right = sum(solver.is_right(a.text, task.answer) for a, task in zip(answers, tasks))
            cells.append({"solver": i, "curriculum": j, "right": right, "tasks": len(tasks),
                          "success": right / len(tasks) if tasks else None})
            say(f"Solver {i} on curriculum {j}: {right} of {len(tasks)} right")
    if lms.rank_and_world()[0] == 0:
        (run / "cross_play.json").write_text(json.dumps(cells, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------
# Command line


def say(*lines):
    if lms.rank_and_world()[0] == 0:
        print(*lines, sep="\n", flush=True)


def parse(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="directory, hub name, or tiny")
    parser.add_argument("--benchmarks", default=["tiny"], type=lambda text: text.split(","),
                        help=f"comma-separated: {', '.join(benchmarks.BENCHMARKS)}")
    parser.add_argument("--data", type=Path,
                        help=f"directory of the benchmarks' files (default: {DATA})")
    parser.add_argument("--limit", type=positive, help="rows of each set, spread evenly over it")
    parser.add_argument("--out", type=Path, help="directory for one <set>.jsonl each")
    parser.add_argument("--max_completion", type=positive, default=1024, help="tokens")
    parser.add_argument("--max_prompt", type=positive, help="tokens (default: what fits)")
    parser.add_argument("--rows", type=positive, default=64, help="answers decoded together")
    parser.add_argument("--score", type=Path, metavar="DIR", help="score what --out wrote again")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"),
                        help="two directories of --out")
    parser.add_argument("--overlap", type=Path, metavar="RUN", help="audit a run's curricula")
    parser.add_argument("--cross_play", type=Path, metavar="RUN", help="writes RUN/cross_play.json")
    parser.add_argument("--ask", metavar="QUESTION", help="with --tools: answer this question")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tools")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    mode = (score_again if args.score else compare if args.compare else overlap if args.overlap
            else cross_play if args.cross_play else ask if args.ask is not None else evaluate)
    try:
        if (args.ask is None) != (args.tools is None):
            raise Refused("--ask and --tools go together")
        mode(args)
        lms.leave_group()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)


if __name__ == "__main__":
    main()
