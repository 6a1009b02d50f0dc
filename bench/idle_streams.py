"""What do thousands of streams cost that only wait? Open, hold, close, twice; the ingress's memory each time.

The engine takes every sequence and makes no token. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from typing import Any

import grpc
import psutil
import uvloop

from bench.processes import bare, ours
from bench.token_path import tenant
from bench.workload import METHOD, Load, codec, request_bytes

STREAMS_PER_CONNECTION = 500
# A token that nobody lives to see.
NEVER_S = 3600.0
SETTLE_S = 2.0
# After the first cycle a Python process keeps some of its arenas; after the second it should keep no more.
LEAK_BYTES_PER_STREAM = 1024


async def cycle(address: str, key: str, streams: int, pids: list[int]) -> tuple[int, int]:
    """Memory of the server's processes while all streams are open and after they have closed, in bytes."""
    request = request_bytes(Load(1, 2, NEVER_S))
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    count = -(-streams // STREAMS_PER_CONNECTION)
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
    calls: list[Any] = []
    for number in range(streams):
        calls.append(channels[number % count].unary_stream(METHOD)(request, metadata=metadata))
        if number % 100 == 99:
            # The first message of each says that it has started.
            await asyncio.gather(*(call.read() for call in calls[-100:]))
    await asyncio.sleep(SETTLE_S)
    held = memory_bytes(pids)
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()
    await asyncio.sleep(SETTLE_S)
    return held, memory_bytes(pids)


def memory_bytes(pids: list[int]) -> int:
    """Resident memory, shared pages counted once per process."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def measure(address: str, key: str, streams: int, pids: list[int]) -> dict[str, float]:
    """Two cycles; the second shows what a stream costs once the process has its working memory."""
    idle = memory_bytes(pids)
    first_held, after_first = uvloop.run(cycle(address, key, streams, pids))
    second_held, after_second = uvloop.run(cycle(address, key, streams, pids))
    return {
        "idle_mib": round(idle / 2**20, 1),
        "held_mib": round(max(first_held, second_held) / 2**20, 1),
        "kib_per_stream": round((max(first_held, second_held) - idle) / streams / 2**10, 2),
        "leaked_bytes_per_stream": round((after_second - after_first) / streams, 1),
    }


def main() -> int:
    """0 if nothing leaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 streams in place of 5,000")
    streams = 1000 if parser.parse_args().quick else 5000
    codec()
    load = Load(streams, 2, NEVER_S)
    result: dict[str, Any] = {"streams": streams}
    with ExitStack() as stack:
        tenants_file, key = stack.enter_context(tenant())
        address, pids = stack.enter_context(ours(load, tenants_file))
        # The ingress alone: the replica would hold KV on a GPU, not these bytes.
        result["ours"] = measure(address, key, streams, pids[:1])
    with bare(load) as (address, pids):
        result["bare"] = measure(address, "", streams, pids)
    result["targets"] = {"leaked_bytes_per_stream": f"<= {LEAK_BYTES_PER_STREAM}"}
    result["ok"] = result["ours"]["leaked_bytes_per_stream"] <= LEAK_BYTES_PER_STREAM
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
