"""The load: N streams from one process of its own. Prints what it saw as one line of JSON.

Run as `python -m bench.client TARGET JOB`, where JOB is a `Load` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import uvloop

from bench.workload import METHOD, Load, request_bytes
from llama31.v1 import chat_service_pb2 as pb


async def one_stream(channel: grpc.aio.Channel, load: Load, metadata: Any, out: dict[str, Any]) -> None:
    """Asks `load.requests` times in a row."""
    call_method = channel.unary_stream(METHOD)
    request = request_bytes(load)
    for _ in range(load.requests):
        began_s = time.perf_counter()
        arrivals: list[tuple[float, bytes]] = []
        last = b""
        async for message in call_method(request, metadata=metadata):
            now_s = time.perf_counter()
            out["messages"] += 1
            last = message
            if len(arrivals) < 2 or load.lateness:
                arrivals.append((now_s, message))
        usage = pb.StreamChatResponse.FromString(last).event.completed.usage
        if usage.output_tokens != load.tokens:
            raise RuntimeError(f"{usage.output_tokens} of {load.tokens} tokens came")
        # The first message says that the request has started, the second holds the first token.
        out["ttft_s"].append(arrivals[1][0] - began_s)
        if load.lateness:
            out["late_s"].extend(lateness_s(arrivals, load.step_s))


def lateness_s(arrivals: list[tuple[float, bytes]], step_s: float) -> list[float]:
    """How much later than its step each token came, the most punctual one being on time."""
    times: list[float] = []
    for at_s, message in arrivals:
        times.extend([at_s] * len(pb.StreamChatResponse.FromString(message).event.delta.tokens.ids))
    offsets = [at_s - index * step_s for index, at_s in enumerate(times)]
    return [offset - min(offsets) for offset in offsets]


async def run(target: str, load: Load, key: str) -> dict[str, Any]:
    """All streams, spread over as few connections as the server's limit on streams allows."""
    out: dict[str, Any] = {"messages": 0, "ttft_s": [], "late_s": []}
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    # Two connections, as two client processes of one application would have.
    channels = [grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) for _ in range(2)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    cpu_s, began_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one_stream(channels[n % 2], load, metadata, out) for n in range(load.streams)))
    out["elapsed_s"] = time.perf_counter() - began_s
    out["client_cpu_s"] = time.process_time() - cpu_s
    for channel in channels:
        await channel.close()
    # Percentiles only: a line of JSON with every token's time would be longer than a pipe takes at once.
    late_s, ttft_s = out.pop("late_s"), out.pop("ttft_s")
    out["late_p99_s"] = percentile(late_s, 0.99) if late_s else None
    return out | {"ttft_p50_s": percentile(ttft_s, 0.5), "ttft_p99_s": percentile(ttft_s, 0.99)}


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[int(len(values) * share)]


if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    print(json.dumps(uvloop.run(run(sys.argv[1], Load(**job["load"]), job["key"]))), flush=True)
