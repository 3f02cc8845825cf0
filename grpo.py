"""GRPO: group-relative advantages, the clipped loss, and the step on a DeepSpeed ZeRO-3 engine.

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
"""
import copy
import itertools
import logging
import math
import os
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F

logging.disable(logging.WARNING)      # on import DeepSpeed announces what it found
import deepspeed                      # noqa: E402
from deepspeed.utils import (safe_get_full_fp32_param, safe_get_local_fp32_param,
                             safe_set_local_fp32_param)

from model import (BadCheckpoint, NonFinite, logit_blocks, pack, rank_and_world,
                   token_logprobs)
from disk import read_json, write_tensors

logging.disable(logging.NOTSET)

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
    reward_PG = reward_PG.double()
    mean_P1 = reward_PG.mean(1, keepdim=True)
    std_P1 = reward_PG.std(1, keepdim=True)
    equal_P1 = (reward_PG == reward_PG[:, :1]).all(1, keepdim=True)
    return ((reward_PG - mean_P1) / (std_P1 + 1e-4)).masked_fill(equal_P1, 0.0).float()


def grpo_loss(logp_BC, old_logp_BC, adv_B, mask_BC, weight_B, epsilon):
    """loss = sum_i w_i (1/|o_i|) sum_t -min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)
    with rho = exp(logp - old_logp).

    With w_i = 1 / (completions in the step) and summed over its micro-batches, this is GRPO's mean
    over completions of the mean over their tokens. On fresh samples rho is 1 and the loss is about
    0 whatever happens: it is its gradient that matters.

    Args:
        logp_BC: log-probs under the policy, with gradient.
        old_logp_BC: under the policy that sampled, without.
        adv_B: advantages.
        mask_BC: True on completion tokens; every row has one.
        weight_B: w_i.
        epsilon: clipping range.

    Returns:
        (loss, share of tokens where the clipped term is the active one).
    """
    ratio_BC = (logp_BC - old_logp_BC).exp()
    free_BC = ratio_BC * adv_B[:, None]
    clipped_BC = ratio_BC.clamp(1 - epsilon, 1 + epsilon) * adv_B[:, None]
    loss_BC = -torch.minimum(free_BC, clipped_BC) * mask_BC
    real_BC = mask_BC & (weight_B > 0)[:, None]
    clip_share = ((clipped_BC < free_BC) & real_BC).sum() / real_BC.sum().clamp(min=1)
    return (weight_B * loss_BC.sum(1) / mask_BC.sum(1)).sum(), clip_share


# ---------------------------------------------------------------------------------------------
# Distributed set-up


def init_distributed(timeout=30):
    """Join the launcher's process group, or make one of a single process. Returns the device.

    Args:
        timeout: minutes that a rank waits for the others in a collective.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=port)
    # On a CPU, a compiled kernel is kept for each of up to 1024 shapes: with packed rows, no two
    # steps have the same.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    deepspeed.utils.logger.setLevel("ERROR")
    # The CPU backend would compile this op at start-up, and fail without a C++ compiler. It only
    # speeds up reductions between processes of one machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=timedelta(minutes=timeout))
    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    return torch.device("cpu")


def our_config(config):
    """What the step relies on, each key with its reason.

    Args:
        config: has learning_rate, dtype ("bf16" or "fp32") and max_grad_norm.
    """
    return {
        # The step cuts micro-batches and divides the loss itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        "bf16": {"enabled": config.dtype == "bf16"},
        # Both default to bf16, where small gradients are lost in the sum.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": config.max_grad_norm,
        "zero_force_ds_cpu_optimizer": False,      # offloading would ask for a compiled Adam
        "zero_optimization": {
            "stage": 3,
            # No parameter is kept whole between uses, so that loading weights has one place to
            # write to.
            "stage3_param_persistence_threshold": 0,
            "overlap_comm": False,
            # DeepSpeed's own sizes are ten times these, and cost gigabytes: a bucket in fp32 on
            # every GPU, and in a step as much again as the masters, three times.
            "reduce_bucket_size": 5 * 10**7,      # gradients that are reduced together, elements
            "sub_group_size": 10**8,              # masters of a rank that are updated at a time
        },
        "optimizer": {"type": "AdamW", "params": {
            "lr": config.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0,
            "torch_adam": True,        # the default is compiled at start-up
        }},
    }


# What the user may set besides: where the engine keeps things, how it moves them, what it reports.
OFFLOAD = tuple(f"zero_optimization.offload_{what}.{key}" for what in ("optimizer", "param")
                for key in ("device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu"))
ALLOWED = OFFLOAD + tuple(f"zero_optimization.{key}" for key in (
    "reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "sub_group_size",
    "contiguous_gradients", "round_robin_gradients")) + ("wall_clock_breakdown", "dump_state")
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet", "comms_logger", "flops_profiler")


def leaves(tree, prefix=""):
    """{dotted key: value} of nested dicts."""
    found = {}
    for key, value in tree.items():
        dotted = prefix + key
        found |= leaves(value, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
    return found


def read_user_config(config):
    """The user's DeepSpeed settings from the JSON file `config.deepspeed` ("": none).

    ValueError names a setting that is ours to decide, or that could change what a step computes.
    """
    if not config.deepspeed:
        return {}
    user = read_json(config.deepspeed)
    if not isinstance(user, dict):
        raise ValueError(f"{config.deepspeed} holds no JSON object")
    ours = leaves(our_config(config))
    for key, value in leaves(user).items():
        if key in OFFLOAD and key.endswith("device") and value not in ("cpu", "none"):
            raise ValueError(f"{config.deepspeed} sets {key} to {value!r}: cpu and none are known "
                             "to work")
        if not (key in ALLOWED or key.partition(".")[0] in MONITORS
                or key in ours and ours[key] == value):
            raise ValueError(f"{config.deepspeed} sets {key}: the training step decides that")
    return user


def engine_config(config):
    """The DeepSpeed configuration: ours, with what the user may set laid over it."""
    return merge(our_config(config), read_user_config(config))


def merge(under, over):
    """Nested dicts laid over each other; `over` wins."""
    both = {key for key, value in over.items()
            if isinstance(value, dict) and isinstance(under.get(key), dict)}
    return under | over | {key: merge(under[key], over[key]) for key in both}


class Policy(torch.nn.Module):
    """What the engine wraps: a causal LM whose forward pass returns token log-probs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, temperature, blocks):
        return token_logprobs(self.model, batch, temperature, blocks)


@dataclass
class Pending:
    """A GRPO step between gradient and update."""

    batches: list          # from Trainer.micro_batches
    old: list              # old log-probs of each, None where the fresh ones serve
    temperature: float
    dead: float            # share of groups whose rewards are all equal
    sums: object = None    # from Trainer._accumulate


@contextmanager
def linear_is(function):
    """F.linear, for as long as the engine computes."""
    plain, F.linear = F.linear, function
    try:
        yield
    finally:
        F.linear = plain


def cut(groups, adv_PG, rank, world, budget):
    """A rank's completions of a step, cut into micro-batches: lists of (number of the group,
    rollout, advantage, weight in the loss).

    Groups of like length stand together, so that their rows need little padding.

    Args:
        groups: P lists of G Rollouts; each `world`-th group is this rank's.
        adv_PG: their advantages.
        budget: packed tokens of a micro-batch, a prompt counted once; a completion that is longer
            stands alone.
    """
    mine = sorted(range(rank, len(groups), world), key=lambda p: (
        len(groups[p][0].prompt) + sum(len(rollout.ids) for rollout in groups[p])))
    batches, room, here = [], 0, None      # here: the group whose prompt the batch holds last
    for p in mine:
        for rollout, adv in zip(groups[p], adv_PG[p].tolist()):
            alone = len(rollout.prompt) + len(rollout.ids)
            tokens = len(rollout.ids) if here == p else alone
            if not batches or tokens > room:
                batches.append([])
                room, tokens = budget, alone
            batches[-1].append((p, rollout, adv, 1 / adv_PG.numel()))
            room, here = room - tokens, p
    return batches


class Trainer:
    """The training policy: one ZeRO-3 engine for the whole run, with fp32 masters.

    Each phase loads a role's weights with `load`, which also clears the optimizer. One engine for
    all phases avoids what DeepSpeed leaks at every initialisation.
    """

    def __init__(self, model, config):
        """
        Args:
            model: a causal LM; the engine takes it over. Its weights come with `load`.
            config: as for `engine_config`, and micro_tokens, epsilon, inner_updates,
                gradient_checkpointing.
        """
        self.config = config
        model.train()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        # DeepSpeed replaces F.linear for the whole process. The engine needs its version, which
        # lets go of gathered weights; the sampler, which holds whole ones, only loses time by it.
        plain = F.linear
        self.engine = deepspeed.initialize(model=Policy(model), model_parameters=model.parameters(),
                                           config=engine_config(config))[0]
        self.linear, F.linear = F.linear, plain
        self.device = self.engine.device

    def parameters(self):
        """(name as in the causal LM, parameter) of the engine; tied ones once."""
        return self.engine.module.model.named_parameters()

    # Weights -----------------------------------------------------------------------------------

    def load(self, weights):
        """Write fp32 weights into masters and training copy, and forget the optimizer's state.

        DeepSpeed itself makes its masters from parameters already rounded to bf16, and would lose
        what a small learning rate had built up.

        Args:
            weights: (name, tensor) pairs in any order.
        """
        rank, world = rank_and_world()
        params = dict(self.parameters())
        for name, weight in weights:
            if name not in params:       # a tied output layer may be stored too
                continue
            param = params.pop(name)
            if weight.shape != param.ds_shape:
                raise BadCheckpoint(f"a checkpoint's {name} has the shape {tuple(weight.shape)}, "
                                    f"not {tuple(param.ds_shape)}")
            flat = weight.detach().float().flatten()
            size = -(-flat.numel() // world)
            # Shards have equal length; the last one is padded.
            shard = flat[rank * size:(rank + 1) * size].to(self.device)
            shard = torch.nn.functional.pad(shard, (0, size - shard.numel()))
            safe_set_local_fp32_param(param, shard)
            param.ds_tensor.data.copy_(shard)
        if params:
            raise BadCheckpoint(f"a checkpoint lacks the weights {', '.join(list(params)[:3])}")
        self.engine.optimizer.optimizer.state.clear()

    def state(self):
        """This rank's part of masters and optimizer, {name: CPU tensor}: all that `restore` needs
        to go on as if nothing had happened."""
        tensors = {}
        for n, flat in enumerate(self.engine.optimizer.fp32_partitioned_groups_flat):
            tensors[f"{n}.master"] = flat.detach().cpu().clone()
            for name, value in self.engine.optimizer.optimizer.state[flat].items():
                tensors[f"{n}.{name}"] = torch.as_tensor(value).cpu().clone()
        return tensors

    def restore(self, tensors):
        """Put back what `state` gave on the same rank of as many ranks."""
        optimizer = self.engine.optimizer
        for n, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            flat.data.copy_(tensors[f"{n}.master"])
            optimizer.optimizer.state[flat] = {
                "step": tensors[f"{n}.step"],
                "exp_avg": tensors[f"{n}.exp_avg"].to(flat.device),
                "exp_avg_sq": tensors[f"{n}.exp_avg_sq"].to(flat.device)}
        for _, param in self.parameters():
            param.ds_tensor.data.copy_(safe_get_local_fp32_param(param))

    def weights(self):
        """{name: fp32 CPU tensor} of the masters on rank 0, an empty dict elsewhere. All ranks call
        it."""
        rank, _ = rank_and_world()
        masters = {}
        for name, param in self.parameters():
            full = safe_get_full_fp32_param(param)
            if rank == 0:
                masters[name] = full.detach().cpu().clone()
        return masters

    def copy_to(self, model):
        """Refresh a plain copy of the model in place, gathering one parameter at a time."""
        target = dict(model.named_parameters())
        with torch.no_grad():
            for name, param in self.parameters():
                with deepspeed.zero.GatheredParameters([param]):
                    target[name].copy_(param)

    def check_copy(self, model):
        """AssertionError unless a plain copy on this rank holds the engine's weights. All ranks
        call it."""
        target = dict(model.named_parameters())
        for name, param in self.parameters():
            with deepspeed.zero.GatheredParameters([param]):
                assert torch.equal(target[name], param), f"the sampling copy differs in {name}"

    def save(self, path, lm):
        """Write a Hugging Face checkpoint with fp32 weights. All ranks call it.

        Args:
            path: a directory; replaced as a whole once it is complete.
            lm: model.LM whose configuration and tokenizer belong to the weights.
        """
        masters = self.weights()
        if rank_and_world()[0] == 0:
            path, part = Path(path), Path(f"{path}.part")
            part.mkdir(parents=True, exist_ok=True)
            write_tensors(part / "model.safetensors", masters, {"format": "pt"})
            # As transformers writes them; its save_pretrained would refuse some that it has loaded.
            settings = copy.deepcopy(lm.model.config)
            settings.dtype, settings.architectures = torch.float32, [type(lm.model).__name__]
            settings.to_json_file(part / "config.json")
            lm.model.generation_config.to_json_file(part / "generation_config.json")
            lm.tokenizer.save_pretrained(part)
            shutil.rmtree(path, ignore_errors=True)     # from a phase that was cut off just after
            part.rename(path)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def write_events(self, phase, step, metrics):
        """Hand numbers to the monitors (tensorboard, wandb, csv) that the user's DeepSpeed settings
        switch on."""
        if self.engine.monitor.enabled:
            self.engine.monitor.write_events(
                [(f"{phase}/{name}", value, step) for name, value in metrics.items()
                 if isinstance(value, (int, float))])

    # The step ----------------------------------------------------------------------------------

    def micro_batches(self, groups, adv_PG):
        """This rank's micro-batches, as many on every rank: lists of (rollouts by group, advantages
        (B,), weights (B,), blocks of logits).

        Args:
            groups: P lists of G Rollouts, the same on every rank.
            adv_PG: their advantages.
        """
        rank, world = rank_and_world()
        vocab_size = self.engine.module.model.config.vocab_size
        cuts = [cut(groups, adv_PG, r, world, self.config.micro_tokens) for r in range(world)]
        # ZeRO-3 gathers parameters on all ranks together: whoever has fewer runs along.
        idle = (0, min(groups[0], key=lambda rollout: len(rollout.ids)), 0.0, 0.0)
        batches = []
        for of_ranks in itertools.zip_longest(*cuts, fillvalue=[idle]):
            # The output layer is gathered once a block: the fullest rank sets the number.
            tokens = max(sum(len(rollout.ids) for _, rollout, _, _ in batch) for batch in of_ranks)
            blocks = logit_blocks(tokens, vocab_size)
            _, _, adv, weights = zip(*of_ranks[rank])
            parts = [[rollout for _, rollout, _, _ in part]
                     for _, part in itertools.groupby(of_ranks[rank], key=lambda row: row[0])]
            batches.append((parts, torch.tensor(adv, device=self.device),
                            torch.tensor(weights, device=self.device), blocks))
        return batches

    def backward(self, groups, reward_PG, temperature=1.0):
        """The first half of a GRPO step: everything up to the gradient. No weight changes.

        Args:
            groups: P lists of G Rollouts, the same on every rank.
            reward_PG: total rewards (P, G).
            temperature: that the samples were drawn at.

        Returns:
            what `update` takes.
        """
        adv_PG = group_advantages(reward_PG)
        batches = self.micro_batches(groups, adv_PG)
        pending = Pending(batches, [None] * len(batches), temperature,
                          (adv_PG == 0).all(1).double().mean().item())
        with linear_is(self.linear):
            if self.config.inner_updates > 1:
                # From the same batches: another batch shape would shift them by rounding.
                with torch.no_grad():
                    pending.old = [self._logprobs(parts, temperature, blocks)[0]
                                   for parts, _, _, blocks in batches]
            pending.sums = self._accumulate(pending)
        return pending

    def update(self, pending, learning_rate):
        """The second half: `inner_updates` (mu) optimizer updates on the same samples.

        Args:
            pending: from `backward`.
            learning_rate: of this step.

        Returns:
            metrics: {name: float}, the same on every rank; token means over the step, but loss and
            gradient norm.
        """
        for group in self.engine.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = pending.sums
        for n in range(self.config.inner_updates):
            if n > 0:
                with linear_is(self.linear):
                    sums = self._accumulate(pending)
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
            if not math.isfinite(norm):        # then DeepSpeed has left the weights as they were
                raise NonFinite("the gradient", [rollout for parts, *_ in pending.batches
                                                 for part in parts for rollout in part])
        # The samples are the sampler's in the first pass only; clipping shows in the last.
        both = torch.stack([pending.sums, sums])
        if rank_and_world()[1] > 1:
            torch.distributed.all_reduce(both)
        loss, _, gap, entropy, tokens = both[0].tolist()
        clipped = both[1, 1].item()
        return {"loss": loss, "grad_norm": norm, "clip_share": clipped / tokens,
                "sampler_gap": gap / tokens, "entropy": entropy / tokens, "tokens": int(tokens),
                "dead_groups": pending.dead}

    def _logprobs(self, parts, temperature, blocks):
        return self.engine(pack(parts, self.device), temperature, blocks)

    def _accumulate(self, pending):
        """Gradient of all micro-batches. Returns this rank's sums over tokens, for the metrics."""
        world, sums = rank_and_world()[1], torch.zeros(5, dtype=torch.float64, device=self.device)
        for i, (parts, adv_B, weight_B, blocks) in enumerate(pending.batches):
            rollouts = list(itertools.chain(*parts))
            logp_BC, entropy_BC, mask_BC = self._logprobs(parts, pending.temperature, blocks)
            if not torch.isfinite(logp_BC).all():
                bad_B = ~torch.isfinite(logp_BC).all(1)
                raise NonFinite("a log-probability", [r for r, bad in zip(rollouts, bad_B) if bad])
            old_BC = logp_BC.detach() if pending.old[i] is None else pending.old[i]
            recomputed = pending.sums is None and pending.old[i] is not None
            if self.config.assert_invariants and recomputed:
                drift = ((logp_BC - old_BC).exp() - 1).abs().max().item()
                assert drift < 1e-5, f"the ratio is off by {drift:.6f} before the first update"
            loss, clip_share = grpo_loss(logp_BC, old_BC, adv_B, mask_BC, weight_B,
                                         self.config.epsilon)
            # The engine averages gradients over ranks, where we want their sum: the one place where
            # we scale.
            self.engine.set_gradient_accumulation_boundary(i == len(pending.batches) - 1)
            self.engine.backward(loss * world)
            sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.logps) for r in rollouts],
                                                      batch_first=True).to(self.device)
            real_BC = mask_BC & (weight_B > 0)[:, None]
            gap_BC = (logp_BC.detach() - sampled).abs() * real_BC
            tokens = real_BC.sum()
            sums += torch.stack([loss.detach(), clip_share * tokens, gap_BC.sum(),
                                 (entropy_BC * real_BC).sum(), tokens])
        return sums
