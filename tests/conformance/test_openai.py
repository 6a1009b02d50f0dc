"""Do unmodified openai clients, for Python and JavaScript alike, work against the HTTP door?"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Outcomes

pytestmark = pytest.mark.conformance

CALLS = [["call_1", "weather", '{"city": "Paris"}'], ["call_2", "weather", '{"city": "Rome"}']]
EXPECTED: dict[str, Any] = {
    "models": {"list": ["tiny"], "one": "tiny"},
    "chat": {"id": "from-client", "role": "assistant", "text": "Hello there", "reason": "stop", "usage": [3, 2, 5]},
    "stream": {"text": "Hello there", "reason": "stop", "usage": 2},
    "stream_helper": "Hello there",
    "tools": {"calls": CALLS, "reason": "tool_calls"},
    "tools_streamed": CALLS,
    "tool_result": "Hello there",
    "response_format": '{"city": "Paris"}',
    "parsed": "Paris",
    "logprobs": [["A", -0.5, ["A", "F"]], ["B", -1.5, ["B", "F"]]],
    "choices": [[0, "Hello there"], [1, "Hello there"]],
    "completions": [[0, "Hello there", "stop"], [1, "Hello there", "stop"]],
    "completion_streamed": "Hello there",
    "retry_after": "3",
    "broken_stream": {"text": "Hel", "code": "stream_interrupted"},
    "cancel": "stop",
    "timeout": "stop",
}
# Class that the client raises, status, type, code, param.
ERRORS = {
    "model": ("NotFoundError", 404, "invalid_request_error", "model_not_found", "model"),
    "field": ("BadRequestError", 400, "invalid_request_error", "invalid_argument", "temperature"),
    "unknown": ("BadRequestError", 400, "invalid_request_error", "unknown_field", "colour"),
    "overloaded": ("RateLimitError", 429, "rate_limit_error", "overloaded", None),
    "bug": ("InternalServerError", 500, "server_error", "internal", None),
}


@pytest.fixture(params=["python", "js"])
def openai(request: pytest.FixtureRequest) -> Outcomes:
    found: Outcomes = request.getfixturevalue(f"openai_{request.param}")
    return found


@pytest.mark.parametrize("case", EXPECTED)
def test_what_it_sees(openai: Outcomes, case: str) -> None:
    assert openai[case] == EXPECTED[case]


@pytest.mark.parametrize("case", ERRORS)
def test_errors(openai: Outcomes, case: str) -> None:
    assert tuple(openai["errors"][case].values()) == ERRORS[case]


def test_the_asyncio_client_streams(openai_python: Outcomes) -> None:
    assert openai_python["asyncio_client"] == "Hello there"
