from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch.headroom import RankUse, StepModel, rooms
from serving.routing.snapshot import MemberState, RankLoad
from serving.settings import BatchSettings
from tests.support.fleets import fleet, group, rank

KEY = ("g0", "e")


def modelled(fixed=0.010, each=0.001):
    model = StepModel()
    for count in range(1, 40):
        model = model.after(count, fixed + each * count)
    return {KEY: model}


def one(inflight=0, lines=0, *, load=None, models=None, peak=0, factor=1.0, others=(), **settings):
    """Return the room on rank 0 of a group; ``others`` are further ranks of the group."""
    here = replace(rank(0, inflight=inflight, max_num_seqs=32), load=load or RankLoad())
    found = rooms(
        fleet(group(here, *others)),
        {here.rank_id: RankUse(lines, peak)},
        modelled() if models is None else models,
        BatchSettings(**settings),
        factor=factor,
    )
    return found[here.rank_id]


@given(st.floats(1e-4, 0.1), st.floats(1e-5, 0.01))
def test_the_model_finds_the_line_through_the_reports(fixed, each):
    model = modelled(fixed, each)[KEY]
    assert model.coefficients == pytest.approx((fixed, each), rel=1e-6)
    assert model.sequences_within(fixed + 20 * each) == pytest.approx(20, rel=1e-6)


def test_without_spread_all_of_a_step_is_ascribed_to_its_sequences():
    model = StepModel().after(4, 0.2).after(4, 0.2)
    assert model.coefficients == pytest.approx((0.0, 0.05))


def test_nothing_is_known_without_reports():
    assert StepModel().sequences_within(inf) == 0


def test_an_idle_group_takes_lines_up_to_its_sequences():
    assert one().lines == 32
    assert one(inflight=5, lines=5).lines == 32


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        # A step of 4 takes 14 ms; 10 % more is one sequence more.
        pytest.param({}, 1, id="slowdown of 10 %"),
        pytest.param({"max_step_growth": 1.0}, 14, id="slowdown of 100 %"),
        pytest.param({"itl_slo": 0.025}, 11, id="objective"),
        pytest.param({"itl_slo": 0.012}, 0, id="objective that others exceed"),
        pytest.param({"itl_slo": 9.0}, 28, id="objective that nothing exceeds"),
    ],
)
def test_beside_others_the_permitted_step_decides(settings, room):
    assert one(inflight=4, **settings).lines == room


def test_a_request_on_another_rank_of_the_group_counts_too():
    assert one(others=[rank(1, inflight=4, max_num_seqs=32)], itl_slo=0.025).lines == 15


def test_a_request_of_another_group_does_not():
    assert one(others=()).lines == 32


def test_requests_of_other_routers_count():
    load = RankLoad(running_requests=9)
    assert one(load=load, itl_slo=0.025).others == 9
    # The report can be older than the end of this router's own requests.
    assert one(load=load, peak=9, itl_slo=0.025).others == 0


def test_the_factor_applies_beside_others_only():
    assert one(inflight=4, itl_slo=0.025, factor=0.5).lines == 5
    assert one(factor=0.5).lines == 32


@pytest.mark.parametrize(
    ("load", "lines", "more"),
    [
        pytest.param(RankLoad(kv_usage=0.89), 32, True, id="room in the cache"),
        pytest.param(RankLoad(kv_usage=0.91), 32, False, id="reserve"),
        pytest.param(RankLoad(kv_usage=0.96), 6, False, id="half of the reserve"),
        pytest.param(RankLoad(waiting_requests=1), 32, False, id="queue"),
    ],
)
def test_a_full_cache_or_a_queue_stops_further_lines(load, lines, more):
    found = one(inflight=8, lines=8, load=load, peak=9)
    assert (found.lines, found.more) == (lines, more)


def test_without_reports_nothing_runs_beside_others():
    assert one(inflight=1, models={}, itl_slo=1.0).lines == 0


def test_ranks_that_take_no_requests_have_no_room():
    assert rooms(fleet(group(rank(), state=MemberState.DRAINING)), {}, {}, BatchSettings()) == {}
    drained = rank(0, draining=True)
    found = rooms(fleet(group(drained)), {}, {}, BatchSettings())
    assert (found[drained.rank_id].lines, found[drained.rank_id].more) == (0, False)
