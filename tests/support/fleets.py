"""Builders of fleets: snapshots as routing sees them, and what ranks send when they join.

``rank``, ``group``, ``loads`` and ``fleet`` build snapshots, ``fleets`` draws arbitrary ones.
``hello`` and ``load`` are a rank's messages, ``RecordingHandle`` is the router's end of its link.
"""

from hypothesis import strategies as st

from serving.link.v1 import link_pb2
from serving.routing.snapshot import (
    FleetSnapshot,
    GroupSnapshot,
    MemberState,
    RankLoad,
    RankSnapshot,
)

READY = MemberState.READY


def rank(index=0, outstanding=0, *, group="g0", inflight=None, kv=0.0, waiting=0, **fields):
    """Return a healthy rank; it runs one request if it has outstanding tokens."""
    return RankSnapshot(
        group_id=group,
        epoch="e",
        rank=index,
        inflight_requests=bool(outstanding) if inflight is None else inflight,
        outstanding_tokens=outstanding,
        load=RankLoad(kv_usage=kv, waiting_requests=waiting),
        **({"healthy": True} | fields),
    )


def group(*ranks, name="g0", state=READY, epoch="e"):
    return GroupSnapshot(name, epoch, state, "because", 0.0, len(ranks), ranks=ranks)


def fleet(*groups, history=()):
    return FleetSnapshot("r", groups, history)


def loads(*outstanding, name="g0"):
    """Return a group with one rank for each number of outstanding tokens."""
    return group(
        *(rank(index, tokens, group=name) for index, tokens in enumerate(outstanding)), name=name
    )


def ranks_of(snapshot):
    return [each for group in snapshot.groups for each in group.ranks]


@st.composite
def fleets(draw, states=tuple(MemberState)):
    """Draw a fleet of at most four groups."""
    groups = []
    for number in range(draw(st.integers(0, 4))):
        name = f"g{number}"
        ranks = [
            rank(
                index,
                draw(st.integers(0, 5000)),
                group=name,
                inflight=draw(st.integers(0, 20)),
                kv=draw(st.floats(-0.1, 1.1)),
                waiting=draw(st.integers(0, 20)),
                healthy=draw(st.booleans()) or draw(st.booleans()),
                draining=draw(st.booleans()) and draw(st.booleans()),
                max_model_len=draw(st.sampled_from([0, 100, 10_000])),
                max_num_seqs=draw(st.sampled_from([0, 4, 16])),
                kv_blocks=draw(st.sampled_from([0, 10, 300])),
                kv_block_size=16,
            )
            for index in range(draw(st.integers(1, 4)))
        ]
        groups.append(group(*ranks, name=name, state=draw(st.sampled_from(states))))
    return fleet(*groups)


def hello(rank=0, *, group="g0", epoch="e1", world=2, started=0.0, **fields):
    """Return the first message of a rank that joins."""
    return link_pb2.Hello(
        group_id=group,
        epoch=epoch,
        rank=rank,
        world_size=world,
        epoch_started_unix_seconds=started,
        **fields,
    )


def load(health=link_pb2.LoadSnapshot.HEALTHY, reason="", **fields):
    """Return a rank's load report."""
    return link_pb2.LoadSnapshot(health=health, health_reason=reason, **fields)


class RecordingHandle:
    """A ``RankHandle`` that records its calls and keeps submitted streams until a test acts."""

    def __init__(self, inflight_requests=0, outstanding_tokens=0):
        self.inflight_requests = inflight_requests
        self.outstanding_tokens = outstanding_tokens
        self.round_trip = None
        self.streams = []
        self.released = []
        self.fenced = []
        """(reason, planned) of each call."""
        self.closed = []
        """The reason of each call."""

    def submit(self, stream):
        self.streams.append(stream)
        self.inflight_requests += 1

    def release(self, stream):
        self.released.append(stream)

    def fence(self, reason, *, planned=False):
        self.fenced.append((reason, planned))

    def close(self, reason):
        self.closed.append(reason)
