import inspect
import shutil
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

import grpo
import model as lms
import tiny
from conftest import ROOT, call, call_ranks
from engine_worker import REWARD_PG
from model import Rollout, token_logprobs

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
    value, count = grpo.grpo_loss(logp, torch.zeros(1, 1), torch.tensor([advantage]),
                                  torch.ones(1, 1, dtype=torch.bool), 1.0, 0.2)
    assert value.item() == pytest.approx(loss)
    value.backward()
    clipped = (ratio, advantage) in ((1.5, 1.0), (0.5, -1.0))
    assert count == clipped
    assert logp.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_loss_is_a_mean_over_tokens_then_over_completions():
    # Completions of 1 and 2 tokens, ratios 1: (1/2)(-3) + (1/2)(1/2)(1 + 1) = -1, without padding.
    logp = torch.tensor([[0.0, 9.0], [0.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True]])
    old = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    loss, _ = grpo.grpo_loss(logp, old, torch.tensor([3.0, -1.0]), mask, 0.5, 0.2)
    assert loss.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("budget", [1, 90, 250, 10_000])
def test_micro_batches_keep_the_budget_and_hold_every_completion_once(world, budget):
    draw = torch.Generator().manual_seed(budget)
    lengths = torch.randint(1, 60, (5, 4), generator=draw).tolist()
    groups = [[Rollout([0] * (20 + p), [0] * n, "", True, []) for n in row]
              for p, row in enumerate(lengths)]
    batches = [batch for rank in range(world) for batch in grpo.cut(groups, rank, world, budget)]
    for batch in batches:
        prompts = sum(20 + p for p in {p for p, _ in batch})
        tokens = prompts + sum(len(groups[p][g].ids) for p, g in batch)
        assert tokens <= budget or len(batch) == 1
    cells = [cell for batch in batches for cell in batch]
    assert sorted(cells) == [(p, g) for p in range(5) for g in range(4)]
    if budget == 10_000:
        assert len(batches) == min(world, 5)


def launch(world, out):
    """Run engine_worker.py on `world` ranks; returns what it saved."""
    call_ranks(world, sys.executable, ROOT / "tests/engine_worker.py", out)
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp("one") / "results.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(2, tmp_path_factory.mktemp("two") / "results.pt")


class PlainEngine:
    """The engine at the head of grpo.py, and the gradient of its last update."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model, self.adam = model, torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def logprobs(self, packed, tokens):
        return token_logprobs(self.model, packed, tokens=tokens)

    def backward(self, loss, last):
        loss.backward()

    def update(self, rate):
        self.gradient = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0,
                                              error_if_nonfinite=True)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()
        return norm.item()


def test_the_plain_engine_of_the_docstring_is_the_one_tested_here():
    shown = textwrap.dedent(grpo.__doc__.split("engine.py has them on ZeRO-3:")[1]).strip()
    written = inspect.getsource(PlainEngine)
    code = [line for line in written.splitlines() if line.strip() and '"""' not in line
            and "self.gradient" not in line]
    assert [line for line in shown.splitlines() if line.strip()] == code


@pytest.mark.parametrize("budget", [WHOLE, PARTS])
def test_a_plain_engine_takes_the_step_of_zero_3(one, budget):
    """The same gradient, and with the same optimizer the same weights."""
    made = PlainEngine(lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH)).model)
    metrics = grpo.step(made, one["groups"], REWARD_PG, 1e-3, budget)
    assert gap(made.gradient, one["fp32", budget]["gradient"]) < 1e-5
    assert metrics == pytest.approx(one["fp32", budget]["metrics"], rel=1e-3, abs=1e-5)


def test_two_updates_on_the_same_samples_start_at_ratio_1_and_clip_later(one):
    """The old log-probs come from the same batches, so that the first pass has their very bits."""
    model, passes = lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH)).model, []
    made = PlainEngine(model)
    plain = made.logprobs
    made.logprobs = lambda *args: passes.append(plain(*args)) or passes[-1]
    committed = []
    metrics = grpo.step(made, one["groups"], REWARD_PG, 1e-2, WHOLE, updates=2,
                        commit=lambda: committed.append(len(passes)))
    old, first, second = (logp for logp, _, _ in passes)
    assert torch.equal(old, first) and not torch.equal(first, second)
    assert committed == [2] and metrics["clip_share"] > 0


def test_grpo_and_model_work_where_deepspeed_is_not_installed(tmp_path):
    """Copied alone into an empty folder, with DeepSpeed hidden."""
    for name in ("grpo.py", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    script = ("import sys\nsys.modules['deepspeed'] = None\nimport torch, grpo\n"
              "from model import *\n"
              + textwrap.dedent(grpo.__doc__.split("engine.py has them on ZeRO-3:")[1])
              + f"tokenizer = load_tokenizer({str(tiny.PATH)!r})\n"
              f"lm = load({str(tiny.PATH)!r}, tokenizer)\n"
              "prompt = encode_chat(tokenizer, [{'role': 'user', 'content': 'Hello'}])\n"
              "groups = sample(lm, [prompt], 4, (0,), 1.0, 20, rows=4)\n"
              "rewards = torch.tensor([[0.0, 1.0, 2.0, 0.5]])\n"
              "print('norm', grpo.step(PlainEngine(lm.model), groups, rewards, 1e-4, 4096)"
              "['grad_norm'])\n")
    (tmp_path / "use.py").write_text(script)
    output = call(sys.executable, "use.py", cwd=tmp_path, fresh=True,
                  variables={"PYTHONPATH": ""})
    assert float(output.split("norm ")[1]) > 0


def gap(a, b):
    """Relative distance of two sets of gradients."""
    a, b = (torch.cat([grads[name].flatten() for name in sorted(grads)]) for grads in (a, b))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype, limit", [("fp32", 1e-5), ("bf16", 0.02)])
def test_gradient_does_not_depend_on_micro_batches_or_ranks(one, two, dtype, limit):
    whole = one[dtype, WHOLE]["gradient"]
    assert max(grad.abs().max() for grad in whole.values()) > 1e-3     # else noise
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
    """Without a reset the first moment would be 0.1 g + 0.9 (0.1 g), 1.9 times what it was."""
    for results in (one, two):
        run = results["fp32", WHOLE]
        assert gap(run["again"], run["gradient"]) < 1e-5


def test_ranks_draw_the_same_samples(one, two):
    ids = [[[rollout.ids for rollout in group] for group in run["groups"]] for run in (one, two)]
    assert ids[0] == ids[1]


def test_metrics_agree_over_ranks(one, two):
    assert two["fp32", WHOLE]["metrics"] == pytest.approx(one["fp32", WHOLE]["metrics"], rel=1e-3,
                                                       abs=1e-5)
    assert one["fp32", WHOLE]["metrics"]["dead_groups"] == pytest.approx(1 / 3)
