"""Fleets for the tests beside this file, written down or made up."""

from hypothesis import strategies as st

from serving.routing.snapshot import (
    FleetSnapshot,
    GroupSnapshot,
    MemberState,
    RankLoad,
    RankSnapshot,
)

READY = MemberState.READY


def rank(index=0, outstanding=0, *, group="g0", inflight=None, kv=0.0, waiting=0, **fields):
    """A healthy rank; with outstanding tokens it has a request."""
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
    """A group of ranks with so many outstanding tokens each."""
    return group(
        *(rank(index, tokens, group=name) for index, tokens in enumerate(outstanding)), name=name
    )


def ranks_of(snapshot):
    return [each for group in snapshot.groups for each in group.ranks]


@st.composite
def fleets(draw, states=tuple(MemberState)):
    """Any fleet of a few groups."""
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
