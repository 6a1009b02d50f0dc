"""vLLM by itself: the yardstick of the GPU tests. Reads a job as JSON, prints ids and seconds as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from vllm import LLM, SamplingParams


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Greedy ids of each prompt, one prompt after the other, then the seconds for all of them at once."""
    llm = LLM(**job["engine"])
    params = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    ids = [list(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids) for prompt in prompts]
    began_s = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return {"ids": ids, "together_s": time.perf_counter() - began_s}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))), flush=True)
