"""Which sections does the configuration have besides the service itself, and what holds in each?"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cluster.energy import Footprint, PowerEnvelope
from cluster.hardware import DEFAULT_GPU, ISLAND_GPUS
from deployments.policies.autoscaler import ScalingRules
from deployments.policies.language import LanguageMode

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for text in (*labels, *labels.values()):
        if not _LABEL.fullmatch(text):
            raise ValueError(f"{text!r} cannot be a node label: a-z A-Z 0-9 . _ - / and at most 126 characters")
    return labels


_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,124}[A-Za-z0-9])?")
NodeLabels = Annotated[
    dict[str, str],
    AfterValidator(_are_labels),
    Field(description="only on nodes that have all of these Ray labels; empty: on any"),
]


def _is_otlp_endpoint(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+/?", text):
        raise ValueError("must be http://HOST:PORT (plaintext) or https://HOST:PORT (TLS), without a path")
    return text


class ScriptConfig(Section):
    """Times of the scripted engine, which answers with the prompt's own tokens."""

    step_s: float = Field(default=0.02, ge=0)
    load_s: float = Field(default=0.0, ge=0)
    prefix_cache_tokens: int = Field(default=0, ge=0, description="prompts that are found again; 0: none")


class EngineConfig(Section):
    """What one replica runs and on which hardware."""

    kind: Literal["vllm", "scripted"] = "vllm"
    device: Literal["cuda", "cpu"] = "cuda"
    checkpoint: Annotated[str | None, Field(description="directory; absent = a prepared one")] = None
    weights: Literal["checkpoint", "dummy"] = "checkpoint"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    max_model_tokens: int = Field(default=131_072, ge=16)
    max_running: int = Field(default=256, ge=1, le=4096)
    max_batched_tokens: int = Field(default=8192, ge=16)
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    kv_cache_bytes: int | None = Field(default=None, ge=1 << 20)
    eager: bool = False
    prefix_caching: bool = True
    replica_cpus: float = Field(default=1.0, gt=0)
    rank_cpus: float = Field(default=1.0, ge=0)
    step_timeout_s: int = Field(default=60, ge=1, description="a step that takes longer ends the engine")
    placement_timeout_s: int = Field(
        default=900, ge=1, description="a replica that has found no room for all its ranks by then is reported in words"
    )
    node_labels: NodeLabels = {}
    script: ScriptConfig = ScriptConfig()


class HardwareConfig(Section):
    """The GPU that `--check` reckons with. Usable bytes, not the label on the box."""

    gpu: str = DEFAULT_GPU.name
    gpus_per_node: int = Field(default=ISLAND_GPUS, ge=1)
    gpu_usable_bytes: int = Field(default=DEFAULT_GPU.usable_bytes, ge=1 << 20)


class LocalClusterConfig(Section):
    """The stand-in cluster of `llama31 serve` without --address. Absent = there is none to start."""

    nodes: int = Field(default=2, ge=1, le=16)
    gpus_per_node: int = Field(default=2, ge=0, le=64)
    cpus_per_node: int = Field(default=8, ge=1)
    dashboard_port: int = Field(default=8265, ge=0, le=65535)


class AuthConfig(Section):
    """API keys. Without this section nobody is asked for one."""

    tenants_file: str = Field(min_length=1, description="YAML; read again when it is replaced")


class TlsConfig(Section):
    """Files in PEM, read again when they are replaced. With `client_ca_file` clients need a certificate of it."""

    cert_file: str = Field(min_length=1)
    key_file: str = Field(min_length=1)
    client_ca_file: str | None = None


class LanguageConfig(Section):
    """What happens with text outside the model's languages, for tenants that have no mode of their own."""

    mode: LanguageMode = "off"


class EnergyConfig(Section):
    """How energy and CO2e are counted (docs/energy.md): measured where NVML answers, else modelled from the watts."""

    idle_watts: float | None = Field(default=None, ge=0, description="of one GPU with its weights, without work")
    peak_watts: float | None = Field(default=None, gt=0, description="of one GPU at work; absent: nothing is modelled")
    pue: float = Field(default=1.0, ge=1, description="of the site; 1.0 where grams_co2e_per_kwh holds it already")
    grams_co2e_per_kwh: float = Field(default=410.0, ge=0, description="the model card's own; it holds the PUE")

    @model_validator(mode="after")
    def _is_an_envelope(self) -> EnergyConfig:
        if (self.idle_watts is None) != (self.peak_watts is None):
            raise ValueError("set idle_watts and peak_watts, or neither")
        if self.idle_watts is not None and self.peak_watts is not None and self.idle_watts > self.peak_watts:
            raise ValueError(f"idle_watts is {self.idle_watts:g}, more than peak_watts, {self.peak_watts:g}")
        return self

    @property
    def envelope(self) -> PowerEnvelope | None:
        """What is modelled where nothing measures."""
        if self.idle_watts is None or self.peak_watts is None:
            return None
        return PowerEnvelope(self.idle_watts, self.peak_watts)

    @property
    def footprint(self) -> Footprint:
        """What a joule of the boards means for site and grid."""
        return Footprint(self.pue, self.grams_co2e_per_kwh)


class IngressConfig(Section):
    """The door. Beyond loopback it needs keys and TLS, each unless a flag says that it is meant."""

    replicas: int = Field(default=1, ge=1, le=100, description="processes; those of one node share its ports")
    max_per_node: Annotated[int | None, Field(ge=1, le=100, description="null: as many as Ray puts there")] = None
    node_labels: NodeLabels = {}
    host: str = "127.0.0.1"
    port: int = Field(default=9000, ge=0, le=65535)
    http_port: Annotated[int | None, Field(ge=0, le=65535, description="OpenAI API and status page; null: none")] = 8000
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9400, ge=0, le=65535)
    reflection: bool = True
    drain_s: float = Field(default=20.0, ge=0)
    max_output_tokens: int = Field(default=4096, ge=1, description="when the request names no limit")
    continue_within_s: float = Field(default=300.0, ge=0, description="a stream waits so long for another replica")
    max_requests: int = Field(default=8192, ge=1, description="in flight in one ingress; more are refused at once")
    hold_s: float = Field(default=30.0, ge=0, le=3600, description="a request waits so long for the first replica")
    auth: AuthConfig | None = None
    tls: TlsConfig | None = None
    language: LanguageConfig = LanguageConfig()
    show_tenant_names: bool = Field(default=False, description="in metrics; otherwise a short keyed hash of each")
    serve_without_keys: bool = Field(default=False, description="anybody who reaches the port may use it")
    serve_without_tls: bool = Field(default=False, description="keys and prompts are readable on the way")

    serve_metrics_openly: bool = Field(default=False, description="anybody who reaches the port may read them")

    @model_validator(mode="after")
    def _is_safe_and_consistent(self) -> IngressConfig:
        if self.replicas > 1 and 0 in (self.port, self.http_port):
            raise ValueError("several ingress processes (ingress.replicas) share a port: give one, not 0")
        if self.metrics_host not in LOOPBACK and not self.serve_metrics_openly:
            raise ValueError(
                f"ingress.metrics_host is {self.metrics_host}: metrics ask for no key, so only loopback, "
                "or set ingress.serve_metrics_openly if the network guards the port"
            )
        if self.host in LOOPBACK:
            return self
        open_to = f"ingress.host is {self.host}, which is more than loopback"
        if self.auth is None and not self.serve_without_keys:
            raise ValueError(f"{open_to}: set ingress.auth.tenants_file, or ingress.serve_without_keys to let all in")
        if self.tls is None and not self.serve_without_tls:
            raise ValueError(f"{open_to}: set ingress.tls, or ingress.serve_without_tls if TLS ends before this server")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the door."""
        return self.host in LOOPBACK


class RouterConfig(Section):
    """Which replica gets a request (docs/routing.md)."""

    policy: Literal["predicted", "least_tokens"] = "predicted"
    index_blocks: int = Field(default=1 << 18, ge=1024, description="of 128 tokens, known at once; 350 bytes each")


class AutoscalingConfig(Section):
    """Replicas follow the demand (docs/autoscaling.md). Without this section their number is fixed."""

    min_replicas: int = Field(default=1, ge=0, le=1000, description="0: none while nobody asks")
    max_replicas: int = Field(ge=1, le=1000)
    prompt_tokens_per_s: float = Field(gt=0, description="of one replica within the SLO, if it only read prompts")
    output_tokens_per_s: float = Field(gt=0, description="of one replica within the SLO, if it only wrote answers")
    slo_ttft_s: float = Field(default=2.0, gt=0, description="a first token that comes later is late")
    late_yield: bool = Field(default=True, description="held requests that cannot be on time wait behind others")
    lead_s: float = Field(default=65.0, gt=0, description="from the decision to a ready replica: measure it")
    late_price: float = Field(default=16.0, ge=0, description="a late request may cost so many times its own GPU time")
    tick_s: float = Field(default=5.0, ge=0.5, le=60, description="between decisions")
    measure_s: float = Field(default=30.0, ge=1, le=600, description="the demand is the mean of so long")
    keep_s: float = Field(default=60.0, ge=0, description="fewer replicas go once fewer were enough for so long")
    idle_s: float = Field(default=600.0, ge=0, description="the last one goes after so long without requests")
    decision_log: Annotated[str | None, Field(description="file on the head's node; null: in the run directory")] = None
    cluster_grows: bool = Field(default=False, description="something adds nodes for replicas that find no room")

    @model_validator(mode="after")
    def _is_a_range(self) -> AutoscalingConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, more than max_replicas, {self.max_replicas}")
        return self

    @property
    def rules(self) -> ScalingRules:
        """As the policy takes them."""
        return ScalingRules(**{name: getattr(self, name) for name in ScalingRules.__dataclass_fields__})


class TracingConfig(Section):
    """Where spans go. Without this section there are none."""

    otlp_endpoint: Annotated[str, AfterValidator(_is_otlp_endpoint), Field(description="of a collector, over gRPC")]
    sample_ratio: float = Field(default=1.0, ge=0, le=1, description="of requests whose caller did not decide")


class PlannedConfig(Section):
    """What `llama31 plan` promised of this service; `llama31 verify` and an alert compare it with what runs."""

    kv_tokens: int = Field(ge=0, description="of each replica")
    rate_per_s: float = Field(gt=0, description="requests/s of the whole service")
    ttft_p99_s: float = Field(gt=0)
    itl_p99_s: float = Field(gt=0)
    output_tokens_per_s: float = Field(gt=0, description="of the whole service at that rate")
