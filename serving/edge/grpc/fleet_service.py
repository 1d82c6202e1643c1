"""FleetService: /fleet over gRPC, operations on groups, and LoRA adapters."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.edge.adapter_pages import AdapterAdmin
from serving.edge.auth.authenticator import principal_var
from serving.edge.fleet_view import FleetView, adapter_proto
from serving.edge.grpc.errors import BadField, rpc_error
from serving.errors import ServingError, Unsupported

MAX_DRAIN_SECONDS = 24 * 3600.0
_MAX_REASON = 200
_DEFAULT_REASON = "cordoned by an operator"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.operator")


class FleetOperator(Protocol):
    """Operations on groups; ``serving.fleet.operations`` implements them."""

    def cordon(self, group_id: str, reason: str) -> None:
        """Stop routing new requests to a group; running requests continue.

        Raises:
            GroupNotFound: No such group has joined this router.
        """
        ...

    def uncordon(self, group_id: str) -> None:
        """Route requests to a group again.

        Raises:
            GroupNotFound: No such group has joined this router.
        """
        ...

    async def drain(self, group_id: str, timeout: float) -> bool:
        """Cordon a group and wait up to ``timeout`` seconds for its running requests.

        Returns:
            Whether all requests finished in time; unfinished ones resume on another group.

        Raises:
            GroupNotFound: No such group has joined this router.
        """
        ...


class FleetService(fleet_pb2_grpc.FleetServiceServicer):
    """Serves ``serving.api.v1.FleetService``, also while the router drains."""

    def __init__(
        self,
        view: Callable[[], Awaitable[FleetView]],
        operator: FleetOperator,
        drain_timeout: float,
        adapters: AdapterAdmin | None = None,
    ) -> None:
        """Create the service.

        Args:
            view: Returns the current state of the fleet, in the caller's turn of long steps.
            operator: Executes operations.
            drain_timeout: Default timeout of Drain, seconds.
            adapters: loads and unloads LoRA adapters. None: not supported.
        """
        self._admin = adapters
        self._view = view
        self._operator = operator
        self._drain_timeout = drain_timeout

    async def GetFleet(  # noqa: N802
        self, request: fleet_pb2.GetFleetRequest, context: Any
    ) -> fleet_pb2.GetFleetResponse:
        """Return the current state of the fleet."""
        del request, context
        return (await self._view()).to_proto()

    async def Cordon(  # noqa: N802
        self, request: fleet_pb2.CordonRequest, context: Any
    ) -> fleet_pb2.CordonResponse:
        """Stop routing new requests to a group."""
        async with _operation("cordon", request.group_id, context):
            self._operator.cordon(request.group_id, _reason(request.reason))
        return fleet_pb2.CordonResponse()

    async def Uncordon(  # noqa: N802
        self, request: fleet_pb2.UncordonRequest, context: Any
    ) -> fleet_pb2.UncordonResponse:
        """Route requests to a group again."""
        async with _operation("uncordon", request.group_id, context):
            self._operator.uncordon(request.group_id)
        return fleet_pb2.UncordonResponse()

    async def Drain(  # noqa: N802
        self, request: fleet_pb2.DrainRequest, context: Any
    ) -> fleet_pb2.DrainResponse:
        """Cordon a group and wait until its running requests have finished."""
        finished = False
        async with _operation("drain", request.group_id, context):
            given = request.timeout_seconds if request.HasField("timeout_seconds") else None
            timeout = _timeout(self._drain_timeout if given is None else given)
            finished = await self._operator.drain(request.group_id, timeout)
        return fleet_pb2.DrainResponse(finished=finished)

    async def ListAdapters(  # noqa: N802
        self, request: fleet_pb2.ListAdaptersRequest, context: Any
    ) -> fleet_pb2.ListAdaptersResponse:
        """Return the LoRA adapters of all models."""
        del request, context
        found = () if self._admin is None else self._admin.list()
        return fleet_pb2.ListAdaptersResponse(adapters=map(adapter_proto, found))

    async def LoadAdapter(  # noqa: N802
        self, request: fleet_pb2.LoadAdapterRequest, context: Any
    ) -> fleet_pb2.LoadAdapterResponse:
        """Check an adapter's files, and accept requests for it."""
        response = fleet_pb2.LoadAdapterResponse()
        async with _operation("load_adapter", request.name, context, field="name"):
            found = await self._adapters().load(
                request.name, request.path, request.model or None, replace=request.replace
            )
            response.adapter.CopyFrom(adapter_proto(found))
        return response

    async def UnloadAdapter(  # noqa: N802
        self, request: fleet_pb2.UnloadAdapterRequest, context: Any
    ) -> fleet_pb2.UnloadAdapterResponse:
        """Reject new requests for an adapter; running ones continue."""
        async with _operation("unload_adapter", request.name, context, field="name"):
            self._adapters().unload(request.name)
        return fleet_pb2.UnloadAdapterResponse()

    def _adapters(self) -> AdapterAdmin:
        if self._admin is None:
            raise Unsupported("this router has no adapters")
        return self._admin


@asynccontextmanager
async def _operation(
    name: str, subject: str, context: Any, field: str = "group_id"
) -> AsyncIterator[None]:
    """Log the operation and its tenant; exceptions end the call with the matching status."""
    operation_log = log.bind(
        operation=name, **{field.removesuffix("_id"): subject}, tenant=principal_var.get().tenant
    )
    try:
        if not subject:
            raise BadField(field, "must not be empty")  # noqa: TRY301
        operation_log.info("operator")
        yield
    except Exception as error:  # noqa: BLE001  every exception has a status
        failure = rpc_error(error)
        if isinstance(error, ServingError):
            operation_log.info("operation rejected", reason=str(error))
        else:
            operation_log.exception("operation failed")
        await context.abort(failure.code, failure.status.message, failure.trailers)


def _reason(given: str) -> str:
    text = " ".join(given.split())
    if len(text) > _MAX_REASON or not text.isprintable():
        raise BadField("reason", f"must be at most {_MAX_REASON} printable characters")
    return text or _DEFAULT_REASON


def _timeout(seconds: float) -> float:
    if not math.isfinite(seconds) or not 0 < seconds <= MAX_DRAIN_SECONDS:
        raise BadField(
            "timeout_seconds", f"must be greater than 0 and at most {MAX_DRAIN_SECONDS:g}"
        )
    return seconds
