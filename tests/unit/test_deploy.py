"""How long does `llama31 serve` wait for replicas that find no room, and what does it say then?"""

from __future__ import annotations

import pytest

from cluster.policy import NodeSnapshot, Topology
from deployments import deploy
from deployments.config import parse_config
from deployments.deploy import RunningApplication
from llama31.errors import PlacementRefused

TREE = {"model": "llama-3.1-8b", "plan": "tp2", "replicas": 3, "engine": {"placement_timeout_s": 60}}


@pytest.mark.parametrize(
    ("gpus_free", "words"),
    [
        (3.0, "tp2 needs 1 x 2 GPUs, each group of 2 on one node; replica 2 of 2 does not fit"),
        (4.0, "the cluster has room for them, but Ray gave none"),
    ],
)
def test_the_wait_for_room_is_bounded_and_ends_in_words(
    gpus_free: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Topology((NodeSnapshot("a", "10.0.0.1", 64, 64, 8, gpus_free),))
    monkeypatch.setattr(deploy, "snapshot", lambda: here)
    application = RunningApplication(parse_config(TREE, "test"), lambda line: None)
    application._check_patience(59.9, 1)
    with pytest.raises(PlacementRefused) as caught:
        application._check_patience(60.0, 1)
    assert str(caught.value).startswith("2 of 3 replicas have no placement group after 60 s (engine.placement_")
    assert words in str(caught.value)
    application.stop()
