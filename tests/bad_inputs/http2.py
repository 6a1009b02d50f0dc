"""A client that speaks HTTP/2 frame by frame, also frames that no proper client sends."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
SETTINGS_LIMIT_S = 5.0
ERROR_NAMES = {
    0: "NO_ERROR",
    1: "PROTOCOL_ERROR",
    7: "REFUSED_STREAM",
    8: "CANCEL",
    2: "INTERNAL_ERROR",
    11: "ENHANCE_YOUR_CALM",
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def grpc_message(payload: bytes) -> bytes:
    """An uncompressed message with its length before it."""
    return struct.pack(">BI", 0, len(payload)) + payload


def header_block(path: str, port: int, extra: Iterable[tuple[str, str]] = ()) -> bytes:
    """The headers of a call. Nothing is indexed, so that every stream may send the same bytes."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", f"127.0.0.1:{port}"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]
    return b"".join(hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*header)]) for header in headers)


@dataclass
class Heard:
    """What the server said."""

    headers: dict[int, dict[str, str]] = field(default_factory=dict)
    data: Counter[int] = field(default_factory=Counter)
    ended: set[int] = field(default_factory=set)
    resets: dict[int, str] = field(default_factory=dict)
    pongs: int = 0
    goaway: str = ""
    is_closed: bool = False
    has_settings: bool = False


class Http2Client:
    """One connection; `heard` grows while it is open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard = Heard()
        self._reader = reader
        self._writer = writer
        self._decoder = hpack.Decoder()
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, port: int, initial_window: int | None = None) -> Http2Client:
        """Connects, sends the preface and acknowledges the server's settings: its limits then hold."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        settings = b"" if initial_window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, initial_window)
        await client.send(PREFACE + frame(SETTINGS, 0, 0, settings))
        await client.until(lambda: client.heard.has_settings or client.heard.is_closed, SETTINGS_LIMIT_S)
        return client

    async def send(self, *frames: bytes) -> None:
        """Writes; a connection that the server closed is no error here, `heard` tells."""
        try:
            self._writer.write(b"".join(frames))
            await self._writer.drain()
        except ConnectionError:
            self.heard.is_closed = True

    async def until(self, condition: Callable[[], object], limit_s: float) -> bool:
        """Whether the condition came true in time."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    def is_over(self, stream: int) -> bool:
        """Whether nothing more can come on this stream."""
        return stream in self.heard.ended or stream in self.heard.resets or self.heard.is_closed

    async def close(self) -> None:
        """Hangs up."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                await self._take(head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)
                self._news.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.heard.is_closed = True
            self._news.set()

    async def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        heard = self.heard
        if kind == HEADERS:
            decoded = self._decoder.decode(payload)
            heard.headers.setdefault(stream, {}).update({str(k): str(v) for k, v in decoded})
        elif kind == DATA:
            heard.data[stream] += len(payload)
        elif kind == RST_STREAM:
            heard.resets[stream] = _error_name(payload)
        elif kind == GOAWAY:
            heard.goaway = f"{_error_name(payload[4:8])} {payload[8:].decode(errors='replace')}"
        elif kind == PING and flags & ACK:
            heard.pongs += 1
        elif kind in (PING, SETTINGS) and not flags & ACK:
            heard.has_settings |= kind == SETTINGS
            await self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            heard.ended.add(stream)


def _error_name(code: bytes) -> str:
    number = int.from_bytes(code, "big")
    return ERROR_NAMES.get(number, str(number))
