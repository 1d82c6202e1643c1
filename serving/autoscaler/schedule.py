"""The schedule floor: cron expressions as sets of matching minutes. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from serving.errors import SettingsError
from serving.settings import ScheduleFloor

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_SUNDAY = 7


@dataclass(frozen=True, slots=True)
class CronMinutes:
    """The minutes that a cron expression matches, with the semantics of crontab(5).

    If both day fields are restricted, a day that matches either of them counts.
    """

    fields: tuple[frozenset[int], ...]
    any_day: bool
    any_weekday: bool
    zone: ZoneInfo

    def matches(self, now: float) -> bool:
        """Return whether the minute of ``now`` (Unix time, seconds) matches."""
        at = datetime.fromtimestamp(now, UTC).astimezone(self.zone)
        minutes, hours, days, months, weekdays = self.fields
        day = at.day in days
        weekday = at.isoweekday() % 7 in weekdays
        either = day or weekday if not (self.any_day or self.any_weekday) else day and weekday
        return at.minute in minutes and at.hour in hours and at.month in months and either


def parse_cron(
    expression: str, timezone: str = "UTC", place: str = "autoscaler.schedule"
) -> CronMinutes:
    """Parse a cron expression: five fields of numbers, ``*``, ranges, lists and steps.

    Args:
        expression: The expression.
        timezone: IANA time zone.
        place: The setting that has the expression, for error messages.

    Raises:
        SettingsError: The expression is invalid or the time zone is unknown.
    """
    parts = expression.split()
    if len(parts) != len(_FIELDS):
        raise SettingsError(f"{place}: {expression!r} has {len(parts)} fields instead of 5")
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SettingsError(f"{place}: unknown time zone {timezone!r}") from error
    sets = [
        _numbers(part, low, high, f"{expression!r}, field {name}", place)
        for part, (name, low, high) in zip(parts, _FIELDS, strict=True)
    ]
    sets[4] = frozenset(number % _SUNDAY for number in sets[4])
    return CronMinutes(tuple(sets), parts[2] == "*", parts[4] == "*", zone)


def floor_at(schedule: Sequence[ScheduleFloor], now: float) -> tuple[int, str]:
    """Return the highest floor active at ``now`` and its expression; 0 and "" if none is active."""
    best, because = 0, ""
    for entry in schedule:
        if entry.groups > best and parse_cron(entry.when, entry.timezone).matches(now):
            best, because = entry.groups, f"{entry.when} {entry.timezone}"
    return best, because


def _numbers(text: str, low: int, high: int, where: str, place: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            step = int(step_text) if step_text else 1
            if span == "*":
                start, end = low, high
            else:
                start = int(first)
                end = int(last) if dash else (high if step_text else start)
        except ValueError as error:
            raise SettingsError(f"{place}: cannot read {part!r} in {where}") from error
        if not low <= start <= end <= high or step < 1:
            raise SettingsError(f"{place}: {part!r} is out of range in {where}")
        found.update(range(start, end + 1, step))
    return frozenset(found)
