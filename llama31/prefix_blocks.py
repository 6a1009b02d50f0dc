"""How is a prompt's beginning named, so that ingress and replica mean the same block of the prefix cache?

hash = BLAKE2b-64(hash of the block before, token ids as little-endian uint32); before the first comes
BLAKE2b-64(cache salt), so that tenants never share a name.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

# Routing looks at blocks of this many tokens: the engine's own of 16 would be eight times the work, and what
# is lost at the end of a prefix (64 tokens on average) is computed in a few milliseconds.
ROUTING_BLOCK_TOKENS = 128
HASH_BYTES = 8
# array("I"): unsigned, of four bytes, in the machine's order; every machine that vLLM runs on is little-endian.
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """Routing blocks that came and went since the last look; none is in both."""

    stored: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def block_hashes(token_ids: Sequence[int], salt: str, block_tokens: int = ROUTING_BLOCK_TOKENS) -> tuple[int, ...]:
    """The names of all whole blocks, first block first; empty for less than one block."""
    blocks = len(token_ids) // block_tokens
    if not blocks:
        return ()
    raw, block_bytes = id_bytes(token_ids), block_tokens * TOKEN_BYTES
    parent, names = root_hash(salt), []
    for start in range(0, blocks * block_bytes, block_bytes):
        parent = next_hash(parent, raw[start : start + block_bytes])
        names.append(hash_name(parent))
    return tuple(names)


def root_hash(salt: str) -> bytes:
    """What the first block's hash starts from."""
    return blake2b(salt.encode(), digest_size=HASH_BYTES).digest()


def next_hash(parent: bytes, ids: bytes) -> bytes:
    """The hash of a block with these `id_bytes`."""
    return blake2b(parent + ids, digest_size=HASH_BYTES).digest()


def hash_name(block_hash: bytes) -> int:
    """A hash as it goes over the wire."""
    return int.from_bytes(block_hash, "little")


def id_bytes(token_ids: Sequence[int]) -> bytes:
    """The ids as they are hashed."""
    return array("I", token_ids).tobytes()
