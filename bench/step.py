"""Seconds of a whole GRPO step: ours against TRL's GRPOTrainer with its transformers sampler.

    python bench/step.py                     # tiny model, 16 prompts x 8 completions, fp32
    python bench/step.py --model models/smollm2 --dtype bfloat16 --prompts 8 --tokens 64

A step is sampling, rewards, log-probs, backward, optimizer, and for ours also the copy of the new
weights to the sampler (TRL samples from the weights that it trains). Settings are equal: prompts,
group size, most tokens, loss, learning rate, clipping, and our rewards for both. Micro-batches are
cut by tokens here and by completions there. In bf16, TRL has weights in bf16 alone, its fastest
way; ours keeps fp32 masters beside them.

Each has a process of its own, since DeepSpeed slows down whatever shares one with it, and they take
their steps in turns.
"""
import argparse
import json
import sys
import time
from types import SimpleNamespace

import common
import run      # noqa: F401  before torch: how threads wait, which both workers inherit
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import engine
import grpo
import model as lms
import solver
import tiny

RATE, GROUP = 1e-5, 8


def reward(text, answer):
    return sum(solver.reward(text, answer).values())


def our_steps(args, tasks):
    """Do one step for each line that comes in; say how many seconds it took."""
    device, dtype = engine.init_distributed(), getattr(torch, args.dtype)
    tokenizer = lms.load_tokenizer(args.model)
    lm = lms.load(args.model, tokenizer, dtype, device)
    made = engine.Engine(lms.build(args.model, dtype, device), SimpleNamespace(
        dtype={"float32": "fp32", "bfloat16": "bf16"}[args.dtype],
        max_grad_norm=1.0, gradient_checkpointing=False, deepspeed=""))
    made.load(lms.read_weights(args.model))
    prompts = [lms.encode_chat(tokenizer, solver.prompt(task.question, task.tools))
               for task in tasks]

    def step(n):
        groups = lms.sample(lm, prompts, GROUP, (n,), 1.0, args.tokens, len(prompts) * GROUP)
        rewards = [[reward(rollout.text, task.answer) for rollout in group]
                   for group, task in zip(groups, tasks)]
        grpo.step(made, groups, torch.tensor(rewards), RATE, args.micro_tokens)
        made.copy_to(lm.model)

    for n in range(args.rounds + 1):
        input()
        common.say(common.seconds(step, n)[0])
    lms.leave_group()


class Turns(TrainerCallback):
    """Makes TRL wait for its turn, and times its step."""

    def on_step_begin(self, args, state, control, **kwargs):
        input()
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        common.say(time.perf_counter() - self.started)


def trl_rewards(completions, answer, **kwargs):
    return [reward(text, json.loads(gold)) for text, gold in zip(completions, answer)]


def trl_steps(args, tasks):
    """The same with TRL, which takes the same prompts in every step."""
    tokenizer = lms.load_tokenizer(args.model)
    texts = [tokenizer.apply_chat_template(solver.prompt(task.question, task.tools), tokenize=False,
                                           add_generation_prompt=True) for task in tasks]
    rows = Dataset.from_list([{"prompt": text, "answer": json.dumps(task.answer)}
                              for text, task in zip(texts, tasks)])
    model = lms.load(args.model, tokenizer, getattr(torch, args.dtype)).model
    model.set_attn_implementation("sdpa")
    config = GRPOConfig(
        output_dir="runs/bench_trl", per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=len(tasks) * GROUP // args.micro_batch, num_generations=GROUP,
        max_completion_length=args.tokens, learning_rate=RATE, lr_scheduler_type="constant",
        temperature=1.0, top_p=1.0, top_k=0, beta=0.0, epsilon=0.2, loss_type="grpo",
        scale_rewards="group",
        max_grad_norm=1.0, weight_decay=0.0, optim="adamw_torch", gradient_checkpointing=False,
        bf16=False, use_cpu=not torch.cuda.is_available(), max_steps=args.rounds + 1,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=10**6)
    GRPOTrainer(model=model, reward_funcs=trl_rewards, args=config, train_dataset=rows,
                processing_class=tokenizer, callbacks=[Turns()]).train()


def main():
    parser = common.parser(__doc__)
    common.add_model(parser, tiny.PATH)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a completion, at most")
    parser.add_argument("--micro_batch", type=int, default=32,
                        help="completions per forward pass of TRL")
    parser.add_argument("--micro_tokens", type=int, default=8192,
                        help="tokens per forward pass of ours")
    parser.add_argument("--worker", choices=("ours", "TRL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prompts * GROUP % args.micro_batch:
        parser.error(f"--micro_batch must divide the {args.prompts * GROUP} completions of a step")
    if args.worker:
        work = {"ours": our_steps, "TRL": trl_steps}[args.worker]
        return work(args, tiny.heldout(args.prompts))
    workers = {name: common.worker([sys.executable, *sys.argv, "--worker", name])
               for name in ("ours", "TRL")}
    results = common.take_turns(workers, args.rounds)
    settings = vars(args) | {"model": str(args.model), "group_size": GROUP,
                             "threads": torch.get_num_threads()}
    common.report(results, "seconds", settings, args.json, more_is_better=False)


if __name__ == "__main__":
    sys.exit(main())
