from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch.step_model import StepModel, StepSample, StepTime, sample_between
from serving.routing.snapshot import RankLoad


def fitted(*samples):
    model = StepModel()
    for sample in samples:
        model = model.after(sample)
    return model.times


@given(st.floats(1e-3, 0.1), st.floats(1e-4, 0.01), st.floats(1e-5, 1e-3))
def test_the_model_finds_the_costs(fixed, each, token):
    # The prompt tokens do not follow the number of sequences.
    samples = [
        StepSample(fixed + each * n + token * (n * 7 % 10), n, n * 7 % 10) for n in range(1, 40)
    ]
    times = fitted(*samples)
    assert (times.fixed, times.sequence, times.token) == pytest.approx(
        (fixed, each, token), rel=1e-4
    )
    assert times.sequences_within(times.seconds(20)) == pytest.approx(20, rel=1e-6)


@given(
    st.lists(
        st.builds(StepSample, st.floats(1e-4, 1), st.floats(0.1, 500), st.floats(0, 4096)),
        min_size=1,
        max_size=50,
    )
)
def test_costs_are_never_negative_and_never_exceed_the_steps(samples):
    times = fitted(*samples)
    assert min(times.fixed, times.sequence, times.token) >= 0.0
    longest, most = max(each.seconds for each in samples), max(each.sequences for each in samples)
    assert times.sequence * min(each.sequences for each in samples) <= longest * 1.001
    assert times.seconds(most) < inf


def test_without_spread_the_whole_step_is_ascribed_to_its_sequences():
    times = fitted(StepSample(0.2, 4, 0), StepSample(0.2, 4, 0))
    assert (times.fixed, times.sequence) == pytest.approx((0.0, 0.05))


def test_costs_found_before_are_kept_while_the_number_of_sequences_stays_the_same():
    varied = [StepSample(0.010 + 0.001 * n, n, 0.0) for n in range(1, 40)]
    constant = [StepSample(0.030, 20, 0.0)] * 1000
    times = fitted(*varied, *constant)
    assert times.sequence == pytest.approx(0.001, rel=0.01)
    assert times.seconds(20) == pytest.approx(0.030, rel=0.01)


def test_prompts_that_grow_with_the_sequences_get_no_cost_of_their_own():
    times = fitted(*(StepSample(0.01 + 0.002 * n, n, 3 * n) for n in range(1, 40)))
    assert times.token == 0.0
    assert times.sequence == pytest.approx(0.002)


def test_nothing_is_known_without_reports():
    assert fitted() is None


@pytest.mark.parametrize(
    ("times", "sequences"),
    [
        pytest.param(StepTime(0.01, 0.0, 0.0), inf, id="sequences cost nothing"),
        pytest.param(StepTime(0.03, 0.0, 0.0), 0.0, id="the fixed part alone is too long"),
        pytest.param(StepTime(0.03, 0.001, 0.0), 0.0, id="no sequence fits"),
        pytest.param(StepTime(0.01, 0.001, 0.0), 10.0, id="some fit"),
    ],
)
def test_sequences_within(times, sequences):
    assert times.sequences_within(0.02) == pytest.approx(sequences)


OLD = RankLoad(
    engine_steps_total=10,
    generated_tokens_total=100,
    prompt_tokens_total=50,
    busy_seconds_total=1.0,
)


def later(steps=10, tokens=40, prompt=30, seconds=0.5, accepted=0):
    return RankLoad(
        engine_steps_total=10 + steps,
        generated_tokens_total=100 + tokens,
        prompt_tokens_total=50 + prompt,
        busy_seconds_total=1.0 + seconds,
        mtp_accepted_tokens=accepted,
    )


@pytest.mark.parametrize(
    ("after", "sample"),
    [
        pytest.param([later()], StepSample(0.05, 4.0, 3.0), id="one rank"),
        pytest.param([later(tokens=60, accepted=20)], StepSample(0.05, 4.0, 3.0), id="drafts"),
        pytest.param(
            [later(), later(tokens=80, prompt=0)], StepSample(0.05, 8.0, 3.0), id="busiest rank"
        ),
        pytest.param([later(), later(0, 0, 0, 0.0)], StepSample(0.05, 4.0, 3.0), id="idle rank"),
        pytest.param([later(tokens=0)], None, id="no tokens"),
        pytest.param([RankLoad()], None, id="an engine that started again"),
    ],
)
def test_a_sample_is_the_mean_between_two_reports(after, sample):
    found = sample_between([OLD] * len(after), after)
    if sample is None:
        assert found is None
    else:
        assert (found.seconds, found.sequences, found.prompt_tokens) == pytest.approx(
            (sample.seconds, sample.sequences, sample.prompt_tokens)
        )


@given(st.floats(0.001, 0.1), st.floats(0, 0.01), st.floats(0, 100), st.floats(0, 100))
def test_others_alone_arrive_at_the_same_rate(fixed, each, others, lines):
    times = StepTime(fixed, each, 0.0)
    alone = times.alone(others, others + lines)
    assert 0 <= alone <= others
    assert alone / times.seconds(alone) == pytest.approx(others / times.seconds(others + lines))
