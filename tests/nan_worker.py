"""Run by test_resume.py: selfplay.py where a number is NaN once, in the second Generator step, or
where memory runs out.

Arguments: "reward", "weights" or "memory", then those of selfplay.py.
"""
import sys

import selfplay

import engine
import generator
import torch

real_reward, real_copy, calls = generator.reward, engine.Engine.copy_to, []


def reward(*args):
    calls.append(1)
    parts = real_reward(*args)
    return parts | {"format": float("nan")} if len(calls) == 14 else parts


def copy_to(made, model):
    calls.append(1)
    real_copy(made, model)
    if len(calls) == 2 and sys.argv[1] == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if len(calls) == 2:
        torch.nn.init.constant_(model.model.norm.weight, float("nan"))


if __name__ == "__main__":
    if sys.argv[1] == "reward":
        generator.reward = reward
    else:
        engine.Engine.copy_to = copy_to
    sys.argv[0] = "selfplay.py"      # whose run it is
    selfplay.main(sys.argv[2:])
