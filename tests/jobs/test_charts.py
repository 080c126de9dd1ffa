"""What the charts count, and that the bars are those numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.ledger import Lease, Shared
from claude_invoker.caller import Caller
from claude_invoker.dashboard.charts import HEIGHT, OUTCOMES, WIDTH, Chart, Point, Span, begins, charts
from claude_invoker.dashboard.figures import _pools_of
from claude_invoker.dashboard.render import html
from claude_invoker.jobs.finding import newest
from claude_invoker.jobs.record import caller_json
from claude_invoker.jobs.store import Store
from claude_invoker.plan import Plan
from claude_invoker.runs.run import Run
from claude_invoker.runs.summary import encode, summary_of
from claude_invoker.runs.summary import known as stored
from tests.jobs.conftest import job, serving
from tests.rate_tiers.servers import RedisProcess

NOW = 1_700_000_123.0
PLAN = Plan((), None, "sonnet", None, (), 3, 1.0, None, None, 60.0)
SPANS: tuple[Span, ...] = ("1h", "6h", "24h", "7d")


def by_key(*points: Point, span: Span = "1h") -> dict[str, Chart]:
    return {chart.key: chart for chart in charts(points, span, NOW)}


def sums(chart: Chart) -> dict[str, float]:
    return {each.name: sum(each.values) for each in chart.series if any(each.values)}


def test_what_is_counted() -> None:
    points = (
        Point(NOW, "done", "pro", "m", 0.5, waited_s=3.0, first_token_s=1.0),
        Point(NOW - 1, "failed", "", "", 0.25, waited_s=9.0, first_token_s=2.0),
        Point(NOW - 2, "not over", "pro", "m", 0.0, first_token_s=9.0),
        Point(NOW - 3000, "cancelled", "pro", "n", 1.0),
        Point(NOW - 4000, "done", "pro", "m", 100.0),
    )
    found = by_key(*points)
    assert sums(found["runs"]) == {"done": 1, "failed": 1, "not over": 1, "cancelled": 1}, "not what was before"
    assert found["runs"].top == 3 and found["runs"].top_at <= NOW < found["runs"].top_at + 300
    assert sums(found["tiers"]) == {"pro": 1.5, "default": 0.25}
    assert sums(found["models"]) == {"n": 1.0, "m": 0.5, "none": 0.25}
    assert (found["waits"].top, found["first-token"].top) == (9.0, 2.0)


def test_of_many_names_the_dearest_are_told_apart() -> None:
    tiers = by_key(*(Point(NOW, "done", f"t{n}", cost_usd=n + 1) for n in range(9)))["tiers"]
    assert sums(tiers) == {"t8": 9, "t7": 8, "t6": 7, "t5": 6, "t4": 5, "others": 10}
    assert len({each.look for each in tiers.series}) == 6


def test_what_pools_have_spent_is_told_apart_and_nothing_twice() -> None:
    """One chart for each: a run counts for several."""
    red, all_of_us = ("team", "acme, red"), ("site", "")
    points = [
        Point(NOW, "done", cost_usd=1.0, pools=(red, all_of_us)),
        Point(NOW, "failed", cost_usd=2.0, pools=(("team", "acme, blue"), all_of_us)),
        Point(NOW, "done", cost_usd=4.0, pools=(all_of_us,)),
        Point(NOW, "done", cost_usd=8.0),
    ]
    found = by_key(*points)
    assert [found[f"pool-{n}"].title for n in range(2)] == ["Spent, by pool site", "Spent, by pool team"]
    assert sums(found["pool-0"]) == {"everybody": 7.0}
    assert sums(found["pool-1"]) == {"acme, blue": 2.0, "acme, red": 1.0}
    assert sum(sums(found["tiers"]).values()) == 15.0 and "pool-2" not in found
    many = by_key(*(Point(NOW, "done", cost_usd=n, pools=((f"p{n}", ""),)) for n in range(9)))
    assert [many[f"pool-{n}"].title[-2:] for n in range(4)] == ["p8", "p7", "p6", "p5"] and "pool-4" not in many
    assert not [key for key in by_key(points[3]) if key.startswith("pool")], "no pools, no chart"


def test_pools_are_those_of_the_lease() -> None:
    shared = Shared("claim:acme", ("pool.team:claim:red%20hot", "pool.site:*"))
    lease = str(Lease.new("claude", "eve", 1, shared))
    known = caller_json(Caller("eve", lease=lease, queued=True))
    assert _pools_of(known) == (("team", "acme, red hot"), ("site", "acme"))
    run = Run("run_1", "eve", PLAN, Path("/nowhere"), 60.0, lease=lease)
    (summary,) = stored([encode(summary_of(run))])
    assert summary.pools == _pools_of(known)
    for nothing in ("", "{}", '{"lease": "x"}', '{"lease": "claude eve v9.x:1"}', caller_json(Caller("eve"))):
        assert _pools_of(nothing) == ()


POINTS = st.lists(
    st.builds(
        Point,
        st.floats(NOW - 8 * 86_400, NOW + 60),
        st.sampled_from(OUTCOMES),
        st.text(max_size=3),
        st.text(max_size=3),
        st.floats(0, 100),
        st.none() | st.floats(0, 1e5),
        st.none() | st.floats(0, 1e3),
    ),
    max_size=30,
)


@given(POINTS, st.sampled_from(SPANS))
def test_bars_are_the_numbers_and_stay_inside(points: list[Point], span: Span) -> None:
    found = charts(points, span, NOW)
    inside = [point for point in points if begins(span, NOW) <= point.at < found[0].starts[-1] + 1 + 6 * 3600]
    counted = sum(found[0].totals)
    assert counted <= len(inside) and counted >= sum(point.at <= NOW for point in inside)
    for chart in found:
        assert chart.starts[0] == begins(span, NOW) and chart.starts[-1] <= NOW
        for bar in chart.bars:
            assert (bar.x >= 0 and bar.x + bar.width <= WIDTH and bar.height > 0) or bar.height == 0
            assert bar.y >= -0.1 and bar.y + bar.height <= HEIGHT + 0.1
        if chart.top:
            assert sum(bar.height for bar in chart.bars) == pytest.approx(sum(chart.totals) / chart.top * HEIGHT, abs=2)


def test_names_are_text() -> None:
    evil = "<script>alert(1)</script>\u202e"
    page = html(
        "charts",
        home="/h",
        viewer=type("Viewer", (), {"roles": ("admin",)}),
        span="1h",
        spans=SPANS,
        charts=charts([Point(NOW, "done", evil, evil, 1.0)], "1h", NOW),
        edge=None,
        most=1,
        count=1,
    )
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "\u202e" not in page
    assert re.findall(r" style=|<style| on\w+=", page) == []


async def test_the_newest_jobs_and_no_others(store: Store) -> None:
    jobs = [job("alice" if n % 2 else "bob", "team", created_at=1000.5 + n) for n in range(6)]
    for each in jobs:
        await store.add(each)
    await store.redis.hset(f"claude:{{jobs}}:job:{jobs[5].id}", "v", "99")
    fields = ("id", "tier", "model")
    assert await newest(store, None, 1002.5, fields) == [{"id": jobs[n].id, "tier": "team"} for n in (4, 3, 2)]
    assert await newest(store, "alice", 0.0, ("id",)) == [{"id": jobs[n].id} for n in (3, 1)]


async def test_charts_are_of_whom_one_may_see(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="embedded") as gateway:
        created = await gateway.create("job=x")
        assert (await gateway.see(created))["state"] == "done"
        (known,) = await newest(gateway.app.state.services.jobs.store, "alice", 0.0, ("first_token_s", "model"))
        assert float(known["first_token_s"]) > 0 and known["model"] == "fast"
        assert (await gateway.ask("POST", "/claude/invoke", json={"prompt": "hi"})).status_code == 200
        for subject, claims, count in (("alice", {}, 2), ("bob", {}, 0), ("root", {"roles": ["admin"]}, 2)):
            page = (await gateway.ask("GET", "/claude/dashboard/charts?span=6h", subject, claims=claims)).text
            assert f"{count} jobs and runs" in page, subject
            assert page.count("Nothing in this time.") == (0 if count else 5)
        assert "$0.0200 in all" in (await gateway.ask("GET", "/claude/dashboard/charts")).text
        assert (await gateway.ask("GET", "/claude/dashboard/charts?span=9y")).status_code == 422
