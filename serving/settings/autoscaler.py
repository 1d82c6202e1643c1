"""Settings of the autoscaler: bounds, signals, objectives, schedule and Kubernetes."""

from pydantic import Field, model_validator

from serving.settings.base import Port, Seconds, SettingsGroup


class ScheduleFloor(SettingsGroup):
    """Minimum number of groups in every minute that a cron expression matches."""

    when: str
    """Five cron fields: minute hour day-of-month month day-of-week (0 or 7 is Sunday). The minimum
    applies in each minute that matches: ``* 8-17 * * 1-5`` is 8:00 to 17:59 on weekdays."""
    groups: int = Field(ge=0, le=1024)
    """Minimum number of groups."""
    timezone: str = "UTC"
    """IANA time zone, e.g. Europe/Berlin."""


class BatchScalingSettings(SettingsGroup):
    """Groups that batches may hold or add. By default, batches do not influence their number."""

    schedule: tuple[ScheduleFloor, ...] = ()
    """Number of groups that are kept or added while lines of batches run or wait, by time of day
    and week, e.g. in off-peak hours. If empty, batches neither hold nor add groups."""
    max_hourly_cost: float | None = Field(None, gt=0)
    """Maximum cost of a pool's groups per hour at which batches hold or add groups, in the tariff's
    currency, at ledger.gpu_hour_price of the routers. Null means no limit."""


class KubernetesSettings(SettingsGroup):
    """The KubeRay worker group that provides nodes for the groups."""

    enabled: bool = False
    """Whether to set the replicas of the worker group, and to replace groups before their nodes are
    removed."""
    namespace: str = "default"
    """Namespace of the RayCluster or RayService."""
    cluster: str = ""
    """Name of the RayCluster (metadata.name)."""
    service: str = ""
    """Name of the RayService; set it instead of cluster, because a RayService generates the name of
    its RayCluster."""
    worker_group: str = "ranks"
    """Name of the worker group (groupName in workerGroupSpecs)."""
    workers_per_group: int = Field(1, ge=1)
    """Number of worker pods per expert-parallel group."""
    api_timeout: Seconds = 10.0
    """Timeout of a call to the API server, seconds."""
    watch_timeout: Seconds = 30.0
    """Duration of one watch on nodes or pods before the next one replaces it, seconds. A silently
    lost connection is detected api_timeout later."""
    attempts: int = Field(4, ge=1)
    """Maximum number of attempts for a call that fails with a conflict, throttling, a server error
    or a timeout."""
    lease: str = "moe-serving-autoscaler"
    """Name of the Lease that replicas of the autoscaler use for leader election."""
    disruption_budget: str = ""
    """Name of the worker group's PodDisruptionBudget, whose minAvailable follows the number of
    groups. If empty, no PodDisruptionBudget is updated."""
    lease_seconds: Seconds = 15.0
    """Time without a renewal after which the leader is replaced, seconds."""


class AutoscalerSettings(SettingsGroup):
    """The number of groups, and the signals that determine it (deploy/docs/autoscaling.md)."""

    min_groups: int = Field(1, ge=0, le=1024)
    """Minimum number of groups. 0 allows scaling to zero; a request that then arrives waits and
    starts a group."""
    max_groups: int = Field(1, ge=1, le=1024)
    """Maximum number of groups."""
    interval: Seconds = 5.0
    """Interval between decisions, seconds."""
    prometheus_url: str = "http://127.0.0.1:9090"
    """Base URL of the Prometheus server."""
    prometheus_timeout: Seconds = 5.0
    """Timeout of a Prometheus query, seconds."""
    selector: str = ""
    """Label matchers that select this fleet's routers, e.g. job="moe-routers". Empty means all
    routers."""
    window: Seconds = 60.0
    """Range of rates and quantiles in queries, seconds; it must cover at least four scrapes."""
    scrape_interval: Seconds = 5.0
    """Interval at which Prometheus scrapes the routers, seconds; used to detect gaps."""
    max_age: Seconds = 30.0
    """Age of the newest sample above which a signal is stale, seconds."""
    max_gap: float = Field(0.5, ge=0, lt=1)
    """Fraction of the window's scrapes that may be missing before a signal is stale."""
    routers: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """REST URLs of all routers; their /fleet lists ready groups and parked requests.
    dns:///name:port stands for all addresses behind the name, over HTTPS if ca_file is set."""
    drain_addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    """gRPC addresses of all routers, each of which drains a group before it is removed.
    dns:///name:port stands for all addresses behind the name, resolved at each drain."""
    router_timeout: Seconds = 3.0
    """Timeout of a REST call to a router, seconds."""
    api_key_file: str | None = None
    """File with an API key of role admin for the routers. If null, no key is sent."""
    ca_file: str | None = None
    """PEM file with the certificate authority of the routers' certificates. If null, drains use
    plain text."""
    dashboard_url: str = "http://127.0.0.1:8265"
    """URL of Ray's dashboard, which hosts Ray Serve's REST API."""
    dashboard_token_file: str | None = None
    """File with the Ray cluster's token. If null, no token is sent."""
    ray_timeout: Seconds = 10.0
    """Timeout of a call to Ray Serve's REST API, seconds."""
    drain_timeout: Seconds = 30.0
    """Time for the requests of a group to finish before it is removed, seconds; the rest resume on
    other groups."""
    ttft_slo: Seconds = 2.0
    """Target p90 time to first token, seconds."""
    itl_slo: Seconds = 0.2
    """Target p90 inter-token latency, seconds."""
    queue_wait_slo: Seconds = 2.0
    """Target p90 wait in the admission queue, seconds."""
    group_tokens_per_second: float | None = Field(None, gt=0)
    """Measured throughput of one group at full load, generated tokens per second. If null, it is
    estimated while requests queue."""
    band_low: float = Field(0.5, gt=0, lt=1)
    """Fraction of a target, or of the capacity, below which groups are removed."""
    band_high: float = Field(0.8, gt=0, le=1)
    """Fraction of a target, or of the capacity, above which groups are added."""
    pressure_clamp: float = Field(5.0, gt=1)
    """Upper bound on the ratio of a latency to its target, because the ratio does not show how many
    groups are missing. In the simulated ramp of deploy/docs/simulation.md, 91 % of requests met the
    targets with a bound of 5 and 72 % with a bound of 2; the higher bound used 9 % more
    GPU-hours."""
    backlog_horizon: Seconds = 30.0
    """Time in which queued tokens should be processed, seconds."""
    up_window: float = Field(0.0, ge=0)
    """Time that the desired number of groups must stay above the current one before groups are
    added, seconds."""
    down_window: Seconds = 300.0
    """Time that the desired number of groups must stay below the current one before groups are
    removed, seconds."""
    idle_timeout: Seconds = 300.0
    """Idle time before scaling to zero, seconds (only if min_groups is 0). The last group is
    removed down_window later."""
    warming_timeout: Seconds = 600.0
    """Time for a new group to become ready, seconds; after that, another group is requested."""
    max_step_up: int = Field(4, ge=1)
    """Maximum number of groups added at once."""
    max_step_down: int = Field(1, ge=1)
    """Maximum number of groups removed at once."""
    gpus_per_group: float | None = Field(None, ge=0)
    """Number of GPUs of one group, for the GPU-hours cap. Null means group.data_parallel x
    group.tensor_parallel."""
    gpu_hours_per_day: float | None = Field(None, gt=0)
    """Maximum GPU-hours per day (UTC), over all pools; once they are used up, only min_groups are
    kept. Null means no cap."""
    max_gpus: float | None = Field(None, gt=0)
    """Maximum number of GPUs, over all groups of all pools. Null means no limit."""
    max_nodes: int | None = Field(None, ge=1)
    """Maximum number of worker pods, over all pools (groups x kubernetes.workers_per_group). Null
    means no limit."""
    schedule: tuple[ScheduleFloor, ...] = ()
    """Minimum number of groups by time of day and week."""
    batch: BatchScalingSettings = BatchScalingSettings()
    state_file: str | None = None
    """File that keeps used GPU-hours and the estimated capacity across restarts. If null, neither
    is kept."""
    record_file: str | None = None
    """File to which the signals of every decision are appended (JSON lines), for --replay. If null,
    signals are not recorded."""
    metrics_host: str = "127.0.0.1"
    """Address on which the autoscaler serves its /metrics."""
    metrics_port: Port = 9464
    """Port on which the autoscaler serves its /metrics."""
    kubernetes: KubernetesSettings = KubernetesSettings()

    @model_validator(mode="after")
    def _check(self) -> "AutoscalerSettings":
        if self.min_groups > self.max_groups:
            raise ValueError("min_groups must not be greater than max_groups")
        if self.band_low >= self.band_high:
            raise ValueError("band_low must be less than band_high")
        return self
