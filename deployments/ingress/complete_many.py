"""Many prompts over one call: how does each get its own answer or its own error, and how many run at once?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from deployments.call import Call, Gateway
from deployments.ingress import proto_answers, proto_codec
from deployments.ingress.interceptors import Rpc
from deployments.ingress.status import status_row
from llama31.errors import Draining, DuplicateRequest, InternalError, Llama31Error

# The server reads on when one of these has ended, so that a client may send as fast as it can.
MAX_ITEMS_IN_FLIGHT = 64

_LOG = logging.getLogger(__name__)


class CompleteMany:
    """One call of CompletionService.CompleteMany."""

    def __init__(self, gateway: Gateway, draining: asyncio.Event) -> None:
        self._gateway = gateway
        self._draining = draining

    async def run(self, requests: AsyncIterator[bytes], rpc: Rpc) -> None:
        """Answers items as they finish. Raises: MalformedMessage, RequestCancelled; an item's error stays its own."""
        answers: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        free = asyncio.Semaphore(MAX_ITEMS_IN_FLIGHT)
        items: set[asyncio.Task[None]] = set()
        reading = asyncio.create_task(self._read(requests, rpc, answers, free, items))
        try:
            # Only this loop writes: a write that is cancelled would leave the call without its status.
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                await rpc.write(answer)
                free.release()
        finally:
            reading.cancel()
            for task in items:
                task.cancel()
            await asyncio.gather(reading, *items, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        rpc: Rpc,
        answers: asyncio.Queue[bytes | Exception | None],
        free: asyncio.Semaphore,
        items: set[asyncio.Task[None]],
    ) -> None:
        """Starts items as long as some are free; puts None when all have been answered."""
        in_flight: set[str] = set()
        number = 0

        async def serve(item: proto_codec.Item, call: Call) -> None:
            answers.put_nowait(await self._answer(item, call, in_flight))

        try:
            async for message in requests:
                await free.acquire()
                number += 1
                call = replace(rpc.call, request_id=f"{rpc.call.request_id}.{number}")
                task = asyncio.create_task(serve(proto_codec.decode_complete_many(message), call))
                items.add(task)
                task.add_done_callback(items.discard)
            await asyncio.gather(*items)
            answers.put_nowait(None)
        except Exception as error:
            answers.put_nowait(error)

    async def _answer(self, item: proto_codec.Item, call: Call, in_flight: set[str]) -> bytes:
        """The item's response or its error."""
        answer = proto_answers.Answer()
        is_mine = False
        try:
            if item.item_id in in_flight:
                raise DuplicateRequest(item.item_id)
            in_flight.add(item.item_id)
            is_mine = True
            if self._draining.is_set():
                raise Draining()
            events = self._gateway.complete(item.request(), call)
            async with aclosing(cast("proto_answers.EventStream", events)):
                async for event in events:
                    answer.take(event)
            return answer.encode_item(item.item_id)
        except Llama31Error as error:
            if status_row(error).http_status >= 500:
                _LOG.warning("item of request %s failed: %s", call.request_id, error.reason)
            return proto_answers.encode_item_error(item.item_id, error)
        except Exception:
            _LOG.exception("item of request %s failed", call.request_id)
            return proto_answers.encode_item_error(item.item_id, InternalError())
        finally:
            if is_mine:
                in_flight.discard(item.item_id)
