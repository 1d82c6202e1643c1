"""Token counts by tenant, with a bound on how many tenants are told apart."""

from collections.abc import Callable

from serving.telemetry import metrics

OTHER = "other"
"""Label of all tenants beyond the bound."""

_Increment = Callable[[float], None]


class TenantTokens:
    """Counts tokens for the tenants that came first, each for itself, and for the rest together.

    Labels of Prometheus never go away in a process, so who came first keeps his place.
    """

    def __init__(self, limit: int) -> None:
        """Tell at most ``limit`` tenants apart."""
        self._limit = limit
        self._counters: dict[str, tuple[_Increment, _Increment, _Increment]] = {}
        self._other = _counters(OTHER)

    def count(self, tenant: str, *, prompt: int, cached: int, generated: int) -> None:
        """Note the tokens of a request that ended.

        Args:
            tenant: whose.
            prompt: prompt tokens, those from the cache included.
            cached: of the prompt, tokens that came from the KV cache.
            generated: tokens that were received.
        """
        counters = self._counters.get(tenant)
        if counters is None:
            counters = self._other
            if len(self._counters) < self._limit:
                counters = self._counters[tenant] = _counters(tenant)
        for increment, tokens in zip(counters, (prompt, cached, generated), strict=True):
            increment(tokens)


def _counters(tenant: str) -> tuple[_Increment, _Increment, _Increment]:
    kinds = metrics.TENANT_TOKENS
    return (
        kinds.labels(tenant, "prompt").inc,
        kinds.labels(tenant, "cached").inc,
        kinds.labels(tenant, "generated").inc,
    )
