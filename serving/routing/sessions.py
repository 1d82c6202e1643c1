"""Where each session was last; bounded, and forgotten after a while without requests."""

from collections import OrderedDict

from serving.routing.decision import RankKey


class Sessions:
    """Session id to rank. Only a hash of the id is kept: ids may be long and are the client's."""

    def __init__(self, limit: int, ttl: float) -> None:
        """Know no session.

        Args:
            limit: most sessions; past it the one that was used longest ago is forgotten.
            ttl: seconds after the last request.

        """
        self._limit = limit
        self._ttl = ttl
        self._places: OrderedDict[int, tuple[RankKey, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, session_id: str | None, now: float) -> RankKey | None:
        """Return where the session was last; none if it is new or was forgotten."""
        if session_id is None:
            return None
        found = self._places.get(hash(session_id))
        if found is None or now - found[1] > self._ttl:
            return None
        return found[0]

    def put(self, session_id: str | None, rank: RankKey, now: float) -> None:
        """Note where the session is."""
        if session_id is None or self._limit == 0:
            return
        key = hash(session_id)
        self._places[key] = (rank, now)
        self._places.move_to_end(key)
        while len(self._places) > self._limit or now - self._oldest() > self._ttl:
            self._places.popitem(last=False)

    def _oldest(self) -> float:
        return next(iter(self._places.values()))[1]
