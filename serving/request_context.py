"""The context of one request: tenant, limits, and a record of its processing.

The edge creates the context and sets ``request_context_var``. Admission, routing and requests read
the context and write to its ``record``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol, TypedDict, get_args

from serving.routing.decision import RoutingDecision
from serving.routing.snapshot import RankId
from serving.telemetry.tracing import RequestTrace


class Priority(IntEnum):
    """Priority of a request in the admission queue; lower values come first, as in vLLM."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Values of ``reasoning_effort`` in vLLM's and OpenAI's APIs, in increasing order."""


def is_above(effort: str, limit: str) -> bool:
    """Return whether an effort exceeds a limit; unknown efforts exceed every limit."""
    order = get_args(Effort)
    return effort not in order or order.index(effort) > order.index(limit)


@dataclass(frozen=True, slots=True)
class ReasoningPolicy:
    """Defaults and caps for reasoning in an API key's requests. None means no default or no cap."""

    thinking_token_budget: int | None = None
    """Budget of reasoning tokens for requests that do not set one."""
    max_thinking_token_budget: int | None = None
    """Maximum budget that a request may set; also the default if no other is set."""
    reasoning_effort: Effort | None = None
    """Effort of requests that do not set one."""
    max_reasoning_effort: Effort | None = None
    """Maximum effort that a request may set; also the default if no other is set."""
    hidden: bool = False
    """Whether responses leave out the reasoning. It is generated, counted and resumed as usual."""


@dataclass(slots=True)
class Usage:
    """Usage of admitted prompts. Not frozen, because freezing triples the cost of creation."""

    prompt_tokens: int = 0
    """Number of prompt tokens, including cached ones."""
    cached_tokens: int = 0
    output_tokens: int = 0
    """Number of tokens received from ranks, over all choices."""
    drafted_tokens: int = 0
    """Number of tokens drafted by speculative decoding, in finished choices."""
    accepted_tokens: int = 0
    """Number of drafted tokens that were accepted."""
    rank_seconds: float = 0.0
    """Time on ranks, over all resumptions, seconds."""
    reasoning_tokens: int = 0
    """Number of reasoning tokens among the output tokens of raw-text responses
    (``RequestRecord.raw_text``)."""

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sums."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.drafted_tokens + other.drafted_tokens,
            self.accepted_tokens + other.accepted_tokens,
            self.rank_seconds + other.rank_seconds,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class Generation(Protocol):
    """The generation of one prompt; implemented by ``requests.request.FleetRequest``."""

    def usage(self) -> Usage:
        """Return the usage so far."""
        ...


@dataclass(slots=True)
class RequestRecord:
    """Record of one request's processing; the edge reads it for headers and logs."""

    decisions: list[RoutingDecision] = field(default_factory=list)
    """All placements on a rank, in order; more than one after a resumption."""
    model: str | None = None
    """Name of the requested model. None if the router serves only one."""
    waited: float = 0.0
    """Time in the admission queue, including parked time, seconds."""
    parked: bool = False
    """Whether the request waited because no group was ready."""
    resumes: int = 0
    """Number of resumptions on another group after a loss."""
    arrived_at: float | None = None
    """Time of arrival at the edge, monotonic seconds."""
    first_token_at: float | None = None
    """Time of arrival of the first token, monotonic seconds. None until then."""
    cached_tokens: int = 0
    """Number of prompt tokens that came from a KV cache."""
    ended: Usage = field(default_factory=Usage)
    """Usage of the prompts whose generation has ended."""
    running: list[Generation] = field(default_factory=list)
    """Prompts whose generation was admitted and has not ended."""
    record_id: str | None = None
    """Id of the request's record in the ledger, to which the reservations of its budgets refer. If
    None, an id is assigned when the request is recorded."""
    budget_warning: str | None = None
    """Warning for the client about a budget whose soft limit is reached; ASCII text."""
    raw_text: bool = False
    """Whether the response is raw text; its reasoning tokens are counted in ``usage``."""
    reasoning_tokens: int | None = None
    """Number of reasoning tokens among the output tokens, as reported by the handler. None if the
    handler does not report them."""
    ledgered: bool = False
    """Whether the request has been recorded in the ledger, which happens once."""
    load_checked: bool = False
    """Whether ``FleetClient.check_load`` has passed; it runs once per request."""
    prompts: int = 0
    """Number of prompts that have been started; a completion may have a thousand."""
    responded: bool = False
    """Whether any part of the response has been sent, including a keep-alive comment."""
    trace: RequestTrace | None = None
    """The request's trace. None if tracing is off or the request is not sampled."""
    on_resumed: Callable[[], None] | None = None
    """Called when the request has been placed on another rank after a loss."""

    def usage(self) -> Usage:
        """Return the usage of all prompts so far.

        A generator that was not closed after its client disconnected is included.
        """
        return sum((each.usage() for each in self.running), self.ended)


class Yielding(Protocol):
    """Lets a request of a batch run only while no other request needs its rank."""

    async def turn(self, context: "RequestContext", tokens: int, prompt_tokens: int) -> None:
        """Wait until the request may be placed; ``placed`` or ``declined`` must follow.

        Args:
            context: The request's context.
            tokens: Prompt and expected output tokens.
            prompt_tokens: Prompt tokens alone.
        """
        ...

    def placed(
        self, context: "RequestContext", rank: RankId, give_way: Callable[[], None]
    ) -> Callable[[], None]:
        """Record that the request runs on a rank.

        Args:
            context: The request's context.
            rank: The rank.
            give_way: Removes the request from the rank; it then waits for its next turn.

        Returns:
            A function to call when the request has left the rank; it can be called more than once.
        """
        ...

    def declined(self, context: "RequestContext") -> None:
        """Record that no rank accepted the request."""
        ...


class ContextFields(TypedDict, total=False):
    """Fields of a request's log line that come from its context."""

    tenant: str
    priority: str
    waited: float
    resumes: int
    parked: bool | None
    group: str | None
    rank: int | None
    cached_tokens: int | None
    trace_id: str | None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Tenant, priority and limits of one request; the defaults apply to a router without keys."""

    tenant: str = "anonymous"
    priority: Priority = Priority.STANDARD
    session_id: str | None = None
    roles: frozenset[str] = frozenset()
    explain: bool = False
    """Whether the client requested an explanation of the routing decision and is permitted to see
    it."""
    shows_cost: bool = False
    """Whether the client requested the cost of the request and is permitted to see it."""
    deadline: float | None = None
    """The client's deadline, seconds on the router's monotonic clock. If None, only
    ``router.request_timeout`` applies."""
    key_id: str | None = None
    """Id of the API key. None if no key is required."""
    reasoning: ReasoningPolicy | None = None
    """Defaults and caps for reasoning. If None, no policy applies."""
    yielding: Yielding | None = None
    """Decides when a request of a batch runs. None if the request does not belong to a batch."""
    record: RequestRecord = field(default_factory=RequestRecord, compare=False)

    def log_fields(self) -> ContextFields:
        """Return the fields of the request's log line."""
        record = self.record
        last = record.decisions[-1] if record.decisions else None
        return {
            "tenant": self.tenant,
            "priority": self.priority.name.lower(),
            "waited": record.waited,
            "resumes": record.resumes,
            "parked": record.parked or None,
            "group": last.rank_id.group_id if last else None,
            "rank": last.rank_id.rank if last else None,
            "cached_tokens": record.cached_tokens if last else None,
            "trace_id": record.trace.trace_id if record.trace else None,
        }


request_context_var: ContextVar[RequestContext | None] = ContextVar(
    "serving.request_context", default=None
)
"""Context of the request handled by the current task; None outside of requests."""


def current_context() -> RequestContext:
    """Return the context of the current request, or a default context outside of requests."""
    return request_context_var.get() or RequestContext()


@contextmanager
def use_request_context(context: RequestContext | None) -> Iterator[None]:
    """Set ``request_context_var`` in the block.

    None must be set explicitly: uvicorn can read the next request of a connection in the context of
    the previous one, whose value must not apply to the next request.
    """
    token = request_context_var.set(context)
    try:
        yield
    finally:
        request_context_var.reset(token)
