"""Which routing blocks are in the engine's prefix cache, by what the engine says of its own, smaller blocks?

A routing block is there while all its engine blocks are. What is kept is bounded by what the cache holds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llama31.prefix_blocks import (
    ROUTING_BLOCK_TOKENS,
    TOKEN_BYTES,
    BlockChanges,
    block_hashes,
    hash_name,
    id_bytes,
    next_hash,
    root_hash,
)


@dataclass(slots=True)
class _EngineBlock:
    """`place` in its routing block; `before` is the hash of the routing block before that one.

    The engine may hold equal blocks several times: `copies`.
    """

    parent: Hashable
    place: int
    before: bytes
    ids: bytes
    copies: int = 1
    after: bytes = b""


@dataclass(slots=True)
class _RoutingBlock:
    name: int
    missing: int
    # The last one first.
    members: tuple[Hashable, ...]


class BlockTable:
    """Follows the engine's events. Keys are the engine's own names of blocks; the first of a chain has no parent."""

    def __init__(self, engine_block_tokens: int, block_tokens: int = ROUTING_BLOCK_TOKENS) -> None:
        if block_tokens % engine_block_tokens:
            raise ValueError(f"{block_tokens} tokens are not whole blocks of {engine_block_tokens}")
        self._per_block = block_tokens // engine_block_tokens
        self._engine_block_tokens = engine_block_tokens
        self._block_tokens = block_tokens
        self._engine: dict[Hashable, _EngineBlock] = {}
        # By the key of the last member; and by the key of every member, then by that of the last.
        self._routing: dict[Hashable, _RoutingBlock] = {}
        self._parts: dict[Hashable, dict[Hashable, _RoutingBlock]] = {}
        # In the order in which they came.
        self._present: dict[int, None] = {}
        self._stored: dict[int, None] = {}
        self._dropped: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._present)

    def store(self, keys: Sequence[Hashable], parent: Hashable, token_ids: Sequence[int], salt: str) -> None:
        """A run of blocks after `parent`, None for the first.

        What follows an unknown block is left out, and a run whose ids are not so many blocks.
        """
        size = self._engine_block_tokens
        if len(token_ids) != len(keys) * size:
            return
        ids, block_bytes = id_bytes(token_ids), size * TOKEN_BYTES
        for index, key in enumerate(keys):
            known = self._engine.get(key)
            if known is not None:
                known.copies += 1
            elif not self._add(key, parent, ids[index * block_bytes : (index + 1) * block_bytes], salt):
                return
            parent = key

    def remove(self, keys: Sequence[Hashable]) -> None:
        """One copy of each of these blocks."""
        for key in keys:
            block = self._engine.get(key)
            if block is None:
                continue
            block.copies -= 1
            if block.copies:
                continue
            del self._engine[key]
            for routing in self._parts.get(key, {}).values():
                routing.missing += 1
                if routing.missing == 1:
                    self._drop(routing.name)
            if (ended := self._routing.pop(key, None)) is not None:
                self._forget(ended)

    def clear(self) -> None:
        """Nothing is known to be there any more."""
        for name in tuple(self._present):
            self._drop(name)
        self._engine.clear()
        self._routing.clear()
        self._parts.clear()

    def take_changes(self) -> BlockChanges:
        """What changed since the last call."""
        changes = BlockChanges(tuple(self._stored), tuple(self._dropped))
        self._stored, self._dropped = {}, {}
        return changes

    def names(self) -> tuple[int, ...]:
        """All routing blocks that are there, the oldest first."""
        return tuple(self._present)

    def cached_tokens(self, token_ids: Sequence[int], salt: str) -> int:
        """How much of a prompt's beginning is there, in whole routing blocks."""
        cached = 0
        for name in block_hashes(token_ids, salt, self._block_tokens):
            if name not in self._present:
                break
            cached += self._block_tokens
        return cached

    def _add(self, key: Hashable, parent: Hashable, ids: bytes, salt: str) -> bool:
        if parent is None:
            block = _EngineBlock(None, 0, root_hash(salt), ids)
        elif (above := self._engine.get(parent)) is None:
            return False
        elif above.place == self._per_block - 1:
            block = _EngineBlock(parent, 0, above.after, ids)
        else:
            block = _EngineBlock(parent, above.place + 1, above.before, ids)
        if block.place == self._per_block - 1 and not self._complete(key, block):
            return False
        self._engine[key] = block
        for routing in self._parts.get(key, {}).values():
            routing.missing -= 1
            if not routing.missing:
                self._put(routing.name)
        return True

    def _complete(self, key: Hashable, last: _EngineBlock) -> bool:
        """Makes the routing block that ends with `last`; False if one of its blocks is not known."""
        members, ids = [key], [last.ids]
        block = last
        while block.place:
            above = self._engine.get(block.parent)
            if above is None:
                return False
            members.append(block.parent)
            ids.append(above.ids)
            block = above
        last.after = next_hash(last.before, b"".join(reversed(ids)))
        # `last` itself is counted when it is added.
        routing = _RoutingBlock(hash_name(last.after), 1, tuple(members))
        self._routing[key] = routing
        for member in members:
            self._parts.setdefault(member, {})[key] = routing
        return True

    def _forget(self, routing: _RoutingBlock) -> None:
        for member in routing.members:
            parts = self._parts[member]
            del parts[routing.members[0]]
            if not parts:
                del self._parts[member]

    def _put(self, name: int) -> None:
        self._present[name] = None
        if name in self._dropped:
            del self._dropped[name]
        else:
            self._stored[name] = None

    def _drop(self, name: int) -> None:
        del self._present[name]
        if name in self._stored:
            del self._stored[name]
        else:
            self._dropped[name] = None
