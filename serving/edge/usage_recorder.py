"""Writes a request's record to the ledger before its client can see that it has finished.

The protocols call ``record`` at the last part of a complete response, before sending it, and again
when a request has ended in any other way; the second call for a request has no effect.
"""

from typing import TYPE_CHECKING, Any

from serving.clock import Clock
from serving.ledger.budget import price
from serving.ledger.records import RequestUsage, microseconds
from serving.ledger.tariff import Tokens
from serving.request_context import RequestContext, RequestRecord, Usage
from serving.telemetry.logs import RequestLine

if TYPE_CHECKING:  # imports SQLAlchemy, which a router without a ledger does not need
    from serving.ledger.ledger import Ledger


class UsageRecorder:
    """Records the requests of both protocols."""

    def __init__(self, ledger: "Ledger", clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    def cost(self, context: RequestContext, model: str, usage: Any = None) -> str | None:
        """Return the price of a finished request as text; None if not permitted or not known.

        Args:
            context: The request's context.
            model: Name of the model.
            usage: See ``record``.
        """
        if not context.shows_cost:
            return None
        tariff = self._ledger.database.tariff
        used = context.record.usage()
        reasoning = _reasoning_tokens(context.record, used, usage) or 0
        tokens = Tokens(1, used.prompt_tokens, used.cached_tokens, used.output_tokens, reasoning)
        amounts = price(
            tariff, model, tokens, self._clock.time(), batch=context.yielding is not None
        )
        return None if amounts is None else f"{amounts.total.normalize():f} {tariff.currency}"

    def record(self, line: RequestLine, context: RequestContext, usage: Any = None) -> None:
        """Record a request that has reached a rank, unless it is already recorded.

        Requests that have not reached a rank used no tokens, and a flood of them must not fill the
        ledger; metrics and log lines report them.

        Args:
            line: The request's log line.
            context: The request's context.
            usage: vLLM's ``UsageInfo``, which has the reasoning tokens of chats. None if unknown.
        """
        record = context.record
        if record.ledgered:
            return
        used = record.usage()
        if not used.prompt_tokens:
            return
        record.ledgered = True
        speculative = bool(used.drafted_tokens)
        self._ledger.append(
            RequestUsage(
                record_id=record.record_id or next(self._ledger.record_ids),
                finished_us=microseconds(self._clock.time()),
                request_id=line.request_id,
                tenant=context.tenant,
                key_id=context.key_id,
                model=line.model,
                priority=context.priority.name.lower(),
                protocol=line.protocol,
                route=line.method,
                outcome=line.outcome,
                prompt_tokens=used.prompt_tokens,
                cached_tokens=used.cached_tokens,
                output_tokens=used.output_tokens,
                rank_us=microseconds(used.rank_seconds),
                duration_us=microseconds(line.duration),
                resumptions=record.resumes,
                reasoning_tokens=_reasoning_tokens(record, used, usage),
                drafted_tokens=used.drafted_tokens if speculative else None,
                accepted_tokens=used.accepted_tokens if speculative else None,
                ttft_us=None if line.ttft is None else microseconds(line.ttft),
            )
        )


def _reasoning_tokens(record: RequestRecord, used: Usage, usage: Any) -> int | None:
    """Return the number of reasoning tokens in the output, or None if unknown."""
    details = getattr(usage, "completion_tokens_details", None)
    if details is not None:
        found: int | None = details.reasoning_tokens
        return found
    return used.reasoning_tokens if record.raw_text else record.reasoning_tokens
