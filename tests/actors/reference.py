"""The yardstick of the sharding tests: plain transformers, one process, float32, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Below this gap between the two best logits, a different order of float32 additions may pick the other.
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Continuation:
    """Greedy ids, and at each of them how far the second best logit was behind."""

    ids: tuple[int, ...]
    gaps: tuple[float, ...]


def greedy_reference(directory: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[Continuation]:
    """Runs the checkpoint without any sharding."""
    import torch
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    try:
        return [_continue(model, prompt, tokens) for prompt in prompts]
    finally:
        torch.set_num_threads(threads)


def _continue(model: object, prompt: Sequence[int], tokens: int) -> Continuation:
    import torch

    ids, gaps = [], []
    cache, step = None, torch.tensor([list(prompt)])
    with torch.inference_mode():
        for _ in range(tokens):
            output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)  # type: ignore[operator]
            cache = output.past_key_values
            best = output.logits[0, -1].topk(2)
            ids.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            step = torch.tensor([[ids[-1]]])
    return Continuation(tuple(ids), tuple(gaps))


def compare(reference: Continuation, answer: Sequence[int]) -> int:
    """0 if equal, 1 if the answer leaves the reference at a near-tie; anything else fails."""
    assert len(answer) == len(reference.ids)
    for position, (expected, got) in enumerate(zip(reference.ids, answer, strict=True)):
        if expected != got:
            gap = reference.gaps[position]
            assert gap < NEAR_TIE, f"token {position}: {got} instead of {expected}, {gap:.4f} apart"
            return 1
    return 0
