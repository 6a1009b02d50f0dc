"""What do the unmodified clients talk to? Both doors over a scripted gateway, in a process of their own.

The last words of a request choose the script. Prints one line of JSON with the addresses once it listens.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from scripted_gateway import MODEL, Request, ScriptedGateway, failing, started

from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from llama31.chat import (
    ChatRequest,
    ChoiceDone,
    Completed,
    Delta,
    Event,
    FinishReason,
    JsonSchema,
    TokenColumns,
    ToolCallDelta,
    Usage,
)
from llama31.errors import Overloaded, StreamInterrupted

USAGE = Usage(3, 0, 2, 0.01, 0.02, 0.03, 0.04)
WORDS = ("Hello", " there")

Script = Callable[[Request], AsyncIterator[Event]]

_freed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def answer(request: Request) -> AsyncIterator[Event]:
    """Two deltas a choice, with log-probabilities or as JSON where the request says so."""
    options = request.options
    yield started()
    words = ('{"city":', ' "Paris"}') if isinstance(options.constraint, JsonSchema) else WORDS
    for choice in range(options.num_choices):
        for i, word in enumerate(words):
            columns = TokenColumns((65 + i,), (-0.5 - i,), 2, (65 + i, 70), (-0.5 - i, -2.5))
            yield Delta(choice, word, columns if options.returns.logprobs else None)
        yield ChoiceDone(choice, FinishReason.END_OF_TURN)
    yield Completed(USAGE)


async def hang(request: Request) -> AsyncIterator[Event]:
    """One delta, then nothing; notes when it is let go."""
    try:
        yield started()
        yield Delta(0, "wait")
        await asyncio.Event().wait()
    finally:
        _freed[last_words(request).removeprefix("hang ")].set()


async def was_freed(request: Request) -> AsyncIterator[Event]:
    """Answers when the request with this name was let go."""
    await _freed[last_words(request).removeprefix("freed ")].wait()
    async for event in answer(request):
        yield event


async def call_tools(request: Request) -> AsyncIterator[Event]:
    """Calls the first tool twice, the arguments of the first call in two pieces."""
    assert isinstance(request, ChatRequest)
    name = getattr(request.tools[0], "name", "")
    yield started()
    yield Delta(0, "", tool_calls=(ToolCallDelta(0, "call_1", name, '{"city":'),))
    yield Delta(0, "", tool_calls=(ToolCallDelta(0, arguments_json_fragment=' "Paris"}'),))
    yield Delta(0, "", tool_calls=(ToolCallDelta(1, "call_2", name, '{"city": "Rome"}'),))
    yield ChoiceDone(0, FinishReason.TOOL_CALLS)
    yield Completed(USAGE)


SCRIPTS: dict[str, Script] = {
    "hang": hang,
    "freed": was_freed,
    "tools": call_tools,
    "overloaded": failing(Overloaded("more work than the fleet can take", 2.5)),
    "break": failing(StreamInterrupted("replica-1", 1, "its process ended"), after_start=True),
    "bug": failing(RuntimeError("/etc/secret")),
}


def last_words(request: Request) -> str:
    """What the last message, or the prompt, says."""
    return request.messages[-1].content if isinstance(request, ChatRequest) else str(request.prompt)


def play(request: Request) -> AsyncIterator[Event]:
    """The script that the request's first word names."""
    return SCRIPTS.get(last_words(request).partition(" ")[0], answer)(request)


async def serve() -> None:
    """Until the process is ended."""
    gateway = ScriptedGateway()
    gateway.script = play
    grpc_door = GrpcIngress(gateway, IngressSettings(port=0))
    http_door = HttpIngress(gateway, HttpSettings(port=0), StatusPage(gateway, (), {}))
    addresses = {
        "grpc": f"127.0.0.1:{await grpc_door.start()}",
        "http": f"http://127.0.0.1:{await http_door.start()}",
        "model": MODEL,
    }
    print(json.dumps(addresses), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
