"""Before a budget is used up: who is told of it and how often; and what a tier does then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from claude_contract.claims import CLAMP_ROOM, Clamp, Limits, size
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.ledger import (
    DEPLOYMENT,
    Admission,
    Admit,
    Budget,
    BudgetWarning,
    Lease,
    Ledger,
    Peek,
    Shared,
    Slot,
    Terms,
    calls,
    pool_key,
)
from claude_contract.ledger import warnings as warnings_module
from claude_contract.ledger.figures import MOST_POOLS, PoolsSeen, figures_of, pool_gauges
from claude_contract.ledger.limits import UTC_DAY
from claude_contract.ledger.model import Spent, Standing, organisation_name, pool_name
from claude_contract.ledger.warnings import Known, highest, reached, warnings_in, warnings_of
from kong_claude.decision import Decision, Pass, Refuse
from kong_claude.rate_tiers import telling
from kong_claude.rate_tiers.gauges import PoolCollector
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.plugin import ON_BUDGET_HEADER, RateTiers
from kong_claude.rate_tiers.redis_circuit import FAILURES
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from kong_claude.request import Request, RequestLine
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_faults import Kong, Log
from tests.rate_tiers.test_model import DOLLAR, ClockedRedis
from tests.rate_tiers.test_pools import at
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S

TEAM = Shared(DEPLOYMENT, (pool_key("team", "claim", "r:d"), pool_key("all")))


NOON = at("2026-11-26T12:00")


# The pure part


@pytest.mark.parametrize(
    ("used", "limit", "wanted", "expected"),
    [
        (0, 100, 0, ()),
        (79, 100, 0, ()),
        (80, 100, 0, (80,)),
        (94, 100, 0, (80,)),
        (95, 100, 0, (80, 95)),
        (300, 100, 0, (80, 95)),  # a run that cost more than it reserved
        (799_999, 1_000_000, 0, ()),
        (800_000, 1_000_000, 0, (80,)),
        (76, 100, 25, (80, 95)),  # refused, and would have been without a warning before
        (50, 100, 25, ()),  # refused, but not by this one
        (75, 100, 25, ()),
        (0, 0, 0, (80, 95)),  # an admin has closed it
    ],
)
def test_what_is_reached(used: int, limit: int, wanted: int, expected: tuple[int, ...]) -> None:
    assert reached(used, limit, wanted) == expected


def test_figures_leave_out_what_limits_nothing_and_never_go_below_zero() -> None:
    budget = Budget(10 * DOLLAR, "day")
    standing = Standing(1, 2 * DOLLAR, (Spent(UTC_DAY, 5, 1), Spent(budget, 9 * DOLLAR, 1500, 86_400_000, 172_800_000)))
    (found,) = figures_of(standing)
    assert (found.used, found.left) == (11 * DOLLAR, 0)
    assert found.document() == {
        "name": "usd_per_day", "per": "day", "zone": "UTC", "start": 86_400, "end": 172_800,
        "limit": 10.0, "spent": 9.0, "reserved": 2.0, "left": 0.0, "reset_s": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "name", "of"),
    [
        (("team", "claim", "red"), "team", "red"),
        (("team", "claim", "r:d/ü"), "team", "r:d/ü"),
        (("all",), "all", ""),
        (("by-ip", "ip", "192.0.2.1"), "by-ip", "192.0.2.1"),
    ],
)
def test_a_pools_key_says_whose_it_is(made: tuple[str, ...], name: str, of: str) -> None:
    assert pool_name(pool_key(*made)) == (name, of)
    assert (organisation_name("claim:acme%20inc"), organisation_name("*"), organisation_name("")) == (
        "acme inc",
        "",
        "",
    )


def warning_at(moment: int, budget: Budget, account: str = "alice") -> BudgetWarning:
    lease = Lease.new("claude", account)
    start, end = budget.span(moment // 1000)
    spent = Spent(budget, budget.micro_usd, max(end - moment // 1000, 0), start, end)
    return warnings_in(lease, (Standing(spent=(spent,)),))[0]


def test_a_warning_is_the_same_for_whoever_sees_it_in_one_period_and_another_in_the_next() -> None:
    day, month = Budget(DOLLAR, "day", "Europe/Berlin"), Budget(DOLLAR, "month", "Europe/Berlin")
    before, after = at("2026-11-30T22:59:59"), at("2026-11-30T23:00")  # midnight in Berlin, and December there
    for budget in (day, month):
        assert warning_at(before, budget).key == warning_at(before - 3_600_000_000, budget).key
        assert warning_at(before, budget).key != warning_at(after, budget).key
    assert warning_at(before, month).key == warning_at(at("2026-11-01T00:00"), month).key
    assert warning_at(before, day).key != warning_at(before, month).key
    assert warning_at(before, day).key != warning_at(before, Budget(2 * DOLLAR, "day", "Europe/Berlin")).key, (
        "another limit"
    )
    assert warning_at(before, day).key != warning_at(before, day, "bob").key
    rolling = Budget(DOLLAR, "day", rolling=True)
    assert warning_at(before, rolling).key == warning_at(after, rolling).key
    assert warning_at(before, rolling).lives_ms == 86_400_000


def test_what_is_known_is_bounded_and_ends() -> None:
    known = Known()
    warning = warning_at(NOON, Budget(DOLLAR, "day"))
    assert list(known.untold([warning], 0)) == [warning]
    known.told(warning, 0)
    assert list(known.untold([warning], warning.lives_ms - 1)) == [] and list(
        known.untold([warning], warning.lives_ms)
    ) == [warning]
    for n in range(3 * warnings_module._MOST_KNOWN):
        known.told(warning_at(NOON, Budget(DOLLAR, "day"), f"s{n}"), 0)
    assert len(known._until) <= warnings_module._MOST_KNOWN


# The store: once, over all who share it


@pytest.fixture(params=["redis", "local"])
def tell(request: pytest.FixtureRequest, redis_server: RedisProcess) -> Callable[[BudgetWarning, int], bool]:
    """(warning, µs) → whether it was the first."""
    if request.param == "redis":
        clocked = ClockedRedis(redis_server)
        return lambda warning, now: clocked.ask(calls.tell(warning), now)
    moment = [0]
    local = LocalLedger(lambda: moment[0])

    def ask(warning: BudgetWarning, now: int) -> bool:
        moment[0] = now
        return local.tell(warning)

    return ask


def test_each_day_and_each_month_is_told_once(tell: Callable[[BudgetWarning, int], bool]) -> None:
    day, month = Budget(DOLLAR, "day", "Asia/Tokyo"), Budget(DOLLAR, "month", "Asia/Tokyo")
    told = []
    for text in ("2026-11-29T16:00", "2026-11-30T14:00", "2026-11-30T15:00", "2026-11-30T15:00", "2026-12-01T15:00"):
        now = at(text)
        told.append((tell(warning_at(now, day), now), tell(warning_at(now, month), now)))
    # The Tokyo day of the 30th twice, December's first twice, the second; November, then December.
    assert told == [(True, True), (False, False), (True, True), (False, False), (True, False)]


def test_what_is_owed_to_the_operator_is_bounded_and_ends(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings_module, "MOST_OWED", 5)
    store, client = RedisLedger(Settings(redis_server.url, timeout=HANG_S)), redis_server.client()
    for n in range(9):
        assert store.tell(warning_at(NOON, Budget(DOLLAR, "day"), f"s{n}"))
        time.sleep(0.002)  # they are in the order of milliseconds
    store.close()
    owed = [warnings_module.decode(each) for each in client.zrange(warnings_module.OWED, 0, -1)]  # type: ignore[union-attr]
    assert [notice.data["account"] for notice in owed] == [f"s{n}" for n in range(4, 9)]
    assert 0 < client.pttl(warnings_module.OWED) <= warnings_module.OWED_MS  # type: ignore[operator]
    told = next(client.scan_iter("claude:{warnings}:told:*"))
    assert client.pttl(told) > 0, "its own key goes with its period"  # type: ignore[operator]


# What admissions see, over real Redis and in the process


class Clock:
    """A ledger at a moment that the test moves."""

    def __init__(self, redis: ClockedRedis | None) -> None:
        self.now = NOON
        self._redis, self._local = redis, LocalLedger(lambda: self.now)

    def admit(self, request: Admit) -> Admission:
        return self._redis.admit(request, self.now) if self._redis else self._local.admit(request)

    def settle(self, lease: Lease, cost: int) -> bool:
        return self._redis.ask(calls.settle(lease, cost), self.now) if self._redis else self._local.settle(lease, cost)

    def warnings(self, of: Lease, slot: Slot) -> tuple[BudgetWarning, ...]:
        peek = Peek(of.namespace, of.subject_key, slot=slot, shared=of.shared)
        usage = self._redis.peek(peek, self.now) if self._redis else self._local.peek(peek)
        return warnings_in(peek, (usage.own, *usage.pools))


@pytest.fixture(params=["redis", "local"])
def clock(request: pytest.FixtureRequest, redis_server: RedisProcess) -> Clock:
    return Clock(ClockedRedis(redis_server) if request.param == "redis" else None)


SLOT = Slot(
    run_micro_usd=DOLLAR,
    day_micro_usd=5 * DOLLAR,
    pools=(Terms(None, (Budget(10 * DOLLAR, "month", "Europe/Berlin"),)), Terms()),
)


def asked(subject: str = "alice", slot: Slot = SLOT) -> Admit:
    lease = Lease.new("claude", subject, slot.run_micro_usd, TEAM)
    return Admit("claude", subject, lease=lease, slot=slot, shared=TEAM)


def names(seen: tuple[BudgetWarning, ...]) -> list[tuple[str, int]]:
    return [(warning.name, warning.percent) for warning in seen]


def test_an_admission_sees_what_it_has_reserved(clock: Clock) -> None:
    seen = [names(warnings_of(request, clock.admit(request))) for request in (asked() for _ in range(6))]
    day80, day95 = ("usd_per_day", 80), ("usd_per_day", 95)
    # $4 of 5 reserved; $5; refused for want of the sixth. The team has $5 of 10 reserved.
    assert seen == [[], [], [], [day80], [day80, day95], [day80, day95]]


def test_a_booking_warns_of_a_pool_and_the_next_month_is_anew(clock: Clock) -> None:
    lease = asked().lease
    assert lease is not None
    assert clock.settle(lease, 8 * DOLLAR) and names(clock.warnings(lease, SLOT)) == [
        ("usd_per_day", 80), ("usd_per_day", 95), ("team.usd_per_month", 80),
    ]  # fmt: skip
    clock.now = at("2026-11-27T00:00")
    assert names(clock.warnings(lease, SLOT)) == [("team.usd_per_month", 80)]
    (warning,) = clock.warnings(lease, SLOT)
    assert warning.notice().data["pool"] == "team" and warning.notice().data["of"] == "r:d"
    assert (
        warning.figures.start_ms == at("2026-10-31T23:00") // 1000
        and warning.figures.end_ms == at("2026-11-30T23:00") // 1000
    )
    clock.now = at("2026-11-30T23:00")
    assert names(clock.warnings(lease, SLOT)) == []


def test_a_small_budget_warns_before_it_refuses(clock: Clock) -> None:
    """$1 a day with runs of $0.25: with spent money alone, nothing would be said before the refusal at $0.76."""
    slot = Slot(run_micro_usd=DOLLAR // 4, day_micro_usd=DOLLAR)
    told: list[tuple[str, int]] = []
    for _ in range(9):
        request = Admit("claude", "alice", lease=Lease.new("claude", "alice", slot.run_micro_usd), slot=slot)
        admission = clock.admit(request)
        if not admission.admitted:
            break
        told += names(warnings_of(request, admission))
        assert request.lease is not None and clock.settle(request.lease, DOLLAR // 10)
    else:
        pytest.fail("nothing was refused")
    assert ("usd_per_day", 80) in told and admission.own.spent[0].micro_usd < 0.8 * DOLLAR + DOLLAR // 10


# The plugin: header, log, metric, once


def stage(**tier: Any) -> RateTiers:
    given = {"name": "pro", "concurrent": 99, "usd_per_day": 5, "max_usd_per_run": 1, "models": ["haiku", "sonnet"]}
    config: dict[str, Any] = {
        "namespace": tier.pop("namespace", "warned"),
        "attestation": {"secret": "s" * 32},
        "route_id": "r",
    }
    of_the_plugin = ("pools", "mode", "hide_client_headers", "on_busy", "policy", "redis_url", "redis_username")
    config |= {name: tier.pop(name) for name in (*of_the_plugin, "redis_password") if name in tier}
    made = stage_of(RateTiers, {**config, "tiers": [given | tier]})
    made.local = LocalLedger()
    return made


class Asked(Kong):
    """A POST, as Kong has it."""

    def __init__(self, **headers: str) -> None:
        super().__init__()
        self.headers = headers

    def get_headers(self, _: int) -> dict[str, str]:
        return self.headers


def ask(made: RateTiers, subject: str = "alice", log: Log | None = None, prefer: str = "", **claims: Any) -> Decision:
    kong = Asked(**({"prefer": prefer} if prefer else {}))
    kong.log = log or Log()
    request = Request(kong, static_line=RequestLine("POST", "/claude/invoke", ""))
    request.learn(Identity(subject, claims=claims))
    return made.access(request)


def warned(decision: Decision) -> str:
    assert isinstance(decision, Pass | Refuse)
    headers = decision.response_headers if isinstance(decision, Pass) else decision.headers
    return headers.get(telling.HEADER, "")


def counted(percent: int) -> float:
    return float(telling.REACHED.labels("", "usd_per_day", str(percent))._value.get())


def test_the_caller_the_log_and_the_metric_are_told() -> None:
    made, log = stage(), Log()
    before = {percent: counted(percent) for percent in (80, 95)}
    said = [warned(ask(made, log=log)) for _ in range(6)]
    assert said[:3] == ["", "", ""]
    assert said[3].startswith('"usd_per_day";percent=80;left=1.0;reset=')
    assert said[4].startswith('"usd_per_day";percent=95;left=0.0;reset=')
    assert said[5].startswith('"usd_per_day";percent=95;left=0.0;reset=')  # the refusal
    assert {percent: counted(percent) - before[percent] for percent in (80, 95)} == {80: 1, 95: 1}
    budget = [line for line in log.lines if "budget:" in line]
    assert (
        len(budget) == 2
        and "80 % of usd_per_day of alice are used: $0.00 spent and $4.00 reserved of $5.00" in budget[0]
    )


def test_who_hides_the_limits_hides_the_warning() -> None:
    made = stage(hide_client_headers=True)
    decisions = [ask(made) for _ in range(5)]
    assert all(isinstance(one, Pass) and not one.response_headers for one in decisions)


def test_a_redis_that_does_not_let_it_be_told_admits_all_the_same(own_redis: RedisProcess) -> None:
    """A user who has the keys of the namespace only, as was enough before; then with all that the documents name."""
    client = own_redis.client()
    client.acl_setuser("gateway", enabled=True, passwords=["+word"], categories=["+@all"], keys=["own:*"])
    user = {"redis_url": own_redis.url, "redis_username": "gateway", "redis_password": "word"}
    made, log = stage(policy="redis", namespace="own", **user), Log()
    assert all(isinstance(ask(made, log=log), Pass) for _ in range(5))
    for _ in range(FAILURES + 1):
        refused = ask(made, log=log)
        assert isinstance(refused, Refuse) and refused.status == 429, "refused for the money, not for the error"
    assert made.redis is not None and not made.redis.circuits.open
    assert len(log.lines) == 1 and "cannot be told" in log.lines[0] and "word" not in log.lines[0]
    client.acl_setuser("gateway", enabled=True, keys=["own:*", "claude:{warnings}:*"])
    ask(made, log=log)
    assert [line.split(" %")[0] for line in log.lines[1:]] == ["budget: 80", "budget: 95"]
    assert client.zcard(warnings_module.OWED) == 2


def test_counters_are_there_before_they_count() -> None:
    """Else Prometheus would not see them rise from nothing."""
    stage(pools=[{"name": "fresh", "claim": "team", "usd_per_month": 9}])
    told = {tuple(sample.labels.values()) for metric in telling.REACHED.collect() for sample in metric.samples}
    assert {("fresh", "usd_per_month", "80"), ("fresh", "usd_per_month", "95"), ("", "usd_per_day", "80")} <= told


# on_budget

WAIT = {"on_budget": "queue"}
CHEAP = {"on_budget": "model", "cheaper": {"model": "haiku", "up_to_percent": 120, "max_usd_per_run": 0.5}}


def spend(made: RateTiers, dollars: float, **claims: Any) -> None:
    """A run of alice's that has cost this much."""
    decision = ask(made, **claims)
    assert isinstance(decision, Pass)
    made.local.settle(Lease.parse(decision.shared["lease"]), round(dollars * DOLLAR))


def limits(decision: Decision) -> Limits:
    assert isinstance(decision, Pass) and isinstance(decision.claims, Limits)
    return decision.claims


def test_a_job_may_wait_for_the_next_period_and_nobody_else() -> None:
    made = stage(**WAIT)
    spend(made, 5)
    refused = ask(made)
    assert isinstance(refused, Refuse) and refused.detail["limit"] == "usd_per_day"
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    waiting = ask(made, prefer="respond-async")
    place = limits(waiting).place
    assert place is not None and place.queued and place.slot == made.choice.default.slot
    assert isinstance(waiting, Pass) and waiting.response_headers[ON_BUDGET_HEADER] == "queue"
    assert "lease" not in waiting.shared, "it holds nothing while it waits"
    # The control: a tier that does not say so refuses the job, too.
    plain = stage()
    plain.local = made.local
    assert isinstance(ask(plain, prefer="respond-async"), Refuse)
    # And a route that queues where all places are taken is one of jobs.
    queueing = stage(**WAIT, on_busy="queue")
    queueing.local = made.local
    assert limits(ask(queueing)).place.queued  # type: ignore[union-attr]


def test_a_window_is_in_the_way_of_jobs_that_wait_for_money_too() -> None:
    made = stage(**WAIT, minute=2)
    spend(made, 5)
    assert isinstance(ask(made, prefer="respond-async"), Pass)
    refused = ask(made, prefer="respond-async")
    assert isinstance(refused, Refuse) and refused.status == 429


def test_a_cheaper_model_runs_and_the_answer_says_so() -> None:
    assert ON_BUDGET_HEADER == "X-Claude-On-Budget", "as the documents have it"
    made = stage(**CHEAP)
    assert limits(ask(made)).clamp.model is None
    spend(made, 4.5)
    decision = ask(made)
    found = limits(decision)
    assert isinstance(decision, Pass) and decision.response_headers[ON_BUDGET_HEADER] == "model=haiku"
    assert (found.clamp.model, found.clamp.models, found.clamp.max_usd) == ("haiku", ("haiku", "sonnet"), 0.5)
    lease = Lease.parse(decision.shared["lease"])
    assert lease.micro_usd == DOLLAR // 2, "its own reservation"


def booked(made: RateTiers, runs: int, cost: float, **claims: Any) -> list[str]:
    """What becomes of runs that cost this much each: the model, "any", or the refusal's limit."""
    ends = []
    for _ in range(runs):
        decision = ask(made, **claims)
        if isinstance(decision, Refuse):
            ends.append(str(decision.detail["limit"]))
            continue
        ends.append(limits(decision).clamp.model or "any")
        assert isinstance(decision, Pass)
        made.local.settle(Lease.parse(decision.shared["lease"]), round(cost * DOLLAR))
    return ends


def test_the_cheaper_model_is_not_without_end() -> None:
    """Of $5, 120 % are $6. Control: with the bound taken away the same callers go on."""
    made = stage(**CHEAP)
    ends = booked(made, 20, 0.5)
    # $0.5 each: nine until $4.5 are spent and $1 no longer fits, then cheaper ones until $6 are.
    assert ends == ["any"] * 9 + ["haiku"] * 3 + ["usd_per_day"] * 8
    (spent, _) = made.local.peek(Peek("warned", "alice", slot=made.choice.default.slot)).own.spent[:2]
    assert spent.micro_usd == 6 * DOLLAR

    unbounded = stage(**CHEAP)
    cheaper = unbounded.choice.default.cheaper
    assert cheaper is not None
    object.__setattr__(cheaper.slot, "bound", Terms())
    assert booked(unbounded, 20, 0.5) == ["any"] * 9 + ["haiku"] * 11


def test_a_pools_budget_is_a_wall_for_the_cheaper_model() -> None:
    """Control: the same without the pool goes on."""
    pool = {"name": "team", "claim": "team", "usd_per_month": 5}
    assert booked(stage(**CHEAP, pools=[pool]), 14, 0.5, team="red") == ["any"] * 9 + ["haiku"] + ["usd_per_month"] * 4
    assert booked(stage(**CHEAP), 14, 0.5)[-3:] == ["haiku", "usd_per_day", "usd_per_day"]


def test_a_warning_is_of_the_budget_and_not_of_what_the_cheaper_model_may_use() -> None:
    made = stage(**CHEAP)
    booked(made, 9, 0.5)
    assert '"usd_per_day";percent=95;left=0.5;' in warned(ask(made))


def test_a_shadow_changes_nothing() -> None:
    made = stage(**CHEAP, mode="shadow")
    spend(made, 5)
    assert limits(ask(made)).clamp.model is None


# Of a tool's name that takes the clamp's room to the last byte, while nothing is said of a model.
ROOM = CLAMP_ROOM - size(Clamp(("haiku", "sonnet"), ("",), max_usd=0.5).to_claims())
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"on_budget": "queue", "usd_per_day": None}, r"tiers\[1\]\.on_budget: is for tiers with a budget"),
    "no cheaper model": ({"on_budget": "model"}, r"tiers\[1\]\.cheaper: is needed"),
    "a cheaper model for nothing": ({"cheaper": CHEAP["cheaper"]}, r"tiers\[1\]\.cheaper: is for on_budget: model"),
    "no name": ({**CHEAP, "cheaper": {"up_to_percent": 120}}, r"tiers\[1\]\.cheaper\.model: is required"),
    "another's model": (
        {**CHEAP, "cheaper": {"model": "opus", "up_to_percent": 120}}, r"cheaper\.model: must be one of .* haiku, sonnet"),
    "no end": ({**CHEAP, "cheaper": {"model": "haiku"}}, r"tiers\[1\]\.cheaper\.up_to_percent: must be a whole number"),
    "no more": ({**CHEAP, "cheaper": {"model": "haiku", "up_to_percent": 100}}, r"cheaper\.up_to_percent: .* 101 to 1000"),
    "dearer": (
        {**CHEAP, "cheaper": {"model": "haiku", "up_to_percent": 120, "max_usd_per_run": 2}},
        r"tiers\[1\]\.cheaper\.max_usd_per_run: is more than the tier's",
    ),
    "no room": ({**CHEAP, "tools": ["x" * ROOM]}, r"tiers\[1\]\.tools: models, tools, egress, skills, agents, mcp and rules take 1040 bytes"),
    "a feature that nobody knows": (
        {"api_features": ["fast"]}, r"tiers\[1\]\.api_features: fast is not known: there are context_1m, fast_mode, "),
    "a tool without its feature": (
        {"tools": ["WebSearch"], "api_features": []}, r"tiers\[1\]\.api_features: needs web_search"),
    "a model without its feature": (
        {"models": ["haiku", "sonnet[1m]"], "api_features": []}, r"tiers\[1\]\.api_features: needs context_1m"),
    "a fast model without its feature": (
        {"models": ["claude-opus-5-5-fast"], "api_features": []}, r"tiers\[1\]\.api_features: needs fast_mode"),
    "a cheaper model without its feature": (
        {**CHEAP, "models": [], "cheaper": {"model": "haiku[1m]", "up_to_percent": 120}, "api_features": []},
        r"tiers\[1\]\.api_features: needs context_1m, since the tier's models have haiku\[1m\]"),
    "a default skill that it does not have": (
        {"skills": ["pdf"], "default_skills": ["pdf", "docx"]}, r"tiers\[1\]\.default_skills: docx is not among the tier's skills"),
    "a rule that matches nothing": (
        {"ask": ["Bash", "Write(src/**)"]}, r"tiers\[1\]\.ask\[2\]: matches nothing: Edit\(src/\*\*\) governs Write, too"),
    "a rule about no tool": ({"deny": ["Bsh"]}, r"tiers\[1\]\.deny\[1\]: Bsh is not known"),
    "a rule about a tool that the tier has not": (
        {"tools": ["Read"], "ask": ["Edit(/src/**)"]},
        r"tiers\[1\]\.ask\[1\]: Edit\(/src/\*\*\) is about Edit and Write and MultiEdit and NotebookEdit, which"),
    "a rule about agents of a tier that has none": (
        {"tools": ["Read"], "ask": ["Agent"]}, r"tiers\[1\]\.ask\[1\]: Agent is about Agent and Task, which"),
    "a rule about a server of a tier that has none": (
        {"ask": ["mcp__github__*"]}, r"tiers\[1\]\.ask\[1\]: mcp__github__\* is about a server that is not among the tier's mcp"),
    "allowed of nothing": ({"allow": ["Bash(ls)"]}, r"tiers\[1\]\.allow: is what passes of that which ask asks about"),
    "four eyes for nothing": ({"four_eyes": True}, r"tiers\[1\]\.four_eyes: is about what ask asks about"),
    "rules without room": (
        {"ask": [f"Bash({letter * 180}:*)" for letter in "abcdef"]},
        r"tiers\[1\]\.ask: models, tools, egress, skills, agents, mcp and rules take \d+ bytes in the attestation, at most 1024"),
    "only a pool's budget": (
        {**CHEAP, "usd_per_day": None, "pools": [{"name": "all", "by": "deployment", "usd_per_day": 9}]},
        r"tiers\[1\]\.cheaper\.up_to_percent: needs a budget of the tier's own",
    ),
}  # fmt: skip


def test_the_cheaper_model_counts_in_the_clamps_room() -> None:
    """The control of `no room`: the same tools without it."""
    assert isinstance(ask(stage(tools=["x" * ROOM], max_usd_per_run=0.5)), Pass)


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_does_not_start(case: str) -> None:
    tier, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        stage(**tier)


def test_without_an_attestation_nobody_could_tell_the_invoker() -> None:
    tier = {"name": "t", "usd_per_day": 5, "max_usd_per_run": 1, "on_budget": "queue"}
    with pytest.raises(ConfigError, match=r"tiers\[1\]\.on_budget: needs attestation"):
        stage_of(RateTiers, {"tiers": [tier], "route_id": "r"})


# Metrics


class Source:
    def __init__(self, store: Ledger) -> None:
        self.pools_seen, self.store = PoolsSeen(), store


def test_the_pools_that_metrics_tell_of_are_bounded() -> None:
    seen = PoolsSeen()
    for n in range(MOST_POOLS + 5):
        seen.note("claude", Shared("*", (pool_key("team", "claim", str(n)),)), (Terms(),))
    seen.note("claude", Shared("*", (pool_key("team", "claim", "5"),)), (Terms(),))
    kept = [pool_name(key)[1] for _, _, key in seen.peeks()]
    assert len(kept) == MOST_POOLS and kept[0] == "6" and kept[-1] == "5", "the latest stay"


@pytest.fixture
def sources() -> Iterator[tuple[Source, Source]]:
    store = LocalLedger()
    yield Source(store), Source(store)


def test_each_pool_is_told_of_once_as_the_ledger_has_it(sources: tuple[Source, Source]) -> None:
    collector = PoolCollector()
    lease = Lease.new("claude", "alice", DOLLAR, TEAM)
    for source in sources:
        collector.sources.add(source)
        source.pools_seen.note("claude", TEAM, SLOT.pools)
    store = sources[0].store
    assert store.acquire(lease, SLOT).admitted and store.settle(lease.again(), 123_457)
    money, edges = collector.collect()
    told = {tuple(sample.labels.values()): sample.value for sample in money.samples}
    who = ("team", "", "r:d", "usd_per_month")
    assert told == {(*who, "limit"): 10.0, (*who, "spent"): 0.123457, (*who, "reserved"): 1.0, (*who, "left"): 8.876543}
    standing = store.peek(Peek("claude", "bob", slot=SLOT, shared=TEAM)).pools[0]
    assert [gauge.value for gauge in pool_gauges("*", TEAM.pools[0], standing)[0]] == list(told.values())
    assert [sample.labels["edge"] for sample in edges.samples] == ["start", "end"]


def test_of_each_budget_the_highest_is_shown() -> None:
    slot = Slot(day_micro_usd=DOLLAR, month_micro_usd=DOLLAR)
    standing = Standing(
        spent=tuple(Spent(budget, n, 1) for budget, n in zip(slot.own.budgets, (DOLLAR, 850_000), strict=True))
    )
    seen = highest(warnings_in(Lease.new("claude", "alice"), (standing,)))
    assert names(seen) == [("usd_per_day", 95), ("usd_per_month", 80)]
