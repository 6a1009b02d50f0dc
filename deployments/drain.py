"""How is an ingress process asked to leave, or whether it is ready, by a kubelet on its node, which knows no Ray?

Through a unix socket in the service's directory on the node: a line with the seconds of grace goes in, a word comes
back when the streams have ended. A socket, not a signal: its file may outlive its process, and then nobody answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

ENDED, CUT_OFF = b"ended\n", b"cut off\n"
ASKED_READY, READY, NOT_READY = b"ready?\n", b"ready\n", b"not ready\n"
# A kubelet asks again every few seconds.
_READY_S = 3.0
# What a drain may take beyond its grace: closing what still runs.
_LAST_WORDS_S = 5.0

# (seconds of grace) -> whether every stream ended by itself.
Drain = Callable[[float], Awaitable[bool]]


class DrainDoor:
    """The socket of one ingress process."""

    def __init__(self, directory: Path, drain: Drain, is_ready: Callable[[], bool]) -> None:
        self._path = directory / f"ingress-{os.getpid()}.sock"
        self._drain = drain
        self._is_ready = is_ready
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens; takes the place of a process that had the same id before a restart of the container."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, self._path)

    async def close(self) -> None:
        """Nobody can ask any more; who asked already gets an answer."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError), contextlib.closing(writer):
            asked = await reader.readline()
            if asked == ASKED_READY:
                writer.write(READY if self._is_ready() else NOT_READY)
            else:
                writer.write(ENDED if await self._drain(float(asked)) else CUT_OFF)
            await writer.drain()


def drain_node(directory: Path, wait_s: float) -> str:
    """Drains every ingress process that meets in `directory`, all at once; what became of them, in words."""
    return asyncio.run(_drain_all(directory, wait_s)) or (
        f"no ingress process of a declared service runs on this node (none listens in {directory}); "
        "a service of 'llama31 serve' drains at its Ctrl-C"
    )


def ready_count(directory: Path) -> tuple[int, int]:
    """How many ingress processes that meet in `directory` can answer now, and how many there are."""
    answers = asyncio.run(_ask_all(directory, ASKED_READY, _READY_S))
    return answers.count(READY), len(answers)


async def _drain_all(directory: Path, wait_s: float) -> str:
    answers = await _ask_all(directory, f"{wait_s}\n".encode(), wait_s + _LAST_WORDS_S)
    if not answers:
        return ""
    ended = answers.count(ENDED)
    words = f"{ended} of {len(answers)} ingress processes have drained"
    return words if ended == len(answers) else f"{words}; what still ran in the others was cut off"


async def _ask_all(directory: Path, question: bytes, limit_s: float) -> list[bytes]:
    asked = (_ask(path, question, limit_s) for path in sorted(directory.glob("ingress-*.sock")))
    return [answer for answer in await asyncio.gather(*asked) if answer]


async def _ask(path: Path, question: bytes, limit_s: float) -> bytes:
    """What the process said; nothing if none listens there, `CUT_OFF` if it ended or stayed silent."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return b""
    with contextlib.closing(writer):
        try:
            async with asyncio.timeout(limit_s):
                writer.write(question)
                return await reader.readline() or CUT_OFF
        except (TimeoutError, ConnectionError):
            return CUT_OFF
