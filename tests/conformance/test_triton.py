"""Does an unmodified tritonclient infer and stream over the Open Inference Protocol?"""

from __future__ import annotations

import subprocess

import pytest

from tests.conformance.conftest import Addresses, Outcomes, environment
from tests.conformance.environments import NotToBeHad, triton_python
from tests.documents import ROOT, blocks

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("state", {"live": True, "ready": True, "model": True, "unknown model": False}),
        (
            "metadata",
            {
                "server": "llama31",
                "model": "tiny",
                "inputs": ["text_input", "sampling_parameters"],
                "outputs": ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"],
            },
        ),
        ("infer", {"id": "r1", "text": ["Hello there"], "reason": ["stop"], "tokens": [3, 2]}),
        ("infer_many", ["Hello there"] * 3),
        ("sampling_parameters", [["Hello there"], None]),
        (
            "deadline",
            {
                "client": "StatusCode.DEADLINE_EXCEEDED",
                "freed": ["Hello there"],
                "request": "StatusCode.DEADLINE_EXCEEDED",
            },
        ),
        ("stream", {"text": [["Hello"], [" there"], [""]], "final": [False, False, True], "reason": ["stop"]}),
        ("stream_whole", [["Hello there"]]),
        (
            "stream_goes_on_after_an_error",
            {"error": "more work than the fleet can take", "text": "Hello there"},
        ),
        ("cancel", [["wait"], ["Hello there"]]),
        ("asyncio_client", [["Hello there"], [["Hello"], [" there"], [""]]]),
    ],
)
def test_what_it_sees(triton: Outcomes, case: str, expected: object) -> None:
    assert triton[case] == expected


def test_errors_have_a_status_and_words(triton: Outcomes) -> None:
    errors = triton["errors"]
    assert {name: error["status"] for name, error in errors.items()} == {
        "model": "StatusCode.NOT_FOUND",
        "field": "StatusCode.INVALID_ARGUMENT",
        "overloaded": "StatusCode.RESOURCE_EXHAUSTED",
        "bug": "StatusCode.INTERNAL",
    }
    assert errors["field"]["message"] == "temperature: must be between 0 and 2, got 9"
    assert errors["bug"]["message"] == "internal error"


def test_the_documented_client_works(served: Addresses) -> None:
    (code,) = blocks(ROOT / "docs" / "open-inference.md", "python")
    here = code.replace("127.0.0.1:9000", served["grpc"]).replace("smollm2-135m", served["model"])
    try:
        python = triton_python()
    except NotToBeHad as cause:
        pytest.skip(f"the client cannot be had: {cause}")
    run = subprocess.run(
        [python, "-c", here], env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert run.stdout == "Hello there\nHello there", run.stderr
