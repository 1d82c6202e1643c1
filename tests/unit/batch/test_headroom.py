from dataclasses import replace

import pytest

from serving.batch.headroom import GroupUse, RankUse, peak_alone, rooms
from serving.batch.step_model import StepModel, StepSample
from serving.routing.snapshot import MemberState, RankLoad
from serving.settings import BatchSettings
from tests.support.fleets import fleet, group, rank

KEY = ("g0", "e")


def learned(fixed=0.010, each=0.001, peak=0.0, token=0.0001):
    model = StepModel()
    for count in range(1, 40):
        prompt = count * 7 % 10
        model = model.after(StepSample(fixed + each * count + token * prompt, count, prompt))
    return {KEY: GroupUse(model, peak)}


def one(
    inflight=0,
    lines=0,
    *,
    load=None,
    groups=None,
    peak=0,
    factor=1.0,
    prompt=0.0,
    others=(),
    **settings,
):
    """Return the room on rank 0 of a group; ``others`` are further ranks of the group."""
    here = replace(rank(0, inflight=inflight, max_num_seqs=32), load=load or RankLoad())
    found = rooms(
        fleet(group(here, *others)),
        {here.rank_id: RankUse(lines, peak)},
        learned() if groups is None else groups,
        BatchSettings(**settings),
        factor=factor,
        prompt=prompt,
    )
    return found[here.rank_id]


def test_an_idle_group_takes_lines_up_to_its_sequences():
    assert one().lines == 32
    assert one(inflight=5, lines=5).lines == 32


def test_an_idle_group_keeps_its_steps_short_if_a_setting_says_so():
    assert one(max_idle_step=0.025).lines == 15
    # Nothing is known of its steps before it has run any.
    assert one(max_idle_step=0.025, groups={}).lines == 32


@pytest.mark.parametrize(
    ("peak", "room"),
    [
        pytest.param(0.0, 1, id="none"),
        # 20 others have steps of 30 ms; 10 % more are 23 sequences.
        pytest.param(20.0, 19, id="above the current number"),
        pytest.param(3.0, 0, id="below the current number"),
    ],
)
def test_lines_fill_a_group_up_to_its_recent_peak(peak, room):
    assert one(inflight=4, groups=learned(peak=peak)).lines == room


def test_a_line_starts_only_if_its_prompt_fits_into_the_step():
    found = one(inflight=4, itl_slo=0.025, prompt=0)
    assert (found.lines, found.starts, found.beside) == (11, 11, True)
    # A prompt of 30 tokens takes 3 ms.
    assert one(inflight=4, itl_slo=0.025, prompt=30).starts == 8
    assert one(inflight=4, itl_slo=0.025, prompt=30).lines == 11
    assert one(inflight=4, itl_slo=0.025, prompt=900).starts == 0
    assert not one(prompt=900).beside
    assert one(prompt=900).starts == 32


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


def test_a_peak_is_that_of_the_requests_alone():
    (model,) = (each.model for each in learned().values())
    alone = [(number, number) for number in range(1, 11)]
    assert peak_alone(alone, model) == pytest.approx(9)
    assert peak_alone([], model) == 0
    # 20 lines lengthen the steps, so that more requests run at a time.
    beside = [(2 * number, 2 * number + 20) for number in range(1, 11)]
    # A third as many would run alone: 3.7 instead of 11 on average.
    assert peak_alone(beside, model) == pytest.approx(6)
    assert peak_alone(beside, StepModel()) == 18


def test_requests_of_other_routers_count():
    load = RankLoad(running_requests=9)
    assert one(load=load, itl_slo=0.025).others == 9
    # The report can be older than the end of this router's own requests.
    assert one(load=load, peak=9, itl_slo=0.025).others == 0


def test_the_factor_applies_beside_others_only():
    assert one(inflight=4, itl_slo=0.025, factor=0.5).lines == 5
    assert one(factor=0.5).lines == 32


@pytest.mark.parametrize(
    ("load", "lines", "starts"),
    [
        pytest.param(RankLoad(kv_usage=0.89), 32, 32, id="room in the cache"),
        pytest.param(RankLoad(kv_usage=0.91), 32, 0, id="reserve"),
        pytest.param(RankLoad(kv_usage=0.96), 6, 0, id="half of the reserve"),
        pytest.param(RankLoad(waiting_requests=1), 32, 0, id="queue"),
    ],
)
def test_a_full_cache_or_a_queue_stops_further_lines(load, lines, starts):
    found = one(inflight=8, lines=8, load=load, peak=9)
    assert (found.lines, found.starts) == (lines, starts)


def test_without_reports_nothing_runs_beside_others():
    assert one(inflight=1, groups={}, itl_slo=1.0).lines == 0


def test_ranks_that_take_no_requests_have_no_room():
    assert rooms(fleet(group(rank(), state=MemberState.DRAINING)), {}, {}, BatchSettings()) == {}
    drained = rank(0, draining=True)
    found = rooms(fleet(group(drained)), {}, {}, BatchSettings())
    assert (found[drained.rank_id].lines, found[drained.rank_id].starts) == (0, 0)
