"""All Prometheus metrics; deploy/docs/metrics.md explains how to act on each.

Label values are bounded: fixed words, the current groups and ranks, and up to
``telemetry.tenant_labels`` tenants. Request ids and text are never label values.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
"""Metrics of a router process; /metrics lists them after those of Python and vLLM."""

_LATENCY_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0,
)  # fmt: skip

REQUESTS = Counter(
    "moe_requests",
    "Finished requests, by outcome: OK, CANCELLED, or the error reason.",
    ["outcome"],
    registry=REGISTRY,
)
INFLIGHT_REQUESTS = Gauge(
    "moe_inflight_requests",
    "Requests in this router, waiting or running, without those of batches.",
    registry=REGISTRY,
)
PROMPT_TOKENS = Counter(
    "moe_prompt_tokens",
    "Prompt tokens of requests sent to ranks.",
    registry=REGISTRY,
)
CACHED_TOKENS = Counter(
    "moe_cached_prompt_tokens",
    "Prompt tokens that ranks read from their KV caches.",
    registry=REGISTRY,
)
GENERATED_TOKENS = Counter(
    "moe_generated_tokens",
    "Tokens received from ranks, without those of batches.",
    registry=REGISTRY,
)
TENANT_TOKENS = Counter(
    "moe_tenant_tokens",
    "Tokens of finished requests, by tenant and kind: prompt, cached (part of prompt), "
    "generated. Tenants beyond telemetry.tenant_labels are counted as other.",
    ["tenant", "kind"],
    registry=REGISTRY,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "moe_time_to_first_token_seconds",
    "Time from a request's arrival at the router to its first token, as the client sees it.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
RANK_TIME_TO_FIRST_TOKEN = Histogram(
    "moe_rank_time_to_first_token_seconds",
    "Time from sending a request to a rank to its first token; excludes the admission queue.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
INTER_TOKEN_LATENCY = Histogram(
    "moe_inter_token_latency_seconds",
    "Time between tokens of a request as they arrive at the router.",
    buckets=(0.001, 0.0025, *_LATENCY_BUCKETS[:11]),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "moe_request_seconds",
    "Time from arrival to end of a request, for all outcomes.",
    buckets=(*_LATENCY_BUCKETS[3:], 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
RESUMES = Counter(
    "moe_resumes",
    "Resumptions of requests whose group was lost, by method (continue, replay) and outcome: OK "
    "(new tokens arrived), LOST (the next group was lost too), CANCELLED, or the error reason.",
    ["way", "outcome"],
    registry=REGISTRY,
)
RESUME_SECONDS = Histogram(
    "moe_resume_seconds",
    "Time from the loss of a request's group to its next new token.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
PARKED_REQUESTS = Gauge(
    "moe_parked_requests",
    "Requests waiting because no group is ready.",
    registry=REGISTRY,
)
REQUESTS_PARKED = Counter(
    "moe_requests_parked",
    "Requests that waited for a group to become ready.",
    registry=REGISTRY,
)
ADMISSION_QUEUE = Gauge(
    "moe_admission_queue_requests",
    "Requests in the admission queue, by requested priority.",
    ["priority"],
    registry=REGISTRY,
)
ADMISSION_QUEUE_TOKENS = Gauge(
    "moe_admission_queue_tokens",
    "Prompt and expected output tokens of the requests in the admission queue.",
    registry=REGISTRY,
)
ADMISSION_REFUSALS = Counter(
    "moe_admission_refusals",
    "Requests rejected by admission, by reason.",
    ["reason"],
    registry=REGISTRY,
)
ADMISSION_WAIT = Histogram(
    "moe_admission_wait_seconds",
    "Time from entering admission to placement on a rank, by priority; 0 for most requests.",
    ["priority"],
    buckets=(0.001, *_LATENCY_BUCKETS, 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
ADMISSION_PREDICTED_WAIT = Histogram(
    "moe_admission_predicted_wait_seconds",
    "Predicted wait of requests that waited and were placed.",
    buckets=(0.001, *_LATENCY_BUCKETS, 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
ADMISSION_WAIT_ERROR = Histogram(
    "moe_admission_wait_error_seconds",
    "Actual minus predicted wait of the same requests.",
    buckets=(-60.0, -30.0, -10.0, -3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0),
    registry=REGISTRY,
)
QUOTA_STORE_FAILURES = Counter(
    "moe_quota_store_failures",
    "Quota lookups that Redis did not answer in time.",
    registry=REGISTRY,
)
TENANT_PRICE = Counter(
    "moe_tenant_price",
    "Price of the requests that this router inserted into the ledger, by tenant, in the tariff's "
    "currency. Tenants beyond telemetry.tenant_labels are counted as other.",
    ["tenant"],
    registry=REGISTRY,
)
GPU_HOUR_PRICE = Gauge(
    "moe_gpu_hour_price",
    "Price of one GPU for one hour (ledger.gpu_hour_price), in the tariff's currency. 0: not set.",
    registry=REGISTRY,
)
BUDGET_REFUSALS = Counter(
    "moe_budget_refusals",
    "Requests refused because a budget is used up, by whose budget it is and by period.",
    ["scope", "period"],
    registry=REGISTRY,
)
BUDGET_WARNINGS = Counter(
    "moe_budget_warnings",
    "Prompts above the soft limit of a budget, by whose budget it is and by period.",
    ["scope", "period"],
    registry=REGISTRY,
)
BUDGET_STORE_FAILURES = Counter(
    "moe_budget_store_failures",
    "Reservations that the ledger's database did not answer in time, and transactions that failed.",
    registry=REGISTRY,
)
LEDGER_WRITTEN = Counter(
    "moe_ledger_records_written",
    "Records inserted into the ledger's database.",
    registry=REGISTRY,
)
LEDGER_DROPPED = Counter(
    "moe_ledger_records_dropped",
    "Records lost to the ledger's database: neither spool nor memory had room, or the database "
    "refuses them.",
    registry=REGISTRY,
)
LEDGER_SPOOL_BYTES = Gauge(
    "moe_ledger_spool_bytes",
    "Size of the records on disk that are not in the ledger's database yet.",
    registry=REGISTRY,
)
LEDGER_BACKLOG = Gauge(
    "moe_ledger_backlog_records",
    "Records in memory because the spool cannot be written; lost if the router is killed.",
    registry=REGISTRY,
)
LEDGER_LAG = Gauge(
    "moe_ledger_lag_seconds",
    "Age of the oldest record on disk that is not in the ledger's database; for records of an "
    "earlier process, since this one started.",
    registry=REGISTRY,
)
LEDGER_FAILURES = Counter(
    "moe_ledger_failures",
    "Attempts to insert records that failed.",
    registry=REGISTRY,
)
BATCH_LINES = Gauge(
    "moe_batch_lines",
    "Lines of batches that have not ended, by state: open, claimed (by any router), completed, "
    "failed.",
    ["state"],
    registry=REGISTRY,
)
BATCH_AGE = Gauge(
    "moe_batch_oldest_age_seconds",
    "Age of the oldest batch that has not ended; 0: none.",
    registry=REGISTRY,
)
BATCH_RUNNING = Gauge(
    "moe_batch_running_lines",
    "Lines of this router on ranks.",
    registry=REGISTRY,
)
BATCH_WAITING = Gauge(
    "moe_batch_waiting_lines",
    "Lines of this router that wait for room on a rank.",
    registry=REGISTRY,
)
BATCH_PREEMPTIONS = Counter(
    "moe_batch_preemptions",
    "Times that a line was taken off its rank because other requests needed it.",
    registry=REGISTRY,
)
BATCH_ANSWERS = Counter(
    "moe_batch_answers",
    "Lines answered by this router, by outcome: completed, failed.",
    ["outcome"],
    registry=REGISTRY,
)
BATCH_TOKENS = Counter(
    "moe_batch_tokens",
    "Tokens of answered lines, by kind: prompt, cached (part of prompt), generated.",
    ["kind"],
    registry=REGISTRY,
)
BATCH_FAILURES = Counter(
    "moe_batch_failures",
    "Failed attempts to validate, run or finish batches, which are repeated, by stage.",
    ["stage"],
    registry=REGISTRY,
)
BATCH_FILES = Gauge(
    "moe_batch_file_bytes",
    "Size of all files.",
    registry=REGISTRY,
)
AUTH_FAILURES = Counter(
    "moe_auth_failures",
    "Requests rejected for their credentials, by protocol (rest, grpc) and reason.",
    ["protocol", "reason"],
    registry=REGISTRY,
)
LINK_FRAMES = Counter(
    "moe_link_frames",
    "Frames on the links to ranks, by direction: up (from ranks), down (to ranks).",
    ["direction"],
    registry=REGISTRY,
)
LINK_DELTAS = Counter(
    "moe_link_deltas",
    "Request deltas received from ranks. Divided by frames up: deltas per frame.",
    registry=REGISTRY,
)
LINK_REFUSALS = Counter(
    "moe_link_refusals",
    "Ranks rejected on joining, by code.",
    ["code"],
    registry=REGISTRY,
)
GROUPS_FENCED = Counter(
    "moe_groups_fenced",
    "Groups fenced because a rank was lost, failed or stalled.",
    registry=REGISTRY,
)
ROUTING_PICKS = Counter(
    "moe_routing_picks",
    "Requests placed on a rank, by the deciding reason: only, session, prefix, load.",
    ["reason"],
    registry=REGISTRY,
)
ROUTING_SECONDS = Histogram(
    "moe_routing_seconds",
    "Time to choose a rank, or to find that there is no candidate.",
    buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    registry=REGISTRY,
)
SCORER_SECONDS = Counter(
    "moe_routing_scorer_seconds",
    "Time spent in each scorer.",
    ["scorer"],
    registry=REGISTRY,
)
PREFIX_MATCHED_TOKENS = Counter(
    "moe_prefix_matched_tokens",
    "Prompt tokens that the chosen rank had reported as cached. Divided by moe_prompt_tokens: the "
    "cache hit rate that routing expects.",
    registry=REGISTRY,
)
PREFIX_GAPS = Counter(
    "moe_prefix_gaps",
    "Gaps in a rank's KV-cache events, after which its cache counts as empty.",
    registry=REGISTRY,
)
LINK_FRAMES_UP = LINK_FRAMES.labels("up")
LINK_FRAMES_DOWN = LINK_FRAMES.labels("down")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric read from the fleet snapshot at each scrape."""

    name: str
    """Name without the suffix ``_total``, which the exposition format adds to counters."""
    help: str
    labels: tuple[str, ...]
    counter: bool = False


_GROUP = ("group",)
_RANK = ("group", "rank")


def _rank(name: str, help_: str, *, counter: bool = False) -> Family:
    return Family(f"moe_{name}", help_, _RANK, counter)


GROUPS = Family("moe_groups", "Groups by state, without those that are gone.", ("state",))
GROUP_INFO = Family(
    "moe_group_info",
    "1 for each joined group, with its model, its pool and its Serve application. Multiplied with "
    "`* on(group) group_left(model, pool)`, it adds these labels to a metric of groups or ranks.",
    ("group", "model", "pool", "app"),
)
POOL_READY_GROUPS = Family(
    "moe_pool_ready_groups", "Groups of the pool that accept requests.", ("model", "pool")
)
MODEL_QUEUED = Family(
    "moe_model_queued_requests", "Requests in the model's admission queue.", ("model",)
)
MODEL_PARKED = Family(
    "moe_model_parked_requests",
    "Requests waiting because no group of the model is ready.",
    ("model",),
)
MODEL_LOADED = Family(
    "moe_model_loaded",
    "1 if the model's tokenizer, chat template and parsers are in the router's memory.",
    ("model",),
)
RANKS_JOINED = Family("moe_ranks_joined", "Ranks of the group that have joined.", _GROUP)
RANKS_EXPECTED = Family("moe_ranks_expected", "Ranks of the complete group.", _GROUP)
RANK_INFLIGHT = _rank("rank_inflight_requests", "This router's requests on the rank.")
RANK_OUTSTANDING = _rank(
    "rank_outstanding_tokens",
    "Prompt and expected output tokens left to compute for this router's requests on the rank.",
)
RANK_RUNNING = _rank("rank_running_requests", "Requests in the engine's batch, from all routers.")
RANK_WAITING = _rank("rank_waiting_requests", "Requests waiting in the engine, from all routers.")
RANK_KV_USAGE = _rank("rank_kv_usage_ratio", "Fraction of KV-cache blocks in use, 0 to 1.")
RANK_STEP_SECONDS = _rank("rank_step_seconds", "Mean duration of recent engine steps.")
RANK_RESIDENT_BYTES = _rank("rank_resident_bytes", "Resident memory of the rank's processes.")
RANK_LINK_LAG = _rank(
    "rank_link_round_trip_seconds", "Last round-trip time on the link to the rank."
)
RANK_REPORTED = _rank("rank_report_timestamp_seconds", "Unix time of the rank's last load report.")
RANK_ENGINE_STEPS = _rank("rank_engine_steps", "Engine steps.", counter=True)
RANK_BUSY_SECONDS = _rank("rank_busy_seconds", "Time the engine has spent in steps.", counter=True)
RANK_GPUS = _rank("rank_gpus", "Workers of the rank, one per GPU.")
RANK_PROMPT_TOKENS = _rank(
    "rank_prompt_tokens", "Prompt tokens processed by the engine.", counter=True
)
RANK_GENERATED_TOKENS = _rank(
    "rank_generated_tokens", "Tokens generated by the engine.", counter=True
)
EXPERT_TOKENS = _rank(
    "expert_tokens",
    "Tokens computed by the rank's local experts, summed over experts and layers.",
    counter=True,
)
EXPERT_IMBALANCE = Family(
    "moe_expert_imbalance_ratio",
    "Busiest over mean load of the last 30 to 60 seconds, over experts or ranks; mean of the MoE "
    "layers named (all, or from-to). 1: balanced. Absent while nothing is computed.",
    ("group", "layers", "over"),
)
MTP_PROPOSED = _rank(
    "mtp_proposed_tokens", "Tokens drafted by multi-token prediction.", counter=True
)
MTP_ACCEPTED = _rank("mtp_accepted_tokens", "Drafted tokens that were accepted.", counter=True)

FAMILIES = tuple(each for each in tuple(globals().values()) if isinstance(each, Family))
"""All metrics read from the fleet snapshot."""

AUTOSCALER_REGISTRY = CollectorRegistry()
"""Metrics of an autoscaler process."""

AUTOSCALER_TARGET = Gauge(
    "moe_autoscaler_target_groups",
    "Groups that the last decision requests.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_CURRENT = Gauge(
    "moe_autoscaler_current_groups",
    "Groups requested before the last decision.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_BLIND = Gauge(
    "moe_autoscaler_blind",
    "1 while no Prometheus signal is usable and the number of groups is held.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_DECISIONS = Counter(
    "moe_autoscaler_decisions",
    "Decisions, by action: up, down, hold.",
    ["action"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_FAILURES = Counter(
    "moe_autoscaler_failures",
    "Failures, by stage: prometheus, routers, target, scale, state, leader, nodes.",
    ["stage"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_VOTES = Gauge(
    "moe_autoscaler_vote_groups",
    "Groups that a rule votes for; absent for a rule that abstains.",
    ["rule"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_GPU_HOURS = Gauge(
    "moe_autoscaler_gpu_hours_today",
    "GPU-hours of the groups since 0:00 UTC.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_LEADER = Gauge(
    "moe_autoscaler_leader",
    "1 while this process holds the lease and decides.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_WATCHING = Gauge(
    "moe_autoscaler_watching",
    "1 while the watch on nodes or pods (kind) is established; 0: known objects may be stale.",
    ["kind"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_HANDOVERS = Counter(
    "moe_autoscaler_node_handovers",
    "Groups drained because one of their nodes is being removed.",
    registry=AUTOSCALER_REGISTRY,
)
