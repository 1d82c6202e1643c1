"""How long a request would wait: Little's law over what is in flight.

In flight are ``outstanding`` tokens (prompt and expected output of every launched request), and
a request stays ``residence`` seconds on its rank, averaged by tokens over the last while. What is
in flight turns over once a residence, so the fleet takes ``outstanding / residence`` new tokens a
second, and a request with ``ahead`` tokens before it waits

    (ahead + its own) * residence / outstanding    seconds.

Both sides count a request with the same expected tokens, so it does not matter that clients stop
earlier than they might. The rate follows the fleet at once when a group comes or goes, and needs
no time of saturation to be known. When the engines slow down, requests in flight grow older than
``residence`` before any of them ends: then their age counts.
"""

from math import exp


class WaitPredictor:
    """Keeps the two numbers; ``now`` is seconds on a monotonic clock."""

    def __init__(self, window: float) -> None:
        """Begin without knowledge.

        Args:
            window: seconds after which an ended request counts 1/e of a new one.
        """
        self._window = window
        self._outstanding = 0
        self._requests = 0
        self._launched_moment = 0.0
        """Sum of tokens times launch time, for the mean age."""
        self._ended_tokens = 0.0
        self._ended_token_seconds = 0.0
        self._decayed_at = 0.0

    @property
    def outstanding_tokens(self) -> int:
        """Tokens of the requests in flight."""
        return self._outstanding

    def launched(self, tokens: int, now: float) -> None:
        """Note that a request went to a rank."""
        self._outstanding += tokens
        self._requests += 1
        self._launched_moment += tokens * now

    def ended(self, tokens: int, launched_at: float, now: float) -> None:
        """Note that a request left its rank, well or not."""
        self.lost(tokens, launched_at)
        fade = exp(-(now - self._decayed_at) / self._window)
        self._decayed_at = now
        self._ended_tokens = self._ended_tokens * fade + tokens
        self._ended_token_seconds = self._ended_token_seconds * fade + tokens * (now - launched_at)

    def lost(self, tokens: int, launched_at: float) -> None:
        """Note that a request lost its rank: how long it was there says nothing."""
        self._outstanding -= tokens
        self._requests -= 1
        self._launched_moment -= tokens * launched_at
        if not self._requests:
            self._launched_moment = 0.0  # rounding does not add up

    def rate(self, now: float) -> float | None:
        """Tokens a second that the fleet takes; none as long as nothing is known."""
        if not self._outstanding or not self._ended_tokens:
            return None
        age = now - self._launched_moment / self._outstanding
        residence = max(self._ended_token_seconds / self._ended_tokens, age)
        # Answers that take no time at all: any rate would do, infinity would not.
        return self._outstanding / max(residence, 1e-6)

    def wait(self, tokens: int, now: float) -> float | None:
        """Seconds until ``tokens`` have been launched; none as long as nothing is known."""
        rate = self.rate(now)
        return None if rate is None else tokens / rate
