"""A causal language model as we use it: loading, chat prompts to ids, the batched sampler,
log-probs.

The sampler is ours, not `generate`: nothing of a model's generation_config applies but its EOS ids.
Sampled ids are the training ids: they go to the loss as they are, and only the reward reads the
decoded text.

Axes:  P prompts   B rows (completions)   T time   S positions of a completion   C its length
       N tokens of a packed sequence   M completion tokens in it   V vocabulary   D width

What a model reads, in sampling and in training, is one prompt and the completions that share it.
Its keys and values are made once, and every completion attends to them and to itself:

    sampling    prompts (P, T) --prefill--> their keys and values, once per prompt     `GroupCache`
                newest tokens (B, 1) --step--> the next ones; own keys and values (B, S)
    training    prompt 0 | completion | completion | prompt 1 | completion | ...       `Packed`

To use it elsewhere, copy this file alone. The model must come from `load` or `build`: the sampler
works through transformers' attention interface, and `load` proves that it does.

    tokenizer = load_tokenizer("DIR")
    lm = load("DIR", tokenizer, torch.bfloat16, "cuda")
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": "Hello"}])]
    groups = sample(lm, prompts, samples=8, key=(0,), temperature=1.0, max_tokens=64, rows=64)
"""
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import transformers
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import (AttentionInterface, AttentionMaskInterface, AutoConfig,
                          AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LOGITS_AT_ONCE = 2**26     # elements of one fp32 block of logits: 256 MiB
ALL = 2**62                # a sliding window that ends nowhere
ONE_BY_ONE = 2**16         # probabilities that are summed as they stand: blocks would take longer
STRETCH = {"cpu": 8, "cuda": 64}     # steps between two drops of finished rows, at least
ONE_THREAD = 10**8         # multiplications of a step that a second CPU thread does not speed up


@dataclass
class LM:
    """A model that we sample from, its tokenizer, and the ids that end a completion."""

    model: torch.nn.Module
    tokenizer: object
    eos: tuple


@dataclass
class Rollout:
    """One sampled completion."""

    prompt: list       # prompt ids
    ids: list          # completion ids, the EOS included
    text: str          # decoded, behind a tag that the template has opened; without EOS
    finished: bool     # ended with EOS; False: cut at the token limit
    logps: list        # log-probability of each id under the sampler's distribution


def flat(groups):
    """The Rollouts of all groups, or the items of any lists, in one list."""
    return [item for group in groups for item in group]


class NonFinite(ArithmeticError):
    """A number is NaN or infinite.

    Attributes:
        rollouts: the samples that it comes from.
    """

    def __init__(self, what, rollouts):
        super().__init__(f"{what} is not finite")
        self.rollouts = rollouts


# ---------------------------------------------------------------------------------------------
# Loading and prompts


def load_tokenizer(path, tags=()):
    """Tokenizer with a chat template, from a directory or a hub name. ValueError says what is
    missing, or why it cannot be used.

    Args:
        tags: names of the <tag>s that completions are read by.
    """
    transformers.logging.set_verbosity_error()
    tokenizer = pretrained(AutoTokenizer, path, "tokenizer", trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {path} has no chat template: use an instruction-tuned "
                         "model")
    if problem := template_problem(tokenizer):
        raise ValueError(f"the chat template of {path} {problem}")
    for mark in [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]:
        if (back := decode(tokenizer, tokenizer.encode(mark, add_special_tokens=False))) != mark:
            raise ValueError(f"the tokenizer of {path} turns {mark} into {back!r}, so that no "
                             "completion could be read")
    return tokenizer


# Some templates insert today's date. A prompt must not depend on the day.
ONE_DAY = "{% macro strftime_now(form) %}{{ form" + "".join(
    f'.replace("{code}", "{datetime(2026, 1, 1):{code}}")'
    for code in ("%d", "%m", "%b", "%B", "%Y", "%y", "%j", "%a", "%A", "%H", "%I", "%M", "%S", "%p")
) + " }}{% endmacro %}"
# Words that no template writes itself.
TURNS = [{"role": "system", "content": "quartz lighthouse"},
         {"role": "user", "content": "umber saxophone"},
         {"role": "assistant", "content": "velvet meridian"}]


def template_problem(tokenizer):
    """Why a chat template does not bring a system message and a question to the model, or None."""
    try:
        text = chat_text(tokenizer, TURNS[:2])
    except Exception as error:      # a template is code, and raises what it likes
        return f"fails on a system message and a question: {one_line(error)}"
    lost = [turn["role"] for turn in TURNS[:2] if turn["content"] not in text]
    return (f"leaves out what the {lost[0]} says: use a model whose template has it" if lost
            else None)


def one_line(error):
    """What an exception says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class BadCheckpoint(ValueError):
    """A checkpoint that cannot be read, named in one line."""


def pretrained(reader, path, what, **settings):
    """What a class of transformers reads from a directory or a hub name. BadCheckpoint where it
    cannot.

    Args:
        settings: trust_remote_code=False for the classes that could run code from there.
    """
    local = Path(path).is_dir() or not on_hub(str(path))
    try:
        return reader.from_pretrained(path, local_files_only=local, **settings)
    except Exception as error:      # a damaged file makes it raise what it likes
        raise BadCheckpoint(_not_found(what, path, error)) from None


@functools.cache
def on_hub(name):
    """Does the model hub answer and have this model? One question with a time limit: transformers
    itself asks again and again for most of a minute when there is no network."""
    try:
        return HfApi().model_info(name, timeout=10) is not None
    except Exception:      # whatever its client raises: then the files on this machine decide
        return False


def _not_found(what, path, error):
    if not Path(path).exists() and not on_hub(str(path)):
        return (f"no {what} at {path}: there is no such directory, it is not in the cache of the "
                "model hub, and the hub does not know it or cannot be reached")
    return f"no {what} to be read at '{path}': {one_line(error)}"


def folder_of(path, *patterns):
    """Directory of a checkpoint, from a directory or a hub name, of which the files of these
    patterns are fetched. BadCheckpoint where there is none."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns,
                                      local_files_only=not on_hub(str(path))))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(_not_found("model", path, error)) from None


def checkpoint_files(path):
    """The safetensors files of a checkpoint, from a directory or a hub name. BadCheckpoint where
    there are none."""
    folder = folder_of(path, "*.json", "*.safetensors")
    index, files = folder / "model.safetensors.index.json", [folder / "model.safetensors"]
    if index.exists() and not files[0].exists():      # in transformers' order
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
            files = [folder / name for name in sorted(names)]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise BadCheckpoint(f"{index} is damaged") from None
    for file in files:
        if not file.exists():
            raise BadCheckpoint(f"{file} is missing; weights are read from safetensors files only")
    return files


def read_config(path):
    """transformers' configuration of a checkpoint. BadCheckpoint where there is none."""
    return pretrained(AutoConfig, path, "model", trust_remote_code=False)


def read_generation(path):
    """transformers' generation settings of a checkpoint, or None. BadCheckpoint if damaged."""
    file = folder_of(path, "*.json") / "generation_config.json"
    return pretrained(GenerationConfig, file.parent, file.name) if file.exists() else None


def positions(shape):
    """Longest text that a model of this configuration reads token by token as it reads a whole
    one: some rescale every position once a text is longer than those of its first training."""
    room = min(getattr(shape, "max_position_embeddings", math.inf),
               getattr(shape, "attention_chunk_size", None) or math.inf)
    rope = getattr(shape, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return min([room, *(kind.get("original_max_position_embeddings") or room for kind in kinds
                        if kind.get("rope_type") in ("dynamic", "longrope"))])


def read_weights(path):
    """(name, CPU tensor) of a checkpoint, one at a time. BadCheckpoint names a damaged file.

    The files are mapped, not read: all ranks of a machine share one copy in the page cache.
    """
    for file in checkpoint_files(path):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise BadCheckpoint(f"{file} is damaged ({error})") from None


def matched(weights, shapes):
    """The (name, tensor) pairs of a checkpoint that have a place in a model. BadCheckpoint names
    a tensor of another shape, or one that is missing.

    Args:
        weights: pairs in any order.
        shapes: {name: shape} of the model's parameters, tied ones once.
    """
    missing = dict(shapes)
    for name, weight in weights:
        if name not in missing:        # a tied output layer may be stored too
            continue
        if weight.shape != (shape := missing.pop(name)):
            raise BadCheckpoint(f"a checkpoint's {name} has the shape {tuple(weight.shape)}, "
                                f"not {tuple(shape)}")
        yield name, weight
    if missing:
        raise BadCheckpoint(f"a checkpoint lacks the weights {', '.join(list(missing)[:3])}")


@torch.no_grad()
def fill(model, weights):
    """Write (name, tensor) pairs into a model in place."""
    params = dict(model.named_parameters())
    for name, weight in matched(weights, {name: p.shape for name, p in params.items()}):
        params[name].copy_(weight)


def build(path, dtype=torch.float32, device="cpu"):
    """The architecture of a checkpoint with random weights, made where it is to stay."""
    model = from_config(read_config(path), dtype, device)
    model.generation_config = read_generation(path) or model.generation_config
    return model


def from_config(config, dtype=torch.float32, device="cpu"):
    """A model of random weights, with attention as `shared_prompt_attention` has it, and without
    dropout: the policy in training is the one that was sampled."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(config, name, 0.0)
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="shared_prompt").eval()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:      # an architecture raises what it likes about its attention
        raise BadCheckpoint(f"a model of type {config.model_type} cannot be built with our "
                            f"attention: {one_line(error)}") from None


def load(path, tokenizer, dtype=torch.float32, device="cpu"):
    """LM from a directory or a hub name, in evaluation mode. BadCheckpoint says what is wrong with
    it."""
    model = build(path, dtype, device)
    fill(model, read_weights(path))
    lm = LM(model, tokenizer, eos_ids(model, tokenizer))
    if problem := model_problem(lm):
        raise BadCheckpoint(f"the model at {path} cannot be used: {problem}")
    return lm


def model_problem(lm):
    """Why our sampler and scorer would not compute what the model does, or None.

    The proof: a few tokens behind two prompts of unequal length, sampled and scored here, against
    the model's own forward pass in its own attention, each row alone. What only longer texts show
    is read from the configuration: see `positions`.
    """
    model, kind = lm.model, f"a {type(lm.model).__name__}"
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(lm.tokenizer)
    if tokens > rows:
        return f"its vocabulary of {rows} is smaller than the tokenizer's {tokens}"
    more = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    if more:
        return f"{kind} keeps {min(more)} beside its weights, and only weights are read"
    ids = [n * tokens // 20 for n in range(20)]
    try:
        groups = sample_chunk(LM(model, lm.tokenizer, ()), [ids[:7], ids[7:]],
                              [[(p, g) for g in range(2)] for p in range(2)], 1.0, 6)
        gap = proof_gap(model, groups)
    except Exception as error:      # whatever an architecture that we do not know runs into
        return f"{kind} does not run through our sampler: {one_line(error)}"
    # Logits of bf16 move in steps of up to an eighth.
    limit = 1e-3 if model.dtype == torch.float32 else 0.2
    if not gap < limit:
        return (f"the log-probs of {kind} are off by {gap:.3f} nats from its own: something in its "
                "attention or behind its output layer is not computed here")
    return None


@torch.no_grad()
def proof_gap(model, groups):
    """Mean distance, in nats, of sampled and of packed log-probs from the model's own: the larger
    of the two."""
    logp_BC, _, mask_BC = token_logprobs(model, pack(groups, model.device))
    rollouts = flat(groups)
    sampled = torch.tensor([x for rollout in rollouts for x in rollout.logps], device=model.device)
    model.set_attn_implementation("eager")
    own = torch.cat([own_logprobs(model, rollout) for rollout in rollouts])
    model.set_attn_implementation("shared_prompt")
    return max((own - ours).abs().mean().item() for ours in (sampled, logp_BC[mask_BC]))


def own_logprobs(model, rollout):
    """Log-probs (C,) of a completion by the book, in the attention that the model is set to."""
    ids_T = torch.tensor([rollout.prompt + rollout.ids], device=model.device)
    logits_CV = model(ids_T, use_cache=False).logits[0, len(rollout.prompt) - 1:-1].float()
    return torch.log_softmax(logits_CV, -1).gather(-1, ids_T[0, len(rollout.prompt):, None])[:, 0]


def eos_ids(model, tokenizer):
    """Every id that ends a completion: those of the config, the generation config and the
    tokenizer."""
    found = [some.eos_token_id for some in (model.config, model.generation_config, tokenizer)]
    found = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in found]
    return tuple(sorted({*flat(found)} - {None}))


def chat_text(tokenizer, messages, close=False, add_generation_prompt=True, tools=None):
    """Chat messages and the opening of the assistant's turn, by the tokenizer's template.

    Args:
        close: where that opens a tag (see `opened`), close it: the answer itself comes next.
        tools: in OpenAI's format, for the template to show in its own way.
    """
    template = tokenizer.get_chat_template(tools=tools)
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt,
        chat_template=ONE_DAY * ("strftime_now" in template) + template, date_string="01 Jan 2026")
    tag = opened(text).strip()
    return text + f"\n</{tag[1:]}\n\n" if close and tag else text


def opened(text):
    """The tag that a rendered chat leaves open for the answer, as those of reasoning models do, or
    "". It belongs to what the model writes.

    >>> opened("<|assistant|><think>\\n"), opened("<|assistant|><think></think>")
    ('<think>\\n', '')
    """
    return re.search(r"(<(think|thinking|thought|reasoning)>\s*)?$", text)[0]


def encode_chat(tokenizer, messages, close=False, tools=None):
    """Token ids of `chat_text`."""
    text = chat_text(tokenizer, messages, close, tools=tools)
    return tokenizer.encode(text, add_special_tokens=False)      # templates hold their own BOS


def decode(tokenizer, ids):
    """Text of token ids, with its special tokens: in some tokenizers our tags are among them."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def choice_ids(tokenizer, messages, choices):
    """Ids of the answers `choices` right after the messages. ValueError unless each is one
    token."""
    text = chat_text(tokenizer, messages, close=True)
    context, *longer = [tokenizer.encode(text + choice, add_special_tokens=False)
                        for choice in ("", *choices)]
    if any(ids[:-1] != context for ids in longer):
        raise ValueError("the judge needs the scores 1 to 5 as single tokens, and in this "
                         "tokenizer they are not")
    return [ids[-1] for ids in longer]


# ---------------------------------------------------------------------------------------------
# Attention where completions share their prompt


def shared_prompt_attention(module, query, key, value, attention_mask, scaling, layout=None,
                            sliding_window=None, **kwargs):
    """transformers' own attention, unless the caller of the model passes a `layout` (GroupCache or
    Packed), which then attends.

    Args:
        sliding_window: a token sees so many back, itself among them; None: all.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      **kwargs)
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"no {name} in our attention")
    return layout.attend(module, query, key, value, scaling, sliding_window or ALL), None


AttentionInterface.register("shared_prompt", shared_prompt_attention)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


def hidden_states(model, layout, ids, positions, cache=None):
    """Last hidden states of a model, with `layout` in charge of attention.

    Four-dimensional masks pass through the model as they are. This empty one makes any other
    attention function fail, where it would silently let completions see each other.
    """
    nothing = torch.zeros(1, 1, 1, 0, device=ids.device)
    return model.base_model(input_ids=ids, position_ids=positions, attention_mask=nothing,
                            layout=layout, past_key_values=cache,
                            use_cache=cache is not None).last_hidden_state


def logits(model, hidden):
    """Logits from last hidden states. Cohere and Granite scale them behind the output layer."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1)
    out = model.lm_head(hidden)
    return out if scale == 1 else out * scale


# ---------------------------------------------------------------------------------------------
# Work shared among ranks


def rank_and_world():
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leave_group():
    """Leave the process group, if there is one, before the process ends as it should.

    gloo's threads that still hold tensors while Python is torn down abort the process, and a run
    that has succeeded would end with an error. Not after a crash: other ranks may hang then.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def of_every_rank(value):
    """[the value of each rank], on every rank."""
    values = [value] * rank_and_world()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def deal(items, size, work):
    """[result for each item], with the work shared among the ranks; every rank gets all results.

    Items are cut into chunks by index before they are dealt, so that the composition of a chunk
    does not depend on the number of ranks.

    Args:
        items: the same list on every rank.
        size: items in a chunk.
        work: function of the items of a chunk to a list of results.
    """
    rank, world = rank_and_world()
    chunks = [items[start:start + size] for start in range(0, len(items), size)]
    parts = of_every_rank([work(chunk) for chunk in chunks[rank::world]])
    return [result for i in range(len(chunks)) for result in parts[i % world][i // world]]


# ---------------------------------------------------------------------------------------------
# The sampler


def uniforms(key, length):
    """Numbers in [0, 1) for the positions 0..length-1 of one sample, shape (length,).

    Counter-based (Philox): they depend only on the key (run seed, iteration, purpose, step,
    prompt, sample) and the position, never on the rank or on what was drawn before.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(philox).random(length)


def pick(logits_BV, u_B, temperature):
    """Next ids and their log-probs, (B,) each; temperature 0 takes the most likely.

    Inverse transform: the first id whose cumulative probability exceeds u.
    """
    logits_BV = logits_BV.float()
    if temperature not in (0, 1):      # neither needs another pass over a large table
        logits_BV = logits_BV / temperature
    prob_BV = torch.softmax(logits_BV, dim=-1)
    ids_B1 = prob_BV.argmax(-1, keepdim=True) if temperature == 0 else invert(prob_BV, u_B[:, None])
    return ids_B1[:, 0], prob_BV.gather(-1, ids_B1)[:, 0].log()


def invert(weight_BV, u_B1):
    """(B, 1): the first index whose cumulative weight exceeds u times the total.

    A large table is cut into blocks. Their sums tell in which block that is, and where in it u
    falls; what is summed one by one is that block alone.
    """
    if weight_BV.numel() <= ONE_BY_ONE:
        return _first_above(weight_BV.cumsum(-1, dtype=torch.float64), u_B1)
    # A vocabulary is a multiple of some power of 2. Where it is odd, it is a single block.
    weight_BNK = weight_BV.unflatten(1, (math.gcd(weight_BV.shape[1], 512), -1))
    sum_BN = weight_BNK.sum(-1)
    cdf_BN = sum_BN.cumsum(-1, dtype=torch.float64)
    n_B1 = _first_above(cdf_BN, u_B1)
    beyond_B1 = (cdf_BN.gather(1, n_B1) - u_B1 * cdf_BN[:, -1:]) / sum_BN.gather(1, n_B1)
    within_B1 = (1 - beyond_B1).clamp(0, 1 - 2**-53)      # rounding must not lead out of [0, 1)
    weight_BK = weight_BNK[torch.arange(len(n_B1), device=n_B1.device), n_B1[:, 0]]
    k_B1 = _first_above(weight_BK.cumsum(-1, dtype=torch.float64), within_B1)
    return n_B1 * weight_BK.shape[1] + k_B1


def _first_above(cdf_BN, u_B1):
    # In double, u x total stays below the total, and nothing of weight 0 can be found.
    n_B1 = torch.searchsorted(cdf_BN, u_B1 * cdf_BN[:, -1:], right=True)
    # NaN leads behind the last: then the log-prob tells, not a crash.
    return n_B1.clamp(max=cdf_BN.shape[1] - 1)


class GroupCache:
    """Keys and values of all layers: a prompt's once per group, a completion's once per row.

    What a transformers model asks of a cache, `update`, and what `shared_prompt_attention` does.
    """

    def __init__(self, prompts, length_P, group_B, column):
        """
        Args:
            prompts: keys and values of each layer, (P, heads, T, D), padded on the right.
            length_P: lengths of the prompts.
            group_B: the prompt of each row, ascending.
            column: (1,), where the next position is stored; its owner moves it on in place.
        """
        self.prompts = prompts
        self.own = [tuple(kv.new_empty(len(group_B), kv.shape[1], 0, kv.shape[3]) for kv in layer)
                    for layer in prompts]                                        # (B, heads, S, D)
        self.length_P, self.group_B, self.column = length_P, group_B, column
        self.biases = {}       # by window, of the step that is being taken: all layers share them

    def repack(self, stay_B, more):
        """Drop rows, and the prompts that no row needs any more; make room for `more` positions."""
        # Zeros, not empty: a masked position has weight 0, and 0 x NaN would be NaN. Layer by
        # layer, or there would be two of all.
        all_stay = bool(stay_B.all())
        for n, layer in enumerate(self.own):
            self.own[n] = tuple(torch.nn.functional.pad(kv if all_stay else kv[stay_B],
                                                        (0, 0, 0, more)) for kv in layer)
        needed, self.group_B = self.group_B[stay_B].unique(return_inverse=True)
        if len(needed) < len(self.length_P):
            for n, layer in enumerate(self.prompts):
                self.prompts[n] = tuple(kv[needed] for kv in layer)
            self.length_P = self.length_P[needed]
        # Row b is cell `cell_B[b]` of a grid of prompts x `width` rows.
        count_P = self.group_B.bincount()
        self.width = int(count_P.max())
        taken_PG = torch.arange(self.width, device=count_P.device) < count_P[:, None]
        self.cell_B = taken_PG.flatten().nonzero()[:, 0]

    def bias(self, window):
        """(P, 1, 1, T + S) to add to the scores of prompts and completions: 0 in the window that
        ends at `column`, -inf outside it and in padding."""
        if window not in self.biases:
            keys, S = self.prompts[0][0], self.own[0][0].shape[2]
            place_T, place_S = (torch.arange(n, device=keys.device) for n in (keys.shape[2], S))
            length_P1 = self.length_P[:, None]
            gap_PT = (place_T >= length_P1) | (place_T <= length_P1 + self.column - window)
            gap_S = (place_S > self.column) | (place_S <= self.column - window)
            gap = torch.cat((gap_PT, gap_S.expand(len(gap_PT), -1)), 1)[:, None, None]
            self.biases[window] = keys.new_zeros(gap.shape).masked_fill(gap, -torch.inf)
        return self.biases[window]

    def update(self, key, value, layer, *args, **kwargs):
        """Store one position of one layer, (B, heads, 1, D); returns the completions so far."""
        keys, values = self.own[layer]
        return keys.index_copy_(2, self.column, key), values.index_copy_(2, self.column, value)

    def attend(self, module, query, key, value, scaling, window):
        """Attention of one new token of every row, (B, 1, heads, D): to its prompt, which is read
        once for the whole group, and to its own completion; `window` positions back.

        softmax(scaling [q K_prompt, q K_own]) [V_prompt; V_own]. In letters: K heads of keys, R
        queries for each of them, G rows of a prompt at most.

        Args:
            query: (B, K x R, 1, D).
            key, value: (B, K, S, D), the completions.
        """
        B, K, S, D = key.shape
        query = query.view(B, K, -1, D) * scaling
        prompt_key, prompt_value = self.prompts[module.layer_idx]
        score = torch.cat((self._grid(query) @ prompt_key.mT, self._grid(query @ key.mT)), -1)
        # In bf16 too softmax itself computes in fp32.
        weight, own_weight = score.add_(self.bias(window)).softmax(-1).split(
            (prompt_key.shape[2], S), -1)
        out = self._rows(weight @ prompt_value) + self._rows(own_weight) @ value
        return out.reshape(B, 1, -1, D)

    def _grid(self, x):
        """Rows (B, K, R, X) by prompt: (P, K, G x R, X), zeros where a prompt has fewer."""
        P, G = len(self.length_P), self.width
        grid = x if len(x) == P * G else (
            x.new_zeros(P * G, *x.shape[1:]).index_copy_(0, self.cell_B, x))
        return grid.view(P, G, *x.shape[1:]).transpose(1, 2).reshape(P, x.shape[1], -1, x.shape[-1])

    def _rows(self, grid):
        """The way back, from (P, K, G x R, X) to (B, K, R, X)."""
        P, K, _, X = grid.shape
        rows = grid.view(P, K, self.width, -1, X).transpose(1, 2).reshape(P * self.width, K, -1, X)
        return rows if len(rows) == len(self.cell_B) else rows[self.cell_B]


def read_prompts(model, prompts, cache=None):
    """(the prompts' last hidden states (P, D), the Packed that they were read as).

    What all of them begin with is read once: it is to the rest of each prompt as a prompt is to its
    completions, and so they are packed.
    """
    shared = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    packed = pack([[Rollout(ids[:shared], ids[shared:], "", True, []) for ids in prompts]],
                  model.device)
    hidden_1ND = hidden_states(model, packed, packed.ids_N[None], packed.position_N[None], cache)
    return hidden_1ND[0, packed.own_BC.max(1).values], packed


def prefill(model, prompts):
    """The prompts' last hidden states (P, D), and the keys and values of each layer,
    (P, heads, T, D), padded on the right."""
    # A cache made by the model itself would forget what is behind a sliding window.
    cache = DynamicCache()
    last_PD, packed = read_prompts(model, prompts, cache)
    where_PT = torch.cat((packed.prompt_PT.expand(len(prompts), -1), packed.own_BC), 1)
    where = where_PT.clamp(min=0).flatten()
    read = []
    while cache.layers:      # each layer is gone once it is copied, or there would be two of all
        layer = cache.layers.pop(0)
        read.append(tuple(kv[0].index_select(1, where).unflatten(1, where_PT.shape).transpose(0, 1)
                          .contiguous() for kv in (layer.keys, layer.values)))
    return last_PD, read


class Decoder:
    """The rows of a chunk while they are decoded, `samples` for each prompt.

    Whatever a step reads or writes is a tensor that keeps its place through a stretch of steps, so
    that a GPU can replay the step as a CUDA graph. Rows leave between stretches.
    """

    def __init__(self, lm, prompts, u_BT, temperature):
        """Prefill the prompts, and pick the first token of every row."""
        self.lm, self.u_BT, self.temperature = lm, u_BT, temperature
        device, B = u_BT.device, len(u_BT)
        length_P = torch.tensor([len(ids) for ids in prompts], device=device)
        last_PD, read = prefill(lm.model, prompts)
        group_B = torch.arange(len(prompts), device=device).repeat_interleave(B // len(prompts))
        self.eos = torch.tensor(lm.eos, device=device)
        self.t = torch.zeros(1, dtype=torch.long, device=device)     # number of the newest token
        self.ids_BT = torch.zeros_like(u_BT, dtype=torch.long)
        self.logp_BT = torch.zeros_like(u_BT, dtype=torch.float32)
        self.live = torch.arange(B, device=device)                   # rows of ids_BT in the batch
        self.ended_B = torch.zeros_like(group_B, dtype=torch.bool)
        self.cache = GroupCache(read, length_P, group_B, self.t)
        self._pick(logits(lm.model, last_PD)[group_B])

    def _pick(self, logits_BV):
        ids_B, logp_B = pick(logits_BV, self.u_BT[self.live, self.t], self.temperature)
        self.ids_BT[self.live, self.t] = ids_B
        self.logp_BT[self.live, self.t] = logp_B
        self.ended_B |= torch.isin(ids_B, self.eos)

    def step(self):
        """The model reads the newest tokens, and we pick the next."""
        self.cache.biases.clear()
        ids_B = self.ids_BT[self.live, self.t]
        position_B = self.cache.length_P[self.cache.group_B] + self.t
        hidden_B1D = hidden_states(self.lm.model, self.cache, ids_B[:, None], position_B[:, None],
                                   self.cache)
        self.t += 1
        self._pick(logits(self.lm.model, hidden_B1D[:, 0]))

    def stretch(self, steps):
        """Drop the rows that have ended, then take at most `steps` steps."""
        stay_B = ~self.ended_B
        self.live = self.live[stay_B]
        self.ended_B = torch.zeros_like(self.live, dtype=torch.bool)
        self.cache.repack(stay_B, steps)
        step, threads = self.step, torch.get_num_threads()
        # Two threads would wait for each other at every operation of so few multiplications, and
        # long where other programs want the cores.
        if len(self.live) * self.lm.model.num_parameters() <= ONE_THREAD:
            torch.set_num_threads(1)
        try:
            for n in range(steps):
                if n == 1 and self.live.is_cuda:
                    step = as_cuda_graph(step)      # the first step was its warm-up
                step()
                if self.ended_B.all():
                    break
        finally:
            torch.set_num_threads(threads)


def as_cuda_graph(step):
    """The step as one launch instead of hundreds. Capturing runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()      # no_grad, at a lower price for each small operation
def sample_chunk(lm, prompts, keys, temperature, max_tokens):
    """The rows of one batch: for each prompt, a list of Rollouts.

    Args:
        prompts: lists of ids.
        keys: for each prompt, what the uniforms of each of its samples depend on.
        temperature: divides the logits; 0 is greedy.
        max_tokens: completions are cut at this length.
    """
    u_BT = np.stack([uniforms(key, max_tokens) for group in keys for key in group])
    decoder = Decoder(lm, prompts, torch.from_numpy(u_BT).to(lm.model.device), temperature)
    # Stretches grow with what has been read: repacking copies it, and unread room costs attention.
    read, least = 0, STRETCH[lm.model.device.type]
    while read < max_tokens - 1 and not decoder.ended_B.all():
        steps = min(max(least, read // 4), max_tokens - 1 - read)
        decoder.stretch(steps)
        read += steps
    rows = zip(decoder.ids_BT.tolist(), decoder.logp_BT.tolist())
    groups = [[make_rollout(lm, prompt, *next(rows)) for _ in group]
              for prompt, group in zip(prompts, keys)]
    if bad := [rollout for rollout in flat(groups) if not all(map(math.isfinite, rollout.logps))]:
        raise NonFinite("a sampled log-probability", bad)
    return groups


def make_rollout(lm, prompt, ids, logps):
    """The Rollout in the drawn ids, which go on behind an EOS until a stretch is over."""
    count = next((n for n, token in enumerate(ids, 1) if token in lm.eos), None)
    unsaid = {*lm.eos, lm.tokenizer.bos_token_id, lm.tokenizer.pad_token_id}
    said = [token for token in ids[:count] if token not in unsaid]
    text = opened(decode(lm.tokenizer, prompt[-16:])) + decode(lm.tokenizer, said)
    return Rollout(prompt, ids[:count], text, count is not None, logps[:count])


def sample(lm, prompts, samples, key, temperature, max_tokens, rows, first=0):
    """`samples` Rollouts for each prompt: a list of lists. All ranks call it, all get everything.

    Args:
        prompts: lists of ids, the same on every rank.
        key: what the randomness depends on: (run seed, iteration, purpose, step).
        rows: samples decoded together; a prompt's samples are never parted.
        first: index of the first prompt, where a longer list is sampled in slices.
    """
    def work(chunk):
        keys = [[(*key, first + p, s) for s in range(samples)] for p in chunk]
        return sample_chunk(lm, [prompts[p] for p in chunk], keys, temperature, max_tokens)

    # Prompts of like length go together, which saves padding.
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    groups = dict(zip(order, deal(order, max(1, rows // samples), work)))
    return [groups[p] for p in range(len(prompts))]


@torch.no_grad()
def choose(lm, prompts, ids, rows):
    """For each prompt, which of the token `ids` has the highest logit as the next one (the first of
    equal ones): list of int."""
    def work(chunk):
        logits_PC = logits(lm.model, read_prompts(lm.model, chunk)[0])[:, ids]
        if not torch.isfinite(logits_PC).all():
            raise NonFinite("a logit of the judge", [])
        return logits_PC.argmax(-1).tolist()

    return deal(prompts, rows, work)


# ---------------------------------------------------------------------------------------------
# Log-probs


class Packed(NamedTuple):
    """Completions and their prompts as one sequence of N tokens: each prompt once, no padding.

        ids        prompt 0   completion 0   completion 1   prompt 1   completion 2 ...
        position   0 1 2 3    4 5 6 7        4 5 6          0 1 2      3 4

    With four answers of 200 tokens to a prompt of 800 that is 1,600 tokens instead of 4,000.
    """

    ids_N: torch.Tensor
    position_N: torch.Tensor
    prompt_PT: torch.Tensor      # where in N the tokens of the prompts are, -1 behind their ends
    own_BC: torch.Tensor         # likewise, of the completions
    group_B: torch.Tensor        # the prompt of each completion
    home_N: torch.Tensor         # where in (P x T) + (B x C) each token is
    lengths: list                # of the texts in N, prompts and completions
    sees: list                   # the numbers of the texts that each sees: its prompt, then itself
    masks: dict                  # by window: all layers share them

    def attend(self, module, query, key, value, scaling, window):
        """Attention, (1, N, heads, D): a prompt sees itself, a completion its prompt and itself;
        `window` positions back."""
        # A GPU has fast kernels for it, and wants few of them. On a CPU they take three times as
        # long as plain products, most of it in backward.
        attend = self._attend_in_rows if query.is_cuda else self._attend_by_text
        return attend(module, query, key, value, scaling, window)

    def _attend_by_text(self, module, query, key, value, scaling, window):
        """softmax(scaling q K) V, one text after the other, without padding.

        In letters: K heads of keys, R queries for each of them, L tokens of a text, S that it sees,
        the last L of which are its own.
        """
        K, R = key.shape[1], query.shape[1] // key.shape[1]
        queries, keys, values = (
            [text.flatten(1, 2) for text in x[0].unflatten(0, (K, -1)).split(self.lengths, 2)]
            for x in (query, key, value))                                    # (K, R x L or L, D)
        if window not in self.masks:
            longest = max(sum(self.lengths[i] for i in seen) for seen in self.sees)
            never = query.new_full((longest, longest), -torch.inf)
            # What is still to come, and what is too far back.
            self.masks[window] = never.triu(1) + never.tril(-window)
        out = []
        for n, seen in enumerate(self.sees):
            key, value = (torch.cat([x[i] for i in seen], 1) for x in (keys, values))
            L, S = self.lengths[n], key.shape[1]
            hidden = self.masks[window][S - L:S, :S].repeat(R, 1)
            # In bf16 as in the sampler: softmax itself computes in fp32.
            weight = torch.baddbmm(hidden, queries[n], key.mT, alpha=scaling)
            out.append((weight.softmax(-1) @ value).view(K * R, L, value.shape[-1]))
        return torch.cat(out, 1).transpose(0, 1)[None]

    def _attend_in_rows(self, module, query, key, value, scaling, window):
        """The same with scaled_dot_product_attention, in padded rows."""
        # index_select throughout: the backward pass of x[index] takes twice as long.
        def rows(x_1HND, where):
            found = x_1HND[0].transpose(0, 1).index_select(0, where.clamp(min=0).flatten())
            return found.unflatten(0, where.shape).transpose(1, 2)       # (rows, heads, length, D)

        prompt = [rows(x, self.prompt_PT) for x in (query, key, value)]
        own = [rows(x, self.own_BC) for x in (query, key, value)]
        seen = [torch.cat((prompt[i].index_select(0, self.group_B), own[i]), 2) for i in (1, 2)]
        prompt_mask, own_mask = self.sight(window)
        out_PTHD = prompt[0].transpose(1, 2)
        if out_PTHD.numel():      # nothing where the prompts that the sampler reads share nothing
            out_PTHD, _ = sdpa_attention_forward(module, *prompt, prompt_mask, scaling=scaling)
        out_BCHD, _ = sdpa_attention_forward(module, own[0], *seen, own_mask, scaling=scaling)
        out = torch.cat((out_PTHD.flatten(0, 1), out_BCHD.flatten(0, 1)))
        return out.index_select(0, self.home_N)[None]

    def sight(self, window):
        """What prompts (T, T) and completions (B, 1, C, S) see; None is all that came before."""
        if window not in self.masks:
            # Padding stands behind everything.
            at_PT, at_BC = (self.position_N[where.clamp(min=0)].masked_fill(where < 0, ALL)
                            for where in (self.prompt_PT, self.own_BC))
            seen_B1S = torch.cat((at_PT[self.group_B], at_BC), 1)[:, None]
            own_BCS = (seen_B1S <= at_BC[..., None]) & (seen_B1S > at_BC[..., None] - window)
            T = at_PT.shape[1]
            prompt_TT = None if window == ALL else own_BCS.new_ones(T, T).tril().triu(1 - window)
            self.masks[window] = prompt_TT, own_BCS[:, None]
        return self.masks[window]


def pack(groups, device):
    """Packed, from lists of Rollouts; those of a list share their prompt."""
    texts, sees = [], []
    for group in groups:
        first = len(texts)
        texts += [group[0].prompt, *(rollout.ids for rollout in group)]
        sees += [[first], *([first, n] for n in range(first + 1, len(texts)))]
    lengths = list(map(len, texts))
    places = torch.arange(sum(lengths)).split(lengths)      # in N, of each text
    parts = ([place for place, seen in zip(places, sees) if len(seen) == n] for n in (1, 2))
    prompt_PT, own_BC = (pad_sequence(part, batch_first=True, padding_value=-1) for part in parts)
    position_N = torch.cat([torch.arange(length) + sum(lengths[i] for i in seen[:-1])
                            for length, seen in zip(lengths, sees)])
    group_B = torch.tensor([p for p, group in enumerate(groups) for _ in group])
    place = torch.cat((prompt_PT.flatten(), own_BC.flatten()))
    home_N = place.argsort()[-len(position_N):]      # what pads comes first
    return Packed(*(x.to(device) for x in (torch.tensor(flat(texts)), position_N, prompt_PT, own_BC,
                                           group_B, home_N)), lengths, sees, {})


def token_logprobs(model, packed, temperature=1.0, tokens=None):
    """Log-probs of the completion tokens, for the policy, for old policies and for tests alike.

    What it computes, for one completion and by the book:

        ids_T = torch.tensor([prompt + completion])
        logits_CV = model(ids_T).logits[0, len(prompt) - 1:-1] / temperature
        logp_CV = torch.log_softmax(logits_CV, -1)
        logp_C = logp_CV.gather(-1, torch.tensor(completion)[:, None])[:, 0]

    The log-softmax is in fp32, over blocks of tokens, and is computed again in backward: the (M, V)
    table of all M completion tokens never exists as a whole.

    Args:
        model: a causal LM with `base_model` and `lm_head`.
        packed: from `pack`.
        temperature: that of the sampler, or the two would be different policies.
        tokens: cut the logits into as many blocks as this many tokens need; None: as these M do.
            Ranks that gather the output layer together give the largest number among them.

    Returns:
        (logp_BC, entropy_BC, mask_BC): C is the longest completion; log-probs and entropy (nats,
        without gradient) are 0 outside the mask. The mask comes from lengths, and holds the EOS.
    """
    hidden_ND = hidden_states(model, packed, packed.ids_N[None], packed.position_N[None])[0]
    mask_BC = packed.own_BC >= 0
    # A prompt's last token predicts the first of a completion, and each of those the next.
    last_P = packed.prompt_PT.max(1).values
    source_BC = torch.cat((last_P[packed.group_B][:, None], packed.own_BC[:, :-1]), 1)
    hidden_MD = hidden_ND.index_select(0, source_BC[mask_BC])
    target_M = packed.ids_N[packed.own_BC[mask_BC]]
    # Blocks keep the fp32 logits within LOGITS_AT_ONCE elements each.
    blocks = -(-(tokens or len(target_M)) * model.config.vocab_size // LOGITS_AT_ONCE)
    pairs = zip(hidden_MD.tensor_split(blocks), target_M.tensor_split(blocks))
    parts = [checkpoint(_block_logprobs, model, *pair, temperature, use_reentrant=False)
             for pair in pairs]
    zeros_BC = torch.zeros_like(mask_BC, dtype=torch.float32)
    logp_BC, entropy_BC = (zeros_BC.masked_scatter(mask_BC, torch.cat(part))
                           for part in zip(*parts))
    return logp_BC, entropy_BC, mask_BC


def _block_logprobs(model, hidden_MD, target_M, temperature):
    """(log-probs of the targets, entropies), (M,) each."""
    logits_MV = logits(model, hidden_MD).float()
    if temperature != 1:      # the usual 1 is spared a pass over the largest tensor there is
        logits_MV = logits_MV / temperature
    logp_MV = torch.log_softmax(logits_MV, dim=-1)
    del logits_MV             # as large as the log-probs
    logp_M = logp_MV.gather(-1, target_M[:, None])[:, 0]
    # Last, since backward computes the block again as far as it has a gradient.
    with torch.no_grad():
        entropy_M = -logp_MV.exp().mul_(logp_MV).sum(-1)
    return logp_M, entropy_M
