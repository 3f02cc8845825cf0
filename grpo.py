"""GRPO: group-relative advantages, the clipped loss, and one step.

Axes:  P prompts (groups) of a step   G completions of a prompt   B rows of a micro-batch
       C completion length

One step with 3 prompts, G = 2, on 2 ranks, in micro-batches of whole groups:

    prompt      0 0   1 1   2 2          advantages: (P, G), on every rank alike
    rank 0      0 0         2 2          whole groups are dealt, then sorted by length
    rank 1            1 1         -      a short rank repeats a row with weight 0: all stay in step

A micro-batch reads a prompt once for all completions of it that it holds (`model.pack`).

The loss is divided once, by the completions of the whole step, which every rank knows beforehand;
so neither the number of micro-batches nor that of ranks changes the gradient.

Not here, on purpose: a KL term (beta is 0), a value model, a reference model.

To use it elsewhere, copy model.py too; DeepSpeed is not needed. `step` trains whatever has a device
and these three methods; engine.py has them on ZeRO-3:

    class PlainEngine:
        device = torch.device("cpu")

        def __init__(self, model):
            self.model, self.adam = model, torch.optim.AdamW(model.parameters(), weight_decay=0.0)

        def logprobs(self, packed, tokens):
            return token_logprobs(self.model, packed, tokens=tokens)

        def backward(self, loss, last):
            loss.backward()

        def update(self, rate):
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0,
                                                  error_if_nonfinite=True)
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
            self.adam.zero_grad()
            return norm.item()
"""
import itertools
import math
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from model import NonFinite, flat, of_every_rank, pack, rank_and_world

# ---------------------------------------------------------------------------------------------
# The two equations


def group_advantages(reward_PG):
    """A_i = (r_i - mean(r)) / (std(r) + 1e-4) inside each group; std with G - 1.

    A group whose rewards are all equal gets exactly 0.

    Args:
        reward_PG: total rewards (P, G), G at least 2.

    Returns:
        advantages (P, G) in fp32.
    """
    reward_PG = reward_PG.double() - reward_PG[:, :1]      # equal ones become 0, and stay 0
    std_P1, mean_P1 = torch.std_mean(reward_PG, 1, keepdim=True)
    return ((reward_PG - mean_P1) / (std_P1 + 1e-4)).float()


def grpo_loss(logp_BC, old_logp_BC, adv_B, mask_BC, weight, epsilon):
    """loss = w sum_i (1/|o_i|) sum_t -min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)
    with rho = exp(logp - old_logp).

    With w = 1 / (completions in the step) and summed over its micro-batches, this is GRPO's mean
    over completions of the mean over their tokens. On fresh samples rho is 1 and the loss is about
    0 whatever happens: it is its gradient that matters.

    Args:
        logp_BC: log-probs under the policy, with gradient.
        old_logp_BC: under the policy that sampled, without.
        adv_B: advantages.
        mask_BC: True on completion tokens; every row has one.
        weight: w.
        epsilon: clipping range.

    Returns:
        (loss, number of tokens where the clipped term is the active one).
    """
    ratio_BC = (logp_BC - old_logp_BC).exp()
    free_BC = ratio_BC * adv_B[:, None]
    clipped_BC = ratio_BC.clamp(1 - epsilon, 1 + epsilon) * adv_B[:, None]
    loss_BC = -torch.minimum(free_BC, clipped_BC) * mask_BC
    clipped = ((clipped_BC < free_BC) & mask_BC).sum()
    return (weight * loss_BC.sum(1) / mask_BC.sum(1)).sum(), clipped


# ---------------------------------------------------------------------------------------------
# Micro-batches


@dataclass
class MicroBatch:
    """Completions that go through the model together."""

    groups: list              # lists of Rollouts; those of a list share their prompt
    adv_B: torch.Tensor
    weight: float             # in the loss; 0 for a row that only keeps ranks in step
    tokens: int               # completion tokens, of the rank that has most


def cut(groups, rank, world, budget):
    """A rank's completions of a step, cut into micro-batches: lists of (prompt p, completion g).

    Groups of like length stand together, so that their rows need little padding.

    Args:
        groups: P lists of G Rollouts; each `world`-th group is this rank's.
        budget: packed tokens of a micro-batch, a prompt counted once; a completion that is longer
            stands alone.
    """
    mine = sorted(range(rank, len(groups), world), key=lambda p: (
        len(groups[p][0].prompt) + sum(len(rollout.ids) for rollout in groups[p])))
    batches, room, here = [], 0, None      # here: the prompt that the batch holds last
    for p in mine:
        for g, rollout in enumerate(groups[p]):
            alone = len(rollout.prompt) + len(rollout.ids)
            tokens = len(rollout.ids) if here == p else alone
            if not batches or tokens > room:
                batches.append([])
                room, tokens = budget, alone
            batches[-1].append((p, g))
            room, here = room - tokens, p
    return batches


def micro_batches(groups, adv_PG, budget, device):
    """This rank's MicroBatches of a step, as many on every rank.

    Args:
        groups: P lists of G Rollouts, the same on every rank.
        adv_PG: their advantages.
        budget: as for `cut`.
    """
    rank, world = rank_and_world()
    # ZeRO-3 gathers parameters on all ranks together: whoever has fewer batches runs along.
    idle = [(0, min(range(len(groups[0])), key=lambda g: len(groups[0][g].ids)))]
    batches = []
    for of_ranks in itertools.zip_longest(
            *(cut(groups, r, world, budget) for r in range(world)), fillvalue=idle):
        cells = of_ranks[rank]
        batches.append(MicroBatch(
            [[groups[p][g] for _, g in part]
             for p, part in itertools.groupby(cells, key=lambda cell: cell[0])],
            torch.stack([adv_PG[cell] for cell in cells]).to(device),
            0.0 if cells is idle else 1 / adv_PG.numel(),
            max(sum(len(groups[p][g].ids) for p, g in rank_cells) for rank_cells in of_ranks)))
    return batches


# ---------------------------------------------------------------------------------------------
# The step


def step(engine, groups, reward_PG, rate, budget, epsilon=0.2, updates=1, commit=lambda: None):
    """One GRPO step of an engine on sampled groups. All ranks call it.

    Args:
        engine: see the head of this file.
        groups: P lists of G Rollouts, the same on every rank, sampled at the temperature at which
            the engine scores them.
        reward_PG: total rewards (P, G).
        rate: the learning rate.
        budget: packed tokens of a micro-batch.
        epsilon: clipping range.
        updates: optimizer updates on the same samples (mu).
        commit: called once, right before the first weight changes.

    Returns:
        metrics: {name: float}, the same on every rank. Means over the tokens of the step, except
        their number, loss, gradient norm and dead groups.
    """
    adv_PG = group_advantages(reward_PG)
    batches = micro_batches(groups, adv_PG, budget, engine.device)
    # 1) Old log-probs. With a single update they are those of the pass itself. With more they come
    # from the same batches: in another shape of batch they would be off by rounding.
    old = [None] * len(batches)
    if updates > 1:
        with torch.no_grad():
            old = [engine.logprobs(pack(b.groups, engine.device), b.tokens)[0] for b in batches]
    # 2) The gradient, and the updates.
    first = sums = accumulate(engine, batches, old, epsilon)
    commit()
    for n in range(updates):
        if n > 0:
            sums = accumulate(engine, batches, old, epsilon)
        norm = engine.update(rate)
        if not math.isfinite(norm):
            raise NonFinite("the gradient", flat(groups))
    # 3) Metrics. In the first pass the policy is still the sampler; clipping shows in the last one.
    both = sum(of_every_rank(torch.stack([first, sums]).cpu()))
    loss, _, gap, entropy, tokens = both[0].tolist()
    return {"loss": loss, "grad_norm": norm, "clip_share": both[1, 1].item() / tokens,
            "sampler_gap": gap / tokens, "entropy": entropy / tokens, "tokens": int(tokens),
            "dead_groups": (adv_PG == 0).all(1).double().mean().item()}


def accumulate(engine, batches, old, epsilon):
    """Gradient of all micro-batches.

    Args:
        old: old log-probs (B, C) of each micro-batch, or None where the fresh ones serve.

    Returns:
        this rank's sums (5,): loss; clipped, |log-prob - sampler's log-prob| and entropy over its
        tokens; and their number.
    """
    sums = torch.zeros(5, dtype=torch.float64, device=engine.device)
    for batch, old_BC in zip(batches, old):
        rollouts = flat(batch.groups)
        logp_BC, entropy_BC, mask_BC = engine.logprobs(pack(batch.groups, engine.device),
                                                       batch.tokens)
        bad_B = ~torch.isfinite(logp_BC).all(1)
        if bad_B.any():
            raise NonFinite("a log-probability", list(itertools.compress(rollouts, bad_B)))
        if old_BC is None:
            old_BC = logp_BC.detach()
        loss, clipped = grpo_loss(logp_BC, old_BC, batch.adv_B, mask_BC, batch.weight, epsilon)
        engine.backward(loss, last=batch is batches[-1])
        sampled_BC = pad_sequence([torch.tensor(r.logps) for r in rollouts],
                                  batch_first=True).to(engine.device)
        gap = (logp_BC.detach() - sampled_BC).abs().sum()      # outside of the mask both are 0
        sums += (batch.weight > 0) * torch.stack([loss.detach(), clipped, gap, entropy_BC.sum(),
                                                  mask_BC.sum()])
    return sums
