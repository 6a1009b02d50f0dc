"""How long until a replica would answer a request's first token?"""

from __future__ import annotations

from cluster.policy import ReplicaSnapshot, StepSpeed


def ttft_s(replica: ReplicaSnapshot, speed: StepSpeed, uncached_tokens: int, output_tokens: int) -> float:
    """Prefill of what is queued and of the request itself, slowed by the decodes beside it, and the wait for room.

    Each step computes at most `max_step_tokens`, the running sequences' one token each included. A full cache
    empties in the time of one output: `output_tokens` steps free `kv_tokens_total`.
    """
    tokens = replica.prefill_tokens + uncached_tokens
    step_s = speed.fixed_s + replica.running * speed.sequence_s + replica.kv_tokens_used * speed.context_token_s
    steps = -(-tokens // max(speed.max_step_tokens - replica.running, 1))
    under_way = 0.5 if replica.running else 0.0  # half the step that runs now
    seconds = (steps + under_way) * step_s + tokens * speed.prefill_token_s
    missing = replica.kv_tokens_used + tokens - replica.kv_tokens_total
    if missing > 0 and replica.kv_tokens_total > 0:
        seconds += output_tokens * step_s * missing / replica.kv_tokens_total
    return seconds
