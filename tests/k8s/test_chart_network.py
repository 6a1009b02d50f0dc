"""Can everybody reach what is theirs, and nobody more: ports, Services, probes, network policies, budgets?"""

from __future__ import annotations

import pytest

from tests.k8s.chart import EVERYTHING, NAMESPACE, PRESETS, RELEASE, Object, container, find, groups, preset, render

pytestmark = pytest.mark.k8s

FULL = (*preset("405b-bf16"), *EVERYTHING)
RAY = {"head", "ingress", "engine"}
PDB = "PodDisruptionBudget"
# KubeRay sets RAY_gcs_rpc_server_reconnect_timeout_s of all but the head to this.
PODS_WAIT_FOR_A_HEAD_S = 600
# Who may open which port of which pods, as the policies should say; Ray's pods reach each other on all ports.
OPENED = {
    "doors": ({"ingress"}, {9000, 8000}),
    "metrics": ({"ingress", "engine"}, {9400}),
    "head-metrics": ({"head"}, {8080}),
    "dashboard": ({"head"}, {8265}),
    "redis": ({"redis"}, {6379}),
}


def test_each_port_is_open_to_those_who_need_it() -> None:
    objects = render(*preset("8b"))
    policies = {o["metadata"]["name"].removeprefix(f"{RELEASE}-"): o for o in objects if o["kind"] == "NetworkPolicy"}
    incoming = {n: p for n, p in policies.items() if any(rule.get("ports") for rule in p["spec"].get("ingress", ()))}
    assert set(incoming) == set(OPENED)
    for name, (components, ports) in OPENED.items():
        spec = incoming[name]["spec"]
        assert _selected(spec["podSelector"]) == components
        (rule,) = spec["ingress"]
        assert {port["port"] for port in rule["ports"]} == ports
        assert rule["from"], "an empty list would let everybody in"
    (fabric,) = policies["ray"]["spec"]["ingress"]
    assert [_selected(peer["podSelector"]) for peer in fabric["from"]] == [RAY]
    assert "ports" not in fabric


@pytest.mark.parametrize("name", PRESETS)
def test_every_port_of_a_pod_is_covered(name: str) -> None:
    objects = render(*preset(name))
    declared = {role: {p["containerPort"] for p in container(g)["ports"]} for role, g in groups(objects).items()}
    opened = {role: set().union(*(ports for roles, ports in OPENED.values() if role in roles)) for role in RAY}
    # GCS is for Ray's own pods.
    assert declared == opened | {"head": {6379, *opened["head"]}}


@pytest.mark.parametrize(
    ("options", "fetchers"),
    [((), {"ingress", "engine"}), (("--set", "weights.onNewNode=refuse"), {"ingress"})],
)
def test_only_fetchers_get_out(options: tuple[str, ...], fetchers: set[str]) -> None:
    objects = render(*preset("8b"), *options)
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and "Egress" in o["spec"]["policyTypes"]]
    outward = [p for p in policies if any("ipBlock" in peer for rule in p["egress"] for peer in rule.get("to", ()))]
    assert [_selected(p["podSelector"]) for p in outward] == [fetchers, {"weights"}]
    ports = {port["port"] for p in outward for rule in p["egress"] for port in rule["ports"]}
    assert ports == {53, 443}
    engine = groups(objects)["engine"]["template"]["spec"]
    assert [c["name"] for c in engine["initContainers"]][-1] == "weights-check"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container(groups(objects)["engine"])["env"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector.monitoring:4317", 4317), ("https://traces.example.org", 443), ("http://[::1]:4318/", 4318)],
)
def test_traces_get_out(endpoint: str, port: int) -> None:
    rules = find(
        render(*preset("8b"), "--set", f"config.tracing.otlp_endpoint={endpoint}"), "NetworkPolicy", f"{RELEASE}-ray"
    )["spec"]["egress"]
    assert {"ports": [{"port": port, "protocol": "TCP"}]} in rules


def test_the_stand_in_reaches_nothing_outside() -> None:
    objects = render(*preset("cpu"))
    assert not [o for o in objects if o["kind"] in ("Job", "StatefulSet")]
    assert "ipBlock" not in str(objects)


@pytest.mark.parametrize("name", PRESETS)
def test_services_lead_to_the_doors_of_ready_ingress_pods(name: str) -> None:
    objects = render(*preset(name))
    ports = {
        role: {p["name"]: p["containerPort"] for p in container(g)["ports"]} for role, g in groups(objects).items()
    }
    labels = groups(objects)["ingress"]["template"]["metadata"]["labels"]
    for suffix in ("", "-headless"):
        spec = find(objects, "Service", RELEASE + suffix)["spec"]
        assert spec["selector"].items() <= labels.items()
        assert not spec.get("publishNotReadyAddresses")
        for port in spec["ports"]:
            assert ports["ingress"][port["targetPort"]] == port["port"]
    # KubeRay's own Service takes in all ready workers; only the names of these ports keep engines out of it.
    for port in find(objects, "RayService")["spec"]["serveService"]["spec"]["ports"]:
        assert port["name"].startswith("serve-")
        assert ports["ingress"][port["targetPort"]] == port["port"]
        assert port["targetPort"] not in ports["engine"]


@pytest.mark.parametrize(
    ("options", "started", "ready"),
    [
        ((), {"grpc": {"port": 9000, "service": "model:llama-3.1-8b"}}, {"grpc": {"port": 9000}}),
        (("--set", "access.tlsSecret=t"), *[{"httpGet": {"path": "/ready", "port": 8000, "scheme": "HTTPS"}}] * 2),
        (
            ("--set", "access.tlsSecret=t,access.clientCertificates=true"),
            {"exec": {"command": ["llama31", "ready"]}},
            {"tcpSocket": {"port": 9000}},
        ),
    ],
)
def test_probes_fit_what_the_door_speaks(options: tuple[str, ...], started: Object, ready: Object) -> None:
    ingress = container(groups(render(*preset("8b"), *options))["ingress"])
    assert started.items() <= ingress["startupProbe"].items()
    assert ready.items() <= ingress["readinessProbe"].items()


@pytest.mark.parametrize(
    ("name", "replicas", "kept"), [("8b", 1, 1), ("8b", 4, 3), ("405b-bf16", 1, 2), ("405b-bf16", 3, 4)]
)
def test_budgets_are_whole_numbers_of_pods_that_become_ready(name: str, replicas: int, kept: int) -> None:
    objects = render(*preset(name), "--set", f"config.replicas={replicas}")
    budgets = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == PDB}
    assert {n: b["minAvailable"] for n, b in budgets.items()} == {
        f"{RELEASE}-ingress": 1,
        f"{RELEASE}-engine": kept,
    }
    for role, group in groups(objects).items():
        assert container(group)["readinessProbe"], "KubeRay's own would wait for Serve's proxies, which are off"
        if role != "head":
            labels = group["template"]["metadata"]["labels"]
            assert budgets[f"{RELEASE}-{role}"]["selector"]["matchLabels"].items() <= labels.items()


def test_what_comes_back_by_itself_may_be_evicted() -> None:
    """Else its node could not be emptied: a head with its storage, an ingress pod that starts within a minute."""
    for options, kept in (((), {"engine"}), (("--set", "gcs.store=none"), {"engine", "head"})):
        objects = render(*preset("8b"), "--set", "ingress.pods=1", *options)
        budgets = {o["metadata"]["name"].removeprefix(f"{RELEASE}-") for o in objects if o["kind"] == PDB}
        assert budgets == kept


def test_priority_ends_nobody_elses_pods() -> None:
    classes = [o for o in render(*preset("8b")) if o["kind"] == "PriorityClass"]
    assert [c["preemptionPolicy"] for c in classes] == ["Never"] * 3


def test_a_head_that_hangs_is_replaced_before_its_pods_give_up() -> None:
    probe = container(groups(render(*preset("8b")))["head"])["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= PODS_WAIT_FOR_A_HEAD_S / 2


def test_running_streams_get_their_time() -> None:
    objects = render(*preset("8b"), "--set", "upgrade.drainSeconds=300")
    waits = {"ingress": ["sh", "-c", "sleep 5; exec llama31 drain --wait 300"]}
    for role, group in groups(objects).items():
        assert container(group)["lifecycle"]["preStop"]["exec"]["command"] == waits.get(role, ["sleep", "300"])
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 300


def test_each_series_is_scraped_once() -> None:
    """Our port gives Ray's series of its node, too; the head has only Ray's own port."""
    objects = render(*FULL)
    monitor = find(objects, "PodMonitor")["spec"]
    ours, rays = monitor["podMetricsEndpoints"]
    rule = rays["relabelings"][0]
    assert (ours["port"], rays["port"], rule["regex"], rule["action"]) == ("service-metrics", "metrics", "head", "keep")
    ports = {role: {p["name"] for p in container(group)["ports"]} for role, group in groups(objects).items()}
    assert {role for role, names in ports.items() if "service-metrics" in names} == {"ingress", "engine"}
    assert "metrics" in ports["head"]
    for group in groups(objects).values():
        assert group["template"]["metadata"]["labels"][monitor["jobLabel"]] == "llama31", "the alerts' name of the job"
    for endpoint in (ours, rays):
        assert endpoint["relabelings"][-1] == {"targetLabel": "release", "replacement": f"{NAMESPACE}/{RELEASE}"}


def test_routes_lead_to_the_service() -> None:
    objects = render(*FULL)
    ports = {p["name"]: p["port"] for p in find(objects, "Service")["spec"]["ports"]}
    names = set()
    for kind, port in (("GRPCRoute", "grpc"), ("HTTPRoute", "http")):
        spec = find(objects, kind)["spec"]
        names.add(spec["hostnames"][0])
        assert spec["parentRefs"] == [{"name": find(objects, "Gateway")["metadata"]["name"]}]
        (backend,) = spec["rules"][0]["backendRefs"]
        assert (backend["name"], backend["port"]) == (RELEASE, ports[port])
    assert len(names) == 2, "a listener gives a name to one kind of route only"
    assert find(objects, "BackendTLSPolicy")["spec"]["validation"]["hostname"] in names


def test_two_stages_stay_in_one_rack() -> None:
    kueue = groups(render(*FULL))["engine"]["template"]["metadata"]["annotations"]
    assert kueue["kueue.x-k8s.io/podset-slice-required-topology"] == "topology.example/rack"
    assert kueue["kueue.x-k8s.io/podset-slice-size"] == "2"
    plain = render(*preset("405b-bf16"), "--set", "engine.topology.key=rack")
    affinity = groups(plain)["engine"]["template"]["spec"]["affinity"]["podAffinity"]
    (wish,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["podAffinityTerm"]["topologyKey"] == "rack"


def _selected(selector: Object) -> set[str]:
    """The components that a pod selector of this release takes."""
    key = "app.kubernetes.io/component"
    labels = selector["matchLabels"]
    assert labels["app.kubernetes.io/instance"] == RELEASE
    if key in labels:
        return {labels[key]}
    (expression,) = selector["matchExpressions"]
    assert (expression["key"], expression["operator"]) == (key, "In")
    return set(expression["values"])
