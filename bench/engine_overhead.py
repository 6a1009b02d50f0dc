"""How much of the real engine's speed reaches a client? Ours beside bare AsyncLLM, both on the stand-in with TP1.

Both engines are loaded at once and measured in turn, so that a slow minute hits both. The last line is one JSON
object. `vllm serve` is not measured: packages of its HTTP server are left out of this installation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from cluster.local import LocalCluster, LocalClusterSettings, prepare_environment

prepare_environment()

STREAMS, TOKENS = 8, 64
TARGET = 0.95
ROOT = Path(__file__).resolve().parents[1]
# What only the service sets: its executor and ranks.
OURS_ALONE = ("distributed_executor_backend", "worker_cls")


@contextmanager
def bare_engine() -> Iterator[subprocess.Popen[str]]:
    """AsyncLLM with the same arguments and vLLM's own executor for one rank."""
    from deployments.app import STAND_IN_ENVIRONMENT
    from deployments.config import load_config
    from deployments.engine_server import vllm_settings
    from llama31.vllm_engine import engine_arguments

    settings = vllm_settings(load_config("standin", {"plan": "tp1"}))
    arguments = {name: value for name, value in engine_arguments(settings).items() if name not in OURS_ALONE}
    command = [sys.executable, "-m", "bench.bare_vllm", json.dumps(arguments)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | STAND_IN_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            if process.poll() is not None:
                raise RuntimeError("the bare engine did not start")
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def ask_bare(process: subprocess.Popen[str], prompts: list[list[int]]) -> dict[str, Any]:
    """Seconds and ids of all prompts at once."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps({"prompts": prompts, "tokens": TOKENS}), file=process.stdin, flush=True)
    return dict(json.loads(process.stdout.readline()))


def ask_ours(address: str, model: str, prompts: list[list[int]]) -> dict[str, Any]:
    """The same through the gRPC door."""
    from tests.serving import greedy_ids

    async def ask() -> list[list[int]]:
        return await asyncio.gather(*(greedy_ids(address, model, prompt, TOKENS) for prompt in prompts))

    began_s = time.perf_counter()
    ids = asyncio.run(ask())
    return {"seconds": time.perf_counter() - began_s, "ids": ids}


def main() -> int:
    """0 if enough of the speed arrives and both say the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds in place of 9")
    rounds = 3 if parser.parse_args().quick else 9
    from deployments.weights import prepare_standin_weights
    from tests.serving import served

    prepare_standin_weights(print)
    random = Random(8)
    cluster = LocalCluster(LocalClusterSettings(1, 1, 8, dashboard=False), print)
    cluster.start()
    ratios, bare_rates, our_rates, is_equal = [], [], [], True
    try:
        with served({"plan": "tp1"}) as (config, address), bare_engine() as process:
            for number in range(rounds + 1):
                prompts = [[random.randrange(49_000) for _ in range(32)] for _ in range(STREAMS)]
                theirs, mine = ask_bare(process, prompts), ask_ours(address, config.model, prompts)
                is_equal &= theirs["ids"] == mine["ids"]
                if number == 0:
                    continue  # the first one warms up
                bare_rates.append(STREAMS * TOKENS / theirs["seconds"])
                our_rates.append(STREAMS * TOKENS / mine["seconds"])
                ratios.append(our_rates[-1] / bare_rates[-1])
                print(f"round {number}: bare {bare_rates[-1]:.1f} tokens/s, ours {our_rates[-1]:.1f}", flush=True)
    finally:
        cluster.stop()
    result = {
        "engine_ratio": round(statistics.median(ratios), 3),
        "bare_tokens_per_s": round(statistics.median(bare_rates), 1),
        "our_tokens_per_s": round(statistics.median(our_rates), 1),
        "equal_ids": is_equal,
        "targets": {"engine_ratio": f">= {TARGET}"},
    }
    result["ok"] = bool(is_equal and float(str(result["engine_ratio"])) >= TARGET)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
