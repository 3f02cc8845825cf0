"""The command line, and complete small runs: both launchers, resume, determinism, the paper's path."""
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import selfplay
import tiny

ROOT = tiny.PATH.parent
QWEN = ROOT.parent / "shared" / "tokenizers" / "Qwen2.5-1.5B-Instruct"      # development data, if present
SMALL = ["--generator_steps", "2", "--solver_steps", "2", "--generator_prompts", "4",
         "--solver_prompts", "4", "--group_size", "4", "--probes", "2", "--pool_size", "48",
         "--verify_samples", "4", "--curriculum_size", "8", "--heldout_tasks", "24"]


def call(*command, ok=True):
    """Run a command in the project's directory; returns its output."""
    env = {name: value for name, value in os.environ.items()
           if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert not ok or done.returncode == 0, done.stdout[-4000:]
    return done.stdout if ok else (done.returncode, done.stdout)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("arguments, named", [
    (["--nonsense", "1"], "--nonsense"), (["--preset", "huge"], "huge"), (["--group_size", "1"], "--group_size"),
    (["--learning_rate", "-1"], "--learning_rate"), (["--learning_rate", "nan"], "--learning_rate"),
    (["--pool_size", "many"], "many"), (["--dtype", "fp16"], "fp16"), (["--domains", "travel:x"], "--domains"),
    (["--domains", ""], "--domains"), (["--gradient_checkpointing", "maybe"], "maybe")])
def test_bad_settings_are_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        selfplay.parse(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and named in message and message.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    code, output = call(sys.executable, "selfplay.py", "--model", tmp_path / "none", "--run_dir",
                        tmp_path / "run", ok=False)
    message = [line for line in output.splitlines() if line.startswith("selfplay.py:")]
    assert code == 2 and len(message) == 1 and "none" in message[0] and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_model_without_chat_template_is_refused(tmp_path, capsys):
    shutil.copytree(tiny.PATH, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit) as stop:
        selfplay.main(["--model", str(tmp_path / "model"), "--run_dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and "chat template" in capsys.readouterr().err


def test_paper_preset_has_the_papers_values():
    config = selfplay.parse(["--preset", "paper", "--run_dir", "runs/nowhere"])
    assert (config.iterations, config.generator_steps, config.solver_steps) == (3, 50, 50)
    assert (config.generator_prompts * config.group_size, config.solver_prompts * config.group_size) == (24, 32)
    assert (config.pool_size, config.curriculum_size, config.probes, config.verify_samples) == (10000, 2000, 8, 10)
    assert (config.learning_rate, config.epsilon, config.inner_updates) == (1e-6, 0.2, 1)
    assert (config.max_completion, config.max_verify, len(config.domain_weights)) == (2048, 1024, 32)


def test_every_setting_is_read():
    source = "".join((ROOT / name).read_text() for name in ("selfplay.py", "grpo.py"))
    for field in dataclasses.fields(selfplay.Config):
        assert f"config.{field.name}" in source or f"self.{field.name}" in source, field.name


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small"
    call(sys.executable, "selfplay.py", "--run_dir", path, "--iterations", 1, *SMALL)
    return path


def test_a_small_run_leaves_everything(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert len(summary["heldout_accuracy"]) == 2 and summary["funnel"][0]["pool"] == 48
    pool = lines(run_dir / "iter1/pool.jsonl")
    funnel = summary["funnel"][0]
    assert sum(count for reason, count in funnel.items() if reason not in ("pool", "survivors", "curriculum")
               ) + funnel["survivors"] == len(pool) == 48
    chosen = lines(run_dir / "iter1/curriculum.jsonl")
    assert len(chosen) == funnel["curriculum"] == sum(row["kept"] for row in pool)
    phases = [row["phase"] for row in lines(run_dir / "metrics.jsonl")]
    assert phases == ["evaluation"] + ["generator"] * 2 + ["curriculum"] + ["solver"] * 2 + ["evaluation"]
    assert len(lines(run_dir / "samples.jsonl")) == 8 and len(lines(run_dir / "timings.jsonl")) == 4
    for role in ("generator", "solver"):
        weights = load_file(run_dir / "iter1" / role / "model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}


def test_a_trained_checkpoint_evaluates_alone(run_dir):
    output = call(sys.executable, "eval.py", "--model", run_dir / "iter1/solver")
    assert "% of 500 right" in output


def test_resume_redoes_only_what_is_unfinished(run_dir, tmp_path):
    """As after an interruption in the Solver's phase: the end is the same, and what was finished is not touched."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    state = json.loads((path / "state.json").read_text())
    state["finished"] = state["finished"][:3]
    (path / "state.json").write_text(json.dumps(state))
    before = (path / "iter1/generator/model.safetensors").stat().st_mtime_ns
    call(sys.executable, "selfplay.py", "--run_dir", path, "--iterations", 1, *SMALL)
    assert (path / "iter1/generator/model.safetensors").stat().st_mtime_ns == before
    assert (path / "metrics.jsonl").read_text() == (run_dir / "metrics.jsonl").read_text()
    assert (path / "samples.jsonl").read_text() == (run_dir / "samples.jsonl").read_text()


def test_a_finished_run_prints_its_summary_and_other_settings_are_refused(run_dir):
    output = call(sys.executable, "selfplay.py", "--run_dir", run_dir, "--iterations", 1, *SMALL)
    assert "held-out accuracy:" in output
    code, output = call(sys.executable, "selfplay.py", "--run_dir", run_dir, *SMALL, "--seed", 7, ok=False)
    assert code == 2 and "--seed was 0 and is 7" in output and "--iterations" not in output


def test_two_ranks_under_the_launcher(tmp_path):
    call("deepspeed", "--num_gpus", 2, "--master_port", 29613, "selfplay.py", "--run_dir", tmp_path / "run",
         "--iterations", 1, *SMALL)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["world_size"] == 2 and len(summary["heldout_accuracy"]) == 2


@pytest.mark.skipif(not QWEN.exists(), reason="needs the Qwen2.5 tokenizer beside the project")
def test_the_papers_path_on_a_random_qwen(tmp_path):
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    config = Qwen2Config.from_pretrained(QWEN)
    config.update(dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, max_window_layers=2, layer_types=["full_attention"] * 2))
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(QWEN).save_pretrained(tmp_path / "model")
    output = call(sys.executable, ROOT / "tests/paper_worker.py", tmp_path / "model", tmp_path / "run")
    assert "no task survived" in output and output.strip().endswith("moved")
