"""Format of the key file.

    keys:
      - id: alice-laptop            names the key in messages and logs
        hash: sha256:9f86d08...     hash of the complete key
        tenant: alice               tenant whose quota and fair share the key uses
        roles: [user, explain]      default: [user]
        priorities: [standard]      default: all
        expires: 2027-01-31         optional; the key is invalid from this date on
    tenants:                        omitted limits come from the admission settings
      alice:
        requests_per_minute: 600
        concurrent_streams: 16
        weight: 2
        budgets: {month: {soft: 80, hard: 100}}
        reasoning: {max_thinking_token_budget: 2000}

Keys can also have ``budgets`` and ``reasoning``.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.ledger.budget import Period
from serving.request_context import Effort, Priority, is_above
from serving.settings.ledger import Money

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class Role(StrEnum):
    """Role of an API key."""

    USER = "user"
    """Use the model."""
    METRICS = "metrics"
    """Read /metrics."""
    EXPLAIN = "explain"
    """Read routing explanations (x-explain-routing)."""
    COST = "cost"
    """Read the cost of a request (x-request-cost)."""
    ADMIN = "admin"
    """All routes and RPCs, including /fleet and FleetService."""


class _Part(BaseModel):
    # Messages must not show the input, which can be a key entered by mistake in place of its hash.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BudgetEntry(_Part):
    """Spending limits for a period, in the tariff's currency."""

    soft: Money | None = None
    hard: Money | None = None

    @model_validator(mode="after")
    def _check(self) -> "BudgetEntry":
        if self.soft is None and self.hard is None:
            raise ValueError("must have soft, hard or both")
        if self.soft is not None and self.hard is not None and self.soft > self.hard:
            raise ValueError("soft must not be above hard")
        return self


class ReasoningEntry(_Part):
    """Defaults and caps for reasoning (``ReasoningPolicy``)."""

    thinking_token_budget: int | None = Field(None, ge=0)
    max_thinking_token_budget: int | None = Field(None, ge=0)
    reasoning_effort: Effort | None = None
    max_reasoning_effort: Effort | None = None
    hidden: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ReasoningEntry":
        budget, most = self.thinking_token_budget, self.max_thinking_token_budget
        if budget is not None and most is not None and budget > most:
            raise ValueError("thinking_token_budget must not be above max_thinking_token_budget")
        effort, highest = self.reasoning_effort, self.max_reasoning_effort
        if effort is not None and highest is not None and is_above(effort, highest):
            raise ValueError("reasoning_effort must not be above max_reasoning_effort")
        return self


class KeyEntry(_Part):
    """One API key."""

    id: str = Field(pattern=_NAME)
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    tenant: str = Field(pattern=_NAME)
    roles: Sequence[Role] = (Role.USER,)
    priorities: Sequence[Annotated[str, Field(pattern="^(interactive|standard|batch)$")]] = Field(
        tuple(item.name.lower() for item in Priority), min_length=1
    )
    expires: dt.datetime | dt.date | None = None
    budgets: Mapping[Period, BudgetEntry] = {}
    reasoning: ReasoningEntry = ReasoningEntry()


class TenantEntry(_Part):
    """Limits of one tenant."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_streams: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    budgets: Mapping[Period, BudgetEntry] = {}
    reasoning: ReasoningEntry = ReasoningEntry()


class KeyFile(_Part):
    """The whole file."""

    keys: list[KeyEntry] = []
    tenants: dict[Annotated[str, Field(pattern=_NAME)], TenantEntry] = {}
