"""Counts the losses of groups that ran a request, and decides whether the request may continue."""

import structlog

from serving.errors import GroupLost, PoisonRequest, ServingError
from serving.requests.poison import LossHistory, Verdict
from serving.settings import FleetSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class GroupLosses:
    """The unplanned losses of groups that ran one request."""

    def __init__(self, settings: FleetSettings, request_id: str, tenant: str) -> None:
        """Start without losses.

        Args:
            settings: Limits of losses and resumptions.
            request_id: The client's request id, for the log.
            tenant: The request's tenant, for the log.
        """
        self._settings = settings
        self._request_id = request_id
        self._tenant = tenant
        self._count = 0
        self._history = LossHistory()

    @property
    def suspected(self) -> bool:
        """Whether the request may be the cause of a loss."""
        return bool(self._history.losses)

    @property
    def trial_tokens(self) -> int:
        """Tokens that the request must generate on trial before it is resumed; 0 for no trial."""
        return self._history.trial_tokens(self._settings)

    def count(self, error: ServingError, seen_tokens: int, *, alone: bool) -> None:
        """Count the loss of a group that ran the request.

        Args:
            error: The loss.
            seen_tokens: Tokens of the request that the group had generated.
            alone: Whether the request was on trial without another suspect on the group.

        Raises:
            PoisonRequest: The request is the cause.
            GroupLost: The limit of resumptions is reached.
        """
        self._count += 1
        self._history, verdict = self._history.after_loss(seen_tokens, self._settings, alone=alone)
        if verdict is Verdict.POISON:
            log.error(
                "request rejected: it makes groups fail",
                request_id=self._request_id,
                tenant=self._tenant,
                losses=self._count,
            )
            raise PoisonRequest(
                f"{self._history.losses} groups failed right after starting this request; "
                "it will not be retried"
            ) from error
        if self._count > self._settings.max_resumes:
            raise GroupLost(
                f"{self._count} groups that ran this request were lost (fleet.max_resumes is "
                f"{self._settings.max_resumes}); the request can be retried"
            ) from error
