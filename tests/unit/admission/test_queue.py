"""The fair queue: order, bounds, ageing; invariants with Hypothesis."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.queue import FairQueue
from serving.request_context import Priority

TOP, S, B = Priority.INTERACTIVE, Priority.STANDARD, Priority.BATCH
AGEING = 10.0


@dataclass(eq=False)
class Item:
    name: str = ""
    tenant: str = "a"
    priority: Priority = S
    tokens: int = 10
    weight: float = 1.0

    def __repr__(self):
        return f"{self.name or id(self)}:{self.tenant}/{self.priority.name}/{self.tokens}"


def make(requests=1000, tokens=10**9):
    return FairQueue(requests=requests, tokens=tokens, ageing=AGEING)


def drain(queue, now=0.0):
    served = []
    while queue:
        head = queue.head(now)
        assert queue.pop(now) is head
        served.append(head)
    return served


@pytest.mark.parametrize(
    ("items", "order"),
    [
        pytest.param([Item("x"), Item("y"), Item("z")], "xyz", id="one tenant: first come"),
        pytest.param(
            [Item("x", priority=B), Item("y", priority=S), Item("z", priority=TOP)],
            "zyx",
            id="priorities",
        ),
        pytest.param(
            [Item("1"), Item("2"), Item("3"), Item("x", "b"), Item("y", "b")],
            "1x2y3",
            id="tenants take turns",
        ),
        pytest.param(
            [Item("1", tokens=20), Item("2", tokens=20), *(Item(n, "b") for n in "wxyz")],
            "1wx2yz",
            id="turns by tokens",
        ),
        pytest.param(
            [*(Item(n, "a", weight=2) for n in "1234"), Item("x", "b"), Item("y", "b")],
            "1x2y34",
            id="turns by weight",
        ),
        pytest.param(
            [Item("1"), Item("2"), Item("x", "b", TOP), Item("3", "a", TOP)],
            "x312",
            id="a tenant's batch does not count against its interactive work",
        ),
    ],
)
def test_order(items, order):
    queue = make()
    for item in items:
        queue.push(item, 0.0)
    assert "".join(item.name for item in drain(queue)) == order


def test_a_resumed_request_goes_before_all_and_needs_no_room():
    queue = make(requests=1)
    queue.push(Item("x", priority=TOP), 0.0)
    for name in "12":
        queue.push_resumed(Item(name, priority=B, tokens=10**10))
    assert queue.has_resumed
    assert "".join(item.name for item in drain(queue)) == "12x"
    assert not queue.has_resumed


@pytest.mark.parametrize(
    ("now", "order"),
    [
        pytest.param(9.9, "isb", id="nobody has risen"),
        pytest.param(10.0, "sib", id="standard has risen"),
        pytest.param(20.0, "sbi", id="batch has risen twice"),
    ],
)
def test_ageing(now, order):
    queue = make()
    queue.push(Item("s", "x", S), 0.0)
    queue.push(Item("b", "y", B), 0.0)
    assert queue.head(now) is not None
    queue.push(Item("i", "z", TOP), now)
    assert "".join(item.name for item in drain(queue, now)) == order


def test_a_late_tenant_does_not_make_up_for_its_absence():
    queue = make()
    for name in "123456":
        queue.push(Item(name), 0.0)
    for _ in range(3):
        queue.pop(0.0)
    for name in "xyz":
        queue.push(Item(name, "b"), 0.0)
    assert "".join(item.name for item in drain(queue)) == "x4y5z6"


def test_a_tenant_served_ahead_waits_for_the_others_when_it_returns():
    queue = make()
    queue.push(Item("1", tokens=100), 0.0)
    for name in "wxyz":
        queue.push(Item(name, "b", tokens=30), 0.0)
    assert queue.pop(0.0).name == "1"  # 100 tokens ahead of b now
    queue.push(Item("2"), 0.0)
    assert "".join(item.name for item in drain(queue)) == "wxyz2"


def test_giving_up_costs_nothing_and_is_safe_twice():
    queue = make()
    first, second = Item("1", tokens=100), Item("2")
    queue.push(first, 0.0)
    queue.push(second, 0.0)
    queue.push(Item("x", "b"), 0.0)
    queue.discard(first)
    queue.discard(first)
    assert first not in queue
    assert (len(queue), queue.tokens) == (2, 20)
    assert "".join(item.name for item in drain(queue)) == "2x"


def test_pop_of_nothing():
    with pytest.raises(IndexError):
        make().pop(0.0)


@pytest.mark.parametrize(
    ("held", "new", "why"),
    [
        pytest.param([], Item(tokens=10**6), None, id="one of any size"),
        pytest.param([Item(tokens=90)], Item(tokens=11), "tokens are already queued", id="tokens"),
        pytest.param([Item()] * 6, Item(), "of your standard requests", id="its own share"),
        pytest.param([Item()] * 6, Item(tenant="b"), None, id="room for another tenant"),
        pytest.param([Item()] * 6, Item(priority=TOP), None, id="room for a better priority"),
        pytest.param([Item(priority=B)] * 5, Item(priority=B), "batch", id="batch has less"),
        pytest.param([Item(weight=8)] * 7, Item(weight=8), None, id="a larger weight has more"),
        pytest.param(
            [Item(tenant=str(n), tokens=1) for n in range(9)], Item(tokens=1), "9 req", id="full"
        ),
    ],
)
def test_room(held, new, why):
    queue = make(requests=9, tokens=100)
    for item in held:
        queue.push(Item(item.name, item.tenant, item.priority, item.tokens, item.weight), 0.0)
    reason = queue.full_for(new)
    assert (reason is None) == (why is None)
    assert (why or "") in (reason or "")


def test_resumed_requests_do_not_count_against_the_bound():
    queue = make(requests=2)
    for _ in range(5):
        queue.push_resumed(Item())
    assert queue.full_for(Item()) is None


@pytest.mark.parametrize(
    ("item", "ahead"),
    [
        pytest.param(Item(tenant="a"), 30 + 5 + 20, id="behind its own, b's in turn"),
        pytest.param(Item(tenant="b"), 20 + 5 + 30, id="b: the same from its side"),
        pytest.param(Item(tenant="c"), 5 + 10 + 10, id="a newcomer: one of each"),
        pytest.param(Item(tenant="a", priority=TOP), 5, id="interactive"),
        pytest.param(Item(tenant="c", priority=B), 5 + 50, id="batch: behind all"),
    ],
)
def test_tokens_ahead(item, ahead):
    queue = make()
    for tenant, requests in (("a", 3), ("b", 2)):
        for _ in range(requests):
            queue.push(Item(tenant=tenant), 0.0)
    queue.push(Item(tenant="d", priority=TOP, tokens=5), 0.0)
    assert queue.tokens_ahead(item, 0.0) == ahead


tenants = st.sampled_from("abc")
items = st.builds(
    Item,
    tenant=tenants,
    priority=st.sampled_from(Priority),
    tokens=st.integers(1, 1000),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)
steps = st.one_of(
    items.map(lambda item: ("push", item)),
    items.map(lambda item: ("resume", item)),
    st.just(("pop", None)),
    st.integers(0, 50).map(lambda index: ("discard", index)),
    st.floats(0, 30).map(lambda seconds: ("pass", seconds)),
)


@given(st.lists(steps, max_size=120))
def test_nothing_is_lost_or_doubled_and_the_queue_never_stalls(history):
    queue, now, inside = make(), 0.0, []
    for step, value in history:
        if step == "push":
            queue.push(value, now)
            inside.append(value)
        elif step == "resume":
            queue.push_resumed(value)
            inside.append(value)
        elif step == "pop" and inside:
            inside.remove(queue.pop(now))  # fails for an item that is not queued
        elif step == "discard" and inside:
            queue.discard(inside.pop(value % len(inside)))
        elif step == "pass":
            now += value
        assert len(queue) == len(inside)
        assert (queue.head(now) is None) == (not inside)
        assert all(item in queue for item in inside)
        assert sum(queue.requests(each) for each in Priority) == len(inside)
    foreseen = list(queue.upcoming(now))
    served = drain(queue, now)
    assert list(map(id, served)) == list(map(id, foreseen))
    assert sorted(map(id, served)) == sorted(map(id, inside))
    assert queue.tokens == 0
    assert queue._held_requests == queue._held_tokens == {}


@given(
    st.lists(st.integers(1, 500), min_size=20, max_size=60),
    st.lists(st.integers(1, 500), min_size=20, max_size=60),
    st.sampled_from([0.25, 1.0, 3.0]),
)
def test_two_backlogged_tenants_never_differ_by_more_than_one_request(ones, others, weight):
    """The bound of start-time fair queuing, per unit of weight, for flows that start together."""
    queue = make()
    for tenant, sizes, share in (("a", ones, 1.0), ("b", others, weight)):
        for size in sizes:
            queue.push(Item(tenant=tenant, tokens=size, weight=share), 0.0)
    largest = max(*ones, max(others) / weight)
    left = {"a": len(ones), "b": len(others)}
    served = {"a": 0.0, "b": 0.0}
    while left["a"] and left["b"]:
        item = queue.pop(0.0)
        left[item.tenant] -= 1
        served[item.tenant] += item.tokens / item.weight
        assert abs(served["a"] - served["b"]) <= largest


@given(st.lists(st.tuples(tenants, st.sampled_from(Priority), st.floats(0, 8)), max_size=60))
def test_one_tenants_requests_of_one_priority_stay_in_order(arrivals):
    queue, now = make(), 0.0
    numbers = {}
    for number, (tenant, priority, pause) in enumerate(arrivals):
        now += pause
        item = Item(tenant=tenant, priority=priority)
        numbers[item] = number
        queue.push(item, now)
    last = {}
    for item in drain(queue, now):
        key = (item.tenant, item.priority)
        assert last.get(key, -1) < numbers[item]
        last[key] = numbers[item]


@given(
    st.lists(st.tuples(tenants, st.integers(1, 50)), min_size=30, max_size=60),
    st.sampled_from([S, B]),
)
def test_a_stream_of_better_requests_does_not_starve_one(stream, priority):
    """One request per second is served while higher classes arrive: ageing bounds the wait."""
    queue = make()
    waiting = Item("old", "old", priority, tokens=50)
    queue.push(waiting, 0.0)
    for second, (tenant, tokens) in enumerate(stream * 5):
        # Two arrive for each one served: the queue only grows.
        queue.push(Item(tenant=tenant, priority=TOP, tokens=tokens), float(second))
        queue.push(Item(tenant=tenant, priority=TOP, tokens=tokens), float(second))
        if queue.pop(float(second)) is waiting:
            break
    # After ageing, it is interactive; fairness then serves at most this much of three others first:
    # their start tags are behind its own by a request each, of at most 50 tokens.
    assert waiting not in queue
    assert second <= AGEING * priority + 3 * 50
