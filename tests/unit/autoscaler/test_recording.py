"""Recordings round-trip; replay and explain print them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.recording import (
    format_line,
    load_state,
    load_states,
    parse_line,
    read_recording,
    save_state,
    save_states,
)
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.cli.main import main
from serving.errors import SettingsError
from tests.unit.autoscaler.observations import observation

NOW = 1_000_000.0
numbers = st.floats(0, 1e9)
readings = st.builds(
    Reading,
    st.one_of(st.none(), numbers),
    st.one_of(st.just(float("inf")), numbers),
    st.floats(0, 1),
)
observations = st.builds(
    Observation,
    st.integers(0, 1000),
    st.one_of(st.none(), st.builds(FleetCounts, st.integers(0, 99), st.integers(0, 99))),
    st.dictionaries(st.sampled_from(Signal), readings),
)


@given(numbers, observations)
def test_a_line_is_read_as_it_was_written(at, seen):
    assert parse_line(format_line(at, seen)) == (at, seen)


def test_state_is_read_as_it_was_written(tmp_path):
    state = PolicyState(capacity=800.0, spent_day=3, spent=1.5, spent_at=99.0)
    save_state(tmp_path / "state", state)
    assert load_state(tmp_path / "state") == state


@pytest.mark.parametrize("text", ["{", "[]", '{"capacity": 1}'])
def test_a_broken_state_is_named(tmp_path, text):
    (tmp_path / "state").write_text(text)
    with pytest.raises(SettingsError, match="delete it to start"):
        load_state(tmp_path / "state")


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "seen"
    file.write_text(format_line(1.0, observation()) + "\n{}\n")
    with pytest.raises(SettingsError, match="line 2"):
        list(read_recording(file))


@pytest.fixture
def recording(tmp_path):
    file = tmp_path / "seen.jsonl"
    moments = [(0.0, observation(1)), (5.0, observation(1, ttft_p90=9.0))]
    file.write_text("".join(format_line(at, seen) + "\n" for at, seen in moments))
    return str(file)


SCALING = ["--set", "autoscaler.max_groups=4", "--set", "autoscaler.pressure_clamp=2"]


def test_replay_prints_a_row_a_look(recording, capsys):
    assert main(["autoscaler", "--replay", recording, *SCALING]) == 0
    header, calm, hot = capsys.readouterr().out.splitlines()
    assert header.startswith("time (UTC)")
    assert "1 -> 1" in calm
    assert "1 -> 3" in hot
    assert "P90 TTFT 9 s, objective 2 s" in hot


def test_explain_prints_signals_votes_and_outcome(recording, capsys):
    assert main(["autoscaler", "explain", "--replay", recording, *SCALING]) == 0
    text = capsys.readouterr().out
    assert "ttft_p90_seconds                  9   age 1.0 s, gaps 0%" in text
    assert "slo pressure   vote        3   P90 TTFT 9 s, objective 2 s" in text
    assert "activity       abstain     -   min_groups is above 0" in text
    assert "decision  1 -> 3 groups: slo pressure: P90 TTFT 9 s, objective 2 s" in text


def test_a_schedule_that_cannot_be_read_ends_it(recording, capsys):
    schedule = 'autoscaler.schedule=[{"when": "bad", "groups": 1}]'
    assert main(["autoscaler", "--replay", recording, "--set", schedule]) == 1
    assert "has 1 fields instead of 5" in capsys.readouterr().err


def test_the_pool_is_kept():
    seen = replace(observation(2), pool="m/default")
    assert parse_line(format_line(NOW, seen)) == (NOW, seen)


def test_the_state_of_one_pool_belongs_to_the_first(tmp_path):
    """The day's GPU-hours still count when models[] replaces the short form."""
    file = tmp_path / "state.json"
    state = PolicyState(capacity=120.0, spent_day=11574, spent=1.5, spent_at=NOW)
    save_state(file, state)
    assert load_states(file, ["a/x", "b/x"]) == {"a/x": state, "b/x": PolicyState()}
    save_states(file, {"a/x": state, "gone/x": state})
    assert load_states(file, ["b/x", "a/x"]) == {"a/x": state, "b/x": PolicyState()}
    assert load_states(tmp_path / "none", ["a/x"]) == {"a/x": PolicyState()}
    file.write_text("[]")
    with pytest.raises(SettingsError, match="delete it"):
        load_states(file, ["a/x"])
