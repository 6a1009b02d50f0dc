"""How much work comes in? What ingresses tell the autoscaler, and what came of it lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, replace

from cluster.policy import DemandTick


@dataclass(frozen=True, slots=True)
class DemandReport:
    """What one ingress saw since it began, and what waits there now.

    `output_tokens` and `answered` are of whole answers: together they say how long an answer is.
    `held` requests were not given to a replica yet. `age_s` is how long ago it began; it says `is_over` when it leaves.
    """

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    answered: int = 0
    in_flight: int = 0
    held: int = 0
    backlog_s: float = 0.0
    age_s: float = 0.0
    is_over: bool = False


class DemandCounter:
    """Counts for one ingress process."""

    def __init__(self, in_flight: Sized, held: Sized, backlog_s: Callable[[], float]) -> None:
        """`backlog_s` predicts the time to first token of a request that a replica were given now."""
        self._in_flight = in_flight
        self._held = held
        self._backlog_s = backlog_s
        self._began_s = time.monotonic()
        self._requests = self._prompt_tokens = self._output_tokens = self._answered = 0

    def arrive(self, prompt_tokens: int) -> None:
        """A request whose prompt was understood, whether it is admitted or not."""
        self._requests += 1
        self._prompt_tokens += prompt_tokens

    def answer(self, output_tokens: int) -> None:
        """An answer is whole."""
        self._answered += 1
        self._output_tokens += output_tokens

    def report(self) -> DemandReport:
        """The counters now, and what is in flight."""
        return DemandReport(
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            answered=self._answered,
            in_flight=len(self._in_flight),
            held=len(self._held),
            backlog_s=self._backlog_s(),
            age_s=time.monotonic() - self._began_s,
        )


# An ingress that falls silent without having left: cut off from the directory, or killed.
SILENT_S = 600.0

_Counters = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Requests, answers, prompt and output tokens of one ingress; how fast they grew when it last spoke."""

    counters: _Counters
    per_s: _Counters
    heard_s: float


class DemandHistory:
    """What arrived lately over all ingresses, from their counters.

    A silent ingress is thought to get as much as before for `SILENT_S`: a cut must not look like the end of demand.
    """

    def __init__(self, measure_s: float) -> None:
        self._measure_s = measure_s
        self._seen: dict[str, _Seen] = {}
        self._then_s: float | None = None
        self._ticks: deque[DemandTick] = deque()
        self._answered = self._output_tokens = 0.0

    def add(self, now_s: float, reports: Mapping[str, DemandReport]) -> None:
        """What grew since the last time. Of an ingress that is older than that and was not known, nothing did."""
        then_s, self._then_s = self._then_s, now_s
        seconds = now_s - then_s if then_s is not None else 0.0
        # What an ingress said last is shown for a while; it counts once.
        news = {key: report for key, report in reports.items() if not report.is_over or key in self._seen}
        growths = [self._hear(key, report, now_s, seconds) for key, report in news.items()]
        growths += [self._go_on(key, now_s, seconds) for key in list(self._seen) if key not in news]
        self._seen = {key: seen for key, seen in self._seen.items() if key not in news or not news[key].is_over}
        if seconds <= 0:
            return
        requests, answered, prompt_tokens, output_tokens = (
            sum(parts) for parts in zip(_NOTHING, *growths, strict=True)
        )
        self._answered += answered
        self._output_tokens += output_tokens
        per_answer = self._output_tokens / self._answered if self._answered else 0.0
        self._ticks.append(DemandTick(seconds, requests, prompt_tokens, requests * per_answer))
        while sum(tick.seconds for tick in self._ticks) - self._ticks[0].seconds >= self._measure_s:
            self._ticks.popleft()

    def ticks(self) -> tuple[DemandTick, ...]:
        """Oldest first."""
        return tuple(self._ticks)

    def _hear(self, key: str, report: DemandReport, now_s: float, seconds: float) -> _Counters:
        counters = (report.requests, report.answered, report.prompt_tokens, report.output_tokens)
        seen = self._seen.get(key)
        before = seen.counters if seen else (_NOTHING if report.age_s <= seconds else counters)
        growth = tuple(max(0.0, new - old) for new, old in zip(counters, before, strict=True))
        per_s = tuple(amount / seconds for amount in growth) if seconds > 0 else _NOTHING
        self._seen[key] = _Seen(counters, per_s, now_s)
        return growth

    def _go_on(self, key: str, now_s: float, seconds: float) -> _Counters:
        seen = self._seen[key]
        if now_s - seen.heard_s > SILENT_S:
            del self._seen[key]
            return _NOTHING
        growth = tuple(rate * max(0.0, seconds) for rate in seen.per_s)
        counters = tuple(old + more for old, more in zip(seen.counters, growth, strict=True))
        self._seen[key] = replace(seen, counters=counters)
        return growth


_NOTHING: _Counters = (0.0, 0.0, 0.0, 0.0)
