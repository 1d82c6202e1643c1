"""Places the request of a batch when its turn comes, and removes it when others need the rank."""

from collections.abc import Callable

from serving.admission.api import Admission, AdmissionRequest
from serving.dispatch.dispatcher import Placement
from serving.request_context import Yielding


class BatchTurn:
    """The turns of one request of a batch."""

    def __init__(
        self,
        yielding: Yielding,
        admission: Admission,
        request: AdmissionRequest,
        give_way: Callable[[], None],
    ) -> None:
        """Start without a rank.

        Args:
            yielding: Decides when the request may run.
            admission: Places the request.
            request: The request.
            give_way: Removes the request from its rank immediately.
        """
        self._yielding = yielding
        self._admission = admission
        self._request = request
        self._give_way = give_way
        self._leave: Callable[[], None] | None = None

    async def place(self, require_not_ended: Callable[[], None]) -> Placement:
        """Wait until the request is on a rank.

        Args:
            require_not_ended: Raises the error of a request that was ended from outside.

        Raises:
            ServingError: The request was rejected or ended.
        """
        context = self._request.context
        while True:
            request = self._request
            await self._yielding.turn(context, request.tokens, request.prompt_tokens)
            try:
                require_not_ended()
                await self._admission.reserve(self._request)
                placement = self._admission.place_in_gap(self._request)
            except BaseException:
                self._yielding.declined(context)
                raise
            if placement is not None:
                rank = placement.decision.rank_id
                self._leave = self._yielding.placed(context, rank, self._give_way)
                return placement
            self._yielding.declined(context)

    def leave(self) -> None:
        """Record that the request has left its rank. Safe to call twice."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
