"""Which replicas hold the first blocks of a prompt? An index fed by what the engines say that they store and drop.

Blocks are known by chain hashes: one says what all blocks before it are, too. The chain starts from the tenant's
salt, so that tenants never share one. An index has no clock: it goes on by events alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

BYTES_PER_BLOCK = 350  # upper bound of what one block of one replica takes, by tests/unit/test_prefix_index.py
REPORTS_TO_CONFIRM = 2  # the report that is on its way when a request is settled cannot have its blocks yet
_STORED = 0  # a replica said so; any other value is the ticket of the request that will bring the block
_EVICTED_SHARE = 16  # a full index drops 1/16 of the largest replica's blocks at once: finding the oldest costs a scan


class PrefixIndex:
    """Blocks by replica, at most `max_blocks` of all replicas together.

    A full index drops what was stored or routed to longest ago of the replica with the most blocks, the ends of
    prompts before their beginnings. A dropped block is thought not to be there: that costs hits, never an answer.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks = 0
        self._holders: dict[int, int] = {}  # hash -> bit mask of the replicas that have it
        self._held: dict[str, dict[int, int]] = {}  # replica -> its hashes, the oldest first -> _STORED or a ticket
        self._bits: dict[str, int] = {}
        self._names: list[str] = []  # by number of the bit
        self._free_bits: list[int] = []
        self._everyone = 0
        self._tickets = 0
        self._expected: dict[int, tuple[str, Sequence[int]]] = {}  # by ticket
        self._expected_blocks = 0
        self._settled: dict[str, dict[int, int]] = {}  # replica -> ticket -> reports until it is closed

    @property
    def blocks(self) -> int:
        """How many blocks it knows, one that two replicas have counted twice."""
        return self._blocks

    @property
    def replicas(self) -> Mapping[str, int]:
        """How many blocks of each replica it knows."""
        return {replica_id: len(held) for replica_id, held in self._held.items()}

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many of these blocks, from the first on without a gap, each replica has; none: it is not named."""
        found: dict[str, int] = {}
        holders, mask = self._holders, self._everyone
        count = 0
        for block in hashes:
            still = mask & holders.get(block, 0)
            if still != mask:
                self._name(mask ^ still, count, found)
                mask = still
                if not still:
                    return found
            count += 1
        self._name(mask, count, found)
        return found

    def store(self, replica_id: str, hashes: Sequence[int]) -> None:
        """The replica has these blocks now, in the order of the prompt."""
        held, bit = self._replica(replica_id)
        holders = self._holders
        for block in reversed(hashes):
            if held.pop(block, None) is None:
                holders[block] = holders.get(block, 0) | bit
                self._blocks += 1
            held[block] = _STORED
        self._evict()

    def drop(self, replica_id: str, hashes: Iterable[int]) -> None:
        """The replica no longer has these blocks."""
        held = self._held.get(replica_id)
        if held is not None:
            for block in hashes:
                if held.pop(block, None) is not None:
                    self._unhold(block, self._bits[replica_id])

    def snapshot(self, replica_id: str, hashes: Sequence[int]) -> None:
        """These blocks, the oldest prompt's last, and no others are stored. What is expected stays so."""
        held = self._held.get(replica_id, {})
        told = set(hashes)
        self.drop(replica_id, [block for block, state in held.items() if state == _STORED and block not in told])
        self.store(replica_id, hashes)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, and its cache with it."""
        held = self._held.pop(replica_id, None)
        self._settled.pop(replica_id, None)
        for ticket in [t for t, (where, _) in self._expected.items() if where == replica_id]:
            self._close(ticket)
        if held is not None:
            bit = self._bits.pop(replica_id)
            for block in held:
                self._unhold(block, bit)
            self._everyone &= ~bit
            self._free_bits.append(bit)

    def expect(self, replica_id: str, hashes: Sequence[int]) -> int:
        """A prompt was sent there: until it is settled its blocks count as stored. Returns the ticket to settle."""
        if not hashes:
            return 0
        self._tickets += 1
        held, bit = self._replica(replica_id)
        holders = self._holders
        for block in reversed(hashes):
            state = held.pop(block, None)
            if state is None:
                holders[block] = holders.get(block, 0) | bit
                self._blocks += 1
            held[block] = _STORED if state == _STORED else self._tickets
        self._expected[self._tickets] = (replica_id, hashes)
        self._expected_blocks += len(hashes)
        while self._expected_blocks > self._max_blocks:
            self._close(next(iter(self._expected)))
        self._evict()
        return self._tickets

    def settle(self, ticket: int) -> None:
        """The request has its first token, or is over. What its replica does not confirm soon is dropped."""
        if ticket in self._expected:
            replica_id, _ = self._expected[ticket]
            self._settled.setdefault(replica_id, {}).setdefault(ticket, REPORTS_TO_CONFIRM)

    def reported(self, replica_id: str) -> None:
        """One report of the replica has come, and all that it says was stored or dropped."""
        settled = self._settled.get(replica_id, {})
        for ticket, reports_left in list(settled.items()):
            if reports_left > 1:
                settled[ticket] = reports_left - 1
            else:
                self._close(ticket)

    def _close(self, ticket: int) -> None:
        """Drops what this ticket alone brought: later requests' and stored blocks stay."""
        replica_id, hashes = self._expected.pop(ticket)
        self._settled.get(replica_id, {}).pop(ticket, None)
        self._expected_blocks -= len(hashes)
        held = self._held.get(replica_id, {})
        self.drop(replica_id, [block for block in hashes if held.get(block) == ticket])

    def _replica(self, replica_id: str) -> tuple[dict[int, int], int]:
        held = self._held.get(replica_id)
        if held is not None:
            return held, self._bits[replica_id]
        if self._free_bits:
            bit = self._free_bits.pop()
            self._names[bit.bit_length() - 1] = replica_id
        else:
            bit = 1 << len(self._names)
            self._names.append(replica_id)
        self._bits[replica_id] = bit
        self._everyone |= bit
        held = self._held[replica_id] = {}
        return held, bit

    def _name(self, mask: int, count: int, found: dict[str, int]) -> None:
        while mask and count:
            bit = mask & -mask
            found[self._names[bit.bit_length() - 1]] = count
            mask ^= bit

    def _unhold(self, block: int, bit: int) -> None:
        self._blocks -= 1
        rest = self._holders[block] & ~bit
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]

    def _evict(self) -> None:
        while self._blocks > self._max_blocks:
            replica_id = max(self._held, key=lambda r: len(self._held[r]))
            held = self._held[replica_id]
            self.drop(replica_id, list(islice(held, len(held) // _EVICTED_SHARE + 1)))
