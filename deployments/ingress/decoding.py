"""Which requests are decoded apart from the event loop that writes everybody's tokens?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

# A JSON schema of 64 KiB takes up to 0.4 s to check, a long dialog as much; below this nothing takes long.
DECODE_IN_THREAD_BYTES = 16 * 2**10

_T = TypeVar("_T")


async def decoded(decode: Callable[[bytes], _T], body: bytes) -> _T:
    """What `decode` makes of the body; raises what it raises."""
    if len(body) > DECODE_IN_THREAD_BYTES:
        return await asyncio.to_thread(decode, body)
    return decode(body)
