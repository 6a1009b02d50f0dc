"""Who asks, and what may they do?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from deployments.policies.language import LanguageMode
from deployments.policies.quota import UNLIMITED, QuotaLimits
from llama31.chat import GenerationOptions, Priority
from llama31.errors import PermissionDenied

Permission = Literal["benchmark"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer with its rights.

    `models` None: every model. `language` None: as the service is configured. The empty name is the
    local tenant's, who is everybody where no keys are asked for. Tenants share a full service by their `weight`.
    """

    name: str
    models: frozenset[str] | None = None
    priority: Priority = Priority.INTERACTIVE
    permissions: frozenset[Permission] = frozenset()
    limits: QuotaLimits = UNLIMITED
    language: LanguageMode | None = None
    weight: float = 1.0

    def may_use(self, model: str) -> bool:
        """Whether the model was granted. One that was not must look like one that does not exist."""
        return self.models is None or model in self.models

    def check_options(self, options: GenerationOptions) -> None:
        """Raises: PermissionDenied for a wish that needs a right which the tenant lacks."""
        if options.stop.ignore_eos and "benchmark" not in self.permissions:
            raise PermissionDenied("spec.stop.ignore_eos", "ignore_eos needs the permission 'benchmark'")
        # STANDARD is also what a request has that names no priority: it is lowered, not refused.
        if options.priority < min(self.priority, Priority.STANDARD):
            name = self.priority.name.lower()
            raise PermissionDenied("spec.service.priority", f"the highest priority of this tenant is {name}")

    def priority_of(self, options: GenerationOptions) -> Priority:
        """The wished priority, at most the tenant's own (a higher number runs later)."""
        return max(options.priority, self.priority)


LOCAL = Tenant("", permissions=frozenset({"benchmark"}))

# Takes every `authorization` value of a call, so that two of them are seen. Raises: Unauthenticated.
Authenticate: TypeAlias = Callable[[Sequence[str]], Tenant]


def everybody_is_local(credentials: Sequence[str]) -> Tenant:
    """Where no keys are configured, a key that is sent all the same is ignored."""
    return LOCAL
