"""Token counts by tenant, with a limit on the number of tenant labels."""

from collections.abc import Callable

from serving.telemetry import metrics

OTHER = "other"
"""Label of all tenants beyond the limit."""

_Increment = Callable[[float], None]


class TenantTokens:
    """Counts tokens individually for the first ``limit`` tenants, and together for all others.

    Prometheus labels persist until the process ends, so the first tenants keep their labels.
    """

    def __init__(self, limit: int) -> None:
        """Count at most ``limit`` tenants individually."""
        self._limit = limit
        self._counters: dict[str, tuple[_Increment, _Increment, _Increment]] = {}
        self._other = _counters(OTHER)

    def count(self, tenant: str, *, prompt: int, cached: int, generated: int) -> None:
        """Count the tokens of a finished request.

        Args:
            tenant: Tenant of the request.
            prompt: Prompt tokens, including cached ones.
            cached: Prompt tokens that came from the KV cache.
            generated: Tokens received from ranks.
        """
        counters = self._counters.get(tenant)
        if counters is None:
            counters = self._other
            if len(self._counters) < self._limit:
                counters = self._counters[tenant] = _counters(tenant)
        for increment, tokens in zip(counters, (prompt, cached, generated), strict=True):
            increment(tokens)


class TenantPrices:
    """Sums prices like ``TenantTokens``."""

    def __init__(self, limit: int) -> None:
        """Sum the prices of at most ``limit`` tenants individually."""
        self._limit = limit
        self._known: set[str] = set()

    def count(self, tenant: str, amount: float) -> None:
        """Add the price of a tenant's requests, in the tariff's currency."""
        if tenant not in self._known:
            if len(self._known) >= self._limit:
                tenant = OTHER
            else:
                self._known.add(tenant)
        metrics.TENANT_PRICE.labels(tenant).inc(amount)


def _counters(tenant: str) -> tuple[_Increment, _Increment, _Increment]:
    kinds = metrics.TENANT_TOKENS
    return (
        kinds.labels(tenant, "prompt").inc,
        kinds.labels(tenant, "cached").inc,
        kinds.labels(tenant, "generated").inc,
    )
