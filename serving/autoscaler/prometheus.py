"""Prometheus's HTTP API, as far as it is needed: one instant query, one number."""

import math
from typing import Any

import httpx

from serving.errors import ServingError


class PrometheusDown(ServingError):
    """Prometheus does not answer, or not with an answer."""


class PrometheusApi:
    """Asks one Prometheus, by its documented HTTP API (querying/api, version 1)."""

    def __init__(self, client: httpx.AsyncClient, url: str, timeout: float) -> None:
        """Ask at ``url``; an answer may take ``timeout`` seconds."""
        self._client = client
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._timeout = timeout

    async def number(self, query: str) -> float | None:
        """Return the value of a query that gives one series, or None if there is no value.

        Raises:
            PrometheusDown: it does not answer in time, refuses, or gives several series.
        """
        try:
            # POST: a query does not end up in a proxy's log or cache.
            answer = await self._client.post(
                self._url,
                data={"query": query, "timeout": f"{self._timeout:g}s"},
                timeout=self._timeout,
            )
            content = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise PrometheusDown(
                f"Prometheus at {self._url} does not answer: {type(error).__name__} {error}"
            ) from error
        if not isinstance(content, dict) or content.get("status") != "success":
            said = content.get("error") if isinstance(content, dict) else content
            raise PrometheusDown(f"Prometheus answered {answer.status_code}: {said}")
        return _number(content)


def _number(content: dict[str, Any]) -> float | None:
    try:
        series = content["data"]["result"]
        if not series:
            return None
        if len(series) > 1:
            raise PrometheusDown(f"Prometheus gave {len(series)} series where one was asked for")
        value = float(series[0]["value"][1])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PrometheusDown("Prometheus gave an answer that cannot be read") from error
    # A quantile over nothing is NaN; one in the last bucket is its lower bound, never infinite.
    return value if math.isfinite(value) else None
