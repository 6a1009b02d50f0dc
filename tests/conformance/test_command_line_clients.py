"""Do grpcurl and buf curl, without any .proto file, list, describe, ask, stream and read errors?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Addresses, environment

pytestmark = pytest.mark.conformance

BIN = Path(sys.executable).parent
GRPCURL = (str(BIN / "grpcurl"), "-plaintext")
# Without a protocol it would speak Connect.
BUF_CURL = (str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge")
CHAT, STREAM_CHAT = "llama31.v1.ChatService/Chat", "llama31.v1.ChatService/StreamChat"
SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "llama31.v1.ChatService",
    "llama31.v1.CompletionService",
    "llama31.v1.ModelService",
}
LIMIT_S = 15


class Client:
    """Either program, by what both can do."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def call(self, method: str, request: object, *options: str) -> list[str]:
        """The command of one call."""
        data = ["-d", json.dumps(request)]
        if self.name == "grpcurl":
            return [*GRPCURL, "-format-error", *options, *data, self.address, method]
        return [*BUF_CURL, *options, *data, f"http://{self.address}/{method}"]

    def services(self) -> set[str]:
        if self.name == "grpcurl":
            return set(output([*GRPCURL, self.address, "list"]).split())
        return set(output([*BUF_CURL, "--list-services", f"http://{self.address}"]).split())


@pytest.fixture(params=["grpcurl", "buf"])
def client(request: pytest.FixtureRequest, served: Addresses) -> Client:
    return Client(request.param, served["grpc"])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def output(command: list[str]) -> str:
    finished = run(command)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def messages(text: str) -> list[Any]:
    """JSON objects one after the other."""
    found, place = [], 0
    while place < len(text):
        value, end = json.JSONDecoder().raw_decode(text, place)
        found.append(value)
        place = end + len(text[end:]) - len(text[end:].lstrip())
    return found


def failure(command: list[str]) -> Any:
    """What the program writes of the error."""
    finished = run(command)
    assert finished.returncode != 0
    return json.loads(finished.stderr[finished.stderr.index("{") :])


def ask(text: str) -> dict[str, Any]:
    return {"spec": {"model": "tiny", "messages": [{"role": "ROLE_USER", "parts": [{"text": text}]}]}}


def test_lists_the_services(client: Client) -> None:
    assert client.services() == SERVICES


def test_describes_a_message(served: Addresses) -> None:
    described = output([*GRPCURL, served["grpc"], "describe", "llama31.v1.ChatSpec"])
    assert "repeated .llama31.v1.Message messages" in described


def test_asks(client: Client) -> None:
    (answer,) = messages(output(client.call(CHAT, ask("hi"))))
    assert answer["choices"][0]["message"]["parts"] == [{"text": "Hello there"}]


def test_streams(client: Client) -> None:
    events = [message["event"] for message in messages(output(client.call(STREAM_CHAT, ask("hi"))))]
    assert [event["sequence"] for event in events] == ["1", "2", "3", "4", "5"]
    assert "".join(event.get("delta", {}).get("text", "") for event in events) == "Hello there"


def test_is_told_who_answers(client: Client) -> None:
    finished = run(client.call(CHAT, ask("hi"), "-v", "-H", "x-request-id: from-curl"))
    told = (finished.stdout + finished.stderr).lower()
    assert "x-request-id: from-curl" in told
    assert "x-llama31-replica: replica-1" in told


def test_reads_an_error_with_its_details(client: Client) -> None:
    error = failure(client.call(CHAT, ask("overloaded")))
    assert error["code"] in (8, "resource_exhausted")
    assert error["message"] == "more work than the fleet can take"
    kinds = [(detail.get("@type") or detail["type"]).split("/")[-1] for detail in error["details"]]
    assert kinds == ["google.rpc.ErrorInfo", "google.rpc.RequestInfo", "google.rpc.RetryInfo"]
    if client.name == "grpcurl":
        assert error["details"][0]["reason"] == "OVERLOADED"
        assert error["details"][2]["retry_delay"] == "2.500s"


def test_a_deadline_ends_the_work(client: Client) -> None:
    limit = ("-max-time", "0.3") if client.name == "grpcurl" else ("--timeout", "0.3s")
    error = failure(client.call(STREAM_CHAT, ask(f"hang {client.name}-1"), *limit))
    assert error["code"] in (4, "deadline_exceeded")
    assert messages(output(client.call(CHAT, ask(f"freed {client.name}-1"))))


def test_a_client_that_dies_ends_the_work(client: Client) -> None:
    command = client.call(STREAM_CHAT, ask(f"hang {client.name}-2"))
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("wait" in line for line in process.stdout)
        process.kill()
    assert messages(output(client.call(CHAT, ask(f"freed {client.name}-2"))))


def test_speaks_the_open_inference_protocol(client: Client) -> None:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["aGk="]}}
    request = {"model_name": "tiny", "inputs": [tensor]}
    (answer,) = messages(output(client.call("inference.GRPCInferenceService/ModelInfer", request)))
    contents = answer["outputs"][0]["contents"]
    assert (contents.get("bytes_contents") or contents["bytesContents"]) == ["SGVsbG8gdGhlcmU="]
