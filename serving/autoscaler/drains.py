"""Tells every router to empty a group before it goes, over FleetService.

A drain that fails does not stop a scale-down that Ray Serve carries out anyway: a rank that is
stopped drains by itself, and what is left of its requests goes on in other groups.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.autoscaler.routers import bearer
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings

_CALL_TIMEOUT = 5.0
_DRAIN_SLACK = 5.0
"""Seconds that a drain's answer may take beyond its time-out."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class Drainer(Protocol):
    """Empties groups; ``Drains`` is the real one."""

    async def drain(self, group_id: str, reason: str) -> bool:
        """Give the group no new work and wait for what it has; return whether all ended well."""
        ...

    async def restore(self, group_id: str) -> None:
        """Give it work again: it stays after all."""
        ...


@dataclass(frozen=True, slots=True)
class _Target:
    address: str
    stub: Any


class Drains:
    """Drains at all routers. Never raises for a router that does not answer."""

    def __init__(self, settings: AutoscalerSettings) -> None:
        """Prepare channels; they connect when they are used.

        Raises:
            SettingsError: a file that the settings name cannot be read.
        """
        self._timeout = settings.drain_timeout
        self._metadata = tuple(bearer(settings.api_key_file).items())
        self._channels = tuple(
            _channel(address, settings.ca_file) for address in settings.drain_addresses
        )
        self._routers = tuple(
            _Target(address, fleet_pb2_grpc.FleetServiceStub(channel))
            for address, channel in zip(settings.drain_addresses, self._channels, strict=True)
        )

    async def drain(self, group_id: str, reason: str) -> bool:
        """Cordon the group everywhere, then wait until it is empty everywhere."""
        request = fleet_pb2.CordonRequest(group_id=group_id, reason=reason)
        # All at once first: while one router drains it, another must not send it new work.
        await self._all("Cordon", lambda stub: self._call(stub.Cordon, request))
        drain = fleet_pb2.DrainRequest(group_id=group_id, timeout_seconds=self._timeout)
        answers = await self._all(
            "Drain", lambda stub: self._call(stub.Drain, drain, self._timeout + _DRAIN_SLACK)
        )
        return all(answer is not None and answer.finished for answer in answers)

    async def restore(self, group_id: str) -> None:
        """Uncordon the group everywhere."""
        request = fleet_pb2.UncordonRequest(group_id=group_id)
        await self._all("Uncordon", lambda stub: self._call(stub.Uncordon, request))

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close(grace=None) for channel in self._channels))

    def _call(self, method: Any, request: Any, timeout: float = _CALL_TIMEOUT) -> Awaitable[Any]:
        answer: Awaitable[Any] = method(request, timeout=timeout, metadata=self._metadata)
        return answer

    async def _all(self, name: str, call: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        async def one(router: _Target) -> Any:
            try:
                return await call(router.stub)
            except grpc.aio.AioRpcError as error:
                log.warning(
                    "router did not do it",
                    call=name,
                    router=router.address,
                    error=f"{error.code().name} {error.details()}",
                )
                return None

        return await asyncio.gather(*map(one, self._routers))


def _channel(address: str, ca_file: str | None) -> grpc.aio.Channel:
    options = (("grpc.enable_http_proxy", 0),)
    if ca_file is None:
        return grpc.aio.insecure_channel(address, options=options)
    try:
        authorities = Path(ca_file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {ca_file}: {error.strerror}") from error
    credentials = grpc.ssl_channel_credentials(authorities)
    return grpc.aio.secure_channel(address, credentials, options=options)
