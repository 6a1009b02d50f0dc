"""Does the status page work in a browser: the fleet, the chat box, both colour schemes, a phone's width, errors?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_door import opened
from scripted_gateway import MODEL, Request, Script, ScriptedGateway, failing, started

from cluster.policy import ReplicaSnapshot
from deployments.call import ReplicaStatus
from llama31.chat import ChatRequest, ChoiceDone, Completed, Delta, Event, FinishReason, Usage
from llama31.engine import RankReport
from llama31.errors import Overloaded, StreamInterrupted
from tests.conformance.conftest import environment
from tests.conformance.environments import NotToBeHad, browser_command

pytestmark = pytest.mark.conformance

LIMIT_S = 90
PIECES = ("Paris", " <b>is</b> it.")
FAILURES: dict[str, Script] = {
    "overloaded": failing(Overloaded("more work than the fleet can take", 2.5)),
    "break": failing(StreamInterrupted("replica-1", 1, "its process ended"), after_start=True),
}
SCHEMES = ("light", "dark", "narrow", "narrow dark")
# WCAG 2.2, success criterion 1.4.3.
MIN_CONTRAST = 4.5

Seen = dict[str, Any]
Colour = list[float]


def replica(number: int) -> ReplicaStatus:
    """Four ranks on two nodes."""
    ranks = tuple(
        RankReport(r, r // 2, r % 2, f"{number}{r // 2}node-of-rank", f"10.0.{number}.{r // 2}", 40 + r, f"GPU {r % 2}")
        for r in range(4)
    )
    load = ReplicaSnapshot(f"replica-{number}", True, False, number, 0, 0, 1234, 8738, 0)
    return ReplicaStatus(f"replica-{number}", MODEL, "tp2pp2", "ready", "", ranks, load)


class Play:
    """The server's side of the visit."""

    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway
        self._first_piece_was_seen = asyncio.Event()
        gateway.script = self.script
        gateway.replicas = (replica(1), replica(2))

    def script(self, request: Request) -> AsyncIterator[Event]:
        """A failure where the question names one, else the answer."""
        assert isinstance(request, ChatRequest)
        return FAILURES.get(request.messages[-1].content, self._answer)(request)

    async def _answer(self, request: Request) -> AsyncIterator[Event]:
        yield started()
        yield Delta(0, PIECES[0])
        await self._first_piece_was_seen.wait()
        yield Delta(0, PIECES[1])
        yield ChoiceDone(0, FinishReason.END_OF_TURN)
        yield Completed(Usage(3, 0, 2, 0.01, 0.02, 0.03, 0.04))

    def first_piece_was_seen(self) -> None:
        """Lets the answer go on, and a third replica come."""
        self._gateway.replicas = (replica(1), replica(2), replica(3))
        self._first_piece_was_seen.set()


async def visit(command: list[str]) -> Seen:
    """What the browser saw, by name."""
    seen: Seen = {}
    async with opened() as door, asyncio.timeout(LIMIT_S):
        play = Play(door.gateway)
        pipe = asyncio.subprocess.PIPE
        job = json.dumps({"url": door.url})
        browser = await asyncio.create_subprocess_exec(
            *command, job, stdout=pipe, stderr=pipe, env=environment(), limit=2**20
        )
        assert browser.stdout is not None
        assert browser.stderr is not None
        try:
            async for line in browser.stdout:
                what = json.loads(line)
                seen[what["seen"]] = what
                if what["seen"] == "piece":
                    play.first_piece_was_seen()
            errors = (await browser.stderr.read()).decode()
            assert await browser.wait() == 0, errors[-4000:]
        finally:
            if browser.returncode is None:
                browser.terminate()
    return seen


@pytest.fixture(scope="module")
def seen() -> Seen:
    try:
        command = browser_command("status_page.cjs")
    except NotToBeHad as cause:
        pytest.skip(f"Chromium cannot be had: {cause}")
    return asyncio.run(visit(command))


def luminance(colour: Colour) -> float:
    """0 for black, 1 for white. Source: WCAG 2.2, relative luminance."""
    shares = [value / 255 for value in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("look", SCHEMES)
def test_replicas_and_ranks_are_shown(seen: Seen, look: str) -> None:
    text = " ".join(seen[look]["layout"]["text"].split())
    for words in (MODEL, "Replicas ready 2 of 2", "replica-1", "replica-2", "tp2pp2, 2 nodes"):
        assert words in text
    for number in (1, 2):
        for rank in range(4):
            words = f"rank {rank} GPU {rank % 2} 10.0.{number}.{rank // 2} node {number}{rank // 2}node-o"
            assert words in text


@pytest.mark.parametrize("look", SCHEMES)
def test_text_can_be_read(seen: Seen, look: str) -> None:
    assert (luminance(seen[look]["layout"]["ground"]) < 0.2) == look.endswith("dark")
    assert len(seen[look]["layout"]["texts"]) > 40
    faint = {t["text"]: contrast(t["ink"], t["ground"]) for t in seen[look]["layout"]["texts"]}
    assert {text: ratio for text, ratio in faint.items() if ratio < MIN_CONTRAST} == {}


@pytest.mark.parametrize("moment", ["narrow", "narrow dark", "answer", "all"])
def test_a_phone_scrolls_one_way(seen: Seen, moment: str) -> None:
    assert seen[moment]["layout"]["contentWidth"] == seen["narrow"]["width"] == 390
    assert seen[moment]["layout"]["sticksOut"] == []


def test_an_answer_streams(seen: Seen) -> None:
    assert seen["piece"]["text"] == PIECES[0]
    assert seen["answer"]["text"] == "".join(PIECES)
    assert seen["answer"]["elements"] == 0, "what a model writes is text"
    assert seen["answer"]["figures"].startswith("3 + 2 tokens")


def test_a_new_replica_appears_without_a_reload(seen: Seen) -> None:
    assert "Replicas ready\n3 of 3" in seen["refresh"]["text"]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("overloaded", "more work than the fleet can take"),
        ("break", "the replica was lost after 1 tokens"),
        ("offline", "The server cannot be reached."),
    ],
)
def test_errors_are_words(seen: Seen, failure: str, words: str) -> None:
    assert words in seen[failure]["text"]


def test_the_browser_has_nothing_to_complain_about(seen: Seen) -> None:
    """It notes answers with an error's status by itself."""
    found = seen["all"]["complaints"]
    assert [line for line in found if line["during"] not in ("overloaded", "offline")] == []
    assert all(line["text"].startswith("Failed to load resource: ") for line in found)


def test_nothing_is_asked_of_another_host(seen: Seen) -> None:
    urls = [urlsplit(url) for url in seen["all"]["requests"]]
    assert {url.hostname for url in urls if url.scheme != "data"} == {"127.0.0.1"}
    assert {url.path for url in urls if url.scheme != "data"} == {"/", "/fleet", "/v1/chat/completions"}
