"""The one settings object: YAML file < environment < flags, frozen and validated.

A group of settings per package; ``wiring.py`` reads it once and passes the groups down.
Environment variables are ``MOE_SERVING_<GROUP>__<FIELD>``, e.g.
``MOE_SERVING_ROUTER__REST_PORT=8080``. Durations are seconds, sizes are bytes.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from serving.errors import SettingsError
from serving.yaml_text import NotYaml, read_yaml


def bundled_model() -> Path:
    """Return the folder of pocket-r1: inside an installed wheel, else in this checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "bundled" / "pocket-r1"
    return installed if installed.is_dir() else package.parent / "deploy" / "models" / "pocket-r1"


BUNDLED_MODEL = bundled_model()

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class Platform(StrEnum):
    """What the ranks run on."""

    CPU = "cpu"
    GPU = "gpu"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Group):
    """Which model is served and under which name."""

    path: str = str(BUNDLED_MODEL)
    """Folder with config, tokenizer and weights, or a hub id that is cached already."""
    name: str = "pocket-r1"
    """Model id that clients use."""


class GroupSettings(_Group):
    """The expert-parallel group: what one gang of ranks looks like and how many there are."""

    count: int = Field(1, ge=0, le=1024)
    """Number of groups."""
    data_parallel: int = Field(2, ge=1, le=1024)
    """Ranks in a group; the routed experts are split over data_parallel x tensor_parallel."""
    tensor_parallel: int = Field(1, ge=1, le=64)
    """Workers of one rank."""
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    """pack: as few nodes as hold it; spread: one rank a node where possible;
    strict_spread: one rank a node or not at all."""
    node_resource: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")
    """Custom Ray resource that only the nodes of these groups offer (a node pool); none: any node
    will do. Keeps a group from being spread over two pools."""
    cpus_per_rank: float = Field(1.0, gt=0)
    """Ray CPUs that a rank reserves beside the one of its Serve replica."""
    start_timeout: Seconds = 600.0
    """From asking for the gang to all ranks ready."""
    placement_timeout: Seconds = 60.0
    """How long a gang may be unplaceable before that is reported as an error."""


class EngineSettings(_Group):
    """vLLM in each rank."""

    kind: Literal["vllm", "fake"] = "vllm"
    """fake: no model, deterministic tokens; for tests and simulation."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """float32 makes greedy answers equal however the group is split."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest prompt plus output in tokens; none takes the model's own."""
    max_num_seqs: int = Field(64, ge=1)
    """Most sequences in one step of a rank."""
    speculative: Literal["none", "mtp"] = "none"
    """mtp: draft with the model's own multi-token-prediction layer."""
    speculative_tokens: int = Field(1, ge=1, le=8)
    """Tokens drafted a step with speculative mtp."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """CPU only: memory of a rank's KV cache."""
    threads_per_rank: int = Field(1, ge=1)
    """CPU only: OpenMP threads of a worker."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Any further vLLM engine argument (AsyncEngineArgs field: value); vLLM checks them."""


class RouterSettings(_Group):
    """Where a router listens and what it accepts."""

    host: str = "127.0.0.1"
    rest_port: Port = 8000
    grpc_port: Port = 50051
    join_host: str = "127.0.0.1"
    join_port: Port = 50052
    """Ranks dial this one."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Largest request body over REST and largest message over gRPC."""
    request_timeout: Seconds = 600.0
    """Deadline of a request that brings none of its own."""
    max_inflight_requests: int = Field(4096, ge=1)
    """More are refused with 429 / RESOURCE_EXHAUSTED."""
    max_streams_per_connection: int = Field(1024, ge=1)
    """Concurrent calls on one gRPC connection. Clients that know the limit wait or open another
    connection; calls over it are refused unprocessed (REFUSED_STREAM)."""
    max_choices: int = Field(128, ge=1)
    """Most choices (n) of one request; each takes a sequence of a rank."""
    keepalive_interval: Seconds = 10.0
    """After so long without output a streamed REST answer gets a comment, so that proxies keep
    the connection."""
    write_timeout: Seconds = 60.0
    """A client that takes nothing of what it is sent for so long is cut off (over REST on Linux
    only), and its request aborted."""
    drain_timeout: Seconds = 10.0
    """After SIGTERM, how long requests in flight may take to finish."""
    reasoning_parser: str | None = "deepseek_r1"
    """vLLM reasoning parser; none leaves reasoning in the content."""
    tool_parser: str | None = "deepseek_v3"
    """vLLM tool-call parser for tool_choice auto; none turns that choice off."""
    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    """What the grammar of tool calls enforces (vLLM's --tool-strict-level). auto: calls that a
    request forces, and the arguments of tools with strict: true. function: the form of every call.
    parameter: the arguments of every call too."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the REST API, e.g. https://chat.example.com; "*" allows
    every origin. Empty: none."""


class LinkSettings(_Group):
    """The stream between ranks and routers."""

    routers: tuple[str, ...] = ("127.0.0.1:50052",)
    """Addresses that ranks dial (host:port)."""
    connect_timeout: Seconds = 5.0
    hello_timeout: Seconds = 10.0
    backoff_initial: Seconds = 0.2
    backoff_max: Seconds = 5.0
    load_interval: Seconds = 0.5
    """Between two load snapshots."""
    keepalive: Seconds = 5.0
    """HTTP/2 ping interval; a peer that is silent for as long again is lost."""
    outbox_limit: int = Field(65536, ge=64)
    """Deltas waiting for a slow router before its requests are aborted."""
    max_frame_bytes: int = Field(64 * 2**20, ge=2**20)
    token_file: str | None = None
    """File on the rank's machine with the secret that lets it join; its first line is sent."""
    tls_ca_file: str | None = None
    """PEM file with the authorities that routers' certificates must come from; without it a
    rank dials in plain text."""
    tls_cert_file: str | None = None
    """PEM file with the rank's own certificate, where routers ask for one."""
    tls_key_file: str | None = None
    tls_server_name: str | None = None
    """Name that a router's certificate must hold; none: the host that is dialled, for
    dns:/// addresses the name that is resolved."""

    @model_validator(mode="after")
    def _check(self) -> "LinkSettings":
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: set both")
        if self.tls_cert_file is not None and self.tls_ca_file is None:
            raise ValueError("tls_cert_file needs tls_ca_file")
        return self


class FleetSettings(_Group):
    """Membership and failure detection in the router."""

    stall_timeout: Seconds = 10.0
    """An engine that has work and makes no step for so long counts as failed."""
    history_groups: int = Field(16, ge=0)
    """Groups that are gone and still shown in /fleet."""
    canary_timeout: Seconds = 30.0
    """How long each rank of a complete group may take for one token before it gets work."""
    max_resumes: int = Field(3, ge=0)
    """How often a request goes on after a group was lost under it; planned moves (drains) do not
    count."""
    suspect_tokens: int = Field(32, ge=0)
    """A group that is lost before it has generated so many tokens of a request may have died of
    it. 0 suspects no request."""
    suspect_losses: int = Field(2, ge=1)
    """So many such losses, the last one with no other suspect on the group, and the request is
    refused instead of tried on a further group. 1: refused with the first, whoever was beside."""


class AdmissionSettings(_Group):
    """Who is let in, in which order, and how long a request may wait (deploy/docs/admission.md)."""

    queue_requests: int = Field(1024, ge=1)
    """Most requests that wait for their turn; more are refused."""
    queue_tokens: int = Field(2_000_000, ge=1)
    """Most tokens, prompt and expected output, of all that wait."""
    ageing: Seconds = 15.0
    """A waiting request rises one priority class for every so many seconds."""
    max_wait: Seconds | None = 60.0
    """Interactive and standard requests that would wait longer are refused at once; none: only
    if they would wait past their deadline."""
    rate_window: Seconds = 30.0
    """Over how long the fleet's rate, from which waits are predicted, is averaged."""
    recheck_interval: Seconds = 0.1
    """How often the first request in the queue is tried when nothing else gives cause to."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Of a tenant for which the key file says nothing; none: no limit."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """The same; prompt and generated tokens."""
    concurrent_streams: int | None = Field(None, ge=1)
    """The same; requests in flight or waiting."""
    redis_url: str | None = Field(None, pattern=r"^(rediss?|unix)://")
    """Where several routers count quotas together (redis://host:6379/0); none: each for itself."""
    redis_password_file: str | None = None
    """File with the password for it; keep passwords out of the URL."""
    redis_timeout: Seconds = 0.25
    """How long Redis may take for an answer."""
    redis_down: Literal["open", "closed"] = "open"
    """When Redis does not answer: open lets each router count for itself meanwhile, closed
    refuses requests of limited tenants."""


class RaySettings(_Group):
    """The Ray cluster that holds the ranks."""

    address: str | None = None
    """Address of a running cluster; none starts a private one on loopback."""
    app_name: str = "moe-serving"
    dashboard: bool = False
    """Start the dashboard in a private cluster: Serve's REST interface, which the autoscaler
    needs, for about 600 MB and 5 s more."""
    dashboard_port: Port = 8265
    num_cpus: float | None = None
    """CPUs that a private cluster offers; none offers what the groups need."""


class SecuritySettings(_Group):
    """Who may use a router, and how its ports are protected. Files are read again when they
    change; a file that cannot be used leaves what was read before in force.
    """

    insecure: bool = False
    """Listen beyond this machine without keys, join credentials or TLS. For closed test
    networks only."""
    tls_elsewhere: bool = False
    """TLS ends in front of this process (ingress, service mesh): plain text beyond this
    machine is intended. Keys and join credentials are asked for all the same."""
    keys_file: str | None = None
    """YAML file with hashed API keys (moe-serving keys new makes them); none: no keys are asked
    for and everybody may do everything."""
    operator_key_file: str | None = None
    """File with one more key, in plain text and with role admin, that moe-serving up makes for
    its own look at the router; means nothing without keys_file."""
    open_metrics: bool = False
    """Whether /metrics is shown without a key; else it takes role metrics or admin."""
    tls_cert_file: str | None = None
    """PEM file with the certificate chain of REST and gRPC; none: plain text."""
    tls_key_file: str | None = None
    """PEM file with its private key, without a password."""
    tls_client_ca_file: str | None = None
    """PEM file with authorities: REST and gRPC clients must show a certificate of theirs."""
    operator_tls_cert_file: str | None = None
    """PEM file with the certificate that moe-serving up, status, chat and drain show to the router
    of this machine where tls_client_ca_file asks for one."""
    operator_tls_key_file: str | None = None
    """PEM file with its private key, without a password."""
    join_token_file: str | None = None
    """File with the secrets that let ranks join, one a line: two while one replaces another."""
    join_tls_cert_file: str | None = None
    """As tls_cert_file, for the port that ranks join."""
    join_tls_key_file: str | None = None
    join_tls_client_ca_file: str | None = None
    """PEM file with authorities: ranks must show a certificate of theirs."""
    reload_interval: Seconds = 5.0
    """Between two looks at whether one of these files has changed."""
    max_header_bytes: int = Field(32 * 2**10, ge=2**10)
    """Request line and headers over REST, metadata over gRPC."""
    max_headers: int = Field(100, ge=8)
    """Headers of a request over REST."""
    max_body_values: int = Field(16_384, ge=256)
    """Objects, lists and commas in the body of a request over REST, set fields and items in one
    over gRPC; half as many for /v1/responses, where each costs more. More hold up other requests
    longer: some 50 ms with the default."""
    header_timeout: Seconds = 20.0
    """How long a REST client may take to send the headers of a request."""

    @model_validator(mode="after")
    def _check(self) -> "SecuritySettings":
        for prefix in ("", "join_", "operator_"):
            cert, key, ca = (
                getattr(self, f"{prefix}tls_{name}_file", None)
                for name in ("cert", "key", "client_ca")
            )
            if (cert is None) != (key is None):
                raise ValueError(
                    f"{prefix}tls_cert_file and {prefix}tls_key_file belong together: set both"
                )
            if ca is not None and cert is None:
                raise ValueError(
                    f"{prefix}tls_client_ca_file needs {prefix}tls_cert_file and "
                    f"{prefix}tls_key_file"
                )
        return self


class RoutingWeights(_Group):
    """What counts how much when a rank is chosen: each scorer gives 0 to 1; weight 0 is off."""

    load: float = Field(1.0, ge=0)
    """Few outstanding tokens of this router."""
    kv_room: float = Field(0.25, ge=0)
    """Free KV cache, as ranks report it, all routers' requests counted."""
    prefix: float = Field(2.0, ge=0)
    """The beginning of the prompt is in the rank's cache."""
    session: float = Field(4.0, ge=0)
    """The session was there last. More than the others together: sticky up to the load bound."""
    balance: float = Field(0.25, ge=0)
    """Not making the busiest rank of a group busier."""


class RoutingSettings(_Group):
    """How the rank for a request is chosen (deploy/docs/routing.md)."""

    weights: RoutingWeights = RoutingWeights()
    kv_headroom: float = Field(1.0, gt=0)
    """Outstanding tokens that a rank gets from this router, as a share of its KV cache."""
    queue_allowance: float = Field(0.25, ge=0)
    """Requests that a rank gets from this router beyond its max_num_seqs, as a share of it."""
    engine_queue: float = Field(0.5, ge=0)
    """Requests of all routers that may wait in a rank's engine before it gets no more, as a share
    of its max_num_seqs; one always may."""
    session_load_bound: float = Field(1.5, ge=1)
    """Cached prefixes and sessions count for ranks whose outstanding tokens are at most so many
    times the mean of all that could take the request; past it load alone does."""
    affinity_slack: int = Field(2048, ge=0)
    """Outstanding tokens beyond that bound that are always forgiven: a nearly idle fleet has next
    to no mean."""
    sessions: int = Field(65536, ge=0)
    """Sessions that are remembered; past it the one used longest ago is forgotten."""
    session_ttl: Seconds = 1800.0
    """After so long without a request a session is forgotten."""
    prefix_blocks: int = Field(262_144, ge=1)
    """KV-cache blocks that are kept of what one rank tells."""
    history_blocks: int = Field(4096, ge=1)
    """KV-cache blocks that are guessed for a rank that tells nothing, from what was sent there."""
    history_trust: float = Field(0.5, ge=0, le=1)
    """What a guessed match counts, relative to one that the rank told; 0 guesses nothing."""


class ScheduleFloor(_Group):
    """A least number of groups in every minute that a cron expression matches."""

    when: str
    """Five cron fields: minute hour day-of-month month day-of-week (0 or 7 is Sunday). The floor
    holds in each minute that matches: ``* 8-17 * * 1-5`` is from 8:00 to 17:59 on working days."""
    groups: int = Field(ge=0, le=1024)
    timezone: str = "UTC"
    """IANA name, e.g. Europe/Berlin."""


class KubernetesSettings(_Group):
    """The KubeRay worker group whose nodes the groups need."""

    enabled: bool = False
    """Set the worker group's replicas, and hand groups over before their nodes go."""
    namespace: str = "default"
    cluster: str = ""
    """Name of the RayCluster (metadata.name)."""
    service: str = ""
    """Name of the RayService instead, whose RayCluster has a made-up name."""
    worker_group: str = "ranks"
    """groupName in its workerGroupSpecs."""
    workers_per_group: int = Field(1, ge=1)
    """Worker pods of one expert-parallel group."""
    api_timeout: Seconds = 10.0
    """How long the API server may take for an answer."""
    watch_timeout: Seconds = 30.0
    """How long one watch over nodes or pods lasts before the next takes over from it; a connection
    that died without a sign is noticed api_timeout after that."""
    attempts: int = Field(4, ge=1)
    """Tries of a call that ends in a conflict, throttling, a server error or a time-out."""
    lease: str = "moe-serving-autoscaler"
    """Name of the Lease by which several autoscalers choose one."""
    disruption_budget: str = ""
    """Name of the worker group's PodDisruptionBudget, whose minAvailable then follows the number of
    groups. Empty: none."""
    lease_seconds: Seconds = 15.0
    """A leader that has not renewed for so long is replaced."""


class AutoscalerSettings(_Group):
    """How many groups there should be, and from which signals (deploy/docs/autoscaling.md)."""

    min_groups: int = Field(1, ge=0, le=1024)
    """0 lets an idle fleet go to zero; a request that comes then parks and starts a group."""
    max_groups: int = Field(1, ge=1, le=1024)
    interval: Seconds = 5.0
    """Between two decisions."""
    prometheus_url: str = "http://127.0.0.1:9090"
    prometheus_timeout: Seconds = 5.0
    selector: str = ""
    """Label matchers that pick this fleet's routers, e.g. job="moe-routers"."""
    window: Seconds = 60.0
    """Over which rates and quantiles are taken; at least four scrapes."""
    scrape_interval: Seconds = 5.0
    """How often Prometheus scrapes the routers: from it gaps are counted."""
    max_age: Seconds = 30.0
    """A newest sample that is older is stale."""
    max_gap: float = Field(0.5, ge=0, lt=1)
    """Share of the window's scrapes that may be missing before the data is stale."""
    routers: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """REST addresses of all routers; /fleet tells which groups are ready and what is parked.
    dns+http://name:port (or dns+https) is every address behind the name."""
    drain_addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    """gRPC addresses of all routers: each is told when a group goes. dns:///name:port is every
    address behind the name, looked up at each drain."""
    router_timeout: Seconds = 3.0
    api_key_file: str | None = None
    """File with a key of role admin for the routers; none where they ask for no keys."""
    ca_file: str | None = None
    """PEM file with the authority of the routers' certificates; turns TLS on for drains."""
    dashboard_url: str = "http://127.0.0.1:8265"
    """Ray's dashboard, which serves Ray Serve's REST interface."""
    dashboard_token_file: str | None = None
    """File with the Ray cluster's token, where it asks for one."""
    ray_timeout: Seconds = 10.0
    drain_timeout: Seconds = 30.0
    """For the requests of a group that goes; what is left goes on in other groups."""
    ttft_slo: Seconds = 2.0
    """Objective of the 90th percentile of the time to first token."""
    itl_slo: Seconds = 0.2
    """The same of the inter-token latency."""
    queue_wait_slo: Seconds = 2.0
    """The same of the wait in the admission queue."""
    group_tokens_per_second: float | None = Field(None, gt=0)
    """Generated tokens per second of one group at full load, as measured; none: it is learnt
    while requests queue."""
    band_low: float = Field(0.5, gt=0, lt=1)
    band_high: float = Field(0.8, gt=0, le=1)
    """Between band_low and band_high of an objective or of the capacity nothing is changed."""
    pressure_clamp: float = Field(5.0, gt=1)
    """A pressure counts as at most so much: a latency far off says little about how far.
    In the simulated rise of deploy/docs/simulation.md, 5 met the objectives of 91 % of requests and
    2 those of 72 %, for 9 % more GPU-hours."""
    backlog_horizon: Seconds = 30.0
    """Queued tokens should be worked off in so long."""
    up_window: float = Field(0.0, ge=0)
    """Seconds for which more groups must have been wanted all the time."""
    down_window: Seconds = 300.0
    """The same for fewer."""
    idle_timeout: Seconds = 300.0
    """Without any request for so long the last group is wanted no more, if min_groups is 0; it
    goes when that has held for down_window."""
    warming_timeout: Seconds = 600.0
    """A group that is not ready after so long gets no more credit: another one is asked for."""
    max_step_up: int = Field(4, ge=1)
    """Most groups added at once."""
    max_step_down: int = Field(1, ge=1)
    gpus_per_group: float | None = Field(None, ge=0)
    """For the cost cap; none: data_parallel x tensor_parallel of the settings under group."""
    gpu_hours_per_day: float | None = Field(None, gt=0)
    """Most GPU-hours from 0:00 to 24:00 UTC; then only min_groups are kept. None: no cap."""
    schedule: tuple[ScheduleFloor, ...] = ()
    state_file: str | None = None
    """Where GPU-hours and learnt capacity are kept over a restart; none: nowhere."""
    record_file: str | None = None
    """Each look at the signals is appended here (JSON lines), for --replay."""
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    """The autoscaler's own /metrics."""
    kubernetes: KubernetesSettings = KubernetesSettings()

    @model_validator(mode="after")
    def _check(self) -> "AutoscalerSettings":
        if self.min_groups > self.max_groups:
            raise ValueError("min_groups is more than max_groups")
        if self.band_low >= self.band_high:
            raise ValueError("band_low must be less than band_high")
        if self.kubernetes.enabled and not (self.kubernetes.cluster or self.kubernetes.service):
            raise ValueError("kubernetes.enabled needs kubernetes.cluster or kubernetes.service")
        return self


class TelemetrySettings(_Group):
    """Logs, metrics and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: JSON off a terminal."""
    tenant_labels: int = Field(100, ge=0, le=10_000)
    """Tenants that metrics tell apart; the rest are counted together as other."""
    rank_metrics_port: Port = 0
    """Where each rank shows its engine's own metrics (plain HTTP, no key); the next free port
    where several ranks share a node. 0: nowhere. The router's /metrics/targets lists them."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://")
    """OpenTelemetry collector that routers and ranks send traces to, e.g. http://collector:4317;
    none: no traces."""
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """How. For http/protobuf the endpoint has the whole path, …:4318/v1/traces."""
    trace_ratio: float = Field(1.0, ge=0, le=1)
    """Share of requests that are traced where the client's traceparent does not say."""


class Settings(BaseSettings):
    """All settings of all processes."""

    model_config = SettingsConfigDict(
        env_prefix="MOE_SERVING_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )

    platform: Platform = Platform.CPU
    model: ModelSettings = ModelSettings()
    group: GroupSettings = GroupSettings()
    engine: EngineSettings = EngineSettings()
    router: RouterSettings = RouterSettings()
    link: LinkSettings = LinkSettings()
    fleet: FleetSettings = FleetSettings()
    admission: AdmissionSettings = AdmissionSettings()
    routing: RoutingSettings = RoutingSettings()
    ray: RaySettings = RaySettings()
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    security: SecuritySettings = SecuritySettings()

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        reserved = {
            "model",
            "served_model_name",
            "data_parallel_size",
            "data_parallel_rank",
            "data_parallel_address",
            "data_parallel_rpc_port",
            "tensor_parallel_size",
            "enable_expert_parallel",
        } & {key.replace("-", "_") for key in self.engine.args}
        if reserved:
            raise ValueError(
                f"engine.args may not set {', '.join(sorted(reserved))}: "
                "use the settings under model and group",
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, then environment, then the YAML file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _yaml_source(settings_cls)


_yaml_file: Path | None = None


class _YamlFile(YamlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        content = read_yaml(file_path.read_text("utf-8"))
        if not isinstance(content, dict | None):
            raise NotYaml("names of settings and their values are expected", 1)
        return {str(name): value for name, value in (content or {}).items()}


def _yaml_source(settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
    return _YamlFile(settings_cls, yaml_file=_yaml_file)


def load_settings(file: Path | None = None, flags: dict[str, Any] | None = None) -> Settings:
    """Read settings from ``file``, the environment and ``flags`` (nested, winning).

    Raises:
        SettingsError: with one line for each thing that is wrong and where.
    """
    global _yaml_file  # noqa: PLW0603  pydantic-settings has no argument for it
    if file is not None and not file.is_file():
        raise SettingsError(f"settings file {file} does not exist")
    _yaml_file = file
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingsError("invalid settings: " + "; ".join(lines)) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read settings: {error}") from error
    finally:
        _yaml_file = None
