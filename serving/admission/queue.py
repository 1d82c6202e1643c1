"""Who is next: a bounded queue with priorities that age, fair between the tenants inside one.

Order, from the front:

1. resumed requests (their group was lost under them), in the order in which they came back;
2. interactive, then standard, then batch. A request rises one class for every ``ageing`` seconds
   that it waits, so none waits behind a stream of better ones for ever;
3. inside a class, start-time fair queuing (Goyal, Vin, Cheng 1996): each tenant with something
   in the class has a start tag, the lowest is served and moves on by tokens / weight. Two tenants
   that both have work queued never differ by more than one request, per unit of weight;
4. inside a tenant and class, first come, first served.

The bound is shared by dynamic thresholds (Choudhury, Hahne 1998): what one tenant has queued at
one priority may be at most its share times what is still free. So there is always room for
another tenant and for a higher priority, whoever floods the queue.

Pure: no waiting, no clock; all operations are O(log n) in requests and tenants.
"""

from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

from serving.request_context import Priority

SHARES: dict[Priority, float] = {
    Priority.INTERACTIVE: 4.0,
    Priority.STANDARD: 2.0,
    Priority.BATCH: 1.0,
}
"""Of the free room, times the tenant's weight: one standard tenant alone fills two thirds."""


class Queued(Protocol):
    """What can stand in the queue. Compared by identity."""

    @property
    def tenant(self) -> str:
        """Between whom the queue is fair."""
        ...

    @property
    def priority(self) -> Priority:
        """The class that was asked for."""
        ...

    @property
    def tokens(self) -> int:
        """Cost: prompt and expected output; at least 1."""
        ...

    @property
    def weight(self) -> float:
        """The tenant's share relative to others; above 0."""
        ...


T = TypeVar("T", bound=Queued)


class FairQueue(Generic[T]):
    """Holds requests in the order of their turns; see the module."""

    def __init__(self, *, requests: int, tokens: int, ageing: float) -> None:
        """Make an empty queue.

        Args:
            requests: most requests, resumed ones aside.
            tokens: most tokens of them together; a single request may be larger.
            ageing: seconds of waiting after which a request rises by one class.
        """
        self._most_requests = requests
        self._most_tokens = tokens
        self._ageing = ageing
        self._numbers = count()
        self._resumed: OrderedDict[T, None] = OrderedDict()
        self._classes: tuple[_Class[T], ...] = tuple(_Class() for _ in Priority)
        self._level: dict[T, int] = {}
        """The class in which each request stands now."""
        self._rises: list[tuple[float, int, T]] = []
        self._held_requests: Counter[tuple[str, Priority]] = Counter()
        self._held_tokens: Counter[tuple[str, Priority]] = Counter()
        self._tokens = 0
        self._by_priority: Counter[Priority] = Counter()

    def __len__(self) -> int:
        return len(self._level) + len(self._resumed)

    def __contains__(self, item: T) -> bool:
        return item in self._level or item in self._resumed

    @property
    def tokens(self) -> int:
        """Tokens of all queued requests, resumed ones aside."""
        return self._tokens

    @property
    def has_resumed(self) -> bool:
        """Whether resumed requests wait."""
        return bool(self._resumed)

    def requests(self, priority: Priority) -> int:
        """Queued requests that asked for ``priority``, resumed ones included."""
        return self._by_priority[priority]

    def full_for(self, item: T) -> str | None:
        """Say why there is no room for ``item``; none if there is."""
        if len(self._level) >= self._most_requests:
            return f"{len(self._level)} requests wait already"
        if self._level and self._tokens + item.tokens > self._most_tokens:
            return f"requests of {self._tokens} tokens wait already"
        key = (item.tenant, item.priority)
        share = SHARES[item.priority] * item.weight
        requests, tokens = self._held_requests[key], self._held_tokens[key]
        if requests and (
            requests + 1 > share * (self._most_requests - len(self._level))
            or tokens + item.tokens > share * (self._most_tokens - self._tokens)
        ):
            return f"{requests} of your {item.priority.name.lower()} requests wait already"
        return None

    def push(self, item: T, now: float) -> None:
        """Queue a request at the end of its tenant's; asks ``full_for`` nothing."""
        level = int(item.priority)
        self._enter(item, level, now)
        key = (item.tenant, item.priority)
        self._held_requests[key] += 1
        self._held_tokens[key] += item.tokens
        self._tokens += item.tokens
        self._by_priority[item.priority] += 1

    def push_resumed(self, item: T) -> None:
        """Queue a request before all others but those that were resumed earlier."""
        self._resumed[item] = None
        self._by_priority[item.priority] += 1

    def head(self, now: float) -> T | None:
        """Return whose turn it is; none if nobody waits."""
        if self._resumed:
            return next(iter(self._resumed))
        self._age(now)
        for waiting in self._classes:
            if (item := waiting.head()) is not None:
                return item
        return None

    def pop(self, now: float) -> T:
        """Take out ``head`` to serve it; its tenant moves back by what it costs.

        Raises:
            IndexError: nobody waits.
        """
        item = self.head(now)
        if item is None:
            raise IndexError("the queue is empty")
        if item in self._resumed:
            self._forget_resumed(item)
        else:
            self._classes[self._level[item]].serve(self._numbers)
            self._forget(item)
        return item

    def discard(self, item: T) -> None:
        """Take out a request that gave up, wherever it stands; costs its tenant nothing."""
        if item in self._resumed:
            self._forget_resumed(item)
        elif item in self._level:
            self._classes[self._level[item]].remove(item)
            self._forget(item)

    def tokens_ahead(self, item: T, now: float) -> int:
        """Tokens that would be served before ``item`` if it were queued now and nobody came after.

        That is all of the better classes, its own tenant's requests of its class, and of the
        others' as much as fairness gives them until then. O(tenants).
        """
        self._age(now)
        level = int(item.priority)
        better = sum(resumed.tokens for resumed in self._resumed)
        better += sum(waiting.tokens for waiting in self._classes[:level])
        return better + self._classes[level].tokens_ahead(item)

    def _enter(self, item: T, level: int, now: float) -> None:
        self._level[item] = level
        self._classes[level].add(item, self._numbers)
        if level > 0:
            heappush(self._rises, (now + self._ageing, next(self._numbers), item))

    def _age(self, now: float) -> None:
        """Let those rise that have waited long enough."""
        while self._rises and self._rises[0][0] <= now:
            at, _, item = heappop(self._rises)
            level = self._level.get(item)
            if level is not None:
                self._classes[level].remove(item)
                self._enter(item, level - 1, at)

    def _forget(self, item: T) -> None:
        del self._level[item]
        key = (item.tenant, item.priority)
        self._held_requests[key] -= 1
        self._held_tokens[key] -= item.tokens
        if not self._held_requests[key]:
            del self._held_requests[key], self._held_tokens[key]
        self._tokens -= item.tokens
        self._by_priority[item.priority] -= 1
        if len(self._rises) > 2 * len(self._level) + 64:
            # Most belong to requests that are gone.
            self._rises = [rise for rise in self._rises if rise[2] in self._level]
            heapify(self._rises)

    def _forget_resumed(self, item: T) -> None:
        del self._resumed[item]
        self._by_priority[item.priority] -= 1


class _Flow(Generic[T]):
    """A tenant's requests in one class."""

    __slots__ = ("items", "start", "tokens", "turn")

    def __init__(self, start: float) -> None:
        self.items: OrderedDict[T, None] = OrderedDict()
        self.tokens = 0
        self.start = start
        """Virtual time at which its next request begins."""
        self.turn = 0
        """Number of its valid entry in the heap."""

    @property
    def head(self) -> T:
        return next(iter(self.items))


class _Class(Generic[T]):
    """One priority: start-time fair queuing between tenants."""

    def __init__(self) -> None:
        self.tokens = 0
        self._virtual = 0.0
        """Start tag of the last request served."""
        self._flows: dict[str, _Flow[T]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._finishes: dict[str, float] = {}
        """Of tenants that were served ahead of the others and have nothing queued."""

    def add(self, item: T, numbers: "count[int]") -> None:
        flow = self._flows.get(item.tenant)
        if flow is None:
            start = max(self._virtual, self._finishes.pop(item.tenant, 0.0))
            flow = self._flows[item.tenant] = _Flow(start)
            self._schedule(item.tenant, flow, numbers)
        flow.items[item] = None
        flow.tokens += item.tokens
        self.tokens += item.tokens

    def head(self) -> T | None:
        while self._heap:
            _, turn, tenant = self._heap[0]
            flow = self._flows.get(tenant)
            if flow is not None and flow.turn == turn:
                return flow.head
            heappop(self._heap)
        return None

    def serve(self, numbers: "count[int]") -> None:
        """Take out the head."""
        item = self.head()
        assert item is not None
        flow = self._flows[item.tenant]
        self._virtual = flow.start
        flow.start += item.tokens / item.weight
        self.remove(item)
        if flow.items:
            self._schedule(item.tenant, flow, numbers)

    def remove(self, item: T) -> None:
        flow = self._flows[item.tenant]
        del flow.items[item]
        flow.tokens -= item.tokens
        self.tokens -= item.tokens
        if flow.items:
            return
        del self._flows[item.tenant]
        if not self._flows:
            # Nobody was kept waiting: all begin anew as equals.
            self._virtual = 0.0
            self._heap.clear()
            self._finishes.clear()
        elif flow.start > self._virtual:
            self._finishes[item.tenant] = flow.start
            if len(self._finishes) > 2 * len(self._flows) + 64:
                self._finishes = {
                    tenant: finish
                    for tenant, finish in self._finishes.items()
                    if finish > self._virtual
                }

    def tokens_ahead(self, item: T) -> int:
        own = self._flows.get(item.tenant)
        if own is None:
            ahead = 0.0
            start = max(self._virtual, self._finishes.get(item.tenant, 0.0))
        else:
            ahead = float(own.tokens)
            start = own.start + own.tokens / item.weight
        for tenant, flow in self._flows.items():
            if tenant != item.tenant and flow.start <= start:
                head = flow.head
                ahead += min(flow.tokens, (start - flow.start) * head.weight + head.tokens)
        return round(ahead)

    def _schedule(self, tenant: str, flow: _Flow[T], numbers: "count[int]") -> None:
        flow.turn = next(numbers)
        heappush(self._heap, (flow.start, flow.turn, tenant))
