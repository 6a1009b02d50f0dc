"""What is a request in vLLM's words, and what do vLLM's log-probabilities and refusals say in ours?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama31.chat import AnyJsonObject, Constraint, Grammar, JsonSchema, OneOf, Regex, TokenColumns
from llama31.engine import EngineRequest

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams


def sampling_params(request: EngineRequest) -> SamplingParams:
    """vLLM's SamplingParams of a request; greedy requests carry no generator."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from llama31.vllm_continuation import EMITTED

    sampling, limits = request.sampling, request.limits
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed if sampling.temperature > 0 else None,
        logit_bias=dict(sampling.logit_bias) or None,
        max_tokens=limits.max_output_tokens,
        min_tokens=limits.min_output_tokens,
        stop_token_ids=list(limits.stop_token_ids),
        ignore_eos=limits.ignore_eos,
        logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_top_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=_structured_outputs(request.constraint),
        extra_args={EMITTED: list(request.output_token_ids)} if request.output_token_ids else None,
    )


def _structured_outputs(constraint: Constraint | None) -> StructuredOutputsParams | None:
    from vllm.sampling_params import StructuredOutputsParams

    match constraint:
        case JsonSchema(schema):
            return StructuredOutputsParams(json=schema)
        case AnyJsonObject():
            return StructuredOutputsParams(json_object=True)
        case Regex(pattern):
            return StructuredOutputsParams(regex=pattern)
        case Grammar(text):
            return StructuredOutputsParams(grammar=text)
        case OneOf(values):
            return StructuredOutputsParams(choice=list(values))
        case None:
            return None


def output_columns(request: EngineRequest, piece: Any) -> TokenColumns:
    """The new tokens of a sequence, with what was asked for."""
    ids = tuple(piece.token_ids)
    if request.top_logprobs is None or not piece.logprobs:
        return TokenColumns(ids=ids)
    return _scored(ids, piece.logprobs, request.top_logprobs)


def prompt_columns(request: EngineRequest, rows: Any) -> TokenColumns | None:
    """vLLM gives all rows at once, with None for the first token."""
    if request.prompt_top_logprobs is None or not rows:
        return None
    top, first = request.prompt_top_logprobs, request.prompt_token_ids[0]
    rest = _scored(tuple(request.prompt_token_ids[1:]), rows[1:], top)
    return TokenColumns(
        (first, *rest.ids),
        (0.0, *rest.logprobs),
        top,
        (*(first,) * top, *rest.top_ids),
        (*(0.0,) * top, *rest.top_logprobs),
    )


def _scored(ids: tuple[int, ...], rows: Any, top: int) -> TokenColumns:
    """Row i of every column belongs to token i; the token itself leads vLLM's own row."""
    top_ids: list[int] = []
    top_logprobs: list[float] = []
    for row in rows:
        ranked = sorted(row.items(), key=lambda item: item[1].rank)[:top]
        top_ids.extend(token for token, _ in ranked)
        top_logprobs.extend(entry.logprob for _, entry in ranked)
    chosen = tuple(row[token].logprob for token, row in zip(ids, rows, strict=True))
    return TokenColumns(ids, chosen, top, tuple(top_ids), tuple(top_logprobs))


def refusal_text(error: BaseException) -> str:
    """What a caller may read if the request is to blame, without vLLM's own words; empty if it is not."""
    from vllm.exceptions import VLLMClientError

    # vLLM wraps a plain ValueError, but not its own classes.
    cause = error.__cause__ or error
    if not isinstance(cause, VLLMClientError | ValueError):
        return ""
    blamed = getattr(cause, "parameter", None) or ""
    return "the engine does not take it" + (f": look at {blamed}" if blamed.isidentifier() else "")
