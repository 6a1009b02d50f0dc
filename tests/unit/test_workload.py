"""Are traces read as they are, and broken ones refused with the line?"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cluster.workload import SharedPrefixes, at_speed, even_rate, poisson, read_workload
from llama31.errors import ConfigInvalid

MOONCAKE = (
    '{"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    "\n"
    '{"timestamp": 1500, "input_length": 1024, "output_length": 7, "hash_ids": [0, 9]}\n'
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.99,396,109\n"
LENGTHS = "arrival_s,input_tokens,output_tokens\n0.5,2358,531\n0.75,1034,769\n"


@pytest.mark.parametrize("packed", [False, True])
def test_mooncake(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / f"trace.jsonl{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(MOONCAKE.encode()) if packed else MOONCAKE.encode())
    workload = read_workload(path)
    first, second = workload.requests
    assert workload.block_tokens == 512
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens, first.block_hashes) == (1.5, 1024, 7, (0, 9))
    assert second.block_hashes == (0, 1), "the third block is not whole"


@pytest.mark.parametrize(
    ("text", "times", "prompts"), [(AZURE, [0.0, 4.30941], [374, 396]), (LENGTHS, [0.0, 0.25], [2358, 1034])]
)
def test_csv(tmp_path: Path, text: str, times: list[float], prompts: list[int]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    requests = list(read_workload(path).requests)
    assert [r.arrival_s for r in requests] == pytest.approx(times)
    assert [r.prompt_tokens for r in requests] == prompts


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "is a .jsonl or .csv"),
        ("a.jsonl", "", "no request"),
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 5}', "'output_length' is missing"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}', "at least 1 token"),
        ("a.jsonl", "[1]", "line 1"),
        ("a.csv", "", "is missing"),
        ("a.csv", "arrival_s,input_tokens\n1,2\n", "output_tokens is missing"),
        ("a.csv", LENGTHS + "x,1,1\n", "line 4"),
        ("a.csv", LENGTHS + "0.1,1,1\n", "line 4: the time is before"),
        ("a.csv", LENGTHS + "3,1\n", "line 4"),
        ("a.csv.gz", "not packed", "cannot be read"),
        ("absent/a.csv", None, "cannot be read"),
    ],
)
def test_broken_traces_are_refused(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigInvalid, match=words):
        read_workload(path)


def test_poisson_keeps_its_rate_and_its_seed() -> None:
    made = list(poisson(50.0, 10_000, [(10, 20), (30, 40)], seed=1, tenants=("a", "b")))
    assert made == list(poisson(50.0, 10_000, [(10, 20), (30, 40)], seed=1, tenants=("a", "b")))
    assert made[-1].arrival_s == pytest.approx(200, rel=0.05)
    assert {(r.prompt_tokens, r.output_tokens, r.tenant) for r in made} == {
        (p, o, t) for p, o in ((10, 20), (30, 40)) for t in "ab"
    }
    assert [r.arrival_s for r in at_speed(made[:2], 2.0)] == [r.arrival_s / 2 for r in made[:2]]


@pytest.mark.parametrize(("rate", "lengths"), [(0.0, [(1, 1)]), (1.0, []), (1.0, [(0, 1)])])
def test_impossible_workloads_are_refused(rate: float, lengths: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigInvalid, match="above 0"):
        list(poisson(rate, 1, lengths))


def test_shared_prefixes() -> None:
    prompts = SharedPrefixes(3, 2, 100, 60, 7, block_tokens=16).prompts(seed=1)
    assert len(prompts) == 6
    assert all(len(p.block_hashes) == 10 and p.prompt_tokens == 160 for p in prompts)
    assert len({p.block_hashes[:6] for p in prompts}) == 3
    assert len({block for p in prompts for block in p.block_hashes[6:]}) == 24
    requests = list(even_rate(prompts, 4.0, 2.5, seed=3))
    assert len(requests) == 10
    assert requests[-1].arrival_s == pytest.approx(2.5)
    assert requests[6].block_hashes == requests[0].block_hashes


@pytest.mark.parametrize("counts", [(0, 1, 1, 1, 1), (1, 1, -1, 1, 1), (1, 1, 1, 0, 1), (1, 1, 1, 1, 0)])
def test_impossible_prefixes_are_refused(counts: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ConfigInvalid, match="at least 1 group"):
        SharedPrefixes(*counts)
