"""Is what runs what was planned? Pure: a plan and a picture of the service in, a table of differences out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deployments.config_sections import PlannedConfig
from llama31.errors import ConfigInvalid

KV_SHARE = 0.97
# Predictions are of a model of the hardware: what is slower than this is no error of it any more.
SLOWER = 1.3
MORE_LOAD = 1.1
FEWEST_SAMPLES = 20

State = Literal["as planned", "drift", "not compared"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What was promised. An empty `model` or `plan` and 0 `replicas` are not compared."""

    figures: PlannedConfig
    model: str = ""
    plan: str = ""
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class RunningReplica:
    """One announced replica; `kv_tokens` is None as long as it tells none."""

    replica_id: str
    model: str
    plan: str
    ready: bool
    kv_tokens: float | None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one window: a 99th percentile in seconds, and of how many."""

    p99_s: float
    samples: float


@dataclass(frozen=True, slots=True)
class Running:
    """What the service was seen to do in a window."""

    replicas: tuple[RunningReplica, ...]
    requests_per_s: float
    output_tokens_per_s: float
    ttft: Percentiles
    itl: Percentiles


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, in words."""

    what: str
    planned: str
    running: str
    state: State


def read_planned(tree: Mapping[str, Any], source: str, rank: int = 1) -> Planned:
    """Of `llama31 plan --json`, or of a configuration with a `planned` section. Raises: ConfigInvalid."""
    try:
        if "plans" in tree:
            plan = next(plan for plan in tree["plans"] if plan["rank"] == rank)
            return Planned(
                PlannedConfig(
                    kv_tokens=plan["kv_tokens"],
                    rate_per_s=plan["rate_per_s"],
                    ttft_p99_s=plan["ttft_p99_s"],
                    itl_p99_s=plan["itl_p99_s"],
                    output_tokens_per_s=plan["output_tokens_per_s"],
                ),
                plan["model"],
                plan["plan"],
                plan["replicas"],
            )
        config = tree.get("config", tree)
        figures = PlannedConfig.model_validate(config["planned"])
        return Planned(figures, config["model"], config["plan"], config["replicas"])
    except StopIteration:
        raise ConfigInvalid(f"{source} has no plan of rank {rank}") from None
    except (KeyError, TypeError, ValueError):
        raise ConfigInvalid(
            f"{source} is no plan: give what `llama31 plan --json` or `--emit config|values` wrote"
        ) from None


def compare(planned: Planned, running: Running) -> Iterator[Row]:
    """Every promise beside what is seen. Times are compared while no more comes in than was planned for."""
    figures = planned.figures
    for what, wanted, has in (
        ("model", planned.model, sorted({replica.model for replica in running.replicas})),
        ("plan", planned.plan, sorted({replica.plan for replica in running.replicas})),
    ):
        if wanted:
            yield Row(what, wanted, ", ".join(has) or "none", "as planned" if has == [wanted] else "drift")
    ready = sum(replica.ready for replica in running.replicas)
    if planned.replicas:
        state: State = "as planned" if ready >= planned.replicas else "drift"
        yield Row("ready replicas", f"{planned.replicas}", f"{ready}", state)
    yield _kv_row(figures.kv_tokens, running.replicas)
    more = running.requests_per_s > MORE_LOAD * figures.rate_per_s
    yield Row(
        "requests/s",
        f"{figures.rate_per_s:.4g}",
        f"{running.requests_per_s:.4g}" + (" (more than planned: plan anew)" if more else ""),
        "drift" if more else "as planned",
    )
    yield _time_row("TTFT p99 ms", figures.ttft_p99_s, running.ttft, more)
    yield _time_row("ITL p99 ms", figures.itl_p99_s, running.itl, more)
    yield Row(
        "output tokens/s", f"{figures.output_tokens_per_s:.4g}", f"{running.output_tokens_per_s:.4g}", "not compared"
    )


def _kv_row(planned_tokens: int, replicas: Sequence[RunningReplica]) -> Row:
    known = [replica.kv_tokens for replica in replicas if replica.kv_tokens is not None]
    what = "KV tokens per replica"
    if not known:
        return Row(what, f"{planned_tokens:,}", "no replica tells", "not compared")
    state: State = "as planned" if min(known) >= KV_SHARE * planned_tokens else "drift"
    return Row(what, f"{planned_tokens:,}", f"{min(known):,.0f}", state)


def _time_row(what: str, planned_s: float, seen: Percentiles, more_load: bool) -> Row:
    planned = f"{1000 * planned_s:.4g}"
    if seen.samples < FEWEST_SAMPLES or more_load:
        why = "more load than planned" if more_load else f"{seen.samples:.0f} samples, {FEWEST_SAMPLES} are needed"
        return Row(what, planned, why, "not compared")
    state: State = "as planned" if seen.p99_s <= SLOWER * planned_s else "drift"
    return Row(what, planned, f"{1000 * seen.p99_s:.4g} of {seen.samples:.0f}", state)


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """For people."""
    cells = [("", "planned", "running", ""), *((row.what, row.planned, row.running, row.state) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
