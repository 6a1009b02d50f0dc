"""Does the HTTP door survive slow, broken and hostile bytes, with a clean status for each?"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from http_door import CHAT, CHAT_BODY, Door, answer_of, opened, post
from hypothesis import given, settings
from hypothesis import strategies as st

BODY = json.dumps(CHAT_BODY).encode()
LIMIT_BYTES = 2**16
JSON = "content-type: application/json"


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened(max_body_bytes=LIMIT_BYTES, headers_s=0.1, body_s=0.1, linger_s=0.05) as found:
        yield found


async def refused(door: Door, data: bytes) -> tuple[int, str]:
    """Status and code of the answer, after which the connection must end and the server still live."""
    status, headers, body = answer_of(await door.raw(data))
    assert headers["content-type"] == "application/json"
    assert (await door.client.get("/health")).status_code == 200
    return status, body["error"]["code"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["content-type: application/json; charset=utf-16"], 415),
        (["content-type: text/plain"], 415),
        (["content-type: application/x-www-form-urlencoded"], 415),
        (["content-type: application/json", "content-encoding: gzip"], 415),
        (["content-type: application/json", "content-encoding: br"], 415),
        (["origin: http://localhost:3000"], 415),
        (["content-type: application/json", "content-encoding: identity"], 200),
        (["content-type: application/json; charset=UTF-8"], 200),
        ([], 200),
    ],
)
async def test_media_types(door: Door, headers: list[str], status: int) -> None:
    found, _, body = answer_of(await door.raw(post(BODY, *headers)))
    assert found == status
    if status == 415:
        assert body["error"]["code"] == "unsupported_media_type"


async def test_a_compressed_body_is_not_unpacked(door: Door) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    assert await refused(door, post(bomb, JSON, "content-encoding: gzip")) == (415, "unsupported_media_type")


async def test_bodies_above_the_limit(door: Door) -> None:
    assert await refused(door, post(b" " * (LIMIT_BYTES + 1), JSON)) == (413, "payload_too_large")
    declared = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\ncontent-length: 99999999\r\n\r\n".encode()
    assert await refused(door, declared) == (413, "payload_too_large")
    chunked = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    assert await refused(door, chunked + chunk * 65) == (413, "payload_too_large")
    fitting = BODY.ljust(LIMIT_BYTES)
    assert answer_of(await door.raw(post(fitting, JSON)))[0] == 200


async def test_a_body_in_chunks(door: Door) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert answer_of(await door.raw(head.encode() + chunks))[0] == 200


@pytest.mark.parametrize("end", [b'content-length: 9\r\n\r\n{"a":1}', b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_slow_bodies(door: Door, end: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\n".encode()
    assert await refused(door, head + end) == (408, "request_timeout")


@pytest.mark.parametrize("start", [b"G", b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "])
async def test_slow_headers(door: Door, start: bytes) -> None:
    assert await refused(door, start) == (408, "request_timeout")


async def test_a_slow_second_request(door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert b" 200 OK" in await reader.readuntil(b"}")
    writer.write(b"GET /health HT")
    assert answer_of(await asyncio.wait_for(reader.read(), 5))[0] == 408
    writer.close()


async def test_a_silent_connection_is_closed(door: Door) -> None:
    assert await door.raw(b"") == b""


async def test_an_idle_connection_outlives_the_limit_for_headers() -> None:
    async with opened(headers_s=0.05, keepalive_s=5) as door:
        reader, writer = await door.connect()
        request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for _ in range(2):
            writer.write(request)
            assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        writer.close()


async def test_an_idle_connection_ends() -> None:
    async with opened(keepalive_s=0.05) as door:
        assert b"200 OK" in await door.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")


async def test_pipelined_requests(door: Door) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    data = await door.raw(request % b"" * 3 + request % b"connection: close\r\n")
    assert data.count(b"HTTP/1.1 200 OK") == 4


async def test_a_refused_request_leaves_the_connection_open(door: Door) -> None:
    reader, writer = await door.connect()
    for body, status in ((b"[]", b"400"), (BODY, b"200"), (b"{", b"400")):
        writer.write(post(body, JSON).replace(b"connection: close\r\n", b""))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == status
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split()[1]))
    writer.close()


async def test_expect_continue(door: Door) -> None:
    data = await door.raw(post(BODY, JSON, "expect: 100-continue"))
    first, _, rest = data.partition(b"\r\n\r\n")
    assert first == b"HTTP/1.1 100 Continue"
    assert answer_of(rest)[0] == 200


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (post(BODY, JSON, *[f"x-{i}: 1" for i in range(300)]), (431, "headers_too_large")),
        (post(BODY, JSON, f"x: {'y' * 100_000}"), (431, "headers_too_large")),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", (431, "headers_too_large")),
        (f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".encode(), (400, "invalid_argument")),
        (f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n".encode(), (400, "invalid_argument")),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            (400, "invalid_argument"),
        ),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            (400, "invalid_argument"),
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid_argument")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400, "invalid_argument")),
        (b"not http at all\r\n\r\n", (400, "invalid_argument")),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", (400, "invalid_argument")),
        (b"GET /\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n", (400, "invalid_argument")),
        (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode(),
            (400, "invalid_argument"),
        ),
    ],
    ids=lambda v: repr(v)[:60],
)
async def test_broken_http(door: Door, data: bytes, expected: tuple[int, str]) -> None:
    assert await refused(door, data) == expected


async def test_the_parsers_own_words_stay_inside(door: Door) -> None:
    data = await door.raw(b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
    assert b"aiohttp" not in data
    assert b"Python" not in data
    assert b"bad header" not in data


SOUP = st.binary(max_size=200)
BROKEN_REQUEST = st.builds(
    lambda method, path, header, body: b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, path, header, body),
    st.sampled_from([b"GET", b"POST", b"PUT", b"\xff"]),
    st.sampled_from([b"/", CHAT.encode(), b"/v1/models", b"*", b"//", b"/%zz"]) | SOUP,
    st.sampled_from([b"host: localhost", b"content-length: 3", b"transfer-encoding: chunked", b""]) | SOUP,
    SOUP,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(SOUP | BROKEN_REQUEST | st.binary(max_size=40).map(lambda b: post(b, JSON)), min_size=1, max_size=4))
def test_any_bytes_get_a_clean_status(pieces: list[bytes]) -> None:
    async def run() -> None:
        async with opened(headers_s=0.05, body_s=0.05, linger_s=0.05) as door:
            data = await door.raw(b"".join(pieces), half_close=True)
            while data:
                assert data.startswith(b"HTTP/1.1 ")
                assert 200 <= int(data[9:12]) < 500
                assert b"Traceback" not in data
                _, found, rest = data.partition(b"HTTP/1.1 ")[2].partition(b"HTTP/1.1 ")
                data = found + rest
            assert await is_alive(door)

    asyncio.run(run())


async def is_alive(door: Door) -> bool:
    """On a busy machine the first asking may come later than these limits allow."""
    for _ in range(20):
        with suppress(httpx.RemoteProtocolError):
            if (await door.client.get("/health")).status_code == 200:
                return True
    return False
