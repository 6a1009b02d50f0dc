"""Who of one tenant's requests of one priority is next? Those that can still be on time, then those that cannot.

First come, first served makes everybody late for as long as a queue is longer than the SLO. Here only as many are late
as there were too many. The late ones have what is left, and a tenth of the work at least: every one of them enters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# Of a line's work that enters, so much is for late requests while some wait; as between priorities.
LATE_SHARE = 0.1
# A prediction that fails by a tenth must not make those late that are let in.
USED_SHARE_OF_SLO = 0.9


class Waits(Protocol):
    """One that waits. Once `is_gone` it is passed over; `is_late` is the line's mark."""

    arrived_s: float
    prompt_tokens: int
    is_gone: bool
    is_late: bool


T = TypeVar("T", bound=Waits)


class LateLine(Generic[T]):
    """Two queues in the order of arrival. Nothing ever goes back from the late one."""

    def __init__(self, slo_ttft_s: float = math.inf) -> None:
        """Infinite: first come, first served."""
        self._patience_s = USED_SHARE_OF_SLO * slo_ttft_s
        self._in_time: deque[T] = deque()
        self._late: deque[T] = deque()
        self._passed = 0.0

    def __bool__(self) -> bool:
        return bool(self._in_time or self._late)

    def add(self, item: T) -> None:
        """The newest."""
        self._in_time.append(item)

    def trim(self) -> None:
        """Some are gone: those in the middle stay in their place until they are at an end of it."""
        _trim(self._in_time)
        if self._late:
            _trim(self._late)
        if not self._late:
            self._passed = 0.0

    def sort(self, now_s: float, first_token_s: Callable[[int], float]) -> None:
        """Sets those aside that cannot be on time any more; `first_token_s` predicts for so long a prompt from now."""
        line = self._in_time
        if math.isinf(self._patience_s) or len(line) + len(self._late) < 2:
            return
        while line and now_s - line[0].arrived_s + first_token_s(line[0].prompt_tokens) > self._patience_s:
            late = line.popleft()
            if not late.is_gone:
                late.is_late = True
                self._late.append(late)
        self.trim()

    def head(self, charge: Callable[[T], float]) -> T:
        """The next one. `charge` is the work of a request, as `entered` is told it."""
        if self._late and (not self._in_time or self._passed >= (1 / LATE_SHARE - 1) * charge(self._late[0])):
            return self._late[0]
        return self._in_time[0]

    @property
    def oldest(self) -> T:
        """Who has waited longest."""
        return self._late[0] if self._late else self._in_time[0]

    @property
    def tail(self) -> T:
        """The last one."""
        return self._late[-1] if self._late else self._in_time[-1]

    def entered(self, item: T, work: float) -> None:
        """One of them did, with so much work."""
        if not self._late:
            self._passed = 0.0
        elif item.is_late:
            self._passed = max(0.0, self._passed - (1 / LATE_SHARE - 1) * work)
        else:
            self._passed += work


def _trim(line: deque[T]) -> None:
    while line and line[0].is_gone:
        line.popleft()
    while line and line[-1].is_gone:
        line.pop()
