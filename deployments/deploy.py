"""How does the application get onto a Ray cluster, when is it ready, and how is it taken off?"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.ray_cluster import snapshot
from deployments.app import APP_NAME, build_app
from deployments.check import check_room, what_is_missing
from deployments.config import ServiceConfig
from deployments.directory import (
    IngressRecord,
    ReplicaRecord,
    find_directory,
    left_group_sweeper,
    open_directory,
)
from deployments.ledger import find_ledger
from llama31.errors import EngineFailed, PlacementRefused

Progress = Callable[[str], None]
READY_TIMEOUT_S = 1800.0
POLL_S = 0.3
LOOK_AGAIN_S = 2.0


class RunningApplication:
    """One service on the cluster that this process has joined."""

    def __init__(self, config: ServiceConfig, progress: Progress, dashboard_url: str = "") -> None:
        self._config = config
        self._dashboard_url = dashboard_url
        self._progress = progress
        # Node-local files of all processes: metrics, unix sockets.
        self.run_directory = Path(tempfile.mkdtemp(prefix="llama31-run-"))
        self._is_deployed = False

    def start(self) -> IngressRecord:
        """Deploys, shows what the replicas do, and returns an ingress once all of them are ready.

        Raises: PlacementRefused, EngineFailed; nothing stays deployed then.
        """
        config = self._config
        try:
            sweep_left_groups()
            check_room(config, snapshot())
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            self._progress(f"deploying {config.first_replicas} x {config.model} as {config.plan}")
            self._is_deployed = True
            open_directory()
            serve.start(proxy_location="Disabled")
            application = build_app(config, self.run_directory, self._dashboard_url)
            target = serve.RunTarget(application, name=APP_NAME, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)
            return self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drains the application and takes it off the cluster; idempotent."""
        if self._is_deployed and ray.is_initialized():
            self._is_deployed = False
            self._progress("draining")
            with contextlib.suppress(RayError):
                serve.delete(APP_NAME)
                for actor in (find_directory(), find_ledger()):
                    if actor is not None:
                        ray.kill(actor)
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def _wait_ready(self) -> IngressRecord:
        """Shows each change of each replica; fails as soon as one says why it cannot start."""
        shown: dict[str, str] = {}
        began_s = time.monotonic()
        while time.monotonic() < began_s + READY_TIMEOUT_S:
            records = read_directory()
            if len(records) < self._config.replicas:
                self._check_patience(time.monotonic() - began_s, len(records))
            for record in records:
                line = f"replica {record.replica_id}: {record.phase} {record.detail}".rstrip()
                if shown.get(record.replica_id) != line:
                    shown[record.replica_id] = line
                    self._progress(line)
                if record.phase == "failed":
                    raise EngineFailed(record.detail)
            application = serve.status().applications[APP_NAME]
            if application.status == "DEPLOY_FAILED":
                raise EngineFailed(last_line(application.message))
            ready = sum(record.phase == "ready" for record in records)
            if ready >= self._config.first_replicas and application.status == "RUNNING":
                ingresses = read_ingresses()
                if len(ingresses) >= self._config.ingress.replicas:
                    return ingresses[0]
            time.sleep(POLL_S)
        raise EngineFailed(f"not ready after {READY_TIMEOUT_S:g} s; see the Ray dashboard")

    def _check_patience(self, waited_s: float, there: int) -> None:
        """Raises: PlacementRefused if replicas have waited long enough for their placement groups."""
        config = self._config
        if waited_s < config.engine.placement_timeout_s:
            return
        missing = config.replicas - there
        why = what_is_missing(config, snapshot(), missing) or "the cluster has room for them, but Ray gave none"
        raise PlacementRefused(
            f"{missing} of {config.replicas} replicas have no placement group after {waited_s:.0f} s "
            f"(engine.placement_timeout_s). {why}"
        )


def sweep_left_groups() -> None:
    """What a service that ended in a hurry left on the joined cluster must not stand in this one's way."""
    sweeper = left_group_sweeper()
    sweeper.look()
    if sweeper.suspects:
        time.sleep(LOOK_AGAIN_S)
        sweeper.look()


def read_directory() -> tuple[ReplicaRecord, ...]:
    """The announced replicas of the joined cluster, none if there is no directory yet."""
    directory = find_directory()
    if directory is None:
        return ()
    records: tuple[ReplicaRecord, ...] = ray.get(directory.list.remote(), timeout=10)
    return records


def read_ingresses() -> tuple[IngressRecord, ...]:
    """The announced ingress processes of the joined cluster."""
    directory = find_directory()
    if directory is None:
        return ()
    records: tuple[IngressRecord, ...] = ray.get(directory.ingresses.remote(), timeout=10)
    return records


def application_state() -> str:
    """What Serve says of the application on the joined cluster, in one line."""
    application = serve.status().applications.get(APP_NAME)
    if application is None:
        return "nothing is deployed on this cluster; serve with 'llama31 serve --address' or a Serve config"
    wrong = f": {last_line(application.message)}" if application.message else ""
    return f"{application.status.value}{wrong}"


def last_line(text: str) -> str:
    """The last line that says something: where libraries put the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
