"""How long does one routing decision take? A full index, many replicas, prompts of 8k and 128k tokens."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from cluster.policy import ReplicaSnapshot, RequestFeatures
from deployments.policies.prefix_index import PrefixIndex
from deployments.policies.router import TYPICAL_SPEED, PredictedTtft
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS, block_hashes

REPLICAS = 64
KV_TOKENS = 450_000
PROMPT_TOKENS = {"8k": 8192, "128k": 131_072 - 1024}


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds: the thread's own CPU time, and by the wall clock, which counts what else the machine does."""

    p50_us: float
    p99_us: float
    wall_p99_us: float


def decision_times(is_quick: bool) -> dict[str, Timing]:
    """Name -> time of index match and policy (`decide`), of the index's note of it (`note`), of hashing (`hash`)."""
    found = {}
    for name, prompt_tokens in PROMPT_TOKENS.items():
        fleet = _Fleet(random.Random(1), prompt_tokens)
        rounds = 300 if is_quick else 2000
        found[f"decide {name}"] = _timed(fleet.decide, rounds)
        found[f"note {name}"] = _timed(fleet.note, rounds)
        found[f"hash {name}"] = _timed(fleet.hash, rounds // 10)
    return found


class _Fleet:
    """Replicas with full caches. A third of the prompts nobody has, one has a third, and of a third all have some."""

    def __init__(self, dice: random.Random, prompt_tokens: int) -> None:
        blocks = prompt_tokens // ROUTING_BLOCK_TOKENS
        self._policy = PredictedTtft()
        self._index = PrefixIndex(REPLICAS * KV_TOKENS // ROUTING_BLOCK_TOKENS)
        self._tokens = [dice.randrange(128_000) for _ in range(prompt_tokens)]
        self._turn = count()
        names = [f"replica-{number:03d}" for number in range(REPLICAS)]
        new, one, all_have = ([dice.getrandbits(64) for _ in range(blocks)] for _ in range(3))
        self._requests = [RequestFeatures(prompt_tokens, 512, "", tuple(hashes)) for hashes in (new, one, all_have)]
        others = KV_TOKENS // ROUTING_BLOCK_TOKENS - blocks
        for name in names:
            self._index.store(name, [dice.getrandbits(64) for _ in range(others)])
            self._index.store(name, all_have[: dice.randint(1, blocks)])
        self._index.store(names[REPLICAS // 2], one)
        self._replicas = [
            ReplicaSnapshot(
                replica_id=name,
                ready=True,
                draining=False,
                running=dice.randrange(60),
                waiting=0,
                waiting_prompt_tokens=0,
                kv_tokens_used=dice.randrange(KV_TOKENS // 2),
                kv_tokens_total=KV_TOKENS,
                outstanding_tokens=dice.randrange(200_000),
                prefill_tokens=dice.randrange(20_000),
                age_s=0.2,
                speed=TYPICAL_SPEED,
                recent_tokens=dice.uniform(1e6, 2e6),
            )
            for name in names
        ]

    def decide(self) -> None:
        request = self._requests[next(self._turn) % len(self._requests)]
        cached = {r: blocks * ROUTING_BLOCK_TOKENS for r, blocks in self._index.match(request.block_hashes).items()}
        assert self._policy.route(request, self._replicas, cached).replica_id is not None

    def note(self) -> None:
        replica = self._replicas[next(self._turn) % REPLICAS].replica_id
        self._index.settle(self._index.expect(replica, self._requests[2].block_hashes))
        self._index.reported(replica)

    def hash(self) -> None:
        block_hashes(self._tokens, "a tenant's salt")


def _timed(call: Callable[[], None], rounds: int) -> Timing:
    for _ in range(20):
        call()
    gc.collect()
    own, wall = [], []
    for _ in range(rounds):
        wall_s, own_s = time.perf_counter(), time.thread_time()
        call()
        own.append(time.thread_time() - own_s)
        wall.append(time.perf_counter() - wall_s)
    own.sort()
    wall.sort()
    return Timing(own[rounds // 2] * 1e6, own[rounds * 99 // 100] * 1e6, wall[rounds * 99 // 100] * 1e6)
