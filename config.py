"""Settings of a run: every field a flag, its value from the paper, its authors' code, or us; and
the command line that reads them.

Bad input ends here, in one line, before anything long.
"""
import argparse
import dataclasses
import hashlib
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import curriculum
import generator
import tiny
from cli import Parser, Refused, boolean, refuse
from disk import MEND, read_json, read_json_as
from toolfiles import read_menu
from verify import menu_problem

MOST_WEIGHT = 1e9      # of a domain: sums of weights stay exact enough
DOMAIN_SETS = {"all": generator.DOMAINS, "tiny": dict.fromkeys(tiny.VERBS, 1.0)}


@dataclass(frozen=True)
class Config:
    """All settings of a run, each a flag.
    Sources: P the paper, C its authors' code, us: our choice."""

    preset: str = "paper"                # us
    model: str = "Qwen/Qwen2.5-1.5B-Instruct"   # P; a directory, a hub name, or "tiny"
    run_dir: str = ""                    # us; empty: runs/<preset>
    seed: int = 0                        # us
    iterations: int = 3                  # P
    generator_steps: int = 50            # P: optimizer steps of a phase
    solver_steps: int = 50               # P
    generator_prompts: int = 6           # C: 24 completions a step, over all ranks
    solver_prompts: int = 8              # C: 32 completions a step
    group_size: int = 4                  # C: G, completions of a prompt
    generator_temperature: float = 1.0   # C: of the samples that are trained on
    solver_temperature: float = 1.0      # C: as that
    probes: int = 8                      # P: K of Eq. 3
    probe_temperature: float = 0.7       # C: of probes, pool and cross-verification
    pool_size: int = 10_000              # P
    verify_samples: int = 10             # C: Solver samples of a candidate task
    curriculum_size: int = 2000          # P
    domains: str = "all"               # P: uniform over 32; "tiny", or a JSON file {domain: weight}
    tools: str = ""                      # us: a JSON file with your own tools; empty: invented ones
    max_prompt: int = 4096               # us: tokens; longer tasks are dropped, never cut
    max_completion: int = 2048           # C: tokens, in training
    max_verify: int = 1024               # C: tokens of a verification sample, probe or answer
    generator_learning_rate: float = 1e-6     # C: falls linearly to 0 over a phase
    solver_learning_rate: float = 1e-6        # C: as that
    inner_updates: int = 1               # C: mu
    epsilon: float = 0.2                 # C: clipping range
    max_grad_norm: float = 1.0           # C
    dtype: str = "bf16"                  # P; "fp32" for tests
    micro_tokens: int = 16_384           # us: tokens per forward pass on a rank, prompts once
    sample_rows: int = 64                # us: samples decoded together on a rank
    gradient_checkpointing: bool = True  # us: trades a second forward pass for memory
    heldout_tasks: int = 500             # us: of tiny.py, solved greedily; 2/5 as many fit no tool
    save_every: int = 10                 # us: training steps between two resumable states
    collective_timeout: int = 30         # us: minutes that a rank waits for the others
    deepspeed: str = ""                  # us: a JSON file laid over our DeepSpeed settings
    assert_invariants: bool = False      # us: checks of every step, for debugging
    shared_weights: bool = False         # P, ablation: one policy plays both roles
    freeze_generator: bool = False       # P, ablation: the base model writes every pool
    no_difficulty: bool = False          # P, ablation: r_curr is the judge alone
    band: str = "gaussian"               # P: shape of r_diff; "rectangular" is an ablation
    no_judge: bool = False               # us, ablation: r_curr is the difficulty alone
    no_grounding: bool = False           # us, ablation: values need not stand in the question
    no_cross_verification: bool = False  # us, ablation: tasks are kept however the Solver answers
    order: str = "easy_first"            # P; "shuffled" is an ablation
    strict_values: bool = False          # us, ablation: r_acc shares over all of gold's arguments
    obey_spec: bool = False              # us: drop tasks with other numbers of tools or calls
    decline: float = 0.0                 # us: share of tasks no tool fits; then a wrong one earns 0

    @property
    def path(self):
        """Directory of the run."""
        return Path(self.run_dir or f"runs/{self.preset}")

    @property
    def base(self):
        """Directory or hub name of the base model."""
        return str(tiny.PATH) if self.model == "tiny" else self.model

    @cached_property
    def domain_weights(self):
        """{domain: weight}. ValueError says what is wrong with the user's file."""
        if self.domains in DOMAIN_SETS:
            return {generator.OWN_DOMAIN: 1.0} if self.tools else DOMAIN_SETS[self.domains]
        weights = read_json(self.domains)
        if not isinstance(weights, dict) or not any(weights.values()) or not all(
                type(weight) in (int, float) and 0 <= weight <= MOST_WEIGHT
                for weight in weights.values()):
            raise ValueError(f"{self.domains} must hold one JSON object {{domain: weight}}, "
                             "weights not negative and not all 0")
        if odd := [domain for domain in weights if not domain.isprintable()]:
            raise ValueError(f"{self.domains}: {odd[0]!r} is no name of a domain")
        return {domain: float(weight) for domain, weight in weights.items()}

    @cached_property
    def own_deepspeed(self):
        """The user's DeepSpeed settings; engine.settings says whether they will do."""
        return read_json(self.deepspeed) if self.deepspeed else {}

    @cached_property
    def own_tools(self):
        """The user's tools in the form of verify.normalise_tool, or None."""
        return read_own_tools(self.tools) if self.tools else None


def read_own_tools(path):
    """The tools in the user's file. Refused, naming tool and parameter, if no task could be made
    for one."""
    tools = read_json_as(path, read_menu)
    reason, place = menu_problem(tools)
    if reason:
        kinds = " (string, integer, number, boolean)" * (reason == "type_not_primitive")
        raise Refused(f"{path}: {place}: {reason.replace('_', ' ')}{kinds}")
    return tools


TINY = dict(
    model="tiny", domains="tiny", generator_steps=16, solver_steps=10, generator_prompts=8,
    solver_prompts=8, group_size=8, pool_size=256, curriculum_size=128, max_prompt=1024,
    max_completion=320, max_verify=128, micro_tokens=8192, sample_rows=512,
    generator_temperature=0.8,     # at 1 a quarter of its tasks has a fault, at 0.8 a seventh
    # The Generator has to change what it asks, which takes a higher rate.
    generator_learning_rate=1.5e-3, solver_learning_rate=8e-4,
    gradient_checkpointing=False)
SMALL = dict(   # 135M to 0.5B parameters after a cold start, on two CPU cores or one small GPU
    model="models/cold",       # what coldstart.py wrote
    # A Generator writes 400 tokens where a Solver writes 80, and every task of it is tried: few
    # steps of the one, many of the other. An iteration takes 45 minutes on two cores.
    generator_steps=6, solver_steps=48, generator_prompts=8, solver_prompts=8, group_size=6,
    generator_temperature=0.7,     # at 1 a model of 135M writes 10 valid tasks of 48, at 0.7 26
    pool_size=512, curriculum_size=128,       # a quarter of such a pool is sound and solvable
    max_prompt=1536, max_completion=640, max_verify=256,      # a menu of 8 tools takes 500 tokens
    # At 6e-5 the Generator was at easy tasks in 12 steps, at 2e-5 it stayed what it was.
    generator_learning_rate=4e-5, solver_learning_rate=2e-5,
    sample_rows=24,            # two ranks share even the 48 samples of a step
    micro_tokens=4096, gradient_checkpointing=False, heldout_tasks=100, save_every=2)
PRESETS = {
    "paper": {},
    "small": SMALL,
    "tiny": TINY,
    "ablation": TINY | dict(solver_steps=4, heldout_tasks=250),
}
# Flags that name a file, and the property that is its content.
FILES = {"domains": "domain_weights", "tools": "own_tools", "deepspeed": "own_deepspeed"}
CHOICES = {"dtype": ("bf16", "fp32"), "order": curriculum.ORDERS, "band": curriculum.BANDS}
# What may differ when a run is resumed. The last two may move results, by rounding.
CHANGEABLE = {"run_dir", "iterations", "save_every", "collective_timeout", "assert_invariants",
              "micro_tokens", "sample_rows"}

# ---------------------------------------------------------------------------------------------
# Command line


def parse(argv):
    """(Config, action) from the command line:
    the preset, with the flags that were given over it."""
    parser = Parser(description="Tool-R0: self-play from zero task data.")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--check", dest="action", action="store_const", const="check",
                        help="print what the run will need and what there is, and exit")
    parser.add_argument("--explain", dest="action", action="store_const", const="explain",
                        help="print every setting with its source, and exit")
    for field in dataclasses.fields(Config):
        if field.name != "preset":
            switch = (dict(type=boolean, nargs="?", const=True) if field.type is bool
                      else dict(type=field.type))
            parser.add_argument(
                f"--{field.name}", default=argparse.SUPPRESS, choices=CHOICES.get(field.name),
                **switch,
                help=f"{sources()[field.name]} (paper: {field.default})".replace("%", "%%"))
    given = vars(parser.parse_args(argv))
    given.pop("local_rank")
    action = given.pop("action")
    config = Config(**PRESETS[given["preset"]] | given)
    if problem := find_problem(config) or action != "explain" and directory_problem(config):
        refuse(problem)
    return config, action


def find_problem(config):
    """What is wrong with the settings, in one line, or None."""
    for field in dataclasses.fields(config):
        value, least = getattr(config, field.name), 2 if field.name == "group_size" else 1
        if field.type is int and field.name != "seed" and value < least:
            return f"--{field.name} is {value}: it must be at least {least}"
        if (field.type is float and field.name != "decline"
                and not 0 < value < float("inf")):
            return f"--{field.name} is {value}: it must be above 0"
    if not 0 <= config.decline < 1:
        return f"--decline is {config.decline}: it must be at least 0 and below 1"
    if config.epsilon >= 1:
        return f"--epsilon is {config.epsilon}: it must be below 1"
    for one, other in (("shared_weights", "freeze_generator"), ("no_judge", "no_difficulty")):
        if getattr(config, one) and getattr(config, other):
            return f"--{one} and --{other} exclude each other"
    for flag, content in FILES.items():
        try:
            getattr(config, content)
        except ValueError as error:
            return f"--{flag} {error}"
    return None


def record(config):
    """What config.json holds of the settings: the script and its code, the flags, and the content
    of the files they name."""
    return {"script": Path(sys.argv[0]).name, "code": code_hash(),
            "config": dataclasses.asdict(config),
            "files": {flag: getattr(config, content) for flag, content in FILES.items()}}


def code_hash():
    """Short hash of the files of this folder that are loaded: whoever edits one and runs again with
    the same settings makes another experiment."""
    files = {Path(module.__file__) for module in tuple(sys.modules.values())
             if getattr(module, "__file__", None)}
    here = sorted(file for file in files if file.parent == Path(__file__).parent)
    return hashlib.sha256(b"".join(file.read_bytes() for file in here)).hexdigest()[:8]


def directory_problem(config):
    """How an existing run directory disagrees with the settings, or None."""
    file = config.path / "config.json"
    try:
        if not file.exists():
            return None
    except OSError as error:
        return f"--run_dir {config.run_dir} cannot be used: {error.strerror}"
    before, now = read_json(file, MEND), record(config)
    try:
        flags, contents = dict(before["config"]), dict(before["files"])
        iterations = int(flags["iterations"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return f"{file} is not what this version writes{MEND}"
    script = before.get("script", now["script"])
    differing = [f"the script was {script} and is {now['script']}"] * (script != now["script"])
    differing += [f"--{name} was {flags.get(name)!r} and is {value!r}"
                  for name, value in now["config"].items()
                  if name not in CHANGEABLE and flags.get(name) != value]
    if iterations > config.iterations:
        differing.append(f"--iterations was {iterations} and is {config.iterations}")
    differing += [f"the file of --{name} has changed" for name, value in now["files"].items()
                  if contents.get(name) != value]
    return (f"{config.path} holds a run with other settings: {'; '.join(differing)}. "
            "Give another --run_dir" if differing else None)


def sources():
    """{setting: the comment behind it in Config}."""
    pattern = re.compile(r"^    (\w+): \w+ = .*?# (.*)$", re.MULTILINE)
    return dict(pattern.findall(inspect.getsource(Config)))


def explain(config):
    """Print every setting, its value, its source, and where it differs from the paper's."""
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        differs = "" if value == field.default else f"   [paper preset: {field.default}]"
        print(f"{field.name:22} {str(value):28} {sources()[field.name]}{differs}")
