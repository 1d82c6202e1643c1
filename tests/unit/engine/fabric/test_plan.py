"""Plans of the fabric check: validation, names, sizes, and pairings."""

import itertools

import pytest

from serving.engine.fabric.plan import Plan, pairings, parse_leader, parse_size
from serving.errors import SettingsError


def plan(**changes):
    given = {"peers": 2, "index": 0, "leader_host": "job-0.svc", "leader_port": 1} | changes
    return Plan(**given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peers": 0}, "--peers must be at least 1, got 0"),
        ({"index": 2}, "0 to 1"),
        ({"index": -1}, "0 to 1"),
        ({"workers": 0}, "--workers-per-peer must be at least 1, got 0"),
        ({"size": 3}, "--bytes must be at least 4, got 3"),
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"timeout": 5}, "--timeout must be at least 16 s, got 5"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        plan(**changes)


def test_the_limits_fit_into_the_timeout():
    for timeout in (16.0, 60.0, 3600.0):
        one = plan(timeout=timeout)
        assert one.join_limit + one.check_limit < timeout
        # Limits that end the check early leave time to gather the other peers' evidence.
        assert one.silence * 2 < one.check_limit
        assert one.stall < one.check_limit


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("check-0.check.moe.svc.cluster.local", "check-3.check.moe.svc.cluster.local"),
        ("a-b-0", "a-b-3"),
        ("10.0.0.2", ""),
        ("leader", ""),
        ("job-10.svc", ""),
    ],
)
def test_names_follow_the_leaders(host, name):
    assert plan(peers=4, leader_host=host).name(3) == name


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 2**26), ("1 gb", 10**9), ("4096", 4096), ("8KiB", 8192)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5GiB", "64 MiBs"])
def test_sizes_that_are_none(text):
    with pytest.raises(SettingsError, match="--bytes"):
        parse_size(text)


def test_leaders():
    assert parse_leader("job-0.svc:29500") == ("job-0.svc", 29500)
    assert parse_leader("[::1]:1") == ("::1", 1)
    for text in ("host", ":1", "host:", "host:0", "host:70000", "host:x"):
        with pytest.raises(SettingsError, match="HOST:PORT"):
            parse_leader(text)


@pytest.mark.parametrize("peers", range(1, 10))
def test_every_two_peers_meet_once(peers):
    met = []
    for meeting in pairings(peers):
        assert all(meeting[other] == one for one, other in meeting.items())
        met += [pair for pair in meeting.items() if pair[0] < pair[1]]
    assert sorted(met) == list(itertools.combinations(range(peers), 2))
