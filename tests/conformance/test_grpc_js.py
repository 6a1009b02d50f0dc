"""Does an unmodified @grpc/grpc-js get answers, headers, trailers with details, and is it let go when it leaves?"""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Outcomes

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "chat",
            {
                "text": "Hello there",
                "reason": "FINISH_REASON_END_OF_TURN",
                "usage": [3, 2],
                "headers": ["from-js", "replica-1", "rev-1"],
            },
        ),
        ("stream", {"text": "Hello there", "sequences": [1, 2, 3, 4, 5], "usage": 2, "replica": "replica-1"}),
        ("completeMany", {"good": "Hello there", "bad": "INVALID_FIELD"}),
        ("models", {"names": ["tiny"], "ids": [1, 104, 105]}),
        (
            "openInference",
            {
                "text_output": ["Hello there"],
                "finish_reason": ["stop"],
                "num_input_tokens": [3],
                "num_output_tokens": [2],
            },
        ),
        (
            "fieldError",
            {
                "code": "INVALID_ARGUMENT",
                "message": "spec.sampling.temperature: must be between 0 and 2, got 9",
                "info": {
                    "reason": "INVALID_FIELD",
                    "domain": "llama31",
                    "metadata": {"field": "spec.sampling.temperature"},
                },
                "fields": ["spec.sampling.temperature"],
            },
        ),
        (
            "overloaded",
            {
                "code": "RESOURCE_EXHAUSTED",
                "reason": "OVERLOADED",
                "delay": {"seconds": 2, "nanos": 500_000_000},
                "id": "shed",
                "pushback": "2500",
            },
        ),
        ("brokenStream", {"text": "Hel", "code": "UNAVAILABLE", "reason": "STREAM_INTERRUPTED"}),
        ("bug", {"code": "INTERNAL", "message": "internal error"}),
        ("cancel", {"code": "CANCELLED", "freed": "FINISH_REASON_END_OF_TURN"}),
        ("deadline", {"code": "DEADLINE_EXCEEDED", "freed": "FINISH_REASON_END_OF_TURN"}),
    ],
)
def test_what_it_sees(grpc_js: Outcomes, case: str, expected: object) -> None:
    assert grpc_js[case] == expected
