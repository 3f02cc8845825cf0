"""A causal language model as we use it: loading, chat prompts to ids, the batched sampler,
log-probs.

The sampler is ours, not `generate`: nothing of a model's generation_config applies but its EOS ids.
Sampled ids are the training ids: they go to the loss as they are, and only the reward reads the
decoded text.

Axes:  P distinct prompts   B rows (samples)   T time   S cached positions   V vocabulary   D width
       N completion tokens of all rows together   C completion length

A chunk of the sampler:

    prompts, right-padded (P, T) --prefill--> keys and values --one copy per sample--> cache (B, S)
    cache row:  | prompt ...... | gap, masked | completion token 0, 1, 2, ...
                0            length           T
"""
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import transformers
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGITS_AT_ONCE = 2**27     # elements of one fp32 block of logits: 512 MiB


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
    text: str          # decoded without special tokens
    finished: bool     # ended with EOS; False: cut at the token limit
    logps: list        # log-probability of each id under the sampler's distribution


# ---------------------------------------------------------------------------------------------
# Loading and prompts


def load_tokenizer(path):
    """Tokenizer with a chat template, from a directory or a hub name. ValueError says what is
    missing."""
    transformers.logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source(path))
    except (OSError, ValueError) as error:
        raise ValueError(_not_found("tokenizer", path, error)) from None
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {path} has no chat template: use an instruction-tuned model")
    return tokenizer


def source(path):
    """from_pretrained's arguments: where it may look, and that no code is run from there."""
    return {"local_files_only": Path(path).is_dir() or not on_hub(str(path)), "trust_remote_code": False}


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
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"no {what} to be read at '{path}': {reason}"


def load(path, tokenizer, dtype=torch.float32, device="cpu"):
    """LM from a directory or a hub name, in evaluation mode. ValueError says what is wrong with it.

    Only safetensors are read: other weight files can run code.
    """
    transformers.logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **source(path))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(_not_found("model", path, error)) from None
    problem = model_problem(model, tokenizer, info["missing_keys"])
    if problem:
        raise ValueError(f"the model at {path} cannot be used: {problem}")
    return LM(model.to(device).eval(), tokenizer, eos_ids(model, tokenizer))


@torch.no_grad()
def model_problem(model, tokenizer, missing):
    """Why a loaded model is not one that this file can sample and score, or None.

    Args:
        missing: names of weights that its files lack; transformers makes them up.
    """
    if missing:
        return f"its files lack the weights {', '.join(sorted(missing)[:3])}"
    if model.base_model is model or not hasattr(model, "lm_head"):
        return f"a {type(model).__name__} does not have its layers in `base_model` and `lm_head`"
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if tokens > rows:
        return f"its vocabulary of {rows} is smaller than the tokenizer's {tokens}"
    # Some scale or cap the logits after the output layer, where we would not see it.
    ids_BT = torch.zeros(1, 2, dtype=torch.long)
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    if not torch.allclose(model.lm_head(hidden_BTD), model(input_ids=ids_BT, use_cache=False).logits,
                          equal_nan=True):
        return f"the logits of a {type(model).__name__} are not the output of its `lm_head`"
    return None


def eos_ids(model, tokenizer):
    """Every id that ends a completion: those of the config, the generation config and the
    tokenizer."""
    found = set()
    for ids in (model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found.update(ids if isinstance(ids, (list, tuple)) else [ids])
    return tuple(sorted(found - {None}))


def encode_chat(tokenizer, messages):
    """Token ids of chat messages and the opening of the assistant's turn."""
    # Llama's template inserts today's date unless it is given one; templates hold their own BOS.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                         date_string="01 Jan 2026")
    return tokenizer.encode(text, add_special_tokens=False)


def choice_ids(tokenizer, messages, choices):
    """Ids of the answers `choices` right after the messages. ValueError unless each is one
    token."""
    context, ids = encode_chat(tokenizer, messages), []
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                         date_string="01 Jan 2026")
    for choice in choices:
        longer = tokenizer.encode(text + choice, add_special_tokens=False)
        if longer[:-1] != context:
            raise ValueError(f"the answer {choice!r} is not a single token of this tokenizer: "
                             "the judge needs one token for each of the scores 1 to 5")
        ids.append(longer[-1])
    return ids


# ---------------------------------------------------------------------------------------------
# Work shared among ranks


def rank_and_world():
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def deal(items, size, work):
    """[result for each item], with the work shared among the ranks; every rank gets all results.

    Items are cut into chunks by index before they are dealt, so that the composition of a chunk
    does not depend on the number of ranks.

    Args:
        items: the same list on every rank.
        size: items in a chunk.
        work: function of (index of the first item, items of a chunk) to a list of results.
    """
    rank, world = rank_and_world()
    starts = range(0, len(items), size)
    mine = [work(start, items[start:start + size]) for start in starts[rank::world]]
    parts = [mine]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, mine)
    return [result for i in range(len(starts)) for result in parts[i % world][i // world]]


# ---------------------------------------------------------------------------------------------
# The sampler


def uniforms(key, length):
    """Numbers in [0, 1) for the positions 0..length-1 of one sample, shape (length,).

    Counter-based (Philox): they depend only on the key (run seed, iteration, phase, step, prompt,
    sample) and the position, never on the rank or on what was drawn before.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(philox).random(length)


class KVCache:
    """Keys and values of all layers, (B, heads, S, D) each, in buffers allocated once.

    Just what a transformers model asks of a cache: `update` stores the new position and returns
    what has been filled so far.
    """

    is_compileable = False

    def __init__(self, prefill, rows, capacity):
        """Copies prompt rows[b] of the prefill's cache to row b."""
        self.length = prefill.get_seq_length()
        self.keys = [self._buffer(layer.keys, rows, capacity) for layer in prefill.layers]
        self.values = [self._buffer(layer.values, rows, capacity) for layer in prefill.layers]

    def _buffer(self, filled, rows, capacity):
        # Zeros, not empty: a masked position has weight 0, and 0 x NaN would be NaN.
        buffer = filled.new_zeros(len(rows), filled.shape[1], capacity, filled.shape[3])
        buffer[:, :, :self.length] = filled[rows]
        return buffer

    def update(self, key, value, layer, *args, **kwargs):
        """Store one position of one layer: key and value are (B, heads, 1, D)."""
        end = self.length + 1
        self.keys[layer][:, :, self.length:end] = key
        self.values[layer][:, :, self.length:end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def get_seq_length(self, layer=0):
        return self.length

    def keep(self, rows):
        """Drop all rows but the given ones."""
        self.keys = [buffer[rows] for buffer in self.keys]
        self.values = [buffer[rows] for buffer in self.values]


def pick(logits_BV, u_B, temperature):
    """Next ids and their log-probs, (B,) each; temperature 0 takes the most likely.

    Inverse transform: the first id whose cumulative probability exceeds u.
    """
    logp_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        ids_B = logp_BV.argmax(-1)
    else:
        # In double, u x total stays below the total and no id of probability 0 can be drawn.
        cdf_BV = logp_BV.double().exp().cumsum(-1)
        ids_B = torch.searchsorted(cdf_BV, u_B[:, None] * cdf_BV[:, -1:], right=True)[:, 0]
    return ids_B, logp_BV.gather(-1, ids_B[:, None])[:, 0]


@torch.no_grad()
def sample_chunk(lm, prompts, keys, temperature, max_tokens):
    """One Rollout per key, the rows of one batch.

    Args:
        prompts: one list of ids per row; equal ones share one prefill.
        keys: per row, what its uniforms depend on.
        temperature: divides the logits; 0 is greedy.
        max_tokens: completions are cut at this length.
    """
    device, eos = lm.model.device, torch.tensor(lm.eos, device=lm.model.device)
    u_BT = torch.from_numpy(np.stack([uniforms(key, max_tokens) for key in keys])).to(device)

    # 1) Prefill the distinct prompts, padded on the right where causal attention never looks.
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    where = {ids: i for i, ids in enumerate(distinct)}
    row_of = torch.tensor([where[tuple(ids)] for ids in prompts], device=device)
    ids_PT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in distinct],
                                             batch_first=True).to(device)
    length_P = torch.tensor([len(ids) for ids in distinct], device=device)
    out = lm.model.base_model(input_ids=ids_PT, use_cache=True)
    last_PD = out.last_hidden_state[torch.arange(len(distinct), device=device), length_P - 1]
    logits_BV = lm.model.lm_head(last_PD)[row_of]

    # 2) One cache row per sample; attention skips the gap between its prompt and column T.
    T = ids_PT.shape[1]
    cache = KVCache(out.past_key_values, row_of, T + max_tokens)
    length_B = length_P[row_of]
    column_S = torch.arange(T + max_tokens, device=device)
    mask_BS = (column_S < length_B[:, None]) | (column_S >= T)

    # 3) Decode. `live` holds the original index of each row that is still in the batch.
    live = torch.arange(len(prompts), device=device)
    ids_BT = torch.zeros(len(prompts), max_tokens, dtype=torch.long, device=device)
    logp_BT = torch.zeros(len(prompts), max_tokens, device=device)
    count_B = torch.full((len(prompts),), max_tokens, device=device)
    finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for t in range(max_tokens):
        next_B, logp_B = pick(logits_BV, u_BT[live, t], temperature)
        ids_BT[live, t], logp_BT[live, t] = next_B, logp_B
        ended = torch.isin(next_B, eos) & ~finished_B[live]
        finished_B[live[ended]] = True
        count_B[live[ended]] = t + 1
        if t == max_tokens - 1 or finished_B.all():
            break
        # Finished rows leave when they are an eighth of the batch: leaving copies the cache.
        stay = ~finished_B[live]
        if (~stay).sum() * 8 >= len(live):
            cache.keep(stay)
            live, next_B = live[stay], next_B[stay]
            length_B, mask_BS = length_B[stay], mask_BS[stay]
        hidden = lm.model.base_model(
            input_ids=next_B[:, None], position_ids=(length_B + t)[:, None], past_key_values=cache,
            attention_mask=mask_BS[:, None, None, :T + t + 1], use_cache=True).last_hidden_state
        cache.length += 1
        logits_BV = lm.model.lm_head(hidden[:, -1])
    return [_rollout(lm, *row) for row in zip(prompts, ids_BT.tolist(), logp_BT.tolist(),
                                              count_B.tolist(), finished_B.tolist())]


def _rollout(lm, prompt, ids, logps, count, finished):
    text = lm.tokenizer.decode(ids[:count], skip_special_tokens=True)
    return Rollout(prompt, ids[:count], text, finished, logps[:count])


def sample(lm, prompts, samples, key, temperature, max_tokens, rows):
    """`samples` Rollouts for each prompt: a list of lists. All ranks call it, all get everything.

    Args:
        prompts: lists of ids, the same on every rank.
        key: what the randomness depends on: (run seed, iteration, phase, step).
        rows: samples decoded together; a prompt's samples are never parted.
    """
    def work(start, chunk):
        rows_prompts = [ids for ids in chunk for _ in range(samples)]
        keys = [(*key, start + p, s) for p in range(len(chunk)) for s in range(samples)]
        flat = sample_chunk(lm, rows_prompts, keys, temperature, max_tokens)
        return [flat[i:i + samples] for i in range(0, len(flat), samples)]

    return deal(prompts, max(1, rows // samples), work)


@torch.no_grad()
def choose(lm, prompts, ids, rows):
    """For each prompt, which of the token `ids` has the highest logit as the next one: list of
    int."""
    def work(start, chunk):
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in chunk],
                                                 batch_first=True).to(lm.model.device)
        last_B = torch.tensor([len(row) - 1 for row in chunk])
        hidden = lm.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        logits_BV = lm.model.lm_head(hidden[torch.arange(len(chunk)), last_B])
        return logits_BV[:, ids].argmax(-1).tolist()

    return deal(prompts, rows, work)


# ---------------------------------------------------------------------------------------------
# Log-probs


def pad_rollouts(rollouts, device):
    """(ids (B, T) padded on the right, start (B,), end (B,)): the completion is ids[start:end]."""
    rows = [torch.tensor(rollout.prompt + rollout.ids) for rollout in rollouts]
    return (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device),
            torch.tensor([len(rollout.prompt) for rollout in rollouts], device=device),
            torch.tensor([len(row) for row in rows], device=device))


def token_logprobs(model, ids_BT, start_B, end_B, temperature=1.0, blocks=None):
    """Log-probs of the completion tokens, for the policy, for old policies and for tests alike.

    The log-softmax is in fp32, over blocks of rows, and is computed again in backward: the (N, V)
    table never exists as a whole.

    Args:
        model: a causal LM with `base_model` and `lm_head`.
        ids_BT, start_B, end_B: from `pad_rollouts`.
        temperature: that of the sampler, or the two would be different policies.
        blocks: how many blocks to cut the tokens into; None: as many as `logit_blocks` says.

    Returns:
        (logp_BC, entropy_BC, mask_BC): C is the longest completion; log-probs and entropy (nats, without gradient)
        are 0 outside the mask. The mask comes from lengths, and holds the EOS.
    """
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    C = int((end_B - start_B).max())
    position_BC = start_B[:, None] + torch.arange(C, device=ids_BT.device)
    mask_BC = position_BC < end_B[:, None]
    b_N, c_N = mask_BC.nonzero(as_tuple=True)
    position_N = position_BC[b_N, c_N]
    # The hidden state at position t - 1 predicts the token at t.
    hidden_ND, target_N = hidden_BTD[b_N, position_N - 1], ids_BT[b_N, position_N]
    blocks = blocks or logit_blocks(len(target_N), model.config.vocab_size)
    parts = [checkpoint(_block_logprobs, model.lm_head, hidden, target, temperature, use_reentrant=False)
             for hidden, target in zip(hidden_ND.tensor_split(blocks), target_N.tensor_split(blocks))]
    zeros_BC = hidden_BTD.new_zeros(mask_BC.shape, dtype=torch.float32)
    logp_BC, entropy_BC = (zeros_BC.index_put((b_N, c_N), torch.cat(part)) for part in zip(*parts))
    return logp_BC, entropy_BC, mask_BC


def logit_blocks(tokens, vocab_size):
    """Blocks that keep the fp32 logits of `tokens` tokens within LOGITS_AT_ONCE elements each."""
    return max(1, -(-tokens * vocab_size // LOGITS_AT_ONCE))


def _block_logprobs(lm_head, hidden_ND, target_N, temperature):
    """(log-probs of the targets, entropies), (N,) each."""
    logp_NV = torch.log_softmax(lm_head(hidden_ND).float() / temperature, dim=-1)
    entropy_N = -(logp_NV.detach().exp() * logp_NV.detach()).sum(-1)
    return logp_NV.gather(-1, target_N[:, None])[:, 0], entropy_N
