"""Is a routing trace read as it is, refused with a reason, and replayed to the same figures each time?"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.prefix_trace import BLOCK_TOKENS, PACKAGED, BadTraceError, TracedRequest, made_up, read_trace, shorten
from bench.replay_fleet import replay
from deployments.policies.router import PredictedTtft
from deployments.policies.router_baselines import LongestPrefix, RoundRobin

ROW = {"timestamp": 1500, "input_length": 1000, "output_length": 7, "hash_ids": [3, 4]}


def test_the_packaged_trace_is_the_published_one() -> None:
    """Figures of the original: 12,031 requests, 37.4 % of the input tokens are repeated."""
    trace = read_trace(PACKAGED)
    assert len(trace) == 12_031
    assert max(request.input_tokens for request in trace) == 126_195
    seen: set[int] = set()
    hits = 0
    for request in trace:
        known = next((i for i, block in enumerate(request.blocks) if block not in seen), len(request.blocks))
        hits += min(known * BLOCK_TOKENS, request.input_tokens)
        seen.update(request.blocks)
    assert hits / sum(request.input_tokens for request in trace) == pytest.approx(0.374, abs=0.001)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_lines_are_read(tmp_path: Path, pack: type[bytes]) -> None:
    path = tmp_path / "trace"
    path.write_bytes(pack(b"\n".join(json.dumps(row).encode() for row in (ROW, ROW | {"timestamp": 20}))))
    assert read_trace(path) == [TracedRequest(0.02, 1000, 7, (3, 4)), TracedRequest(1.5, 1000, 7, (3, 4))]


def test_the_short_form_reads_back(tmp_path: Path) -> None:
    trace = made_up(3, 200)
    path = tmp_path / "short.csv"
    path.write_text(shorten(trace))
    back = read_trace(path)
    numbers: dict[int, int] = {}
    for request in trace:
        for block in request.blocks:
            numbers.setdefault(block, len(numbers))
    assert [r.blocks for r in back] == [tuple(numbers[block] for block in r.blocks) for r in trace]
    assert [(r.input_tokens, r.output_tokens) for r in back] == [(r.input_tokens, r.output_tokens) for r in trace]
    assert [r.at_s for r in back] == pytest.approx([r.at_s for r in trace], abs=0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("\n\n", "has no rows"),
        ('{"timestamp": 1}', "line 1: hash_ids, input_length, output_length missing"),
        ("no JSON", "Expecting value"),
        ("[1]", "missing"),
        (json.dumps(ROW | {"input_length": 0, "hash_ids": []}), "line 1: input_length 0"),
        (json.dumps(ROW | {"hash_ids": [1, 2, 3]}), "line 1: 3 blocks of 512 in 1000 tokens"),
        (json.dumps(ROW | {"hash_ids": None}), "not iterable"),
        ("after_ms,input_length\n1,2", "columns are"),
        ("after_ms,input_length,output_length,requests_back,shared_blocks\n0,600,1,1,1", "line 2: 1 requests back"),
        ("after_ms,input_length,output_length,requests_back,shared_blocks\n0,600,1", "int()"),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadTraceError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_ours_hits_more_than_turns_and_balances_more_than_prefixes_alone() -> None:
    trace = made_up(5, 600)
    ours, again = (replay(trace, [PredictedTtft()], 4, 450_000) for _ in range(2))
    assert ours == again
    turns = replay(trace, [RoundRobin()], 4, 450_000)
    longest = replay(trace, [LongestPrefix()], 4, 450_000)
    assert ours.hit_ratio > 1.5 * turns.hit_ratio
    assert ours.max_load < min(1.15, longest.max_load)
    several = replay(trace, [PredictedTtft() for _ in range(3)], 4, 450_000)
    assert several.hit_ratio > 1.5 * turns.hit_ratio
    assert several.most_requests < 0.5
