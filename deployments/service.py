"""How does a whole service start, show how far it is, and end without leaving anything behind?"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.local import LocalCluster, LocalClusterSettings, machine_gpus
from cluster.placement import place_replicas
from cluster.policy import Topology
from deployments.config import ServiceConfig, checkpoint_dir, run_dir
from llama31.checkpoint import verify_checkpoint
from llama31.errors import ClusterRefused, EngineFailed, PortInUse

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

    from deployments.directory import ReplicaRecord

Progress = Callable[[str], None]
READY_TIMEOUT_S = 1800.0
POLL_S = 0.3


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where a running service is reached; what `llama31 status` and `chat` read."""

    pid: int
    model: str
    grpc: str
    metrics: str
    dashboard: str
    ray_address: str
    ray_token: str


class Service:
    """One deployed service: its cluster (own or given), its application, its address file."""

    def __init__(self, config: ServiceConfig, progress: Progress, ray_address: str = "") -> None:
        self._config = config
        self._progress = progress
        self._given_address = ray_address
        self._cluster: LocalCluster | None = None
        self._metrics_dir = Path(tempfile.mkdtemp(prefix="llama31-metrics-"))
        self._address_file: Path | None = None
        self._is_deployed = False

    def start(self) -> ServiceAddress:
        """Starts everything and returns when every replica answers.

        Raises: SetupError classes; whatever was started is stopped first.
        """
        config = self._config
        try:
            check_port(config.ingress.host, config.ingress.port, "--port")
            check_port(config.ingress.metrics_host, config.ingress.metrics_port, "--metrics-port")
            if not self._given_address:
                check_room(config, LocalCluster(local_cluster_settings(config), self._progress).topology())
            if config.engine.kind == "vllm" and config.engine.weights == "checkpoint":
                self._progress("checking the weights")
                verify_checkpoint(checkpoint_dir(config))
            self._join_cluster()
            self._deploy()
            port = self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self._publish(port)

    def records(self) -> tuple[ReplicaRecord, ...]:
        """What the replicas announce."""
        return read_directory()

    def stop(self) -> None:
        """Drains, then ends every process and removes every file that `start` made; idempotent."""
        if self._address_file is not None:
            self._address_file.unlink(missing_ok=True)
            self._address_file = None
        import ray

        if ray.is_initialized():
            if self._is_deployed:
                undeploy(self._progress)
            if self._cluster is None:
                ray.shutdown()
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None
        shutil.rmtree(self._metrics_dir, ignore_errors=True)

    def _join_cluster(self) -> None:
        if self._given_address:
            connect(self._given_address)
            return
        self._cluster = LocalCluster(local_cluster_settings(self._config), self._progress)
        self._cluster.start()

    def _deploy(self) -> None:
        from cluster.ray_cluster import snapshot
        from deployments.app import deploy

        check_room(self._config, snapshot())
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._progress(f"deploying {self._config.replicas} x {self._config.model} as {self._config.plan}")
        self._is_deployed = True
        deploy(self._config, secrets.token_hex(32), str(self._metrics_dir))

    def _wait_ready(self) -> int:
        """Shows each change of each replica; fails as soon as one says why it cannot start."""
        from deployments.app import APP_NAME

        shown: dict[str, str] = {}
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            records = read_directory()
            for record in records:
                line = f"replica {record.replica_id}: {record.phase} {record.detail}".rstrip()
                if shown.get(record.replica_id) != line:
                    shown[record.replica_id] = line
                    self._progress(line)
                if record.phase == "failed":
                    raise EngineFailed(record.detail)
            application = serve_status(APP_NAME)
            if application.status == "DEPLOY_FAILED":
                raise EngineFailed(_last_line(application.message))
            ready = sum(record.phase == "ready" for record in records)
            if ready >= self._config.replicas and application.status == "RUNNING":
                return ingress_port(APP_NAME)
            time.sleep(POLL_S)
        raise EngineFailed(f"not ready after {READY_TIMEOUT_S:g} s; see the Ray dashboard")

    def _publish(self, port: int) -> ServiceAddress:
        ingress, cluster = self._config.ingress, self._cluster
        address = ServiceAddress(
            pid=os.getpid(),
            model=self._config.model,
            grpc=f"{ingress.host}:{port}",
            metrics=f"http://{ingress.metrics_host}:{ingress.metrics_port}/metrics" if ingress.metrics_port else "",
            dashboard=cluster.dashboard_url if cluster else "",
            ray_address=cluster.address if cluster else self._given_address,
            ray_token=cluster.token if cluster else "",
        )
        directory = run_dir()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address_file = directory / f"serve-{port}.json"
        with os.fdopen(os.open(self._address_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(address), file)
        return address


def running_services() -> Iterator[ServiceAddress]:
    """The services of this user that run now, youngest first; files of dead ones are removed."""
    files = sorted(run_dir().glob("serve-*.json"), key=lambda f: f.stat().st_mtime, reverse=True)
    for file in files:
        address = ServiceAddress(**json.loads(file.read_text()))
        if Path(f"/proc/{address.pid}").exists():
            yield address
        else:
            file.unlink(missing_ok=True)


def connect(ray_address: str, token: str = "") -> None:
    """Joins a cluster as a driver. Raises: ClusterRefused."""
    if token:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    import ray

    try:
        ray.init(address=ray_address, namespace="llama31", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ClusterRefused(f"no Ray cluster answers at {ray_address}: {_last_line(str(error))}") from None


def read_directory() -> tuple[ReplicaRecord, ...]:
    """The announced replicas, none if there is no directory yet."""
    import ray

    from deployments.directory import find_directory

    directory = find_directory()
    if directory is None:
        return ()
    records: tuple[ReplicaRecord, ...] = ray.get(directory.list.remote(), timeout=10)
    return records


def check_port(host: str, port: int, option: str) -> None:
    """Raises: PortInUse, before anything slow has been started."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise PortInUse(host, port, option) from None


def local_cluster_settings(config: ServiceConfig) -> LocalClusterSettings:
    """The cluster to start here: the configured stand-in, or one node with this machine's GPUs."""
    local = config.local_cluster
    if local is None:
        return LocalClusterSettings(1, machine_gpus(), os.cpu_count() or 1)
    return LocalClusterSettings(local.nodes, local.gpus_per_node, local.cpus_per_node, local.dashboard_port)


def check_room(config: ServiceConfig, topology: Topology) -> None:
    """Checks that the cluster holds every replica now. Raises: PlacementRefused."""
    if config.engine.kind == "vllm":
        engine = config.engine
        place_replicas(topology, config.parallel_plan, config.replicas, engine.replica_cpus, engine.rank_cpus)


def undeploy(progress: Progress) -> None:
    """Drains the application and takes it off the cluster."""
    import ray
    from ray import serve

    from deployments.app import APP_NAME
    from deployments.directory import find_directory

    progress("draining")
    with contextlib.suppress(ray.exceptions.RayError):
        serve.delete(APP_NAME)
        if (directory := find_directory()) is not None:
            ray.kill(directory)


def serve_status(app_name: str) -> ApplicationStatusOverview:
    """Serve's view of the application."""
    from ray import serve

    return serve.status().applications[app_name]


def ingress_port(app_name: str) -> int:
    """The port that the ingress opened."""
    from ray import serve

    port: int = serve.get_deployment_handle("ingress", app_name).port.remote().result(timeout_s=30)
    return port


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
