import dataclasses

import pytest

from loadtest.simulation.comparison import as_table, compare, simulate
from serving.settings import Settings
from tests.unit.loadtest.records import record
from tests.unit.loadtest.simulation.worlds import calibration


def real(count=20):
    """Records that match the model: TTFT 0.016 s, ITL 11 ms."""
    return [
        record(
            index,
            intended=5.0 + index,
            first=5.016 + index,
            end=5.016 + index + 0.11,
            prompt_tokens=60,
            output_tokens=11,
        )
        for index in range(count)
    ]


def test_a_model_that_is_right_has_no_error():
    records = real()
    lines = compare(records, simulate(records, calibration(), Settings(), 1)[0])
    assert {line.name.split()[0] for line in lines} == {"TTFT", "ITL", "latency", "output"}
    assert all(line.error == pytest.approx(0, abs=0.001) for line in lines)


def test_a_model_that_is_slow_says_by_how_much():
    records = real()
    slow = calibration(overhead=0.016)
    lines = {
        line.name: line for line in compare(records, simulate(records, slow, Settings(), 1)[0])
    }
    assert lines["TTFT p50, ms"].error == pytest.approx(1.0, abs=0.01)
    assert lines["ITL p50, ms"].error == pytest.approx(0.0, abs=0.01)


def test_failed_requests_are_left_out():
    records = [*real(3), dataclasses.replace(real(4)[3], error="broken")]
    assert simulate(records, calibration(), Settings(), 1)[0].requests == 3


def test_the_table_has_a_row_a_figure():
    records = real()
    lines = compare(records, simulate(records, calibration(), Settings(), 1)[0])
    text = as_table("", lines)
    assert len(text.splitlines()) == 2 + len(lines)
    assert "| TTFT p50, ms " in text
