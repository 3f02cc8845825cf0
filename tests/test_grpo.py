import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import grpo
import tiny
from conftest import free_port
from model import Rollout

WHOLE, PARTS = 10_000, 500      # tokens of a micro-batch in engine_worker.py


def test_advantages_by_hand():
    # mean 2, std sqrt(((1)^2 + 0 + 1) / 2) = 1; a group of equal rewards gets exactly 0.
    adv = grpo.group_advantages(torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]]))
    torch.testing.assert_close(adv[0], torch.tensor([-1.0, 0.0, 1.0]) / 1.0001)
    assert (adv[1] == 0).all()


@pytest.mark.parametrize("ratio, advantage, loss", [
    (1.0, 2.0, -2.0),      # fresh sample
    (1.5, 1.0, -1.2),      # clipped above: no more gain
    (0.5, 1.0, -0.5),      # below, positive advantage: not clipped
    (0.5, -1.0, 0.8),      # clipped below: no more gain
    (1.5, -1.0, 1.5),      # above, negative advantage: not clipped
])
def test_loss_of_one_token_by_hand(ratio, advantage, loss):
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    value, clip_share = grpo.grpo_loss(logp, torch.zeros(1, 1), torch.tensor([advantage]),
                                       torch.ones(1, 1, dtype=torch.bool), torch.ones(1), 0.2)
    assert value.item() == pytest.approx(loss)
    value.backward()
    clipped = (ratio, advantage) in ((1.5, 1.0), (0.5, -1.0))
    assert clip_share == clipped
    assert logp.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_loss_is_a_mean_over_tokens_then_over_completions():
    # Completions of 1 and 2 tokens, ratios 1: (1/2)(-3) + (1/2)(1/2)(1 + 1) = -1, without padding.
    logp = torch.tensor([[0.0, 9.0], [0.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True]])
    old = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    loss, _ = grpo.grpo_loss(logp, old, torch.tensor([3.0, -1.0]), mask, torch.full((2,), 0.5), 0.2)
    assert loss.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("budget", [1, 90, 250, 10_000])
def test_micro_batches_keep_the_budget_and_hold_every_completion_once(world, budget):
    draw = torch.Generator().manual_seed(budget)
    lengths = torch.randint(1, 60, (5, 4), generator=draw).tolist()
    groups = [[Rollout([0] * (20 + p), [0] * n, "", True, []) for n in row]
              for p, row in enumerate(lengths)]
    adv_PG = torch.arange(20.0).view(5, 4)
    batches = [batch for rank in range(world)
               for batch in grpo.cut(groups, adv_PG, rank, world, budget)]
    for batch in batches:
        prompts = sum(20 + p for p in {p for p, *_ in batch})
        tokens = prompts + sum(len(rollout.ids) for _, rollout, _, _ in batch)
        assert tokens <= budget or len(batch) == 1
    rows = [row for batch in batches for row in batch]
    assert sorted(adv for _, _, adv, _ in rows) == adv_PG.flatten().tolist()
    assert all(rollout is groups[p][int(adv) % 4] and int(adv) // 4 == p and weight == 1 / 20
               for p, rollout, adv, weight in rows)
    if budget == 10_000:
        assert len(batches) == min(world, 5)


def launch(world, out):
    """Run engine_worker.py on `world` ranks; returns what it saved."""
    workers, port = [], free_port()
    for rank in range(world):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                            "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": str(port), "PYTHONPATH": str(tiny.PATH.parent)}
        workers.append(subprocess.Popen(
            [sys.executable, Path(__file__).with_name("engine_worker.py"), out], env=env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    logs = [worker.communicate(timeout=240)[0].decode() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), logs[0][-3000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp("one") / "results.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(2, tmp_path_factory.mktemp("two") / "results.pt")


def gap(a, b):
    """Relative distance of two sets of gradients."""
    a, b = (torch.cat([grads[name].flatten() for name in sorted(grads)]) for grads in (a, b))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype, limit", [("fp32", 1e-5), ("bf16", 0.02)])
def test_gradient_does_not_depend_on_micro_batches_or_ranks(one, two, dtype, limit):
    whole = one[dtype, WHOLE]["gradient"]
    assert gap(one[dtype, PARTS]["gradient"], whole) < limit
    assert gap(two[dtype, WHOLE]["gradient"], whole) < limit      # 3 groups on 2 ranks
    assert gap(two[dtype, PARTS]["gradient"], whole) < limit


def test_a_step_in_many_groups_is_the_same_and_can_be_restored(one, two):
    """The engine cuts masters and gradients of a large model, where the tiny one's are whole."""
    for results in (one, two):
        after, restored = results["many"]
        for name, weight in results["fp32", WHOLE]["after"].items():
            torch.testing.assert_close(after[name], weight, rtol=0, atol=2e-5)
            assert torch.equal(restored[name], after[name])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_masters_start_at_the_file_and_move(one, two, dtype):
    file = load_file(tiny.PATH / "model.safetensors")
    for results in (one, two):
        run = results[dtype, WHOLE]
        for name, before in run["before"].items():
            assert torch.equal(before, file[name])
        moved = [(run["after"][name] - before).abs().max().item()
                 for name, before in run["before"].items()]
        assert all(0 < step < 1.1e-3 for step in moved)      # Adam's first step is at most the rate


def test_the_copy_has_the_new_weights(two):
    for dtype, cast in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = two[dtype, WHOLE]
        for name, after in run["after"].items():
            assert torch.equal(run["copy"][name].to(cast), after.to(cast)), name


def test_loading_weights_also_resets_the_optimizer(one, two):
    for results in (one, two):
        run = results["fp32", WHOLE]
        assert run["again"] == pytest.approx(run["metrics"], rel=1e-4, abs=1e-6)


def test_ranks_draw_the_same_samples(one, two):
    assert one["ids"] == two["ids"]


def test_metrics_agree_over_ranks(one, two):
    assert two["fp32", WHOLE]["metrics"] == pytest.approx(one["fp32", WHOLE]["metrics"], rel=1e-3,
                                                       abs=1e-5)
    assert one["fp32", WHOLE]["metrics"]["dead_groups"] == pytest.approx(1 / 3)
