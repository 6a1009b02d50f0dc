"""Which parts of the system are not there yet, so that their cases cannot run?"""

from __future__ import annotations

from importlib.util import find_spec

from tests.bad_inputs.verdict import Seen

# Where a refusal as UNSUPPORTED means that the whole part is missing.
_PARTS = {
    "spec.tools": "tools",
    "spec.tool_policy": "tools",
    "spec.messages": "tools",
    "spec.constraint": "constrained output",
}


def missing_part(seen: Seen, expected_reason: str) -> str:
    """The part that would have to answer; empty if all parts are there."""
    if seen.reason != "UNSUPPORTED" or expected_reason == "UNSUPPORTED":
        return ""
    return next((part for path, part in _PARTS.items() if seen.field.startswith(path)), "")


def has_http_door() -> bool:
    """Whether there is an HTTP door to talk to."""
    return find_spec("deployments.ingress.http") is not None
