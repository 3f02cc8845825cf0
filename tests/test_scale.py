"""From the laptop to the paper: the user's DeepSpeed settings, tools and domains, memory,
ablations."""
import dataclasses
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import check
import engine
import generator
import model as lms
import tiny
from cli import Refused
from config import Config, directory_problem, parse, record
from conftest import ROOT, SHORT, SMALL, call, lines
from disk import write_json
from memory_table import qwen_shape
from verify import canonical

TOOLS = ROOT / "example_tools.json"


def write(path, value):
    path.write_text(json.dumps(value))
    return path


# The user's DeepSpeed settings -------------------------------------------------------------------


@pytest.mark.parametrize("settings, named", [
    ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage"),
    ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
    ({"train_batch_size": 8}, "train_batch_size"),
    ({"fp16": {"enabled": True}}, "fp16.enabled"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type"),
    ({"bf16": {"enabled": False}}, "bf16.enabled"),
    ({"gradient_clipping": 9}, "gradient_clipping"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type"),
    ({"bf16": {"bf16_master_weights_and_grads": True}}, "bf16_master_weights_and_grads"),
    ({"zero_optimization": {"param_persistence_threshold": 9}}, "param_persistence_threshold"),
    ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "offload_optimizer.device"),
    ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "reduce_bucket_size"),
    ([1], "no JSON object")])
def test_settings_that_would_change_the_step_are_refused_by_name(tmp_path, settings, named):
    with pytest.raises(Refused, match=re.escape(named)):
        engine.settings(Config(deepspeed=str(write(tmp_path / "ds.json", settings))))


@pytest.mark.parametrize("settings, named", [
    ({"zero_optimization": {"sub_group_size": "big"}}, "sub_group_size"),
    ({"zero_optimization": {"offload_param": {"pin_memory": "x"}}}, "offload_param.pin_memory"),
    ({"tensorboard": {"enabled": "perhaps"}}, "tensorboard.enabled")])
def test_settings_of_a_wrong_type_are_refused_in_one_line(tmp_path, settings, named):
    with pytest.raises(Refused, match=rf"ds\.json: .*{re.escape(named)}") as refused:
        engine.settings(Config(deepspeed=str(write(tmp_path / "ds.json", settings))))
    assert "\n" not in str(refused.value)


def test_a_run_directory_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    def refuses(path):
        raise PermissionError(13, "Permission denied", str(path))

    config = Config(run_dir=str(tmp_path))
    monkeypatch.setattr(Path, "exists", refuses)
    assert directory_problem(config).endswith("cannot be used: Permission denied")


def test_a_monitor_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = write(tmp_path / "ds.json", {"wandb": {"enabled": True}})
    with pytest.raises(Refused, match=r"ds\.json: .*wandb"):
        engine.settings(Config(deepspeed=str(file)))


def test_settings_are_merged_under_ours(tmp_path):
    file = write(tmp_path / "ds.json", {
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}})
    merged = engine.settings(Config(deepspeed=str(file)))
    assert merged["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert merged["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert merged["data_types"] == {"grad_accum_dtype": "fp32"}


def test_offload_and_csv_monitor(tmp_path):
    """Optimizer and parameters on the CPU, metrics to DeepSpeed's csv monitor,
    invariants checked."""
    settings = write(tmp_path / "ds.json", {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"},
                              "offload_param": {"device": "cpu"}},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv"),
                        "job_name": "small"}})
    path = tmp_path / "run"
    call(sys.executable, "selfplay.py", "--run_dir", path, *SMALL, "--deepspeed", settings,
         "--assert_invariants")
    logged = [row["reward"] for row in lines(path / "metrics.jsonl") if row["phase"] == "solver"]
    csv = (tmp_path / "csv/small/solver_reward.csv").read_text().split("\n")[1:]
    assert [float(row.split(",")[1]) for row in csv if row] == pytest.approx(logged)


# fp32 weights from phase to phase ----------------------------------------------------------------


def test_rounding_the_checkpoint_would_lose_most_of_a_phase(small_run):
    """At the paper's rate. The sum of 50 Adam steps is about 2.5e-5,
    half a bf16 step at 0.02 is 6.1e-5."""
    base = load_file(ROOT / "tiny/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    moved = base[name] + 2.5e-5 * torch.sign(
        torch.randn(base[name].shape, generator=torch.Generator().manual_seed(0)))
    lost = (moved.bfloat16() == base[name].bfloat16()).float().mean().item()
    assert 0.5 < lost < 1 and (moved != base[name]).float().mean() > 0.99
    trained = load_file(small_run / "iter1/solver/model.safetensors")[name]
    assert (trained != trained.bfloat16().float()).float().mean() > 0.9, (
        "the checkpoint keeps what bf16 would not")


# Memory ------------------------------------------------------------------------------------------


def test_the_forecast_adds_up_and_shrinks_with_ranks():
    config, shape = Config(), qwen_shape("1.5B")
    N = check.count_parameters(shape)
    assert N == 1_543_714_304
    one, eight = check.forecast(shape, config, 1), check.forecast(shape, config, 8)
    assert (one["Adam"] == 8 * N and eight["Adam"] == N
            and one["sampling copy"] == eight["sampling copy"] == 2 * N)
    # 28 layers, keys and values, 2 heads of 128, 2 bytes, 64 rows of 6144 positions
    assert one["KV cache"] == 28 * 2 * 2 * 128 * 2 * 64 * 6144
    # 100 million masters, and the embedding that comes last, three times in fp32
    assert one["Adam's step"] == 3 * 4 * (10**8 + 151_936 * 1536)
    assert one["peak"] == sum(list(one.values())[:7]) + max(
        one["KV cache"], one["gathered"] + one["activations"] + one["logits"], one["Adam's step"])


def test_the_forecast_takes_the_users_sizes(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000000, '
                                      '"sub_group_size": 2000000}}')
    shape, config = qwen_shape("0.5B"), Config(deepspeed=str(tmp_path / "ds.json"))
    found = check.forecast(shape, config, 1)
    assert found["bucket"] == 4 * 10**6 and found["Adam's step"] == 12 * (
        2 * 10**6 + shape.vocab_size * shape.hidden_size)


def test_the_forecast_takes_the_longest_answer_there_is():
    shape = qwen_shape("0.5B")
    of_verify = check.forecast(shape, Config(max_completion=512, max_verify=2048), 1)
    of_completion = check.forecast(shape, Config(max_completion=2048, max_verify=512), 1)
    assert of_verify["KV cache"] == of_completion["KV cache"]


def test_the_forecast_knows_architectures_that_name_less():
    shape = transformers.GPT2Config()
    found = check.forecast(shape, Config(), 1)
    assert found["KV cache"] == 12 * 2 * 768 * 2 * 64 * 6144
    shape.intermediate_size = 4 * 768
    assert found == check.forecast(shape, Config(), 1)


@pytest.mark.parametrize("bf16, fp32, dtype, said", [
    (3e-4, 2e-4, "bf16", "1.5 times as fast in fp32"), (2e-4, 3e-4, "bf16", None),
    (3e-4, 2e-4, "fp32", None)])
def test_bf16_where_a_cpu_is_slower_in_it(bf16, fp32, dtype, said, monkeypatch):
    seconds = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(check, "product_seconds", seconds.get)
    problem = check.dtype_problem(Config(dtype=dtype))
    assert (said in problem) if said else problem is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check.dtype_problem(Config(dtype=dtype)) is None


def test_a_product_takes_time():
    assert check.product_seconds(torch.float32) > 0


def test_check_prints_its_table_and_loads_no_weights(tmp_path):
    output = call(sys.executable, "selfplay.py", "--check", "--run_dir", tmp_path / "run")
    for part in ("peak", "EOS ids", "the scores 1 to 5 are the tokens", "disk", "survives"):
        assert part in output
    assert not (tmp_path / "run").exists()


def test_check_says_what_it_leaves_out_and_fetches_no_weights(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "ds.json", {"zero_optimization": {"offload_param": {"device": "cpu"}}})
    fetched = []
    monkeypatch.setattr(lms, "checkpoint_files", fetched.append)
    check.report(parse(["--deepspeed", str(file), "--run_dir", str(tmp_path / "run")])[0])
    assert "offloading" in capsys.readouterr().out and not fetched
    monkeypatch.setattr(lms, "snapshot_download", lambda name, allow_patterns, **more: (
        fetched.extend(allow_patterns) or tmp_path))
    monkeypatch.setattr(lms, "on_hub", lambda name: True)
    assert lms.read_generation("some/model") is None and fetched == ["*.json"]


@pytest.mark.parametrize("flags, says", [
    (["--max_prompt", 100], "--max_prompt is 100, and the longest prompt"),
    (["--max_verify", 9000], "positions, and --max_prompt and")])
def test_check_refuses_what_the_run_refuses(tmp_path, flags, says):
    """The Generator's prompts take 13 tokens, held-out ones up to 150."""
    for action in ([], ["--check"]):
        code, output = call(sys.executable, "selfplay.py", "--run_dir", tmp_path / "run", *SMALL,
                            *flags, *action, ok=False)
        assert code == 2 and says in output and output.count("\n") == 1


def test_explain_names_a_source_for_every_setting():
    output = call(sys.executable, "selfplay.py", "--explain")
    named = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    for field in dataclasses.fields(Config):
        assert re.search(r" (P|C|us)[,:;]? ?", named[field.name][51:]), field.name
    assert "[paper preset: 1e-06]" in named["solver_learning_rate"]


# Ablations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [
    ["--shared_weights", "--no_judge", "--no_grounding", "--band", "rectangular",
     "--order", "shuffled", "--generator_temperature", "0.7", "--obey_spec"],
    ["--freeze_generator", "--no_difficulty", "--no_cross_verification", "--strict_values",
     "--solver_temperature", "2"]])
def test_ablations_run(tmp_path, flags):
    path = tmp_path / "run"
    call(sys.executable, "selfplay.py", "--run_dir", path, *SHORT, *flags, "--assert_invariants")
    rows = lines(path / "metrics.jsonl")
    funnel = next(row["funnel"] for row in rows if row["phase"] == "curriculum")
    if "--freeze_generator" in flags:
        assert not (path / "iter1/generator").exists() and {row["phase"] for row in rows} == {
            "evaluation", "curriculum", "solver"}
        assert "not_verified" not in funnel
    else:
        assert "not_grounded" not in funnel
        rates = [row["pass_rate"] for row in lines(path / "iter1/curriculum.jsonl")]
        assert len(rates) > 2 and rates != sorted(rates, reverse=True)


# A user's own world ------------------------------------------------------------------------------


def test_own_tools_stand_in_every_task(tmp_path):
    path = tmp_path / "run"
    call(sys.executable, "selfplay.py", "--run_dir", path, *SHORT, "--tools", TOOLS,
         "--assert_invariants")
    config, _ = parse(["--tools", str(TOOLS), "--run_dir", str(tmp_path / "other")])
    own = set(map(canonical, config.own_tools))
    tasks = [row["task"] for row in lines(path / "iter1/pool.jsonl") if row["task"]]
    assert len(tasks) > 8 and all(set(map(canonical, task["tools"])) <= own for task in tasks)


@pytest.mark.parametrize("tools, says", [
    ([], "JSON list of tools"),
    ([{"description": "no name"}], "no name"),
    ([{"name": "f", "description": "Does things.", "parameters": {"x": {"type": "object"}}}],
     "tool 'f': parameter 'x': type not primitive"),
    ([{"name": "f", "description": "Does things."}] * 2, "names repeat")])
def test_bad_tools_are_refused_by_name(tmp_path, tools, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--tools", str(write(tmp_path / "t.json", tools)),
                        "--run_dir", str(tmp_path)])
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_a_shape_that_is_no_causal_language_model_is_refused():
    with pytest.raises(ValueError, match="a model of type t5 cannot be built"):
        check.count_parameters(transformers.T5Config())


def test_a_model_that_is_too_large_is_not_called_a_strange_one(monkeypatch):
    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(lms.AutoModelForCausalLM, "from_config", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        lms.from_config(transformers.LlamaConfig())


def test_the_longest_domain_counts_in_the_longest_prompt():
    longest = generator.longest_prompt(len, ["x" * 5000])[1]["content"]
    assert len(longest) > 5000


def test_the_longest_tools_are_those_of_most_tokens(tmp_path):
    """Eight of fewer letters may be longer; no prompt is longer than what was checked."""
    words = [{"name": f"w{n}", "description": "weather report " * 40, "parameters": {}}
             for n in range(8)]
    digits = [{"name": f"d{n}", "description": "open the door", "parameters": {"x": {
        "type": "integer", "description": "code", "enum": list(range(10000, 10070))}}}
        for n in range(8)]
    config, _ = parse(["--tools", str(write(tmp_path / "tools.json", words + digits)),
                       "--max_prompt", "20000", "--run_dir", str(tmp_path / "run")])
    tokenizer = lms.load_tokenizer(tiny.PATH)
    longest = generator.longest_prompt(lambda text: len(tokenizer.encode(text)), (),
                                       config.own_tools)
    rng, most = random.Random(0), len(lms.encode_chat(tokenizer, longest))
    for _ in range(100):
        spec = generator.sample_spec(rng, {generator.OWN_DOMAIN: 1.0}, config.own_tools)
        assert len(lms.encode_chat(tokenizer, generator.prompt(spec))) <= most


def test_domains_come_from_a_file(tmp_path):
    file = write(tmp_path / "domains.json", {"travel": 3, "finance": 1})
    config, _ = parse(["--domains", str(file), "--run_dir", str(tmp_path / "run")])
    assert config.domain_weights == {"travel": 3.0, "finance": 1.0}
    for bad in ({"travel": -1}, {"travel": 0}, ["travel"], {"travel": "much"}, {"travel": 1e10},
                {"\ud800": 1}, {"travel\nby night": 1}):
        with pytest.raises(SystemExit):
            parse(["--domains", str(write(file, bad)), "--run_dir", str(tmp_path / "run")])


def test_a_changed_file_of_settings_is_noticed(tmp_path):
    file = write(tmp_path / "domains.json", {"travel": 3, "finance": 1})
    config, _ = parse(["--domains", str(file), "--run_dir", str(tmp_path / "run")])
    write_json(config.path / "config.json", record(config))
    again, _ = parse(["--domains", str(file), "--run_dir", str(tmp_path / "run")])
    assert again == config
    write(file, {"travel": 1})
    changed = Config(**dataclasses.asdict(config))
    assert "the file of --domains has changed" in directory_problem(changed)
    fewer = dataclasses.replace(config, iterations=2)
    assert "--iterations was 3 and is 2" in directory_problem(fewer)
    write_json(config.path / "config.json", record(config) | {"script": "mine.py"})
    assert "the script was mine.py and is " in directory_problem(config)
    other = ["--seed", "5", "--run_dir", str(tmp_path / "run")]
    assert parse([*other, "--explain"])[1] == "explain"      # it changes nothing there
    with pytest.raises(SystemExit):
        parse(other)


def test_specs_draw_from_own_tools():
    config, _ = parse(["--tools", str(TOOLS), "--run_dir", "runs/nowhere"])
    assert config.domain_weights == {generator.OWN_DOMAIN: 1.0}
    rng = random.Random(0)
    sizes = [generator.sample_spec(rng, config.domain_weights, config.own_tools).tools
             for _ in range(200)]
    assert set(sizes) == {2, 3, 4}
