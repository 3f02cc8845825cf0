"""What a checkpoint needs to be served with `tools=`: a chat template that asks as the Solver was
trained to be asked, and a response template that reads its answer.

    asking     tools, messages  --chat template-->      the text of solver.prompt
    reading    the answer       --response template-->  thinking, tool_calls, content

Every checkpoint of a run has both; `transformers serve` and vLLM need no more (docs/serving.md).

The response template reads what solver.read reads, but for this:
- A block counts if it is closed and each of its elements is {"name": ..., "arguments": {...}}, in
  this order and with no other key; any other is left in `content`, as text. solver.read also takes
  other spellings, and skips (but counts) what is no call.
- Every block counts, not the last alone: a stream cannot know which is the last.
- What stands in <think> is no answer, even if <think> is never closed; then solver.read does read
  it. A </think> that nothing opens is text.
- In a stream, of calls that no tag opens but one closes, all but the first are read.
- Of texts before and after calls, `content` holds the last.
- A name with escapes in it is not read, and white space around a name stays.
- A tag in a JSON string is text, and a code fence may lack its other half. The limits that
  verify.load_json sets on depth, digits, half surrogate pairs and the range of numbers do not hold.
"""
import copy
import re

import torch

import solver
from disk import write_tensors

# ---------------------------------------------------------------------------------------------
# Asking

END = "{#- Tool-R0's lines end here; the base's own template follows. #}\n"

# The base's template goes on with other `messages`, and without `tools`.
LINES = """\
{#- Where `tools` are given, the messages become the prompt that the Solver was trained on. #}
{%- if tools %}
{%- set solver = namespace(menu=[], system="", turns=[], calls=[], asked=-1) %}
{%- set instructions -%}
SYSTEM
{%- endset %}

{#- The menu: {name, description, parameters: {p: schema}, required: [...]} for each tool. #}
{%- for tool in tools %}
{%- set tool = tool.function or tool %}
{%- set schema = tool.parameters or {} %}
{%- if schema.properties is mapping or schema.type == "object" %}
{%- set parameters = schema.properties or {} %}
{%- else %}
{%- set parameters = schema %}
{%- endif %}
{%- set solver.menu = solver.menu + [{
    "name": tool.name | trim, "description": tool.description or "", "parameters": parameters,
    "required": schema.required or tool.required or []}] %}
{%- endfor %}

{%- for message in messages %}
{#- Content may be a list of parts. #}
{%- set text = message.content or "" %}
{%- if text is not string %}
{%- set text = text | selectattr("text") | map(attribute="text") | join %}
{%- endif %}
{#- The client's own instructions come after ours. #}
{%- if message.role in ["system", "developer"] %}
{%- set solver.system = solver.system + "\\n\\n" + text %}
{#- Earlier calls are written as the Solver writes them. #}
{%- elif message.role == "assistant" %}
{%- if message.tool_calls %}
{%- set solver.calls = [] %}
{%- for call in message.tool_calls %}
{%- set call = call.function or call %}
{%- set arguments = call.arguments or {} %}
{%- set arguments = arguments if arguments is string else arguments | tojson %}
{%- set solver.calls = solver.calls + [
    '{"name": ' + call.name | tojson + ', "arguments": ' + arguments + '}'] %}
{%- endfor %}
{%- set text = text + "<tool_call_answer>[" + solver.calls | join(", ") + "]</tool_call_answer>" %}
{%- endif %}
{%- set solver.turns = solver.turns + [{"role": "assistant", "content": text}] %}
{#- What a tool returned is told by the user. #}
{%- else %}
{%- set solver.asked = solver.turns | length %}
{%- set solver.turns = solver.turns + [{"role": "user", "content": text}] %}
{%- endif %}
{%- endfor %}

{#- The menu follows the last of the user's turns. #}
{%- if solver.asked < 0 %}
{{- raise_exception("tools are given, but no message of a user") }}
{%- endif %}
{%- set text = solver.turns[solver.asked].content + "\\n<available_tools>\\n"
               + solver.menu | tojson + "\\n</available_tools>" %}
{%- set messages = [{"role": "system", "content": instructions + solver.system}]
                   + solver.turns[:solver.asked] + [{"role": "user", "content": text}]
                   + solver.turns[solver.asked + 1:] %}
{%- set tools = none %}
{%- endif %}
""".replace("SYSTEM", solver.SYSTEM) + END


def chat_template(base):
    """The template of a base, or of a checkpoint of ours, with our lines in front (once)."""
    return LINES + base.rpartition(END)[2]


# ---------------------------------------------------------------------------------------------
# Reading

# For the module `regex`, which reads response templates: (?&value) matches the group of that name,
# \G where the last match ended, and a repeat with + gives nothing back, so that no answer of up to
# a hundred calls takes long. ~ is JSON's white space. A match is one call, since servers stream
# calls one by one.
CALL = r"""(?x)
(?(DEFINE)
  (?P<string> " (?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )*+ " )
  (?P<number> -? (?: 0 | [1-9][0-9]*+ ) (?: \.[0-9]++ )? (?: [eE][-+]?[0-9]++ )? )
  (?P<list>   \[ ~ (?: (?&value) ~ (?: , ~ (?&value) ~ )*+ )? \] )
  (?P<pair>   (?&string) ~ : ~ (?&value) ~ )
  (?P<object> \{ ~ (?: (?&pair) (?: , ~ (?&pair) )*+ )? \} )
  (?P<value>  (?&string) | (?&number) | (?&list) | (?&object) | true | false | null )
  (?P<call>   \{ ~ "name" ~ : ~ " [^"\\\x00-\x1f]+ " ~ , ~ "arguments" ~ : ~ (?&object) ~ \} )
)
(?: GAP <tool_call_answer> FENCE (?P<several> \[ )? | (?<= \} ) \G ~ (?P<several> , ) ) ~
(?= (?&call) (?(several) (?: ~ , ~ (?&call) )*+ ~ \] ) CLOSE )      # and is right to its end
\{ ~ "name" ~ : ~ " (?P<name> [^"\\]+ ) " ~ , ~ "arguments" ~ : ~ (?P<arguments> (?&object) ) ~ \}
"""
NO_CALL = r"(?x: GAP <tool_call_answer> FENCE \[ ~ \] CLOSE )"
CALL_END = r"(?x) ~ \]? CLOSE | (?= ~ , )"
# A gap is looked for at its first blank only: the length of a long one would count squared.
PARTS = {"GAP": r"(?<!\s)\s*+", "FENCE": r"\s*+ (?: ``` (?: \w* [ \t\r]* \n )? ~ )?",
         "CLOSE": r"\s*+ (?: ``` ~ )? </tool_call_answer>", "~": r"[ \t\n\r]*+"}


def pattern(text):
    """The regular expression that is meant by one of the texts above."""
    for name, part in PARTS.items():
        text = text.replace(name, part)
    return text


def response_template(ends):
    """How transformers and vLLM read an answer, in transformers' format of that name.

    Args:
        ends: texts of the tokens that end a completion.
    """
    end = "|".join(map(re.escape, ends))
    return {
        "defaults": {"role": "assistant"},
        # An answer has nothing of the prompt in it, but for a <think> that the template has opened.
        "start_anchor_pattern": r"(?=<think>\s*\Z)|(?<!<think>)(?<!<think>\n)\Z",
        "fields": {
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open_pattern": pattern(CALL), "close_pattern": pattern(CALL_END), "repeats": True,
                "transform": {"type": "function",
                              "function": {"name": "{name}", "arguments": "{arguments}"}}},
            "content": {"close_pattern": pattern(f"{NO_CALL}|GAP(?:{end})")}}}


# ---------------------------------------------------------------------------------------------
# Both


def drop_in(tokenizer, eos):
    """A copy of a tokenizer, to be saved with a checkpoint; without tools it renders as before.

    Args:
        eos: ids that end a completion.
    """
    served, base = copy.copy(tokenizer), tokenizer.chat_template
    if isinstance(base, dict):     # of several with names, `tool_use` is the one for tools
        served.chat_template = base | {"tool_use": chat_template(base["default"])}
    else:
        served.chat_template = chat_template(base)
    served.response_template = response_template([tokenizer.decode([token]) for token in eos])
    return served


def write_checkpoint(path, lm, weights):
    """Write a Hugging Face checkpoint, the weights last; `from_pretrained` loads it. OSError if the
    disk does not take it.

    Args:
        path: a directory; made if it is not there.
        lm: model.LM whose configuration and tokenizer belong to the weights.
        weights: {name: fp32 CPU tensor}.
    """
    path.mkdir(parents=True, exist_ok=True)
    # As transformers writes them; its save_pretrained would refuse some that it has loaded.
    shape = copy.deepcopy(lm.model.config)
    shape.dtype, shape.architectures = torch.float32, [type(lm.model).__name__]
    shape.to_json_file(path / "config.json")
    lm.model.generation_config.to_json_file(path / "generation_config.json")
    try:
        drop_in(lm.tokenizer, lm.eos).save_pretrained(path)
    except Exception as error:      # the tokenizers library has none of its own for a full disk
        raise OSError(f"{path / 'tokenizer.json'}: {error}") from None
    write_tensors(path / "model.safetensors", weights, {"format": "pt"})
