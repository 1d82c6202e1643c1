"""The record of a run in order, for validators and for printing."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.traffic import Spec


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client sent its request."""

    at: float
    request: str
    router: str

    def __str__(self) -> str:
        return f"client submits it to {self.router}"


@dataclass(frozen=True, slots=True)
class Piece:
    """One choice of one output."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprob_ids: tuple[int, ...] | None
    """The chosen token at each position; empty if not requested."""
    finish_reason: str | None
    stop_reason: int | str | None

    def __str__(self) -> str:
        end = f" {self.finish_reason}" if self.finish_reason else ""
        return f"[{self.index}] {len(self.token_ids)} tokens {self.text!r}{end}"


@dataclass(frozen=True, slots=True)
class Output:
    """A client received an output."""

    at: float
    request: str
    pieces: tuple[Piece, ...]
    finished: bool
    prompt_logprobs: int | None = None
    """Number of positions; ``None`` without any."""

    def __str__(self) -> str:
        return "  ".join(map(str, self.pieces)) + (" (last)" if self.finished else "")


@dataclass(frozen=True, slots=True)
class Ended:
    """A client's request ended: FINISHED, CANCELLED (by the client), DIED (with its router), or
    the reason of an error."""

    at: float
    request: str
    how: str
    message: str = ""
    retryable: bool = False
    resumes: int = 0
    """Number of resumptions, according to the request record."""

    def __str__(self) -> str:
        return f"ENDS {self.how}" + (f": {self.message}" if self.message else "")


@dataclass(frozen=True, slots=True)
class Ran:
    """An engine began or ended a request (``began`` says which)."""

    at: float
    request: str
    rank: str
    began: bool
    attempt: str
    """Id at the engine, different for each submission by the router."""
    prompt_tokens: int = 0
    seed: int | None = None

    def __str__(self) -> str:
        if self.began:
            return f"{self.rank} starts it with {self.prompt_tokens} prompt tokens"
        return f"{self.rank} ends it"


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault, its end, or a change in the fleet."""

    at: float
    what: str
    request: str = ""

    def __str__(self) -> str:
        return self.what


Event = Submitted | Output | Ended | Ran | Happened


@dataclass(slots=True)
class History:
    """One run."""

    seed: int
    title: str = ""
    specs: dict[str, Spec] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """State that remained one second after the end of the last request, and at the end."""

    def add(self, event: Event) -> None:
        """Append an event; times must not decrease."""
        assert not self.events or event.at >= self.events[-1].at, "times decrease"
        self.events.append(event)

    def by_request(self) -> dict[str, list[Event]]:
        """Return each request's own events, in order."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            if event.request:
                found[event.request].append(event)
        return {name: found.get(name, []) for name in self.specs}

    def faults(self) -> list[Happened]:
        """Return faults and changes of the fleet."""
        return [event for event in self.events if isinstance(event, Happened)]

    def lines(self, only: str = "") -> Iterator[str]:
        """Yield the history for reading; ``only`` one request's events and the faults."""
        start = self.events[0].at if self.events else 0.0
        yield f"history of seed {self.seed}: {self.title}"
        for spec in self.specs.values():
            if only in {"", spec.name}:
                yield f"  {spec.name}: {spec}"
        for event in self.events:
            if only and event.request not in {"", only}:
                continue
            who = event.request or "--"
            yield f"{event.at - start:10.4f}  {who:6} {event}"
        for leftover in self.leftovers:
            yield f"  leak: {leftover}"
