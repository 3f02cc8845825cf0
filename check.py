"""Before a long run: what it will need and what there is. While it runs, if asked: do the
invariants hold?

    python selfplay.py --preset paper --check      # one table, no weights loaded
    python selfplay.py --assert_invariants         # every step is checked

The forecast adds up tensors that are there at the same time:

    always       parameters, masters, Adam, gradients (each a shard), the bucket that gradients are
                 reduced in, sampling copy, frozen opponent
    sampling     KV cache of the rows that are decoded together
    training     gathered parameters, activations and logits of a micro-batch
    update       what Adam computes on the way, for one sub-group of the masters
"""
import copy
import os
import shutil
import timeit
from types import SimpleNamespace

import torch
from transformers import GenerationConfig

import curriculum
import engine
import generator
import model as lms
import solver
import tiny
from cli import Refused, checked

GIB = 2**30
LIVE_PARAMETERS = 10**9      # DeepSpeed's own stage3_max_live_parameters: gathered at a time


def read_model(config):
    """(tokenizer, ids of the judge's scores, transformers configuration, number of parameters) of
    the model, once it is known to serve. Refused says why it does not."""
    try:
        tokenizer = lms.load_tokenizer(config.base, generator.TAGS)
        heldout = sum(tiny.heldout_sets(config.heldout_tasks), [])
        score_ids = lms.choice_ids(tokenizer, curriculum.judge_prompt(heldout[0]),
                                   curriculum.SCORES)
        shape = lms.read_config(config.base)
        size = count_parameters(shape)
        chats = [generator.longest_prompt(lambda text: len(tokenizer.encode(text)),
                                          config.domain_weights, config.own_tools),
                 *(solver.prompt(task.question, task.tools) for task in heldout)]
        longest = max(len(lms.encode_chat(tokenizer, chat)) for chat in chats)
        if longest > config.max_prompt:
            raise ValueError(f"--max_prompt is {config.max_prompt}, and the longest prompt, the "
                             f"Generator's or that of a held-out task, takes {longest} tokens")
        room = lms.positions(shape)
        if config.max_prompt + max(config.max_completion, config.max_verify) > room:
            raise ValueError(f"it has {room} positions, and --max_prompt and --max_completion or "
                             "--max_verify add up to more")
    except ValueError as error:
        raise Refused(f"--model {config.model}: {error}") from None
    return tokenizer, score_ids, shape, size


def count_parameters(shape):
    """Parameters of an architecture; no memory is taken. BadCheckpoint if it is no causal LM."""
    return sum(p.numel() for p in lms.from_config(shape, device="meta").parameters())


def forecast(shape, config, world):
    """Peak bytes per GPU by part, in the order of the module's docstring.

    Args:
        shape: a transformers configuration.
        config: config.Config.
        world: number of GPUs.

    Returns:
        {part: bytes}; "peak" is what must fit: the constant parts and the largest of the phases.
    """
    N, two = count_parameters(shape), 2 if config.dtype == "bf16" else 4
    zero = engine.settings(config)["zero_optimization"]
    T = config.max_prompt + config.max_completion
    longest = config.max_prompt + max(config.max_completion, config.max_verify)
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    # GPT-2 names neither of these.
    kv_heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    inner = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
    kv_row = 2 * two * shape.num_hidden_layers * kv_heads * head * longest
    tokens = max(config.micro_tokens, T)      # a longer completion stands alone
    inside_layer = tokens * two * (12 * shape.hidden_size + 4 * inner)
    kept = tokens * two * shape.hidden_size * shape.num_hidden_layers
    always = {"parameters": two * N / world, "fp32 masters": 4 * N / world, "Adam": 8 * N / world,
              "gradients": 4 * N / world, "bucket": 4 * zero["reduce_bucket_size"],
              "sampling copy": two * N, "frozen opponent": two * N}
    sampling = {"KV cache": config.sample_rows * kv_row}
    training = {
        "gathered": two * min(N, zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)),
        "activations": (kept + inside_layer if config.gradient_checkpointing
                        else inside_layer * shape.num_hidden_layers),
        "logits": 4 * 3 * min(lms.LOGITS_AT_ONCE, tokens * shape.vocab_size)}
    # A sub-group is full once it is over its size, and the embedding is the largest to go over it.
    group = min(N, zero["sub_group_size"] * world + shape.vocab_size * shape.hidden_size) / world
    update = {"Adam's step": 3 * 4 * group}
    peak = sum(always.values()) + max(sum(phase.values())
                                      for phase in (sampling, training, update))
    return always | sampling | training | update | {"peak": peak}


def disk_bytes(parameters, iterations):
    """What a run writes at most: two fp32 checkpoints an iteration, and two resumable states while
    one replaces the other."""
    return iterations * 2 * 4 * parameters + 2 * 12 * parameters + 2**26


def report(config):
    """Print what the run needs and what there is."""
    tokenizer, score_ids, shape, N = read_model(config)
    about = checked(model_lines, config, shape, tokenizer, score_ids)
    worlds = sorted({1, 2, 4, 8, int(os.environ.get("WORLD_SIZE", 1))})
    columns = [forecast(shape, config, world) for world in worlds]
    print(f"{config.model}: {N:,} parameters in {config.dtype}\n")
    print(f"{'GiB per GPU':18}" + "".join(f"{f'{world} GPU':>9}" for world in worlds))
    for part in columns[0]:
        print(f"{part:18}" + "".join(f"{column[part] / GIB:9.2f}" for column in columns))
    folder = next(path for path in (config.path, *config.path.resolve().parents) if path.exists())
    # Beside the processes: the mapped fp32 checkpoint, shared by all ranks, and the fp32 weights
    # that rank 0 gathers to write one.
    print(f"\n{'host memory':18}{2 * 4 * N / GIB:9.2f} GiB a machine; there are "
          f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_AVPHYS_PAGES') / GIB:.1f} free")
    print(f"{'disk':18}{disk_bytes(N, config.iterations) / GIB:9.2f} GiB; there are "
          f"{shutil.disk_usage(folder).free / GIB:.1f} free")
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        print(f"{f'GPU {n}':18}{free / GIB:9.2f} of {total / GIB:.1f} GiB free")
    if not torch.cuda.is_available():
        print(f"{'GPU':18}none: everything above lies in host memory, on every rank")
    if slow := dtype_problem(config):
        print(f"{'CPU':18}{slow}")
    if any("offload" in key for key in engine.settings(config)["zero_optimization"]):
        print(f"{'offloading':18}is not reckoned with: what it moves to host memory counts above "
              "as the GPU's")
    print(*about, sep="\n")


def model_lines(config, shape, tokenizer, score_ids):
    """What is read from the model's files, and what is ignored, as lines."""
    generation = lms.read_generation(config.base) or GenerationConfig()
    eos = lms.eos_ids(SimpleNamespace(config=shape, generation_config=generation), tokenizer)
    ignored = {name: value for name in ("temperature", "top_p", "top_k", "repetition_penalty")
               if (value := getattr(generation, name, None)) not in (None, 1.0)}
    messages = curriculum.judge_prompt(tiny.heldout(1)[0])
    text = lms.chat_text(tokenizer, messages)
    back = tokenizer.decode(lms.encode_chat(tokenizer, messages))
    small = copy.deepcopy(shape)
    small.num_hidden_layers = 2
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:2]
    if problem := lms.model_problem(lms.LM(lms.from_config(small), tokenizer, eos)):
        raise ValueError(f"--model {config.model}: {problem}")
    turn = turn_problem(tokenizer, eos)
    return [f"{'model':18}two layers of it, with random weights, sample and score as transformers "
            "has them",
            f"{'EOS ids':18}" + ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)}" for i in eos),
            *([f"{'':18}{turn}"] if turn else []),
            f"{'chat template':18}" + (
                "survives the tokenizer" if back == text
                else "does NOT survive the tokenizer: look at its special tokens"),
            f"{'sampler':18}temperature {config.generator_temperature:g} for a Generator in "
            f"training, {config.solver_temperature:g} for a Solver, {config.probe_temperature} for "
            "probes and pool, greedy in evaluation; top-p 1, no top-k; ignored of the model's own "
            f"settings: {ignored or 'nothing'}",
            f"{'judge':18}the scores 1 to 5 are the tokens {', '.join(map(str, score_ids))}"]


def turn_problem(tokenizer, eos):
    """What to say where the token that ends the assistant's turn in the template would not end a
    completion; else None."""
    try:
        text = lms.chat_text(tokenizer, lms.TURNS, add_generation_prompt=False)
    except Exception:      # then it has no such turns
        return None
    ids = tokenizer.encode(text.rpartition(lms.TURNS[2]["content"])[2], add_special_tokens=False)
    if ids and ids[0] not in eos:
        return (f"the chat template ends a turn with {lms.decode(tokenizer, ids[:1])!r}, which is "
                "no EOS of this model: completions may run to the token limit (eos_token_id in "
                "generation_config.json is a list that may hold it)")
    return None


def dtype_problem(config):
    """What to say of a CPU that multiplies faster in fp32 than in the run's bf16; else None."""
    if config.dtype == "fp32" or torch.cuda.is_available():
        return None
    faster = product_seconds(torch.bfloat16) / product_seconds(torch.float32)
    return (f"multiplies matrices {faster:.1f} times as fast in fp32 as in bf16: --dtype fp32 may "
            "save time; activations take twice the memory" if faster > 1.2 else None)


def product_seconds(dtype):
    """Seconds of a matrix product as a decoding step has it; the best of some."""
    rows, weights = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    return min(timeit.repeat(lambda: rows @ weights.T, repeat=20, number=1))


# ---------------------------------------------------------------------------------------------
# Invariants of a training step


def check_step(config, groups, eos, metrics):
    """AssertionError unless a step's samples and log-probs are what GRPO assumes."""
    for rollout in lms.flat(groups):
        ends = [n for n, token in enumerate(rollout.ids) if token in eos]
        if rollout.finished:
            assert ends == [len(rollout.ids) - 1], "finished, but not at its first EOS"
        else:
            assert not ends and len(rollout.ids) == config.max_completion, "cut, but not full"
    limit = 1e-4 if config.dtype == "fp32" else 0.02
    assert metrics["sampler_gap"] < limit, (
        f"sampler and trainer differ by {metrics['sampler_gap']:.4f} nats")
