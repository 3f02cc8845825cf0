"""The command line, and complete small runs:
both launchers, resume, determinism, the paper's path."""
import json
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file

import generator
import run as runs
import selfplay
import tiny
from cli import Refused
from config import parse
from conftest import ROOT, SHORT, SMALL, call, free_port, lines

# Development data, if present.
QWEN = ROOT.parent / "shared" / "tokenizers" / "Qwen2.5-1.5B-Instruct"


@pytest.mark.parametrize("arguments, named", [
    (["--nonsense", "1"], "--nonsense"), (["--preset", "huge"], "huge"),
    (["--group_size", "1"], "--group_size"),
    (["--generator_learning_rate", "-1"], "--generator_learning_rate"),
    (["--solver_learning_rate", "nan"], "--solver_learning_rate"),
    (["--pool_size", "many"], "many"), (["--dtype", "fp16"], "fp16"),
    (["--domains", "travel:x"], "--domains"), (["--domains", "nowhere.json"], "nowhere.json"),
    (["--gradient_checkpointing", "maybe"], "maybe"),
    (["--order", "random"], "--order"), (["--tools", "nowhere.json"], "nowhere.json"),
    (["--deepspeed", "nowhere.json"], "nowhere.json"), (["--decline", "1"], "--decline"),
    (["--decline", "-0.1"], "--decline"), (["--decline", "nan"], "--decline"),
    (["--epsilon", "1"], "--epsilon"), (["--no_judge", "--no_difficulty"], "exclude"),
    (["--shared_weights", "--freeze_generator"], "exclude")])
def test_bad_settings_are_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
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
    config, _ = parse(["--preset", "paper", "--run_dir", "runs/nowhere"])
    assert (config.iterations, config.generator_steps, config.solver_steps) == (3, 50, 50)
    assert (config.generator_prompts * config.group_size,
            config.solver_prompts * config.group_size) == (24, 32)
    assert (config.pool_size, config.curriculum_size,
            config.probes, config.verify_samples) == (10000, 2000, 8, 10)
    assert (config.generator_learning_rate, config.solver_learning_rate, config.epsilon,
            config.inner_updates) == (1e-6, 1e-6, 0.2, 1)
    assert config.generator_temperature == config.solver_temperature == 1
    assert (config.max_completion, config.max_verify,
            len(config.domain_weights)) == (2048, 1024, 32)


SPY = """
import dataclasses, sys
import run, selfplay
from config import Config, PRESETS
seen = set()
class Spy(Config):
    def __getattribute__(self, name):
        seen.add(name)
        return super().__getattribute__(name)
run.record = lambda config: {"config": dict(vars(config))}      # reads none of them
small = dict(zip([flag[2:] for flag in sys.argv[2::2]], map(int, sys.argv[3::2])))
run.start(Spy(**PRESETS["tiny"] | small, preset="tiny", run_dir=sys.argv[1]), selfplay.self_play)
print("unread:", sorted({field.name for field in dataclasses.fields(Config)} - seen))
"""


def test_a_run_reads_every_setting(tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    output = call(sys.executable, tmp_path / "spy.py", tmp_path / "run", *SHORT)
    assert "unread: []" in output


def test_a_small_run_leaves_everything(small_run):
    run_dir = small_run
    summary = json.loads((run_dir / "summary.json").read_text())
    assert len(summary["heldout_accuracy"]) == 2 and summary["funnel"][0]["pool"] == 48
    none_fits = lines(run_dir / "iter1/none_fits.jsonl")
    assert len(none_fits) == 6 and all(row["gold"] == [] for row in none_fits)
    assert summary["heldout_declined"][1] == sum(row["error"] is None for row in none_fits) / 6
    pool = lines(run_dir / "iter1/pool.jsonl")
    funnel = summary["funnel"][0]
    assert sum(count for reason, count in funnel.items()
               if reason not in ("pool", "survivors", "curriculum")
               ) + funnel["survivors"] == len(pool) == 48
    chosen = lines(run_dir / "iter1/curriculum.jsonl")
    assert len(chosen) == funnel["curriculum"] == sum(row["kept"] for row in pool)
    phases = [row["phase"] for row in lines(run_dir / "metrics.jsonl")]
    assert phases == (["evaluation"] + ["generator"] * 4 + ["curriculum"] + ["solver"] * 3
                      + ["evaluation"])
    assert (len(lines(run_dir / "samples.jsonl")) == 14
            and len(lines(run_dir / "timings.jsonl")) == 10)
    assert all({"before", "after", "bucket"} <= set(row)
               for row in lines(run_dir / "iter1/examples.jsonl"))
    for role in ("generator", "solver"):
        weights = load_file(run_dir / "iter1" / role / "model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}


def test_a_task_that_no_tool_answers_has_an_empty_list_as_gold():
    text = ("<think>plan</think><question>Please cancel a flight.</question><available_tools>"
            '[{"name": "book_train", "description": "Book a train.", "parameters": {}}]'
            "</available_tools><tool_call_answer>[]</tool_call_answer>")
    asked, other = (selfplay.read(generator.Spec("travel", "single_turn", 1, calls), text)
                    for calls in (0, 1))
    assert asked.task.answer == [] and other.task is None


def test_a_trained_checkpoint_evaluates_alone(small_run):
    output = call(sys.executable, "eval.py", "--model", small_run / "iter1/solver", "--limit", 20)
    assert "% of 20 right" in output


def test_a_finished_run_prints_its_summary_and_other_settings_are_refused(small_run):
    output = call(sys.executable, "selfplay.py", "--run_dir", small_run, *SMALL)
    assert "held-out accuracy:" in output
    code, output = call(sys.executable, "selfplay.py", "--run_dir", small_run, *SMALL,
                        "--seed", 7, ok=False)
    assert code == 2 and "--seed was 0 and is 7" in output and "--iterations" not in output


@pytest.mark.skipif(sys.platform != "linux", reason="what libgomp reads")
def test_openmp_learns_how_to_wait_before_it_is_loaded():
    output = call(sys.executable, "selfplay.py", "--explain", fresh=True,
                  variables={"OMP_DISPLAY_ENV": "TRUE"})
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in output


def test_a_model_without_weights_is_refused_before_there_is_a_run(tmp_path):
    model = shutil.copytree(tiny.PATH, tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(Refused, match="model.safetensors is missing"):
        runs.start(parse(["--model", str(model), "--run_dir", str(tmp_path / "run")])[0], None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("refused", [False, True])
def test_the_process_group_is_left_before_python_ends(refused, small_run, tmp_path):
    """gloo's threads abort about one process in ten that still has a group at that point."""
    arguments = ["--run_dir", small_run, *SMALL]
    if refused:
        model = shutil.copytree(tiny.PATH, tmp_path / "model") / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1000])
        arguments = ["--run_dir", tmp_path / "run", "--model", model.parent]
    script = ("import atexit, sys, selfplay, torch.distributed as dist\n"
              "sys.argv[0] = 'selfplay.py'\n"
              "atexit.register(lambda: print('left', not dist.is_initialized()))\n"
              "import engine\n"
              "init = engine.init_distributed\n"
              "engine.init_distributed = lambda *a: (print('joined'), init(*a))[1]\n"
              "selfplay.main(sys.argv[1:])\n")
    code, output = call(sys.executable, "-c", script, *arguments, ok=False)
    assert code == 2 * refused and "joined" in output and "left True" in output


JOIN = ("import engine, model\nfrom cli import Refused, refuse\n"
        "try:\n    engine.init_distributed()\n    print('joined')\n    model.leave_group()\n"
        "except Refused as problem:\n    refuse(problem)\n")


def join(folder, port):
    """(exit code, output) of a process that is started as some schedulers do it."""
    (folder / "join.py").write_text(JOIN)
    return call(sys.executable, folder / "join.py", ok=False, variables={
        "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})


def test_a_scheduler_that_sets_no_local_rank_will_do(tmp_path):
    code, output = join(tmp_path, free_port())
    assert code == 0 and "joined" in output


def test_a_port_in_use_is_one_line_that_names_the_flag(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = join(tmp_path, port)
    said = [line for line in output.splitlines() if "--master_port" in line]
    assert code == 2 and len(said) == 1 and str(port) in said[0] and "Traceback" not in output


def test_a_dead_step_and_a_collapse_are_said_in_words():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    found = runs.step_problems(rewards, {"dead_groups": 1.0, "distinct_questions": 0.1,
                                         "reward_format": 0.0})
    assert "every group is dead" in found["dead"] and "1 of 2 groups have only" in found["dead"]
    assert "(coldstart.py)" in found["dead"]
    assert "only 10 % of the questions differ" in found["collapse"]
    assert runs.step_problems(rewards, {"dead_groups": 0.5, "distinct_questions": 0.5}) == {}
    own = runs.step_problems(rewards, {"dead_groups": 1.0})     # rewards of one's own: no format
    assert list(own) == ["dead"] and "coldstart" not in own["dead"]


@pytest.mark.skipif(not QWEN.exists(), reason="needs the Qwen2.5 tokenizer beside the project")
def test_the_papers_path_on_a_random_qwen(tmp_path):
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    config = Qwen2Config.from_pretrained(QWEN)
    config.update(dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=2, num_key_value_heads=1, max_window_layers=2,
                       layer_types=["full_attention"] * 2))
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(QWEN).save_pretrained(tmp_path / "model")
    output = call(sys.executable, ROOT / "tests/paper_worker.py",
                  tmp_path / "model", tmp_path / "run")
    assert output.count("every group is dead") == 1, "once a phase"
    assert "no task survived" in output
    assert output.strip().endswith("moved")
