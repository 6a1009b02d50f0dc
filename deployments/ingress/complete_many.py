"""Many prompts over one call: how does each get its own answer or its own error?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from deployments.call import Call, Gateway
from deployments.ingress import proto_answers, proto_codec
from deployments.ingress.interceptors import Rpc
from deployments.ingress.item_stream import Send, answer_items
from llama31.errors import DuplicateRequest, Llama31Error


class CompleteMany:
    """CompletionService.CompleteMany."""

    def __init__(self, gateway: Gateway, draining: asyncio.Event) -> None:
        self._gateway = gateway
        self._draining = draining

    async def run(self, requests: AsyncIterator[bytes], rpc: Rpc) -> None:
        """One call. Raises: DuplicateRequest, MalformedMessage, RequestCancelled, Draining."""
        in_flight: set[str] = set()

        def begin(message: bytes, call: Call) -> _Prompt:
            return _Prompt(self._gateway, proto_codec.decode_complete_many(message), call, in_flight)

        async with self._gateway.hold(rpc.call):
            await answer_items(requests, rpc, begin, self._draining)


class _Prompt:
    """One item; its id is unique while in flight."""

    def __init__(self, gateway: Gateway, item: proto_codec.Item, call: Call, in_flight: set[str]) -> None:
        self._gateway = gateway
        self._item = item
        self._call = call
        self._in_flight = in_flight

    async def answer(self, send: Send) -> None:
        item_id = self._item.item_id
        if item_id in self._in_flight:
            raise DuplicateRequest(item_id)
        self._in_flight.add(item_id)
        try:
            answer = proto_answers.Answer()
            async with aclosing(self._gateway.complete(self._item.request(), self._call)) as events:
                async for event in events:
                    answer.take(event)
        finally:
            # Before the answer goes out: a client that has it may use the id again.
            self._in_flight.discard(item_id)
        await send(answer.encode_item(item_id))

    def failure(self, error: Llama31Error) -> bytes:
        return proto_answers.encode_item_error(self._item.item_id, error)
