"""Run by test_grpo.py, once on one rank and once on two:
GRPO steps from the same weights and samples.

Saves the gradients (from Adam's first moment), the weights before and after, and the sampled ids.
"""
import sys
from types import SimpleNamespace

import torch
from deepspeed.utils import safe_get_full_optimizer_state

import engine
import grpo
import model as lms
import solver
import tiny

SETTINGS = dict(max_grad_norm=1e9, gradient_checkpointing=False, deepspeed="")
REWARD_PG = torch.tensor([[0.0, 1.0, 2.0, 0.5], [1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])


def make_engine(**settings):
    made = engine.Engine(lms.build(tiny.PATH), SimpleNamespace(**SETTINGS | settings))
    made.load(lms.read_weights(tiny.PATH))
    return made


def gradient(made):
    """The last gradient, from the first moment of an Adam whose state was empty before."""
    return {name: safe_get_full_optimizer_state(p, "exp_avg").cpu() * 10      # 1 / (1 - beta1)
            for name, p in made.parameters()}


def in_many_groups(groups, file):
    """Weights after the step of ("fp32", 10_000), with the masters in many groups and buckets; then
    the same from a saved state."""
    with open(file, "w") as out:
        out.write('{"zero_optimization": {"sub_group_size": 50000, "reduce_bucket_size": 20000}}')
    made = make_engine(dtype="fp32", deepspeed=file)
    grpo.step(made, groups, REWARD_PG, 1e-3, 10_000)
    state, after = made.state(), made.weights()
    assert sum(name.endswith(".master") for name in state) > 3
    grpo.step(made, groups, REWARD_PG, 1e-3, 10_000)
    made.restore(state)
    return after, made.weights()


def main():
    engine.init_distributed()
    tokenizer = lms.load_tokenizer(tiny.PATH)
    lm = lms.load(tiny.PATH, tokenizer)
    lms.LOGITS_AT_ONCE = 100 * len(tokenizer)      # so that ranks differ in what they would cut
    prompts = [lms.encode_chat(tokenizer, solver.prompt(task.question, task.tools))
               for task in tiny.heldout(3)]
    groups = lms.sample(lm, prompts, 4, (0,), 2.0, 40, rows=4)     # hot: no two answers alike
    results = {"groups": groups}
    plain = torch.nn.functional.linear
    for dtype in ("fp32", "bf16"):
        for budget in (10_000, 500):      # tokens of a micro-batch: whole; a few completions each
            made = make_engine(dtype=dtype)
            assert torch.nn.functional.linear is plain and made.linear is not plain
            calls, theirs = [], made.linear
            made.linear = lambda *args: calls.append(args) or theirs(*args)
            before = made.weights()
            metrics = grpo.step(made, groups, REWARD_PG, 1e-3, budget)
            assert calls, "the engine computed without DeepSpeed's F.linear"
            made.linear = theirs
            copy = lms.load(tiny.PATH, tokenizer).model
            made.copy_to(copy)
            results[dtype, budget] = dict(
                before=before, after=made.weights(), gradient=gradient(made),
                metrics=metrics, copy=dict(copy.state_dict()))
            made.load(lms.read_weights(tiny.PATH))
            grpo.step(made, groups, REWARD_PG, 1e-3, budget)
            results[dtype, budget]["again"] = gradient(made)
    results["many"] = in_many_groups(groups, f"{sys.argv[1]}{lms.rank_and_world()[0]}.json")
    assert torch.nn.functional.linear is plain
    if lms.rank_and_world()[0] == 0:
        torch.save(results, sys.argv[1])
    lms.leave_group()


if __name__ == "__main__":
    main()
