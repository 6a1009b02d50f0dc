"""Whose call is this? API keys from the tenants file, changed while the server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from deployments.metrics import Metrics
from deployments.tenant import Tenant
from deployments.tenants_file import KeyRing, load_tenants
from deployments.watched_files import WatchedFiles
from llama31.errors import ConfigInvalid, Unauthenticated

POLL_S = 2.0
# Longer ones are not even hashed.
MAX_CREDENTIAL_CHARS = 256

_LOG = logging.getLogger(__name__)


class KeyDesk:
    """Finds the tenant of a call; both doors ask the same one. Never says or logs a key."""

    def __init__(self, tenants_file: str, metrics: Metrics, now_s: Callable[[], float] = time.time) -> None:
        """Reads the file. Raises: ConfigInvalid."""
        self._path = tenants_file
        self._metrics = metrics
        self._now_s = now_s
        self._watched = WatchedFiles((tenants_file,))
        self._watched.have_changed()
        self._ring: KeyRing = load_tenants(tenants_file)

    def authenticate(self, credentials: Sequence[str]) -> Tenant:
        """Takes every `authorization` value of a call. Raises: Unauthenticated.

        Unknown, expired and malformed keys get the same words, so that nobody learns which they hold.
        """
        if not credentials:
            raise self._refusal("missing", "missing credentials: send 'authorization: Bearer KEY'")
        if len(credentials) > 1:
            raise self._refusal("multiple", "multiple credentials: send one authorization value")
        scheme, _, key = credentials[0][: MAX_CREDENTIAL_CHARS + 1].partition(" ")
        is_short = len(credentials[0]) <= MAX_CREDENTIAL_CHARS
        tenant = self._ring.find(key.strip(), self._now_s()) if is_short and scheme.lower() == "bearer" else None
        if tenant is None:
            raise self._refusal("invalid", "invalid credentials")
        return tenant

    async def refresh(self) -> None:
        """Reads the file again if it changed. A broken one changes nothing, and says so once."""
        if not self._watched.have_changed():
            return
        try:
            self._ring = await asyncio.to_thread(load_tenants, self._path)
        except ConfigInvalid as error:
            self._metrics.add("llama31_reloads_total", what="tenants", outcome="refused")
            _LOG.error("the tenants of before stay in force: %s", " ".join(str(error).split()))
        else:
            self._metrics.add("llama31_reloads_total", what="tenants", outcome="loaded")
            _LOG.info("%s was read again", self._path)

    async def watch(self) -> None:
        """Refreshes until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    def _refusal(self, cause: str, text: str) -> Unauthenticated:
        self._metrics.add("llama31_unauthenticated_total", cause=cause)
        return Unauthenticated(text)
