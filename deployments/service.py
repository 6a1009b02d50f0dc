"""How does a whole service start on one machine, where is it reached, and how does it end?"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.local import LocalCluster, LocalClusterSettings, machine_gpus
from deployments.check import check_room
from deployments.config import ServiceConfig, checkpoint_dir, run_dir
from deployments.config_sections import IngressConfig
from deployments.ingress.tls import check_tls_files
from deployments.tenants_file import load_tenants
from deployments.weights import prepare_weights
from llama31.checkpoint import verify_checkpoint
from llama31.errors import ClusterRefused, PortInUse

if TYPE_CHECKING:
    from deployments.deploy import RunningApplication
    from deployments.directory import IngressRecord, ReplicaRecord

Progress = Callable[[str], None]
KNOCK_S = 5.0


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
    tls: bool = False
    asks_for_key: bool = False
    http: str = ""


class Service:
    """One service: its cluster (own or given), its application, its address file.

    Ray is imported when it is needed: it reads its environment then, and it is slow to import.
    """

    def __init__(self, config: ServiceConfig, progress: Progress, ray_address: str = "") -> None:
        self._config = config
        self._progress = progress
        self._given_address = ray_address
        self._cluster = None if ray_address else LocalCluster(local_cluster_settings(config), progress)
        self._application: RunningApplication | None = None
        self._address_file: Path | None = None

    def start(self) -> ServiceAddress:
        """Starts everything and returns when every replica answers.

        Raises: SetupError classes; whatever was started is stopped first.
        """
        try:
            self._check()
            if self._cluster is None:
                connect(self._given_address)
            else:
                self._cluster.start()
            from deployments.deploy import RunningApplication

            dashboard_url = self._cluster.dashboard_url if self._cluster else ""
            self._application = RunningApplication(self._config, self._progress, dashboard_url)
            return self._publish(self._application.start())
        except BaseException:
            self.stop()
            raise

    def records(self) -> tuple[ReplicaRecord, ...]:
        """What the replicas announce."""
        from deployments.deploy import read_directory

        return read_directory()

    def stop(self) -> None:
        """Drains, then ends every process and removes every file that `start` made; idempotent."""
        if self._address_file is not None:
            self._address_file.unlink(missing_ok=True)
            self._address_file = None
        if self._application is not None:
            self._application.stop()
            self._application = None
        if self._cluster is not None:
            self._cluster.stop()
        else:
            import ray

            ray.shutdown()

    def _check(self) -> None:
        """Everything that can be refused before something slow starts."""
        config, ingress = self._config, self._config.ingress
        check_security_files(ingress)
        check_port(ingress.host, ingress.port, "--port")
        check_port(ingress.host, ingress.http_port or 0, "--http-port")
        check_port(ingress.metrics_host, ingress.metrics_port, "--metrics-port")
        if self._cluster is not None:
            check_room(config, self._cluster.topology())
        prepare_weights(config, self._progress)
        if config.engine.kind == "vllm" and config.engine.weights == "checkpoint":
            self._progress("checking the weights")
            verify_checkpoint(checkpoint_dir(config), specs=(config.spec,))

    def _publish(self, record: IngressRecord) -> ServiceAddress:
        ingress, cluster = self._config.ingress, self._cluster
        scheme = "http" if ingress.tls is None else "https"
        address = ServiceAddress(
            pid=os.getpid(),
            model=self._config.model,
            grpc=f"{reachable_host(ingress.host)}:{record.grpc_port}",
            metrics=record.metrics,
            dashboard=cluster.dashboard_url if cluster else "",
            ray_address=cluster.address if cluster else self._given_address,
            ray_token=cluster.token if cluster else "",
            tls=ingress.tls is not None,
            asks_for_key=ingress.auth is not None,
            http="" if record.http_port is None else f"{scheme}://{reachable_host(ingress.host)}:{record.http_port}",
        )
        directory = run_dir()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address_file = directory / f"serve-{record.grpc_port}.json"
        descriptor = os.open(self._address_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
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


@contextlib.contextmanager
def joined(ray_address: str, token: str = "") -> Iterator[None]:
    """A visit to a cluster. Raises: ClusterRefused."""
    connect(ray_address, token)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def connect(ray_address: str, token: str = "") -> None:
    """Joins a cluster as a driver. Raises: ClusterRefused."""
    _knock(ray_address)
    if token:
        # Ray reads both when it is first imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    import ray

    try:
        ray.init(address=ray_address, namespace="llama31", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ClusterRefused(
            f"no Ray cluster answers at {ray_address}: {reason[0] if reason else 'no reason'}"
        ) from None


def _knock(ray_address: str) -> None:
    """Ray itself would try for two minutes. Raises: ClusterRefused if nobody listens there."""
    host, _, port = ray_address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except OSError as error:
        raise ClusterRefused(f"no Ray cluster answers at {ray_address}: {error.strerror or error}") from None


def check_security_files(ingress: IngressConfig) -> None:
    """Raises: ConfigInvalid for a tenants file, certificate or key that the ingress could not use."""
    if ingress.auth is not None:
        load_tenants(ingress.auth.tenants_file)
    if ingress.tls is not None:
        check_tls_files(ingress.tls)


def reachable_host(host: str) -> str:
    """What a client on this machine calls a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)


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
