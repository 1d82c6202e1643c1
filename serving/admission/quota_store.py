"""Where quotas are counted: in this process, or in a Redis that several routers share.

Windows are counted by ``limits``' asynchronous storages. Streams are leases that end by
themselves at the request's deadline, so what a dead router held is free again by then.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import redis.asyncio
from limits.aio.storage import MemoryStorage, RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serving.admission.limits import WINDOW, Window
from serving.errors import SettingsError
from serving.settings import AdmissionSettings

STORE_ERRORS = (RedisError, OSError, TimeoutError)
"""What a shared store fails with."""

_NO_LIMIT = 2**53
"""Charges are always taken; the largest number that Lua counts exactly."""

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


class QuotaStore(Protocol):
    """Counts per tenant. Every method may raise one of ``STORE_ERRORS``."""

    async def count_request(self, tenant: str, limit: int) -> bool:
        """Count one request if that stays within ``limit`` a window; false if not."""
        ...

    async def requests(self, tenant: str) -> Window:
        """Return the window of requests."""
        ...

    async def charge_tokens(self, tenant: str, tokens: int) -> None:
        """Count tokens, whatever the limit; negative ones are given back."""
        ...

    async def tokens(self, tenant: str) -> Window:
        """Return the window of tokens."""
        ...

    async def open_stream(self, tenant: str, stream: str, limit: int, seconds: float) -> bool:
        """Take a lease of at most ``seconds`` if fewer than ``limit`` are held; false if not."""
        ...

    async def close_stream(self, tenant: str, stream: str) -> None:
        """Give a lease back; unknown ones are ignored."""
        ...

    async def close(self) -> None:
        """Free connections."""
        ...


class _Windows:
    """The part that both stores have in common."""

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
        # limits keeps a window for another one after its end; what it calls the time left is of
        # the key, not of the window.
        return Window(previous, previous_left, current, max(current_left - WINDOW, 0.0))


class MemoryQuotas(_Windows):
    """In this process alone. Needs a running event loop from the start."""

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
        if len(held) >= limit:
            return False
        held[stream] = now + seconds
        return True

    async def close_stream(self, tenant: str, stream: str) -> None:
        """See ``QuotaStore``."""
        held = self._streams[tenant]
        held.pop(stream, None)
        if not held:
            del self._streams[tenant]

    async def close(self) -> None:
        """Let the storage's own short task end."""
        await asyncio.sleep(0)


class RedisQuotas(_Windows):
    """In a Redis server that several routers share."""

    def __init__(
        self, url: str, timeout: float, *, password: str | None = None, prefix: str = "moe-serving"
    ) -> None:
        """Connect with the first call.

        Args:
            url: redis://, rediss:// or unix://.
            timeout: seconds for connecting and for an answer.
            password: if it needs one.
            prefix: of all keys.

        Raises:
            ValueError: the URL is not one of Redis.
        """
        self._pool: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # Whoever waits for a quota cannot wait for retries.
            retry=Retry(NoBackoff(), 0),
            **({} if password is None else {"password": password}),
        )
        self._client = redis.asyncio.Redis(connection_pool=self._pool)
        super().__init__(
            RedisStorage(
                "async+redis://",  # the pool says where
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
    """Build the store that the settings name; it connects with the first call.

    Raises:
        SettingsError: the Redis URL or the file with its password is no good.
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
