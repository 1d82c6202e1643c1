"""RankLink hands KV-cache events to the index, and forgets them with the rank."""

import pytest

from serving.clock import SystemClock
from serving.fleet.membership import Roster
from serving.fleet.rank_handle import MemberKey
from serving.fleet.rank_link import RankLink
from serving.link.v1 import link_pb2

KEY = MemberKey("g0", "e1", 0)
RANK = ("g0", "e1", 0)


@pytest.fixture
def link():
    return RankLink(
        KEY, Roster(), SystemClock(), send_limit=1, max_frame_bytes=2**20, silence_limit=10
    )


def message(sequence, **fields):
    events = link_pb2.KvEvents(block_size=16, sequence=sequence, **fields)
    return link_pb2.RankMessage(kv_events=events)


def test_events_reach_the_index_in_order(link):
    prefixes = link._roster.prefixes
    link.receive(message(0, reset=True, stored=[1, 2, 2**64 - 1]))
    link.receive(message(1, removed=[1], stored=[3]))
    assert prefixes.blocks(RANK) == {2, 3, 2**64 - 1}
    link.receive(message(5, stored=[4]))
    assert prefixes.blocks(RANK) == frozenset()


def test_a_closed_link_is_forgotten_and_says_nothing_more(link):
    prefixes = link._roster.prefixes
    link.receive(message(0, reset=True, stored=[1]))
    link.close("lost")
    assert prefixes.blocks(RANK) == frozenset()
    link.receive(message(1, reset=True, stored=[1]))
    assert prefixes.blocks(RANK) == frozenset()
