"""Which requests does a routing trace hold? Reads Mooncake's JSON lines, the packaged short form, or makes one up."""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import io
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512  # of Mooncake's hash_ids
PACKAGED = Path(__file__).parent / "data" / "mooncake_conversation.csv.gz"
COLUMNS = ("after_ms", "input_length", "output_length", "requests_back", "shared_blocks")


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One row: a block's id stands for itself and all blocks before it, the last block may be part full."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


class BadTraceError(ValueError):
    """The file is not a routing trace; the message says where and why."""


def read_trace(path: Path) -> list[TracedRequest]:
    """JSON lines with `timestamp` (ms), `input_length`, `output_length`, `hash_ids`, or the short form; both may be
    gzipped. Sorted by time.

    Raises:
        BadTraceError: Not such a file.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise BadTraceError(f"{path}: cannot be read: {e}") from e
    lines = text.splitlines()
    if not lines:
        raise BadTraceError(f"{path}: is empty")
    rows = _short_rows if lines[0].startswith(COLUMNS[0]) else _json_rows
    try:
        found = list(rows(lines))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
        raise BadTraceError(f"{path}: {e}") from e
    if not found:
        raise BadTraceError(f"{path}: has no rows")
    return sorted(found, key=lambda request: request.at_s)


def _json_rows(lines: Iterable[str]) -> Iterator[TracedRequest]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        missing = {"timestamp", "input_length", "output_length", "hash_ids"} - set(row)
        if missing:
            raise ValueError(f"line {number}: {', '.join(sorted(missing))} missing")
        yield _request(number, row["timestamp"] / 1000, row["input_length"], row["output_length"], row["hash_ids"])


def _request(number: int, at_s: float, input_tokens: int, output_tokens: int, blocks: Iterable[int]) -> TracedRequest:
    request = TracedRequest(at_s, int(input_tokens), int(output_tokens), tuple(int(block) for block in blocks))
    if request.input_tokens < 1 or request.output_tokens < 0:
        raise ValueError(f"line {number}: input_length {input_tokens}, output_length {output_tokens}")
    if len(request.blocks) > -(-request.input_tokens // BLOCK_TOKENS):
        raise ValueError(f"line {number}: {len(request.blocks)} blocks of {BLOCK_TOKENS} in {input_tokens} tokens")
    return request


def _short_rows(lines: list[str]) -> Iterator[TracedRequest]:
    """A request has the first `shared_blocks` of the one that many rows before it, and new blocks behind them."""
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"columns are {reader.fieldnames}, not {', '.join(COLUMNS)}")
    at_ms, fresh = 0, 0
    earlier: list[tuple[int, ...]] = []
    for number, row in enumerate(reader, 2):
        after, tokens, output, back, shared = (int(row[column]) for column in COLUMNS)
        at_ms += after
        if shared and not 0 < back <= len(earlier):
            raise ValueError(f"line {number}: {back} requests back is before the beginning")
        new = -(-tokens // BLOCK_TOKENS) - shared
        if new < 0:
            raise ValueError(f"line {number}: {shared} shared blocks of {BLOCK_TOKENS} in {tokens} tokens")
        blocks = (earlier[-back][:shared] if shared else ()) + tuple(range(fresh, fresh + new))
        fresh += new
        earlier.append(blocks)
        yield _request(number, at_ms / 1000, tokens, output, blocks)


def shorten(requests: Iterable[TracedRequest]) -> str:
    """The short form: the same requests, blocks numbered in the order in which they first come."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    latest: dict[int, int] = {}
    before_ms = 0
    for number, request in enumerate(requests):
        shared = 0
        while shared < len(request.blocks) and request.blocks[shared] in latest:
            shared += 1
        back = number - latest[request.blocks[shared - 1]] if shared else 0
        at_ms = round(request.at_s * 1000)
        writer.writerow((at_ms - before_ms, request.input_tokens, request.output_tokens, back, shared))
        before_ms = at_ms
        latest.update(dict.fromkeys(request.blocks, number))
    return out.getvalue()


def made_up(seed: int, requests: int = 12_000, per_s: float = 3.5, long_systems: bool = False) -> list[TracedRequest]:
    """Sessions of several turns behind a few system prompts of uneven popularity; `long_systems`: of 2k to 16k tokens.

    For choosing constants on something that is not the trace they are tested on.
    """
    dice = random.Random(seed)
    sizes = (4, 8, 16, 32) if long_systems else (1, 1, 1, 2, 4)
    systems = [[1_000_000 * (i + 1) + j for j in range(dice.choice(sizes))] for i in range(40 if long_systems else 12)]
    fresh = iter(range(100_000_000, 1_000_000_000))
    sessions: list[tuple[float, list[int], int]] = []  # next turn at, its blocks so far, turns left
    found: list[TracedRequest] = []
    at_s = 0.0
    while len(found) < requests:
        at_s += dice.expovariate(per_s)
        if sessions and sessions[0][0] <= at_s:
            _, blocks, turns = heapq.heappop(sessions)
        else:
            blocks = systems[min(int(dice.paretovariate(0.8)), len(systems)) - 1]
            turns = 1 + int(dice.expovariate(0.6))
        new = max(1, int(dice.lognormvariate(1.0 if long_systems else 2.2, 1.1)))
        blocks = [*blocks, *(next(fresh) for _ in range(new))][:240]
        output = max(1, int(dice.lognormvariate(5.5, 0.8)))
        tokens = len(blocks) * BLOCK_TOKENS - dice.randrange(BLOCK_TOKENS)
        found.append(TracedRequest(at_s, tokens, output, tuple(blocks)))
        if turns > 1:
            heapq.heappush(sessions, (at_s + 5 + dice.expovariate(1 / 90), blocks, turns - 1))
    return found


def main() -> None:
    """Writes a trace's short form, gzipped with no time in it."""
    parser = argparse.ArgumentParser(description="Writes the short form of a routing trace.")
    parser.add_argument("trace", type=Path)
    parser.add_argument("short", type=Path)
    options = parser.parse_args()
    requests = read_trace(options.trace)
    options.short.write_bytes(gzip.compress(shorten(requests).encode(), 9, mtime=0))
    if [r.at_s for r in read_trace(options.short)] != [r.at_s for r in requests]:
        raise SystemExit("the short form does not read back as the same trace")


if __name__ == "__main__":
    main()
