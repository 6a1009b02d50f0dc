"""The servers of all cases, shared in one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.bad_inputs.server import Servers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[Servers]:
    """Started when a case needs them."""
    started = Servers()
    yield started
    await started.close()
