"""Calendar periods of budgets: hours, days, ISO weeks and months, as the clocks of a time zone show them. No I/O.

A zone's periods tile the time line: each moment is in exactly one, whatever the clocks do. A day on which they go
forward has 23 hours, one on which they go back 25; an hour that comes twice is two hours; a day that a zone left out
(Samoa's 30 December 2011) is no period.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

Per = Literal["hour", "day", "week", "month"]
PERS: tuple[Per, ...] = get_args(Per)

ROLLING_MS: dict[Per, int] = {
    "hour": 3_600_000,
    "day": 24 * 3_600_000,
    "week": 7 * 24 * 3_600_000,
    "month": 30 * 24 * 3_600_000,
}
"""How long a rolling period is: the last so many milliseconds, whenever it is asked."""

_DAY = timedelta(days=1)
MAX_ZONE = 32  # characters: no name of the tz database is longer


class Period(NamedTuple):
    """From `start_ms` up to, and without, `end_ms` (Unix time). The id says per what and in which zone."""

    id: str
    start_ms: int
    end_ms: int


def zone(name: str) -> ZoneInfo:
    """The IANA time zone of that name. Raises ValueError where there is none."""
    try:
        if not 0 < len(name) <= MAX_ZONE:
            raise ValueError(name)
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError) as error:  # a name that leads to a folder, or out of the database
        raise ValueError("is no time zone of the IANA database, such as Europe/Berlin") from error


def period(per: Per, zone_name: str, now_ms: int) -> Period:
    """The calendar period that `now_ms` is in. Raises ValueError for what is no time zone."""
    found = _last.get((per, zone_name))
    if found is None or not found.start_ms <= now_ms < found.end_ms:
        place = zone(zone_name)
        found = _hour(place, now_ms) if per == "hour" else _dates(per, place, now_ms)
        _last[per, zone_name] = found
    return found


# What was found last, since a period holds for long and is asked for with each request. No more than zones.
_last: dict[tuple[Per, str], Period] = {}


def _dates(per: Per, place: ZoneInfo, now_ms: int) -> Period:
    """By dates: from the first midnight of one to that of another. Compared as moments, not as what the clocks show:
    where they go back at midnight, or a date is left out, a moment's date is not its period's."""
    first = _first(per, datetime.fromtimestamp(now_ms // 1000, place).date())
    while now_ms < _midnight(first, place):
        first = _first(per, first - _DAY)
    while now_ms >= _midnight(after := _next(per, first), place):
        first = after
    return Period(f"{_name(per, first)}@{place.key}", _midnight(first, place), _midnight(after, place))


def _first(per: Per, day: date) -> date:
    if per == "month":
        return day.replace(day=1)
    return day - day.weekday() * _DAY if per == "week" else day


def _next(per: Per, first: date) -> date:
    if per == "month":
        return (first + 31 * _DAY).replace(day=1)
    return first + (7 * _DAY if per == "week" else _DAY)


def _name(per: Per, first: date) -> str:
    if per == "week":
        year, week, _ = first.isocalendar()
        return f"{year}-W{week:02}"
    return first.isoformat() if per == "day" else f"{first:%Y-%m}"


@lru_cache(256)
def _midnight(day: date, place: ZoneInfo) -> int:
    """The first of two where the clocks go back over it; where they go forward over it, that moment."""
    return round(datetime(day.year, day.month, day.day, tzinfo=place).timestamp() * 1000)


def _hour(place: ZoneInfo, now_ms: int) -> Period:
    """From one full hour of the clocks to the next, or to where they are changed in between (by half an hour, on Lord
    Howe Island)."""
    now = now_ms // 1000
    offset = _offset(place, now)
    start = now - (now + offset) % 3600
    end = start + 3600
    if _offset(place, start) != offset:
        start = _change(place, start, now)
    if _offset(place, end - 1) != offset:
        end = _change(place, now, end - 1)
    shown = datetime.fromtimestamp(now, place)
    return Period(f"{shown:%Y-%m-%dT%H}{shown.isoformat()[19:]}@{place.key}", start * 1000, end * 1000)


def _offset(place: ZoneInfo, at: int) -> int:
    shown = datetime.fromtimestamp(at, place)
    return round((shown.replace(tzinfo=UTC) - datetime.fromtimestamp(at, UTC)).total_seconds())


def _change(place: ZoneInfo, before: int, after: int) -> int:
    """The second from which on `after`'s offset holds."""
    there = _offset(place, after)
    while before + 1 < after:
        middle = (before + after) // 2
        if _offset(place, middle) == there:
            after = middle
        else:
            before = middle
    return after
