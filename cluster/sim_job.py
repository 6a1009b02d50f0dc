"""What is known of one simulated request on its way?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.workload import Request

if TYPE_CHECKING:
    from cluster.sim_replica import Replica


class Job:
    """One request on its way; `prompt_tokens` and `output_left` change when it starts over from what it emitted."""

    __slots__ = (
        "arrival_s",
        "cached_tokens",
        "chunk_tokens",
        "computed_tokens",
        "finish_step",
        "first_token_s",
        "held",
        "ingress",
        "last_token_s",
        "order",
        "output_left",
        "prefill_left",
        "private_blocks",
        "prompt_tokens",
        "replica",
        "request",
        "sent_prefill_tokens",
        "ticket",
    )

    def __init__(self, request: Request, order: int, ingress: int, arrival_s: float) -> None:
        self.request = request
        self.arrival_s = arrival_s
        self.order = order
        self.ingress = ingress
        self.prompt_tokens = request.prompt_tokens
        self.output_left = request.output_tokens
        self.computed_tokens = 0
        self.chunk_tokens = 0
        self.cached_tokens = -1
        self.prefill_left = 0
        self.sent_prefill_tokens = 0
        self.held: list[int] = []
        self.private_blocks = 0
        self.finish_step = -1
        self.first_token_s = -1.0
        self.last_token_s = -1.0
        self.ticket = 0
        self.replica: Replica | None = None

    def start_over(self, output_left: int) -> None:
        """What was emitted becomes part of the prompt; nothing of it is computed any more."""
        self.prompt_tokens = self.request.prompt_tokens + self.request.output_tokens - output_left
        self.output_left = output_left
        self.computed_tokens = 0
        self.private_blocks = 0
        self.held.clear()
        self.finish_step = -1
