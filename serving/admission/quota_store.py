"""Quota counters: in this process, or in a Redis server that several routers share.

Requests and tokens are counted in sliding windows of 60 s by the asynchronous storages of the
``limits`` package. Streams are leases that expire at the request's deadline, which also frees the
streams of a router that died.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import redis.asyncio
from limits.aio.storage import MemoryStorage, RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serving.errors import SettingsError
from serving.settings import AdmissionSettings

STORE_ERRORS = (RedisError, OSError, TimeoutError)
"""Exceptions that a shared store raises when it fails."""
WINDOW = 60
"""Length of a window, seconds."""

_NO_LIMIT = 2**53
"""Limit passed for charges, which are never rejected: the largest integer that Lua represents
exactly."""

_OPEN_STREAM = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
    return 0
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
local left = math.ceil(tonumber(ARGV[2]))
if redis.call('TTL', KEYS[1]) < left then
    redis.call('EXPIRE', KEYS[1], left)
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window: the previous window counts in proportion to its remaining overlap."""

    previous: int
    """Amount counted in the previous window."""
    previous_left: float
    """Time until the previous window no longer counts, seconds."""
    current: int
    """Amount counted in the current window."""
    current_left: float
    """Time until the current window ends, seconds."""

    @property
    def used(self) -> float:
        """The current weighted count."""
        return self.previous * self.previous_left / WINDOW + self.current

    def seconds_until(self, limit: int) -> float:
        """Return the seconds until ``used`` decays below ``limit``; 0 if it is below already."""
        if self.used < limit:
            return 0.0
        if self.current < limit:
            # The previous window decays: previous * left / WINDOW + current = limit.
            return self.previous_left - (limit - self.current) * WINDOW / self.previous
        # The current window first has to become the previous one, then it decays.
        return self.current_left + WINDOW * (1 - limit / self.current)


class QuotaStore(Protocol):
    """Counters per tenant. Every method can raise one of ``STORE_ERRORS``."""

    async def count_request(self, tenant: str, limit: int) -> bool:
        """Count a request unless the window would exceed ``limit``; return whether it did."""
        ...

    async def requests(self, tenant: str) -> Window:
        """Return the window that counts requests."""
        ...

    async def charge_tokens(self, tenant: str, tokens: int) -> None:
        """Count tokens without a limit; a negative number refunds tokens."""
        ...

    async def tokens(self, tenant: str) -> Window:
        """Return the window of tokens."""
        ...

    async def open_stream(self, tenant: str, stream: str, limit: int, seconds: float) -> bool:
        """Open a stream unless ``limit`` streams are open; return whether it was opened.

        Args:
            tenant: The tenant.
            stream: Unique name of the stream.
            limit: Maximum number of open streams of the tenant.
            seconds: Time after which the stream counts as closed.
        """
        ...

    async def close_stream(self, tenant: str, stream: str) -> None:
        """Close a stream; ignored if it is not open."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class _Windows:
    """The sliding windows, which both stores keep in a storage of the ``limits`` package."""

    def __init__(self, storage: MemoryStorage | RedisStorage) -> None:
        self._storage = storage

    async def count_request(self, tenant: str, limit: int) -> bool:
        return await self._storage.acquire_sliding_window_entry(f"requests/{tenant}", limit, WINDOW)

    async def requests(self, tenant: str) -> Window:
        return await self._window(f"requests/{tenant}")

    async def charge_tokens(self, tenant: str, tokens: int) -> None:
        await self._storage.acquire_sliding_window_entry(
            f"tokens/{tenant}", _NO_LIMIT, WINDOW, tokens
        )

    async def tokens(self, tenant: str) -> Window:
        return await self._window(f"tokens/{tenant}")

    async def _window(self, key: str) -> Window:
        previous, previous_left, current, current_left = await self._storage.get_sliding_window(
            key, WINDOW
        )
        # limits keeps a window's key for one more window after its end and returns the key's
        # remaining time.
        return Window(previous, previous_left, current, max(current_left - WINDOW, 0.0))


class MemoryQuotas(_Windows):
    """Counters in this process. Create in a running event loop."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__(MemoryStorage())
        self._monotonic = monotonic
        self._streams: defaultdict[str, dict[str, float]] = defaultdict(dict)

    async def open_stream(self, tenant: str, stream: str, limit: int, seconds: float) -> bool:
        """See ``QuotaStore``."""
        now = self._monotonic()
        held = self._streams[tenant]
        for ended in [name for name, until in held.items() if until <= now]:
            del held[ended]
        if self.open_streams(tenant) >= limit:
            return False
        held[stream] = now + seconds
        return True

    def open_streams(self, tenant: str) -> int:
        """Return the number of a tenant's open streams, including expired ones."""
        return len(self._streams.get(tenant, ()))

    async def close_stream(self, tenant: str, stream: str) -> None:
        """See ``QuotaStore``."""
        held = self._streams[tenant]
        held.pop(stream, None)
        if not held:
            del self._streams[tenant]

    async def close(self) -> None:
        """Yield to the event loop once, so that the storage's task can end."""
        await asyncio.sleep(0)


class RedisQuotas(_Windows):
    """Counters in a Redis server that several routers share."""

    def __init__(
        self, url: str, timeout: float, *, password: str | None = None, prefix: str = "moe-serving"
    ) -> None:
        """Prepare a connection, which is opened by the first call.

        Args:
            url: redis://, rediss:// or unix://.
            timeout: Timeout for connecting and for each response, seconds.
            password: Password of the Redis user. None means no password.
            prefix: Prefix of all keys.

        Raises:
            ValueError: The URL is not a Redis URL.
        """
        self._pool: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # No retries: a request waits for the response.
            retry=Retry(NoBackoff(), 0),
            **({} if password is None else {"password": password}),
        )
        self._client = redis.asyncio.Redis(connection_pool=self._pool)
        super().__init__(
            RedisStorage(
                "async+redis://",  # the address comes from the pool
                implementation="redispy",
                key_prefix=prefix,
                connection_pool=self._pool,  # type: ignore[arg-type]
            )
        )
        self._prefix = prefix
        self._open = self._client.register_script(_OPEN_STREAM)

    async def open_stream(self, tenant: str, stream: str, limit: int, seconds: float) -> bool:
        """See ``QuotaStore``."""
        return bool(await self._open(keys=[self._key(tenant)], args=[limit, seconds, stream]))

    async def close_stream(self, tenant: str, stream: str) -> None:
        """See ``QuotaStore``."""
        await self._client.zrem(self._key(tenant), stream)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._pool.disconnect()

    def _key(self, tenant: str) -> str:
        return f"{self._prefix}:streams/{tenant}"


def shared_store(settings: AdmissionSettings) -> RedisQuotas | None:
    """Build the shared store from the settings; return None if ``redis_url`` is not set.

    Raises:
        SettingsError: The Redis URL is invalid, or its password file cannot be read.
    """
    if settings.redis_url is None:
        return None
    password = None
    try:
        if settings.redis_password_file is not None:
            password = Path(settings.redis_password_file).read_text("utf-8").strip()
        return RedisQuotas(settings.redis_url, settings.redis_timeout, password=password)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"admission.redis_url or admission.redis_password_file: {error}"
        ) from error
