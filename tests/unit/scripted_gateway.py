"""Which gateway do the tests of the doors talk to? One that plays a script and notes what was asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from deployments.call import Call, ModelState, ModelStatus, ReplicaStatus
from deployments.in_flight import InFlight
from deployments.tenant import Tenant
from llama31.chat import (
    ChatRequest,
    ChoiceDone,
    Completed,
    CompletionRequest,
    Delta,
    Event,
    FinishReason,
    ResourceUse,
    Started,
    Usage,
)
from llama31.errors import InvalidRequest, ModelNotFound

Request = ChatRequest | CompletionRequest
Script = Callable[[Request], AsyncIterator[Event]]

USAGE = Usage(3, 0, 2, 0.01, 0.02, 0.03, 0.04, ResourceUse("modelled", 0.5, 350.0, 0.04))
MODEL = "tiny"


def started() -> Started:
    return Started("resp-1", MODEL, "rev-1", "replica-1", 3, 42)


async def answer(request: Request) -> AsyncIterator[Event]:
    yield started()
    yield Delta(0, "Hello")
    yield Delta(0, " there")
    yield ChoiceDone(0, FinishReason.END_OF_TURN)
    yield Completed(USAGE)


async def flood(request: Request) -> AsyncIterator[Event]:
    """More than any flow-control window holds, so that a client which does not read blocks the writer."""
    yield started()
    for _ in range(10_000):
        yield Delta(0, "x" * 65_536)


async def hang(request: Request) -> AsyncIterator[Event]:
    yield started()
    await asyncio.Event().wait()


async def hang_before_start(request: Request) -> AsyncIterator[Event]:
    await asyncio.Event().wait()
    yield started()


def failing(error: BaseException, after_start: bool = False) -> Script:
    async def script(request: Request) -> AsyncIterator[Event]:
        if after_start:
            yield started()
            yield Delta(0, "Hel")
        raise error
        yield started()

    return script


def model(name: str, state: ModelState = "ready") -> ModelStatus:
    return ModelStatus(name, "rev-1", state, 8192, 1024, ("en",), "none", 2, 1, int(state == "ready"))


class ScriptedGateway:
    """A `deployments.call.Gateway`."""

    def __init__(self) -> None:
        self.script: Script = answer
        self.requests: list[Request] = []
        self.calls: list[Call] = []
        self.in_flight = InFlight(1000)
        self.called = asyncio.Event()
        self.called_at_s: list[float] = []
        self.closed = asyncio.Semaphore(0)
        self._models: tuple[ModelStatus, ...] = (model(MODEL),)
        self.replicas: tuple[ReplicaStatus, ...] = ()
        self.visits: list[str] = []
        self.refusal: Exception | None = None
        self._version = 1
        self._changed = asyncio.Event()

    def set_models(self, *models: ModelStatus) -> None:
        self._models = models
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _play(self, request: Request, call: Call) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.calls.append(call)
        self.called_at_s.append(asyncio.get_running_loop().time())
        self.called.set()
        try:
            if request.model not in {m.name for m in self._models}:
                raise ModelNotFound(request.model, tuple(m.name for m in self._models))
            async for event in self.script(request):
                yield event
        finally:
            self.closed.release()

    def chat(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        return self._play(request, call)

    def complete(self, request: CompletionRequest, call: Call) -> AsyncIterator[Event]:
        return self._play(request, call)

    @asynccontextmanager
    async def hold(self, call: Call, prompts: int = 0) -> AsyncIterator[tuple[Call, ...]]:
        with self.in_flight.held(call):
            yield tuple(call.part(number) for number in range(prompts))

    def models(self) -> tuple[ModelStatus, ...]:
        return self._models

    def fleet(self) -> tuple[ReplicaStatus, ...]:
        return self.replicas

    @asynccontextmanager
    async def visit(self, tenant: Tenant) -> AsyncIterator[None]:
        self.visits.append(tenant.name)
        if self.refusal is not None:
            raise self.refusal
        yield

    def tokenize(self, model: str, text: str, add_special_tokens: bool) -> list[int]:
        if model != MODEL:
            raise ModelNotFound(model, (MODEL,))
        return [1] * add_special_tokens + list(text.encode())

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        if model != MODEL:
            raise ModelNotFound(model, (MODEL,))
        if any(token_id > 255 for token_id in ids):
            raise InvalidRequest("ids", "is outside the vocabulary of 256")
        return bytes(ids)

    @property
    def models_version(self) -> int:
        return self._version

    async def wait_models_changed(self, seen_version: int) -> int:
        while self._version == seen_version:
            await self._changed.wait()
        return self._version
