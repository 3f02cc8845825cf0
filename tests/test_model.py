"""The sampler against transformers' own generate, against the softmax, and against the trainer's scorer."""
import math
from collections import Counter

import numpy as np
import pytest
import torch

import model as lms
import solver
import tiny


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
    """Chi-square over the second token, so that the cache is in play, given the prevailing first one."""
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
    logp_BC, entropy_BC, mask_BC = lms.token_logprobs(lm.model, *lms.pad_rollouts(rollouts, "cpu"))
    gaps = torch.cat([logp_BC[b, :len(r.ids)] - torch.tensor(r.logps) for b, r in enumerate(rollouts)])
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
        lms.token_logprobs(lm.model, *lms.pad_rollouts(rollouts, "cpu"))[0].sum().backward()
        gradients.append(lm.model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_finished_rows_leave_the_batch_and_change_nothing(lm, prompts):
    sizes = []
    hook = lm.model.base_model.register_forward_hook(
        lambda module, args, out: sizes.append(out.last_hidden_state.shape[0]))
    together = lms.sample(lm, prompts, 2, (5,), 1.0, 128, rows=24)
    hook.remove()
    assert sizes[0] == len(prompts), "one prefill for each distinct prompt"
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


def test_an_id_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for u, expected in ((0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert lms.pick(logits, torch.tensor([u], dtype=torch.float64), 1.0)[0].item() == expected


def test_choose_takes_the_highest_of_the_given_ids(lm, prompts):
    ids = [40, 50, 60]
    with torch.no_grad():
        logits = [lm.model(torch.tensor([row])).logits[0, -1, ids] for row in prompts]
    assert lms.choose(lm, prompts, ids, rows=5) == [int(row.argmax()) for row in logits]


def test_a_choice_of_two_tokens_is_refused(lm):
    messages = [{"role": "user", "content": "hello"}]
    assert len(lms.choice_ids(lm.tokenizer, messages, "12345")) == 5
    with pytest.raises(ValueError, match="single token"):
        lms.choice_ids(lm.tokenizer, messages, ["zq"])
