"""Cold start: a base that cannot yet speak the three roles learns to.

    python coldstart.py --model DIR --out DIR
    deepspeed coldstart.py --model DIR --out DIR      # the same over all GPUs that see DIR

On a weak base all groups of self-play are dead: no completion is right, none is better than
another, and there is nothing to strengthen. So it first sees some thousand made-up tasks
(coldstart_world.py), through exactly the prompts of training, with what Solver, Generator and judge
should say: supervised next-token prediction on the assistant's tokens. The embedded model (tiny.py)
is pretrained by the same steps.

Weights and optimizer are in fp32, the model computes in bf16. The state is saved every few steps,
and the examples of a step depend on the seed and its number alone: the same command again goes on
where it was, bit for bit.
"""
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import coldstart_world
import curriculum
import grpo
import model as lms
import serving
from cli import Parser, Refused, checked, positive, refuse
from disk import replacing, write_json
from generator import TAGS
from verify import Task

WARM_UP = 0.05               # share of the steps
MOST_GRADIENT = 1.0          # norm at which the gradient is clipped

# ---------------------------------------------------------------------------------------------
# The trainer


class Trainer:
    """Supervised steps on a causal LM, whose weights are trained in place.

    Every rank holds the whole model; a step's examples are shared among the ranks.

    Attributes:
        losses: of each step taken.
        masters: {name: fp32 weight}; the model's own are these, rounded to its dtype.
    """

    def __init__(self, lm, steps, learning_rate, dtype=torch.float32, micro_tokens=4096):
        """
        Args:
            lm: model.LM with fp32 weights.
            steps: in all.
            learning_rate: at its highest.
            dtype: what the model is to compute in.
            micro_tokens: tokens of one forward pass; a longer example comes alone.
        """
        self.lm, self.steps, self.losses = lm, steps, []
        self.learning_rate, self.micro_tokens = learning_rate, micro_tokens
        self.masters = {name: param.detach().clone() for name, param in lm.model.named_parameters()}
        # (weight of the model, its master) one after the other
        self.pairs = list(zip(lm.model.parameters(), self.masters.values(), strict=True))
        for param, master in self.pairs:
            param.data = param.data.to(dtype)     # model.to would round the rotary tables too
            master.grad = torch.zeros_like(master)
        self.optimizer = torch.optim.AdamW(self.masters.values(), betas=(0.9, 0.98),
                                           weight_decay=0.01, fused=True)

    @property
    def step(self):
        """Steps taken so far."""
        return len(self.losses)

    def train_step(self, examples):
        """One optimizer step on (chat messages, completion) pairs, the same list on every rank.

        loss = -(1 / assistant's tokens in the step) sum log p(token)

        Returns:
            (loss, tokens read), the same on every rank. Refused if loss or gradient is not finite,
            or all examples are too long.
        """
        groups = [[row] for row in sorted(encode(self.lm, examples), key=length)]
        if not groups:
            raise Refused("no example of a step is short enough for the model's positions")
        assistant_tokens = sum(len(row.ids) for row, in groups)
        rank, world = lms.rank_and_world()
        loss = torch.zeros((), device=self.lm.model.device)
        for micro in grpo.cut(groups, rank, world, self.micro_tokens):
            packed = lms.pack([groups[n] for n, _ in micro], loss.device)
            part = -lms.token_logprobs(self.lm.model, packed)[0].sum() / assistant_tokens
            part.backward()
            loss += part.detach()
            for param, master in self.pairs:
                master.grad += param.grad         # summed in fp32
                param.grad = None
        if world > 1:
            for tensor in (loss, *(master.grad for master in self.masters.values())):
                dist.all_reduce(tensor)
        norm = clip_grad_norm_(self.masters.values(), MOST_GRADIENT)
        if not math.isfinite(loss + norm):
            raise Refused(f"the loss is {loss.item()} at step {self.step + 1}, the norm of its "
                          f"gradient {norm.item()}: give a lower --learning_rate")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * schedule(self.step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.refresh()
        self.losses.append(loss.item())
        return loss.item(), sum(length(row) for row, in groups)

    @torch.no_grad()
    def refresh(self):
        """The masters into the model."""
        for param, master in self.pairs:
            param.copy_(master)

    def save(self, path, settings):
        """Write all that the next step depends on, replacing the file as a whole. OSError if the
        disk does not take it."""
        try:
            with replacing(path) as part:
                torch.save({"settings": settings, "losses": self.losses, "masters": self.masters,
                            "optimizer": self.optimizer.state_dict()}, part)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {lms.one_line(error)}") from None

    @torch.no_grad()
    def resume(self, path, settings):
        """Go on from a file that `save` wrote. Refused if it is damaged or of other settings."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before = state["settings"]
            for name in settings:
                if settings[name] != before[name]:
                    raise Refused(f"{path} is of a run with another --{name} ({before[name]}): "
                                  "give that, or another --out")
            self.losses = state["losses"]
            self.optimizer.load_state_dict(state["optimizer"])
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
        except (Refused, OSError):
            raise
        except Exception:      # a damaged file makes it raise what it likes
            raise Refused(f"{path} is damaged: remove it, and training starts again") from None
        self.refresh()


def encode(lm, examples):
    """model.Rollouts whose completions are what is to be said; without those that the model's
    positions do not reach. A tag that the template has opened is not said again, or is closed
    where nothing is to be thought."""
    rows, tag = [], lms.opened(lms.chat_text(lm.tokenizer, lms.TURNS[:2])).strip()
    room = lms.positions(lm.model.config)
    eos = next(n for n in (lm.tokenizer.eos_token_id, *lm.eos) if n is not None)
    for messages, completion in examples:
        prompt = lms.encode_chat(lm.tokenizer, messages, close=not completion.startswith(tag))
        ids = lm.tokenizer.encode(completion.removeprefix(tag), add_special_tokens=False)
        rows.append(lms.Rollout(prompt, [*ids, eos], completion, True, []))
    return [row for row in rows if length(row) <= room]


def length(row):
    return len(row.prompt) + len(row.ids)


def schedule(step, steps):
    """Share of the learning rate at a step: a linear warm-up, then a cosine to zero.

    >>> [round(schedule(step, 40), 2) for step in (0, 1, 2, 21, 39)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def train(trainer, batch, save=lambda: None, description="cold start"):
    """Take the steps that are left, under a progress bar.

    Args:
        batch: function of a step's number to its (chat messages, completion) pairs.
        save: called after every step.
    """
    bar = tqdm(total=trainer.steps, initial=trainer.step, desc=description, mininterval=1,
               disable=lms.rank_and_world()[0] > 0)
    started, tokens, mean = time.time(), 0, None
    while trainer.step < trainer.steps:
        loss, read = trainer.train_step(batch(trainer.step))
        tokens, mean = tokens + read, loss if mean is None else 0.9 * mean + 0.1 * loss
        bar.set_postfix({"loss": f"{mean:.3f}",
                         "tokens/s": f"{tokens / (time.time() - started):.0f}"}, refresh=False)
        bar.update()
        save()
    bar.close()


# ---------------------------------------------------------------------------------------------
# The program


def run(args):
    """The cold start from checkpoint to checkpoint."""
    import engine      # DeepSpeed takes seconds to start: not for those who want the trainer alone
    if any(args.out.glob("*.safetensors")):
        raise Refused(f"{args.out} holds a finished model: give another --out")
    if not args.learning_rate > 0:
        raise Refused(f"--learning_rate {args.learning_rate} is not above 0")
    device = engine.init_distributed()
    tokenizer = checked(lms.load_tokenizer, args.model, TAGS)
    checked(lms.choice_ids, tokenizer, curriculum.judge_prompt(Task("", [], [])), curriculum.SCORES)
    lm = checked(lms.load, args.model, tokenizer, torch.float32, device)
    if args.gradient_checkpointing:
        lm.model.gradient_checkpointing_enable()
        lm.model.train()
    trainer = Trainer(lm, args.steps, args.learning_rate,
                      torch.float32 if args.fp32 else torch.bfloat16, args.micro_tokens)
    settings = {name: getattr(args, name)
                for name in ("model", "steps", "batch", "learning_rate", "seed", "fp32")}
    first, state = lms.rank_and_world()[0] == 0, args.out / "state.pt"
    checked(lambda: args.out.mkdir(parents=True, exist_ok=True))
    if state.exists():
        checked(trainer.resume, state, settings)
    if len(set(lms.of_every_rank(trainer.step))) > 1:
        raise Refused(f"not all ranks see {args.out}: give an --out on a file system they share")

    def save():
        if first and (trainer.step % args.save_every == 0 or trainer.step == args.steps):
            checked(trainer.save, state, settings)

    train(trainer, lambda step: coldstart_world.examples(args.seed, step, args.steps, args.batch),
          save)
    if first:
        checked(write_json, args.out / coldstart_world.RECORD,
                {"settings": settings, "roles": coldstart_world.ROLES, "losses": trainer.losses})
        checked(serving.write_checkpoint, args.out, lm, trainer.masters)
        state.unlink(missing_ok=True)
        print(f"wrote {args.out}")
    lms.leave_group()


def main():
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="directory or hub name of the base")
    add("--out", required=True, type=Path, help="directory to write")
    add("--steps", type=positive, default=160)
    add("--batch", type=positive, default=8, help="examples in a step")
    add("--learning_rate", type=float, default=3e-4)
    add("--seed", type=int, default=0)
    add("--micro_tokens", type=positive, default=4096, help="of one forward pass: less memory")
    add("--save_every", type=positive, default=20, help="steps")
    add("--gradient_checkpointing", action="store_true", help="less memory, a third slower")
    add("--fp32", action="store_true", help="compute in fp32, not in bf16")
    run(parser.parse_args())


if __name__ == "__main__":
    try:
        main()
    except Refused as problem:
        lms.leave_group()
        refuse(problem)
    except torch.OutOfMemoryError as error:
        refuse(f"{lms.one_line(error)}: give a smaller --micro_tokens, or --gradient_checkpointing",
               everywhere=True)
    except KeyboardInterrupt:
        refuse("stopped; the same command goes on from the last saved step", 130)
