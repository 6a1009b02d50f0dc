"""What does the door tell the gateway about one call, and what may it ask of it?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from cluster.policy import ReplicaSnapshot
from deployments.tenancy import Visit
from deployments.tenant import LOCAL, Tenant
from llama31.chat import ChatRequest, CompletionRequest, Event
from llama31.engine import RankReport
from llama31.errors import RequestCancelled

# Whoever takes one closes it: that cancels the work behind it.
EventStream = AsyncGenerator[Event, None]

ModelState = Literal["loading", "ready", "degraded", "unavailable"]

# Counts a call that ended; arguments: the method's name in a fixed table, and CALL_OK or an error's reason.
CountCall = Callable[[str, str], None]
CALL_OK = "OK"
# What did not become a call of any method.
NO_METHOD = "none"


def not_counted(method: str, outcome: str) -> None:
    """Where nobody asks for numbers."""


@dataclass(slots=True)
class Closing:
    """Why a door closes an answer before its end; the gateway counts the request so."""

    reason: str = RequestCancelled.reason


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC, or one prompt of it. `deadline_s` is event-loop time at which the caller gives up; None = never.

    `visit` is that of a prompt which was counted in together with others.
    """

    request_id: str
    deadline_s: float | None = None
    tenant: Tenant = LOCAL
    visit: Visit | None = None
    # One for the whole RPC, shared by the calls that `dataclasses.replace` makes of this one.
    closing: Closing = field(default_factory=Closing, compare=False)

    def part(self, number: int, visit: Visit | None = None) -> Call:
        """The call of one of several prompts. No id that a client may send holds a slash."""
        return replace(self, request_id=f"{self.request_id}/{number}", visit=visit)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What a client may know about a served model."""

    name: str
    revision: str
    state: ModelState
    context_tokens: int
    max_output_tokens: int
    languages: tuple[str, ...]
    quantization: str
    tensor_parallel: int
    pipeline_parallel: int
    ready_replicas: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What people may see of a replica. `load` is None while this process has no link to it."""

    replica_id: str
    model: str
    plan: str
    phase: str
    detail: str
    ranks: tuple[RankReport, ...] = ()
    load: ReplicaSnapshot | None = None


class Gateway(Protocol):
    """The transport-free path of a request; every door (gRPC, HTTP) speaks to this.

    Iterators yield `Started` first and `Completed` last, and raise `llama31.errors` classes.
    Closing an iterator early cancels the work behind it.
    """

    def chat(self, request: ChatRequest, call: Call) -> EventStream:
        """Answers a dialog."""

    def complete(self, request: CompletionRequest, call: Call) -> EventStream:
        """Goes on with a text."""

    def hold(self, call: Call, prompts: int = 0) -> AbstractAsyncContextManager[Sequence[Call]]:
        """Keeps the id of a call with several prompts, each of which is served by a `Call.part`.

        So many `prompts` of one request are counted in at once, and their calls returned; with 0, each is counted in
        when it comes. Raises: DuplicateRequest, RateLimited, ConcurrencyLimit.
        """

    def models(self) -> tuple[ModelStatus, ...]:
        """Every model this gateway knows, ready or not."""

    def fleet(self) -> tuple[ReplicaStatus, ...]:
        """Every replica that announced itself, whatever its phase."""

    def visit(self, tenant: Tenant) -> AbstractAsyncContextManager[None]:
        """Counts a request that needs no replica to the tenant's limits. Raises: RateLimited, ConcurrencyLimit."""

    def tokenize(self, model: str, text: str, add_special_tokens: bool) -> list[int]:
        """Raises: ModelNotFound."""

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        """Raises: ModelNotFound, InvalidRequest for an id outside the vocabulary."""

    @property
    def models_version(self) -> int:
        """Grows whenever an answer of `models` may have changed."""

    async def wait_models_changed(self, seen_version: int) -> int:
        """Returns the version once it differs from `seen_version`."""
