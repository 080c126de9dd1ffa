"""What an admin may ask to be changed, at its bounds: the decision by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.wishes import MAX_TEXT, Configured, Wrong, claims_of, read_change, read_query, time_of
from tests.support.stages import stage_of

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
MONTH = timedelta(days=31)
TIER = {"name": "pro", "minute": 60, "pools": ["all", "team"]}
POOLS = [{"name": "team", "claim": "team", "hour": 5}, {"name": "all", "by": "deployment", "hour": 10}]


def configured(organisation_claim: str = "") -> Configured:
    made = stage_of(
        RateTiers, {"tiers": [TIER, {**TIER, "name": "max", "hour": 90}], "default_tier": "pro", "pools": POOLS}
    )
    return Configured("claude", made.choice.tiers, made.choice.default, "subject", organisation_claim)


CONFIGURED = configured()


def until(**asked: Any) -> datetime:
    body = {"sub": "alice", "limits": {"minute": 1}, "why": "w"} | asked
    _, _, change = read_change(json.dumps(body).encode(), CONFIGURED, "root", NOW)
    assert (change.by, change.at, change.limits) == ("root", int(NOW.timestamp() * 1000), {"minute": 1})
    return datetime.fromtimestamp(change.until / 1000, UTC)


def wrong(**asked: Any) -> int:
    with pytest.raises(Wrong) as found:
        until(**asked)
    return found.value.refusal.status


def test_a_change_holds_a_day_or_as_long_as_is_said_a_month_at_most() -> None:
    assert until() == NOW + timedelta(days=1)
    for seconds in (1, 60, MONTH.total_seconds()):
        assert until(for_s=int(seconds)) == NOW + timedelta(seconds=seconds)
    for moment in (NOW + timedelta(milliseconds=1), NOW + MONTH):
        assert until(until=moment.isoformat()) == moment
    assert until(until="2026-11-27T14:00:00+01:00") == NOW + timedelta(hours=1)
    for seconds in (0, -1, int(MONTH.total_seconds()) + 1):
        assert wrong(for_s=seconds) == 422
    for moment in (NOW, NOW - timedelta(days=1), NOW + MONTH + timedelta(milliseconds=1)):
        assert wrong(until=moment.isoformat()) == 422
    assert wrong(for_s=60, until=(NOW + timedelta(hours=1)).isoformat()) == 422


@pytest.mark.parametrize(
    ("asked", "tiers"),
    [
        ({"sub": "alice", "limits": {"usd_per_day": 0.4}}, "the tiers pro, max"),
        ({"sub": "alice", "limits": {"usd_per_day": 0.5}}, "the tier max"),
        ({"sub": "alice", "limits": {"usd_per_day": 2, "minute": 1}}, ""),
        ({"tier": "pro", "limits": {"usd_per_day": 0.4}}, "the tier pro"),
        ({"tier": "pro", "limits": {"usd_per_day": 0.5}}, ""),
        ({"pool": "team", "value": "red", "limits": {"usd_per_month": 1}}, "the tier max"),
        ({"pool": "all", "limits": {"usd_per_month": 0.1}}, "the tier pro"),
        ({"pool": "all", "limits": {"hour": 1}}, ""),
    ],
)
def test_a_budget_that_lets_no_run_start_is_said(asked: dict[str, Any], tiers: str) -> None:
    pools = [
        {"name": "team", "claim": "team", "usd_per_month": 90},
        {"name": "all", "by": "deployment", "hour": 9, "usd_per_month": 90},
    ]
    pro = {"name": "pro", "minute": 9, "usd_per_day": 9, "max_usd_per_run": 0.5}
    large = {**pro, "name": "max", "max_usd_per_run": 2, "pools": ["team"]}
    cheap = {"model": "haiku", "up_to_percent": 300, "max_usd_per_run": 0.05}
    careful = {**pro, "name": "careful", "on_budget": "model", "cheaper": cheap}  # has runs that still can start
    config = {"attestation": {"secret": "s" * 40}, "default_tier": "pro", "pools": pools}
    made = stage_of(RateTiers, {**config, "tiers": [pro, large, careful]})
    site = Configured("claude", made.choice.tiers, made.choice.default, "subject")
    _, target, change = read_change(json.dumps({"why": "w", **asked}).encode(), site, "root", NOW)
    (limit,) = [name for name in asked["limits"] if name.startswith("usd_")] or [""]
    expected = [f"{limit} is less than max_usd_per_run of {tiers}: no run of it can start"] if tiers else []
    assert site.stopped(target, change) == expected


@pytest.mark.parametrize("name", ["why", "sub"])
def test_a_text_is_shown_whole_and_on_one_line(name: str) -> None:
    for text in ("x", "x" * MAX_TEXT, "é" * MAX_TEXT, "a b"):
        until(**{name: text})
    for text in ("", "x" * (MAX_TEXT + 1), "a\nb", "a\x00", "\x7f", "\u2028", "\u2029", "ab\r"):
        assert wrong(**{name: text}) == 422


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", {}),
        ("sub=alice", {"sub": "alice"}),
        ("sub=", {"sub": ""}),
        ("tier=pro&explain=1&claim.team=red", {"tier": "pro", "explain": "1", "claim.team": "red"}),
        *(
            (raw, None)
            for raw in ("sub", "sub=a&sub=b", "sub=a&sub=a", "claims.team=red", "subject=a", "sub=%ff", "a=1")
        ),
        ("&".join(f"claim.{number}=x" for number in range(20)), {f"claim.{number}": "x" for number in range(20)}),
        ("&".join(f"claim.{number}=x" for number in range(21)), None),
    ],
)
def test_a_query_is_read_whole_or_refused(raw: str, found: dict[str, str] | None) -> None:
    if found is None:
        with pytest.raises(Wrong) as refused:
            read_query(raw)
        assert (refused.value.refusal.status, refused.value.refusal.reason) == (400, "bad_query")
        return
    assert read_query(raw) == found
    assert claims_of(found) == {name[6:]: value for name, value in found.items() if name.startswith("claim.")}


@pytest.mark.parametrize(
    ("given", "kind", "key"),
    [
        ({"sub": "alice"}, "subject", "alice"),
        ({"tier": "pro"}, "tier", ""),
        ({"pool": "team"}, "pool", ""),
        ({"pool": "team", "value": "red"}, "pool", "pool.team:claim:red"),
        ({"pool": "all"}, "pool", ""),
        *(
            (given, None, "")
            for given in (
                *(
                    {},
                    {"sub": "alice", "tier": "pro"},
                    {"tier": "pro", "pool": "all"},
                    {"sub": "alice", "value": "red"},
                ),
                *({"tier": "gold"}, {"tier": "pro", "value": "x"}, {"pool": "none"}, {"pool": "all", "value": "x"}),
                *({"pool": "team", "value": ""}, {"value": "x"}),
            )
        ),
    ],
)
def test_one_is_meant_and_it_is_there(given: dict[str, str], kind: str | None, key: str) -> None:
    if kind is None:
        with pytest.raises(Wrong) as refused:
            CONFIGURED.target(given)
        assert refused.value.refusal.status == 422
        return
    found = CONFIGURED.target(given)
    assert (found.kind, found.key, found.shown) == (kind, key, given)
    assert found.name == given.get("tier", given.get("pool", ""))


def test_what_all_whom_it_binds_have_can_be_changed() -> None:
    def allowed(**given: str) -> set[str]:
        return CONFIGURED.allowed(CONFIGURED.target(given))

    assert allowed(sub="alice") == allowed(tier="pro") == {"minute", "blocked"}
    assert allowed(tier="max") == {"minute", "hour", "blocked"}
    assert allowed(pool="team") == allowed(pool="all") == {"hour", "blocked"}


def test_each_organisation_has_its_own_and_must_be_named() -> None:
    theirs = configured("org")
    assert theirs.key("acme") != theirs.key("other") != CONFIGURED.key(None)
    for made, organisation in ((theirs, None), (theirs, ""), (CONFIGURED, "acme")):
        with pytest.raises(Wrong):
            made.key(organisation)


def test_times_are_shown_in_whole_seconds_of_utc() -> None:
    assert time_of(int(NOW.timestamp() * 1000) + 999) == "2026-11-27T12:00:00Z"
