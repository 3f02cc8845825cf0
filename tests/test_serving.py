"""A checkpoint of ours in servers that others wrote: the prompt that `tools=` gives, the calls that
are read out of an answer, and (slow) two servers asked by the `openai` client.

The slow ones want `pip install -r tests/serving-requirements.txt`; vLLM is served by the command in
the environment variable VLLM, or by `vllm serve` where there is one.
"""
import copy
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from jinja2 import TemplateError
from test_families import QWEN, llama_tokenizer
from transformers.utils.chat_parsing import ResponseParser

import model as lms
import serving
import solver
import tiny
from conftest import ROOT, free_port, kill_group
from verify import normalise_tool

# Written in the manner of Llama 3.2's: its own BOS, a date, a system header, and a way with tools.
LLAMA = """\
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == "tool" or "tool_calls" in message %}
        {{- raise_exception("one call a turn") }}
    {%- endif %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {%- if tools is not none and loop.first %}{{- tools | tojson(indent=4) }}{% endif %}
    {{- message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
QUESTION = {"role": "user", "content": "Go to Oslo, twice."}


def function(name, parameters, **more):
    """A tool in OpenAI's format."""
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


GO = function("go", {"type": "object", "properties": {"to": {"type": "string"}},
                     "required": ["to"]}, description="Goes there.")
MENUS = {
    "one": [GO],
    "several": json.loads((ROOT / "example_tools.json").read_text()),
    "nested": [function("plan", {"type": "object", "required": ["legs"], "properties": {
        "legs": {"type": "array", "items": {"type": "object", "required": ["to"], "properties": {
            "to": {"type": "string"}, "by": {"enum": ["car", None]}}}}}}, description="Plans.")],
    "letters": [function("søk", {"type": "object", "properties": {
        "q\u00e9": {"type": "string",
                   "description": "\u4e2d \U0001f600 </s> <b>&amp; 'a' \"b\" \\ \n"}}},
        description="It's <em>\"new\"</em> & {{ shiny }} {% raw %}\u2028")],
    "no parameters": [function("now", {"type": "object"}), {"type": "function",
                                                            "function": {"name": "then"}}],
    "empty properties": [function("now", {"type": "object", "properties": {}, "required": []})],
    "nothing required": [function("go", {"type": "object", "properties": {"type": {
        "type": "string"}}}, description=None)],
    "names of methods": [function("get", {"type": "object", "properties": {
        "items": {"type": "array"}, "keys": {"type": "string"}, "name": {}}, "required": ["items"]},
        description="Gets.")],
    "bare": [GO["function"]],
    "flat": [{"name": " go ", "description": "Goes.", "parameters": {
        "to": {"type": "string"}, "type": {"type": "string"}}, "required": ["to", "type"]}]}


@pytest.fixture(scope="module", params=["tiny", "llama", "qwen"])
def base(request):
    """A tokenizer with a template of its own, as models come."""
    if request.param == "llama":
        tokenizer = llama_tokenizer()
        tokenizer.chat_template = LLAMA
        return tokenizer
    if request.param == "qwen" and not QWEN.exists():
        pytest.skip("the development data is not here")
    return lms.load_tokenizer(tiny.PATH if request.param == "tiny" else QWEN)


@pytest.fixture
def served(base):
    return serving.drop_in(base, [base.eos_token_id])


def render(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                         date_string="01 Jan 2026", **more)


# ---------------------------------------------------------------------------------------------
# Asking


@pytest.mark.parametrize("menu", MENUS.values(), ids=MENUS)
def test_with_tools_the_prompt_is_the_one_of_training(base, served, menu):
    prompt = solver.prompt(QUESTION["content"], [normalise_tool(tool) for tool in menu])
    assert render(served, [QUESTION], tools=menu) == lms.chat_text(base, prompt)
    ids = served.apply_chat_template([QUESTION], tools=menu, add_generation_prompt=True,
                                     date_string="01 Jan 2026")["input_ids"]
    assert ids == lms.encode_chat(base, prompt)


def test_held_out_tasks_are_asked_as_in_training():
    base = lms.load_tokenizer(tiny.PATH)
    served = serving.drop_in(base, [base.eos_token_id])
    for task in tiny.heldout(50):
        text = render(served, [{"role": "user", "content": task.question}], tools=openai(task))
        assert text == lms.chat_text(base, solver.prompt(task.question, task.tools))


def openai(task):
    """The menu of a task in OpenAI's format."""
    return [function(tool["name"], {"type": "object", "properties": tool["parameters"],
                                    "required": tool["required"]}, description=tool["description"])
            for tool in task.tools]


@pytest.mark.parametrize("template", [
    None, "  {{- messages | length }}",
    "\n\n  {% if 1 %}\n a{% endif %}{{ messages[0].content }}\n\n",
    "text {% for m in messages %}\n  {% set ns = m.content %}\n{{ ns }}{% endfor %}\n",
    "{{ tools is defined }} {{ tools }} {{ solver is defined }}"])
@pytest.mark.parametrize("tools", [None, []])
def test_without_tools_not_a_byte_changes(base, template, tools):
    base = copy.copy(base)
    base.chat_template = template or base.chat_template
    served = serving.drop_in(base, [base.eos_token_id])
    for messages in ([QUESTION], [{"role": "system", "content": " a\n"}, QUESTION,
                                  {"role": "assistant", "content": "b"}, QUESTION]):
        assert render(served, messages, tools=tools) == render(base, messages, tools=tools)
    assert lms.encode_chat(served, [QUESTION]) == lms.encode_chat(base, [QUESTION])


def test_a_checkpoint_as_the_base_of_a_run_gets_the_lines_once(base, served, tmp_path):
    served.save_pretrained(tmp_path / "first")
    loaded = lms.load_tokenizer(tmp_path / "first")
    serving.drop_in(loaded, [base.eos_token_id]).save_pretrained(tmp_path / "second")
    again = lms.load_tokenizer(tmp_path / "second")
    assert again.chat_template == loaded.chat_template == served.chat_template
    assert again.response_template == loaded.response_template == served.response_template
    prompt = solver.prompt("Go.", [normalise_tool(GO)])
    assert lms.encode_chat(loaded, prompt) == lms.encode_chat(base, prompt)


def test_the_tokenizer_of_the_run_is_left_as_it_is(base):
    template = base.chat_template
    assert serving.drop_in(base, [base.eos_token_id]).chat_template != template
    assert base.chat_template == template and base.response_template is None


def test_lines_with_an_older_prompt_are_replaced():
    older = serving.LINES.replace("You answer requests", "You are asked") + "base"
    assert serving.chat_template(older) == serving.LINES + "base"


def test_of_templates_with_names_only_the_one_for_tools_is_ours(base, tmp_path):
    named = copy.copy(base)
    named.chat_template = {"default": base.chat_template, "tool_use": "theirs", "rag": "too"}
    served = serving.drop_in(named, [base.eos_token_id])
    served.save_pretrained(tmp_path)
    loaded = lms.load_tokenizer(tmp_path)
    assert loaded.chat_template == {"default": base.chat_template, "rag": "too",
                                    "tool_use": serving.chat_template(base.chat_template)}
    assert render(loaded, [QUESTION], tools=[GO]) == lms.chat_text(
        base, solver.prompt(QUESTION["content"], [normalise_tool(GO)]))


MENU = ('\n<available_tools>\n[{"name": "go", "description": "Goes there.", "parameters": '
        '{"to": {"type": "string"}}, "required": ["to"]}]\n</available_tools>')
ANSWER = '<tool_call_answer>[{"name": "go", "arguments": {"to": "\u00c5s"}}]</tool_call_answer>'


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def called(*arguments, content=None):
    """An assistant's turn with calls of `go`."""
    return said("assistant", content, tool_calls=[
        {"id": str(n), "type": "function", "function": {"name": "go", "arguments": value}}
        for n, value in enumerate(arguments)])


CONVERSATIONS = {
    "the client's instructions follow ours": (
        [said("system", "Be terse."), QUESTION],
        [said("system", solver.SYSTEM + "\n\nBe terse."),
         said("user", QUESTION["content"] + MENU)]),
    "all of them, whatever they are called": (
        [said("developer", "Be terse."), QUESTION, said("system", "Hurry.")],
        [said("system", solver.SYSTEM + "\n\nBe terse.\n\nHurry."),
         said("user", QUESTION["content"] + MENU)]),
    "the menu follows the last of several questions": (
        [said("user", "Hi"), said("assistant", "Hello"), QUESTION],
        [said("system", solver.SYSTEM), said("user", "Hi"), said("assistant", "Hello"),
         said("user", QUESTION["content"] + MENU)]),
    "earlier calls and results": (
        [QUESTION, called({"to": "\u00c5s"}), said("tool", "There.", tool_call_id="0")],
        [said("system", solver.SYSTEM), QUESTION, said("assistant", ANSWER),
         said("user", "There." + MENU)]),
    "arguments that are none": (
        [QUESTION, called("", None, {})],
        [said("system", solver.SYSTEM), said("user", QUESTION["content"] + MENU),
         said("assistant", "<tool_call_answer>[" + ", ".join(
             ['{"name": "go", "arguments": {}}'] * 3) + "]</tool_call_answer>")]),
    "arguments as a client sends them back": (
        [QUESTION, called('{"to": "\u00c5s"}'), said("tool", "There."), QUESTION],
        [said("system", solver.SYSTEM), QUESTION, said("assistant", ANSWER), said("user", "There."),
         said("user", QUESTION["content"] + MENU)]),
    "two calls and words": (
        [QUESTION, called({}, {"n": [1.5, None]}, content="Well: "), said("tool", "A"),
         said("tool", "B")],
        [said("system", solver.SYSTEM), QUESTION, said("assistant", (
            'Well: <tool_call_answer>[{"name": "go", "arguments": {}}, '
            '{"name": "go", "arguments": {"n": [1.5, null]}}]</tool_call_answer>')),
         said("user", "A"), said("user", "B" + MENU)]),
    "an answer begun": (
        [QUESTION, said("assistant", "So")],
        [said("system", solver.SYSTEM), said("user", QUESTION["content"] + MENU),
         said("assistant", "So")]),
    "content in parts": (
        [said("user", [{"type": "text", "text": "Go to "}, {"type": "image"},
                       {"type": "text", "text": "Oslo, twice."}])],
        [said("system", solver.SYSTEM), said("user", QUESTION["content"] + MENU)])}


@pytest.mark.parametrize("messages, expected", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations_are_told_in_the_solvers_terms(base, served, messages, expected):
    assert render(served, messages, tools=[GO]) == render(base, expected)


def test_tools_without_a_question_are_refused(served):
    with pytest.raises(TemplateError, match="no message of a user"):
        render(served, [said("system", "Be terse.")], tools=[GO])


# ---------------------------------------------------------------------------------------------
# Reading

TEMPLATE = serving.response_template(["<|end|>", "<|eot|>"])
ONE = '{"name": "go", "arguments": {"to": "Oslo", "n": 2}}'
TWO = '{ "name":"stop", "arguments" : {"at": [{"x": "}]\\"", "y": -1.5e3}, [], true, null]}}'


def block(content):
    return f"<tool_call_answer>{content}</tool_call_answer>"


def parse(text, piece=None):
    """The message that transformers reads, from a stream of `piece` characters or at once."""
    parser, events = ResponseParser(TEMPLATE, prefix=solver.SYSTEM + block(f"[{ONE}]")), []
    for start in range(0, len(text), piece or max(1, len(text))):
        events += parser.feed(text[start:start + (piece or len(text))])
    message, last = parser.finalize()
    closed = [event["value"] for event in events + last
              if event["type"] == "region_close" and event["field"] == "tool_calls"]
    assert closed == message.get("tool_calls", [])          # as servers stream them
    return message


def calls_of(message):
    return [{"name": call["function"]["name"],
             "arguments": json.loads(call["function"]["arguments"])}
            for call in message.get("tool_calls") or []]


SAME = {   # what solver.read reads alike
    "one": block(f"[{ONE}]"), "two": block(f"[{ONE}, {TWO}]"), "spread out": block(
        f"\n[\n  {ONE} ,\n\t{TWO}\r\n]\n"),
    "an object for a list": block(ONE), "none": block("[]"), "none, spread out": block(" [ ] "),
    "fenced": block(f"```json\n[{ONE},{TWO}]\n```"), "fenced on a line": block(f"```[{ONE}]```"),
    "fenced object": block(f"```\n{ONE}\n```"), "fenced none": block("```json\n[]\n```"),
    "after a thought": f"<think>Go, as in {ONE}.</think>\n{block(f'[{ONE}]')}",
    "a block quoted in a thought": f"<think>Or {block(f'[{TWO}]')}?</think>{block(f'[{ONE}]')}",
    "words around": f"Here: {block(f'[{ONE}]')} Done.",
    "a second one open": f"{block(f'[{ONE}]')} <tool_call_answer>[{TWO}]",
    "opened twice": f"<tool_call_answer>[{ONE}<tool_call_answer>[{TWO}]</tool_call_answer>",
    "closed twice": block(f"[{ONE}]") + "</tool_call_answer>",
    "a comma for a tag": f", {ONE}]</tool_call_answer>",
    "a comma behind a thought": f"<think>Go.</think>, {ONE}]</tool_call_answer>",
    "a comma behind a block": block(f"[{ONE}]") + f", {TWO}",
    "letters": block('[{"name": "s\u00f8k", "arguments": {"q\u00e9": "\U0001f600 <b> \\u00e9"}}]'),
    "equal keys": block('[{"name": "go", "arguments": {"a": 1, "a": 2}}]'),
    "no block": "I will go to Oslo.", "empty": "", "no tag": f"[{ONE}, {TWO}]",
    "not closed": f"<tool_call_answer>[{ONE}]", "not opened": f"[{ONE}]</tool_call_answer>",
    "closed wrongly": f"<tool_call_answer>[{ONE}]</ tool_call_answer>",
    "words in the block": block("nothing fits"), "empty block": block(""),
    "words before the fence": block(f"Here:\n```json\n[{ONE}]\n```"),
    "Python": block("[go(to=Oslo); stop()]"), "cut off": block(f'[{ONE}, {{"name": "st'),
    "bracket missing": block(f"[{ONE}, {TWO}"), "bracket too many": block(f"{ONE}]"),
    "comma missing": block(f"[{ONE} {TWO}]"), "comma too many": block(f"[{ONE}, ]"),
    "single quotes": block(f"[{ONE}]".replace('"', "'")),
    "NaN": block('[{"name": "go", "arguments": {"n": NaN}}]'),
    "octal": block('[{"name": "go", "arguments": {"n": 01}}]'),
    "a line break in a string": block('[{"name": "go", "arguments": {"n": "a\nb"}}]'),
    "a bad escape": block('[{"name": "go", "arguments": {"n": "\\x41"}}]'),
    "a number alone": block("7"), "no name": block('[{"arguments": {}}]'),
    "arguments no object": block('[{"name": "go", "arguments": [1]}]')}
OTHER = {   # (text, what the template reads, what solver.read reads)
    "both blocks count": (block(ONE) + block(f"[{TWO}]"), 2, 1),
    "a broken last block takes nothing back": (block(ONE) + block("or none"), 1, 0),
    "a thought without an end is no answer": (f"<think>{block(f'[{ONE}]')}", 0, 1),
    "other names of the keys": (block('[{"tool_name": "go", "arguments": {}}]'), 0, 1),
    "another order": (block('[{"arguments": {}, "name": "go"}]'), 0, 1),
    "another key": (block('[{"id": 1, "name": "go", "arguments": {}}]'), 0, 1),
    "arguments in a string": (block('[{"name": "go", "arguments": "{}"}]'), 0, 1),
    "arguments beside the name": (block('[{"name": "go", "to": "Oslo"}]'), 0, 1),
    "a call in a function": (block(f'[{{"function": {ONE}}}]'), 0, 1),
    "one element is no call": (block(f"[{ONE}, 7]"), 0, 1),
    "a tag in a string": (block(ONE.replace("Oslo", "<tool_call_answer>")), 1, 0),
    "an escape in a name": (block('[{"name": "g\\u006f", "arguments": {}}]'), 0, 1),
    "half a fence": (block(f"```[{ONE}]"), 1, 0),
    "too deep for us": (block('[{"name": "go", "arguments": {"a": %s}}]' % ("[" * 20 + "]" * 20)),
                        1, 0)}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
@pytest.mark.parametrize("piece", [None, 1, 7])
def test_an_answer_is_read_as_we_read_it(text, piece):
    calls = solver.read(text)
    assert calls_of(parse(text + "<|end|>", piece)) == (calls.calls if calls else [])


@pytest.mark.parametrize("text, theirs, ours", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("piece", [None, 1, 7])
def test_where_it_is_read_otherwise(text, theirs, ours, piece):
    assert len(calls_of(parse(text, piece))) == theirs
    calls = solver.read(text)
    assert len(calls.calls if calls else []) == ours


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize("text, message", [
    (f"<think> Go. </think>\n{block(f'[{ONE}]')}<|end|>", {"thinking": "Go.", "tool_calls": 1}),
    (f"<think>None fits.</think>\n{block('[]')}\n<|eot|>", {"thinking": "None fits."}),
    ("Sure, I will go.<|end|>\n<|eot|>", {"content": "Sure, I will go."}),
    (f"Well. {block(f'```[{ONE}, {TWO}]```')} \n<|end|>", {"content": "Well.", "tool_calls": 2}),
    (f"<think>x</think>\n{block('[go()]')}<|end|>",
     {"thinking": "x", "content": block("[go()]")})])
def test_thought_calls_and_words_are_told_apart(text, message, piece):
    read = parse(text, piece)
    if "tool_calls" in read:
        read["tool_calls"] = len(read["tool_calls"])
    assert read == {"role": "assistant"} | message


def test_a_damaged_answer_is_read_as_we_read_it_or_not_at_all():
    seed = random.randrange(10**9)
    print("seed", seed)
    rng, read = random.Random(seed), 0
    for _ in range(2000):
        text = block(f"[{ONE}, {TWO}]")
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(text))
            text = (text[:place] + rng.choice(["", *'[]{}",:\\ 0e.a\n'])
                    + text[place + rng.randint(0, 1):])
        calls = [call | {"name": call["name"].strip()} for call in calls_of(parse(text))]
        read += bool(calls)
        assert not calls or (calls, 0) == solver.read(text)
    assert read > 100


@pytest.mark.parametrize("text", [
    " " * 100_000, "<tool_call_answer>" * 5000, "<tool_call_answer>" + " " * 40_000,
    block('[{"name": "go", "arguments": {"a": ' + "[" * 20_000),
    block('[{"name": "go", "arguments": ' + '{"a": ' * 5000),
    block('[{"name": "go", "arguments": {"a": "' + 'b\\"' * 20_000),
    block('[{"name": "go", "arguments": {"a": [' + "12345, " * 5000 + "x]}}]")])
def test_a_hopeless_answer_is_soon_given_up(text):
    """Any of these takes minutes where a repeat in the patterns gives back what it took."""
    assert "tool_calls" not in parse(text)


def test_transformers_reads_the_ids_of_an_answer(base, served):
    prompt = lms.encode_chat(base, solver.prompt("Go.", [normalise_tool(GO)]))
    ids = base.encode(f"<think>Go.</think>{block(f'[{ONE}]')}", add_special_tokens=False)
    assert served.parse_response([*ids, base.eos_token_id], prefix=prompt) == {
        "role": "assistant", "thinking": "Go.", "tool_calls": [
            {"type": "function",
             "function": {"name": "go", "arguments": '{"to": "Oslo", "n": 2}'}}]}


def test_a_thought_that_the_template_has_opened_is_read_as_one(base):
    """And a block drafted in it is no answer."""
    opening = copy.deepcopy(base)
    opening.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    made = serving.drop_in(opening, [base.eos_token_id])
    prompt = lms.encode_chat(opening, solver.prompt("Go.", [normalise_tool(GO)]))
    text = f"Or {block(f'[{TWO}]')}?</think>\n{block(f'[{ONE}]')}"
    ids = base.encode(text, add_special_tokens=False)
    message = made.parse_response([*ids, base.eos_token_id], prefix=prompt)
    assert message["thinking"].strip() == f"Or {block(f'[{TWO}]')}?"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["go"]
    assert [call["name"] for call in solver.read("<think>" + text).calls] == ["go"]


# ---------------------------------------------------------------------------------------------
# Real servers


def server_command(kind, path, port):
    """How a checkpoint is served on a port of this machine."""
    if kind == "transformers":
        program = Path(sys.executable).with_name("transformers")
        return [program, "serve", path, "--host", "127.0.0.1", "--port", port]
    program = os.environ.get("VLLM") or (shutil.which("vllm") and "vllm serve")
    if not program:
        pytest.skip("vLLM is not installed")
    return [*shlex.split(program), path, "--host", "127.0.0.1", "--port", port,
            "--dtype", "float32", "--enable-auto-tool-choice",
            "--tool-call-parser", "hf", "--reasoning-parser", "hf"]


@pytest.fixture(scope="module")
def checkpoint(small_run):
    """What a run wrote, and as much of it as we need to ask it ourselves."""
    import torch

    import eval as evaluation
    path = small_run / "iter1" / "solver"
    return str(path), evaluation.load_model(path, torch.device("cpu"), fp32=True)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def client(request, checkpoint, tmp_path_factory):
    """An `openai` client of a server of the checkpoint."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    port = free_port()
    command = [str(part) for part in server_command(request.param, checkpoint[0], port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True,
                                   env=os.environ | {"HF_HUB_OFFLINE": "1",
                                                     "VLLM_CPU_KVCACHE_SPACE": "2"})
    try:
        wait_until_healthy(process, port, log)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        kill_group(process)


def wait_until_healthy(process, port, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def ask(client, path, messages, tools):
    """(calls, tokens of the prompt) of a server's greedy answer."""
    reply = client.chat.completions.create(model=path, messages=messages, tools=tools,
                                           temperature=0, max_tokens=192)
    calls = [call.function for call in reply.choices[0].message.tool_calls or []]
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls], \
        reply.usage.prompt_tokens


def ask_streaming(client, path, messages, tools):
    """The calls of a server's greedy answer, put together from a stream."""
    parts = {}
    for chunk in client.chat.completions.create(model=path, messages=messages, tools=tools,
                                                temperature=0, max_tokens=192, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            part = parts.setdefault(delta.index, {"name": "", "arguments": ""})
            part["name"] += delta.function.name or ""
            part["arguments"] += delta.function.arguments or ""
    return [part | {"arguments": json.loads(part["arguments"])} for part in parts.values()]


def greedy(lm, prompts):
    """The calls of our own greedy answers to prompts (token ids)."""
    rollouts = lms.sample(lm, prompts, 1, (), 0, 192, 16)
    return [calls.calls if calls else [] for calls in (solver.read(group[0].text)
                                                       for group in rollouts)]


@pytest.mark.slow
def test_a_server_gives_the_calls_of_our_own_greedy_answers(client, checkpoint):
    path, lm = checkpoint
    tasks = tiny.heldout(50)
    prompts = [lms.encode_chat(lm.tokenizer, solver.prompt(task.question, task.tools))
               for task in tasks]
    ours = greedy(lm, prompts)
    assert sum(map(bool, ours)) > 10
    for task, prompt, calls in zip(tasks, prompts, ours):
        messages = [said("user", task.question)]
        assert ask(client, path, messages, openai(task)) == (calls, len(prompt))
        assert ask_streaming(client, path, messages, openai(task)) == calls


@pytest.mark.slow
def test_a_server_takes_back_calls_and_their_results(client, checkpoint):
    path, lm = checkpoint
    task = tiny.heldout(1)[0]
    (system, question), call = solver.prompt(task.question, task.tools), task.answer[0]
    prompt = lms.encode_chat(lm.tokenizer, [
        system | {"content": system["content"] + "\n\nBe terse."}, said("user", task.question),
        said("assistant", block(json.dumps([call]))), said("user", "Done."), question])
    messages = [said("system", "Be terse."), said("user", task.question),
                said("assistant", None, tool_calls=[{"id": "c1", "type": "function", "function": {
                    "name": call["name"], "arguments": json.dumps(call["arguments"])}}]),
                said("tool", "Done.", tool_call_id="c1"),
                said("user", [{"type": "text", "text": task.question}])]
    assert ask(client, path, messages, openai(task)) == (greedy(lm, [prompt])[0], len(prompt))
