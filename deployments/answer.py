"""How do engine outputs of one sequence become text events, and when is the answer complete?"""

from __future__ import annotations

from collections.abc import Iterator

from llama31.chat import ChoiceDone, Delta, Event, FinishReason, GenerationOptions, TokenColumns, ToolCallDelta, Usage
from llama31.codec import ModelCodec, Piece
from llama31.engine import EngineOutput
from llama31.tool_parser import ToolParser


class Answer:
    """One choice in the making: decoder, held-back tokens, counts and times."""

    def __init__(
        self,
        codec: ModelCodec,
        options: GenerationOptions,
        model_stop_ids: tuple[int, ...],
        is_limited_by_context: bool,
        choice: int = 0,
        tool_parser: ToolParser | None = None,
    ) -> None:
        self._options = options
        self._choice = choice
        self._model_stop_ids = model_stop_ids
        self._is_limited_by_context = is_limited_by_context
        self._decoder = codec.decoder(options.stop.stop_sequences, options.stop.keep_stop_text, tool_parser)
        self._call_count = 0
        self._held = TokenColumns()
        self._accounting: EngineOutput | None = None
        self.is_done = False
        self.finish_reason = FinishReason.ABORTED
        self.output_tokens = 0
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    def add(self, output: EngineOutput) -> Iterator[Event]:
        """The events that an engine output completes."""
        self._accounting = output if self._accounting is None or output.is_last else self._accounting
        self._held = _append(self._held, output.tokens)
        piece = self._decoder.push(output.tokens.ids)
        self.output_tokens += piece.released_ids
        if (delta := self._delta(piece)) is not None:
            yield delta
        if piece.matched_stop is not None:
            yield self._done(FinishReason.STOP_SEQUENCE, piece.matched_stop)
        elif output.finish_reason is not None:
            last_id = output.tokens.ids[-1] if output.tokens.ids else None
            yield from self.end(self._public_reason(output.finish_reason, last_id))

    def end(self, reason: FinishReason) -> Iterator[Event]:
        """Lets go what was held back and ends the choice."""
        piece = self._decoder.finish()
        self.output_tokens += piece.released_ids
        if (delta := self._delta(piece)) is not None:
            yield delta
        if piece.matched_stop is not None:
            yield self._done(FinishReason.STOP_SEQUENCE, piece.matched_stop)
        elif reason is FinishReason.END_OF_TURN and self._call_count:
            yield self._done(FinishReason.TOOL_CALLS)
        else:
            yield self._done(reason)

    def usage(self, prompt_tokens: int, arrived_s: float, now_s: float) -> Usage:
        """What the request used, told once at the end."""
        accounting = self._accounting
        return Usage(
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=accounting.cached_prompt_tokens if accounting else 0,
            output_tokens=self.output_tokens,
            queued_s=accounting.queued_s if accounting else 0.0,
            prefill_s=accounting.prefill_s if accounting else 0.0,
            first_token_s=(self.first_token_s - arrived_s) if self.first_token_s is not None else 0.0,
            total_s=now_s - arrived_s,
        )

    def _public_reason(self, reason: FinishReason, last_id: int | None) -> FinishReason:
        """What the engine cannot know: whose stop token it was, and what set the length limit."""
        if reason is FinishReason.MAX_OUTPUT_TOKENS and self._is_limited_by_context:
            return FinishReason.CONTEXT_FULL
        is_callers_stop = last_id in self._options.stop.stop_token_ids and last_id not in self._model_stop_ids
        if reason is FinishReason.END_OF_TURN and is_callers_stop:
            return FinishReason.STOP_SEQUENCE
        return reason

    def _done(self, reason: FinishReason, matched_stop: str = "") -> ChoiceDone:
        self.is_done = True
        self.finish_reason = reason
        return ChoiceDone(self._choice, reason, matched_stop)

    def _delta(self, piece: Piece) -> Delta | None:
        """Text and calls with the tokens that completed them; nothing if the piece has none of these."""
        released, self._held = _split(self._held, piece.released_ids)
        returns = self._options.returns
        text = piece.text if returns.text else ""
        tokens = released if (returns.token_ids or returns.logprobs) and released.ids else None
        first = self._call_count
        self._call_count += len(piece.calls)
        calls = tuple(
            ToolCallDelta(index, call.id, call.name, call.arguments_json)
            for index, call in enumerate(piece.calls, first)
        )
        return Delta(self._choice, text, tokens, calls) if text or tokens or calls else None


def _append(held: TokenColumns, new: TokenColumns) -> TokenColumns:
    if not held.ids:
        return new
    return TokenColumns(
        held.ids + new.ids,
        held.logprobs + new.logprobs,
        new.top_k,
        held.top_ids + new.top_ids,
        held.top_logprobs + new.top_logprobs,
    )


def _split(columns: TokenColumns, count: int) -> tuple[TokenColumns, TokenColumns]:
    """The first `count` rows and the rest."""
    if count >= len(columns.ids):
        return columns, TokenColumns()
    width = count * columns.top_k
    first = TokenColumns(
        columns.ids[:count],
        columns.logprobs[:count],
        columns.top_k,
        columns.top_ids[:width],
        columns.top_logprobs[:width],
    )
    rest = TokenColumns(
        columns.ids[count:],
        columns.logprobs[count:],
        columns.top_k,
        columns.top_ids[width:],
        columns.top_logprobs[width:],
    )
    return first, rest
