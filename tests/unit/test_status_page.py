"""Does the status page show the fleet, escape what others wrote, and load nothing from elsewhere?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
from http_door import opened
from scripted_gateway import MODEL, ScriptedGateway, model

from cluster.policy import ReplicaSnapshot
from deployments.call import ReplicaStatus
from deployments.ingress.status_page import CONTENT_SECURITY_POLICY, Link, StatusPage
from llama31.engine import RankReport

RANKS = tuple(
    RankReport(r, r // 2, r % 2, f"node-{r // 2}-of-two", f"10.0.0.{r // 2}", 40 + r, f"GPU {r}") for r in (3, 1, 0, 2)
)
LOAD = ReplicaSnapshot("replica-1", True, False, 3, 1, 100, 1234, 8738, 500)
READY = ReplicaStatus("replica-1", MODEL, "tp2pp2", "ready", "", RANKS, LOAD)
LOADING = ReplicaStatus("replica-2", MODEL, "tp2pp2", "warming up", "rank 1 of 4 has its weights")
FAILED = ReplicaStatus("replica-3", MODEL, "tp2pp2", "failed", "/etc/secret is not there")


class Page(HTMLParser):
    """Checks the nesting and collects text, classes and places that a browser would fetch."""

    VOID = ("meta", "link", "input", "rect", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page_of(gateway: ScriptedGateway) -> StatusPage:
    links = [Link("Ray dashboard", "http://127.0.0.1:8265"), Link("Metrics", "http://127.0.0.1:9400/metrics")]
    return StatusPage(gateway, links, {"llama31-serve": "0.1.0", "ray": "2.60.0"})


def test_a_fleet() -> None:
    gateway = ScriptedGateway()
    gateway.replicas = (LOADING, READY, FAILED)
    page = Page(page_of(gateway).whole())
    for words in (
        MODEL,
        "8,192 tokens of context",
        "Replicas ready 1 of 3",
        "Running 3",
        "Waiting 1",
        "KV cache 14 %",
        "KV 1,234 of 8,738 tokens",
        "tp2pp2, 2 nodes",
        "rank 0 GPU 0 10.0.0.0 node node-0-o rank 1 GPU 1",
        "stage 1 rank 2 GPU 2 10.0.0.1",
        "warming up",
        "rank 1 of 4 has its weights",
        "failed",
        "Its log says why.",
        "llama31-serve 0.1.0 · ray 2.60.0",
    ):
        assert words in page.text
    assert "secret" not in page.text
    assert page.text.index("replica-1") < page.text.index("replica-2")
    assert {"http://127.0.0.1:8265", "http://127.0.0.1:9400/metrics", "/v1/models"} <= set(page.links)


def test_nothing_is_there_yet() -> None:
    gateway = ScriptedGateway()
    gateway.set_models(model(MODEL, "loading"))
    text = Page(page_of(gateway).whole()).text
    assert "No replica has announced itself yet" in text
    assert "Replicas ready 0 of 0" in text
    assert "KV cache \N{EN DASH}" in text
    gateway.set_models()
    assert "This server knows no model" in Page(page_of(gateway).whole()).text


def test_a_ready_replica_without_a_link() -> None:
    gateway = ScriptedGateway()
    gateway.replicas = (ReplicaStatus("replica-1", MODEL, "tp1", "ready", "", RANKS[:1]),)
    text = Page(page_of(gateway).whole()).text
    assert "not linked to it yet" in text
    assert "tp1, 1 node" in text


@pytest.mark.parametrize(("name", "shown"), [("llama-3.1-8b", True), ("smollm2-135m", False), ("tiny-llama31", False)])
def test_built_with_llama(name: str, shown: bool) -> None:
    gateway = ScriptedGateway()
    gateway.set_models(model(name))
    assert ("Built with Llama" in page_of(gateway).whole()) is shown


def test_what_others_wrote_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"'"
    gateway = ScriptedGateway()
    gateway.set_models(model(evil))
    ranks = (RankReport(0, 0, 0, evil, evil, 1, evil),)
    gateway.replicas = (ReplicaStatus(evil, evil, evil, evil, evil, ranks),)
    html = StatusPage(gateway, [Link(evil, "http://x/")], {evil: evil}).whole()
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    Page(html)


def test_the_page_fetches_nothing_and_runs_only_its_own() -> None:
    page = Page(page_of(ScriptedGateway()).whole())
    assert "style" not in page.attributes, "the policy forbids them"
    assert not any(name.startswith("on") for name in page.attributes)
    assert all(link.startswith(("http://127.0.0.1", "/", "data:image/svg+xml,")) for link in page.links)
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY


async def test_over_http() -> None:
    async with opened() as door:
        door.gateway.replicas = (READY,)
        whole, part = await door.client.get("/"), await door.client.get("/fleet")
        for response in (whole, part):
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "rank 3" in response.text
        assert part.text in whole.text
        paths = re.findall(r'fetch\("([^"]+)"', whole.text)
        assert sorted(paths) == ["/fleet", "/v1/chat/completions", "/v1/models"]
