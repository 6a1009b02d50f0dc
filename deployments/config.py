"""What can be configured? One frozen tree; the only reader of YAML and of the environment."""

from __future__ import annotations

import math
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from deployments.config_sections import (
    AutoscalingConfig,
    EnergyConfig,
    EngineConfig,
    HardwareConfig,
    IngressConfig,
    LocalClusterConfig,
    PlannedConfig,
    RouterConfig,
    Section,
    TracingConfig,
)
from llama31.errors import ConfigInvalid, ModelNotFound, PlanInvalid
from llama31.parallel import ParallelPlan, check_plan
from llama31.specs import ModelSpec, get_spec

# prometheus_client reads this variable itself, when it is first imported.
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CLUSTER_TOKEN_VARIABLE = "LLAMA31_CLUSTER_TOKEN"


def _is_plan(text: str) -> str:
    return str(ParallelPlan.parse(text))


class ServiceConfig(Section):
    """One model and everything needed to serve it."""

    model: str
    plan: Annotated[str, AfterValidator(_is_plan)] = "tp1"
    replicas: int = Field(default=1, ge=1, le=1000)
    engine: EngineConfig = EngineConfig()
    hardware: HardwareConfig = HardwareConfig()
    ingress: IngressConfig = IngressConfig()
    router: RouterConfig = RouterConfig()
    energy: EnergyConfig | None = EnergyConfig()
    local_cluster: LocalClusterConfig | None = None
    tracing: TracingConfig | None = None
    planned: PlannedConfig | None = None
    autoscaling: AutoscalingConfig | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> ServiceConfig:
        spec = get_spec(self.model)
        check_plan(spec, self.parallel_plan)
        if self.engine.max_model_tokens > spec.context_tokens:
            raise ValueError(
                f"engine.max_model_tokens is {self.engine.max_model_tokens}; "
                f"{spec.name} was trained for {spec.context_tokens}"
            )
        if (scaling := self.autoscaling) and not scaling.min_replicas and scaling.lead_s > self.ingress.hold_s:
            raise ValueError(
                f"autoscaling.min_replicas is 0 and a start takes lead_s, {scaling.lead_s:g} s; a request waits only "
                f"ingress.hold_s, {self.ingress.hold_s:g} s, for the first replica: raise hold_s"
            )
        if self.autoscaling and self.replicas > self.autoscaling.max_replicas:
            most = self.autoscaling.max_replicas
            raise ValueError(
                f"replicas is {self.replicas}, how many there are at first; autoscaling.max_replicas is {most}"
            )
        if self.engine.device == "cpu" and self.engine.kv_cache_bytes is None:
            raise ValueError("engine.kv_cache_bytes must be set when engine.device is cpu")
        return self

    @property
    def spec(self) -> ModelSpec:
        """The model's numbers."""
        return get_spec(self.model)

    @property
    def first_replicas(self) -> int:
        """How many there are when the service starts."""
        return max(self.replicas, self.autoscaling.min_replicas) if self.autoscaling else self.replicas

    @property
    def late_after_s(self) -> float:
        """A request with a later first token yields to others of its tenant; infinity: none does."""
        return self.autoscaling.slo_ttft_s if self.autoscaling and self.autoscaling.late_yield else math.inf

    @property
    def parallel_plan(self) -> ParallelPlan:
        """How each replica is split."""
        return ParallelPlan.parse(self.plan)


def shipped_configs() -> tuple[str, ...]:
    """Names that `--config` takes besides a path."""
    folder = resources.files("deployments") / "configs"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> ServiceConfig:
    """Reads a shipped configuration by name or a file; `overrides` replace keys ("ingress.port": 9001).

    Raises: ConfigInvalid, with every fault on a line of its own; PlanInvalid.
    """
    tree = read_tree(name_or_path)
    for path, value in (overrides or {}).items():
        _put(tree, path, value)
    return parse_config(tree, name_or_path)


def parse_config(tree: dict[str, Any], source: str) -> ServiceConfig:
    """Validates a tree. Raises: ConfigInvalid, PlanInvalid."""
    try:
        return ServiceConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigInvalid(f"{source} is not a valid configuration:\n  " + fault_lines(error)) from None
    except (ModelNotFound, PlanInvalid) as error:
        kind = PlanInvalid if isinstance(error, PlanInvalid) else ConfigInvalid
        raise kind(f"{source}: {error}") from None


def cache_dir() -> Path:
    """Where prepared checkpoints live: XDG_CACHE_HOME/llama31, by default ~/.cache/llama31."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "llama31"


def run_dir() -> Path:
    """Where a running service leaves its address for `llama31 status`, readable by its user alone."""
    root = os.environ.get("XDG_RUNTIME_DIR")
    return Path(root) / "llama31" if root else cache_dir() / "run"


def cluster_token() -> str:
    """The secret that the operator gave for the links between ingresses and replicas; empty if none."""
    return os.environ.get(CLUSTER_TOKEN_VARIABLE, "")


def node_dir() -> Path:
    """Where the processes of one node meet when no `llama31 serve` made a directory: the same path on every node."""
    return Path(tempfile.gettempdir()) / f"llama31-{os.getuid()}"


def metrics_directory() -> Path:
    """This process's metrics directory, made if needed: where prometheus_client was told to write.

    Raises: ConfigInvalid if it is another user's, who could read and replace what is in it.
    """
    directory = Path(os.environ[METRICS_VARIABLE])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise ConfigInvalid(f"{directory} belongs to another user: remove it")
    return directory


def checkpoint_dir(config: ServiceConfig) -> Path:
    """The directory with the weights: the configured one, or the prepared one in the cache."""
    if config.engine.checkpoint:
        return Path(config.engine.checkpoint)
    return cache_dir() / (f"{config.model}-dummy" if config.engine.weights == "dummy" else config.model)


def read_yaml(path: str, hint: str = "") -> dict[str, Any]:
    """A file that holds one mapping. Raises: ConfigInvalid; `hint` follows on a file that is not there."""
    try:
        return _mapping(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path} is not text in UTF-8") from None


def yaml_text(tree: dict[str, Any]) -> str:
    """A tree as `read_yaml` reads it, keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False)


def fault_lines(error: ValidationError) -> str:
    """Every fault on a line of its own: where, and what."""
    return "\n  ".join(_fault(entry) for entry in error.errors(include_url=False))


def read_tree(name_or_path: str) -> dict[str, Any]:
    """A shipped configuration by name, or a file. Raises: ConfigInvalid."""
    known = shipped_configs()
    if name_or_path not in known:
        return read_yaml(name_or_path, f"; give a file or one of: {', '.join(known)}")
    return _mapping((resources.files("deployments") / "configs" / f"{name_or_path}.yaml").read_text(), name_or_path)


class _UniqueKeys(yaml.SafeLoader):
    """A key that stands twice is an error: YAML would drop the first one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader, which calls this for every mapping."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} stands twice in line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{source} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise ConfigInvalid(f"{source} must be a mapping")
    return tree


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[key] = value


def _fault(entry: Any) -> str:
    where = ".".join(str(part) for part in entry["loc"]) or "configuration"
    return f"{where}: {entry['msg'].removeprefix('Value error, ')}"
