"""Replay of recordings of several pools, and of earlier ones of one."""

import pytest

from serving.autoscaler.pools import observe
from serving.autoscaler.recording import format_line
from serving.cli.ops.autoscaler import replay_recording
from serving.cli.ops.autoscaler_pools import replay_pools
from serving.errors import SettingsError
from serving.settings import Settings, load_settings
from tests.unit.autoscaler.fleets import CALM, IDLE, fleet, measured, pool
from tests.unit.autoscaler.observations import observation

NOW = 1_760_000_000.0


def settings(*names, **autoscaler):
    return load_settings(
        flags={
            "models": [{"name": name, "path": "/m"} for name in names],
            "group": {"data_parallel": 2},
            "autoscaler": {"max_groups": 4, "min_groups": 0} | autoscaler,
        }
    )


@pytest.fixture
def recording(tmp_path):
    """Two cycles of the pools a/default (calm) and b/default (a request is parked)."""
    file = tmp_path / "seen.jsonl"
    pools = [pool("a"), pool("b")]
    keys = [each.key for each in pools]
    readings = measured(dict(zip(keys, (CALM, IDLE), strict=True)))
    lines = []
    for turn in range(2):
        targets = dict(zip(keys, (1, turn), strict=True))
        seen = observe(pools, targets, fleet({keys[0]: 1}, parked={"b": 1}), readings, {}, NOW)
        lines += [format_line(NOW + 5 * turn, each) for each in seen.values()]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_each_pool_is_decided_again(recording, capsys):
    replay_pools(settings("a", "b"), recording, detail=False)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "pool"
    assert [line.split()[0] for line in lines] == ["a/default", "b/default"] * 2
    assert "0 -> 1" in lines[1]
    assert "1 requests are parked" in lines[1]


def test_other_limits_change_the_decisions(recording, capsys):
    replay_pools(settings("a", "b", max_gpus=2.0), recording, detail=False)
    lines = capsys.readouterr().out.splitlines()
    assert "0 -> 0" in lines[2]
    assert "max_gpus 2; parked" in lines[2]


def test_detail_shows_the_votes_of_each_pool(recording, capsys):
    replay_pools(settings("a", "b"), recording, detail=True)
    text = capsys.readouterr().out
    assert text.count("pool b/default\nsignals\n") == 2
    assert "decision  0 -> 1 groups: parked" in text


def test_a_recording_of_one_pool_is_replayed_for_the_only_pool(tmp_path, capsys):
    file = tmp_path / "old.jsonl"
    file.write_text(format_line(NOW, observation(1, ttft_p90=5.0)) + "\n")
    replay_recording(Settings(autoscaler={"max_groups": 4}), file, detail=False)
    old = capsys.readouterr().out.splitlines()[1]
    replay_pools(settings("a", min_groups=1), file, detail=False)
    new = capsys.readouterr().out.splitlines()[1]
    assert new == f"a/default {old}"


@pytest.mark.parametrize("names", [("a",), ("a", "c")])
def test_other_pools_are_refused(recording, names):
    with pytest.raises(SettingsError, match="recorded for pool b/default, these settings have a"):
        replay_pools(settings(*names), recording, detail=False)


def test_a_recording_of_one_pool_needs_settings_of_one(tmp_path):
    file = tmp_path / "old.jsonl"
    file.write_text(format_line(NOW, observation(1)) + "\n")
    with pytest.raises(SettingsError, match="one pool without models"):
        replay_pools(settings("a", "b"), file, detail=False)


def test_a_recording_of_pools_needs_settings_with_models(recording):
    with pytest.raises(SettingsError, match="these settings have no models"):
        replay_recording(Settings(), recording, detail=False)
