"""Queries to the ledger, and the sums that they return; no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serving.ledger.tariff import Tokens

DAY = 86_400
HOUR = 3_600


class GroupBy(StrEnum):
    """Fields of a request by which usage can be grouped."""

    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"
    BATCH = "batch"
    """Whether the request was a line of a batch."""


@dataclass(frozen=True, slots=True)
class Query:
    """The requests to sum, and how to group them."""

    start: int
    """Start, Unix seconds; a multiple of ``width``."""
    end: int
    """End (exclusive), Unix seconds; a multiple of ``width``."""
    width: int = DAY
    """Length of a period, seconds."""
    group_by: frozenset[GroupBy] = frozenset({GroupBy.TENANT, GroupBy.MODEL})
    tenants: Sequence[str] = ()
    """Values to include; empty for all."""
    models: Sequence[str] = ()
    keys: Sequence[str] = ()
    batch: bool | None = None
    """Whether to include only lines of batches (True) or only other requests (False). None means
    all."""


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Sums over requests with the same period, quarter hour of the day and group."""

    start: int
    """Start of the period, Unix time."""
    quarter: int
    """Quarter hour of the day (UTC) in which the requests ended, 0 to 95."""
    model: str
    tenant: str | None
    """Name of the tenant. None if not grouped by tenant."""
    key_id: str | None
    """Id of the key. None if not grouped by key, or if no key was required."""
    tokens: Tokens = field(default_factory=Tokens)
    rank_us: int = 0
    batch: bool = False
    """Whether the requests were lines of batches, which have other prices."""


@dataclass(frozen=True, slots=True)
class CapacitySum:
    """GPU time of all groups in one period, microseconds."""

    start: int
    gpu_us: int
    """GPU time allocated to groups."""
    busy_us: int
    """Part of ``gpu_us`` spent in engine steps."""
