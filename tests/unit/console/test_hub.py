"""Snapshots are built once for all consoles, kept once, and skipped by slow readers."""

import asyncio
import contextlib

import pytest

from serving.console.hub import TENANT_PART, SnapshotHub
from serving.errors import Overloaded
from tests.support.waiting import PATIENCE, eventually


class Source:
    """A feed with one part; ``content`` is its data."""

    def __init__(self, content=b"0"):
        self.content = content
        self.built = 0

    def __call__(self):
        self.built += 1
        return {"part": self.content}


def event(data):
    return b"event: part\ndata: %s\n\n" % data


@pytest.fixture
def hub():
    made = SnapshotHub(interval=0.001, max_subscriptions=50)
    yield made
    made.close()


async def wait(subscription):
    async with asyncio.timeout(PATIENCE):
        await subscription.wait()


async def test_a_subscriber_gets_the_current_snapshot_then_changes(hub):
    source = Source()
    with hub.subscribe({"a": source}) as one:
        await wait(one)
        assert one.take() == event(b"0")
        assert one.take() == b""
        source.content = b"1"
        await wait(one)
        assert one.take() == event(b"1")


async def test_a_slow_subscriber_skips_snapshots_and_holds_none(hub):
    source = Source()
    with hub.subscribe({"a": source}) as slow, hub.subscribe({"a": source}) as quick:
        await wait(quick)
        quick.take()
        for number in range(1, 20):
            source.content = b"%d" % number
            await wait(quick)
            assert quick.take() == event(source.content)
        assert slow.take() == event(b"19")
        [feed] = hub._feeds.values()
        assert list(feed.events) == ["part"]


async def test_a_feed_is_built_once_for_all_and_not_without_readers():
    source = Source()
    changes = []
    hub = SnapshotHub(
        interval=0.001,
        max_subscriptions=50,
        on_readers=lambda hub: changes.append(hub.reading("a")),
    )
    with hub.subscribe({"a:1": source}), hub.subscribe({"a:1": Source()}) as second:
        await wait(second)
        assert second.take() == event(b"0")
        hub._tick()
        assert source.built == 2
    assert hub.reading("") == []
    assert changes == [["a:1"], ["a:1"], ["a:1"], []]
    await eventually(lambda: hub._task is None, "the end of the task")


async def test_subscriptions_are_limited():
    hub = SnapshotHub(interval=1, max_subscriptions=1)
    with hub.subscribe({"a": Source()}):
        with pytest.raises(Overloaded, match="max_streams"), hub.subscribe({"a": Source()}):
            pass
        assert hub.reading("a") == ["a"]
    with hub.subscribe({"a": Source()}):
        assert hub.subscriptions == 1
    hub.close()


async def test_a_feed_that_fails_does_not_stop_the_others(hub):
    bad, good = Source(), Source()
    with hub.subscribe({"bad": bad, "good": good}) as one:
        await wait(one)
        one.take()

        def fail():
            raise ZeroDivisionError

        hub._feeds["bad"].build = fail
        good.content = b"1"
        await wait(one)
        assert one.take() == event(b"1")


async def test_a_first_snapshot_that_fails_leaves_nothing(hub):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), hub.subscribe({"a": Source(), "bad": fail}):
        pass
    assert hub.reading("") == []
    assert hub.subscriptions == 0


async def test_closing_wakes_everybody(hub):
    with hub.subscribe({"a": Source()}) as one:
        await wait(one)
        hub.close()
        await wait(one)
        assert hub.closed


async def test_one_tenant_cannot_take_the_subscriptions_of_others(hub):
    source = Source()
    with contextlib.ExitStack() as stack:
        for _ in range(50 // TENANT_PART):
            stack.enter_context(hub.subscribe({"a": source}, "greedy"))
        with (
            pytest.raises(Overloaded, match="your tenant has 12 open streams"),
            hub.subscribe({"a": source}, "greedy"),
        ):
            pass
        for tenant in ("another", None):
            with hub.subscribe({"a": source}, tenant):
                pass
    assert not hub._tenants
    with hub.subscribe({"a": source}, "greedy"):
        assert hub.subscriptions == 1
