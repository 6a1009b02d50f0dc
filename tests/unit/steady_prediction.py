"""How does a fleet do at a rate: by its steady state alone, without queues of bursts?"""

from __future__ import annotations

import math

from cluster.planner import Fleet, Prediction, Question

NEVER = Prediction(math.inf, math.inf, math.inf, math.inf, math.inf, math.inf, 0.0, 0.0, 1.0)


def steady_prediction(fleet: Fleet, question: Question) -> Prediction:
    """Prompts wait for each other as in a queue with random arrivals; the load is spread evenly."""
    replica, percentile = fleet.replica, question.slo.percentile
    steady = replica.at(fleet.rate_per_s / fleet.replicas)
    if steady is None:
        return NEVER
    # Source: Pollaczek and Khinchine, constant service; its tail as that of an exponential of the same mean.
    wait_s = steady.mixed_time * steady.mixed_step_s / (2 * max(1e-9, 1 - steady.mixed_time))

    def ttft_s(share: float, prompt_tokens: float) -> float:
        waited_s = wait_s * math.log(1 / (1 - share))
        return steady.itl_s / 2 + waited_s + replica.prefill_s(prompt_tokens, steady.running)

    def itl_s(share: float) -> float:
        return steady.mixed_step_s if steady.mixed_share > 1 - share else steady.decode_step_s

    lengths = replica.lengths
    at_slo = ttft_s(percentile, lengths.longest_prompt_tokens), itl_s(percentile)
    holds = at_slo[0] <= question.slo.ttft_s and at_slo[1] <= question.slo.itl_s
    return Prediction(
        ttft_p50_s=ttft_s(0.5, lengths.prompt_tokens),
        ttft_p99_s=ttft_s(0.99, lengths.longest_prompt_tokens),
        ttft_slo_s=at_slo[0],
        itl_p50_s=itl_s(0.5),
        itl_p99_s=itl_s(0.99),
        itl_slo_s=at_slo[1],
        goodput_per_s=fleet.rate_per_s if holds else 0.0,
        output_tokens_s=fleet.rate_per_s * lengths.output_tokens,
        busy=steady.busy,
    )
