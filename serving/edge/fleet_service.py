"""FleetService: /fleet over gRPC."""

from collections.abc import Callable
from typing import Any

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.edge.fleet_view import FleetView


class FleetService(fleet_pb2_grpc.FleetServiceServicer):
    """Serves ``serving.api.v1.FleetService``; also while the router drains."""

    def __init__(self, view: Callable[[], FleetView]) -> None:
        self._view = view

    async def GetFleet(  # noqa: N802
        self, request: fleet_pb2.GetFleetRequest, context: Any
    ) -> fleet_pb2.GetFleetResponse:
        """Return the fleet as it is now."""
        del request, context
        return self._view().to_proto()
