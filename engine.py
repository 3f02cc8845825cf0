"""The training policy on DeepSpeed ZeRO-3: the engine that grpo.py's step works against.

DeepSpeed cuts parameters, gradients, fp32 masters and optimizer state into a shard for each rank.
What the fifteen lines of AdamW at the head of grpo.py do, this file does on many GPUs; the rest
gets fp32 weights in and out without rounding, and a state that a run can resume from.

No other file imports DeepSpeed.
"""
import importlib
import logging
import os
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F

logging.disable(logging.WARNING)      # on import DeepSpeed announces what it found
warnings.filterwarnings("ignore", category=FutureWarning)      # of how it calls torch
import deepspeed                      # noqa: E402
from deepspeed.utils import (safe_get_full_fp32_param, safe_get_local_fp32_param,
                             safe_set_local_fp32_param)

import serving
from cli import Refused
from disk import read_json_as
from model import matched, one_line, rank_and_world, token_logprobs

logging.disable(logging.NOTSET)

# ---------------------------------------------------------------------------------------------
# The process group


def init_distributed(timeout=30):
    """Join the launcher's process group, or make one of a single process. Returns the device.

    Args:
        timeout: minutes that a rank waits for the others in a collective.
    """
    os.environ.setdefault("LOCAL_RANK", "0")      # some schedulers set the other four only
    if "RANK" not in os.environ:      # port 0: any that is free
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if missing := [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
                   if name not in os.environ]:
        raise Refused(f"RANK is set in the environment, but not {', '.join(missing)}: start it "
                      "under a launcher, or unset RANK")
    # On a CPU, a compiled kernel is kept for each of up to 1024 shapes: with packed rows, no two
    # steps have the same.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    deepspeed.utils.logger.setLevel("ERROR")
    # The CPU backend would compile this op at start-up, and fail without a C++ compiler. It only
    # speeds up reductions between processes of one machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(timeout=timedelta(minutes=timeout))
    except dist.DistError as error:
        raise Refused(f"rank {os.environ['RANK']} cannot meet the others at port "
                      f"{os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} "
                      f"({str(error).splitlines()[0][:150]}): if another run has the port, give "
                      "the launcher another --master_port") from None
    local_rank = int(os.environ["LOCAL_RANK"])
    local_ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available():
        warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    return torch.device("cpu")


# ---------------------------------------------------------------------------------------------
# Configuration


def settings(config):
    """The DeepSpeed configuration: ours, each key with its reason, and the user's JSON file
    `config.deepspeed` ("": none) laid over it. Refused names a setting that could change what a
    step computes.

    Args:
        config: has dtype ("bf16" or "fp32"), max_grad_norm and deepspeed.
    """
    ours = {
        # grpo.step cuts micro-batches and divides the loss itself.
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
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
            "lr": 0.0,                 # `step` is told
            "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0,
            "torch_adam": True,        # the default is compiled at start-up
        }},
    }
    if not config.deepspeed:
        return ours
    return read_json_as(config.deepspeed, lambda user: understood(laid_over(ours, user)))


def understood(settings):
    """The settings, if DeepSpeed takes them. ValueError says in a line what is of a wrong type, or
    which monitor is not installed."""
    try:
        deepspeed.DeepSpeedConfig(settings)
        for monitor in ("tensorboard", "wandb"):
            if settings.get(monitor, {}).get("enabled"):
                importlib.import_module(monitor)
    except Exception as error:      # pydantic's, or whatever a wrong type leads to
        raise ValueError(one_line(error)) from None
    return settings


# What the user may set besides: where the engine keeps things, how it moves them, what it reports.
MONITORS = ("tensorboard.", "wandb.", "csv_monitor.")
ALLOWED = ("wall_clock_breakdown", *(f"zero_optimization.{key}" for key in (
    "offload_optimizer.device", "offload_optimizer.pin_memory", "offload_param.device",
    "offload_param.pin_memory", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size",
    "stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance")))


def laid_over(ours, user, above=""):
    """A nested dict with the entries of another over it. ValueError where one is not free."""
    if not isinstance(user, dict):
        raise ValueError("it holds no JSON object")
    merged = dict(ours)
    for key, value in user.items():
        name, own = above + key, ours.get(key, {})
        free = name in ALLOWED or name.startswith(MONITORS) or value == own
        if isinstance(value, dict) and isinstance(own, dict):
            value = laid_over(own, value, name + ".")
        elif not free or value == "auto" or key == "device" and value not in ("cpu", "none"):
            raise ValueError(f"{name} cannot be {value!r}: only offloading to the cpu, sizes of "
                             "buckets and monitors are free")
        merged[key] = value
    return merged


# ---------------------------------------------------------------------------------------------
# The engine


class Policy(torch.nn.Module):
    """What DeepSpeed wraps: a causal LM whose forward pass returns token log-probs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.temperature = model, 1.0

    def forward(self, packed, tokens):
        return token_logprobs(self.model, packed, self.temperature, tokens)


class Engine:
    """One ZeRO-3 engine for the whole run, with fp32 masters.

    Each phase loads a role's weights with `load`, which also clears the optimizer. One engine for
    all phases avoids what DeepSpeed leaks at every initialisation.
    """

    def __init__(self, model, config):
        """
        Args:
            model: a causal LM; the engine takes it over. Its weights come with `load`.
            config: as for `settings`, and gradient_checkpointing.
        """
        model.train()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        # DeepSpeed replaces F.linear for the whole process. The engine needs its version, which
        # lets go of gathered weights; the sampler, which holds whole ones, only loses time by it.
        plain = F.linear
        self.engine = deepspeed.initialize(model=Policy(model), config=settings(config),
                                           model_parameters=model.parameters())[0]
        self.linear, F.linear = F.linear, plain
        self.optimizer, self.device = self.engine.optimizer, self.engine.device

    # What grpo.step asks for -------------------------------------------------------------------

    def logprobs(self, packed, tokens):
        """`model.token_logprobs` of the policy. All ranks call it, with the same `tokens`."""
        with patch.object(F, "linear", self.linear):
            return self.engine(packed, tokens)

    def backward(self, loss, last):
        """Add the gradient of a loss to those of the step; `last` is its last micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)
        with patch.object(F, "linear", self.linear):
            # DeepSpeed averages gradients over ranks, where the step wants their sum: the one
            # place where we scale.
            self.engine.backward(loss * rank_and_world()[1])

    def update(self, rate):
        """An AdamW update at a learning rate. Returns the norm of the gradient before clipping; if
        it is not finite, DeepSpeed has left the weights as they were."""
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    # Weights in and out ------------------------------------------------------------------------

    def parameters(self):
        """(name as in the causal LM, parameter) of the engine; tied ones once."""
        return self.engine.module.model.named_parameters()

    def load(self, weights, temperature=1.0):
        """Write fp32 weights into masters and training copy, and forget the optimizer's state.

        DeepSpeed itself makes its masters from parameters already rounded to bf16, and would lose
        what a small learning rate had built up.

        Args:
            weights: (name, tensor) pairs, as `model.matched` takes them.
            temperature: that the policy samples at, and is scored at.
        """
        self.engine.module.temperature = temperature
        rank, world = rank_and_world()
        params = dict(self.parameters())
        for name, weight in matched(weights, {name: p.ds_shape for name, p in params.items()}):
            flat = weight.detach().flatten()
            size = -(-flat.numel() // world)
            # Shards have equal length; the last one is padded.
            shard = flat[rank * size:(rank + 1) * size].to(self.device).float()
            shard = F.pad(shard, (0, size - shard.numel()))
            safe_set_local_fp32_param(params[name], shard)
            params[name].ds_tensor.data.copy_(shard)
        self.optimizer.optimizer.state.clear()

    def weights(self):
        """{name: fp32 CPU tensor} of the masters on rank 0, an empty dict elsewhere. All ranks call
        it."""
        masters = {}
        for name, param in self.parameters():
            full = safe_get_full_fp32_param(param)
            if rank_and_world()[0] == 0:
                masters[name] = full.detach().to("cpu", copy=True)
        return masters

    def copy_to(self, model):
        """Refresh a plain copy of the model in place, gathering one parameter at a time."""
        for name, param in self.parameters():
            with torch.no_grad(), deepspeed.zero.GatheredParameters([param]):
                model.get_parameter(name).copy_(param)

    def save(self, path, lm):
        """Write a Hugging Face checkpoint with fp32 weights. All ranks call it.

        Args:
            path: a directory; replaced as a whole once it is complete. Ranks that read it have to
                wait for rank 0.
            lm: model.LM whose configuration and tokenizer belong to the weights.
        """
        masters = self.weights()
        if rank_and_world()[0] == 0:
            path, part = Path(path), Path(f"{path}.part")
            serving.write_checkpoint(part, lm, masters)
            shutil.rmtree(path, ignore_errors=True)     # from a phase that was cut off just after
            part.rename(path)

    # A state to resume from --------------------------------------------------------------------

    def state(self):
        """This rank's part of masters and optimizer, {name: CPU tensor}: all that `restore` needs
        to go on as if nothing had happened."""
        tensors = {}
        for n, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            tensors[f"{n}.master"] = flat.detach().to("cpu", copy=True)
            for name, value in self.optimizer.optimizer.state[flat].items():
                tensors[f"{n}.{name}"] = torch.as_tensor(value).to("cpu", copy=True)
        return tensors

    def restore(self, tensors):
        """Put back what `state` gave on the same rank of as many ranks."""
        for n, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            flat.data.copy_(tensors[f"{n}.master"])
            self.optimizer.optimizer.state[flat] = {
                name: tensors[f"{n}.{name}"].to("cpu" if name == "step" else flat.device)
                for name in ("step", "exp_avg", "exp_avg_sq")}
        for _, param in self.parameters():
            param.ds_tensor.data.copy_(safe_get_local_fp32_param(param))

    # Monitors ----------------------------------------------------------------------------------

    def write_events(self, phase, step, metrics):
        """Hand numbers to the monitors (tensorboard, wandb, csv) that the user's DeepSpeed settings
        switch on."""
        self.engine.monitor.write_events(
            [(f"{phase}/{name}", value, step) for name, value in metrics.items()
             if isinstance(value, (int, float))])
