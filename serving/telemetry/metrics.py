"""Prometheus metrics of a router's requests; deploy/docs/metrics.md explains how to act on each.

``fleet_metrics`` contains the metrics of groups and ranks, ``autoscaler_metrics`` those of the
autoscaler.

Label values are bounded: fixed words, the current groups and ranks, and up to
``telemetry.tenant_labels`` tenants. Request ids and text are never label values.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
"""Metrics of a router process; /metrics lists them after those of Python and vLLM."""

LATENCY_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0,
)  # fmt: skip
TOKEN_BUCKETS = (0.001, 0.0025, *LATENCY_BUCKETS[:11])
WAIT_BUCKETS = (0.001, *LATENCY_BUCKETS, 120.0, 300.0, 600.0)

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
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
RANK_TIME_TO_FIRST_TOKEN = Histogram(
    "moe_rank_time_to_first_token_seconds",
    "Time from sending a request to a rank to its first token; excludes the admission queue.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
INTER_TOKEN_LATENCY = Histogram(
    "moe_inter_token_latency_seconds",
    "Time between tokens of a request as they arrive at the router.",
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "moe_request_seconds",
    "Time from arrival to end of a request, for all outcomes.",
    buckets=(*LATENCY_BUCKETS[3:], 120.0, 300.0, 600.0),
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
    buckets=LATENCY_BUCKETS,
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
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
ADMISSION_PREDICTED_WAIT = Histogram(
    "moe_admission_predicted_wait_seconds",
    "Predicted wait of requests that waited and were placed.",
    buckets=(0.001, *LATENCY_BUCKETS, 120.0, 300.0, 600.0),
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
    "Price of one GPU-hour (ledger.gpu_hour_price), in the tariff's currency; 0 if not set.",
    registry=REGISTRY,
)
BUDGET_REFUSALS = Counter(
    "moe_budget_refusals",
    "Requests rejected because a budget is used up, by scope (tenant, key) and period.",
    ["scope", "period"],
    registry=REGISTRY,
)
BUDGET_WARNINGS = Counter(
    "moe_budget_warnings",
    "Prompts above the soft limit of a budget, by scope (tenant, key) and period.",
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
    "Records missing in the ledger's database, because spool and memory were full or the database "
    "rejected them.",
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
    "earlier process, the time since this process started.",
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
    "Age of the oldest batch that has not ended; 0 if there is none.",
    registry=REGISTRY,
)
BATCH_RUNNING = Gauge(
    "moe_batch_running_lines",
    "Lines of this router that run on ranks.",
    registry=REGISTRY,
)
BATCH_ROOM = Gauge(
    "moe_batch_room_lines",
    "Lines for which ranks have capacity, including running lines of this router; 0 while no line "
    "waits or runs.",
    registry=REGISTRY,
)
BATCH_WAITING = Gauge(
    "moe_batch_waiting_lines",
    "Lines of this router that wait for capacity on a rank.",
    registry=REGISTRY,
)
BATCH_PREEMPTIONS = Counter(
    "moe_batch_preemptions",
    "Number of times that a line was removed from its rank because other requests needed the rank.",
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
    "Failed attempts to validate, run or finish batches, by stage; they are retried.",
    ["stage"],
    registry=REGISTRY,
)
BATCH_FILES = Gauge(
    "moe_batch_file_bytes",
    "Total size of all files.",
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
ADAPTER_REQUESTS = Counter(
    "moe_adapter_placements",
    "Placements of requests with a LoRA adapter, by whether the chosen rank held the adapter: hit "
    "or miss.",
    ["outcome"],
    registry=REGISTRY,
)
for _outcome in ("hit", "miss"):
    ADAPTER_REQUESTS.labels(_outcome)
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
