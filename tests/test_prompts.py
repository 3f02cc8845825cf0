"""Chat templates as real models have them, written for these tests: both messages reach the model,
a think tag that the template opens counts, our tags survive, or one line says why not."""
import sys

import pytest
import torch
from hypothesis import given, strategies as st
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

import check
import coldstart
import curriculum
import generator
import model as lms
import solver
import tiny
from conftest import ROOT, call
from test_families import llama_tokenizer

QWEN = ROOT.parent / "shared" / "tokenizers" / "Qwen2.5-1.5B-Instruct"
CHAT = solver.prompt("Book 3 trains to Oslo.", [])

# Roles are marked <|role|>, turns end with the EOS.
TURNS = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot_id|>{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>%s{% endif %}")
TEMPLATES = {
    "in the manner of R1-Distill": TURNS.replace("%s", "<think>\n"),
    "in the manner of Qwen3": TURNS.replace("%s", ""),
    "in the manner of Qwen3, thinking off": TURNS.replace("%s", "<think>\n\n</think>\n\n"),
    "in the manner of Granite, with a date": "{{ strftime_now('%B %d, %Y') }}" + TURNS.replace(
        "%s", ""),
}
SWALLOWING = {
    "Phi-3's first: no branch for a system message": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|eot_id|>"
        "<|assistant|>{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "leaves out what the system says"),
    "Gemma 2's: a system message is refused": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}", "System role not supported"),
    "a vision model's: content comes in parts": (
        "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
        "{{ part.text }}{% endfor %}{% endfor %}", "leaves out what the system says"),
    "only the last message": ("{{ messages[-1].content }}", "leaves out what the system says"),
    "only the first message": ("{{ messages[0].content }}", "leaves out what the user says"),
    "a type error": ("{{ messages[0].content + 1 }}", "fails on a system message"),
    "a syntax error": ("{% for m in messages %}", "fails on a system message"),
}


def tokenizer(template, *special):
    made = llama_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [
        AddedToken(token, special=True, normalized=False) for token in special]})
    made.chat_template = template
    return made


def save_and_load(made, path):
    made.save_pretrained(path)
    return lms.load_tokenizer(path, generator.TAGS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_messages_reach_the_model(name, tmp_path):
    made = save_and_load(tokenizer(TEMPLATES[name]), tmp_path)
    text = lms.chat_text(made, CHAT)
    assert solver.SYSTEM in text and "Book 3 trains to Oslo." in text
    assert made.decode(lms.encode_chat(made, CHAT)) == text


@pytest.mark.parametrize("name", SWALLOWING)
def test_a_template_that_swallows_a_message_is_refused_in_one_line(name, tmp_path):
    template, says = SWALLOWING[name]
    with pytest.raises(ValueError) as error:
        save_and_load(tokenizer(template), tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)


PIECES = st.sampled_from([
    "{{ messages[0].content }}", "{{ messages[1].content }}", "{{ messages[1]['content'] | trim }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}", "{% for m in messages %}", "{% endfor %}",
    "{% if m.role == 'user' %}{{ m.content }}{% endif %}", "{{ strftime_now('%d %b') }}",
    "{{ m.content[0].text }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ x.y.z }}",
    "{{ bos_token + eos_token }}", "{% set messages = messages[1:] %}", "<think>\n", "{{", "\n"])


@given(st.lists(PIECES, max_size=6))
def test_any_template_brings_both_messages_or_is_refused_in_one_line(pieces):
    made = tokenizer("".join(pieces))
    problem = lms.template_problem(made)
    if problem is None:
        text = lms.chat_text(made, CHAT)
        assert solver.SYSTEM.strip() in text and "Book 3 trains to Oslo." in text
    else:
        assert "\n" not in problem


def test_no_rendering_depends_on_the_day(tmp_path):
    made = save_and_load(tokenizer(TEMPLATES["in the manner of Granite, with a date"]), tmp_path)
    assert lms.chat_text(made, CHAT).startswith("January 01, 2026")


@pytest.fixture
def reasoner(tmp_path):
    """A random model whose template opens a think block and whose tags are special tokens."""
    made = save_and_load(tokenizer(TEMPLATES["in the manner of R1-Distill"], "<think>",
                                   "</think>", "<tool_call_answer>"), tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(made), hidden_size=16, intermediate_size=16,
                         num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4096)
    model = LlamaForCausalLM._from_config(config, attn_implementation="shared_prompt").eval()
    return lms.LM(model, made, (made.eos_token_id,))


def rollout(lm, text):
    """What the sampler makes of a completion that is `text` and an EOS."""
    ids = lm.tokenizer.encode(text, add_special_tokens=False) + list(lm.eos)
    return lms.make_rollout(lm, lms.encode_chat(lm.tokenizer, CHAT), ids, [0.0] * len(ids))


RIGHT = ('The user wants a train.</think><tool_call_answer>[{"name": "book", "arguments": '
         '{"n": 3}}]</tool_call_answer>')
GOLD = [{"name": "book", "arguments": {"n": 3}}]


def test_a_think_tag_that_the_template_opens_counts(reasoner):
    made = rollout(reasoner, RIGHT)
    assert made.text.startswith("<think>\nThe user wants")
    assert solver.reward(made.text, GOLD) == {"format": 1.0, "accuracy": 1.0}
    assert made.ids[-1] == reasoner.eos[0], "the ids stay as they were sampled"


def test_special_tokens_that_are_our_tags_reach_the_reward_and_the_eos_does_not(reasoner):
    made = rollout(reasoner, RIGHT)
    assert "</think>" in made.text and "<tool_call_answer>" in made.text
    assert "<|eot_id|>" not in made.text


def test_the_judges_digit_is_read_behind_a_closed_think_block(reasoner):
    chat = curriculum.judge_prompt(tiny.heldout(1)[0])
    assert lms.chat_text(reasoner.tokenizer, chat, close=True).endswith("<think>\n\n</think>\n\n")
    ids = lms.choice_ids(reasoner.tokenizer, chat, curriculum.SCORES)
    assert [reasoner.tokenizer.decode([i]) for i in ids] == list("12345")


def test_a_cold_start_goes_on_where_the_template_has_begun(reasoner):
    """Through exactly the prompts of training, and no tag twice."""
    thought, score = coldstart.encode(reasoner, [(CHAT, "<think>a</think>b"), (CHAT, "5")])
    assert thought.prompt == lms.encode_chat(reasoner.tokenizer, CHAT)
    assert lms.decode(reasoner.tokenizer, thought.ids[:-1]) == "a</think>b"
    assert score.prompt == lms.encode_chat(reasoner.tokenizer, CHAT, close=True)


def test_a_closed_think_block_is_left_as_it_is():
    made = tokenizer(TEMPLATES["in the manner of Qwen3, thinking off"])
    assert lms.chat_text(made, CHAT, close=True) == lms.chat_text(made, CHAT)


def test_a_tokenizer_that_changes_our_tags_is_refused(tmp_path):
    made = tokenizer(TEMPLATES["in the manner of Qwen3"])
    made.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("_", " ")
    says = "turns <available_tools> into '<available tools>'"
    with pytest.raises(ValueError, match=says):
        save_and_load(made, tmp_path)
    code, output = call(sys.executable, "coldstart.py", "--model", tmp_path,
                        "--out", tmp_path / "out", ok=False)
    assert code == 2 and says in output and not (tmp_path / "out").exists()


def test_a_turn_that_ends_in_no_eos_is_said():
    made = tokenizer(TEMPLATES["in the manner of Qwen3"])
    assert check.turn_problem(made, (made.eos_token_id,)) is None
    assert "ends a turn with '<|eot_id|>'" in check.turn_problem(made, (7,))


@pytest.mark.skipif(not QWEN.exists(), reason="needs the Qwen2.5 tokenizer beside the project")
def test_the_real_qwen_template():
    made = lms.load_tokenizer(QWEN, generator.TAGS)
    text = lms.chat_text(made, CHAT)
    assert solver.SYSTEM in text and lms.opened(text) == "" and "You are Qwen" not in text
    assert check.turn_problem(made, (151643, 151645)) is None
