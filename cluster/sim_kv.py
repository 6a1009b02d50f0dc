"""Which tokens of prompts does a simulated replica hold? Paged KV blocks with vLLM's prefix cache.

Blocks that requests use are counted; blocks that nobody uses stay, least recently used first, until room is needed.
Prefix blocks are known by their hashes; all other tokens (the rest of a prompt, the output) are only counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class KvCache:
    """The block pool of one replica.

    One prefix block (`unit_tokens`) is a whole number of KV blocks (`block_tokens`). `changed` collects for the
    ingresses' prefix indexes whether a prefix block is here now, if `is_watched`.
    """

    __slots__ = (
        "_idle",
        "_idle_blocks",
        "_rests",
        "_users",
        "block_tokens",
        "changed",
        "is_watched",
        "total_blocks",
        "unit_blocks",
        "unit_tokens",
        "used_blocks",
    )

    def __init__(self, total_tokens: int, block_tokens: int, unit_tokens: int, is_watched: bool = False) -> None:
        self.block_tokens = block_tokens
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self.total_blocks = total_tokens // block_tokens
        self.used_blocks = 0
        self.is_watched = is_watched
        self.changed: dict[int, bool] = {}
        self._users: dict[int, int] = {}
        # Hash -> blocks, in the order of last use; a tuple stands for blocks that nobody can ask for again.
        self._idle: OrderedDict[int | tuple[int], int] = OrderedDict()
        self._idle_blocks = 0
        self._rests = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that can be given out, those of the cache included."""
        return self.total_blocks - self.used_blocks

    @property
    def used_tokens(self) -> int:
        """Tokens of the blocks in use."""
        return self.used_blocks * self.block_tokens

    def cached_units(self, hashes: Sequence[int], prompt_tokens: int) -> int:
        """How many prefix blocks are here. At least one token is always computed, as its logits are needed."""
        users, idle = self._users, self._idle
        limit = min(len(hashes), (prompt_tokens - 1) // self.unit_tokens)
        for place in range(limit):
            unit = hashes[place]
            if unit not in users and unit not in idle:
                return place
        return limit

    def idle_blocks_of(self, hashes: Sequence[int], units: int) -> int:
        """How many blocks of a hit nobody uses now: using them takes room away."""
        users = self._users
        return self.unit_blocks * sum(1 for place in range(units) if hashes[place] not in users)

    def hold(self, hashes: Sequence[int], units: int) -> None:
        """Uses the first `units` prefix blocks, all of which are here."""
        users = self._users
        for place in range(units):
            unit = hashes[place]
            count = users.get(unit, 0)
            users[unit] = count + 1
            if not count:
                self._idle_blocks -= self._idle.pop(unit)
                self.used_blocks += self.unit_blocks

    def add(self, unit: int) -> bool:
        """A prefix block of blocks already taken can be asked for from now on; False if it was here before."""
        if unit in self._users or unit in self._idle:
            return False
        self._users[unit] = 1
        if self.is_watched:
            self.changed[unit] = True
        return True

    def take(self, blocks: int) -> None:
        """Uses blocks, of which so many are free, and forgets what was cached in them."""
        self.used_blocks += blocks
        excess = self.used_blocks + self._idle_blocks - self.total_blocks
        idle = self._idle
        while excess > 0:
            unit, size = idle.popitem(last=False)
            if isinstance(unit, tuple):
                if size > excess:
                    idle[unit] = size - excess
                    idle.move_to_end(unit, last=False)
                    size = excess
            elif self.is_watched:
                self.changed[unit] = False
            self._idle_blocks -= size
            excess -= size

    def release(self, held: Sequence[int], private_blocks: int) -> None:
        """Gives back a request's blocks: its end becomes the least recently used, its first block the most."""
        idle, users = self._idle, self._users
        if private_blocks:
            self._rests += 1
            idle[(self._rests,)] = private_blocks
            self.used_blocks -= private_blocks
            self._idle_blocks += private_blocks
        for unit in reversed(held):
            count = users[unit] - 1
            if count:
                users[unit] = count
            else:
                del users[unit]
                idle[unit] = self.unit_blocks
                self.used_blocks -= self.unit_blocks
                self._idle_blocks += self.unit_blocks
