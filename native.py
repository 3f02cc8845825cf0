"""A model under its own tool-calling convention: its chat template asks, and its answer is read in
the format of that template. Beside the Solver's prompt it shows how much of a score is the prompt.

    asking     tools= in OpenAI's format and the question alone: no word of ours
    reading    hermes     <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one block a call
               llama      {"name": ..., "parameters": {...}}, several behind each other
               response   by the checkpoint's own response template, as transformers reads it

The first two are as strict as the Solver's reader: what is damaged is not mended, and one damaged
call spoils the answer. Every reader gives (verify.Calls, None), or (None, kind) with the kind of a
format error: see benchmarks/score.py.
"""
import json
from functools import partial

from transformers.utils.chat_parsing import ResponseParser, parse_response

import model as lms
from benchmarks import score
from cli import Refused
from verify import PRIMITIVE_TYPES, Calls, after_think, read_calls, strip_fence

# ---------------------------------------------------------------------------------------------
# Asking


def encode(lm, task):
    """Ids of the prompt that asks for a task's calls."""
    question = {"role": "user", "content": task.question}
    try:
        return lms.encode_chat(lm.tokenizer, [question], tools=functions(task.tools))
    except Exception as error:      # a template is code, and raises what it likes
        raise Refused(f"the chat template fails on the tools of {task.question[:60]!r}: "
                      + lms.one_line(error)) from None


def functions(menu):
    """A task's menu in OpenAI's format."""
    return [{"type": "function", "function": {
        "name": tool["name"], "description": tool["description"],
        "parameters": {"type": "object", "properties": json_schema(tool["parameters"]),
                       "required": tool["required"]}}} for tool in menu]


# What benchmarks write where JSON Schema has a word of its own.
TYPES = PRIMITIVE_TYPES | {"dict": "object", "list": "array", "tuple": "array"}


def json_schema(value):
    """A schema, or a part of one, with JSON Schema's names of the types.

    >>> json_schema({"n": {"type": "list", "items": {"type": "float"}}})
    {'n': {'type': 'array', 'items': {'type': 'number'}}}
    """
    if isinstance(value, list):
        return list(map(json_schema, value))
    if not isinstance(value, dict):
        return value
    return {key: TYPES.get(child, child) if key == "type" and isinstance(child, str)
            else json_schema(child) for key, child in value.items()}


# ---------------------------------------------------------------------------------------------
# Reading


def read_hermes(text):
    """
    >>> read_hermes('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    (Calls(calls=[{'name': 'f', 'arguments': {}}], malformed=0), None)
    """
    blocks = after_think(text).split("<tool_call>")[1:]
    if not blocks:
        return None, score.without_block(text)
    if not all("</tool_call>" in block for block in blocks):
        return None, "block not closed"
    return joined(strip_fence(block.partition("</tool_call>")[0]) for block in blocks)


def read_llama(text):
    """
    >>> read_llama('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}')[0].calls
    [{'name': 'f', 'arguments': {}}, {'name': 'g', 'arguments': {}}]
    """
    words, tag, code = after_think(text).partition("<|python_tag|>")
    code = strip_fence(code if tag else words)
    if not tag and not code.startswith(("{", "[")):
        return None, score.without_block(text)
    calls = []
    try:
        while code:
            _, end = json.JSONDecoder().raw_decode(code)
            calls.append(code[:end])
            code = code[end:].lstrip("; \n\r\t")
    except (ValueError, RecursionError):
        return None, "unparsable"
    return joined(calls)


def read_response(template, text):
    """By a checkpoint's response template. A damaged call is plain text to it, and not to us."""
    try:
        said = parse_response(text, template, prefix="")
        left = "<tool_call" in (said.get("content") or "")
        if said.get("tool_calls") and not left:
            return joined([json.dumps(said["tool_calls"])])
        return None, score.without_block(text, left)
    except Exception:      # a template is applied to whatever the model wrote
        return None, "unparsable"


def joined(texts):
    """What is read from JSON texts that hold calls, all together."""
    read = list(map(read_calls, texts))
    if not read or None in read:
        return None, "unparsable"
    return Calls([call for calls in read for call in calls.calls],
                 sum(calls.malformed for calls in read)), None


# ---------------------------------------------------------------------------------------------
# Which of them

READERS = {"hermes": read_hermes, "llama": read_llama}
NAMES = ["auto", *READERS, "response"]

# Words that no template writes itself.
OFFERED = {"name": "quartz_lighthouse", "description": "", "parameters": {}, "required": []}
CALLED = {"name": "umber_saxophone", "arguments": {"velvet": "meridian"}}
QUESTION = {"role": "user", "content": "copper marathon"}
ANSWER = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function", "function": CALLED}]}      # Mistral wants nine letters


def convention(tokenizer, name):
    """What `reader` needs, to be kept with the answers: {"native": name of a reader} and, if that
    is `response`, the template.

    Args:
        name: of NAMES; auto chooses by how the chat template writes a call. None: the Solver's
            convention, {}.

    Refused if the chat template leaves tools out, or nothing says how an answer is to be read.
    """
    if name is None:
        return {}
    asked = rendered(tokenizer, [QUESTION], add_generation_prompt=True)
    if OFFERED["name"] not in asked:
        raise Refused("--native: the chat template leaves tools out, so the model has no "
                      "convention of its own")
    if name == "auto":
        name = written_as(tokenizer, asked) or "response"
    if name != "response":
        return {"native": name}
    template = getattr(tokenizer, "response_template", None)
    try:
        ResponseParser(template, prefix="")
    except Exception as error:      # it may be anything, None included
        raise Refused("--native: the way the model writes calls must be named, --native hermes or "
                      "llama, for there is no response template that can be used: "
                      + lms.one_line(error)) from None
    return {"native": name, "response_template": template}


def written_as(tokenizer, asked):
    """Name of the reader that reads a call as the chat template writes it, or None."""
    turn = rendered(tokenizer, [QUESTION, ANSWER], add_generation_prompt=False)
    asked = asked.removesuffix(lms.opened(asked))
    if not turn.startswith(asked):
        return None
    turn = turn.removeprefix(asked)
    turns = {"hermes": turn, "llama": turn[:turn.rfind("}") + 1]}      # without the turn's end
    return next((name for name, read in READERS.items()
                 if read(turns[name]) == (Calls([CALLED]), None)), None)


def rendered(tokenizer, messages, **more):
    """Text of messages with OFFERED as the tool; "" if the template refuses them."""
    try:
        return lms.chat_text(tokenizer, messages, tools=functions([OFFERED]), **more)
    except Exception:      # a template is code, and raises what it likes
        return ""


def reader(settings):
    """The function that reads an answer.

    Args:
        settings: what `convention` gave, or the settings of a directory of result files.
    """
    name = settings.get("native")
    if name == "response":
        return partial(read_response, settings["response_template"])
    return READERS[name] if name else score.read
