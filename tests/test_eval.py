"""Scoring, statistics, and what eval.py's command line does."""
import json
import random
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

import conftest
import eval as evaluation
import fixtures
import model as lms
import tiny
import verify
from benchmarks import gold, loaders, results, score
from fixtures import call

ROOT = tiny.PATH.parent
QUICK = ["--max_completion", "96", "--limit", "12"]


def solve(tasks):
    """The embedded model's greedy answers."""
    lm = evaluation.load_model("tiny", "cpu")
    return evaluation.solve(lm, [evaluation.encode(lm, task) for task in tasks], 96, 40)


def text(calls):
    return f"<tool_call_answer>{json.dumps(calls)}</tool_call_answer>"


def error_of(answer, gold, **options):
    return score.error_of(*score.read(answer), gold, **options)


# Equality


def equal(a, b):
    """Are two calls equal where others wrote the gold?"""
    return score.error_of(verify.Calls([a]), None, [b], loosened=True) is None


@pytest.mark.parametrize("predicted, wanted, same", [
    (5, "5.0", True), ("05", 5, False), ("five", 5, False), ("a  b ", "a b", True),
    ("Oslo", "oslo", False),
    (True, "true", True), ("False", False, True), (True, 1, False), ([1, "2"], ["1", 2], True),
    ([1, 2], [2, 1], False), ("2026-01-02", "2 January 2026", False),
    # evaluation only
    (["a", True], "['a', True]", True), (["a", True], '["a", true]', True),
    ('["a"]', "['a']", True),
    ("['a']", ["a"], True), ({"k": [1]}, "{'k': ['1']}", True), ({"k": "[1]"}, {"k": [1]}, True),
    (["\\d"], r"['\d']", True), (["b"], "['a']", False), ([1], "(1,)", False),
    ("[a]", "[b]", False), (None, "", False),
    ("", None, False), ([], "[]", True), ([], {}, False), (1, [1], False)])
def test_which_values_are_equal_where_others_wrote_the_gold(predicted, wanted, same):
    for a, b in ((predicted, wanted), (wanted, predicted)):
        assert equal(call("f", x=a), call("f", x=b)) is same


def test_null_and_absent_are_equal_where_others_wrote_the_gold_only():
    null, absent = call("f", x=1, y=None), call("f", x=1)
    assert equal(null, absent) and equal(absent, null)
    assert error_of(text([null]), [absent]) == ("structural", "extra argument")
    assert error_of(text([absent]), [null]) == ("structural", "missing argument")
    assert error_of(text([call("f", x=["a"])]), [call("f", x="['a']")]) is not None


def test_the_tiny_set_is_scored_as_strictly_as_a_run(tmp_path):
    row = loaders.load("tiny", tmp_path, 1)[0]
    null = [gold | {"arguments": gold["arguments"] | {"spare": None}} for gold in row.task.answer]
    assert score.judge(row, text(row.task.answer)).error is None
    assert score.judge(row, text(null)).error == ("structural", "extra argument")
    other = loaders.load("toolalpaca", fixtures.write_all(tmp_path / "data"))[0]
    null = [gold | {"arguments": gold["arguments"] | {"spare": None}} for gold in other.task.answer]
    assert score.judge(other, text(null)).error is None


@pytest.mark.parametrize("literal", [
    "[" * 10_000 + "]" * 10_000, "[" + "-" * 15_000 + "1]", "[" + "1+" * 8_000 + "1j]", "[1e999]",
    "[b'a']", "{1}",
    "{[]: 1}", "{1: 2}", "[f'a']", "[__import__('os')]", "[\0]", "[" + "9" * 5_000 + "]",
    "[" + "1," * 15_000 + "]",
    "[" * 40 + "]" * 40, "[('a', 1)]", "]", "["])
def test_what_is_no_literal(literal):
    assert gold.read_literal(literal) is None


@given(st.text() | st.text("[]{}'\"\\:, 1-a").map(lambda inside: f"[{inside}]"))
def test_any_string_may_be_compared(string):
    assert equal(call("f", x=string), call("f", x=string))


# One answer


F, G = call("f", x=1, y="a"), call("g")


def test_a_null_argument_is_missing_where_others_wrote_the_gold():
    null = text([call("f", x=1, y=None)])
    assert error_of(null, [F], loosened=True) == ("structural", "missing argument")
    assert error_of(null, [F]) == ("semantic", "wrong value")


@pytest.mark.parametrize("answer, wanted, error", [
    (text([F, G]), [G, F], None), (text([]), [], None), ("", [], None),
    ("<think>Hm.</think>", [F], ("format", "no block")), ("<think>Hm.</think> No.", [], None),
    ("<think>Hm", [], ("format", "block not closed")),
    ("<tool_call_answer>[", [F], ("format", "block not closed")),
    ("<tool_call_answer>f(x=1)</tool_call_answer>", [F], ("format", "unparsable")),
    (text([F, 7]), [F], ("structural", "malformed call")),
    (text([]), [F], ("structural", "missing call")),
    (text([F]), [F, F], ("structural", "missing call")),
    (text([F, F]), [F], ("structural", "extra call")),
    (text([F, G]), [F], ("structural", "extra call")),
    (text([G]), [F], ("structural", "wrong name")),
    (text([call("f", x=1)]), [F], ("structural", "missing argument")),
    (text([call("f", x=1, y="a", z=2)]), [F], ("structural", "extra argument")),
    (text([call("f", x=1, z="a")]), [F], ("structural", "missing argument")),
    (text([F, call("f", x=1)]), [call("f", x=2), call("f", y=3)], ("structural", "extra argument")),
    (text([call("f", x=2, y="a"), G]), [G, F], ("semantic", "wrong value"))])
def test_every_wrong_answer_has_its_class_and_kind(answer, wanted, error):
    assert error_of(answer, wanted) == error_of(answer, wanted, loosened=True) == error
    assert score.error_class(answer, wanted) == (error and error[0])
    assert error is None or error[1] in score.KINDS[error[0]]


@pytest.mark.parametrize("name, yes", [
    ("access_key", True), ("appid", True), ("api_key", True), ("x-apikey", True),
    ("authToken", True),
    ("password", True), ("key", False), ("id", False), ("user_id", False), ("tokens", False),
    ("apikey_type", False)])
def test_names_of_credentials(name, yes):
    assert score.is_credential(name) is yes


def test_unknowable_credentials(tmp_path):
    row = loaders.load("toolalpaca", fixtures.write_all(tmp_path / "data"))[1]
    assert score.unknowable(row.task) == {("rates", "access_key")}
    for calls, strict, loose in (
            ([call("rates", access_key="K-123", base="EUR")], True, True),
            ([call("rates", access_key="mine", base="EUR")], False, True),
            ([call("rates", base="EUR")], False, True),
            ([call("rates", access_key="mine", base="USD")], False, False),
            ([call("rates", base="EUR"), call("rates", base="EUR")], False, False)):
        verdict = score.judge(row, text(calls))
        assert (verdict.error is None, verdict.loose_error is None) == (strict, loose)
    row.task.question = "With K-123, rates for EUR?"
    assert score.judge(row, text([call("rates", base="EUR")])).loose_error is not None


# Many answers


def test_statistics_by_hand():
    assert score.wilson(0, 10) == pytest.approx((0, 0, 0.27753), abs=1e-5)
    assert score.wilson(10, 10) == pytest.approx((1, 0.72247, 1), abs=1e-5)
    assert score.wilson(54, 114) == pytest.approx((0.473684, 0.384388, 0.564696), abs=1e-5)
    mean = score.unweighted_mean([(0.5, 0.4, 0.7), (0.3, 0.1, 0.4)])
    assert mean == pytest.approx((0.4, 0.288197, 0.511803), abs=1e-6)
    assert score.paired_difference(9, 1, 20) == pytest.approx((0.4, 0.110225, 0.617047), abs=1e-5)
    assert score.mcnemar(0, 0) == 1 and score.mcnemar(5, 5) == 1 and score.mcnemar(0, 6) == 2 / 64
    assert 0 <= score.mcnemar(900, 1300) < 1e-15


def test_overlaps_of_eight_words_or_of_all_words_of_a_short_question():
    task = verify.Task("Please tell me: what is the weather in Rome today?", [], [])
    short = verify.Task("What is the weather?", [], [])
    rows = [loaders.Row("r0", task), loaders.Row("r1", short)]
    questions = ["And tell me what IS the weather, in Rome!",
                 "what is the weather in rome on Sunday, tell me",
                 "What is the weather?"]
    assert score.overlaps(questions, rows) == [
        (questions[0], "tell me what is the weather in rome", ["r0"]),
        (questions[2], "what is the weather", ["r1"])]
    assert score.ngrams("...") == []


def test_the_papers_five_are_averaged(tmp_path):
    """Means by hand: API-Bank is the mean of its levels, and the total the mean of five."""
    data, verdicts = fixtures.write_all(tmp_path / "data"), {}
    for name in ("toolalpaca", "sealtools", "nexusraven", "apibank_l1", "apibank_l2", "snips"):
        rows = loaders.load(name, data)
        right = {"toolalpaca": 1, "apibank_l1": 1, "snips": 7}.get(name, len(rows))
        verdicts[name] = [score.judge(row, text(row.task.answer) if i < right else "")
                          for i, row in enumerate(rows)]
    lines = results.summary_lines(verdicts)
    assert lines[0].startswith("apibank, mean of its two levels: 75.0 %")
    # (33.3 + 100 + 100 + 75 + 50) / 5
    assert lines[1].startswith("unweighted mean of the paper's five: 71.7 %")
    ours = next(line for line in lines if line.startswith("this model")).split()
    assert ours[2:] == ["33.33", "100.00", "100.00", "75.00", "50.00", "71.67"]
    assert sum(line.startswith("the paper's: ") for line in lines) == 8
    table = {line[:45].strip(): line[45:].split() for line in lines}
    assert table["no block"] == ["2", "0", "0", "1", "0", "7"]


# The command line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Fixtures, with a broken row and an over-long one in the first file."""
    folder = fixtures.write_all(tmp_path_factory.mktemp("data") / "data")
    long = fixtures.TOOLALPACA[0] | {"query": "word " * 4000}
    rows = [*fixtures.TOOLALPACA, {"query": 1}, long]
    (folder / "hammer/toolalpaca.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """Result files of a run in one process."""
    folder = tmp_path_factory.mktemp("out") / "a"
    output = conftest.call(sys.executable, "eval.py", "--benchmarks", "tiny,toolalpaca,apibank",
                           "--data", data, "--out", folder, "--rows", 4, *QUICK)
    (folder / "output.txt").write_text(output)
    return folder


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_result_files(out, data):
    names = {path.stem for path in out.glob("*.jsonl")}
    assert names == {"tiny", "toolalpaca", "apibank_l1", "apibank_l2"}
    rows, loaded = read(out / "toolalpaca.jsonl"), loaders.load("toolalpaca", data)
    assert [row["id"] for row in rows] == [row.id for row in loaded] and len(rows) == 5
    assert [row["kind"] for row in rows[3:]] == ["broken row", "prompt too long"]
    assert [row["text"] for row in rows[3:]] == [None, None]
    assert all(row["verdict"] == "wrong" for row in rows)
    rows, loaded = read(out / "tiny.jsonl"), loaders.load("tiny", data, 12)
    assert len({row["task_hash"] for row in rows}) == 12
    for row, source in zip(rows, loaded):
        assert row["error"] == score.error_class(row["text"], source.task.answer)
        assert (row["verdict"] == "right") == (row["error"] is None)
    # Each answer stands beside its own question; other batches may round a few differently.
    answers = solve([source.task for source in loaded])
    assert sum(answer == row["text"] for answer, row in zip(answers, rows)) >= 10
    output = (out / "output.txt").read_text()
    assert "counted as wrong, broken row: 1 rows: toolalpaca_3" in output
    assert "counted as wrong, prompt too long: 1 rows: toolalpaca_4" in output
    right = sum(row["verdict"] == "right" for row in rows)
    assert f"tiny: {100 * right / 12:.1f} % of 12 right" in output


def test_scoring_again_needs_no_model(out, tmp_path, capsys):
    evaluation.main(["--score", str(out)])
    again = capsys.readouterr().out
    assert all(line in (out / "output.txt").read_text() for line in again.splitlines())
    shutil.copytree(out, tmp_path / "b")
    rows, loaded = read(out / "toolalpaca.jsonl"), loaders.load("toolalpaca", json.loads(
        (out / "settings.json").read_text())["data"])
    for row, source in zip(rows[:3], loaded):
        row["text"] = text(source.task.answer)
    fixtures.write_lines(tmp_path / "b/toolalpaca.jsonl", rows)
    evaluation.main(["--score", str(tmp_path / "b")])
    assert "toolalpaca: 60.0 % of 5 right" in capsys.readouterr().out
    verdicts = [line["verdict"] for line in read(tmp_path / "b/toolalpaca.jsonl")]
    assert verdicts.count("right") == 3      # --compare reads what --score has said last
    rows[0]["task_hash"] = "0"
    fixtures.write_lines(tmp_path / "b/toolalpaca.jsonl", rows)
    message = refused(["--score", str(tmp_path / "b")], capsys)
    assert "no answer to toolalpaca_0 as it is asked now" in message
    fixtures.write_lines(tmp_path / "b/toolalpaca.jsonl", rows[1:])
    assert "no answer to toolalpaca_0" in refused(["--score", str(tmp_path / "b")], capsys)


def test_a_directory_holds_answers_of_one_setting(out, data, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "b")
    again = ["--benchmarks", "tiny", "--data", str(data), "--out", str(tmp_path / "b"),
             "--max_completion", "96", "--limit", "3"]
    message = refused(again, capsys)
    assert "b/settings.json is of a run with other settings (limit)" in message
    assert (tmp_path / "b/settings.json").read_text() == (out / "settings.json").read_text()


@pytest.mark.parametrize("flags, dtype", [([], torch.bfloat16), (["--fp32"], torch.float32)])
def test_what_an_evaluation_computes_in(flags, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "answer", lambda lm, name, rows, args: (
        seen.append(lm.model.dtype) or [None] * len(rows)))
    seen = []
    evaluation.main(["--limit", "1", *flags, "--out", str(tmp_path)])
    assert seen == [dtype]
    assert json.loads((tmp_path / "settings.json").read_text())["fp32"] == bool(flags)


def test_a_directory_holds_answers_of_one_model(tmp_path, capsys):
    model = shutil.copytree(tiny.PATH, tmp_path / "model")
    again = ["--model", str(model), "--limit", "1", "--max_completion", "2",
             "--out", str(tmp_path / "out")]
    evaluation.main(again)
    evaluation.main(again)
    weights = load_file(model / "model.safetensors")
    name = max(weights)
    weights[name] = weights[name] * 1.1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert "of a run with other settings (weights)" in refused(again, capsys)


def test_what_is_decoded_together_does_not_depend_on_the_ranks(monkeypatch):
    """Of each slice the sampler takes `rows` prompts at a time, by length."""
    rng, chunks = random.Random(0), {}
    prompts = [[n] * rng.randint(1, 50) for n in range(23)]

    def sample(lm, some, *_):
        ordered = sorted(some, key=len)
        chunks[world] += [ordered[i:i + 4] for i in range(0, len(ordered), 4)]
        return [[SimpleNamespace(text=str(ids[0]))] for ids in some]

    monkeypatch.setattr(lms, "sample", sample)
    monkeypatch.setattr(lms, "rank_and_world", lambda: (0, world))
    for world in (1, 2, 3):
        chunks[world] = []
        assert evaluation.solve(None, prompts, 9, 4) == [str(n) for n in range(23)]
    assert sorted(chunks[1]) == sorted(chunks[2]) == sorted(chunks[3])


def test_two_ranks_give_the_same_predictions(out, data, tmp_path):
    """The launcher tells each rank its number also as an argument."""
    outputs = conftest.call_ranks(2, sys.executable, "eval.py", "--local_rank", 0, "--benchmarks",
                                  "tiny,toolalpaca", "--data", data, "--out", tmp_path / "b",
                                  "--rows", 4, *QUICK)
    for name in ("tiny", "toolalpaca"):
        assert read(tmp_path / f"b/{name}.jsonl") == read(out / f"{name}.jsonl")
    assert "".join(outputs).count("% of 12 right") == 1


def test_compare(tmp_path, capsys):
    right = {"a": "1110000000", "b": "0111111110"}
    for name, verdicts in right.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text('{"native": null}')
        fixtures.write_lines(tmp_path / name / "snips.jsonl", [
            {"id": f"r{i}", "task_hash": str(i), "text": "",
             "verdict": "right" if v == "1" else "wrong"}
            for i, v in enumerate(verdicts)] + [{"id": name, "task_hash": "", "text": "",
                                                 "verdict": "right"}])
    evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("snips: A 30.0 %, B 80.0 % of 10; B - A +50.0 points (95 %: +1.9..+81.4); "
                        "exact McNemar p = 0.125")
    assert lines[1] == "    only A right, 1 rows: r0"
    assert lines[2].startswith("    only B right, 6 rows: r3, r4")
    assert lines[3] == "    2 rows stand in one of the two only: left out"
    (tmp_path / "a/tiny.jsonl").write_bytes((tmp_path / "a/snips.jsonl").read_bytes())
    evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert capsys.readouterr().out.splitlines() == [
        *lines, "sets of one of the two only, left out: tiny"]
    fixtures.write_lines(tmp_path / "b/snips.jsonl",
                         [{"id": "r0", "task_hash": "9", "text": "", "verdict": "right"}])
    message = refused(["--compare", str(tmp_path / "a"), str(tmp_path / "b")], capsys)
    assert "not asked the same: r0" in message
    for line, says in (({"id": "r0", "task_hash": "0", "gold_hash": "9", "text": "",
                         "verdict": "right"}, "--score both again"),
                       ({"id": "s0", "task_hash": "9", "text": "", "verdict": "right"},
                        "not asked the same"), ({"id": "r0"}, "line 1: not a line that --out has")):
        fixtures.write_lines(tmp_path / "b/snips.jsonl", [line])
        assert says in refused(["--compare", str(tmp_path / "a"), str(tmp_path / "b")], capsys)
    (tmp_path / "b/snips.jsonl").unlink()
    assert "holds no <set>.jsonl" in refused(["--score", str(tmp_path / "b")], capsys)


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "load_model", interrupted)
    with pytest.raises(SystemExit) as stopped:
        evaluation.main(["--benchmarks", "tiny"])
    assert stopped.value.code == 130 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("text", [
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    '```json\n[{"name": "f", "arguments": {"x": 1}}]\n```',
    '<think>x</think>\n[{"name": "f", "arguments": {}}]'])
def test_a_call_in_another_spelling_has_not_declined(text):
    row = loaders.Row("r", verify.Task("Which one?", [], []))
    assert score.judge(row, text).error == ("format", "unparsable")
    assert score.judge(row, "None of these arguments fit.").error is None


@pytest.fixture
def run_dir(tmp_path):
    """A run with one iteration: the base as its Solver, held-out tasks as its curriculum."""
    tasks = tiny.heldout(6)
    (tmp_path / "run/iter1").mkdir(parents=True)
    shutil.copytree(tiny.PATH, tmp_path / "run/iter1/solver")
    lines = "".join(json.dumps(asdict(task)) + "\n" for task in tasks)
    (tmp_path / "run/iter1/curriculum.jsonl").write_text(lines)
    config = {"model": "tiny", "dtype": "bf16", "max_verify": 96, "sample_rows": 8}
    (tmp_path / "run/config.json").write_text(json.dumps({"config": config}))
    return tmp_path / "run"


def test_a_copied_folder_of_an_iteration_is_no_iteration(run_dir):
    shutil.copytree(run_dir / "iter1", run_dir / "iter1_old")
    assert list(loaders.curricula(run_dir)) == [1]


def test_overlap(run_dir, data, capsys):
    evaluation.main(["--overlap", str(run_dir), "--benchmarks", "tiny,toolalpaca",
                     "--data", str(data)])
    output = capsys.readouterr().out
    assert "tiny: 6 of 6 training questions share 8 words in a row, or" in output
    assert "toolalpaca: 0 of 6" in output and repr(tiny.heldout(1)[0].question) in output


@pytest.mark.parametrize("error, says", [
    (torch.OutOfMemoryError("CUDA out of memory."), "memory.: give a smaller --rows"),
    (lms.NonFinite("a sampled log-probability", []), "a sampled log-probability is not finite")])
def test_what_one_rank_alone_meets_it_says(monkeypatch, capsys, error, says):
    def fail(args):
        raise error

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(evaluation, "evaluate", fail)
    with pytest.raises(SystemExit) as stop:
        evaluation.main([])
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_cross_play(run_dir, capsys):
    evaluation.main(["--cross_play", str(run_dir)])
    base, trained = json.loads((run_dir / "cross_play.json").read_text())
    tasks = tiny.heldout(6)
    right = sum(error_of(answer, task.answer) is None
                for task, answer in zip(tasks, solve(tasks)))
    assert base == {"solver": 0, "curriculum": 1, "right": right, "tasks": 6, "success": right / 6}
    assert trained == base | {"solver": 1}
    assert f"Solver 1 on curriculum 1: {right} of 6 right" in capsys.readouterr().out


def test_ask(tmp_path, capsys):
    tasks = tiny.heldout(40)
    task = next(task for task, answer in zip(tasks, solve(tasks))
                if error_of(answer, task.answer) is None)
    schemas = [{"type": "object", "properties": tool["parameters"], "required": tool["required"]}
               for tool in task.tools]
    openai = [{"type": "function", "function": {
        "name": tool["name"], "description": tool["description"], "parameters": schema}}
        for tool, schema in zip(task.tools, schemas)]
    (tmp_path / "tools.json").write_text(json.dumps(openai), encoding="utf-8-sig")
    evaluation.main(["--tools", str(tmp_path / "tools.json"), "--ask", task.question,
                     "--max_completion", "96"])
    output = capsys.readouterr().out
    assert all(json.dumps(call) in output for call in task.answer)
    assert "tool_call_answer" not in output
    (tmp_path / "tools.json").write_text('[{"description": "nameless"}]')
    assert "tools.json: tool 0: it has no name" in refused(
        ["--tools", str(tmp_path / "tools.json"), "--ask", "x"], capsys)


TOOLS = ["--tools", str(ROOT / "example_tools.json"), "--max_completion", "96"]


@pytest.fixture
def says(monkeypatch):
    """Makes the model say given texts, one for each question."""
    def speak(*texts):
        monkeypatch.setattr(evaluation, "load_model",
                            lambda *args: lms.LM(None, None, ()))
        monkeypatch.setattr(evaluation, "answer", lambda lm, label, rows, args: texts)
    return speak


def test_several_questions_from_the_command_line_and_a_file(tmp_path, capsys):
    (tmp_path / "questions.txt").write_text("Find a movie in \u00c5s.\n\n  Stop.  \r\n",
                                            encoding="utf-8-sig")
    arguments = [*TOOLS, "--json", "--ask", "@1", "--ask", "Two?"]
    evaluation.main([*arguments, "--questions", str(tmp_path / "questions.txt")])
    from_file = capsys.readouterr().out
    assert [json.loads(line)["question"] for line in from_file.splitlines()] == [
        "@1", "Two?", "Find a movie in \u00c5s.", "Stop."]
    assert "\u00c5s." in from_file


RIGHT = call("check_hotel", reference="\u00c5-1", day="S\u00e3o")
ANSWERS = [   # what the model says; thought, calls, and problems as --json gives them
    ("<think>Check it.</think>" + text([RIGHT]), "Check it.", [RIGHT], []),
    (text([call("fly"), RIGHT, call("check_hotel", reference="A")]), None,
     [call("fly"), RIGHT, call("check_hotel", reference="A")],
     ["call 1: unknown tool", "call 3: required missing"]),
    (text([RIGHT, 7]), None, [RIGHT], ["elements that are no calls: 1"]),
    (text([]), None, [], ["no call"]),
    ("<think>Hm.</think>I cannot.", "Hm.", None, ["no calls can be read: no block"]),
    ("<tool_call_answer>[", None, None, ["no calls can be read: block not closed"]),
    (None, None, None, ["no calls can be read: prompt too long"])]


def test_answers_as_json_say_what_is_wrong_with_them(says, capsys):
    says(*[answer for answer, *_ in ANSWERS])
    evaluation.main([*TOOLS, "--json", *["--ask", "Q"] * len(ANSWERS)])
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert rows == [{"question": "Q", "thinking": thought, "calls": calls, "problems": problems}
                    for _, thought, calls, problems in ANSWERS]


def test_answers_for_people_say_it_beneath_the_calls(says, capsys):
    says(ANSWERS[1][0])
    evaluation.main([*TOOLS, "--ask", "Q"])
    assert capsys.readouterr().out.splitlines() == [
        "", "> Q", "(no reasoning)", '{"name": "fly", "arguments": {}}',
        '{"name": "check_hotel", "arguments": {"reference": "\u00c5-1", "day": "S\u00e3o"}}',
        '{"name": "check_hotel", "arguments": {"reference": "A"}}',
        "  ! call 1: unknown tool", "  ! call 3: required missing"]
    says(ANSWERS[0][0], ANSWERS[4][0])
    evaluation.main([*TOOLS, "--ask", "Q", "--ask", "R"])
    assert capsys.readouterr().out.splitlines() == [
        "", "> Q", "Check it.",
        '{"name": "check_hotel", "arguments": {"reference": "\u00c5-1", "day": "S\u00e3o"}}',
        "", "> R", "<think>Hm.</think>I cannot.", "  ! no calls can be read: no block"]


def refused(arguments, capsys):
    """The one line that a bad command prints."""
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    return message


@pytest.mark.parametrize("arguments, named", [
    (["--benchmarks", "tiny,chess"], "chess"),
    (["--benchmarks", "snips", "--data", "/nowhere"], "/nowhere/snips"),
    (["--limit", "0"], "--limit"), (["--rows", "many"], "many"), (["--nonsense"], "--nonsense"),
    (["--model", "/nowhere"], "/nowhere"), (["--score", "/nowhere"], "/nowhere"),
    (["--ask", "x"], "--tools"), (["--tools", "x"], "--ask"), (["--json"], "--json"),
    ([*TOOLS, "--questions", "/nowhere"], "/nowhere"),
    (["--compare", "/nowhere", "/nowhere"], "/nowhere"), (["--overlap", "/nowhere"], "/nowhere"),
    (["--cross_play", "/nowhere"], "/nowhere"), (["--tools", "/nowhere", "--ask", "x"], "/nowhere"),
    ([*TOOLS, "--questions", "/dev/null"], "no question"),
    ([*TOOLS, "--ask", "Go to \udcff"], "surrogates"), ([*TOOLS, "--ask", " "], "no question"),
    ([*TOOLS, "--ask", "x", "--out", "r"], "other modes"),
    ([*TOOLS, "--ask", "x", "--score", "r"], "other modes"),
    (["--max_completion", "5000"], "5000"), (["--out", "/dev/null/x"], "/dev/null")])
def test_bad_input_is_one_line(arguments, named, capsys):
    assert named in refused(arguments, capsys)
