"""Which requests arrive when? From traces (Mooncake, Azure, plain lengths), from rates, or with shared prefixes.

Everything random comes from the seed, so that equal arguments give equal requests.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from llama31.errors import ConfigInvalid

# Prefix blocks of Mooncake's traces (its README: "each block is 512 tokens").
MOONCAKE_BLOCK_TOKENS = 512
# Ids of different prompts never meet.
_PROMPT_STRIDE = 1 << 32
_PREFIX_COLUMNS = ("timestamp", "input_length", "output_length", "hash_ids")
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_LENGTH_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `block_hashes` chain over the whole prefix blocks of its prompt, first block first.

    `arrival_s` counts from the start of the workload; `deadline_s` from the arrival. It ends after `output_tokens`;
    the service is told `max_output_tokens` (0: the same).
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    block_hashes: Sequence[int] = ()
    priority: int = 0
    deadline_s: float = math.inf
    max_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrivals, and the tokens of one prefix block."""

    requests: Iterable[Request]
    block_tokens: int = 16


def read_workload(path: Path) -> Workload:
    """A trace by its columns: Mooncake (.jsonl), Azure or lengths (.csv), each also as .gz.

    Raises: ConfigInvalid, naming the line and what is wrong with it.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return read_mooncake(path)
    if not name.endswith(".csv"):
        raise ConfigInvalid(f"{path}: a trace is a .jsonl or .csv file, also as .gz")
    header = next(csv.reader(io.StringIO(_text(path))), [])
    if set(_AZURE_COLUMNS) <= set(header):
        return Workload(_read_csv(path, _AZURE_COLUMNS, _clock_s))
    return Workload(_read_csv(path, _LENGTH_COLUMNS, float))


def read_mooncake(path: Path) -> Workload:
    """One JSON object per line: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` of 512-token blocks.

    The last id may stand for a block that is not whole; nobody can reuse it, so it is left out.
    Source: kvcache-ai/Mooncake, FAST25-release/traces.
    """
    requests = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            time_ms, prompt, output, ids = (row[column] for column in _PREFIX_COLUMNS)
            whole = tuple(int(i) for i in ids)[: int(prompt) // MOONCAKE_BLOCK_TOKENS]
            requests.append(_checked(Request(float(time_ms) / 1000, int(prompt), int(output), "", whole)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigInvalid(_malformed(path, number, error, _PREFIX_COLUMNS)) from error
    return Workload(_ordered(path, requests), MOONCAKE_BLOCK_TOKENS)


def poisson(
    rate_per_s: float,
    requests: int,
    lengths: Sequence[tuple[int, int]],
    seed: int = 0,
    tenants: Sequence[str] = ("",),
) -> Iterator[Request]:
    """So many requests at that mean rate; (prompt, output) tokens and tenant are drawn from those given.

    Raises: ConfigInvalid for a rate or a length that cannot be.
    """
    if rate_per_s <= 0 or not lengths or any(p < 1 or o < 1 for p, o in lengths):
        raise ConfigInvalid("a workload needs a rate above 0 and lengths of at least 1 token")
    dice = np.random.default_rng(seed)
    now_s = 0.0
    for start in range(0, requests, _BATCH):
        count = min(_BATCH, requests - start)
        times = now_s + np.cumsum(dice.exponential(1 / rate_per_s, count))
        picks = dice.integers(0, len(lengths), count).tolist()
        owners = dice.integers(0, len(tenants), count).tolist()
        now_s = float(times[-1])
        for arrival_s, pick, owner in zip(times.tolist(), picks, owners, strict=True):
            yield Request(arrival_s, lengths[pick][0], lengths[pick][1], tenants[owner])


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Prompts in groups: each group shares a prefix, each prompt adds a question of its own."""

    groups: int
    prompts_per_group: int
    prefix_tokens: int
    question_tokens: int
    output_tokens: int
    block_tokens: int = 64

    def __post_init__(self) -> None:
        counts = (self.groups, self.prompts_per_group, self.question_tokens, self.output_tokens, self.block_tokens)
        if min(counts) < 1 or self.prefix_tokens < 0:
            raise ConfigInvalid("shared prefixes need at least 1 group, prompt, question token and output token")

    def prompts(self, seed: int = 0) -> list[Request]:
        """All prompts once in shuffled order, each with its chain of block hashes; they arrive at 0."""
        tokens = self.prefix_tokens + self.question_tokens
        shared = self.prefix_tokens // self.block_tokens
        own = range(shared, tokens // self.block_tokens)
        prompts: list[Request] = []
        for group in range(self.groups):
            prefix = tuple(group * _PROMPT_STRIDE + block for block in range(shared))
            for _ in range(self.prompts_per_group):
                chain = self.groups + len(prompts)
                hashes = (*prefix, *(chain * _PROMPT_STRIDE + block for block in own))
                prompts.append(Request(0.0, tokens, self.output_tokens, "", hashes))
        order = np.random.default_rng(seed).permutation(len(prompts))
        return [prompts[place] for place in order]


def even_rate(prompts: Sequence[Request], rate_per_s: float, duration_s: float, seed: int = 0) -> Iterator[Request]:
    """`rate*duration` requests that go round the prompts; exponential gaps, scaled to fill the duration exactly.

    Source: kubernetes-sigs/inference-perf, ConstantLoadTimer and SharedPrefixDataGenerator.get_request.
    """
    count = int(rate_per_s * duration_s)
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    times = np.cumsum(gaps) * (duration_s / gaps.sum()) if count else gaps
    for number, arrival_s in enumerate(times.tolist()):
        yield replace(prompts[number % len(prompts)], arrival_s=arrival_s)


def at_speed(requests: Iterable[Request], speed: float) -> Iterator[Request]:
    """The same requests, arriving `speed` times as fast."""
    return (replace(request, arrival_s=request.arrival_s / speed) for request in requests)


def _read_csv(path: Path, columns: tuple[str, str, str], read_time: Callable[[str], float]) -> list[Request]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        raise ConfigInvalid(f"{path}: column {', '.join(sorted(missing))} is missing; a trace has {', '.join(columns)}")
    requests: list[Request] = []
    first_s: float | None = None
    for number, row in enumerate(reader, start=2):
        try:
            time_s = read_time(row[columns[0]])
            first_s = time_s if first_s is None else first_s
            requests.append(_checked(Request(time_s - first_s, int(row[columns[1]]), int(row[columns[2]]))))
        except (ValueError, TypeError) as error:
            raise ConfigInvalid(_malformed(path, number, error, columns)) from error
    return _ordered(path, requests)


def _clock_s(text: str) -> float:
    # Azure writes seven digits of a second.
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")


def _checked(request: Request) -> Request:
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError("prompt and output are at least 1 token")
    if not (math.isfinite(request.arrival_s) and request.arrival_s >= 0):
        raise ValueError("the time is before the trace's first, or none")
    return request


def _ordered(path: Path, requests: list[Request]) -> list[Request]:
    if not requests:
        raise ConfigInvalid(f"{path}: there is no request in it")
    return sorted(requests, key=lambda request: request.arrival_s)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error}") from error


def _malformed(path: Path, line: int, error: Exception, columns: Sequence[str]) -> str:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"{path}, line {line}: {what}; each row has {', '.join(columns)}"
