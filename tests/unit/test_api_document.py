"""Do the examples of docs/api.md run, and print what the page says? Are its limits those of the code?"""

from __future__ import annotations

import doctest
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from documented_server import Addresses, documented_server

from deployments import model_checks
from deployments.config_sections import IngressConfig
from deployments.ingress import (
    constraints,
    http_connection,
    item_stream,
    limits,
    proto_codec,
)
from deployments.ingress.grpc import IngressSettings
from deployments.ingress.http import HttpSettings
from llama31.codec import load_codec
from tests.documents import ROOT, Example, examples, table

PAGE = ROOT / "docs" / "api.md"
LIMIT_S = 20.0

GRPC, HTTP, CONFIGURED = IngressSettings(), HttpSettings(), IngressConfig()
LIMITS = {
    "one gRPC request": f"{GRPC.max_message_bytes >> 20} MiB",
    "metadata of a call": f"{GRPC.max_metadata_bytes >> 10} KiB",
    "streams on one connection": f"{GRPC.max_streams_per_connection:,}",
    "one HTTP body": f"{HTTP.max_body_bytes >> 20} MiB",
    "headers of an HTTP request": f"{http_connection.MAX_HEADERS}",
    "one HTTP header": f"{http_connection.MAX_HEADER_BYTES >> 10} KiB",
    "requests in flight in an ingress (configured)": f"{CONFIGURED.max_requests:,}",
    "messages of a dialog": f"{limits.MAX_MESSAGES:,}",
    "tools": f"{limits.MAX_TOOLS}",
    "description of a tool": f"{limits.MAX_DESCRIPTION_CHARS:,} characters",
    "JSON schema": f"{constraints.MAX_SCHEMA_BYTES >> 10} KiB",
    "schemas of all functions that must be kept: `strict`, or a required call": (
        f"{model_checks.MAX_GUIDED_SCHEMA_BYTES >> 10} KiB"
    ),
    "nesting of a schema": f"{constraints.MAX_SCHEMA_NESTING} levels",
    "values of an `enum`, or of `one_of`": f"{constraints.MAX_ENUM_VALUES}",
    "repetitions that a schema or pattern asks for": f"{constraints.MAX_REPEATS:,}",
    "pattern (`regex`)": f"{constraints.MAX_REGEX_BYTES >> 10} KiB",
    "grammar": f"{constraints.MAX_GRAMMAR_BYTES >> 10} KiB",
    "`stop_sequences`": f"{limits.MAX_STOP_SEQUENCES}",
    "one stop sequence": f"{limits.MAX_STOP_SEQUENCE_BYTES} bytes",
    "`stop_token_ids`": f"{limits.MAX_STOP_TOKEN_IDS}",
    "`logit_bias`": f"{limits.MAX_LOGIT_BIAS_ENTRIES}",
    "`top_logprobs`": f"{limits.MAX_TOP_LOGPROBS}",
    "`prompt_top_logprobs`, `logprobs` with `echo`": f"{limits.MAX_PROMPT_TOP_LOGPROBS}",
    "prompt that is scored": f"{model_checks.MAX_SCORED_PROMPT_TOKENS:,} tokens",
    "text of a `Tokenize`": f"{limits.MAX_TOKENIZED_BYTES >> 20} MiB",
    "ids of a `Detokenize`": f"{limits.MAX_DETOKENIZED_IDS:,}",
    "`max_coalesce`": f"{limits.MAX_COALESCE_S} s",
    "`labels`, `metadata`": f"{limits.MAX_LABELS} of {limits.MAX_LABEL_NAME_BYTES} + {limits.MAX_LABEL_BYTES} bytes",
    "`num_choices`; `n` times prompts over HTTP": f"{limits.MAX_CHOICES}",
    "items of a `CompleteMany` at once": f"{item_stream.MAX_ITEMS_IN_FLIGHT}",
    "`item_id`": f"{proto_codec.MAX_ITEM_ID_BYTES} bytes",
    "`date`": f"{proto_codec.MAX_DATE_BYTES} bytes",
    "`affinity_key`": f"{limits.MAX_AFFINITY_KEY_BYTES} bytes",
    "output without `max_output_tokens` (configured)": f"{CONFIGURED.max_output_tokens:,} tokens",
    "time until a call's request has come": f"{GRPC.request_wait_s:g} s",
    "time that a reader may not read": f"{GRPC.write_stall_s:g} s",
}

# What the comments of the protos say of them.
PHRASES = (
    f"1 to {limits.MAX_MESSAGES:,} turns",
    f"1 to {limits.MAX_CHOICES} (default 1)",
    f"at most {limits.MAX_LOGIT_BIAS_ENTRIES} entries",
    f"At most {limits.MAX_STOP_SEQUENCES} texts of 1 to {limits.MAX_STOP_SEQUENCE_BYTES} bytes",
    f"At most {limits.MAX_STOP_TOKEN_IDS} token ids",
    f"0 to {limits.MAX_TOP_LOGPROBS} (default 0)",
    f"at most {constraints.MAX_SCHEMA_BYTES >> 10} KiB, {constraints.MAX_SCHEMA_NESTING} levels",
    f"{constraints.MAX_ENUM_VALUES} values in an enum, bounds of at most {constraints.MAX_REPEATS:,})",
    f"at most {constraints.MAX_REGEX_BYTES >> 10} KiB. Linear-time",
    f"grammar of at most {constraints.MAX_GRAMMAR_BYTES >> 10} KiB",
    f"1 to {constraints.MAX_ENUM_VALUES} texts, none empty, at most {constraints.MAX_CHOICE_BYTES >> 10} KiB in all",
    f"0 to {limits.MAX_PROMPT_TOP_LOGPROBS} (0 = off, the default), for prompts of at most "
    f"{model_checks.MAX_SCORED_PROMPT_TOKENS:,} tokens",
    f"0 to {limits.MAX_COALESCE_S} s (0 = off",
    f"At most {limits.MAX_LABELS} tags: names of 1 to {limits.MAX_LABEL_NAME_BYTES} bytes, values of at most "
    f"{limits.MAX_LABEL_BYTES}",
    f"At most {limits.MAX_AFFINITY_KEY_BYTES} bytes",
    f"At most {item_stream.MAX_ITEMS_IN_FLIGHT} run at once per call",
    f"1 to {proto_codec.MAX_ITEM_ID_BYTES} bytes, unique",
    f"at most {proto_codec.MAX_DATE_BYTES} bytes, such as",
)


@pytest.fixture(scope="module")
def server(llama31_dir: Path) -> Iterator[Addresses]:
    with documented_server(load_codec("llama3.1", llama31_dir)) as addresses:
        yield addresses


@pytest.mark.parametrize("example", examples(PAGE), ids=lambda example: example.section)
def test_example(example: Example, server: Addresses) -> None:
    code = example.code.replace("127.0.0.1:9000", server.grpc).replace("http://127.0.0.1:8000", server.http)
    printed = run_python(code) if example.language == "python" else run_bash(code)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if example.output is not None:
        assert doctest.OutputChecker().check_output(example.output, printed, flags), printed


@pytest.mark.parametrize("example", examples(PAGE), ids=lambda example: example.section)
def test_example_is_short(example: Example) -> None:
    assert sum(bool(line) for line in example.code.splitlines()) <= 15


def test_limits_are_those_of_the_code() -> None:
    assert table(PAGE, "Limits") == LIMITS
    assert GRPC.write_stall_s == HTTP.write_stall_s


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_protos_say_the_same(phrase: str) -> None:
    text = "".join(path.read_text() for path in (ROOT / "protos" / "llama31" / "v1").glob("*.proto"))
    assert phrase in " ".join(text.replace("//", "").split())


def run_python(code: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def run_bash(code: str) -> str:
    """Fails as the commands do; `grpcurl` is the one of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
