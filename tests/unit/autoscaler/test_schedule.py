"""Cron expressions as tables of times."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from serving.autoscaler.schedule import floor_at, parse_cron
from serving.errors import SettingsError
from serving.settings import ScheduleFloor


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("expression", "moment", "expected"),
    [
        pytest.param("* * * * *", "2026-11-23T00:00", True, id="always"),
        pytest.param("* 8-17 * * 1-5", "2026-11-23T08:00", True, id="monday-morning"),
        pytest.param("* 8-17 * * 1-5", "2026-11-23T17:59:59", True, id="last-minute"),
        pytest.param("* 8-17 * * 1-5", "2026-11-23T18:00", False, id="evening"),
        pytest.param("* 8-17 * * 1-5", "2026-11-22T12:00", False, id="sunday"),
        pytest.param("* * * * 7", "2026-11-22T12:00", True, id="sunday-is-7"),
        pytest.param("* * * * 0", "2026-11-22T12:00", True, id="sunday-is-0"),
        pytest.param("*/15 * * * *", "2026-11-23T00:30", True, id="step"),
        pytest.param("*/15 * * * *", "2026-11-23T00:31", False, id="off-step"),
        pytest.param("5/20 * * * *", "2026-11-23T00:45", True, id="step-from"),
        pytest.param("0,30 6 1,15 * *", "2026-11-15T06:30", True, id="lists"),
        pytest.param("* * 1 * 1", "2026-11-23T06:30", True, id="either-day-field"),
        pytest.param("* * 1 * 1", "2026-11-24T06:30", False, id="neither-day-field"),
        pytest.param("* * * 12 *", "2026-11-24T06:30", False, id="month"),
    ],
)
def test_minutes(expression, moment, expected):
    assert parse_cron(expression).matches(at(moment)) is expected


def test_a_time_zone_of_its_own():
    cron = parse_cron("* 8 * * *", "Europe/Berlin")
    assert cron.matches(at("2026-07-01T08:30", "Europe/Berlin"))
    assert cron.matches(at("2026-12-01T07:30"))
    assert not cron.matches(at("2026-07-01T08:30"))


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        pytest.param("* * * *", "UTC", "4 fields", id="too-few"),
        pytest.param("61 * * * *", "UTC", "out of range", id="no-minute"),
        pytest.param("9-8 * * * *", "UTC", "out of range", id="backwards"),
        pytest.param("*/0 * * * *", "UTC", "out of range", id="no-step"),
        pytest.param("x * * * *", "UTC", "cannot read", id="text"),
        pytest.param("* * * * *", "Mars/Olympus", "unknown time zone", id="no-zone"),
    ],
)
def test_what_is_wrong_is_named(expression, zone, said):
    with pytest.raises(SettingsError, match=said):
        parse_cron(expression, zone)


def test_the_highest_floor_holds():
    schedule = (
        ScheduleFloor(when="* 8-17 * * *", groups=2),
        ScheduleFloor(when="* 12 * * *", groups=5),
    )
    assert [floor_at(schedule, at(f"2026-11-23T{h}:00"))[0] for h in ("07", "09", "12")] == [
        0,
        2,
        5,
    ]
