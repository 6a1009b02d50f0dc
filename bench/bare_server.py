"""The ceiling: a bare grpc.aio server on uvloop that writes ready-made texts and does nothing else.

No authentication, metrics, detokenising, stop strings, admission or engine: `python -m bench.bare_server LOAD`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import uvloop

from bench.workload import Load, answer_ids, answer_texts
from llama31.v1 import chat_service_pb2 as pb


class Bare:
    """Answers StreamChat."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._texts, self._ids = answer_texts(load.tokens), answer_ids(load.tokens)

    async def stream_chat(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """One message says that it started, one that it is complete, as ours do."""
        spec = pb.StreamChatRequest.FromString(request).spec
        await context.write(self._event(1, started=pb.Started(response_id="r", model=spec.model)))
        load, loop = self._load, asyncio.get_running_loop()
        began_s, sent, sequence = loop.time(), 0, 1
        while sent < load.tokens:
            ready = min(load.tokens, 1 + int((loop.time() - began_s) / load.step_s))
            if ready == sent:
                await asyncio.sleep(began_s + sent * load.step_s - loop.time())
                continue
            until = sent + 1 if load.one_token_messages else ready
            sequence += 1
            delta = pb.Delta(text="".join(self._texts[sent:until]))
            if spec.returns.token_ids:
                delta.tokens.ids.extend(self._ids[sent:until])
            await context.write(self._event(sequence, delta=delta))
            sent = until
        usage = pb.Completed()
        usage.usage.output_tokens = load.tokens
        await context.write(self._event(sequence + 1, completed=usage))

    @staticmethod
    def _event(sequence: int, **event: Any) -> bytes:
        return pb.StreamChatResponse(event=pb.ChatEvent(sequence=sequence, **event)).SerializeToString()


async def serve(load: Load) -> None:
    """Prints its address, then serves until it is ended."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handler = grpc.unary_stream_rpc_method_handler(Bare(load).stream_chat)
    handlers = grpc.method_handlers_generic_handler("llama31.v1.ChatService", {"StreamChat": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(Load(**json.loads(sys.argv[1]))))
