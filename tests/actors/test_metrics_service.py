"""Does a real service export every row of the table, with exactly its labels, on one clean scrape with Ray's series?"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority, install
from prometheus_client.parser import text_string_to_metric_families

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.client_access import Tls
from deployments.metric_table import METRICS, Metric
from deployments.tenants_file import file_lines, make_key
from llama31.chat import ResourceUse
from llama31.errors import Unauthenticated
from tests.programs import find_program
from tests.serving import greedy, ready_records, served, wait_for
from tests.waiting import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint")]

MODEL = "smollm2-135m"
# A script has no ranks, no placement group and no weights: test_sharding.py and unit tests see to these.
NOT_OF_A_SCRIPT = {
    "llama31_rank_alive",
    "llama31_rank_silent_seconds",
    "llama31_ranks_lost_total",
    "llama31_weights_faults_total",
}
LONG_QUESTION = "count with me: " + " ".join(str(number) for number in range(400))
IDLE_WATTS, PEAK_WATTS = 50.0, 200.0
RANKS = 2
PLANNED = {"kv_tokens": 1000, "rate_per_s": 1.0, "ttft_p99_s": 1.0, "itl_p99_s": 0.1, "output_tokens_per_s": 50.0}
# It decides each second, and always the same.
FIXED_NUMBER = {
    "min_replicas": RANKS,
    "max_replicas": RANKS,
    "prompt_tokens_per_s": 1e6,
    "output_tokens_per_s": 1e6,
    "tick_s": 1.0,
}


@dataclass(frozen=True)
class Served:
    """A service with everything that metrics tell of switched on."""

    address: str
    metrics_port: int
    key: str
    tls: Tls
    tenants_file: Path

    def client(self, key: str = "") -> Client:
        return Client(self.address, api_key=key or self.key, tls=self.tls)

    def scrape(self) -> str:
        """Nothing while another process takes the port over from one that was killed."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            return ""


@pytest.fixture(scope="module")
def service(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("metrics")
    authority = Authority("ours")
    certificate, key_pem = authority.issue()
    install(directory, cert=certificate, key=key_pem, ca=authority.pem)
    key = make_key()
    tenants = directory / "tenants.yaml"
    tenants.write_text(file_lines("acme", key) + "\n")
    port = free_port()
    overrides = {
        "engine.kind": "scripted",
        "engine.script.step_s": 0.01,
        "replicas": 2,
        "ingress.metrics_port": port,
        "ingress.auth": {"tenants_file": str(tenants)},
        "ingress.tls": {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")},
        "ingress.language": {"mode": "warn"},
        "router.policy": "least_tokens",
        "energy": {"idle_watts": IDLE_WATTS, "peak_watts": PEAK_WATTS},
        "planned": PLANNED,
        "autoscaling": FIXED_NUMBER,
    }
    with served(overrides) as (_, address):
        yield Served(address, port, key.key, Tls(str(directory / "ca.pem")), tenants)


def series(text: str) -> dict[str, set[tuple[str, ...]]]:
    """Name of a family as our table calls it -> the sets of label names that it has."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        for sample in family.samples:
            found.setdefault(name, set()).add(tuple(sorted(set(sample.labels) - {"le"})))
    return found


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a family's samples with these labels."""
    families = text_string_to_metric_families("\n".join(line for line in text.splitlines() if name in line) + "\n")
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


async def make_everything_happen(service: Served) -> None:
    async with service.client() as client:
        await asyncio.gather(*(client.chat(f"{i}: the quick brown fox", options=greedy(50)).text() for i in range(8)))
        async with service.client("l31_wrong") as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.chat("hello", model=MODEL).text()
        stream = client.chat(LONG_QUESTION, options=greedy(1000))
        await anext(stream)
        assert stream.result.started is not None
        victim = next(r for r in ready_records() if r.replica_id == stream.result.started.replica_id)
        os.kill(victim.pid, signal.SIGKILL)
        await stream.text()
    service.tenants_file.write_text(service.tenants_file.read_text() + "# read again\n")


@pytest.fixture(scope="module")
def scraped(service: Served) -> str:
    """What one scrape says once everything has happened at least once."""
    asyncio.run(make_everything_happen(service))
    wait_for(lambda: "llama31_reloads_total{" in service.scrape(), 30, "the tenants file is read again")
    wait_for(lambda: len(ready_records()) == 2, 60, "the killed replica was replaced")
    wait_for(lambda: total(service.scrape(), "llama31_replica_ready") == 2, 30, "the new replica is exported")
    return service.scrape()


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.name not in NOT_OF_A_SCRIPT], ids=lambda m: m.name)
def test_every_row_is_exported_with_its_labels(scraped: str, metric: Metric) -> None:
    assert series(scraped).get(metric.name) == {tuple(sorted(metric.labels))}


def test_nothing_else_of_ours_is_exported(scraped: str) -> None:
    assert {name for name in series(scraped) if name.startswith("llama31_")} <= set(METRICS)


def test_rays_series_are_on_the_same_scrape(scraped: str) -> None:
    families = series(scraped)
    assert {"ray_resources", "ray_node_cpu_utilization", "ray_serve_deployment_replica_healthy"} <= set(families)
    lines = [line.rpartition(" ")[0] for line in scraped.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)), "no series stands twice"


def test_a_replica_that_is_gone_leaves_no_series(scraped: str) -> None:
    shown = set(re.findall(r'llama31_replica_\w+\{[^}]*replica="([^"]+)"', scraped))
    assert shown == {record.replica_id for record in ready_records()}


def test_no_text_of_a_request_and_no_tenant_is_shown(scraped: str) -> None:
    assert "fox" not in scraped
    assert "acme" not in scraped


def test_requests_are_routed_as_configured(scraped: str) -> None:
    assert set(re.findall(r'llama31_routes_total\{.*reason="(\w+)".*\}', scraped)) == {"least_tokens"}


def test_promtool_finds_no_fault_with_our_series(scraped: str) -> None:
    promtool = find_program("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=scraped, capture_output=True, text=True, timeout=60)
    # Ray's own names are not ours to mend; a scrape that does not parse would be one fault without a name.
    faults = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("ray_")]
    assert not faults


async def test_energy_is_charged_and_adds_up(service: Served, scraped: str) -> None:
    before = await asyncio.to_thread(service.scrape)
    async with service.client() as client:
        streams = [client.chat(f"{i}: the quick brown fox", options=greedy(100)) for i in range(4)]
        await asyncio.gather(*(stream.text() for stream in streams))
    used = [stream.usage.resources for stream in streams if stream.usage]
    assert all(isinstance(share, ResourceUse) and share.source == "modelled" for share in used)
    charged = sum(share.joules for share in used if share)
    for share in used:
        assert share is not None
        assert share.joules == pytest.approx(share.accelerator_s * PEAK_WATTS)
        assert share.co2e_grams == pytest.approx(share.joules / 3.6e6 * 410)

    tenant = "llama31_tenant_energy_joules_total"
    model = "llama31_energy_joules_total"

    def counted() -> bool:
        return total(service.scrape(), model, source="modelled") - total(before, model) >= charged

    await asyncio.to_thread(wait_for, counted, 10, "the replicas' energy holds what was charged")
    after = await asyncio.to_thread(service.scrape)
    assert total(after, tenant, source="modelled") - total(before, tenant) == pytest.approx(charged)
    watts = total(after, "llama31_replica_power_watts", source="modelled")
    assert 2 * RANKS * IDLE_WATTS <= watts <= 2 * RANKS * PEAK_WATTS
