"""Self-play with an oracle: the cold start's program in the Generator's place.

    python bench/oracle.py --preset small --model models/cold --pool_size 256

Flags and run directory are selfplay.py's; --tools, --domains and --decline, which speak to a
Generator, say nothing here. Each pool is new tasks of coldstart_world.py, as it makes them for a
Solver, a tenth of them with no tool that fits; they are graded, filtered and learned as a
Generator's. What a Solver gains here is what sound tasks in the cold start's own manner give it.
"""
import common      # noqa: F401  puts this repository on Python's path
import selfplay    # before torch, as it says how threads wait

import random
import sys
from dataclasses import replace

import coldstart_world as world
import curriculum
import generator

DECLINE = 0.1      # share of a pool where no tool fits, and at most of a curriculum


def write(rng):
    """One task of the program, as a Candidate."""
    spec = generator.sample_spec(rng)      # in all domains that the program knows
    spec = replace(spec, tools=max(spec.calls, rng.choice(world.MENU_SIZES)))
    if rng.random() < DECLINE:
        spec = replace(spec, calls=0, context="single_turn")
    task, _ = world.make_task(rng, spec)
    return selfplay.read(spec, world.generator_text(task, given=False))


def build_curriculum(run, i):
    """In place of selfplay.build_curriculum."""
    config = run.config
    run.load(run.frozen, run.solver_path(i - 1))
    rng = random.Random(run.seed("oracle"))
    candidates = [write(rng) for _ in range(config.pool_size)]
    candidates = selfplay.grade(run, selfplay.sieve(run, candidates))
    graded = [candidate.task for candidate in candidates if candidate.reason is None]
    chosen = curriculum.select(graded, config.curriculum_size, generator.DOMAINS,
                               run.seed("curriculum"), config.order, DECLINE)
    selfplay.record_curriculum(run, candidates, chosen)


if __name__ == "__main__":
    selfplay.build_curriculum = build_curriculum
    selfplay.main([*sys.argv[1:], "--freeze_generator"])      # no one would read what it writes
