"""Do requests, outputs and states cross the inner wire unchanged, and do messages stay small?"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st
from replica import engine_request

from deployments.worker_codec import (
    MAX_MESSAGE_BYTES,
    decode_output,
    decode_submit,
    encode_output,
    encode_submit,
    merge_outputs,
    split_outputs,
)
from llama31.chat import AnyJsonObject, FinishReason, Grammar, JsonSchema, OneOf, Regex, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, Limits, Sampling
from llama31.worker.v1 import worker_service_pb2 as pb

IDS = st.integers(0, 128_255)
COUNTS = st.integers(0, 2**31)
FLOATS = st.floats(-100, 100, width=32)
NAMES = st.text(max_size=20)

REQUESTS = st.builds(
    EngineRequest,
    request_id=NAMES,
    prompt_token_ids=st.lists(IDS, max_size=20).map(tuple),
    output_token_ids=st.lists(IDS, max_size=20).map(tuple),
    sampling=st.builds(
        Sampling,
        temperature=FLOATS,
        top_p=FLOATS,
        top_k=COUNTS,
        min_p=FLOATS,
        presence_penalty=FLOATS,
        frequency_penalty=FLOATS,
        repetition_penalty=FLOATS,
        seed=st.integers(0, 2**64 - 1),
        logit_bias=st.dictionaries(IDS, FLOATS, max_size=5).map(MappingProxyType),
    ),
    limits=st.builds(Limits, COUNTS, COUNTS, st.lists(IDS, max_size=5).map(tuple), st.booleans()),
    top_logprobs=st.none() | st.integers(0, 20),
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_salt=NAMES,
    constraint=st.none()
    | st.just(AnyJsonObject())
    | NAMES.flatmap(lambda text: st.sampled_from([JsonSchema(text), Regex(text), Grammar(text), OneOf((text, "b"))])),
    prompt_top_logprobs=st.none() | st.integers(0, 5),
)


@st.composite
def token_columns(draw: st.DrawFn) -> TokenColumns:
    ids = tuple(draw(st.lists(IDS, max_size=6)))
    if not ids or not draw(st.booleans()):
        return TokenColumns(ids)
    top_k = draw(st.integers(0, 3))
    wide = len(ids) * top_k

    def floats(count: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(FLOATS, min_size=count, max_size=count)))

    return TokenColumns(
        ids, floats(len(ids)), top_k, tuple(draw(st.lists(IDS, min_size=wide, max_size=wide))), floats(wide)
    )


MILLISECONDS = st.integers(0, 10**6).map(lambda n: n / 1000)
OUTPUTS = st.builds(
    EngineOutput,
    request_id=NAMES,
    tokens=token_columns(),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    cached_prompt_tokens=COUNTS,
    queued_s=MILLISECONDS,
    prefill_s=MILLISECONDS,
    prompt=st.none() | token_columns(),
)


@settings(max_examples=50, deadline=None)
@given(REQUESTS)
def test_requests_arrive_as_they_were(request: EngineRequest) -> None:
    wire = encode_submit(request).SerializeToString()
    assert decode_submit(pb.Submit.FromString(wire)) == request


@settings(max_examples=50, deadline=None)
@given(OUTPUTS, st.integers(0, 9), st.integers(0, 9))
def test_outputs_arrive_as_they_were(output: EngineOutput, attempt: int, first_token: int) -> None:
    message = pb.Output.FromString(encode_output(output, attempt, first_token).SerializeToString())
    assert (message.attempt, message.first_token) == (attempt, first_token)
    if not output.is_last and first_token > 0:
        # Accounting goes with the first and the last output only, and a scored prompt with the first.
        output = replace(output, cached_prompt_tokens=0, queued_s=0.0, prefill_s=0.0, prompt=None)
    assert decode_output(message) == output


def test_an_error_is_a_refusal_with_its_reason() -> None:
    message = encode_output(EngineOutput("a", TokenColumns(), error="rank 1 was lost"), 0, 0)
    decoded = decode_output(message)
    assert (decoded.is_last, decoded.error) == (True, "ENGINE_FAILED: rank 1 was lost")
    assert message.refusal.retryable
    refused = EngineOutput("a", TokenColumns(), refusal="the engine does not take it")
    assert refused.is_last
    assert decode_output(encode_output(refused, 0, 0)) == refused


@settings(max_examples=50, deadline=None)
@given(st.lists(token_columns(), min_size=1, max_size=5), st.sampled_from(FinishReason), st.integers(0, 5))
def test_merged_outputs_keep_order_and_first_token(
    columns: list[TokenColumns], reason: FinishReason, first_token: int
) -> None:
    """As the worker server makes them: the indices grow, the last one ends the sequence."""
    messages = []
    next_token = first_token
    for index, tokens in enumerate(columns):
        output = EngineOutput("a", tokens, reason if index == len(columns) - 1 else None)
        messages.append(encode_output(output, 0, next_token))
        next_token += len(tokens.ids)
    merged = messages[0]
    for message in messages[1:]:
        merge_outputs(merged, message)
    decoded = decode_output(merged)
    assert decoded.tokens.ids == tuple(token for tokens in columns for token in tokens.ids)
    assert decoded.tokens.logprobs == tuple(value for tokens in columns for value in tokens.logprobs)
    assert decoded.tokens.top_ids == tuple(value for tokens in columns for value in tokens.top_ids)
    assert decoded.finish_reason is reason
    if decoded.tokens.ids:
        assert merged.first_token == first_token


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400_000), max_size=20))
def test_no_message_exceeds_a_mebibyte(lengths_bytes: list[int]) -> None:
    outputs = [
        pb.Output(request_id=str(i), refusal=pb.Refusal(message="x" * length)) for i, length in enumerate(lengths_bytes)
    ]
    batches = list(split_outputs(outputs))
    assert [output for batch in batches for output in batch] == outputs
    for batch in batches:
        assert 0 < pb.ConnectResponse(sequence=2**60, outputs=batch).ByteSize() <= MAX_MESSAGE_BYTES + 16
    for batch, following in pairwise(batches):
        together = pb.ConnectResponse(outputs=[*batch, following[0]]).ByteSize()
        assert together > MAX_MESSAGE_BYTES - 8 * (len(batch) + 1)


def test_an_output_larger_than_a_message_goes_alone() -> None:
    small, large = pb.Output(request_id="a"), pb.Output(refusal=pb.Refusal(message="x" * (MAX_MESSAGE_BYTES + 1)))
    assert list(split_outputs([small, large, small])) == [[small], [large], [small]]
    assert list(split_outputs([])) == []


def test_one_step_of_many_sequences_is_one_message() -> None:
    outputs = [encode_output(EngineOutput(f"request-{i}", TokenColumns((i,))), 0, 3) for i in range(200)]
    assert len(list(split_outputs(outputs))) == 1
    assert encode_submit(engine_request("a", range(100_000))).ByteSize() < MAX_MESSAGE_BYTES
