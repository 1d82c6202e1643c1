"""Predicts how long a request will wait: Little's law over the requests in flight.

``outstanding`` is the number of prompt and expected output tokens of all placed requests. A token
stays in flight for ``residence`` seconds on average: the token-seconds in flight divided by the
tokens of ended requests, both over a recent window. The fleet therefore accepts
``outstanding / residence`` new tokens per second, and a request with ``ahead`` tokens before it
waits

    (ahead + tokens of the request) * residence / outstanding    seconds.

Both sides count the same expected tokens, so answers that end earlier than expected do not distort
the result. The rate changes as soon as a group joins or leaves, and is known before the fleet has
ever been saturated. The time of requests that have not ended also counts; otherwise short requests,
which end first, would make the fleet look faster than it is. When engines slow down and the mean
age of requests in flight exceeds ``residence``, the mean age is used instead.
"""

from math import exp


class WaitPredictor:
    """Maintains the sums. ``now`` is in seconds on a monotonic clock and must not decrease."""

    def __init__(self, window: float) -> None:
        """Start without data.

        Args:
            window: Time after which an event's weight has decayed to 1/e, seconds.
        """
        self._window = window
        self._outstanding = 0
        self._requests = 0
        self._placed_moment = 0.0
        """Sum of tokens times time of placement; the mean age is derived from it."""
        self._token_seconds = 0.0
        self._ended_tokens = 0.0
        self._summed_until = 0.0

    @property
    def outstanding_tokens(self) -> int:
        """Tokens of the requests in flight."""
        return self._outstanding

    def placed(self, tokens: int, now: float) -> None:
        """Record that a request was placed on a rank."""
        self._sum_up(now)
        self._outstanding += tokens
        self._requests += 1
        self._placed_moment += tokens * now

    def ended(self, tokens: int, placed_at: float, now: float) -> None:
        """Record that a request ended, whether it succeeded or not."""
        self.lost(tokens, placed_at, now)
        self._ended_tokens += tokens

    def lost(self, tokens: int, placed_at: float, now: float) -> None:
        """Record that a request lost its rank and will be placed again."""
        self._sum_up(now)
        self._outstanding -= tokens
        self._requests -= 1
        self._placed_moment -= tokens * placed_at
        if not self._requests:
            self._placed_moment = 0.0  # keeps rounding errors from accumulating

    def rate(self, now: float) -> float | None:
        """Return the tokens per second that the fleet accepts; None until a request has ended."""
        self._sum_up(now)
        if not self._outstanding or not self._ended_tokens:
            return None
        age = now - self._placed_moment / self._outstanding
        residence = max(self._token_seconds / self._ended_tokens, age)
        # The result is finite even if answers take no time.
        return self._outstanding / max(residence, 1e-6)

    def wait(self, tokens: int, now: float) -> float | None:
        """Return the seconds until ``tokens`` are placed; None until a request has ended."""
        rate = self.rate(now)
        return None if rate is None else tokens / rate

    def _sum_up(self, now: float) -> None:
        fade = exp((self._summed_until - now) / self._window)
        self._summed_until = now
        self._token_seconds *= fade
        self._token_seconds += self._outstanding * self._window * (1 - fade)
        self._ended_tokens *= fade
