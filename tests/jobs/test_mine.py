"""What a page says of limits and of the catalog: to whom, in which words, and where it cannot."""

from __future__ import annotations

import json
import re
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from claude_contract.graphql import LIMITS_HEADER
from claude_contract.ledger import Lease, Shared
from claude_invoker.caller import Caller
from claude_invoker.dashboard.limits import Row, Told, Untold, _in, parts_of, told_in
from claude_invoker.jobs.record import Job, JobRequest
from claude_invoker.jobs.store import Store
from kong_claude.decision import Pass
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.request import Request as Asked
from kong_claude.request import RequestLine
from tests.core.test_pipeline import Kong
from tests.jobs.conftest import serving
from tests.rate_tiers.servers import RedisProcess
from tests.support.stages import stage_of

HOME = "/claude/dashboard"
ADMIN = {"roles": ["admin"]}
BUDGET = {"name": "usd_per_month", "per": "month", "zone": "UTC", "start": 1, "end": 2, "limit": 5, "spent": 0.000012}
TOLD: dict[str, Any] = {
    "tier": "pro",
    "windows": [{"name": "minute", "limit": 60, "window_s": 60, "remaining": 59, "reset_s": 31}],
    "concurrent": {"limit": 4, "running": 1},
    "usd": {
        "reserved": 0.5,
        "day": {"limit": 50, "spent": 1.25, "reset_s": 7261, "left": 48.25, "start": 1, "end": 2},
        "month": {"limit": None, "spent": 2.0, "reset_s": 9},
        "budgets": [
            {"name": "usd_per_rolling_day", "limit": 3, "spent": 1, "reserved": 0.5, "left": 1.5, "reset_s": 0}
        ],
    },
    "messages": {"windows": [], "concurrent": {"limit": None, "running": 0}},
    "pools": [
        {
            "name": "team",
            "windows": [],
            "concurrent": {"limit": 20, "running": 0},
            "usd": {"reserved": 0, "budgets": [BUDGET | {"reserved": 0.0, "left": 4.999988, "reset_s": 90000}]},
        }
    ],
    "tightest": {"pool": "team", "limit": "usd_per_month", "left": 0.5},
}


def said(text: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", text)).split())


def test_all_that_is_told_has_its_row() -> None:
    told = told_in(json.dumps(TOLD))
    assert isinstance(told, Told)
    own, messages, pool = parts_of(told)
    assert [part.title for part in (own, messages, pool)] == ["Runs and jobs", "Messages to models", "Pool team"]
    assert own.rows == (
        Row("minute", "count", 60, 1, None, 59, "in 31 s"),
        Row("at once", "count", 4, 1, None, 3, "when one ends"),
        Row("usd_per_day", "usd", 50, 1.25, 0.5, 48.25, "in 2 h 1 min, all of it"),
        Row("usd_per_month", "usd", None, 2.0, 0.5, None, ""),
        Row("usd_per_rolling_day", "usd", 3, 1, 0.5, 1.5, ""),
    )
    assert messages.rows == (Row("at once", "count", None, 0, None, None, ""),)
    assert pool.rows[1] == Row("usd_per_month", "usd", 5, 0.000012, 0.0, 4.999988, "in 1 d 1 h, all of it")


@pytest.mark.parametrize(
    ("window", "limit", "whole"), [({"hour": 60, "burst": 5}, 60, 6), ({"minute": 2, "burst": 9}, 2, 10)]
)
def test_of_requests_at_a_pace_nothing_is_used_before_the_first(window: dict[str, int], limit: int, whole: int) -> None:
    """As the gateway tells it: what is left is of a burst, not of the limit."""
    telling = {"tell": True, "limit_by": "ip", "attestation": {"secret": "s" * 32}}
    tiers = [{"name": "t", **window}]
    told, counted = (stage_of(RateTiers, {"tiers": tiers, **telling, "tell": tell}) for tell in (True, False))

    def row() -> Row:
        asked = Kong({"x-request-id": "r"}, **{"client.get_forwarded_ip": "192.0.2.7"})
        request = Asked(asked, static_line=RequestLine("GET", f"{HOME}/limits", ""))
        passed = told.access(request)
        assert isinstance(passed, Pass)
        found = told_in(passed.upstream_headers[LIMITS_HEADER] or "")
        assert isinstance(found, Told)
        return parts_of(found)[0].rows[0]

    assert (row().allowed, row().used, row().left) == (whole, 0, whole)
    asked = Kong({"x-request-id": "r"}, **{"client.get_forwarded_ip": "192.0.2.7"})
    assert isinstance(counted.access(Asked(asked, static_line=RequestLine("POST", "/claude/jobs", ""))), Pass)
    assert (row().used, row().left) == (1, whole - 1)
    assert str(limit) in row().limit


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, ""), (1, "in 1 s"), (59, "in 59 s"), (60, "in 1 min"), (3601, "in 1 h 1 s"), (90061, "in 1 d 1 h")],
)
def test_times_until_then(seconds: int, words: str) -> None:
    assert _in(seconds) == words


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", "null", json.dumps(TOLD | {"windows": 3}), "[" * 5000])
def test_what_no_gateway_tells_is_nothing(text: str) -> None:
    assert told_in(text) is None
    assert told_in('{"problem": "no"}') == Untold("no")


async def test_limits_are_shown_as_they_are_told(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:

        async def seen(told: Any, query: str = "", **options: Any) -> str:
            headers = {} if told is None else {LIMITS_HEADER: json.dumps(told)}
            answer = await gateway.ask("GET", f"{HOME}/limits{query}", headers=headers, **options)
            assert answer.status_code == 200, answer.text
            assert "<script>" not in answer.text
            return said(answer.text)

        own = await seen(TOLD)
        assert "Your limits" in own and "Tier pro" in own and "Caller" not in own, "the look for others is an admin's"
        assert "usd_per_month $5.00 $0.000012 $0.00 $4.999988 in 1 d 1 h, all of it" in own
        assert "Of the pool team's limits usd_per_month has the least left: 50 %." in own
        assert "blocked" not in own
        for of, whom in (
            ({}, "this caller, or the tier,"),  # a gateway of the release before
            ({"of": "caller"}, "this caller"),
            ({"of": "tier"}, "the tier pro"),
            ({"of": "pool", "pool": "team"}, "the pool team"),
        ):
            stopped = await seen(TOLD | {"blocked": {**of, "for_s": 3600}})
            assert f"An administrator has blocked {whom} until 20" in stopped
        of_eve = TOLD | {"sub": "<script>\u202e", "unknown_pools": [["team", "<script>"]]}
        other = await seen(of_eve, "?sub=eve&tier=pro", claims=ADMIN)
        assert "Limits of <script>\\u202e" in other and "add &claim.<script>=…" in other
        assert "no tier 'gold'" in await seen({"problem": "there is no tier 'gold'"}, "?sub=eve", claims=ADMIN)
        for nothing in (None, {"tier": 3}):
            assert "with tell: true" in await seen(nothing)


async def test_an_admin_names_somebody_and_his_newest_job_says_the_rest(
    redis_server: RedisProcess, state: Path
) -> None:
    """His tier, his organisation, and which pools are his. Nobody else is led anywhere."""
    async with serving(redis_server, state, worker="none") as gateway:
        store: Store = gateway.app.state.services.jobs.store
        shared = Shared("claim:acme", ("pool.team:claim:red%20hot", "pool.everybody:*"))
        caller = Caller("eve", tier="pro", lease=str(Lease.new("claude", "eve", 1, shared)), queued=True)
        await store.add(Job.new(JobRequest(prompt="hi"), caller, time.time()))

        async def led(query: str, more: dict[str, Any], **options: Any) -> str | None:
            headers = {LIMITS_HEADER: json.dumps(TOLD | more)}
            answer = await gateway.ask("GET", f"{HOME}/limits?{query}", headers=headers, **options)
            return str(answer.headers["location"]) if "location" in answer.headers else None

        unknown = {"sub": "eve", "unknown_pools": [["team", "groups.team"], ["site", "site"]]}
        asked = "sub=eve&tier=pro&organisation=acme"
        assert await led("sub=eve&tier=", {}, claims=ADMIN) == f"{HOME}/limits?{asked}"
        assert await led(asked, unknown, claims=ADMIN) == f"{HOME}/limits?{asked}&claim.groups.team=red+hot"
        for query, more in (
            (f"{asked}&claim.groups.team=red+hot", unknown),
            (asked, {}),
            ("sub=nobody", unknown),
        ):
            assert await led(query, more, claims=ADMIN) is None, query
        assert await led("sub=eve", {}) is None and await led("sub=eve", unknown, subject="mallory") is None


async def test_the_catalog_is_the_viewers(redis_server: RedisProcess, state: Path) -> None:
    """As the API has it, with the reason against what cannot be used; and his repositories, no other's."""
    clamp = {
        "models": ["haiku"],
        "tools": ["Read"],
        "skills": ["pdf", "tdd"],
        "default_skills": ["tdd"],
        "max_usd": 0.25,
    }
    async with serving(redis_server, state, worker="none") as gateway:
        store: Store = gateway.app.state.services.jobs.store
        for subject, name in (("alice", "org/mine"), ("bob", "org/theirs")):
            job = Job.new(JobRequest(prompt="hi"), Caller(subject), time.time())
            job.repository = name
            await store.add(job)

        async def seen(told: Any = TOLD, **options: Any) -> str:
            headers = {LIMITS_HEADER: json.dumps(told)} if told else {}
            answer = await gateway.ask("GET", f"{HOME}/catalog", headers=headers, **options)
            assert answer.status_code == 200, answer.text
            return said(answer.text)

        its = {"clamp": clamp, "tier": "pro"}
        page = await seen(claims=its)
        listed = (await gateway.ask("GET", "/claude/catalog", claims=its)).json()
        assert [skill["name"] for skill in listed["skills"]] == ["pdf", "tdd"]
        for skill in listed["skills"]:
            assert skill["obstacle"] in page and f'{{"skills": ["{skill["name"]}"]}}' in page
        assert "tdd by default" in page and "Of a run at most $0.25" in page and "Models haiku Tools Read" in page
        assert "Your tier names no agents." in page and "Your tier names no MCP servers." in page
        assert "org/mine" in page and "org/theirs" not in page
        untold = await seen(None, claims=its)
        assert "with tell: true" in untold and "pdf" not in untold
        empty = await seen(subject="carol", claims=its)
        assert "An administrator names some in INVOKER_REPOSITORIES" in empty
