import pytest

from loadtest.simulation.comparison import unexplained
from loadtest.simulation.fit import fit_overhead, fit_step
from serving.errors import InvalidRequest
from serving.settings import Settings
from tests.unit.loadtest.records import record
from tests.unit.loadtest.simulation.worlds import calibration, sequences, world


def records_of_the_model(cal, *, late=0.0, streams=8, requests=60):
    """Records of a simulated closed loop with ``streams`` streams."""
    rows = [(index * 0.4 / streams, 40 + index * 7 % 300, 30) for index in range(requests)]
    sent = sequences(*rows)
    world(cal).run(sent)
    return [
        record(
            one.number,
            intended=one.at,
            first=one.first_at + late,
            end=one.ended_at + late,
            prompt_tokens=one.prompt_tokens,
            output_tokens=one.output_tokens,
        )
        for one in sent
    ]


def test_the_models_own_line_is_found_again():
    found = fit_step(records_of_the_model(calibration()), 1)
    assert found.step.base == pytest.approx(0.010, rel=0.2)
    assert found.step.per_sequence == pytest.approx(0.001, rel=0.3)
    assert found.step.per_prompt_token == pytest.approx(0.0001, rel=0.2)
    assert found.residual < 0.02
    assert found.requests == 60


def test_what_cannot_be_fitted():
    with pytest.raises(InvalidRequest, match="only 3"):
        fit_step([record(index) for index in range(3)], 1)


def test_failed_requests_and_single_tokens_are_left_out():
    good = records_of_the_model(calibration())
    bad = [record(100, error="broken"), record(101, output_tokens=1)]
    assert fit_step([*good, *bad], 1) == fit_step(good, 1)


def test_what_the_model_does_not_explain_is_the_overhead():
    records = records_of_the_model(calibration(), late=0.030)
    extra, others = unexplained(records, calibration(), Settings(), 1)
    assert extra == pytest.approx([0.030] * len(records))
    assert max(others) > 1
    alone, each = fit_overhead(extra, others)
    assert alone == pytest.approx(0.030, abs=0.001)
    assert each == pytest.approx(0.0, abs=0.0005)


@pytest.mark.parametrize(
    ("extra", "others", "expected"),
    [
        pytest.param([0.01, 0.02, 0.03], [0, 1, 2], (0.01, 0.01), id="grows with the others"),
        pytest.param([0.03, 0.02, 0.01], [0, 1, 2], (0.02, 0.0), id="never shrinks with them"),
        pytest.param([-0.02, -0.02, -0.02], [0, 1, 2], (0.0, 0.0), id="never below nothing"),
        pytest.param([0.01] * 9 + [5.0], [0, 1] * 5, (0.01, 0.0), id="one stray is no matter"),
    ],
)
def test_overhead(extra, others, expected):
    assert fit_overhead(extra, others) == pytest.approx(expected, abs=1e-3)
