"""Run by test_model.py on 1, 2 and 4 ranks: what a sampler shared among ranks draws, as JSON."""
import json
import sys

import torch.distributed as dist

import model as lms
import solver
import tiny


def main():
    dist.init_process_group("gloo")
    lm = lms.load(tiny.PATH, lms.load_tokenizer(tiny.PATH))
    prompts = [lms.encode_chat(lm.tokenizer, solver.prompt(task.question, task.tools))
               for task in tiny.heldout(7)]
    groups = lms.sample(lm, prompts, 3, (5,), 1.0, 60, rows=6)
    picks = lms.choose(lm, prompts, [40, 50, 60], rows=2)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump([[[rollout.ids for rollout in group] for group in groups], picks], file)
    lms.leave_group()


if __name__ == "__main__":
    main()
