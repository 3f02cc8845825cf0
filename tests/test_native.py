"""A model under its own tool-calling convention: what its template shows, which reader fits, what
each reads from right and damaged answers, and what an evaluation makes of it."""
import json
import random
import shutil
from types import SimpleNamespace

import pytest
from test_families import QWEN, llama_tokenizer

import eval as evaluation
import model as lms
import native
import serving
import solver
import tiny
from benchmarks import loaders, score
from cli import Refused
from conftest import lines
from fixtures import call, write_lines
from verify import Calls, Task

# Written in the manner of Llama 3.2's: tools before the question, one call a turn.
LLAMA = """\
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{%- if messages[0].role == "system" %}
    {{- messages[0].content }}{% set messages = messages[1:] %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception("one call") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}" }}
    {%- else %}
        {%- if tools is not none and loop.first %}
            {{- 'Answer with {"name": tool, "parameters": values}.\\n\\n' }}
            {%- for tool in tools %}{{ tool | tojson(indent=4) + "\\n\\n" }}{% endfor %}
        {%- endif %}
        {{- message.content }}
    {%- endif %}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
# Others, around one way to show the tools and one to write a call.
OTHER = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}
    {{- "<|" + message.role + "|>" + message.content }}
    {%- for call in message.tool_calls or [] %}CALL{% endfor %}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|assistant|>" }}{% endif %}
"""
JSON_CALL = '{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}'
MISTRAL = OTHER.replace("CALL", "[TOOL_CALLS] [" + JSON_CALL + "]")
QWEN_CODER = OTHER.replace("CALL", "<tool_call>\n<function={{ call.function.name }}>\n<parameter="
                           "velvet>\nmeridian\n</parameter>\n</function>\n</tool_call>")
HERMES = OTHER.replace("CALL", "<tool_call>" + JSON_CALL + "</tool_call>")
TASK = Task("Go to Oslo, twice.", [
    {"name": "go", "description": "Goes.", "parameters": {
        "to": {"type": "string"}, "n": {"type": "int"},
        "by": {"type": "list", "items": {"type": "dict", "properties": {"type": {"type": "str"}}}}},
     "required": ["to"]},
    {"name": "now", "description": "", "parameters": {}, "required": []}], [])


def with_template(template):
    made = llama_tokenizer()
    made.chat_template = template
    return made


@pytest.fixture
def qwen():
    if not QWEN.exists():
        pytest.skip("the development data is not here")
    return lms.load_tokenizer(QWEN)


# ---------------------------------------------------------------------------------------------
# Asking


def test_the_menu_is_told_in_openais_format_with_json_schemas_types():
    assert native.functions(TASK.tools) == [
        {"type": "function", "function": {"name": "go", "description": "Goes.", "parameters": {
            "type": "object", "required": ["to"], "properties": {
                "to": {"type": "string"}, "n": {"type": "integer"},
                "by": {"type": "array", "items": {"type": "object", "properties": {
                    "type": {"type": "string"}}}}}}}},
        {"type": "function", "function": {"name": "now", "description": "", "parameters": {
            "type": "object", "required": [], "properties": {}}}}]


def test_qwen_is_asked_in_its_own_words_alone(qwen):
    text = qwen.decode(native.encode(lms.LM(None, qwen, ()), TASK))
    assert text.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert "# Tools" in text and '{"type": "function", "function": {"name": "go"' in text
    assert text.endswith("<|im_end|>\n<|im_start|>user\nGo to Oslo, twice.<|im_end|>\n"
                         "<|im_start|>assistant\n")
    assert solver.SYSTEM not in text and "available_tools" not in text


def test_a_checkpoint_of_ours_is_asked_as_in_training():
    base = lms.load_tokenizer(tiny.PATH)
    served = lms.LM(None, serving.drop_in(base, [base.eos_token_id]), ())
    for task in tiny.heldout(20):
        assert native.encode(served, task) == evaluation.encode(lms.LM(None, base, ()), task)


def test_a_template_that_fails_on_the_tools_of_a_row_is_one_line():
    made = with_template("{% if tools %}{{ raise_exception('no\nlists') }}{% endif %}")
    with pytest.raises(Refused, match="fails on the tools of 'Go to Oslo, twice.': no lists$"):
        native.encode(lms.LM(None, made, ()), TASK)


def test_a_broken_row_is_not_asked(monkeypatch):
    """Its menu is empty, and a template may fail on that."""
    asked = []
    monkeypatch.setattr(native, "encode", lambda lm, task: asked.append(task) or [1])
    monkeypatch.setattr(evaluation, "solve", lambda lm, prompts, *_: ["text"] * len(prompts))
    rows = [loaders.Row("0", problem="no gold"), loaders.Row("1", TASK)]
    lm = lms.LM(SimpleNamespace(config=SimpleNamespace()), None, ())
    args = SimpleNamespace(native=True, max_completion=8, rows=4)
    assert evaluation.answer(lm, None, rows, args) == [None, "text"] and asked == [TASK]


# ---------------------------------------------------------------------------------------------
# Which reader


def test_qwens_calls_are_hermes(qwen):
    assert native.convention(qwen, "auto") == {"native": "hermes"}


@pytest.mark.parametrize("template, name", [
    (LLAMA, "llama"), (HERMES, "hermes"), (HERMES.replace("<|assistant|>", "<|assistant|><think>"),
                                           "hermes"),
    ({"default": "{{ messages[0].content }}", "tool_use": HERMES}, "hermes")])
def test_the_reader_is_chosen_by_how_the_template_writes_a_call(template, name):
    assert native.convention(with_template(template), "auto") == {"native": name}


@pytest.mark.parametrize("template", [LLAMA, HERMES, OTHER])
def test_our_checkpoints_are_read_by_their_response_template(template):
    served = serving.drop_in(with_template(template), [261])
    assert native.convention(served, "auto") == {
        "native": "response", "response_template": served.response_template}


def test_a_reader_can_be_named():
    assert native.convention(with_template(LLAMA), "hermes") == {"native": "hermes"}
    assert native.convention(with_template(MISTRAL), "llama") == {"native": "llama"}
    assert native.convention(with_template("no tools here"), None) == {}


@pytest.mark.parametrize("template, name, says", [
    (OTHER.replace("tools or []", "[]"), "auto", "leaves tools out"),
    (OTHER.replace("tools or []", "[]"), "hermes", "leaves tools out"),
    ("{% if tools %}{{ raise_exception('none') }}{% endif %}", "auto", "leaves tools out"),
    (MISTRAL, "auto", "--native hermes or llama"), (QWEN_CODER, "auto", "--native hermes or llama"),
    (OTHER, "auto", "--native hermes or llama"), (LLAMA, "response", "no response template")])
def test_what_cannot_be_asked_or_read_is_refused_in_one_line(template, name, says):
    with pytest.raises(Refused, match=says) as error:
        native.convention(with_template(template), name)
    assert "\n" not in str(error.value)


def test_a_response_template_that_is_none_is_refused():
    made = with_template(LLAMA)
    made.response_template = {"fields": {"tool_calls": {"open": "<a>"}}}
    with pytest.raises(Refused, match="no response template that can be used: response_template "):
        native.convention(made, "response")


def test_the_embedded_base_model_has_no_convention():
    with pytest.raises(Refused, match="leaves tools out"):
        native.convention(lms.load_tokenizer(tiny.PATH), "auto")


# ---------------------------------------------------------------------------------------------
# Reading

ONE, TWO = call("go", to="Oslo", n=2), call("stop", at=[{"x": "};{\"<"}, True, None])
A, B = json.dumps(ONE), json.dumps(TWO)
NO_BLOCK, OPEN, BROKEN = "no block", "block not closed", "unparsable"


def hermes(*calls):
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in calls)


HERMES_ANSWERS = {
    hermes(A): [ONE], hermes(A, B): [ONE, TWO], hermes(B) + hermes(A): [TWO, ONE],
    "<tool_call>" + A + "</tool_call>": [ONE], f"I will go.\n{hermes(A)}\nDone.": [ONE],
    hermes(f"[{A}, {B}]"): [ONE, TWO], hermes(f"```json\n{A}\n```"): [ONE],
    f"<think>Perhaps {hermes(B)}?</think>\n\n{hermes(A)}": [ONE],
    hermes(A.replace("Oslo", "\u00c5s \U0001f600")): [call("go", to="\u00c5s \U0001f600", n=2)],
    hermes('{"name": "now", "arguments": {}}'): [call("now")],
    hermes('{"name": "go", "arguments": "{\\"to\\": \\"Oslo\\", \\"n\\": 2}"}'): [ONE],
    "": NO_BLOCK, "I will go to Oslo.": NO_BLOCK, A: NO_BLOCK, f"{A}\n</tool_call>": NO_BLOCK,
    f"<think>{hermes(A)}</think>Done.": NO_BLOCK,
    f"<tool_call>\n{A}": OPEN, hermes(A) + "\n<tool_call>\n{": OPEN,
    f"<tool_call>{hermes(A)}": OPEN,
    hermes(A[:-1]): BROKEN, hermes(A + "}"): BROKEN, hermes(A, B[1:]): BROKEN, hermes(""): BROKEN,
    hermes(f"{A}\n{B}"): BROKEN, hermes("go(to='Oslo')"): BROKEN,
    hermes(A.replace('"', "'")): BROKEN, hermes(A.replace("2", "NaN")): BROKEN}
LLAMA_ONE, LLAMA_TWO = (text.replace('"arguments"', '"parameters"') for text in (A, B))
LLAMA_ANSWERS = {
    LLAMA_ONE: [ONE], f"<|python_tag|>{LLAMA_ONE}": [ONE], f" \n{LLAMA_TWO}\n": [TWO],
    f"{LLAMA_ONE}; {LLAMA_TWO}": [ONE, TWO], f"{LLAMA_TWO}\n{LLAMA_ONE}": [TWO, ONE],
    f"<|python_tag|>{LLAMA_ONE};{LLAMA_TWO};": [ONE, TWO],
    f"[{LLAMA_ONE}, {LLAMA_TWO}]": [ONE, TWO],
    f"I will.<|python_tag|>{LLAMA_ONE}": [ONE], f"```json\n{LLAMA_ONE}\n```": [ONE],
    '{"type": "function", ' + LLAMA_ONE[1:]: [ONE],
    A: [ONE], '{"name": "now", "parameters": {}}': [call("now")],
    '{"name": "f", "arguments": {"parameters": 1}}': [call("f", parameters=1)],
    "": NO_BLOCK, "I will go to Oslo.": NO_BLOCK, f"Here: {LLAMA_ONE}": NO_BLOCK,
    LLAMA_ONE[:-1]: BROKEN, LLAMA_ONE + "}": BROKEN, f"{LLAMA_ONE}; {LLAMA_TWO[:9]}": BROKEN,
    f"{LLAMA_ONE} and so on": BROKEN, LLAMA_ONE.replace('"', "'"): BROKEN,
    LLAMA_ONE.replace("2", "NaN"): BROKEN, LLAMA_ONE.replace("2", "1e999"): BROKEN,
    "<|python_tag|>": BROKEN, "<|python_tag|>go.call(to='Oslo')": BROKEN,
    f"<|python_tag|>{LLAMA_ONE}<|python_tag|>{LLAMA_TWO}": BROKEN}
RESPONSE = serving.response_template(["<|end|>"])


def ours(text):
    return f"<think>So.</think>\n<tool_call_answer>{text}</tool_call_answer>"


RESPONSE_ANSWERS = {ours(f"[{A}, {B}]"): [ONE, TWO], ours(A): [ONE], ours("[]"): NO_BLOCK,
                    ours(f"[{A}"): OPEN, "I will go.": NO_BLOCK, "": NO_BLOCK,
                    f"<tool_call_answer>[{A}]": OPEN,
                    ours(f"[{A}]") + ours("[7]"): OPEN}


@pytest.mark.parametrize("settings, answers", [
    ({"native": "hermes"}, HERMES_ANSWERS), ({"native": "llama"}, LLAMA_ANSWERS),
    ({"native": "response", "response_template": RESPONSE}, RESPONSE_ANSWERS)],
    ids=["hermes", "llama", "response"])
def test_right_and_damaged_answers(settings, answers):
    read = native.reader(settings)
    for text, expected in {**answers, "<think>I will": OPEN}.items():
        wanted = (None, expected) if isinstance(expected, str) else (Calls(expected), None)
        assert read(text) == wanted, text


@pytest.mark.parametrize("settings", [{"native": "hermes"}, {"native": "llama"}])
def test_what_is_json_but_no_call_is_counted(settings):
    text = f'[{A}, {{"to": "Oslo"}}, 7]'
    text = hermes(text) if settings["native"] == "hermes" else text
    assert native.reader(settings)(text) == (Calls([ONE], malformed=2), None)
    assert native.reader({"native": "hermes"})(hermes("7")) == (Calls([], malformed=1), None)


def test_a_template_for_json_that_meets_damaged_json_is_unparsable():
    template = {"defaults": {"role": "assistant"}, "start_anchor_pattern": r"\Z", "fields": {
        "tool_calls": {"open": "<tool_call>", "close": "</tool_call>", "repeats": True,
                       "content": "json", "transform": {"type": "function", "function": {
                           "name": "{content.name}", "arguments": "{content.arguments}"}}},
        "content": {"close": "<|im_end|>"}}}
    read = native.reader({"native": "response", "response_template": template})
    assert read(hermes(A, B)) == (Calls([ONE, TWO]), None)
    for broken in (A[:-1], A.replace('"name"', '"nome"'), A.replace("2", "[" * 9000), "7",
                   A.replace("2", "NaN")):
        assert read(hermes(broken)) == (None, "unparsable")


def test_the_real_qwen_template_writes_what_is_read(qwen):
    tasks = tiny.heldout(50)
    for number, task in enumerate(tasks):
        gold = task.answer + tasks[number - 1].answer * (number % 2)
        turns = [{"role": "user", "content": task.question}, {
            "role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": element} for element in gold]}]
        text = lms.chat_text(qwen, turns, add_generation_prompt=False,
                             tools=native.functions(task.tools))
        answer = text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")
        assert score.error_of(*native.read_hermes(answer), gold) is None
        assert score.error_of(*native.read_hermes(answer[:-3]), gold) == (
            "format", "block not closed")


@pytest.mark.parametrize("name, text", [("hermes", hermes(A, B)), ("llama", LLAMA_ONE + LLAMA_TWO),
                                        ("response", hermes(A))])
def test_a_reader_takes_any_text(name, text):
    read = native.reader({"native": name, "response_template": RESPONSE})
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(2000):
        damaged = text
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged) + 1)
            damaged = (damaged[:place] + rng.choice(["", *'[]{}",:;\\ 0e.\n\ud800', "<tool_call>"])
                       + damaged[place + rng.randint(0, 2):])
        calls, fault = read(damaged)
        assert (calls is None) == (fault in score.KINDS["format"])
    for hopeless in ("[" * 100_000, '{"a":' * 50_000, '"' * 50_000, "{" + '\\"' * 50_000):
        assert read(hopeless)[0] is None and read(hermes(hopeless))[0] is None


@pytest.mark.parametrize("answer, gold, error", [
    ("I cannot.", [], None), ("I cannot.", [ONE], ("format", "no block")),
    (hermes(A[:-1]), [], ("format", "unparsable")), (hermes(A), [], ("structural", "extra call")),
    (f"<tool_call>{A}", [ONE], ("format", "block not closed")), (hermes(A), [ONE], None),
    (hermes("[]"), [], None), (hermes(A), [ONE, ONE], ("structural", "missing call")),
    (hermes(f"[{A}, 7]"), [ONE], ("structural", "malformed call")),
    (hermes(A), [call("go", to="Oslo", n=3)], ("semantic", "wrong value")),
    (ours(f"[{A}]"), [ONE], ("format", "no block"))])
def test_verdicts_on_native_answers(answer, gold, error):
    row = loaders.Row("r", Task("Go.", [], gold))
    verdict = score.judge(row, answer, read=native.read_hermes)
    assert verdict.error == error
    assert verdict.calls is not None or error[0] == "format"


# ---------------------------------------------------------------------------------------------
# An evaluation

QUICK = ["--limit", "8", "--max_completion", "96"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The embedded model as a run would save it."""
    path = tmp_path_factory.mktemp("checkpoint") / "solver"
    shutil.copytree(tiny.PATH, path)
    base = lms.load_tokenizer(path)
    serving.drop_in(base, [base.eos_token_id]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def out(checkpoint, tmp_path_factory):
    """Result files of the embedded model, asked as in training and natively."""
    folder = tmp_path_factory.mktemp("out")
    evaluation.main(["--out", str(folder / "ours"), *QUICK])
    evaluation.main(["--model", str(checkpoint), "--native", "--out", str(folder / "own"), *QUICK])
    return folder


def test_result_files_say_how_the_model_was_asked(out):
    settings = json.loads((out / "own/settings.json").read_text())
    assert settings["native"] == "response" and "fields" in settings["response_template"]
    settings = json.loads((out / "ours/settings.json").read_text())
    assert settings["native"] is None and "response_template" not in settings


def test_our_checkpoint_answers_the_same_either_way(out):
    for one, other in zip(lines(out / "ours/tiny.jsonl"), lines(out / "own/tiny.jsonl")):
        assert (one["text"], one["task_hash"]) == (other["text"], other["task_hash"])


def test_native_and_ours_are_compared_and_other_data_is_noticed(out, tmp_path, capsys):
    evaluation.main(["--compare", str(out / "own"), str(out / "ours")])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "prompt: A its own, read as response; B the Solver's"
    assert second.startswith("tiny: A ")
    shutil.copytree(out / "own", tmp_path / "own")
    rows = lines(tmp_path / "own/tiny.jsonl")
    rows[0]["task_hash"] = rows[1]["task_hash"]
    write_lines(tmp_path / "own/tiny.jsonl", rows)
    with pytest.raises(SystemExit):
        evaluation.main(["--compare", str(tmp_path / "own"), str(out / "ours")])
    assert "not asked the same: tiny_" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["hermes", "llama"])
def test_scoring_again_reads_natively_again(name, out, tmp_path, capsys):
    shutil.copytree(out / "own", tmp_path / "own")
    settings = json.loads((tmp_path / "own/settings.json").read_text())
    (tmp_path / "own/settings.json").write_text(json.dumps(settings | {"native": name}))
    rows, tasks = lines(tmp_path / "own/tiny.jsonl"), loaders.load("tiny", tmp_path, 8)
    for number, (row, task) in enumerate(zip(rows, tasks)):
        answers = list(map(json.dumps, task.task.answer))
        text = hermes(*answers) if name == "hermes" else "; ".join(answers)
        row["text"] = text if number < 6 else text[:-2]
    write_lines(tmp_path / "own/tiny.jsonl", rows)
    evaluation.main(["--score", str(tmp_path / "own")])
    output = capsys.readouterr().out
    assert output.startswith("tiny: 75.0 % of 8 right")
    assert "block not closed" in output if name == "hermes" else "unparsable" in output


@pytest.mark.parametrize("arguments, says", [
    (["--native"], "leaves tools out"), (["--native", "qwen"], "qwen"),
    (["--native", "--score", "x"], "not allowed with argument --native"),
    (["--native", "--compare", "x", "y"], "not allowed with argument --native")])
def test_a_bad_use_of_the_flag_is_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main([*arguments, *QUICK])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and says in message and message.count("\n") == 1
