"""A running HTTP door for tests, asked through httpx or byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from scripted_gateway import MODEL, ScriptedGateway

from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import Link, StatusPage
from deployments.tenant import Authenticate, everybody_is_local

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CHAT_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
COMPLETION_BODY = {"model": MODEL, "prompt": "hi"}


class Door:
    """A running server with a client."""

    def __init__(self, gateway: ScriptedGateway, ingress: HttpIngress, port: int) -> None:
        self.gateway = gateway
        self.ingress = ingress
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=5, trust_env=False, verify=False)

    async def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """POST /v1/chat/completions."""
        return await self.client.post(CHAT, json={**CHAT_BODY, **fields}, headers=headers)

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, "[DONE]" included."""
        response = await self.client.post(path, json={**body, "stream": True})
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        parts = response.text.split("\n\n")
        assert parts.pop() == ""
        texts = [part.removeprefix("data: ") for part in parts]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    async def raw(self, data: bytes, half_close: bool = False) -> bytes:
        """Everything that the server says to these bytes until it closes the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            if half_close:
                writer.write_eof()
            answer = b""
            # A server that closes before it has read all resets the connection; what it had answered counts.
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    while piece := await reader.read(1 << 16):
                        answer += piece
            return answer
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A plain connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        """Ends client and server."""
        await self.client.aclose()
        await self.ingress.stop()


@asynccontextmanager
async def opened(authenticate: Authenticate = everybody_is_local, **settings: Any) -> AsyncIterator[Door]:
    """A door on a free port."""
    gateway = ScriptedGateway()
    page = StatusPage(gateway, [Link("Ray dashboard", "http://127.0.0.1:8265")], {"llama31-serve": "0.1.0"})
    ingress = HttpIngress(gateway, HttpSettings(port=0, **settings), page, authenticate)
    door = Door(gateway, ingress, await ingress.start())
    try:
        yield door
    finally:
        await door.close()


def post(body: bytes, *headers: str, path: str = CHAT) -> bytes:
    """A request as bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        *headers,
        f"content-length: {len(body)}",
        "connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1") + body


def answer_of(data: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of one raw answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, json.loads(body) if body else None
