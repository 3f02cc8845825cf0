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
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import (AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM,
                          AutoTokenizer)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LOGITS_AT_ONCE = 2**27     # elements of one fp32 block of logits: 512 MiB
STRETCH = {"cpu": 8, "cuda": 64}     # steps between two drops of finished rows, at least


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
    """Tokenizer with a chat template. ValueError says what is missing."""
    transformers.logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from None
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {path} has no chat template: use an instruction-tuned model")
    return tokenizer


def load(path, tokenizer, dtype=torch.float32, device="cpu"):
    """LM from a directory or a hub name, in evaluation mode."""
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="shared_prompt").to(device).eval()
    return LM(model, tokenizer, eos_ids(model, tokenizer))


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


def pick(logits_BV, u_B, temperature):
    """Next ids and their log-probs, (B,) each; temperature 0 takes the most likely.

    Inverse transform: the first id whose cumulative probability exceeds u.
    """
    prob_BV = torch.softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        ids_B = prob_BV.argmax(-1)
    else:
        # In double, u x total stays below the total and no id of probability 0 can be drawn.
        cdf_BV = prob_BV.cumsum(-1, dtype=torch.float64)
        ids_B = torch.searchsorted(cdf_BV, u_B[:, None] * cdf_BV[:, -1:], right=True)[:, 0]
    return ids_B, prob_BV.gather(-1, ids_B[:, None])[:, 0].log()


class GroupCache:
    """Keys and values of all layers: a prompt's once per group, a completion's once per row.

    Just what a transformers model asks of a cache: `update` stores the new position and returns
    the completions so far; `shared_prompt_attention` adds the prompts.
    """

    def __init__(self, prefill, length_P, group_B, column):
        """
        Args:
            prefill: the cache that the prompts, padded on the right, have left.
            length_P: lengths of the prompts.
            group_B: the prompt of each row, ascending.
            column: (1,), where the next position is stored; its owner moves it on in place.
        """
        self.prompts = [(layer.keys, layer.values) for layer in prefill.layers]      # (P, heads, T, D)
        gap_PT = torch.arange(prefill.get_seq_length(), device=length_P.device) >= length_P[:, None]
        self.bias_PT = torch.zeros_like(gap_PT, dtype=torch.float32).masked_fill(gap_PT, -torch.inf)
        self.own = [tuple(kv.new_empty(len(group_B), kv.shape[1], 0, kv.shape[3]) for kv in layer)
                    for layer in self.prompts]                                       # (B, heads, S, D)
        self.group_B, self.column = group_B, column

    def repack(self, stay_B, more):
        """Drop rows, and the prompts that no row needs any more; make room for `more` positions."""
        # Zeros, not empty: a masked position has weight 0, and 0 x NaN would be NaN.
        self.own = [tuple(F.pad(kv[stay_B], (0, 0, 0, more)) for kv in layer) for layer in self.own]
        needed, self.group_B = self.group_B[stay_B].unique(return_inverse=True)
        if len(needed) < len(self.bias_PT):
            self.prompts = [tuple(kv[needed] for kv in layer) for layer in self.prompts]
            self.bias_PT = self.bias_PT[needed]
        # Row b is cell `cell_B[b]` of a grid of prompts x `width` rows.
        count_P = self.group_B.bincount()
        self.width = int(count_P.max())
        first_P = count_P.cumsum(0) - count_P
        place_B = torch.arange(len(self.group_B), device=first_P.device) - first_P[self.group_B]
        self.cell_B = self.group_B * self.width + place_B

    def own_bias(self):
        """(1, 1, 1, S) to add to the completions' scores: 0 up to `column`, then -inf."""
        column_S = torch.arange(self.own[0][0].shape[2], device=self.column.device)
        bias_S = torch.zeros_like(column_S, dtype=torch.float32)
        return bias_S.masked_fill(column_S > self.column, -torch.inf)[None, None, None]

    def update(self, key, value, layer, *args, **kwargs):
        """Store one position of one layer: key and value are (B, heads, 1, D)."""
        keys, values = self.own[layer]
        return keys.index_copy_(2, self.column, key), values.index_copy_(2, self.column, value)


def shared_prompt_attention(module, query, key, value, attention_mask, scaling, groups=None, **kwargs):
    """Attention of one new token per row to its prompt, read once for the whole group, and to its
    own completion; without `groups`, transformers' own attention.

    softmax([q K_prompt, q K_own] scaling) [V_prompt; V_own]. In letters: K heads of keys, R queries for
    each, G rows of a prompt at most.

    Args:
        query: (B, K x R, 1, D).
        key, value: (B, K, S, D), the completions.
        attention_mask: (1, 1, 1, S) to add to the completions' scores.
        groups: the GroupCache.
    """
    if groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    B, D, K, G = len(query), query.shape[3], key.shape[1], groups.width
    prompt_key, prompt_value = groups.prompts[module.layer_idx]
    P, _, T, _ = prompt_key.shape
    query = query.view(B, K, -1, D) * scaling
    # Rows -> grid of groups -> scores (P, K, G x R, T) -> rows, and back the same way.
    grid = query.new_zeros(P * G, *query.shape[1:]).index_copy_(0, groups.cell_B, query)
    grid = grid.view(P, G, K, -1, D).transpose(1, 2).reshape(P, K, -1, D)
    score = grid @ prompt_key.transpose(2, 3) + groups.bias_PT[:, None, None]
    score = score.view(P, K, G, -1, T).transpose(1, 2).reshape(P * G, K, -1, T)[groups.cell_B]
    own_score = query @ key.transpose(2, 3) + attention_mask
    weight = torch.cat((score, own_score), -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    grid = weight.new_zeros(P * G, K, weight.shape[2], T).index_copy_(0, groups.cell_B, weight[..., :T])
    grid = grid.view(P, G, K, -1, T).transpose(1, 2).reshape(P, K, -1, T)
    out = (grid @ prompt_value).view(P, K, G, -1, D).transpose(1, 2).reshape(P * G, K, -1, D)
    out = out[groups.cell_B] + weight[..., T:] @ value
    return out.view(B, 1, -1, D), None


AttentionInterface.register("shared_prompt", shared_prompt_attention)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


class Decoder:
    """The rows of a chunk while they are decoded, `samples` for each prompt.

    Whatever a step reads or writes is a tensor that keeps its place through a stretch of steps, so
    that a GPU can replay the step as a CUDA graph. Rows leave between stretches.
    """

    def __init__(self, lm, prompts, u_BT, temperature):
        """Prefill the prompts, and pick the first token of every row."""
        self.lm, self.u_BT, self.temperature = lm, u_BT, temperature
        device, B = u_BT.device, len(u_BT)
        # Padded on the right, where causal attention never looks.
        ids_PT = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True).to(device)
        length_P = torch.tensor([len(ids) for ids in prompts], device=device)
        out = lm.model.base_model(input_ids=ids_PT, use_cache=True)
        last_PD = out.last_hidden_state[torch.arange(len(prompts), device=device), length_P - 1]
        group_B = torch.arange(len(prompts), device=device).repeat_interleave(B // len(prompts))
        self.eos = torch.tensor(lm.eos, device=device)
        self.t = torch.zeros(1, dtype=torch.long, device=device)     # number of the newest token
        self.ids_BT = torch.zeros_like(u_BT, dtype=torch.long)
        self.logp_BT = torch.zeros_like(u_BT, dtype=torch.float32)
        self.live = torch.arange(B, device=device)                   # rows of ids_BT in the batch
        self.last_B = torch.zeros_like(group_B)                      # their newest tokens
        self.ended_B = torch.zeros_like(group_B, dtype=torch.bool)
        self.length_B = length_P[group_B]
        self.cache = GroupCache(out.past_key_values, length_P, group_B, self.t)
        self._pick(lm.model.lm_head(last_PD)[group_B])

    def _pick(self, logits_BV):
        u_B = self.u_BT[self.live, self.t]
        ids_B, logp_B = pick(logits_BV, u_B, self.temperature)
        self.ids_BT[self.live, self.t] = ids_B
        self.logp_BT[self.live, self.t] = logp_B
        self.ended_B |= torch.isin(ids_B, self.eos)
        self.last_B.copy_(ids_B)

    def step(self):
        """The model reads the newest tokens, and we pick the next."""
        hidden_B1D = self.lm.model.base_model(
            input_ids=self.last_B[:, None], position_ids=(self.length_B + self.t)[:, None],
            attention_mask=self.cache.own_bias(), past_key_values=self.cache, use_cache=True,
            groups=self.cache).last_hidden_state
        self.t += 1
        self._pick(self.lm.model.lm_head(hidden_B1D[:, 0]))

    def stretch(self, steps):
        """Drop the rows that have ended, then take at most `steps` steps."""
        stay_B = ~self.ended_B
        self.live, self.last_B, self.length_B = (
            x_B[stay_B] for x_B in (self.live, self.last_B, self.length_B))
        self.ended_B = torch.zeros_like(self.live, dtype=torch.bool)
        self.cache.repack(stay_B, steps)
        step = self.step
        for n in range(steps):
            if n == 1 and self.live.is_cuda:
                step = as_cuda_graph(step)      # the first step was its warm-up
            step()
            if self.ended_B.all():
                break


def as_cuda_graph(step):
    """The step as one launch instead of hundreds. Capturing runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
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
    # What a row has drawn after its EOS, until the stretch was over, does not count.
    eos_BT = torch.isin(decoder.ids_BT, decoder.eos)
    finished_B = eos_BT.any(1)
    count_B = torch.where(finished_B, eos_BT.int().argmax(1) + 1, max_tokens)
    rows = zip(decoder.ids_BT.tolist(), decoder.logp_BT.tolist(), count_B.tolist(), finished_B.tolist())
    return [[_rollout(lm, prompt, *next(rows)) for _ in group] for prompt, group in zip(prompts, keys)]


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
        keys = [[(*key, p, s) for s in range(samples)] for p in chunk]
        return sample_chunk(lm, [prompts[p] for p in chunk], keys, temperature, max_tokens)

    # Prompts of like length go together, which saves padding.
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    groups = dict(zip(order, deal(order, max(1, rows // samples), work)))
    return [groups[p] for p in range(len(prompts))]


@torch.no_grad()
def choose(lm, prompts, ids, rows):
    """For each prompt, which of the token `ids` has the highest logit as the next one: list of
    int."""
    def work(start, chunk):
        ids_BT = pad_sequence([torch.tensor(row) for row in chunk],
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
    return (pad_sequence(rows, batch_first=True).to(device),
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
