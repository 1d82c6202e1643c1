"""The admission queue: bounded, with ageing priorities, and fair between tenants.

Order, from the front:

1. Resumed requests (whose group was lost), in the order in which they were queued again.
2. Interactive, then standard, then batch. A request rises by one class for every ``ageing``
   seconds of waiting, so no request waits forever behind a higher class.
3. Within a class, start-time fair queuing (Goyal, Vin, Cheng 1996): each tenant with requests in
   the class has a start tag. The tenant with the lowest tag is served, and its tag advances by
   tokens / weight. Two tenants that both have requests queued never differ by more than one
   request per unit of weight.
4. Within a tenant and class, first in, first out.

Dynamic thresholds (Choudhury, Hahne 1998) divide the capacity: the requests that one tenant has
queued at one priority may use at most its share times the free capacity. There is always space for
another tenant and for a higher priority, even if one tenant floods the queue.

The queue neither waits nor reads a clock. All operations are O(log n) in requests and tenants.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Generic, Protocol, TypeVar

from serving.request_context import Priority

SHARES: dict[Priority, float] = {
    Priority.INTERACTIVE: 4.0,
    Priority.STANDARD: 2.0,
    Priority.BATCH: 1.0,
}
"""Share of the free capacity, multiplied by the tenant's weight. One tenant alone with standard
requests can fill two thirds of the queue."""


class Queued(Protocol):
    """An entry of the queue, compared by identity."""

    @property
    def tenant(self) -> str:
        """The tenant; the queue is fair between tenants."""
        ...

    @property
    def priority(self) -> Priority:
        """The requested priority."""
        ...

    @property
    def tokens(self) -> int:
        """The request's prompt tokens plus its expected output tokens; at least 1."""
        ...

    @property
    def weight(self) -> float:
        """The tenant's share relative to other tenants; above 0."""
        ...


T = TypeVar("T", bound=Queued)


class FairQueue(Generic[T]):
    """Orders requests for placement; see the module docstring."""

    def __init__(self, *, requests: int, tokens: int, ageing: float) -> None:
        """Create an empty queue.

        Args:
            requests: Maximum number of requests, not counting resumed ones.
            tokens: Maximum total number of tokens of these requests; a single request may be
                larger.
            ageing: Waiting time after which a request rises by one class, seconds.
        """
        self._most_requests = requests
        self._most_tokens = tokens
        self._ageing = ageing
        self._numbers = count()
        self._resumed: OrderedDict[T, None] = OrderedDict()
        self._classes: tuple[_Class[T], ...] = tuple(_Class() for _ in Priority)
        self._level: dict[T, int] = {}
        """The current class of each request."""
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
        """Tokens of all queued requests, not counting resumed ones."""
        return self._tokens

    @property
    def has_resumed(self) -> bool:
        """Whether resumed requests are queued."""
        return bool(self._resumed)

    def requests(self, priority: Priority) -> int:
        """Return the number of queued requests of a priority, including resumed ones."""
        return self._by_priority[priority]

    def full_for(self, item: Queued) -> str | None:
        """Return the reason why the queue has no space for ``item``, or None if it has."""
        if len(self._level) >= self._most_requests:
            return f"{len(self._level)} requests are already queued"
        if self._level and self._tokens + item.tokens > self._most_tokens:
            return f"requests with {self._tokens} tokens are already queued"
        key = (item.tenant, item.priority)
        share = SHARES[item.priority] * item.weight
        requests, tokens = self._held_requests[key], self._held_tokens[key]
        if requests and (
            requests + 1 > share * (self._most_requests - len(self._level))
            or tokens + item.tokens > share * (self._most_tokens - self._tokens)
        ):
            return f"{requests} of your {item.priority.name.lower()} requests are already queued"
        return None

    def push(self, item: T, now: float) -> None:
        """Queue a request behind its tenant's other requests; does not check ``full_for``."""
        level = int(item.priority)
        self._enter(item, level, now)
        key = (item.tenant, item.priority)
        self._held_requests[key] += 1
        self._held_tokens[key] += item.tokens
        self._tokens += item.tokens
        self._by_priority[item.priority] += 1

    def push_resumed(self, item: T) -> None:
        """Queue a request ahead of all others except earlier resumed ones."""
        self._resumed[item] = None
        self._by_priority[item.priority] += 1

    def head(self, now: float) -> T | None:
        """Return the next request; None if the queue is empty."""
        if self._resumed:
            return next(iter(self._resumed))
        self._age(now)
        for waiting in self._classes:
            if (item := waiting.head()) is not None:
                return item
        return None

    def pop(self, now: float) -> T:
        """Remove and return ``head``; advance its tenant's start tag by the cost.

        Raises:
            IndexError: The queue is empty.
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
        """Remove a request from any position, without advancing its tenant's start tag."""
        if item in self._resumed:
            self._forget_resumed(item)
        elif item in self._level:
            self._classes[self._level[item]].remove(item)
            self._forget(item)

    def tokens_ahead(self, item: Queued, now: float) -> int:
        """Return the tokens that would be served before ``item`` if it were queued now.

        These are all requests in higher classes, the same tenant's requests in its class, and the
        part of the other tenants' requests that fair queuing serves first. Later arrivals are not
        considered. O(tenants).
        """
        self._age(now)
        level = int(item.priority)
        better = sum(resumed.tokens for resumed in self._resumed)
        better += sum(waiting.tokens for waiting in self._classes[:level])
        return better + self._classes[level].tokens_ahead(item)

    def upcoming(self, now: float) -> Iterator[T]:
        """Yield the queued requests in the order in which they would be served if none arrived.

        Each takes O(log tenants). The queue must not change during the iteration.
        """
        self._age(now)
        yield from self._resumed
        for waiting in self._classes:
            yield from waiting.upcoming()

    def _enter(self, item: T, level: int, now: float) -> None:
        self._level[item] = level
        self._classes[level].add(item, self._numbers)
        if level > 0:
            heappush(self._rises, (now + self._ageing, next(self._numbers), item))

    def _age(self, now: float) -> None:
        """Raise the class of requests that have waited long enough."""
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
            # Most entries belong to requests that have left the queue.
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
        """The start tag, i.e. the virtual time at which the next request starts."""
        self.turn = 0
        """Number of the flow's valid entry in the heap."""

    @property
    def head(self) -> T:
        return next(iter(self.items))


class _Class(Generic[T]):
    """The requests of one priority, in the order of start-time fair queuing between tenants."""

    def __init__(self) -> None:
        self.tokens = 0
        self._virtual = 0.0
        """Start tag of the last request served."""
        self._flows: dict[str, _Flow[T]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._finishes: dict[str, float] = {}
        """Start tags of tenants that were served ahead of the others and have no queued
        requests."""

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

    def upcoming(self) -> Iterator[T]:
        """Yield the requests in the order of ``serve``, which is only simulated."""
        heap = [(flow.start, flow.turn, tenant) for tenant, flow in self._flows.items()]
        heapify(heap)
        items = {tenant: iter(flow.items) for tenant, flow in self._flows.items()}
        turns = count(max((turn for _, turn, _ in heap), default=0) + 1)
        while heap:
            start, _, tenant = heap[0]
            item = next(items[tenant], None)
            if item is None:
                heappop(heap)
                continue
            yield item
            heapreplace(heap, (start + item.tokens / item.weight, next(turns), tenant))

    def serve(self, numbers: "count[int]") -> None:
        """Remove the head and advance its tenant's start tag."""
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
            # No tenant is waiting, so reset: all tenants start equally.
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

    def tokens_ahead(self, item: Queued) -> int:
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
