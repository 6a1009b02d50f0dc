"""How does a Prometheus run beside a local service: what does it scrape, when is it ready, and how is it asked?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from deployments.observe.alerts.terms import JOB
from deployments.observe.rules_file import rules_file
from llama31.errors import SetupError

PROGRAM = "prometheus"
HOST = "127.0.0.1"
SCRAPE_EVERY_S = 5
READY_LIMIT_S = 30.0
END_LIMIT_S = 10.0
QUERY_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Series:
    """One answer: its labels and its points (Unix time, value), without those that are no number."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """A running one, asked over its HTTP API. Whatever it refuses is a ValueError with its words."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def now(self, expr: str) -> list[Series]:
        """The present value of every series."""
        data = await self._ask("query", query=expr)
        if data["resultType"] == "scalar":
            return [Series({}, _numbers([data["result"]]))]
        return [Series(series["metric"], _numbers([series["value"]])) for series in data["result"]]

    async def over(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """The values of every series between two times."""
        data = await self._ask("query_range", query=expr, start=f"{start_s}", end=f"{end_s}", step=f"{step_s}")
        return [Series(series["metric"], _numbers(series["values"])) for series in data["result"]]

    async def values(self, series: str, label: str) -> list[str]:
        """The values of a label of a series."""
        found: list[str] = await self._ask(f"label/{label}/values", **{"match[]": series})
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule with its state."""
        data = await self._ask("rules")
        return [rule for group in data["groups"] for rule in group["rules"]]

    async def targets(self) -> list[dict[str, Any]]:
        """What is scraped, and how that goes."""
        data = await self._ask("targets", state="active")
        found: list[dict[str, Any]] = data["activeTargets"]
        return found

    async def _ask(self, what: str, **parameters: str) -> Any:
        try:
            async with self._session.get(f"{self.url}/api/v1/{what}", params=parameters) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            raise ValueError(f"Prometheus does not answer: {str(error) or type(error).__name__}") from None
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]


@asynccontextmanager
async def running(metrics_url: str) -> AsyncIterator[Prometheus]:
    """A Prometheus on a free port of the loopback that scrapes this address; ends with the context, and its files.

    Raises: SetupError.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise SetupError(f"the program {PROGRAM} is not installed: run `make setup-full`, or install it yourself")
    with tempfile.TemporaryDirectory(prefix="llama31-observe-") as name:
        home, port = Path(name), await _free_port()
        _write_configuration(home, metrics_url)
        limit = aiohttp.ClientTimeout(total=QUERY_LIMIT_S)
        async with _process(program, home, port) as process, aiohttp.ClientSession(timeout=limit) as session:
            prometheus = Prometheus(session, f"http://{HOST}:{port}")
            await _wait_ready(process, session, prometheus.url, home)
            yield prometheus


def configuration(metrics_url: str) -> dict[str, Any]:
    """Prometheus' configuration; files are named from the directory that it lies in."""
    every = f"{SCRAPE_EVERY_S}s"
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [urlsplit(metrics_url).netloc]}]}],
    }


def _write_configuration(home: Path, metrics_url: str) -> None:
    # JSON is YAML.
    (home / "prometheus.yml").write_text(json.dumps(configuration(metrics_url)), encoding="utf-8")
    (home / "rules.yaml").write_text(rules_file(), encoding="utf-8")


@asynccontextmanager
async def _process(program: str, home: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=warn",
            stdout=log,
            stderr=log,
            # Ctrl-C reaches this process alone, which then ends that one.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_LIMIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _wait_ready(
    process: asyncio.subprocess.Process, session: aiohttp.ClientSession, url: str, home: Path
) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_LIMIT_S):
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/-/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
    lines = (home / "log").read_text(errors="replace").splitlines()
    raise SetupError(f"{PROGRAM} did not start: {lines[-1] if lines else 'it says nothing'}")


async def _free_port() -> int:
    server = await asyncio.start_server(lambda reader, writer: None, HOST, 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def _numbers(points: Sequence[tuple[float, str]]) -> tuple[tuple[float, float], ...]:
    pairs = ((float(at_s), float(value)) for at_s, value in points)
    return tuple((at_s, value) for at_s, value in pairs if math.isfinite(value))
