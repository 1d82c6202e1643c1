"""The canary: one token that each rank must generate before its group accepts requests.

A rank can report itself healthy although its engine does not generate; in vLLM, the peers of a
failed engine do so. Only a generated token proves that a whole step works, including the
collectives between ranks.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec
import structlog
from vllm.sampling_params import SamplingParams

from serving.errors import EngineError, GroupLost, ServingError
from serving.fleet.rank_handle import RankHandle
from serving.link.v1 import link_pb2
from serving.routing.snapshot import RankId
from serving.vllm_adapter.errors import error_of

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_PAUSE = 1.0
"""Pause between a failed canary and the next one on the same rank, seconds."""
_PARAMS = msgspec.msgpack.encode(
    SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
)


def first_token_id(config: object) -> int:
    """Return a valid prompt token id from the model's configuration: BOS, or 0."""
    found = getattr(config, "bos_token_id", None)
    return found if isinstance(found, int) else 0


class CanaryResults(Protocol):
    """Receives the result of a canary; implemented by ``membership.FleetMembership``."""

    @property
    def router_id(self) -> str:
        """The router's id, which is the prefix of request ids."""
        ...

    def proven(self, rank_id: RankId, handle: RankHandle) -> None:
        """Record that the rank generated the token."""
        ...

    def fault(self, rank_id: RankId, handle: RankHandle, reason: str) -> None:
        """Record that the rank failed to generate the token."""
        ...


class Canary:
    """Sends canaries to ranks and reports their results."""

    def __init__(self, *, token_id: int | Callable[[], int], timeout: float) -> None:
        """Prepare the request.

        Args:
            token_id: The only token of the prompt, or a function that returns it.
            timeout: Timeout for the rank's answer, seconds.
        """
        self._token_id = token_id
        self._timeout = timeout
        self._numbers = count(1)
        self._waiting: set[CanaryStream] = set()
        self._failed_at: WeakKeyDictionary[RankHandle, float] = WeakKeyDictionary()

    def stop(self) -> None:
        """Cancel the canaries without a result."""
        for stream in tuple(self._waiting):
            stream.cancel()
        self._waiting.clear()

    def send(self, rank_id: RankId, handle: RankHandle, results: CanaryResults) -> None:
        """Send a canary; the result is passed to ``results`` later, never during this call.

        A lost group is not reported, because the membership has already recorded the loss.
        """
        token = self._token_id if isinstance(self._token_id, int) else self._token_id()
        work = link_pb2.Submit(
            request_id=f"{results.router_id}-canary-{next(self._numbers)}",
            prompt_token_ids=[token],
            sampling_params=_PARAMS,
        )
        loop = asyncio.get_running_loop()

        def ended(error: ServingError | None) -> None:
            stream.cancel()
            self._waiting.discard(stream)
            handle.release(stream)
            if error is None:
                results.proven(rank_id, handle)
            elif not isinstance(error, GroupLost):
                self._failed_at[handle] = loop.time()
                log.warning("canary failed", rank=str(rank_id), error=str(error))
                results.fault(rank_id, handle, f"did not generate a token: {error}")

        def submit() -> None:
            if stream.done:
                return
            try:
                handle.submit(stream)
            except ServingError as error:
                stream.fail(error)

        # A rank that reports itself healthy but fails every canary is retried after a pause.
        wait = max(self._failed_at.get(handle, -inf) + _PAUSE - loop.time(), 0.0)
        stream = CanaryStream(work, ended, wait + self._timeout)
        self._waiting.add(stream)
        if wait > 0:
            loop.call_later(wait, submit)
        else:
            submit()


class CanaryStream:
    """One canary in flight (a ``rank_handle.LinkedStream``)."""

    def __init__(
        self,
        work: link_pb2.Submit,
        ended: Callable[[ServingError | None], None],
        timeout: float,
    ) -> None:
        """Start the timer.

        Args:
            work: The request.
            ended: Called once with the error, or None after a token.
            timeout: Time after which the canary fails, seconds.
        """
        self.work = work
        self.finished = False
        self.done = False
        self._ended = ended
        late = EngineError(f"no token within {timeout:g} s")
        self._timer = asyncio.get_running_loop().call_later(timeout, self.fail, late)

    @property
    def request_id(self) -> str:
        """The request id in ``work``."""
        return self.work.request_id

    @property
    def outstanding_tokens(self) -> int:
        """Always 0, because one token does not count as load."""
        return 0

    def cancel(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    @property
    def completed(self) -> list[int]:
        """Always empty, because the rank generates only one token."""
        return []

    def receive(self, delta: link_pb2.Delta) -> bool:
        """Process the rank's answer; see the protocol."""
        if delta.HasField("error"):
            self.finished = True
            self.fail(error_of(delta.error))
        elif delta.finished:
            self.finished = True
            self._end(None)
        return self.done

    def fail(self, error: ServingError) -> None:
        """End the canary with an error."""
        self._end(error)

    def _end(self, error: ServingError | None) -> None:
        if not self.done:
            self.done = True
            # Deferred, because the link and the membership may be iterating over their ranks.
            asyncio.get_running_loop().call_soon(self._ended, error)
