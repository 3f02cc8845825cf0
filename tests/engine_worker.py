"""Run by test_grpo.py, once on one rank and once on two:
GRPO steps from the same weights and samples.

Saves the gradients (from Adam's first moment), the weights before and after, and the sampled ids.
"""
import sys
from types import SimpleNamespace

import torch
from deepspeed.utils import safe_get_full_optimizer_state

import grpo
import model as lms
import solver
import tiny


def in_many_groups(groups, reward_PG, file):
    """Weights after the step of ("fp32", 10_000), with the masters in many groups and buckets; then
    the same from a saved state."""
    with open(file, "w") as out:
        out.write('{"zero_optimization": {"sub_group_size": 50000, "reduce_bucket_size": 20000}}')
    config = SimpleNamespace(learning_rate=1e-3, dtype="fp32", max_grad_norm=1e9, epsilon=0.2,
                             micro_tokens=10_000, inner_updates=1, gradient_checkpointing=False,
                             deepspeed=file, assert_invariants=False)
    trainer = grpo.Trainer(lms.build(tiny.PATH), config)
    trainer.load(lms.read_weights(tiny.PATH))
    trainer.update(trainer.backward(groups, reward_PG), 1e-3)
    state, after = trainer.state(), trainer.weights()
    assert sum(name.endswith(".master") for name in state) > 3
    trainer.update(trainer.backward(groups, reward_PG), 1e-3)
    trainer.restore(state)
    return after, trainer.weights()


def main():
    grpo.init_distributed()
    tokenizer = lms.load_tokenizer(tiny.PATH)
    lm = lms.load(tiny.PATH, tokenizer)
    lms.LOGITS_AT_ONCE = 100 * 698      # so that ranks differ in what they would cut
    prompts = [lms.encode_chat(tokenizer, solver.prompt(task.question, task.tools))
               for task in tiny.heldout(3)]
    groups = lms.sample(lm, prompts, 4, (0,), 1.0, 40, rows=4)
    reward_PG = torch.tensor([[0.0, 1.0, 2.0, 0.5], [1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    results = {"ids": [[rollout.ids for rollout in group] for group in groups]}
    plain = torch.nn.functional.linear
    for dtype in ("fp32", "bf16"):
        for micro_tokens in (10_000, 500):      # whole; a few completions each
            config = SimpleNamespace(learning_rate=1e-3, dtype=dtype, max_grad_norm=1e9,
                                     epsilon=0.2, micro_tokens=micro_tokens, inner_updates=1,
                                     gradient_checkpointing=False, deepspeed="",
                                     assert_invariants=False)
            trainer = grpo.Trainer(lms.build(tiny.PATH), config)
            assert torch.nn.functional.linear is plain and trainer.linear is not plain
            calls, theirs = [], trainer.linear
            trainer.linear = lambda *args: calls.append(args) or theirs(*args)
            trainer.load(lms.read_weights(tiny.PATH))
            before = trainer.weights()
            metrics = trainer.update(trainer.backward(groups, reward_PG), 1e-3)
            assert calls, "the engine computed without DeepSpeed's F.linear"
            trainer.linear = theirs
            gradient = {  # 10 = 1 / (1 - beta1)
                name: safe_get_full_optimizer_state(p, "exp_avg").cpu() * 10
                for name, p in trainer.parameters()}
            copy = lms.load(tiny.PATH, tokenizer).model
            trainer.copy_to(copy)
            results[dtype, micro_tokens] = dict(
                before=before, after=trainer.weights(), gradient=gradient,
                metrics=metrics, copy=dict(copy.state_dict()))
            trainer.load(lms.read_weights(tiny.PATH))
            again = trainer.update(trainer.backward(groups, reward_PG), 1e-3)
            results[dtype, micro_tokens]["again"] = again
    settings = f"{sys.argv[1]}{lms.rank_and_world()[0]}.json"
    results["many"] = in_many_groups(groups, reward_PG, settings)
    assert torch.nn.functional.linear is plain
    if lms.rank_and_world()[0] == 0:
        torch.save(results, sys.argv[1])
    lms.leave_group()


if __name__ == "__main__":
    main()
