"""The sampler against transformers' own generate, the softmax, and the trainer's scorer."""
import json
import math
import shutil
import sys
import textwrap
from collections import Counter
from os.path import commonprefix

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import model as lms
import solver
import tiny
from conftest import ROOT, call, call_ranks


@pytest.fixture(scope="module")
def lm():
    return lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH))


@pytest.fixture(scope="module")
def prompts(lm):
    return [lms.encode_chat(lm.tokenizer, solver.prompt(task.question, task.tools))
            for task in tiny.heldout(12)]


def test_greedy_equals_generate(lm, prompts):
    ours = lms.sample(lm, prompts, 1, (), 0, 128, rows=5)
    for ids, (rollout,) in zip(prompts, ours):
        theirs = lm.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                                   do_sample=False, max_new_tokens=128, eos_token_id=list(lm.eos))
        assert theirs[0, len(ids):].tolist() == rollout.ids
    assert {rollout.finished for rollout, in ours} == {True}


def test_sampled_frequencies_match_the_softmax(lm, prompts):
    """Chi-square over the second token, so that the cache is in play, given a first one."""
    rollouts = lms.sample(lm, prompts[:1], 6000, (3,), 2.5, 2, rows=6000)[0]
    first = Counter(rollout.ids[0] for rollout in rollouts).most_common(1)[0][0]
    seen = Counter(rollout.ids[1] for rollout in rollouts if rollout.ids[0] == first)
    total = sum(seen.values())
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompts[0] + [first]])).logits[0, -1].double()
    expected = torch.softmax(logits / 2.5, -1) * total
    common = [i for i, count in enumerate(expected.tolist()) if count >= 5]
    rest = total - expected[common].sum().item()
    chi2 = sum((seen[i] - expected[i].item()) ** 2 / expected[i].item() for i in common)
    chi2 += (total - sum(seen[i] for i in common) - rest) ** 2 / rest
    freedom = len(common)
    assert total > 1000 and freedom >= 15
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_sampler_and_trainer_agree_on_log_probs(prompts, dtype, limit):
    lm = lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH), dtype)
    rollouts = [r for group in lms.sample(lm, prompts, 4, (1,), 1.0, 40, 48) for r in group]
    packed = lms.pack([[r] for r in rollouts], "cpu")
    logp_BC, entropy_BC, mask_BC = lms.token_logprobs(lm.model, packed)
    gaps = torch.cat([logp_BC[b, :len(r.ids)] - torch.tensor(r.logps)
                      for b, r in enumerate(rollouts)])
    gap = gaps.abs().max() if dtype == torch.float32 else gaps.abs().mean()
    assert gap < limit
    assert mask_BC.sum(1).tolist() == [len(r.ids) for r in rollouts]
    assert (logp_BC[~mask_BC] == 0).all() and (entropy_BC[mask_BC] >= 0).all()


def test_log_probs_in_blocks_have_the_gradient_of_the_whole(lm, prompts, monkeypatch):
    rollouts = [r for group in lms.sample(lm, prompts[:2], 2, (1,), 1.0, 20, 8) for r in group]
    gradients = []
    for size in (2**27, 3 * lm.model.config.vocab_size):
        monkeypatch.setattr(lms, "LOGITS_AT_ONCE", size)
        lm.model.zero_grad()
        lms.token_logprobs(lm.model, lms.pack([[r] for r in rollouts], "cpu"))[0].sum().backward()
        gradients.append(lm.model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_step_finds_and_leaves_its_tensors_in_place(lm, prompts):
    """So that a CUDA graph of it can be replayed."""
    def places():
        tensors = [x for x in vars(decoder).values() if isinstance(x, torch.Tensor)]
        tensors += [kv for layer in decoder.cache.own + decoder.cache.prompts for kv in layer]
        return [x.data_ptr() for x in tensors + [decoder.cache.cell_B, decoder.cache.column]]

    with torch.no_grad():
        decoder = lms.Decoder(lm, prompts[:2], torch.rand(4, 9, dtype=torch.float64), 1.0)
        decoder.stretch(1)
        decoder.cache.repack(torch.ones(4, dtype=torch.bool), 3)
        before = places()
        decoder.step()
        decoder.step()
    assert places() == before and decoder.t.item() == 3


def plain_logprobs(model, rollout):
    """By the book: one row, all its logits, their log-softmax."""
    ids = torch.tensor([rollout.prompt + rollout.ids])
    logp_TV = torch.log_softmax(model(ids).logits[0, len(rollout.prompt) - 1:-1], -1)
    return logp_TV.gather(-1, torch.tensor(rollout.ids)[:, None])[:, 0]


def gradients(model, logps):
    model.zero_grad()
    sum((logp * torch.linspace(-1, 1, len(logp))).sum() for logp in logps).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("part", [1, 3, 4])
def test_a_prompt_shared_by_its_completions_has_the_plain_gradient(lm, prompts, part):
    """Groups of 4 whole, cut into 3 and 1, and in single completions."""
    groups = lms.sample(lm, prompts[:3], 4, (2,), 1.5, 60, 12)
    rollouts = [r for group in groups for r in group]
    assert len({len(r.ids) for r in rollouts}) >= 3
    parts = [group[i:i + part] for group in groups for i in range(0, 4, part)]
    packed = lms.pack(parts, "cpu")
    assert len(packed.ids_N) == sum(len(p[0].prompt) + sum(len(r.ids) for r in p) for p in parts)
    logp_BC, _, _ = lms.token_logprobs(lm.model, packed)
    ours = [logp_C[:len(r.ids)] for logp_C, r in zip(logp_BC, rollouts)]
    plain = [plain_logprobs(lm.model, r) for r in rollouts]
    torch.testing.assert_close(torch.cat(ours), torch.cat(plain), rtol=1e-4, atol=1e-5)
    ours, plain = gradients(lm.model, ours), gradients(lm.model, plain)
    assert (ours - plain).norm() < 1e-5 * plain.norm()


def test_another_attention_function_is_refused(lm, prompts):
    """Plain attention over a packed sequence would let completions see each other."""
    packed = lms.pack(lms.sample(lm, prompts[:1], 2, (2,), 1.0, 9, 2), "cpu")
    lm.model.set_attn_implementation("sdpa")
    try:
        with pytest.raises(RuntimeError):
            lms.token_logprobs(lm.model, packed)
    finally:
        lm.model.set_attn_implementation("shared_prompt")


@pytest.fixture(scope="module")
def wide():
    """A random model whose queries share keys two by two, as in Qwen2.5."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, eos_token_id=0)
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="shared_prompt").eval()
    return lms.LM(model, lms.load_tokenizer(tiny.PATH), (0,))


def test_grouped_queries_sample_and_score_as_the_plain_model(wide):
    prompts = [[5, 6, 7], [9] * 12]
    rollouts = [r for group in lms.sample(wide, prompts, 3, (4,), 1.0, 40, 6) for r in group]
    plain = torch.cat([plain_logprobs(wide.model, r) for r in rollouts]).detach()
    assert torch.allclose(torch.tensor([x for r in rollouts for x in r.logps]), plain, atol=1e-4)
    packed = lms.pack([rollouts[:3], rollouts[3:]], "cpu")
    logp_BC, _, mask_BC = lms.token_logprobs(wide.model, packed)
    assert torch.allclose(logp_BC[mask_BC], plain, atol=1e-4)


@pytest.mark.parametrize("attend", ["_attend_by_text", "_attend_in_rows"])
def test_any_groups_have_the_plain_log_probs_and_gradient(wide, monkeypatch, attend):
    """Both ways to attend, on prompts of any length with any number of completions."""
    monkeypatch.setattr(lms.Packed, "_attend_by_text", getattr(lms.Packed, attend))
    for seed in range(5):
        print("seed", seed)
        random = np.random.default_rng(seed)
        groups = []
        for _ in range(random.integers(1, 5)):
            prompt = random.integers(1, 300, random.integers(1, 50)).tolist()
            groups.append([lms.Rollout(prompt, random.integers(300, size=length).tolist(), "", True,
                                       [])
                           for length in random.integers(1, 40, random.integers(1, 6))])
        packed = lms.pack(groups, "cpu")
        logp_BC, _, mask_BC = lms.token_logprobs(wide.model, packed)
        assert len(packed.masks) == 1, "one mask for all texts and layers"
        rollouts = [rollout for group in groups for rollout in group]
        assert mask_BC.sum(1).tolist() == [len(rollout.ids) for rollout in rollouts]
        ours = [logp_C[mask_C] for logp_C, mask_C in zip(logp_BC, mask_BC)]
        plain = [plain_logprobs(wide.model, rollout) for rollout in rollouts]
        torch.testing.assert_close(torch.cat(ours), torch.cat(plain), rtol=1e-4, atol=1e-5)
        ours, plain = gradients(wide.model, ours), gradients(wide.model, plain)
        assert (ours - plain).norm() < 1e-5 * plain.norm()


def test_small_steps_take_one_thread_and_draw_what_two_would(lm, prompts, monkeypatch):
    seen, plain, usual = [], lms.hidden_states, torch.get_num_threads()

    def watched(model, layout, *args):
        if isinstance(layout, lms.GroupCache):      # a step, no prefill
            seen.append(torch.get_num_threads())
        return plain(model, layout, *args)

    monkeypatch.setattr(lms, "hidden_states", watched)
    drawn = []
    try:
        for limit, threads in ((10**8, 1), (0, 2)):
            torch.set_num_threads(2)
            monkeypatch.setattr(lms, "ONE_THREAD", limit)
            groups = lms.sample(lm, prompts[:2], 2, (0,), 1.0, 8, rows=64)
            drawn.append([[rollout.ids for rollout in group] for group in groups])
            assert set(seen) == {threads} and torch.get_num_threads() == 2
            seen.clear()
    finally:
        torch.set_num_threads(usual)
    assert drawn[0] == drawn[1]


def test_finished_rows_leave_the_batch_and_change_nothing(lm, prompts):
    sizes = []
    hook = lm.model.base_model.register_forward_hook(
        lambda module, args, out: sizes.append(out.last_hidden_state.shape[:2].numel()))
    together = lms.sample(lm, prompts, 2, (5,), 1.0, 128, rows=24)
    hook.remove()
    shared = len(commonprefix(prompts))
    assert shared and sizes[0] == shared + sum(len(ids) - shared for ids in prompts), (
        "each distinct prompt is read once, and what all have in common once")
    assert sizes[1] == 24 and sizes[-1] < 8
    alone = lms.sample(lm, prompts, 2, (5,), 1.0, 128, rows=2)
    same = sum(a.ids == b.ids for x, y in zip(together, alone) for a, b in zip(x, y))
    assert same >= 22        # another batch shape rounds differently: nearly all, not all


def test_every_eos_ends_a_completion(lm, prompts):
    first = lms.sample(lm, prompts[:1], 1, (), 0, 5, 1)[0][0].ids
    also = lms.LM(lm.model, lm.tokenizer, (*lm.eos, first[2]))
    rollout = lms.sample(also, prompts[:1], 1, (), 0, 5, 1)[0][0]
    assert rollout.ids == first[:3] and rollout.finished and len(rollout.logps) == 3
    assert not lms.sample(lm, prompts[:1], 1, (), 0, 2, 1)[0][0].finished


def test_uniforms_depend_on_key_and_position_alone():
    assert np.array_equal(lms.uniforms((0, 1), 5), lms.uniforms((0, 1), 9)[:5])
    assert not np.array_equal(lms.uniforms((0, 1), 5), lms.uniforms((0, 2), 5))


@pytest.mark.parametrize("one_by_one", [0, 2**16], ids=["in blocks", "one by one"])
def test_an_id_of_probability_zero_is_never_drawn(monkeypatch, one_by_one):
    """12 ids make 4 blocks of 3; the outer blocks have none that can be drawn."""
    monkeypatch.setattr(lms, "ONE_BY_ONE", one_by_one)
    logits = torch.full((1, 12), -torch.inf)
    logits[0, [4, 7]] = 0.0
    for u, expected in ((0.0, 4), (0.4999, 4), (0.5, 7), (1 - 2**-53, 7)):
        assert lms.pick(logits, torch.tensor([u], dtype=torch.float64), 1.0)[0].item() == expected


def test_the_first_id_whose_cumulative_probability_exceeds_u(monkeypatch):
    """Integer weights, where sums are exact, and u in the middle of every unit of their total."""
    monkeypatch.setattr(lms, "ONE_BY_ONE", 0)
    for seed, size in enumerate((1, 5, 64, 698, 1000, 1536)):
        print("seed", seed)
        random = np.random.default_rng(seed)
        weights = random.integers(1, 9, size) * (random.random(size) < 0.3)
        weights[random.integers(size)] = 7
        owners = np.repeat(np.arange(size), weights)      # the id that each unit belongs to
        u_B1 = (torch.arange(len(owners), dtype=torch.float64)[:, None] + 0.5) / len(owners)
        weight_BV = torch.tensor(weights, dtype=torch.float32).expand(len(owners), -1)
        assert lms.invert(weight_BV, u_B1)[:, 0].tolist() == owners.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ids_in_blocks_are_drawn_as_often_as_the_softmax_says(dtype):
    """96 ids, 32 blocks of 3: common ones, rare ones, and blocks that cannot be drawn."""
    rows, seed = 60_000, 11
    print("seed", seed)
    random = torch.Generator().manual_seed(seed)
    logits_V = (2 * torch.randn(96, generator=random)).to(dtype)
    logits_V[30:45] = -torch.inf
    expected_V = rows * torch.softmax(logits_V.double() / 1.3, -1)
    assert rows * 96 > lms.ONE_BY_ONE and 0 < expected_V[expected_V > 0].min() < 20
    u_B = torch.rand(rows, generator=random, dtype=torch.float64)
    ids_B, logp_B = lms.pick(logits_V.expand(rows, -1), u_B, 1.3)
    seen_V = ids_B.bincount(minlength=96)
    assert seen_V[30:45].sum() == 0
    chi2 = ((seen_V - expected_V)**2 / expected_V)[expected_V > 0].sum()
    assert chi2 < 80 + 4 * math.sqrt(2 * 80)
    assert torch.allclose(logp_B.double(), (expected_V[ids_B] / rows).log(), atol=1e-5)


@pytest.mark.parametrize("one_by_one", [0, 2**16], ids=["in blocks", "one by one"])
def test_a_row_of_nan_says_so_and_spoils_no_other(monkeypatch, one_by_one):
    monkeypatch.setattr(lms, "ONE_BY_ONE", one_by_one)
    logits = torch.zeros(2, 12)
    logits[0, 3] = torch.nan
    ids_B, logp_B = lms.pick(logits, torch.tensor([0.3, 0.3], dtype=torch.float64), 1.0)
    assert 0 <= ids_B[0] < 12 and logp_B[0].isnan()
    assert ids_B[1] == 3 and logp_B[1].item() == pytest.approx(-math.log(12))


def test_choose_takes_the_highest_of_the_given_ids(lm, prompts):
    ids = [40, 50, 60]
    with torch.no_grad():
        logits = [lm.model(torch.tensor([row])).logits[0, -1, ids] for row in prompts]
    assert lms.choose(lm, prompts, ids, rows=5) == [int(row.argmax()) for row in logits]


def test_a_choice_of_two_tokens_is_refused(lm):
    messages = [{"role": "user", "content": "hello"}]
    assert len(lms.choice_ids(lm.tokenizer, messages, "12345")) == 5
    with pytest.raises(ValueError, match="single tokens"):
        lms.choice_ids(lm.tokenizer, messages, ["zq"])


def test_model_alone_samples_from_a_checkpoint_as_its_head_says(tmp_path):
    shutil.copy(ROOT / "model.py", tmp_path)
    recipe = textwrap.dedent(lms.__doc__.split("and `load` proves that it does.")[1])
    recipe = recipe.replace('"DIR"', repr(str(tiny.PATH))).replace("cuda", "cpu")
    (tmp_path / "use.py").write_text(
        f"from model import *\n{recipe}\nprint(len(groups[0]), 'rows')")
    assert "8 rows" in call(sys.executable, "use.py", cwd=tmp_path, fresh=True,
                            variables={"PYTHONPATH": ""})


def test_one_two_and_four_ranks_draw_the_same(tmp_path):
    drawn = []
    for world in (1, 2, 4):
        call_ranks(world, sys.executable, ROOT / "tests/sample_worker.py", tmp_path / "drawn.json")
        drawn.append((tmp_path / "drawn.json").read_text())
    assert drawn[0] == drawn[1] == drawn[2] and len(json.loads(drawn[0])[0]) == 7
