"""The record in docs/smollm2/, its first steps again, where the real weights lie in models/:

    python bench/real_model.py --out models/smollm2
    pytest -m slow tests/test_real_model.py
"""
import json
import sys

import pytest
import torch
from conftest import ROOT, call

import coldstart
import coldstart_world as world
import model as lms

BASE = ROOT / "models/smollm2"
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not BASE.exists(), reason="needs the weights: see the first line")]


def test_the_cold_start_begins_as_in_the_record():
    record = json.loads((ROOT / "docs/smollm2" / world.RECORD).read_text())
    made = record["settings"]
    lm = lms.load(BASE, lms.load_tokenizer(BASE))
    trainer = coldstart.Trainer(lm, made["steps"], made["learning_rate"], torch.bfloat16, 1200)
    losses = [trainer.train_step(world.examples(made["seed"], n, made["steps"], made["batch"]))[0]
              for n in range(3)]
    assert losses == pytest.approx(record["losses"][:3], rel=0.02)


def test_a_short_cold_start_plays_a_short_game(tmp_path):
    """Two steps teach it nothing yet: what is promised is that everything runs on real weights, and
    that the run says what is the matter."""
    call(sys.executable, "coldstart.py", "--model", BASE, "--out", tmp_path / "cold",
         "--steps", 2, "--batch", 2)
    output = call(sys.executable, "selfplay.py", "--preset", "small", "--model", tmp_path / "cold",
                  "--run_dir", tmp_path / "run", "--iterations", 1, "--generator_steps", 1,
                  "--solver_steps", 1, "--generator_prompts", 1, "--group_size", 2,
                  "--pool_size", 2, "--heldout_tasks", 2, "--max_completion", 64)
    assert "every group is dead" in output and "coldstart.py" in output
    assert "no task survived" in output
