"""Self-play with an oracle: the cold start's program in the Generator's place.

    python bench/oracle.py --preset small --model models/cold --freeze_generator --pool_size 256

Flags and run directory are selfplay.py's. Each pool is new tasks of coldstart_world.py, as it makes
them for a Solver, a tenth of them with no tool that fits; they are graded, filtered and learned as
a Generator's. What a Solver gains here says what a better Generator could give it.
"""
import common      # noqa: F401  puts this repository on Python's path
import selfplay    # before torch, as it says how threads wait

import random
import sys
from dataclasses import asdict, replace

import coldstart_world as world
import curriculum
import generator

NO_TOOL_FITS = 0.1      # of a pool, and at most of a curriculum


def write(run, rng):
    """One task of the program, as a Candidate."""
    spec = generator.sample_spec(rng)      # in all domains that the program knows
    spec = replace(spec, tools=max(spec.calls, rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 8))))
    if rng.random() < NO_TOOL_FITS:
        spec = replace(spec, calls=0, context="single_turn")
    task, _ = world.make_task(rng, spec)
    task.spec = asdict(spec)
    draft = generator.Draft(True, task.question, task.tools, task.answer, malformed=0)
    reason = None if run.fits(selfplay.question(task)) else "prompt_too_long"
    return selfplay.Candidate(spec, world.generator_text(task, False), draft, task, reason=reason)


def build_curriculum(run, i):
    """In place of selfplay.build_curriculum."""
    config = run.config
    run.load(run.frozen, run.solver_path(i - 1))
    rng = random.Random(run.seed("oracle"))
    candidates = selfplay.grade(run, [write(run, rng) for _ in range(config.pool_size)])
    graded = [candidate.task for candidate in candidates if candidate.reason is None]
    chosen = curriculum.select(graded, config.curriculum_size, generator.DOMAINS,
                               run.seed("curriculum"), config.order, NO_TOOL_FITS)
    selfplay.record_curriculum(run, candidates, chosen)


if __name__ == "__main__":
    selfplay.build_curriculum = build_curriculum
    selfplay.main(sys.argv[1:])
