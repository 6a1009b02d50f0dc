"""What was seen, what was expected, and in what do they differ?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.bad_inputs.field_paths import is_at, openai_path, proto_paths


@dataclass(frozen=True)
class Seen:
    """One answer. `statuses` are all names that apply to it: RST_STREAM with the status of its stream, say."""

    statuses: tuple[str | int, ...]
    detail: str = ""
    reason: str = ""
    field: str = ""
    has_retry_info: bool = False
    headers: Mapping[str, str] | None = None
    text: str = ""
    everything: str = ""


def faults(seen: Seen, expected: Mapping[str, Any]) -> list[str]:
    """Every difference in words; none if the answer is the expected one."""
    wanted = expected["status"] if isinstance(expected["status"], list) else [expected["status"]]
    wanted = [*wanted, *([expected["alt_status"]] if "alt_status" in expected else [])]
    found = []
    if not set(wanted) & set(seen.statuses):
        found.append(f"status is {seen.statuses}, not {wanted} ({seen.detail[:200]})")
    if "alt_status" in expected and expected["alt_status"] in seen.statuses:
        return found
    details = proto_paths(expected.get("detail_contains", ""))
    if not any(detail in seen.detail for detail in details):
        found.append(f"{details[0]!r} is not in {seen.detail[:300]!r}")
    for name in ("reason", "error_code"):
        if name in expected and seen.reason != expected[name]:
            found.append(f"{name} is {seen.reason!r}, not {expected[name]!r}")
    if "field" in expected and not any(is_at(seen.field, path) for path in proto_paths(expected["field"])):
        found.append(f"field is {seen.field!r}, not {expected['field']!r}")
    if "param" in expected and not is_at(seen.field, openai_path(expected["param"])):
        found.append(f"param is {seen.field!r}, not {openai_path(expected['param'])!r}")
    if expected.get("retry_info") and not seen.has_retry_info:
        found.append("there is no RetryInfo")
    return found + _header_faults(seen, expected) + _leaks(seen, expected)


def _header_faults(seen: Seen, expected: Mapping[str, Any]) -> list[str]:
    headers, found = seen.headers or {}, []
    if "header" in expected:
        name, _, value = expected["header"].partition(":")
        if name.lower() not in headers or value.strip().lower() not in headers[name.lower()].lower():
            found.append(f"header {name} is {headers.get(name.lower())!r}")
    if expected.get("must_not_header", "\0").lower() in headers:
        found.append(f"header {expected['must_not_header']} is there")
    return found


# What no answer may ever hold, whatever the case says of it.
_NEVER = ("Traceback", 'File "/', ".py", "site-packages", "Exception")


def _leaks(seen: Seen, expected: Mapping[str, Any]) -> list[str]:
    secrets = [*_NEVER, *expected.get("must_not_contain", [])]
    return [f"{secret!r} is in the answer" for secret in secrets if secret in seen.everything]
