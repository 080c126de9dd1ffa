"""Budgets' calendar: which period a moment is in, in every zone and whatever its clocks do."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.ledger import periods
from claude_contract.ledger.periods import PERS, Per, Period, period

HOUR = 3_600_000


def at(text: str) -> int:
    """Milliseconds of an ISO time, UTC unless it says otherwise."""
    found = datetime.fromisoformat(text)
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


# name: (per, zone, moment) → (id without zone, start, end), in UTC
TABLE: dict[str, tuple[Per, str, str, str, str, str]] = {
    "an hour": ("hour", "UTC", "2026-11-26T04:59:59", "2026-11-26T04+00:00", "2026-11-26T04:00", "2026-11-26T05:00"),
    "a day": ("day", "UTC", "2026-11-26T04:00", "2026-11-26", "2026-11-26T00:00", "2026-11-27T00:00"),
    "its first moment": ("day", "UTC", "2026-11-26T00:00", "2026-11-26", "2026-11-26T00:00", "2026-11-27T00:00"),
    "a day's last": ("day", "UTC", "2026-11-26T23:59:59.999", "2026-11-26", "2026-11-26T00:00", "2026-11-27T00:00"),
    "a week": ("week", "UTC", "2026-11-26T04:00", "2026-W48", "2026-11-23T00:00", "2026-11-30T00:00"),
    "Sunday is a week's last": ("week", "UTC", "2026-11-29T23:59", "2026-W48", "2026-11-23T00:00", "2026-11-30T00:00"),
    "Monday its first": ("week", "UTC", "2026-11-30T00:00", "2026-W49", "2026-11-30T00:00", "2026-12-07T00:00"),
    "a week over the year's end": ("week", "UTC", "2027-01-01T00:00", "2026-W53", "2026-12-28T00:00", "2027-01-04T00:00"),
    "a month": ("month", "UTC", "2026-11-30T23:59:59", "2026-11", "2026-11-01T00:00", "2026-12-01T00:00"),
    "the year's end": ("month", "UTC", "2026-12-31T23:59:59", "2026-12", "2026-12-01T00:00", "2027-01-01T00:00"),
    "the year's beginning": ("month", "UTC", "2027-01-01T00:00", "2027-01", "2027-01-01T00:00", "2027-02-01T00:00"),
    "February": ("month", "UTC", "2027-02-10T00:00", "2027-02", "2027-02-01T00:00", "2027-03-01T00:00"),
    "a leap year's": ("month", "UTC", "2028-02-29T12:00", "2028-02", "2028-02-01T00:00", "2028-03-01T00:00"),
    "the leap day": ("day", "UTC", "2028-02-29T12:00", "2028-02-29", "2028-02-29T00:00", "2028-03-01T00:00"),
    "a day of 23 hours": (
        "day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29", "2026-03-28T23:00", "2026-03-29T22:00"),
    "a day of 25 hours": (
        "day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25", "2026-10-24T22:00", "2026-10-25T23:00"),
    "a month with a change": (
        "month", "Europe/Berlin", "2026-10-01T12:00", "2026-10", "2026-09-30T22:00", "2026-10-31T23:00"),
    "an hour that comes twice": (
        "hour", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T02+02:00", "2026-10-25T00:00", "2026-10-25T01:00"),
    "the second time": (
        "hour", "Europe/Berlin", "2026-10-25T01:30", "2026-10-25T02+01:00", "2026-10-25T01:00", "2026-10-25T02:00"),
    "before an hour that is left out": (
        "hour", "Europe/Berlin", "2026-03-29T00:59", "2026-03-29T01+01:00", "2026-03-29T00:00", "2026-03-29T01:00"),
    "and after it": (
        "hour", "Europe/Berlin", "2026-03-29T01:00", "2026-03-29T03+02:00", "2026-03-29T01:00", "2026-03-29T02:00"),
    "an hour that ends by half an hour's change": (
        "hour", "Australia/Lord_Howe", "2026-04-04T14:45", "2026-04-05T01+11:00", "2026-04-04T14:00", "2026-04-04T15:00"),
    "and the half that comes again": (
        "hour", "Australia/Lord_Howe", "2026-04-04T15:10", "2026-04-05T01+10:30", "2026-04-04T15:00", "2026-04-04T15:30"),
    "half an hour that is left out": (
        "hour", "Australia/Lord_Howe", "2026-10-03T15:45", "2026-10-04T02+11:00", "2026-10-03T15:30", "2026-10-03T16:00"),
    "midnight is left out": (
        "day", "America/Santiago", "2026-09-06T12:00", "2026-09-06", "2026-09-06T04:00", "2026-09-07T03:00"),
    "midnight comes twice": (
        "day", "America/Havana", "2026-11-01T12:00", "2026-11-01", "2026-11-01T04:00", "2026-11-02T05:00"),
    "the clocks go back over midnight": (
        "day", "America/Santiago", "2026-04-05T03:30", "2026-04-04", "2026-04-04T03:00", "2026-04-05T04:00"),
    "a quarter of an hour": (
        "day", "Asia/Kathmandu", "2026-11-26T18:15", "2026-11-27", "2026-11-26T18:15", "2026-11-27T18:15"),
    "three quarters": ("day", "Pacific/Chatham", "2026-11-26T10:14", "2026-11-26", "2026-11-25T10:15", "2026-11-26T10:15"),
    "the first to have a day": (
        "day", "Pacific/Kiritimati", "2026-11-26T10:00", "2026-11-27", "2026-11-26T10:00", "2026-11-27T10:00"),
    "the last": ("day", "Etc/GMT+12", "2026-11-26T10:00", "2026-11-25", "2026-11-25T12:00", "2026-11-26T12:00"),
    "the day after one that was left out": (
        "day", "Pacific/Apia", "2011-12-30T10:00", "2011-12-31", "2011-12-30T10:00", "2011-12-31T10:00"),
    "an offset with seconds": (
        "day", "Africa/Monrovia", "1970-06-01T12:00", "1970-06-01", "1970-06-01T00:44:30", "1970-06-02T00:44:30"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_the_period_of_a_moment(case: str) -> None:
    per, zone, moment, name, start, end = TABLE[case]
    assert period(per, zone, at(moment)) == Period(f"{name}@{zone}", at(start), at(end))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-03-30", 24), ("2026-10-25", 25)])
def test_days_have_as_many_hours_as_the_clocks_show(day: str, hours: int) -> None:
    found = period("day", "Europe/Berlin", at(f"{day}T12:00"))
    assert found.end_ms - found.start_ms == hours * HOUR


MOMENTS = st.integers(0, at("2100-01-01T00:00"))
ZONES = st.sampled_from(sorted(available_timezones()))


@given(st.sampled_from(PERS), ZONES, MOMENTS)
def test_periods_tile_the_time_line(per: Per, zone: str, moment: int) -> None:
    """Each moment is in its period, and the next begins where it ends: no gap, no overlap, no name twice."""
    one = period(per, zone, moment)
    assert one.start_ms <= moment < one.end_ms
    assert period(per, zone, one.start_ms) == period(per, zone, one.end_ms - 1) == one
    after, before = period(per, zone, one.end_ms), period(per, zone, one.start_ms - 1)
    assert after.start_ms == one.end_ms and before.end_ms == one.start_ms
    assert len({before.id, one.id, after.id}) == 3


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_a_year_of_hours_fills_its_days_weeks_and_months(zone: str) -> None:
    """Walked from end to end, all kinds at once: longer periods end only where shorter ones do."""
    ends: dict[Per, list[int]] = {}
    for per in PERS:
        now, found = at("2026-01-01T00:00"), []
        while now < at("2027-02-01T00:00"):
            one = period(per, zone, now)
            found.append(one.end_ms)
            now = one.end_ms
        assert all(a < b for a, b in pairwise(found))
        ends[per] = found
    assert set(ends["month"][:-1]) <= set(ends["day"]) and set(ends["week"][:-1]) <= set(ends["day"])
    assert set(ends["day"][:-1]) <= set(ends["hour"])


@pytest.mark.parametrize("name", ["Europe/Atlantis", "Europe", "", "../../etc/passwd", "/etc/passwd", "x" * 33, "a\0b"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        periods.zone(name)


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (32, True), (33, False)])
def test_a_zone_takes_no_more_room_than_it_has(length: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some machines have all of them once more in a folder `posix`."""
    monkeypatch.setattr(periods, "ZoneInfo", lambda name: UTC)
    if fits:
        assert periods.zone("x" * length)
    else:
        with pytest.raises(ValueError, match="time zone"):
            periods.zone("x" * length)


def test_how_long_a_rolling_period_is() -> None:
    hours = {"hour": 1, "day": 24, "week": 7 * 24, "month": 30 * 24}
    assert {per: length / HOUR for per, length in periods.ROLLING_MS.items()} == hours
