"""What does one ingress know of all replicas, and how does it keep a link to each?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable

from cluster.policy import ReplicaSnapshot
from deployments.call import ModelState
from deployments.directory import ReplicaRecord
from deployments.policies.prefix_index import PrefixIndex
from deployments.replica_link import ReplicaLink

log = logging.getLogger("llama31.fleet")

RECONNECT_S = 0.5
DIRECTORY_RETRY_S = 1.0
_NO_PICTURE = 1

# (seen version) -> (version, records): the directory actor's `watch`, or a test's own.
WatchDirectory = Callable[[int], Awaitable[tuple[int, tuple[ReplicaRecord, ...]]]]


class Fleet:
    """Follows the directory and holds one link to every replica whose worker listens.

    A directory that does not answer changes nothing: the links and what they know stay.
    """

    def __init__(self, watch: WatchDirectory, token: str, wanted: int = 1, index_blocks: int = 1 << 18) -> None:
        # Which prompts' beginnings are in whose prefix cache.
        self.index = PrefixIndex(index_blocks)
        self._watch = watch
        self._token = token
        self._ingress_id = os.urandom(8).hex()
        self._epoch = 0
        self._records: dict[str, ReplicaRecord] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._follower: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self.version = _NO_PICTURE
        self.wanted = wanted

    def start(self) -> None:
        """Begins to follow the directory."""
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Drops every link."""
        # Cancelling is not enough: a link that breaks at the same moment swallows it (TaskGroup, Python 3.11).
        self._closed = True
        tasks = [*self._tasks.values(), *([self._follower] if self._follower else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def records(self) -> tuple[ReplicaRecord, ...]:
        """Every announced replica."""
        return tuple(self._records.values())

    def snapshots(self, digest: int | None = None) -> tuple[ReplicaSnapshot, ...]:
        """Every linked replica, for the router; with a digest, those that compute the same function."""
        return tuple(link.snapshot() for link in self._links.values() if digest in (None, link.record.digest))

    def ready_replicas(self) -> int:
        """How many can take a request now."""
        return sum(link.is_ready and not link.draining for link in self._links.values())

    def indexed_replicas(self) -> int:
        """How many tell what their prefix caches hold."""
        return sum(link.tells_blocks for link in self._links.values())

    def state(self) -> ModelState:
        """How far the model is, for those who ask for it."""
        if ready := self.ready_replicas():
            return "ready" if ready >= self.wanted else "degraded"
        phases = {record.phase for record in self._records.values()}
        # One that is ready and not linked is about to be: its connection broke, or has just been opened.
        return "loading" if phases & {"starting", "loading", "warming up", "ready"} else "unavailable"

    def link(self, replica_id: str) -> ReplicaLink:
        """The link of a replica that `snapshots` named."""
        return self._links[replica_id]

    def want(self, replicas: int) -> None:
        """So many replicas should be there from now on."""
        if replicas != self.wanted:
            self.wanted = replicas
            self._bump()

    async def wait_changed(self, seen_version: int) -> int:
        """Returns when replicas came, went or changed their phase since `seen_version`."""
        while self.version == seen_version:
            changed = self._changed
            await changed.wait()
        return self.version

    async def wait_linked(self, limit_s: float) -> None:
        """Returns once every replica that the directory calls ready is linked, at the latest after `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.version == _NO_PICTURE or self.ready_replicas() < self._announced_ready():
                    await self.wait_changed(self.version)

    def _announced_ready(self) -> int:
        return sum(record.phase == "ready" for record in self._records.values())

    async def _follow(self) -> None:
        seen = -1
        while True:
            try:
                seen, records = await self._watch(seen)
            except Exception as error:  # whatever kept the directory from answering
                log.warning("the replica directory does not answer: %s", type(error).__name__)
                await asyncio.sleep(DIRECTORY_RETRY_S)
                seen = -1
                continue
            self._update({record.replica_id: record for record in records})

    def _update(self, records: dict[str, ReplicaRecord]) -> None:
        self._records = records
        for replica_id, record in records.items():
            if record.address is not None and replica_id not in self._tasks:
                self._tasks[replica_id] = asyncio.create_task(self._keep_link(replica_id))
        self._bump()

    async def _keep_link(self, replica_id: str) -> None:
        """Links again as long as the directory lists the replica."""
        try:
            while (record := self._records.get(replica_id)) is not None and record.phase != "failed":
                if self._closed or record.address is None:
                    return
                self._epoch += 1
                link = ReplicaLink(record, self._token, self._ingress_id, self._epoch, self.index)
                self._links[replica_id] = link
                watchers = [asyncio.create_task(watch(link)) for watch in (self._announce_ready, self._move_away)]
                try:
                    await link.run()
                finally:
                    for watcher in watchers:
                        watcher.cancel()
                self._bump()
                if not self._closed:
                    await asyncio.sleep(RECONNECT_S)
        finally:
            self._links.pop(replica_id, None)
            self._tasks.pop(replica_id, None)
            self._bump()

    async def _announce_ready(self, link: ReplicaLink) -> None:
        await link.became_ready.wait()
        self._bump()

    async def _move_away(self, link: ReplicaLink) -> None:
        """The sequences of a replica that drains go on as soon as another one of its kind can take them."""
        await link.became_draining.wait()
        self._bump()
        while not any(other.is_ready and not other.draining for other in self._links.values() if other.equals(link)):
            await self.wait_changed(self.version)
        link.hand_over()

    def _bump(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()
