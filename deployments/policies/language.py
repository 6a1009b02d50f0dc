"""May a text in this language be answered? Only what was recognised with confidence counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

LanguageMode = Literal["off", "allow", "warn", "refuse"]
Verdict = Literal["allowed", "warned", "refused", "unknown"]

# Below these a detector guesses: "hello there" was taken for Sesotho with 0.43 (py3langid 0.4).
MIN_LETTERS = 16
MIN_CONFIDENCE = 0.8


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detector thinks of a text: an ISO 639-1 code, 0..1, and how many letters it saw."""

    language: str
    confidence: float
    letters: int


class LanguagePolicy:
    """Decides by the tenant's mode; a text that is short or unclear is `unknown`, and allowed."""

    def decide(self, mode: LanguageMode, detection: Detection, supported: Collection[str]) -> Verdict:
        """`supported` are the languages that the model was made for."""
        if detection.letters < MIN_LETTERS or detection.confidence < MIN_CONFIDENCE:
            return "unknown"
        if detection.language in supported:
            return "allowed"
        match mode:
            case "warn":
                return "warned"
            case "refuse":
                return "refused"
            case _:
                return "allowed"
