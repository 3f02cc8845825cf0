"""vLLM's turns in rollout.py, run by the Python that vLLM is installed for. It imports nothing of
ours.

The first line that it reads says what to sample, as JSON: model, dtype, prompts (lists of ids),
samples of each, most tokens, eos (ids; none: as many tokens for every sample). For each further
line it samples once and prints tokens per second.
"""
import json
import sys
import time

import vllm


def main():
    line = sys.stdin.readline()
    if not line:      # the benchmark has ended before its first turn
        return
    task = json.loads(line)
    longest = max(map(len, task["prompts"])) + task["most"]
    rows = len(task["prompts"]) * task["samples"]
    llm = vllm.LLM(model=task["model"], dtype=task["dtype"], max_model_len=longest,
                   max_num_seqs=rows, seed=0)
    sampling = vllm.SamplingParams(
        n=task["samples"], temperature=1.0, top_p=1.0, top_k=0, max_tokens=task["most"],
        stop_token_ids=task["eos"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    print(f"vLLM {vllm.__version__}", file=sys.stderr)
    for _ in sys.stdin:
        llm.reset_prefix_cache()      # between two rounds of a training the weights have changed
        started = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        tokens = sum(len(row.token_ids) for output in outputs for row in output.outputs)
        print(f"\nmeasured {tokens / (time.perf_counter() - started)}", flush=True)


if __name__ == "__main__":
    main()
