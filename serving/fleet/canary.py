"""The canary: one token that a rank must really generate before its group gets work.

A rank that says it is healthy may sit on an engine that answers nothing (the peers' health
endpoints do so, vllm issue 46370); only a generated token shows that the whole step works, the
collectives between ranks included.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from math import inf
from weakref import WeakKeyDictionary

import msgspec
import structlog
from vllm.sampling_params import SamplingParams

from serving.errors import EngineError, GroupLost, ServingError
from serving.fleet.membership import Roster
from serving.fleet.rank_handle import MemberKey, RankHandle
from serving.link.v1 import link_pb2
from serving.vllm_adapter.errors import error_of

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_PAUSE = 1.0
"""Seconds from a failed canary to the next one of that rank."""
_PARAMS = msgspec.msgpack.encode(
    SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
)


def first_token_id(config: object) -> int:
    """Return a token that a prompt may consist of, from the model's configuration."""
    found = getattr(config, "bos_token_id", None)
    return found if isinstance(found, int) else 0


class Canary:
    """Sends canaries for a roster and tells it what became of them."""

    def __init__(self, roster: Roster, *, token_id: int, timeout: float) -> None:
        """Answer the roster's wish for canaries.

        Args:
            roster: gets ``proven`` or ``fault``.
            token_id: the whole prompt.
            timeout: seconds that a rank may take.
        """
        self._roster = roster
        self._token_id = token_id
        self._timeout = timeout
        self._numbers = count(1)
        self._waiting: set[CanaryStream] = set()
        self._failed_at: WeakKeyDictionary[RankHandle, float] = WeakKeyDictionary()
        roster.ask_canary = self._ask

    def stop(self) -> None:
        """Forget those that are under way."""
        for stream in tuple(self._waiting):
            stream.cancel()
        self._waiting.clear()

    def _ask(self, key: MemberKey, handle: RankHandle) -> None:
        work = link_pb2.Submit(
            request_id=f"{self._roster.router_id}-canary-{next(self._numbers)}",
            prompt_token_ids=[self._token_id],
            sampling_params=_PARAMS,
        )
        stream = CanaryStream(work)
        self._waiting.add(stream)

        def ended(error: ServingError | None) -> None:
            stream.cancel()
            self._waiting.discard(stream)
            handle.release(stream)
            if error is None:
                self._roster.proven(key, handle)
            elif not isinstance(error, GroupLost):
                # A lost group the roster knows of itself; it asks again when all are back.
                self._failed_at[handle] = asyncio.get_running_loop().time()
                log.warning("canary failed", rank=str(key), error=str(error))
                self._roster.fault(key, handle, f"did not generate a token: {error}")

        def send() -> None:
            if stream.done:
                return
            try:
                handle.submit(stream)
            except ServingError as error:
                stream.fail(error)

        loop = asyncio.get_running_loop()
        # A rank that says it is well and fails each canary is asked now and then, not in a loop.
        wait = max(self._failed_at.get(handle, -inf) + _PAUSE - loop.time(), 0.0)
        stream.begin(ended, wait + self._timeout)
        if wait > 0:
            loop.call_later(wait, send)
        else:
            send()


class CanaryStream:
    """One canary on its way (a ``rank_handle.LinkedStream``)."""

    def __init__(self, work: link_pb2.Submit) -> None:
        self.work = work
        self.finished = False
        self.done = False
        self._ended: Callable[[ServingError | None], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def request_id(self) -> str:
        """Of ``work``."""
        return self.work.request_id

    @property
    def outstanding_tokens(self) -> int:
        """Too few to count."""
        return 0

    def begin(self, ended: Callable[[ServingError | None], None], timeout: float) -> None:
        """Call ``ended`` once, with what went wrong, at the latest after ``timeout`` seconds."""
        self._ended = ended
        late = EngineError(f"none came in {timeout:g} s")
        self._timer = asyncio.get_running_loop().call_later(timeout, self.fail, late)

    def cancel(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()

    def receive(self, delta: link_pb2.Delta) -> None:
        """Take in the rank's answer."""
        if delta.HasField("error"):
            self.finished = True
            self.fail(error_of(delta.error))
        elif delta.finished:
            self.finished = True
            self._end(None)

    def fail(self, error: ServingError) -> None:
        """Note that it will not come."""
        self._end(error)

    def _end(self, error: ServingError | None) -> None:
        if not self.done:
            self.done = True
            # Not from inside the link's and the roster's own loops.
            assert self._ended is not None
            asyncio.get_running_loop().call_soon(self._ended, error)
