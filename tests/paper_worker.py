"""Run by test_selfplay.py: the paper preset's code path on a random model of tiny width.

A Generator step and the pool on its own hopeless output; then a Solver step on a fixture
curriculum with a made-up reward, which must move the weights.

Arguments: model directory, run directory.
"""
import sys

import torch
from safetensors.torch import load_file

import model as lms
import run as runs
import selfplay
import solver
import tiny
from config import parse
from disk import Directory


def main():
    model, run_dir = sys.argv[1:]
    arguments = ["--preset", "paper", "--model", model, "--run_dir", run_dir, "--iterations", "1",
                 "--generator_steps", "2", "--solver_steps", "1", "--generator_prompts", "2",
                 "--solver_prompts", "2", "--pool_size", "4", "--curriculum_size", "4",
                 "--max_completion", "24", "--max_verify", "24", "--heldout_tasks", "2",
                 "--generator_learning_rate", "1e-3", "--solver_learning_rate", "1e-3"]
    config, _ = parse(arguments)
    # All phases; no task survives, so the Solver stays as it is.
    selfplay.start(config, selfplay.self_play)

    run = runs.Run(config, Directory(run_dir), lms.load_tokenizer(model), [0] * 5,
                   torch.device("cpu"))
    run.iteration, run.phase = 1, "solver"
    before = load_file(f"{run_dir}/iter1/solver/model.safetensors")
    tasks = tiny.heldout(4)
    for task in tasks:
        task.pass_rate = 0.5
    selfplay.read_curriculum = lambda run, i: tasks
    solver.reward = lambda text, *gold: {"format": float(len(text)), "accuracy": 0.0}
    run.save = lambda: None
    selfplay.train_solver(run, 1)
    after = run.engine.weights()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    copied = dict(run.actor.model.named_parameters())
    assert all(torch.equal(copied[name], weight.bfloat16()) for name, weight in after.items())
    lms.leave_group()
    print("moved")


if __name__ == "__main__":
    main()
