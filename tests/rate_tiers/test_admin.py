"""`/claude/admin/limits`, asked as the pipeline asks it, with a real Redis behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from claude_contract.claims import Limits
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.ledger import Lease
from claude_contract.ledger.live import OUTBOX
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.wishes import MAX_BODY
from kong_claude.request import Request, RequestLine
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.rate_tiers.test_faults import Kong, ask
from tests.support.stages import stage_of

TIERS = [
    {"name": "free", "minute": 10, "concurrent": 1, "usd_per_day": 2, "max_usd_per_run": 1, "pools": ["all"]},
    {
        "name": "pro",
        "minute": 60,
        "hour": 500,
        "concurrent": 4,
        "usd_per_day": 50,
        "max_usd_per_run": 2,
        "budgets": [{"usd": 200, "per": "week", "rolling": True}],
    },
]
POOLS = [
    {
        "name": "team",
        "claim": "team",
        "concurrent": 20,
        "budgets": [{"usd": 500, "per": "month", "zone": "Asia/Tokyo"}],
    },
    {"name": "all", "by": "deployment", "hour": 10_000},
]
ROOT = Identity("root", issuer="idp", roles=("admin",))
MALLORY = Identity("mallory", roles=("claude:invoke",))


class Asked(Kong):
    def __init__(self, query: str, body: bytes) -> None:
        super().__init__()
        self.shared: dict[str, Any]
        self.query, self.body = query, body
        self.ctx, self.shared = self, {}

    def get_headers(self, _: int) -> dict[str, str]:
        return {"x-request-id": "r-1"}

    def get_raw_query(self) -> str:
        return self.query

    def get_raw_body(self, _: int) -> bytes:
        return self.body


class Site:
    """The same limits on two routes: one counts, one changes them."""

    def __init__(self, server: RedisProcess, **config: Any) -> None:
        limits = {
            "policy": "redis",
            "redis_url": server.url,
            "timeout_ms": 5000,
            "tiers": TIERS,
            "default_tier": "free",
        }
        self.client = server.client()
        self.counting = stage_of(RateTiers, {**limits, **config})
        self.admin = stage_of(RateTiers, {**limits, **config, "admin": True})

    def send(self, method: str, body: Any = None, who: Identity | None = ROOT, **query: str) -> Decision:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        request = Request(Asked(urlencode(query), raw), static_line=RequestLine(method, "/claude/admin/limits", ""))
        if who is not None:
            request.learn(who)
        return self.admin.access(request)

    def put(self, **body: Any) -> Mapping[str, Any]:
        decision = self.send("PUT", {"why": "a test", **body})
        assert isinstance(decision, Answer) and decision.status == 200, decision
        return decision.body

    def get(self, **query: str) -> Mapping[str, Any]:
        decision = self.send("GET", None, ROOT, **query)
        assert isinstance(decision, Answer) and decision.status == 200, decision
        return decision.body

    def run(self, subject: str, tier: str = "pro", **claims: str) -> Decision:
        request = Request(Kong())
        request.learn(Identity(subject, tier=tier, claims=claims))
        return self.counting.access(request)

    def lines(self) -> list[dict[str, Any]]:
        """What waits for the audit log."""
        entries: Any = self.client.xrange(OUTBOX)
        return [
            json.loads(entry[b"line"])
            | {side: json.loads(entry[side.encode()] or "null") for side in ("before", "after")}
            for _, entry in entries
        ]


@pytest.fixture
def site(redis_server: RedisProcess) -> Site:
    one_server("limits can be changed with a pool only (`pooled`)")
    return Site(redis_server)


@pytest.fixture
def pooled(redis_server: RedisProcess) -> Site:
    return Site(redis_server, pools=POOLS)


def plain(tiers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in tier.items() if name != "pools"} for tier in tiers]


@pytest.fixture(autouse=True)
def without_pools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "site" in request.fixturenames:
        monkeypatch.setattr(f"{__name__}.TIERS", plain(TIERS))


def refused(decision: Decision) -> Refuse:
    assert isinstance(decision, Refuse), decision
    return decision


# From the change to the next request


def test_lowered_raised_blocked_and_reset_each_holds_for_the_next_request(site: Site) -> None:
    assert isinstance(site.run("alice"), Pass)
    site.put(sub="alice", limits={"minute": 1}, for_s=60)
    first = refused(site.run("alice"))
    assert (first.status, first.detail["limit"], first.detail["allowed"]) == (429, "minute", 1)
    assert first.headers["X-RateLimit-Limit-Minute"] == "1"
    assert isinstance(site.run("bob"), Pass), "of nobody else"

    site.put(sub="alice", limits={"minute": 1000}, for_s=60)
    passed = site.run("alice")
    assert isinstance(passed, Pass)
    assert passed.response_headers["X-RateLimit-Limit-Minute"] == "1000"
    assert '"minute";q=1000;w=60' in passed.response_headers["RateLimit-Policy"]

    site.put(sub="alice", limits={"blocked": True}, for_s=60, why="her laptop was stolen")
    blocked = refused(site.run("alice"))
    assert (blocked.status, blocked.reason) == (403, "blocked")
    assert 0 < blocked.detail["for_s"] <= 61 and "laptop" not in str(blocked)
    assert (blocked.message, blocked.detail["of"]) == ("an administrator has blocked this caller for now", "caller")

    assert isinstance(site.send("DELETE", sub="alice"), Answer)
    site.put(tier="pro", limits={"blocked": True}, for_s=60)
    blocked = refused(site.run("alice"))
    assert (blocked.message, blocked.detail["of"]) == ("an administrator has blocked the tier pro for now", "tier")
    assert isinstance(site.send("DELETE", tier="pro"), Answer)
    assert isinstance(site.run("alice"), Pass)
    assert refused(site.send("DELETE", sub="alice")).status == 404


def test_a_run_may_cost_no_more_than_a_lowered_budget_and_its_place_is_the_configurations(site: Site) -> None:
    site.put(tier="pro", limits={"usd_per_rolling_week": 100}, for_s=60)
    site.put(sub="alice", limits={"usd_per_day": 1.5}, for_s=60)
    assert refused(site.run("alice")).detail["limit"] == "usd_per_day", "a run reserves 2 dollars"
    site.put(sub="alice", limits={"usd_per_day": 2}, for_s=60)
    passed = site.run("alice")
    assert isinstance(passed, Pass) and passed.claims is not None
    assert passed.claims.clamp.max_usd == 2  # type: ignore[union-attr]
    assert passed.claims.place.slot.day_micro_usd == 50_000_000  # type: ignore[union-attr]


def test_the_limits_report_shows_what_holds(pooled: Site, redis_server: RedisProcess) -> None:
    pooled.put(tier="pro", limits={"usd_per_day": 7, "minute": 3}, for_s=60)
    pooled.put(pool="team", value="red", limits={"usd_per_month": 9, "concurrent": 2}, for_s=60)
    pooled.counting.report = True
    answer = pooled.run("alice", team="red")
    assert isinstance(answer, Answer)
    body = answer.body
    assert body["usd"]["day"]["limit"] == 7 and body["windows"][0]["limit"] == 3
    team = body["pools"][0]
    assert (team["usd"]["budgets"][0]["limit"], team["concurrent"]["limit"]) == (9, 2)
    pooled.put(pool="team", value="red", limits={"blocked": True}, for_s=60, why="a secret")
    answer = pooled.run("alice", team="red")
    assert isinstance(answer, Answer)
    assert answer.body["blocked"].pop("for_s") in (59, 60, 61)
    assert answer.body["blocked"] == {"of": "pool", "pool": "team"} and "secret" not in str(answer.body)
    pooled.counting.report = False
    stopped = refused(pooled.run("alice", team="red"))
    assert (stopped.message, stopped.detail["pool"]) == ("an administrator has blocked the pool team for now", "team")
    pooled.counting.report = True
    other = pooled.run("alice", team="blue")
    assert (
        isinstance(other, Answer)
        and "blocked" not in other.body
        and other.body["pools"][0]["usd"]["budgets"][0]["limit"] == 500
    )


# Who may


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_whoever_is_not_admin_changes_and_sees_nothing_and_leaves_a_line(site: Site, method: str) -> None:
    body = {"sub": "mallory", "limits": {"usd_per_day": 1_000_000}, "why": "because"}
    refusal = refused(site.send(method, body, MALLORY, sub="mallory"))
    assert (refusal.status, refusal.reason) == (403, "not_admin")
    (line,) = site.lines()
    assert (line["kind"], line["actor"], line["details"]["status"]) == ("limits.refused", "mallory", 403)
    assert line["details"]["method"] == method and "1000000" in line["details"]["body"]
    # The control: the same by an admin is done.
    assert isinstance(site.send("PUT", body), Answer)
    assert refused(site.send("GET", who=None)).status == 401


def test_refused_attempts_do_not_fill_the_log(site: Site) -> None:
    for _ in range(30):
        assert refused(site.send("PUT", {}, MALLORY)).status == 403
    assert len(site.lines()) == 10
    assert refused(site.send("PUT", {}, Identity("eve"))).status == 403
    assert len(site.lines()) == 11, "of others they are still noted"


# What is noted


def test_each_change_leaves_a_line_with_who_what_before_after_until_and_why(site: Site) -> None:
    site.put(sub="alice", limits={"minute": 5}, for_s=60, why="first")
    site.put(sub="alice", limits={"minute": 6}, for_s=60, why="second")
    site.send("DELETE", sub="alice")
    first, second, reset = site.lines()
    assert [line["kind"] for line in (first, second, reset)] == ["limits.change", "limits.change", "limits.reset"]
    assert (second["actor"], second["subject"], second["details"]["why"]) == ("root", "alice", "second")
    assert second["before"]["limits"] == {"minute": 5} and second["after"]["limits"] == {"minute": 6}
    assert second["details"]["until"] and second["details"]["issuer"] == "idp"
    assert reset["before"]["limits"] == {"minute": 6} and reset["after"] is None


# What is asked


LATER = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
GOOD = {"sub": "alice", "limits": {"minute": 1}, "why": "a test"}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"sub": "a", "sub": "b"}', 400, "duplicate"),
        ({**GOOD, "limits": None}, 422, "limits"),
        ({**GOOD, "limits": {}}, 422, "DELETE"),
        ({**GOOD, "limit": {}}, 422, "unknown field `limit`"),
        ({**GOOD, "why": ""}, 422, "why"),
        ({name: value for name, value in GOOD.items() if name != "why"}, 422, "why"),
        ({**GOOD, "why": "a\nb"}, 422, "why"),
        ({**GOOD, "sub": 5}, 422, "str"),
        ({**GOOD, "sub": ""}, 422, "sub"),
        ({**GOOD, "tier": "pro"}, 422, "one of sub, tier and pool"),
        ({**GOOD, "sub": None}, 422, "one of sub, tier and pool"),
        ({**GOOD, "value": "red"}, 422, "value"),
        ({**GOOD, "organisation": "acme"}, 422, "organisation_claim"),
        ({**GOOD, "sub": None, "tier": "gold"}, 422, "free, pro"),
        ({**GOOD, "sub": None, "pool": "team"}, 422, "none is configured"),
        ({**GOOD, "limits": {"minutes": 1}}, 422, "is no limit"),
        ({**GOOD, "limits": {"hour": 1}}, 422, "blocked"),  # free has no hour
        ({**GOOD, "limits": {"minute": 0}}, 422, "from 1"),
        ({**GOOD, "limits": {"minute": 1.5}}, 422, "whole"),
        ({**GOOD, "limits": {"minute": True}}, 422, "whole"),
        ({**GOOD, "limits": {"usd_per_day": 0}}, 422, "dollars"),
        ({**GOOD, "limits": {"usd_per_day": 1e12}}, 422, "dollars"),
        ({**GOOD, "limits": {"blocked": 1}}, 422, "true or false"),
        ({**GOOD, "for_s": 0}, 422, "for_s"),
        ({**GOOD, "for_s": 10**9}, 422, "for_s"),
        ({**GOOD, "for_s": 60, "until": LATER}, 422, "one of them"),
        ({**GOOD, "until": "2020-01-01T00:00:00Z"}, 422, "until"),
        ({**GOOD, "until": "2200-01-01T00:00:00Z"}, 422, "31 days"),
        ({**GOOD, "until": LATER.split("+")[0]}, 422, "time zone"),
        ({**GOOD, "until": "soon"}, 422, "until"),
        (b"x" * (MAX_BODY + 1), 413, "larger"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_change_is_refused_and_says_why(site: Site, body: Any, status: int, says: str) -> None:
    refusal = refused(site.send("PUT", body))
    assert refusal.status == status and says in refusal.message, refusal
    assert site.get() == {"changes": []}
    assert [line["kind"] for line in site.lines()] == ["limits.refused"]


def test_control_the_good_one_is_done(site: Site) -> None:
    assert isinstance(site.send("PUT", GOOD), Answer)
    made = site.put(**GOOD, until=LATER)
    assert datetime.fromisoformat(made["until"]) - datetime.now(UTC) < timedelta(hours=2, seconds=1)
    one_day = datetime.fromisoformat(site.put(**GOOD)["until"]) - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < one_day < timedelta(hours=24, seconds=1), "without a time it is a day"


@pytest.mark.parametrize(
    ("query", "status"), [({"subject": "alice"}, 400), ({"sub": "a", "tier": "pro"}, 422), ({}, 422)], ids=str
)
def test_what_is_taken_back_must_be_named_exactly(site: Site, query: dict[str, str], status: int) -> None:
    assert refused(site.send("DELETE", None, ROOT, **query)).status == status


def test_a_query_names_nothing_twice(site: Site) -> None:
    kong = Asked("sub=alice&sub=bob", b"")
    request = Request(kong, static_line=RequestLine("DELETE", "/claude/admin/limits", ""))
    request.learn(ROOT)
    assert refused(site.admin.access(request)).status == 400


def test_other_methods_are_refused(site: Site) -> None:
    assert refused(site.send("POST", GOOD)).status == 405


# Lists and explanations


def test_the_list_can_be_narrowed(pooled: Site) -> None:
    pooled.put(sub="alice", limits={"minute": 1}, for_s=60)
    pooled.put(tier="pro", limits={"usd_per_day": 5}, for_s=60)
    pooled.put(pool="team", value="red", limits={"usd_per_month": 1}, for_s=60)
    pooled.put(pool="all", limits={"hour": 5}, for_s=60)

    def found(**query: str) -> list[dict[str, Any]]:
        return [change["limits"] for change in pooled.get(**query)["changes"]]

    assert len(found()) == 4
    assert found(sub="alice") == [{"minute": 1}]
    assert found(pool="team") == found(pool="team", value="red") == [{"usd_per_month": 1.0}]
    assert found(tier="free") == found(sub="bob") == []


def test_an_explanation_says_which_limit_binds_and_from_where(pooled: Site) -> None:
    assert isinstance(pooled.run("alice", team="red"), Pass)
    asked = {"explain": "true", "sub": "alice", "tier": "pro", "claim.team": "red"}
    rows = {(row.get("pool"), row["limit"]): row for row in pooled.get(**asked)["limits"]}
    assert rows[None, "minute"] | {"turns_in_s": 0, "share_left": 0} == {
        "limit": "minute", "allowed": 60, "used": 1, "left": 59, "share_left": 0, "turns_in_s": 0,
        "from": "configuration",
    }  # fmt: skip
    assert (rows[None, "usd_per_day"]["reserved"], rows[None, "usd_per_day"]["left"]) == (2, 48)
    assert rows["team", "usd_per_month"]["zone"] == "Asia/Tokyo" and rows["team", "usd_per_month"]["left"] == 498
    assert rows["team", "concurrent"]["left"] == 19 and rows["all", "hour"]["left"] == 9999

    pooled.put(tier="pro", limits={"minute": 100, "usd_per_day": 4}, for_s=60)
    pooled.put(sub="alice", limits={"minute": 3}, for_s=60, why="too many")
    pooled.put(pool="team", limits={"concurrent": 2}, for_s=60)
    told = pooled.get(**asked)
    rows = {(row.get("pool"), row["limit"]): row for row in told["limits"]}
    assert (rows[None, "minute"]["allowed"], rows[None, "minute"]["configured"]) == (3, 60)
    assert rows[None, "minute"]["from"]["sub"] == "alice" and rows[None, "minute"]["from"]["why"] == "too many"
    assert rows[None, "usd_per_day"]["from"]["tier"] == "pro" and rows["team", "concurrent"]["from"]["by"] == "root"
    assert (told["binds"]["limit"], told["binds"]["share_left"]) == ("usd_per_day", 0.5)
    assert told["blocked"] is None
    pooled.put(tier="pro", limits={"minute": 100, "usd_per_day": 3}, for_s=60)  # 1 is left, of which no run can start
    binds = pooled.get(**asked)["binds"]
    assert [binds[name] for name in ("limit", "left", "needs", "share_left")] == ["usd_per_day", 1, 2, 0]
    pooled.put(tier="pro", limits={"minute": 100, "usd_per_day": 4}, for_s=60)

    for _ in range(4):
        pooled.run("alice", team="red")
    rows = {(row.get("pool"), row["limit"]): row for row in pooled.get(**asked)["limits"]}
    pooled.put(sub="alice", limits={"minute": 1, "usd_per_day": 1}, for_s=60)
    lowered = {(row.get("pool"), row["limit"]): row for row in pooled.get(**asked)["limits"]}
    assert rows[None, "minute"]["used"] == 2 == lowered[None, "minute"]["used"], (
        "what was used was, whatever is allowed"
    )
    assert (lowered[None, "minute"]["allowed"], lowered[None, "minute"]["left"]) == (1, 0)
    assert (lowered[None, "usd_per_day"]["reserved"], lowered[None, "usd_per_day"]["left"]) == (4, 0)

    pooled.put(tier="pro", limits={"blocked": True}, for_s=60)
    told = pooled.get(**asked)
    assert told["binds"]["limit"] == "blocked" and told["blocked"]["tier"] == "pro"
    pooled.put(sub="alice", limits={"blocked": False}, for_s=60)
    assert pooled.get(**asked)["blocked"] is None


@pytest.mark.parametrize("pool", [None, "all"])
def test_of_several_that_refuse_the_next_run_that_binds_which_the_refusal_names(
    redis_server: RedisProcess, pool: str | None
) -> None:
    """The minute is used up, too, but is over sooner: save in the last one of a week, where both name the minute."""
    money: dict[str, Any] = {"budgets": [{"usd": 2, "per": "week"}]}
    own = {"name": "pro", "minute": 1, "max_usd_per_run": 2} | ({} if pool else money)
    pools = [{"name": pool, "by": "deployment", **money}] if pool else []
    site = Site(redis_server, tiers=[own], default_tier="pro", pools=pools)
    admitted = site.run("alice")
    assert isinstance(admitted, Pass)
    site.counting.store.settle(Lease.parse(admitted.shared["lease"]), 200)
    refusal, binds = refused(site.run("alice")).detail, site.get(explain="true", sub="alice", tier="pro")["binds"]
    assert (binds.get("pool"), binds["limit"]) == (refusal.get("pool"), refusal["limit"])


def test_what_an_explanation_needs_it_says(pooled: Site) -> None:
    told = pooled.get(explain="true", sub="alice", tier="pro")
    assert told["unknown_pools"] == ["pool team: needs claim.team"]
    assert pooled.get(explain="true", sub="alice")["tier"] == "free", "without a tier it is the default one"
    assert refused(pooled.send("GET", explain="true")).status == 422
    assert refused(pooled.send("GET", explain="true", sub="alice", tier="gold")).status == 422


def test_each_organisation_has_changes_of_its_own(redis_server: RedisProcess) -> None:
    one_server("an organisation is a tag of its own there")
    site = Site(redis_server, pools=POOLS[:1], tiers=plain(TIERS), organisation_claim="org")
    site.put(organisation="acme", sub="alice", limits={"minute": 1}, for_s=60)
    assert len(site.get(organisation="acme")["changes"]) == 1 and site.get(organisation="evil")["changes"] == []
    assert isinstance(site.run("alice", team="red", org="evil"), Pass)
    assert isinstance(site.run("alice", team="red", org="evil"), Pass)
    assert isinstance(site.run("alice", team="red", org="acme"), Pass)
    assert refused(site.run("alice", team="red", org="acme")).detail["limit"] == "minute"
    assert refused(site.send("PUT", GOOD)).status == 422


# Where it cannot be done


def test_limits_that_each_process_counts_alone_cannot_be_changed_and_it_says_what_is_needed() -> None:
    made = stage_of(RateTiers, {"policy": "local", "tiers": plain(TIERS), "default_tier": "free", "admin": True})
    request = Request(Asked("", json.dumps(GOOD).encode()), static_line=RequestLine("PUT", "/x", ""))
    request.learn(ROOT)
    refusal = refused(made.access(request))
    assert refusal.status == 501 and "policy: redis" in refusal.message


def test_without_redis_nothing_is_changed_and_it_says_so(own_redis: RedisProcess) -> None:
    one_server("limits can be changed with a pool only (`pooled`)")
    site = Site(own_redis, tiers=plain(TIERS), timeout_ms=200)
    own_redis.kill()
    assert refused(site.send("PUT", GOOD)).status == refused(site.send("GET")).status == 503
    assert refused(site.send("PUT", GOOD, MALLORY)).status == 403


def test_admin_and_report_are_two_routes(redis_server: RedisProcess) -> None:
    with pytest.raises(ConfigError, match="two routes"):
        Site(redis_server, tiers=plain(TIERS), report=True)


def test_a_damaged_change_is_named_and_can_be_reset(site: Site) -> None:
    site.client.hset("claude:{*}:limits", "s:alice", "{")
    assert refused(site.run("alice")).status == 503 and isinstance(ask(site.counting, "bob"), Pass)
    assert refused(site.send("GET")).status == 503
    assert isinstance(site.send("DELETE", sub="alice"), Answer)
    assert isinstance(site.run("alice"), Pass)


# On a Cluster


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        ({}, False),
        ({"pools": POOLS[:1], "organisation_claim": "org"}, False),
        ({"pools": POOLS}, True),
        ({"pools": POOLS[:1], "admin": False, "organisation_claim": "org"}, True),
        ({"admin": False}, True),
    ],
)
def test_a_route_that_could_not_change_limits_on_a_cluster_does_not_start(config: dict[str, Any], starts: bool) -> None:
    tiers = [{**tier, "pools": []} for tier in TIERS]
    made = {"policy": "redis", "redis_url": "redis+cluster://127.0.0.1:7", "tiers": tiers, "default_tier": "free"}
    if starts:
        stage_of(RateTiers, made | {"admin": True} | config)
        return
    with pytest.raises(ConfigError, match="needs all keys on one node where Redis is a Cluster: define a pool"):
        stage_of(RateTiers, made | {"admin": True} | config)


def test_a_page_is_told_what_a_run_may_cost_now(site: Site, redis_server: RedisProcess) -> None:
    """What runs may have, too, is with what an admin has changed, as an admission would say it."""
    limits = {
        "policy": "redis",
        "redis_url": redis_server.url,
        "timeout_ms": 5000,
        "tiers": TIERS,
        "default_tier": "free",
    }
    telling = stage_of(RateTiers, {**limits, "tell": True, "attestation": {"secret": "s" * 32}})
    found: list[float | None] = []
    changes: tuple[dict[str, float], ...] = ({}, {"usd_per_day": 0.5})
    for changed in changes:
        if changed:
            site.put(sub="eve", limits=changed, for_s=60)
        request = Request(Kong(), static_line=RequestLine("GET", "/claude/dashboard/catalog", ""))
        request.learn(Identity("eve", tier="pro"))
        passed = telling.access(request)
        assert isinstance(passed, Pass) and isinstance(passed.claims, Limits) and not passed.checked
        found.append(passed.claims.clamp.max_usd)
    assert found == [2, 0.5]


def test_limits_are_changed_on_a_cluster_of_three_nodes(cluster: list[RedisProcess]) -> None:
    """By one pool of the deployment, of which nobody reaches the limit: each admission sees each change."""
    nodes = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    tiers = [{**tier, "pools": []} if tier["name"] == "free" else tier for tier in TIERS]
    site = Site(
        cluster[0],
        redis_url=f"redis+cluster://{nodes}",
        namespace="one-tag",
        tiers=tiers,
        pools=[{"name": "everybody", "by": "deployment", "concurrent": 10_000}],
    )
    people = [f"user{number}" for number in range(12)]
    assert all(isinstance(site.run(who), Pass) for who in people)
    site.put(tier="pro", limits={"minute": 2}, for_s=60)
    site.put(sub="user3", limits={"blocked": True}, for_s=60)
    site.put(sub="free3", limits={"minute": 1}, for_s=60)
    assert [isinstance(site.run(who), Pass) for who in people] == [who != "user3" for who in people]
    assert not any(isinstance(site.run(who), Pass) for who in people)
    assert [isinstance(site.run("free3", "free"), Pass) for _ in range(2)] == [True, False], "also without the pool"
    site.put(pool="everybody", limits={"concurrent": 1}, for_s=60)
    refused = site.run("newcomer")
    assert isinstance(refused, Refuse) and "everybody" in str(refused)
    assert len(site.get()["changes"]) == 4
    assert sum(1 for node in cluster if node.client().keys("one-tag:*")) == 1
