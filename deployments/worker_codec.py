"""How do engine requests and outputs look on the wire between ingress and replica?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deployments.constraint_codec import decode_constraint, encode_constraint
from deployments.resource_codec import decode_resources, encode_resources
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, Limits, Sampling
from llama31.errors import InvalidRequest
from llama31.v1 import common_pb2
from llama31.worker.v1 import worker_service_pb2 as pb

MAX_MESSAGE_BYTES = 1 << 20


def encode_submit(request: EngineRequest) -> pb.Submit:
    """An engine request for a replica."""
    sampling, limits = request.sampling, request.limits
    message = pb.Submit(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logit_bias=dict(sampling.logit_bias),
        ),
        limits=pb.EngineLimits(
            max_output_tokens=limits.max_output_tokens,
            min_output_tokens=limits.min_output_tokens,
            stop_token_ids=limits.stop_token_ids,
            ignore_eos=limits.ignore_eos,
        ),
        priority=request.priority,
        cache_salt=request.cache_salt,
    )
    if request.top_logprobs is not None:
        message.logprobs = True
        message.top_logprobs = request.top_logprobs
    if request.prompt_top_logprobs is not None:
        message.prompt_logprobs = True
        message.prompt_top_logprobs = request.prompt_top_logprobs
    if request.constraint is not None:
        message.constraint.CopyFrom(encode_constraint(request.constraint))
    return message


def decode_submit(message: pb.Submit) -> EngineRequest:
    """The request of a Submit."""
    sampling, limits = message.sampling, message.limits
    return EngineRequest(
        request_id=message.request_id,
        prompt_token_ids=tuple(message.prompt_token_ids),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logit_bias=dict(sampling.logit_bias),
        ),
        limits=Limits(
            max_output_tokens=limits.max_output_tokens,
            min_output_tokens=limits.min_output_tokens,
            stop_token_ids=tuple(limits.stop_token_ids),
            ignore_eos=limits.ignore_eos,
        ),
        top_logprobs=message.top_logprobs if message.logprobs else None,
        priority=message.priority,
        cache_salt=message.cache_salt,
        constraint=decode_constraint(message.constraint),
        prompt_top_logprobs=message.prompt_top_logprobs if message.prompt_logprobs else None,
        output_token_ids=tuple(message.output_token_ids),
    )


def encode_output(output: EngineOutput, attempt: int, first_token: int) -> pb.Output:
    """One sequence's new tokens; `first_token` is the index of the first of them in its whole output."""
    message = pb.Output(request_id=output.request_id, attempt=attempt, first_token=first_token)
    if output.tokens.ids:
        message.tokens.CopyFrom(_encode_columns(output.tokens))
    if output.prompt is not None:
        message.prompt.CopyFrom(_encode_columns(output.prompt))
    if output.error:
        message.refusal.reason = "ENGINE_FAILED"
        message.refusal.message = output.error
        message.refusal.retryable = True
    elif output.refusal:
        message.refusal.reason = InvalidRequest.reason
        message.refusal.message = output.refusal
    elif output.finish_reason is not None:
        message.finish_reason = output.finish_reason.value  # type: ignore[assignment]  # the stub wants the enum
    if output.is_last or first_token == 0:
        message.accounting.cached_prompt_tokens = output.cached_prompt_tokens
        message.accounting.queued_ms = round(output.queued_s * 1000)
        message.accounting.prefill_ms = round(output.prefill_s * 1000)
    if output.resources is not None:
        message.accounting.resources.CopyFrom(encode_resources(output.resources))
    return message


def decode_output(message: pb.Output) -> EngineOutput:
    """The output of one sequence; a refusal is one with `refusal` if the request is to blame, else with `error`."""
    tokens = _decode_columns(message.tokens)
    # Most outputs are nothing but tokens; every field that is asked for costs.
    if not (message.finish_reason or message.HasField("accounting") or message.HasField("refusal")):
        return EngineOutput(message.request_id, tokens)
    accounting, refusal = message.accounting, message.refusal
    is_refused = refusal.reason == InvalidRequest.reason
    return EngineOutput(
        request_id=message.request_id,
        tokens=tokens,
        finish_reason=FinishReason(message.finish_reason) if message.finish_reason else None,
        cached_prompt_tokens=accounting.cached_prompt_tokens,
        queued_s=accounting.queued_ms / 1000,
        prefill_s=accounting.prefill_ms / 1000,
        error="" if is_refused or not refusal.reason else f"{refusal.reason}: {refusal.message}",
        refusal=refusal.message if is_refused else "",
        prompt=_decode_columns(message.prompt) if message.HasField("prompt") else None,
        resources=decode_resources(accounting.resources) if accounting.HasField("resources") else None,
    )


def merge_outputs(earlier: pb.Output, later: pb.Output) -> None:
    """Adds what came later to an output that has not been sent yet."""
    first_token = earlier.first_token if earlier.tokens.ids else later.first_token
    earlier.MergeFrom(later)
    earlier.first_token = first_token


def split_outputs(outputs: Iterable[pb.Output]) -> Iterator[list[pb.Output]]:
    """Groups outputs so that no message exceeds `MAX_MESSAGE_BYTES` (one output alone may fill one)."""
    batch: list[pb.Output] = []
    size_bytes = 0
    for output in outputs:
        output_bytes = output.ByteSize() + 8
        if batch and size_bytes + output_bytes > MAX_MESSAGE_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(output)
        size_bytes += output_bytes
    if batch:
        yield batch


def _encode_columns(columns: TokenColumns) -> common_pb2.TokenColumns:
    return common_pb2.TokenColumns(
        ids=columns.ids,
        logprobs=columns.logprobs,
        top_k=columns.top_k,
        top_ids=columns.top_ids,
        top_logprobs=columns.top_logprobs,
    )


def _decode_columns(columns: common_pb2.TokenColumns) -> TokenColumns:
    if not columns.logprobs:
        return TokenColumns(tuple(columns.ids))
    return TokenColumns(
        tuple(columns.ids),
        tuple(columns.logprobs),
        columns.top_k,
        tuple(columns.top_ids),
        tuple(columns.top_logprobs),
    )
