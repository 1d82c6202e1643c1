"""How long a request would wait: Little's law over what is in flight.

In flight are ``outstanding`` tokens (prompt and expected output of every launched request). A
request's tokens are in flight for ``residence`` seconds on average: the token-seconds spent in
flight over the tokens that ended, both over the last while. So the fleet takes
``outstanding / residence`` new tokens a second, and a request with ``ahead`` tokens before it
waits

    (ahead + its own) * residence / outstanding    seconds.

Both sides count a request with the same expected tokens, so it does not matter that clients stop
earlier than they might. The rate follows the fleet at once when a group comes or goes, and needs
no time of saturation to be known. Time of requests that have not ended counts too: the first ones
to end are the short ones, and would make the fleet look faster than it is. When the engines slow
down, the requests in flight grow older than ``residence``: then their mean age counts.
"""

from math import exp


class WaitPredictor:
    """Keeps the sums; ``now`` is seconds on a monotonic clock and never goes back."""

    def __init__(self, window: float) -> None:
        """Begin without knowledge.

        Args:
            window: seconds after which what happened counts 1/e of what happens now.
        """
        self._window = window
        self._outstanding = 0
        self._requests = 0
        self._launched_moment = 0.0
        """Sum of tokens times launch time, for the mean age."""
        self._token_seconds = 0.0
        self._ended_tokens = 0.0
        self._summed_until = 0.0

    @property
    def outstanding_tokens(self) -> int:
        """Tokens of the requests in flight."""
        return self._outstanding

    def launched(self, tokens: int, now: float) -> None:
        """Note that a request went to a rank."""
        self._sum_up(now)
        self._outstanding += tokens
        self._requests += 1
        self._launched_moment += tokens * now

    def ended(self, tokens: int, launched_at: float, now: float) -> None:
        """Note that a request left its rank, well or not."""
        self.lost(tokens, launched_at, now)
        self._ended_tokens += tokens

    def lost(self, tokens: int, launched_at: float, now: float) -> None:
        """Note that a request lost its rank and has not ended by that."""
        self._sum_up(now)
        self._outstanding -= tokens
        self._requests -= 1
        self._launched_moment -= tokens * launched_at
        if not self._requests:
            self._launched_moment = 0.0  # rounding does not add up

    def rate(self, now: float) -> float | None:
        """Tokens a second that the fleet takes; none as long as nothing is known."""
        self._sum_up(now)
        if not self._outstanding or not self._ended_tokens:
            return None
        age = now - self._launched_moment / self._outstanding
        residence = max(self._token_seconds / self._ended_tokens, age)
        # Answers that take no time at all: any rate would do, infinity would not.
        return self._outstanding / max(residence, 1e-6)

    def wait(self, tokens: int, now: float) -> float | None:
        """Seconds until ``tokens`` have been launched; none as long as nothing is known."""
        rate = self.rate(now)
        return None if rate is None else tokens / rate

    def _sum_up(self, now: float) -> None:
        fade = exp((self._summed_until - now) / self._window)
        self._summed_until = now
        self._token_seconds *= fade
        self._token_seconds += self._outstanding * self._window * (1 - fade)
        self._ended_tokens *= fade
