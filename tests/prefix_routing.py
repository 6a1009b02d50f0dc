"""What do tests of prefix routing ask of a served application, and where do they look?"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import urllib.request
from collections.abc import Callable

from ray.exceptions import RayError

from deployments.client import ChatStream, Client
from tests.serving import greedy, ready_records, wait_for
from tests.waiting import free_port

METRICS_PORT = free_port()


def question(topic: int) -> str:
    """Several routing blocks of 128 tokens that no other topic shares."""
    return f"Topic {topic}. " + " ".join(f"Item {index} of topic {topic} is unremarkable." for index in range(60))


def _scrape() -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def metric(pattern: str) -> float:
    """The sum of the series that match."""
    text = wait_for(_scrape, 20, "some process of the node exports, also after the one that did was killed")
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


async def ask(client: Client, text: str, tokens: int = 4) -> ChatStream:
    """The whole answer's stream."""
    stream = client.chat(text, options=greedy(tokens))
    await stream.text()
    return stream


def cached_tokens(stream: ChatStream) -> int:
    assert stream.usage is not None
    return stream.usage.cached_prompt_tokens


def replica_of(stream: ChatStream) -> str:
    assert stream.result.started is not None
    return stream.result.started.replica_id


def blocks() -> float:
    """What the ingress knows."""
    return metric(r"llama31_index_blocks\{.*\}")


def routes(reason: str) -> float:
    return metric(rf'llama31_routes_total\{{.*reason="{reason}".*\}}')


def indexed() -> float:
    """Replicas that tell what they hold."""
    return metric(r"llama31_indexed_replicas\{.*\}")


def is_whole() -> bool:
    """Two replicas are there, and tell."""
    try:
        replicas = len(ready_records())
    except RayError:  # a directory that is starting
        return False
    return replicas == 2 and indexed() == 2


async def soon(condition: Callable[[], object], limit_s: float, what: str) -> None:
    await asyncio.to_thread(wait_for, condition, limit_s, what)


def kill(replica_id: str) -> None:
    os.kill(next(record.pid for record in ready_records() if record.replica_id == replica_id), signal.SIGKILL)
