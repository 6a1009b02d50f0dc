"""Is what every preset renders valid, and does it say the same as the service's own configuration?"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import pytest
import yaml

from cluster.local import CLUSTER_ENVIRONMENT
from deployments.check import memory_faults
from deployments.cli import build_parser
from deployments.config import load_config, parse_config
from deployments.serve_config import declared_service
from tests.k8s.chart import (
    CHART,
    EVERYTHING,
    PRESETS,
    RELEASE,
    Object,
    cluster_of,
    container,
    find,
    groups,
    helm,
    preset,
    processes,
    render,
    serve_config,
)
from tests.k8s.crd_schemas import OLDEST, pod_templates, validate

pytestmark = pytest.mark.k8s

VARIANTS = {name: preset(name) for name in PRESETS} | {
    "everything": (*preset("405b-bf16"), *EVERYTHING),
    "claim": (*preset("8b"), "--set", "weights.hostPath=,weights.claim=models,gcs.store=none"),
    "client-certificates": (*preset("8b"), "--set", "access.tlsSecret=t,access.clientCertificates=true"),
    "refuse": (*preset("8b"), "--set", "weights.onNewNode=refuse,networkPolicy.enabled=false"),
    "certified-test": (
        *preset("8b"),
        *("--set", "access.tlsSecret=t,access.clientCertificates=true,test.certificateSecret=c"),
    ),
    "external-redis": (*preset("8b"), "--set", "gcs.store=external,gcs.address=r.data.svc:6380,secret.existing=s"),
}
# Values of these keys come from Secrets only.
SECRET_NAME = re.compile("TOKEN|PASSWORD|SECRET|_KEY$")
OPERATORS_LONGEST_NAME = 47


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_would_be_taken(variant: str) -> None:
    objects = render(*VARIANTS[variant])
    pods = pod_templates(find(objects, "RayService"))
    assert len(pods) == 3
    assert not [fault for obj in (*objects, *pods) for fault in validate(obj)]


def test_the_oldest_kubernetes_that_is_allowed_knows_every_field() -> None:
    objects = render(*VARIANTS["everything"])
    faults = [
        fault for obj in (*objects, *pod_templates(find(objects, "RayService"))) for fault in validate(obj, OLDEST)
    ]
    assert not faults
    assert f">={OLDEST}" in (CHART / "Chart.yaml").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_versions_of_helm_render_the_same(variant: str) -> None:
    first, second = (render(*VARIANTS[variant], program=program) for program in ("helm", "helm3"))
    assert _by_name(first) == _by_name(second)


def test_with_an_autoscaler_serve_has_no_number_and_pods_are_for_the_most() -> None:
    values = "config.autoscaling.max_replicas=3,config.autoscaling.prompt_tokens_per_s=9000"
    objects = render(*preset("70b"), "--set", f"{values},config.autoscaling.output_tokens_per_s=900")
    (application,) = serve_config(objects)["applications"]
    assert application["deployments"][0] == {"name": "engine"}
    config = declared_service(serve_config(objects), "chart")
    assert config.autoscaling is not None
    assert (config.first_replicas, config.autoscaling.max_replicas) == (1, 3)
    assert groups(objects)["engine"]["replicas"] == 3


@pytest.mark.parametrize("name", PRESETS)
def test_gpus_are_those_of_the_plan(name: str) -> None:
    objects = render(*preset(name), "--set", "config.replicas=3")
    config = parse_config(serve_config(objects)["applications"][0]["args"], name)
    engine = groups(objects)["engine"]
    gpus = container(engine)["resources"]["limits"].get("nvidia.com/gpu") or engine["rayStartParams"]["num-gpus"]
    assert engine["numOfHosts"] == config.parallel_plan.pp
    assert int(gpus) == config.parallel_plan.tp
    assert {engine[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {processes(objects)["engine"]} == {3}
    assert "nvidia.com/gpu" not in str((groups(objects)["head"], groups(objects)["ingress"]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_configuration_of_its_name(name: str) -> None:
    args = serve_config(render(*preset(name)))["applications"][0]["args"]
    config, shipped = parse_config(args, name), load_config("standin" if name == "cpu" else name)
    placed = {"checkpoint": config.engine.checkpoint, "node_labels": config.engine.node_labels}
    assert config.engine == shipped.engine.model_copy(update=placed)
    # Doors and numbers of processes are the chart's own.
    apart = {"engine", "ingress", "replicas", "local_cluster"}
    assert config.model_dump(exclude=apart) == shipped.model_dump(exclude=apart)
    assert not list(memory_faults(config))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_is_one_that_the_service_takes(variant: str) -> None:
    objects = render(*VARIANTS[variant])
    config = parse_config(serve_config(objects)["applications"][0]["args"], variant)
    asked = groups(objects)
    assert config.ingress.node_labels == asked["ingress"]["labels"]
    assert config.engine.node_labels == asked["engine"]["labels"]
    assert processes(objects)["ingress"] == asked["ingress"]["replicas"] * (config.ingress.max_per_node or 0)
    mounted = {m["mountPath"] for m in container(asked["ingress"])["volumeMounts"]}
    files = [
        config.ingress.auth and config.ingress.auth.tenants_file,
        config.ingress.tls and config.ingress.tls.cert_file,
    ]
    assert all(file.rpartition("/")[0] in mounted for file in files if file)
    cpus = config.engine.replica_cpus + config.engine.rank_cpus * config.parallel_plan.tp
    assert float(container(asked["engine"])["resources"]["limits"]["cpu"]) >= cpus


@pytest.mark.parametrize("variant", VARIANTS)
def test_serve_knows_every_key(variant: str) -> None:
    """Serve takes unknown keys without a word, so a misspelt one would do nothing."""
    declared_service(serve_config(render(*VARIANTS[variant])), variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_secret_stands_in_a_pod(variant: str) -> None:
    objects = render(*VARIANTS[variant])
    for entry in _environment(objects):
        assert not SECRET_NAME.search(entry["name"]) or "valueFrom" in entry, entry
    secrets = [obj for obj in objects if obj["kind"] == "Secret"]
    drawn = {value for secret in secrets for value in secret["data"].values()}
    assert len(drawn) == 3 * len(secrets)
    assert not any(value in str(obj) for value in drawn for obj in objects if obj["kind"] != "Secret")
    tokens = {ref["secretRef"]["name"] for c in _containers(objects) for ref in c.get("envFrom", ())}
    assert tokens <= {"llama31-hub"}
    assert {c["name"] for c in _containers(objects) if "envFrom" in c} <= {"weights-fetch"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_operator_refuses_is_not_there(variant: str) -> None:
    """The rules of KubeRay 1.7.0 that its definitions cannot hold (controllers/ray/utils/validation.go)."""
    objects = render(*VARIANTS[variant])
    assert len(find(objects, "RayService")["metadata"]["name"]) <= OPERATORS_LONGEST_NAME
    cluster = cluster_of(objects)
    assert [int(n) for n in cluster["rayVersion"].split(".")] >= [2, 52, 0], "token authentication asks for it"
    for group in groups(objects).values():
        assert not {"labels", "resources", "redis-password", "redis-username"} & set(group["rayStartParams"])
        assert "resources" not in group
        assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & {e["name"] for e in container(group)["env"]}
    head_ports = {port["name"] for port in container(groups(objects)["head"])["ports"]}
    # A port of this name on the head would take the place of ours in KubeRay's own Service.
    assert not any(name.startswith("serve") for name in head_ports)


@pytest.mark.parametrize("name", ["8b", "405b-bf16"])
def test_the_hook_fills_the_nodes_of_the_engines(name: str) -> None:
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}
    objects = render(*preset(name), "--set-json", f"engine.affinity={json.dumps(affinity)}")
    hook = find(objects, "Job", f"{RELEASE}-weights")["spec"]["template"]["spec"]
    engine = groups(objects)["engine"]["template"]["spec"]
    for key in ("nodeSelector", "tolerations"):
        assert hook[key] == engine[key]
    assert hook["affinity"]["nodeAffinity"] == engine["affinity"]["nodeAffinity"] == affinity["nodeAffinity"]
    assert "podAntiAffinity" in hook["affinity"]
    assert hook["restartPolicy"] == "Never", "Kubernetes would delete the log of the last failure"


@pytest.mark.parametrize(
    ("options", "nodes"),
    [((), 4), (("--set", "weights.onNewNode=refuse"), 8), (("--set", "weights.nodes=5"), 5)],
)
def test_the_hook_fills_as_many_nodes_as_will_ask(options: tuple[str, ...], nodes: int) -> None:
    objects = render(*preset("405b-bf16"), "--set", "config.replicas=2", *options)
    assert find(objects, "Job", f"{RELEASE}-weights")["spec"]["completions"] == nodes


def test_alerts_link_to_the_users_own_runbook() -> None:
    objects = render(*preset("8b"), "--set", "monitoring.rules=true,monitoring.runbookUrl=https://git.example.org/l/")
    alerts = [r for g in find(objects, "PrometheusRule")["spec"]["groups"] for r in g["rules"] if "alert" in r]
    assert all(a["annotations"]["runbook_url"].startswith("https://git.example.org/l/docs/") for a in alerts)


def test_pods_have_what_our_own_clusters_set() -> None:
    """Of Ray's variables those that hold for GPUs too; the others are the stand-in's, Serve's (by the application) or
    KubeRay's (the token)."""
    ours = {"RAY_process_group_cleanup_enabled", "RAY_worker_niceness"}
    for group in groups(render(*preset("8b"))).values():
        set_here = {e["name"]: e.get("value") for e in container(group)["env"]}
        assert {name: set_here[name] for name in ours} == {name: CLUSTER_ENVIRONMENT[name] for name in ours}


def test_the_chart_names_the_version_of_ray_that_we_install() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    locked = re.search(r"^ray\S*==([0-9.]+)", (CHART.parents[1] / "requirements" / "lock.txt").read_text(), re.M)
    assert locked is not None
    assert chart["annotations"]["llama31/ray-version"] == locked[1]


def test_notes_name_a_client_that_fits() -> None:
    plain = helm("install", "llama", str(CHART), *preset("cpu"), "--dry-run=client")
    assert 'llama31 chat --address localhost:9000 "' in plain.stdout, plain.stderr
    assert "WARNING: everybody who reaches the Service may use it" in plain.stdout
    safe = helm("install", "llama", str(CHART), *VARIANTS["everything"], "--dry-run=client")
    assert 'echo "127.0.0.1 llama.default"' in safe.stdout
    assert 'llama31 chat --address llama.default:9000 --api-key-file key.txt --tls --ca-file ca.crt "' in safe.stdout
    mutual = helm("install", "llama", str(CHART), *VARIANTS["client-certificates"], "--dry-run=client")
    assert "--ca-file ca.crt --cert-file client.crt --key-file client.key" in mutual.stdout
    assert "--cacert ca.crt --cert client.crt --key client.key" in mutual.stdout
    assert "helm test is left out" in mutual.stdout
    for command in re.findall("llama31 chat .*", plain.stdout + safe.stdout + mutual.stdout):
        build_parser().parse_args(shlex.split(command)[1:])
    assert "it needs 16 more nvidia.com/gpu" in safe.stdout


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_the_chart_passes_lint(program: str) -> None:
    for name in PRESETS:
        done = helm("lint", "--strict", str(CHART), *preset(name), program=program)
        assert done.returncode == 0, done.stdout


def _by_name(objects: tuple[Object, ...]) -> dict[tuple[str, str], Object]:
    """Without the values of the Secret, which are drawn anew each time."""
    kept = ({k: v for k, v in obj.items() if (obj["kind"], k) != ("Secret", "data")} for obj in objects)
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in kept}


def _containers(objects: tuple[Object, ...]) -> Iterator[Object]:
    for obj in objects:
        for pod in [obj] if obj["kind"] == "Pod" else pod_templates(obj):
            yield from (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])


def _environment(objects: tuple[Object, ...]) -> Iterator[Object]:
    for each in _containers(objects):
        yield from each.get("env", ())
