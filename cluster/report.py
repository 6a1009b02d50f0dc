"""What came out of a simulation: percentiles, goodput, tokens per second, hit ratio, load, GPU-hours; and plots."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.policy import Scale
from cluster.sim_run import GapCounts

Floats = npt.NDArray[np.float64]
_SHOWN = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must meet: time to first token, and the mean time between its tokens."""

    ttft_s: float
    itl_s: float = math.inf


@dataclass(slots=True)
class Tally:
    """What is counted while a simulation runs; one entry of each array per finished request."""

    arrival_s: array[float] = field(default_factory=lambda: array("d"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    e2e_s: array[float] = field(default_factory=lambda: array("d"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    tenants: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retries: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    scales: list[tuple[float, Scale]] = field(default_factory=list)
    events: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """One run. `duration_s` is from its start to its last token; arrays have one entry per finished request.

    `itl_s` is a request's mean time between tokens (NaN with one token), `gaps` the distribution over all tokens.
    `refused` counts by reason, `load` is the tokens of finished requests per replica that served any time.
    """

    duration_s: float
    arrival_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    itl_s: Floats
    output_tokens: int
    tenants: Sequence[str]
    prompt_tokens: int
    cached_tokens: int
    refused: Mapping[str, int]
    retries: int
    preemptions: int
    load: Mapping[str, int]
    gpu_hours: float
    gaps: GapCounts
    scales: Sequence[tuple[float, Scale]]
    events: int

    @property
    def requests(self) -> int:
        """Finished ones."""
        return len(self.ttft_s)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole duration, its tail included."""
        return self.output_tokens / self.duration_s if self.duration_s else 0.0

    @property
    def hit_ratio(self) -> float:
        """Share of the prompts' tokens that were in the cache when they were admitted first."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def load_max_over_mean(self) -> float:
        """1 if all replicas had the same work."""
        total = sum(self.load.values())
        return max(self.load.values()) * len(self.load) / total if total else 1.0

    def ttft_percentile_s(self, share: float) -> float:
        """Time to first token."""
        return _percentile(self.ttft_s, share)

    def e2e_percentile_s(self, share: float) -> float:
        """Whole requests."""
        return _percentile(self.e2e_s, share)

    def itl_percentile_s(self, share: float) -> float:
        """Over all gaps between tokens, of all requests; within 1 %."""
        return self.gaps.percentile_s(share)

    def is_good(self, slo: Slo) -> npt.NDArray[np.bool_]:
        """Which finished requests met it."""
        return (self.ttft_s <= slo.ttft_s) & ~(self.itl_s > slo.itl_s)

    def attainment(self, slo: Slo) -> float:
        """Share of all requests, the refused ones included, that met it."""
        total = self.requests + sum(self.refused.values())
        return float(self.is_good(slo).sum()) / total if total else 1.0

    def goodput_per_s(self, slo: Slo) -> float:
        """Requests a second that met it."""
        return float(self.is_good(slo).sum()) / self.duration_s if self.duration_s else 0.0

    def summary(self, slo: Slo | None = None) -> dict[str, float]:
        """The figures of one line of a table, with units in the names."""
        figures = {
            "requests": float(self.requests),
            "refused": float(sum(self.refused.values())),
            "duration_s": self.duration_s,
            "output_tokens_per_s": self.tokens_per_s,
            "hit_ratio": self.hit_ratio,
            "load_max_over_mean": self.load_max_over_mean,
            "preemptions": float(self.preemptions),
            "retries": float(self.retries),
            "gpu_hours": self.gpu_hours,
        }
        for share in _SHOWN:
            name = f"p{round(share * 100)}_s"
            figures["ttft_" + name] = self.ttft_percentile_s(share)
            figures["itl_" + name] = self.itl_percentile_s(share)
            figures["e2e_" + name] = self.e2e_percentile_s(share)
        if slo is not None:
            figures["slo_attainment"] = self.attainment(slo)
            figures["goodput_per_s"] = self.goodput_per_s(slo)
        return figures


def make_report(
    tally: Tally, duration_s: float, gaps: GapCounts, preemptions: int, load: Mapping[str, int], gpu_hours: float
) -> Report:
    """Turns what was counted into a report."""
    ttft_s, e2e_s = np.array(tally.ttft_s), np.array(tally.e2e_s)
    outputs = np.array(tally.output_tokens, dtype=np.int64)
    itl_s = np.full(len(outputs), np.nan)
    np.divide(e2e_s - ttft_s, outputs - 1, out=itl_s, where=outputs > 1)
    return Report(
        duration_s=duration_s,
        arrival_s=np.array(tally.arrival_s),
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        itl_s=itl_s,
        output_tokens=int(outputs.sum()),
        tenants=tally.tenants,
        prompt_tokens=tally.prompt_tokens,
        cached_tokens=tally.cached_tokens,
        refused=dict(tally.refused),
        retries=tally.retries,
        preemptions=preemptions,
        load=load,
        gpu_hours=gpu_hours,
        gaps=gaps,
        scales=tally.scales,
        events=tally.events,
    )


def draw_latencies(reports: Mapping[str, Report], path: Path) -> None:
    """Which share of the requests waited longer than that for the first token, and for the whole answer.

    Writes `path` with .png and .svg; needs matplotlib (the `plot` extra).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, what in zip(axes, ("ttft_s", "e2e_s"), strict=True):
        for name, report in reports.items():
            values = np.sort(getattr(report, what))
            if len(values):
                axis.step(values, 1 - np.arange(len(values)) / len(values), where="post", label=name)
        axis.set(xscale="log", yscale="log", xlabel=f"{what}, seconds", ylabel="share of requests above")
        axis.grid(alpha=0.3)
    axes[0].legend()
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix))
    pyplot.close(figure)


def _percentile(values: Floats, share: float) -> float:
    return float(np.percentile(values, 100 * share)) if len(values) else math.nan
