"""How does a replica's state look on the wire: its counters, the speed of its steps, its prefix blocks?"""

from __future__ import annotations

from cluster.policy import StepSpeed
from deployments.block_feed import BlockNews
from llama31.engine import EngineState
from llama31.prefix_blocks import BlockChanges
from llama31.worker.v1 import worker_service_pb2 as pb


def encode_state(
    state: EngineState, sequence: int, ready: bool, draining: bool, speed: StepSpeed | None, news: BlockNews
) -> pb.WatchResponse:
    """One message of a Watch stream. A replica whose engine failed is neither `ready` nor `draining`."""
    return pb.WatchResponse(
        sequence=sequence,
        running=state.running,
        waiting=state.waiting,
        waiting_prompt_tokens=state.waiting_prompt_tokens,
        kv_tokens_used=state.kv_tokens_used,
        kv_tokens_total=state.kv_tokens_total,
        steps_total=state.steps_total,
        prompt_tokens_total=state.prompt_tokens_total,
        output_tokens_total=state.output_tokens_total,
        cached_prompt_tokens_total=state.cached_prompt_tokens_total,
        prefill_tokens=state.prefill_tokens,
        step_speed=_encode_speed(speed) if speed else None,
        block_event_sequence=news.sequence,
        block_snapshot=news.is_snapshot,
        blocks_stored=news.changes.stored,
        blocks_dropped=news.changes.dropped,
        ready=ready,
        draining=draining,
    )


def decode_state(message: pb.WatchResponse) -> EngineState:
    """The counters."""
    return EngineState(
        running=message.running,
        waiting=message.waiting,
        waiting_prompt_tokens=message.waiting_prompt_tokens,
        kv_tokens_used=message.kv_tokens_used,
        kv_tokens_total=message.kv_tokens_total,
        steps_total=message.steps_total,
        prompt_tokens_total=message.prompt_tokens_total,
        output_tokens_total=message.output_tokens_total,
        cached_prompt_tokens_total=message.cached_prompt_tokens_total,
        prefill_tokens=message.prefill_tokens,
    )


def decode_blocks(message: pb.WatchResponse) -> BlockNews:
    """What it tells of prefix blocks."""
    if not message.block_event_sequence:
        return BlockNews()
    changes = BlockChanges(tuple(message.blocks_stored), tuple(message.blocks_dropped))
    return BlockNews(message.block_event_sequence, message.block_snapshot, changes)


def decode_speed(message: pb.WatchResponse) -> StepSpeed | None:
    """What the replica measured of its steps; None if it does not say."""
    if not message.HasField("step_speed"):
        return None
    speed = message.step_speed
    return StepSpeed(speed.fixed, speed.prefill_token, speed.sequence, speed.context_token, speed.max_step_tokens)


def _encode_speed(speed: StepSpeed) -> pb.StepSpeed:
    return pb.StepSpeed(
        fixed=speed.fixed_s,
        prefill_token=speed.prefill_token_s,
        sequence=speed.sequence_s,
        context_token=speed.context_token_s,
        max_step_tokens=speed.max_step_tokens,
    )
