"""Drains a group at every router before it is removed, through FleetService.

A failed drain does not block a scale-down: a rank that is stopped by Ray Serve drains itself, and
its remaining requests resume on other groups.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.autoscaler.routers import bearer_header
from serving.errors import SettingsError
from serving.net import Target, dns_name, expanded
from serving.settings import AutoscalerSettings

_CALL_TIMEOUT = 5.0
_DRAIN_SLACK = 5.0
"""Time for the response to a drain beyond the drain timeout, seconds."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class Drainer(Protocol):
    """Drains groups; implemented by ``RouterDrainer``."""

    async def drain(self, group_id: str, reason: str) -> bool:
        """Stop routing requests to the group and wait for the running ones.

        Returns:
            Whether all running requests finished.
        """
        ...

    async def restore(self, group_id: str) -> None:
        """Route requests to the group again."""
        ...


@dataclass(frozen=True, slots=True)
class _Router:
    address: str
    stub: Any


class RouterDrainer:
    """Drains groups at all routers. A router that does not respond is logged, not raised."""

    def __init__(self, settings: AutoscalerSettings) -> None:
        """Read key and certificates. Routers are resolved and connected for each call.

        Raises:
            SettingsError: A file cannot be read, or an address is invalid.
        """
        for address in settings.drain_addresses:
            try:
                dns_name(address)
            except ValueError as error:
                raise SettingsError(f"autoscaler.drain_addresses: {error}") from error
        self._timeout = settings.drain_timeout
        self._metadata = tuple(bearer_header(settings.api_key_file).items())
        self._addresses = settings.drain_addresses
        self._authorities = _authorities(settings.ca_file)

    async def drain(self, group_id: str, reason: str) -> bool:
        """Cordon the group at all routers, then wait until all have drained it."""
        cordon = fleet_pb2.CordonRequest(group_id=group_id, reason=reason)
        drain = fleet_pb2.DrainRequest(group_id=group_id, timeout_seconds=self._timeout)
        async with self._routers() as routers:
            # Cordon at all routers first, so that none adds requests while another drains.
            await self._all(routers, "Cordon", lambda stub: self._call(stub.Cordon, cordon))
            answers = await self._all(
                routers,
                "Drain",
                lambda stub: self._call(stub.Drain, drain, self._timeout + _DRAIN_SLACK),
            )
        # If no router was called, nothing has been drained.
        return bool(answers) and all(answer is not None and answer.finished for answer in answers)

    async def restore(self, group_id: str) -> None:
        """Uncordon the group at all routers."""
        request = fleet_pb2.UncordonRequest(group_id=group_id)
        async with self._routers() as routers:
            await self._all(routers, "Uncordon", lambda stub: self._call(stub.Uncordon, request))

    @asynccontextmanager
    async def _routers(self) -> AsyncIterator[list[_Router]]:
        """Connect to the current routers; yield none if their name cannot be resolved."""
        targets: list[Target] = []
        try:
            targets = await expanded(self._addresses)
        except OSError as error:
            log.warning(
                "cannot resolve the routers' names", names=self._addresses, error=str(error)
            )
        async with AsyncExitStack() as stack:
            routers = []
            for target in targets:
                channel = _channel(target, self._authorities)
                stack.push_async_callback(channel.close, None)
                stub = fleet_pb2_grpc.FleetServiceStub(channel)
                routers.append(_Router(target.address, stub))
            yield routers

    def _call(self, method: Any, request: Any, timeout: float = _CALL_TIMEOUT) -> Awaitable[Any]:
        answer: Awaitable[Any] = method(request, timeout=timeout, metadata=self._metadata)
        return answer

    async def _all(
        self, routers: Sequence[_Router], name: str, call: Callable[[Any], Awaitable[Any]]
    ) -> list[Any]:
        async def one(router: _Router) -> Any:
            try:
                return await call(router.stub)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    # The router has just started, and no rank of the group has joined it yet.
                    return fleet_pb2.DrainResponse(finished=True)
                log.warning(
                    "router call failed",
                    call=name,
                    router=router.address,
                    error=f"{error.code().name} {error.details()}",
                )
                return None

        return await asyncio.gather(*map(one, routers))


def _authorities(ca_file: str | None) -> bytes | None:
    if ca_file is None:
        return None
    try:
        return Path(ca_file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {ca_file}: {error.strerror}") from error


def _channel(target: Target, authorities: bytes | None) -> grpc.aio.Channel:
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if authorities is None:
        return grpc.aio.insecure_channel(target.address, options=options)
    if target.server_name is not None:
        options.append(("grpc.ssl_target_name_override", target.server_name))
    credentials = grpc.ssl_channel_credentials(authorities)
    return grpc.aio.secure_channel(target.address, credentials, options=options)
