"""Every metric is declared here; deploy/docs/metrics.md says what to do about each.

Labels are bounded: fixed words, and the groups and ranks that live now. Request ids, user names
and texts are never labels.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
"""Ours alone; the edge renders it after vLLM's own."""

_LATENCY_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0,
)  # fmt: skip

REQUESTS = Counter(
    "moe_requests",
    "Requests that ended, by outcome: OK, CANCELLED, or the reason of the error.",
    ["outcome"],
    registry=REGISTRY,
)
INFLIGHT_REQUESTS = Gauge(
    "moe_inflight_requests",
    "Requests that this router holds now.",
    registry=REGISTRY,
)
PROMPT_TOKENS = Counter(
    "moe_prompt_tokens",
    "Prompt tokens of requests sent to ranks.",
    registry=REGISTRY,
)
CACHED_TOKENS = Counter(
    "moe_cached_prompt_tokens",
    "Prompt tokens that ranks took from their KV caches.",
    registry=REGISTRY,
)
GENERATED_TOKENS = Counter(
    "moe_generated_tokens",
    "Tokens received from ranks.",
    registry=REGISTRY,
)
TENANT_TOKENS = Counter(
    "moe_tenant_tokens",
    "Tokens of each tenant's requests that ended, by kind: prompt, cached (of the prompt), "
    "generated. Tenants beyond telemetry.tenant_labels are counted as other.",
    ["tenant", "kind"],
    registry=REGISTRY,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "moe_time_to_first_token_seconds",
    "From a request's arrival at the router to its first token: what the client sees.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
RANK_TIME_TO_FIRST_TOKEN = Histogram(
    "moe_rank_time_to_first_token_seconds",
    "From sending a request to a rank to its first token: without the wait for a turn.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
INTER_TOKEN_LATENCY = Histogram(
    "moe_inter_token_latency_seconds",
    "Between tokens of a request, as they reach the router.",
    buckets=(0.001, 0.0025, *_LATENCY_BUCKETS[:11]),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "moe_request_seconds",
    "From arrival to end of requests, whatever the outcome.",
    buckets=(*_LATENCY_BUCKETS[3:], 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
RESUMES = Counter(
    "moe_resumes",
    "Resumptions of requests that lost their group, by way (continue, replay) and outcome: OK (new "
    "tokens came), LOST (the next group too), CANCELLED, or the reason of the error.",
    ["way", "outcome"],
    registry=REGISTRY,
)
RESUME_SECONDS = Histogram(
    "moe_resume_seconds",
    "From the loss of a request's group to its next new token.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
PARKED_REQUESTS = Gauge(
    "moe_parked_requests",
    "Requests that wait because no group is ready.",
    registry=REGISTRY,
)
REQUESTS_PARKED = Counter(
    "moe_requests_parked",
    "Requests that had to wait for a group to become ready.",
    registry=REGISTRY,
)
ADMISSION_QUEUE = Gauge(
    "moe_admission_queue_requests",
    "Requests that wait for their turn, by the priority that they asked for.",
    ["priority"],
    registry=REGISTRY,
)
ADMISSION_QUEUE_TOKENS = Gauge(
    "moe_admission_queue_tokens",
    "Tokens, prompt and expected output, of the requests that wait for their turn.",
    registry=REGISTRY,
)
ADMISSION_REFUSALS = Counter(
    "moe_admission_refusals",
    "Requests that were refused before any work, by reason.",
    ["reason"],
    registry=REGISTRY,
)
ADMISSION_WAIT = Histogram(
    "moe_admission_wait_seconds",
    "From asking for a turn to being placed on a rank, by priority; 0 for most.",
    ["priority"],
    buckets=(0.001, *_LATENCY_BUCKETS, 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
ADMISSION_PREDICTED_WAIT = Histogram(
    "moe_admission_predicted_wait_seconds",
    "What was predicted for requests that had to wait and were placed.",
    buckets=(0.001, *_LATENCY_BUCKETS, 120.0, 300.0, 600.0),
    registry=REGISTRY,
)
ADMISSION_WAIT_ERROR = Histogram(
    "moe_admission_wait_error_seconds",
    "Wait that was seen less the one that was predicted, of the same requests.",
    buckets=(-60.0, -30.0, -10.0, -3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0),
    registry=REGISTRY,
)
QUOTA_STORE_FAILURES = Counter(
    "moe_quota_store_failures",
    "Times that Redis did not answer a question about quotas in time.",
    registry=REGISTRY,
)
AUTH_FAILURES = Counter(
    "moe_auth_failures",
    "Calls refused for their credentials, by protocol (rest, grpc) and reason.",
    ["protocol", "reason"],
    registry=REGISTRY,
)
LINK_FRAMES = Counter(
    "moe_link_frames",
    "Frames on the links to ranks, by direction: up (from ranks) or down.",
    ["direction"],
    registry=REGISTRY,
)
LINK_DELTAS = Counter(
    "moe_link_deltas",
    "Request deltas received from ranks; divided by frames up: how well steps are batched.",
    registry=REGISTRY,
)
LINK_REFUSALS = Counter(
    "moe_link_refusals",
    "Ranks that were refused, by code.",
    ["code"],
    registry=REGISTRY,
)
GROUPS_FENCED = Counter(
    "moe_groups_fenced",
    "Times that a group was fenced because one of its ranks was lost, failed or stalled.",
    registry=REGISTRY,
)
ROUTING_PICKS = Counter(
    "moe_routing_picks",
    "Requests that were given to a rank, by what made the difference: only, session, prefix, load.",
    ["reason"],
    registry=REGISTRY,
)
ROUTING_SECONDS = Histogram(
    "moe_routing_seconds",
    "Choosing a rank, or finding that there is none.",
    buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    registry=REGISTRY,
)
SCORER_SECONDS = Counter(
    "moe_routing_scorer_seconds",
    "Time spent in each scorer, all candidates of a pick at once.",
    ["scorer"],
    registry=REGISTRY,
)
PREFIX_MATCHED_TOKENS = Counter(
    "moe_prefix_matched_tokens",
    "Prompt tokens that the rank's cache held when it was picked, as it had told; divided by "
    "moe_prompt_tokens: the hit rate that routing expects.",
    registry=REGISTRY,
)
PREFIX_GAPS = Counter(
    "moe_prefix_gaps",
    "Times that KV-cache events of a rank were missing, so that its cache counts as empty.",
    registry=REGISTRY,
)
LINK_FRAMES_UP = LINK_FRAMES.labels("up")
LINK_FRAMES_DOWN = LINK_FRAMES.labels("down")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric that is read from the fleet's snapshot when it is asked for."""

    name: str
    """Without the suffix ``_total``, which counters get when they are rendered."""
    help: str
    labels: tuple[str, ...]
    counter: bool = False


_GROUP = ("group",)
_RANK = ("group", "rank")


def _rank(name: str, help_: str, *, counter: bool = False) -> Family:
    return Family(f"moe_{name}", help_, _RANK, counter)


GROUPS = Family("moe_groups", "Living groups by state.", ("state",))
RANKS_JOINED = Family("moe_ranks_joined", "Ranks of the group that are joined.", _GROUP)
RANKS_EXPECTED = Family("moe_ranks_expected", "Ranks that make the group whole.", _GROUP)
RANK_INFLIGHT = _rank("rank_inflight_requests", "Requests of this router on the rank.")
RANK_OUTSTANDING = _rank(
    "rank_outstanding_tokens",
    "Prompt and expected output tokens still to compute for this router's requests.",
)
RANK_RUNNING = _rank(
    "rank_running_requests", "Requests in the engine's batch, all routers' together."
)
RANK_WAITING = _rank(
    "rank_waiting_requests", "Requests that wait in the engine, all routers' together."
)
RANK_KV_USAGE = _rank("rank_kv_usage_ratio", "Share of KV-cache blocks in use, 0 to 1.")
RANK_STEP_SECONDS = _rank("rank_step_seconds", "Mean duration of a recent engine step.")
RANK_RESIDENT_BYTES = _rank("rank_resident_bytes", "Resident memory of the rank's processes.")
RANK_LINK_LAG = _rank(
    "rank_link_round_trip_seconds", "From Ping to Pong on the link to the rank, last seen."
)
RANK_REPORTED = _rank(
    "rank_report_timestamp_seconds", "When the rank last reported its load, Unix time."
)
RANK_ENGINE_STEPS = _rank("rank_engine_steps", "Steps that the engine has made.", counter=True)
RANK_BUSY_SECONDS = _rank(
    "rank_busy_seconds", "Time that the engine has spent in steps.", counter=True
)
RANK_PROMPT_TOKENS = _rank(
    "rank_prompt_tokens", "Prompt tokens that the engine has taken in.", counter=True
)
RANK_GENERATED_TOKENS = _rank(
    "rank_generated_tokens", "Tokens that the engine has generated.", counter=True
)
EXPERT_TOKENS = _rank(
    "expert_tokens",
    "Tokens that the rank's local experts have computed, summed over experts and layers.",
    counter=True,
)
EXPERT_IMBALANCE = Family(
    "moe_expert_imbalance_ratio",
    "Busiest over mean of the last half minute to minute, over experts or ranks, mean of the MoE "
    "layers named (all, or from-to); 1 = balanced. Not there while nothing is computed.",
    ("group", "layers", "over"),
)
MTP_PROPOSED = _rank(
    "mtp_proposed_tokens", "Tokens drafted by multi-token prediction.", counter=True
)
MTP_ACCEPTED = _rank("mtp_accepted_tokens", "Drafted tokens that were accepted.", counter=True)

FAMILIES = tuple(each for each in tuple(globals().values()) if isinstance(each, Family))
"""All of them."""

AUTOSCALER_REGISTRY = CollectorRegistry()
"""Of the autoscaler's own process."""

AUTOSCALER_TARGET = Gauge(
    "moe_autoscaler_target_groups",
    "Groups that the last decision asks for.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_CURRENT = Gauge(
    "moe_autoscaler_current_groups",
    "Groups that were asked for before it.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_BLIND = Gauge(
    "moe_autoscaler_blind",
    "1 while no signal of Prometheus can be used, so that the number of groups is held.",
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
    "Things that did not work, by stage: prometheus, routers, target, scale, state, leader, nodes.",
    ["stage"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_VOTES = Gauge(
    "moe_autoscaler_vote_groups",
    "Groups that a rule votes for; a rule that abstains is not there.",
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
    "1 while this process decides; others wait for its lease.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_WATCHING = Gauge(
    "moe_autoscaler_watching",
    "1 while nodes or pods (the kind) are watched at the API server; 0: what is known is old.",
    ["kind"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_HANDOVERS = Counter(
    "moe_autoscaler_node_handovers",
    "Groups that were drained because a node of theirs goes.",
    registry=AUTOSCALER_REGISTRY,
)
