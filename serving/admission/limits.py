"""What a tenant may use: requests and tokens a minute, and streams at the same time.

Windows are sliding ones of 60 s (``limits``: the last window counts by how much of it is still
inside). Prompt tokens are charged when the request comes in, generated ones when it ends; that
may go over the limit, and the next request is refused until enough of it has passed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.settings import AdmissionSettings

WINDOW = 60
"""Seconds."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Of one tenant; none: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and generated."""
    concurrent_streams: int | None = None
    """Requests in flight or waiting."""
    weight: float = 1.0
    """Share of the fleet relative to other tenants when there is not enough for all."""

    def __post_init__(self) -> None:
        """Refuse a weight that no share can be made of.

        Raises:
            ValueError: it is not above 0.
        """
        if not self.weight > 0:
            raise ValueError(f"a tenant's weight must be above 0, got {self.weight}")

    @property
    def limited(self) -> bool:
        """Whether there is anything to count."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent_streams is not None
        )


LimitsOf = Callable[[str], TenantLimits]
"""The limits of a tenant by name; must not wait."""


def default_limits(settings: AdmissionSettings) -> LimitsOf:
    """Return the same limits, those of the settings, for every tenant."""
    limits = TenantLimits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        concurrent_streams=settings.concurrent_streams,
    )
    return lambda _tenant: limits


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window as the store has it."""

    previous: int
    """Counted in the window before."""
    previous_left: float
    """Seconds until none of that counts any more."""
    current: int
    """Counted in the window that runs now."""
    current_left: float
    """Seconds until this window is over."""

    @property
    def used(self) -> float:
        """What counts now."""
        return self.previous * self.previous_left / WINDOW + self.current

    def seconds_until(self, limit: int) -> float:
        """Seconds until ``used`` is below ``limit`` if nothing is added; 0 if it is now."""
        if self.used < limit:
            return 0.0
        if self.current < limit:
            # The previous window fades: previous * left / WINDOW + current = limit.
            return self.previous_left - (limit - self.current) * WINDOW / self.previous
        # First this window has to become the previous one, then it fades.
        return self.current_left + WINDOW * (1 - limit / self.current)
