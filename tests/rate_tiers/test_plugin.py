"""The plugin as Kong sees it: frames over the plugin server's socket, a real Redis behind."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import jwt
import pytest

from claude_contract import ledger
from claude_contract.attestation import Signer
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.ledger import Lease, Quota, Window
from kong_claude import PLUGINS
from kong_claude.decision import Pass, Refuse
from kong_claude.rate_tiers import headers
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.request import Request as Asked
from kong_claude.request import RequestLine
from tests.core.test_pipeline import Kong
from tests.interop.deployments import started
from tests.rate_tiers.servers import REACHED_BY, RedisProcess, one_server
from tests.support.attest import claims_in, signed
from tests.support.kong_driver import Driver, Event, Request, RPCError, Server, plugin_server
from tests.support.stages import stage_of

SECRET = "s" * 32
SIGNER = Signer("1", SECRET.encode(), {"1": SECRET.encode()})
ATTESTATION = {"secret": SECRET, "request": "POST /claude/invoke"}
TIERS = [
    {
        "name": "free",
        "minute": 60,
        "hour": 500,
        "concurrent": 1,
        "usd_per_day": 2,
        "max_usd_per_run": 1,
        "max_turns": 5,
        "models": ["claude-haiku"],
        "tools": ["Read"],
        "egress": ["PyPI.org", "github.com:443", "*.npmjs.org:8443"],
        "api_features": ["web_fetch", "fast_mode"],
        "skills": ["pdf", "docx", "pdf"],
        "default_skills": ["docx"],
        "agents": ["reviewer"],
        "mcp": ["tickets", "memory", "tickets"],
        "ask": ["Read(/secret/**)", "Read(/secret/**)", "Agent", "mcp__tickets__*"],
        "deny": ["Read(/keys)"],
        "allow": ["Read(/secret/a.md)"],
        "four_eyes": True,
    },
    {"name": "pro", "minute": 600, "models": ["claude-haiku", "claude-opus"]},
    {"name": "team", "second": 10, "burst": 20},
    {"name": "tiny", "minute": 2, "hour": 500},
]
numbers = itertools.count()
Start = Callable[..., Any]  # a plugin instance's settings → its id


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with plugin_server(PLUGINS) as running:
        yield running


@pytest.fixture
def kong(server: Server) -> Iterator[Driver]:
    with server.driver() as driver:
        yield driver


@pytest.fixture
def subject() -> str:
    """A caller of the test's own."""
    return f"user-{next(numbers)}"


@pytest.fixture
def start(kong: Driver, redis_server: RedisProcess) -> Start:
    """On that Redis, unless `redis_url` is given."""

    def make(**config: Any) -> Any:
        base = {"policy": "redis", "redis_url": redis_server.url, "timeout_ms": 5000, "mark": "m", "route_id": "r"}
        if not {"tiers", "minute", "second"} & set(config):
            base |= {"tiers": TIERS, "default_tier": "free"}
        return kong.start_instance("claude-rate-tiers", {**base, **config})

    return make


def attested(subject: str | None, tier: str | None = None, roles: tuple[str, ...] = (), **request: Any) -> Request:
    """A request that claude-jwt-claims has let pass."""
    claims = Identity(subject, tier=tier, roles=roles).to_claims() if subject else {}
    header = signed(SIGNER, "POST", "/claude/invoke", request_id="req-1", **claims)
    sent = {"x-request-id": "req-1", "x-claude-attestation": header, **request.pop("headers", {})}
    return Request(headers=sent, **request)


def identified(subject: str, **request: Any) -> Request:
    """The same without attestations."""
    return Request(shared={"claude_identity": {"sub": subject}}, **request)


def claims_of(request: Request) -> dict[str, Any]:
    return claims_in(request.upstream_headers["x-claude-attestation"], SIGNER)


def calls(event: Event) -> list[str]:
    return [method.removeprefix("kong.") for method in event.methods]


def test_what_is_admitted_goes_into_the_attestation(kong: Driver, start: Start, subject: str) -> None:
    request = attested(subject, "free")
    event = kong.handle(start(attestation=ATTESTATION), "access", request)
    assert event.exit is None
    claims = claims_of(request)
    assert claims["chk"] == ["rate-tiers"] and claims["tier"] == "free" and claims["sub"] == subject
    assert claims["clamp"] == {
        "models": ["claude-haiku"],
        "max_turns": 5,
        "max_usd": 1,
        "tools": ["Read"],
        "egress": ["pypi.org", "github.com", "*.npmjs.org:8443"],
        "features": ["fast_mode", "web_fetch"],
        "skills": ["pdf", "docx"],
        "default_skills": ["docx"],
        "agents": ["reviewer"],
        "mcp": ["tickets", "memory"],
        "rules": {
            "ask": ["Read(/secret/**)", "Agent", "mcp__tickets__*"],
            "deny": ["Read(/keys)"],
            "allow": ["Read(/secret/a.md)"],
            "four_eyes": True,
        },
    }
    lease = Lease.parse(claims["lease"])
    assert (lease.subject_key, lease.micro_usd) == (subject, 1_000_000) and "reservation" not in claims
    assert claims["slot"] == {"concurrent": 1, "usd": 1_000_000, "usd_day": 2_000_000, "ttl_ms": 60_000}
    assert "queue" not in claims
    assert request.shared["claude_admission"] == {
        "subject": subject,
        "tier": "free",
        "lease": claims["lease"],
        "mark": "m",
    }
    assert calls(event) == [
        "request.get_headers",
        "service.request.set_headers",
        "response.set_headers",
        "ctx.shared.set",
    ]


def test_calls_without_headers_for_the_client(kong: Driver, start: Start, subject: str) -> None:
    event = kong.handle(start(attestation=ATTESTATION, hide_client_headers=True), "access", attested(subject))
    assert calls(event) == ["request.get_headers", "service.request.set_headers", "ctx.shared.set"]


@pytest.fixture
def redis_of_its_own() -> Iterator[RedisProcess]:
    """Asked by nobody else: to MONITOR all who come by a unix socket are the same."""
    one_server("MONITOR shows what one of its nodes is asked")
    with closing(started()) as server:
        yield server


def test_exactly_one_round_trip(kong: Driver, start: Start, subject: str, redis_of_its_own: RedisProcess) -> None:
    """Windows, lease and budgets: one EVALSHA. What a script does inside Redis is no round trip."""
    redis_server = redis_of_its_own
    tiers = [{**TIERS[0], "concurrent": 100, "usd_per_day": 100}]
    instance = start(attestation=ATTESTATION, tiers=tiers, redis_url=redis_server.url)
    kong.handle(instance, "access", attested(subject))
    client = redis_server.client()
    client.ping()  # what a connection begins with is seen too
    with redis_server.client().monitor() as monitor:
        for _ in range(20):
            assert kong.handle(instance, "access", attested(subject)).exit is None
        client.echo("end")
        seen = []
        for event in monitor.listen():
            if event["command"] == "ECHO end":
                break
            if event["client_type"] != "lua":
                seen.append(((event["client_address"], event["client_port"]), event["command"].split()[0]))
    of_sentinel = {"PUBLISH", "PING", "INFO"} if REACHED_BY == "sentinel" else set()
    ours = {client for client, command in seen if command == "EVALSHA"}  # a test before may have left others
    assert [command for client, command in seen if client in ours and command not in of_sentinel] == ["EVALSHA"] * 20


# Which limit is hit after how many admitted requests, and what the answer says.
REFUSALS: dict[str, tuple[dict[str, Any], int, dict[str, Any], tuple[int, int]]] = {
    "minute": ({"tiers": [{"name": "t", "minute": 3, "hour": 500}]}, 3, {"limit": "minute", "allowed": 3}, (55, 61)),
    "hour": ({"tiers": [{"name": "t", "minute": 3, "hour": 3}]}, 3, {"limit": "hour", "allowed": 3}, (3590, 3601)),
    "as nginx: 10 r/s, burst 20": ({"second": 1, "burst": 20}, 21, {"limit": "second", "allowed": 1}, (1, 1)),
    "concurrent": ({"tiers": [{"name": "t", "concurrent": 2}]}, 2, {"limit": "concurrent", "allowed": 2}, (5, 5)),
    "usd_per_day": (
        {"tiers": [{"name": "t", "usd_per_day": 2.5, "max_usd_per_run": 1}]},
        2,
        {"limit": "usd_per_day", "allowed": 2.5, "spent": 0.0, "reserved": 2.0, "needs": 1.0},
        (5, 5),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_limit(kong: Driver, start: Start, subject: str, case: str) -> None:
    config, admitted, detail, (least, most) = REFUSALS[case]
    instance = start(attestation=ATTESTATION, **config)
    for _ in range(admitted):
        assert kong.handle(instance, "access", attested(subject)).exit is None
    request = attested(subject)
    event = kong.handle(instance, "access", request)
    assert event.exit is not None and event.exit.status == 429
    body = event.exit.body
    assert body["message"].startswith("API rate limit exceeded: tier ") and body["request_id"] == "req-1"
    assert {name: body[name] for name in detail} == detail
    assert least <= int(event.exit.headers["Retry-After"]) == body["retry_after"] <= most
    # The first to meet the end of a budget logs it.
    logs = ["log.warn"] if case.startswith("usd_") else []
    assert calls(event) == ["request.get_headers", *logs, "log.set_serialize_value", "response.exit"]
    assert not request.upstream_headers and not request.shared


def test_an_operators_own_words_stay_as_they_are(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION, minute=1, error_message="Come back later")
    first, second = (kong.handle(instance, "access", attested(subject)).exit for _ in range(2))
    assert first is None and second is not None and second.body["message"] == "Come back later"


def test_a_refused_request_costs_nothing(kong: Driver, start: Start, subject: str) -> None:
    """Kong's rate-limiting lets a full minute burn the hour; here nothing is charged, whichever limit is in the way."""
    instance = start(attestation=ATTESTATION)
    report = start(report=True)

    def usage() -> dict[str, Any]:
        body = kong.handle(report, "access", identified(subject)).ended.body
        return {
            "left": [w["remaining"] for w in body["windows"]],
            "running": body["concurrent"]["running"],
            "reserved": body["usd"]["reserved"],
        }

    assert kong.handle(instance, "access", attested(subject)).exit is None
    before = usage()
    assert before == {"left": [59, 499], "running": 1, "reserved": 1.0}
    for _ in range(100):
        assert kong.handle(instance, "access", attested(subject)).ended.body["limit"] == "concurrent"
    assert usage() == before


def test_error_code_and_message(kong: Driver, start: Start, subject: str) -> None:
    instance = start(minute=1, error_code=503, error_message="Too much", attestation=ATTESTATION)
    kong.handle(instance, "access", attested(subject))
    exit_ = kong.handle(instance, "access", attested(subject)).ended
    assert (exit_.status, exit_.body["message"]) == (503, "Too much")


def test_problem_details(kong: Driver, start: Start, subject: str) -> None:
    instance = start(minute=1, attestation=ATTESTATION)
    kong.handle(instance, "access", attested(subject))
    exit_ = kong.handle(instance, "access", attested(subject, headers={"accept": "application/problem+json"})).ended
    assert exit_.headers["Content-Type"] == "application/problem+json"
    assert exit_.body["type"].endswith(":rate_limited") and exit_.body["limit"] == "minute"


SEED = {"minute": 60, "hour": 500, "hide_client_headers": False}


@pytest.mark.parametrize("policy", ["redis", "local"])
def test_the_seed_example(kong: Driver, start: Start, subject: str, policy: str) -> None:
    """Kong's own fields, no tiers: 60 a minute, 500 an hour, headers shown."""
    instance = start(policy=policy, **SEED)
    for n in range(60):
        request = identified(subject)
        assert kong.handle(instance, "access", request).exit is None
        shown = request.response_headers
        assert shown["x-ratelimit-limit-minute"] == "60" and shown["x-ratelimit-remaining-minute"] == str(59 - n)
        assert shown["x-ratelimit-limit-hour"] == "500" and shown["x-ratelimit-remaining-hour"] == str(499 - n)
        assert shown["ratelimit-limit"] == "60" and shown["ratelimit-remaining"] == str(59 - n)
        assert 50 <= int(shown["ratelimit-reset"]) <= 60
    exit_ = kong.handle(instance, "access", identified(subject)).ended
    assert exit_.status == 429 and exit_.headers["X-RateLimit-Remaining-Minute"] == "0"
    assert exit_.headers["X-RateLimit-Remaining-Hour"] == "440"


def test_retry_after_is_kept(kong: Driver, start: Start, subject: str) -> None:
    instance = start(second=2, attestation=ATTESTATION)
    for _ in range(2):
        assert kong.handle(instance, "access", attested(subject)).exit is None
    exit_ = kong.handle(instance, "access", attested(subject)).ended
    time.sleep(int(exit_.headers["Retry-After"]))
    assert kong.handle(instance, "access", attested(subject)).exit is None


STYLES = {
    "both": {"ratelimit-limit", "x-ratelimit-limit-minute", "ratelimit", "ratelimit-policy"},
    "kong": {"ratelimit-limit", "x-ratelimit-limit-minute"},
    "draft": {"ratelimit", "ratelimit-policy"},
}


@pytest.mark.parametrize("style", STYLES)
def test_header_styles(kong: Driver, start: Start, subject: str, style: str) -> None:
    request = identified(subject)
    kong.handle(start(minute=60, hour=500, header_style=style), "access", request)
    every = set().union(*STYLES.values())
    assert every & set(request.response_headers) == STYLES[style]
    if style != "kong":
        assert request.response_headers["ratelimit-policy"] == '"minute";q=60;w=60, "hour";q=500;w=3600'
        assert request.response_headers["ratelimit"] == '"minute";r=59;t=60'


def test_the_tightest_window_is_shown_as_kong_chooses_it() -> None:
    def tightest(**remaining: int) -> str:
        quotas = [Quota(Window(name, 100), left, 1000) for name, left in remaining.items()]
        return quotas[headers.tightest(quotas)].window.name

    assert tightest(minute=5, hour=3) == "hour"
    assert tightest(minute=5, hour=5) == "hour"
    assert tightest(minute=4, hour=5) == "minute"


# How the tier is found: (configuration, request's tier claim, headers, Kong's consumer) → tier
CONSUMER = {"id": "c1", "username": "alice", "tags": ["x", "tier:pro"]}
CHOICES: dict[str, tuple[dict[str, Any], str | None, dict[str, str], Any, str]] = {
    "claim": ({}, "pro", {}, None, "pro"),
    "no claim": ({}, None, {}, None, "free"),
    "unknown claim": ({}, "gold", {}, None, "free"),
    "header not configured": ({}, None, {"x-tier": "pro"}, None, "free"),
    "header configured": ({"tier_header": "X-Tier"}, None, {"x-tier": "pro"}, None, "pro"),
    "claim beats header": ({"tier_header": "X-Tier"}, "free", {"x-tier": "pro"}, None, "free"),
    "tag": ({"consumer_tier": "tag"}, None, {}, CONSUMER, "pro"),
    "tag without consumer": ({"consumer_tier": "tag"}, None, {}, None, "free"),
    "group": ({"consumer_tier": "group"}, None, {"x-consumer-groups": "a, team"}, CONSUMER, "team"),
    "group sent by a stranger": ({"consumer_tier": "group"}, None, {"x-consumer-groups": "team"}, None, "free"),
    "claim beats tag": ({"consumer_tier": "tag"}, "team", {}, CONSUMER, "team"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice_of_tier(kong: Driver, start: Start, subject: str, case: str) -> None:
    config, claim, sent, consumer, tier = CHOICES[case]
    request = attested(subject, claim, headers=sent, answers={"kong.client.get_consumer": consumer})
    assert kong.handle(start(attestation=ATTESTATION, **config), "access", request).exit is None
    assert claims_of(request)["tier"] == tier


def test_an_unknown_tier_is_logged_once(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION)
    said = []
    for n in range(3):
        request = attested(f"{subject}-{n}", "gold\nforged line")
        kong.handle(instance, "access", request)
        said += [args[0] for method, args in request.log if method == "kong.log.warn"]
    assert len(said) == 1 and "gold" in said[0] and "\n" not in said[0]


IDENTITY = {"sub": "s-1", "who": {"con": "con-1", "crd": "crd-1"}}
# limit_by: (more configuration, request) → subject key or status
SUBJECTS: dict[str, tuple[dict[str, Any], dict[str, Any], str | int]] = {
    "subject": ({}, {"shared": {"claude_identity": IDENTITY}}, "s-1"),
    "consumer": ({}, {"shared": {"claude_identity": IDENTITY}}, "consumer:con-1"),
    "consumer of Kong": (
        {"limit_by": "consumer"},
        {"answers": {"kong.client.get_consumer": {"id": "1", "username": "bob"}}},
        "consumer:bob",
    ),
    "credential": ({}, {"shared": {"claude_identity": IDENTITY}}, "credential:crd-1"),
    "credential of Kong": (
        {"limit_by": "credential"},
        {"answers": {"kong.client.get_credential": {"id": "k"}}},
        "credential:k",
    ),
    "ip": ({}, {"ip": "2001:db8::1"}, "ip:2001%3Adb8%3A%3A1"),
    "header": ({"header_name": "X-Team"}, {"headers": {"x-team": "red}"}}, "header:red%7D"),
    "header missing": ({"limit_by": "header", "header_name": "X-Team"}, {}, 400),
    "path": ({"path": "/a"}, {"answers": {"kong.nginx.get_var": "POST /a?x=1 HTTP/1.1"}}, "path:%2Fa"),
    "another path": (
        {"limit_by": "path", "path": "/a"},
        {"answers": {"kong.nginx.get_var": "POST /b HTTP/1.1"}},
        400,
    ),
    "route": ({}, {}, "route:r"),
    "service": ({}, {"answers": {"kong.router.get_service": {"id": "sv"}}}, "service:sv"),
    "nobody": ({"limit_by": "subject"}, {}, 401),
    "nobody, as consumer": ({"limit_by": "consumer"}, {}, 401),
    "nobody, by address": (
        {"limit_by": "subject", "on_missing_identity": "ip"},
        {"ip": "10.1.2.3"},
        "ip:10.1.2.3",
    ),
}


@pytest.mark.parametrize("case", SUBJECTS)
def test_what_is_counted(kong: Driver, start: Start, case: str) -> None:
    config, asked, expected = SUBJECTS[case]
    request = Request(**asked)
    event = kong.handle(start(minute=5, **{"limit_by": case.split()[0], **config}), "access", request)
    if isinstance(expected, int):
        assert event.exit is not None and event.exit.status == expected
    else:
        assert event.exit is None
        assert request.shared["claude_admission"]["subject"] == expected


def test_tags_keep_subjects_apart() -> None:
    odd = ["a", "ip:a", "{a}", "}", "{", "a}:leases", "%", "%41", "A", "a b", "ü", "x" * 97, "x" * 98, "\udcff", "\n"]
    keys = [ledger.subject_key(kind, value) for kind in ("subject", "ip", "header") for value in odd]
    assert len(set(keys)) == len(keys)
    for each in keys:
        assert each and not set(each) & set("{} \n") and len(each) < 120
        each.encode()


def test_queue_when_busy(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION, on_busy="queue")
    first, second = attested(subject), attested(subject)
    assert kong.handle(instance, "access", first).exit is None
    assert kong.handle(instance, "access", second).exit is None
    assert "queue" not in claims_of(first)
    claims = claims_of(second)
    assert claims["queue"] is True and Lease.parse(claims["lease"]) and claims["slot"]["concurrent"] == 1
    assert "lease" not in second.shared["claude_admission"], "nothing is held, so nothing is to be given back"


@pytest.mark.parametrize("prefer", ["respond-async", "wait=10, Respond-Async", "respond-async; x=1"])
def test_prefer_respond_async(kong: Driver, start: Start, subject: str, prefer: str) -> None:
    request = attested(subject, headers={"prefer": prefer})
    assert kong.handle(start(attestation=ATTESTATION), "access", request).exit is None
    assert claims_of(request)["queue"] is True


def test_reading_takes_no_lease(kong: Driver, start: Start, subject: str) -> None:
    """The invoker ends leases of runs; a GET starts none, so one of its own would stay until it lapsed."""
    instance = start(attestation={"secret": SECRET})
    for _ in range(3):
        request = Request(
            headers={"x-request-id": "r"},
            shared={"claude_identity": {"sub": subject}},
            answers={"kong.nginx.get_var": "GET /claude/runs/1 HTTP/1.1"},
        )
        assert kong.handle(instance, "access", request).exit is None
        assert "lease" not in claims_of(request)


# After the request: (instance's attestation, source of the answer, cost header) → running, spent
ENDS = {
    "invoker answered": (True, "service", "0.5", 1, 0.0),
    "refused later in the chain": (True, "exit", None, 0, 0.0),
    "could not be proxied": (True, "error", None, 0, 0.0),
    "answered, nobody else settles": (False, "service", "0.5", 0, 0.5),
    "answered without a cost": (False, "service", None, 0, 0.0),
    "answered with nonsense": (False, "service", "nan", 0, 0.0),
}


@pytest.mark.parametrize("policy", ["redis", "local"])
@pytest.mark.parametrize("case", ENDS)
def test_the_log_phase_ends_what_nobody_else_will(
    kong: Driver, start: Start, subject: str, case: str, policy: str
) -> None:
    signed, source, cost, running, spent = ENDS[case]
    tiers = [{"name": "free", "concurrent": 3, "usd_per_day": 5, "max_usd_per_run": 1}]
    config = {"policy": policy, "tiers": tiers, "namespace": f"ends-{policy}-{subject}"}
    instance = start(**config, **({"attestation": ATTESTATION} if signed else {}))
    request = attested(subject) if signed else identified(subject)
    assert kong.handle(instance, "access", request).exit is None
    request.answers = {"kong.response.get_source": source, "kong.response.get_header": cost}
    kong.handle(instance, "log", request)
    body = kong.handle(start(**config, report=True), "access", identified(subject)).ended.body
    if policy == "local" and case == "invoker answered":
        running, spent = 0, 0.5  # the invoker cannot reach this process
    assert (body["concurrent"]["running"], body["usd"]["day"]["spent"]) == (running, spent)


def test_the_log_phase_asks_only_where_there_may_be_something_to_end(kong: Driver, start: Start, subject: str) -> None:
    leases = [{"name": "free", "concurrent": 3}]
    source, left, header = "response.get_source", "ctx.shared.get", "response.get_header"
    for config, answered, expected in (
        ({"tiers": [{"name": "free", "minute": 1000}], "attestation": ATTESTATION}, "service", []),
        ({"tiers": leases, "attestation": ATTESTATION}, "service", [source]),
        ({"tiers": leases, "attestation": ATTESTATION}, "exit", [source, left]),
        ({"tiers": leases, "attestation": ATTESTATION, "on_error": "local"}, "service", [source, left]),
        ({"tiers": leases}, "service", [source, left, header]),
    ):
        request = attested(subject) if "attestation" in config else identified(subject)
        instance = start(**config)
        assert kong.handle(instance, "access", request).exit is None
        request.answers = {"kong.response.get_source": answered}
        assert calls(kong.handle(instance, "log", request)) == expected


def test_shadow_mode_never_refuses(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION, mode="shadow", tiers=[{"name": "t", "minute": 2, "models": ["m"]}])
    for n in range(5):
        request = attested(subject, body=b'{"model": "other"}')
        assert kong.handle(instance, "access", request).exit is None
        assert request.shared["claude_admission"].get("shadow") == (None if n < 2 else "minute")
        assert any(method == "kong.log.warn" for method, _ in request.log) == (n >= 2)
        assert claims_of(request)["chk"] == ["rate-tiers"]


MODELS = {
    "allowed": (b'{"model": "claude-haiku"}', None),
    "another": (b'{"model": "claude-opus"}', 403),
    "none named": (b'{"prompt": "hi"}', None),
    "null": (b'{"model": null}', None),
    "not a string": (b'{"model": ["claude-haiku"]}', 403),
    "named twice": (b'{"model": "claude-opus", "model": "claude-haiku"}', 403),
    "escaped name": (b'{"\\u006dodel": "claude-opus"}', 403),
    "nothing": (b"", None),
    "not JSON": (b"\xff", 400),
    "not an object": (b'["claude-opus"]', 400),
    "UTF-16": ('{"model": "claude-haiku"}'.encode("utf-16"), 400),
    "many values": (b'{"model": "claude-haiku", "x": [' + b"[]," * 150_000 + b"1]}", 400),
    "many values behind half of a quote": (
        ('{"model": "claude-haiku", "\u2200": [' + "[]," * 150_000 + "1]}").encode("utf-16-le"),
        400,
    ),
    "deep": (b'{"model": "claude-opus", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "large": (b'{"model": "claude-opus", "x": "' + b"x" * (1 << 20) + b'"}', 413),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_outside_the_tier(kong: Driver, start: Start, subject: str, case: str) -> None:
    """Where no attestation carries the clamp, the body is read here."""
    body, status = MODELS[case]
    request = identified(subject, body=body, answers={"kong.nginx.get_var": "POST /claude/invoke HTTP/1.1"})
    event = kong.handle(start(), "access", request)
    if status is None:
        assert event.exit is None
    else:
        assert event.ended.status == status
        assert event.ended.body.get("allowed_models") == (["claude-haiku"] if status == 403 else None)


def test_with_an_attestation_the_body_is_not_read(kong: Driver, start: Start, subject: str) -> None:
    request = attested(subject, body=b'{"model": "claude-opus"}')
    event = kong.handle(start(attestation=ATTESTATION), "access", request)
    assert event.exit is None and "request.get_raw_body" not in calls(event)
    assert claims_of(request)["clamp"]["models"] == ["claude-haiku"]


MESSAGES = [{**TIERS[0], "messages": {"minute": 2, "concurrent": 2}}, *TIERS[1:]]


def test_the_model_in_the_body_decides_by_which_limits_a_request_is_counted(
    kong: Driver, start: Start, subject: str
) -> None:
    instance = start(attestation=ATTESTATION, by_model=True, tiers=MESSAGES, default_tier="free")

    def asked(body: bytes, tier: str = "free") -> tuple[Request, Event]:
        request = attested(subject, tier, body=body)
        return request, kong.handle(instance, "access", request)

    for _ in range(2):
        request, event = asked(b'{"model": "claude-haiku"}')
        assert event.exit is None
        claims = claims_of(request)
        lease = Lease.parse(claims["lease"])
        assert claims["msg"] is True and lease.is_message and lease.micro_usd == 0
        assert claims["clamp"]["models"] == ["claude-haiku"] and claims["bsh"]
        assert claims["slot"] == {"concurrent": 2, "usd_day": 2_000_000, "ttl_ms": 60_000}
        assert request.response_headers["x-ratelimit-limit-minute"] == "2"
    _, event = asked(b'{"model": "claude-haiku"}')
    assert event.ended.status == 429
    assert (event.ended.body["limit"], event.ended.body["of"]) == ("minute", "messages")
    # Runs have theirs, and what is neither counts as one.
    request, event = asked(b'{"model": "claude-haiku", "model": "claude-code"}')
    assert event.exit is None and "msg" not in claims_of(request)
    assert not Lease.parse(claims_of(request)["lease"]).is_message
    for body in (b"{", b"[]", b'{"model": 1}', b'{"model": "claude-code-opus"}'):
        assert asked(body)[1].ended.body["limit"] == "concurrent"
    _, event = asked(b'{"model": "claude-haiku"}', "pro")
    assert event.ended.status == 403 and "claude-code" in event.ended.body["message"]


@pytest.mark.parametrize(
    ("more", "passes"),
    [({}, False), ({"on_error": "allow"}, True), ({"on_error": "local"}, True), ({"mode": "shadow"}, True)],
    ids=str,
)
def test_where_limits_cannot_be_checked(
    kong: Driver, start: Start, subject: str, more: dict[str, str], passes: bool
) -> None:
    """What passes all the same is attested as what it is, without a place of its own."""
    nowhere = {"redis_url": "redis://127.0.0.1:1/0", "attestation": ATTESTATION, "by_model": True}
    instance = start(**nowhere, tiers=MESSAGES, default_tier="free", **more)
    for body, is_message in ((b'{"model": "claude-haiku"}', True), (b'{"model": "claude-code"}', False)):
        request = attested(subject, "free", body=body)
        event = kong.handle(instance, "access", request)
        if passes:
            claims = claims_of(request)
            assert event.exit is None and claims["clamp"]["models"] == ["claude-haiku"]
            assert (claims.get("msg", False), "lease" in claims) == (is_message, False)
        else:
            assert (event.ended.status, event.ended.headers["Retry-After"]) == (503, "1")


def test_report(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION)
    request = attested(subject)
    kong.handle(instance, "access", request)
    event = kong.handle(start(report=True), "access", identified(subject))
    assert event.ended.status == 200
    body = event.ended.body
    assert body["tier"] == "free" and body["models"] == ["claude-haiku"] and body["max_turns"] == 5
    assert body["api_features"] == ["fast_mode", "web_fetch"] and "features" not in body
    assert [(w["name"], w["limit"], w["remaining"]) for w in body["windows"]] == [
        ("minute", 60, 59),
        ("hour", 500, 499),
    ]
    assert all(0 < w["reset_s"] <= w["window_s"] for w in body["windows"])
    assert body["concurrent"] == {"limit": 1, "running": 1}
    assert body["usd"]["reserved"] == 1.0 and body["usd"]["day"]["limit"] == 2.0
    assert 0 < body["usd"]["day"]["reset_s"] <= 86400
    again = kong.handle(start(report=True), "access", identified(subject)).ended.body
    assert again["windows"][0]["remaining"] == 59, "asking costs nothing"


def test_a_forged_attestation_is_nobody(kong: Driver, start: Start, subject: str) -> None:
    forged = jwt.encode({"sub": subject, "tier": "pro"}, "x" * 32, algorithm="HS256", headers={"kid": "1"})
    event = kong.handle(
        start(attestation=ATTESTATION), "access", Request(headers={"x-claude-attestation": forged, "x-request-id": "r"})
    )
    assert event.ended.status == 401


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing limited": ({"tiers": []}, "tiers: "),
    "no default": ({"tiers": TIERS}, "default_tier: "),
    "unknown default": ({"tiers": TIERS, "default_tier": "gold"}, "default_tier: "),
    "two of a name": ({"tiers": [TIERS[0], TIERS[0]], "default_tier": "free"}, "tiers[2].name: "),
    "hour below minute": ({"minute": 10, "hour": 5}, "hour: "),
    "burst alone": ({"tiers": [{"name": "t", "burst": 5}]}, "tiers[1].burst: "),
    "budget without a price": ({"tiers": [{"name": "t", "usd_per_day": 5}]}, "tiers[1].max_usd_per_run: "),
    "price over budget": ({"tiers": [{"name": "t", "usd_per_day": 5, "max_usd_per_run": 6}]}, "tiers[1].max_usd"),
    "half a request": ({"minute": 1.5}, "minute: "),
    "no such kind": ({"minute": 1, "limit_by": "nobody"}, "limit_by: must be one of "),
    "header without name": ({"minute": 1, "limit_by": "header"}, "header_name: "),
    "path without path": ({"minute": 1, "limit_by": "path"}, "path: "),
    "vault reference unresolved": ({"minute": 1, "redis_url": ""}, "redis_url: "),
    "no scheme": ({"minute": 1, "redis_url": "localhost:6379"}, "redis_url: "),
    "cluster without port": ({"minute": 1, "redis_url": "redis+cluster://a,b"}, "redis_url: "),
    "sentinel without service": (
        {"minute": 1, "redis_url": "redis+sentinel://a:1"},
        "redis_url: must name the Sentinel's service in its path",
    ),
    "sentinel with a database that is none": (
        {"minute": 1, "redis_url": "redis+sentinel://a:1/main/x"},
        "redis_url: must have a number as its database",
    ),
    "a password with a slash": (
        {"minute": 1, "redis_url": "redis://:hun/ter2@h:6379/0"},
        "redis_url: is not a URL of Redis that can be used",
    ),
    "a file of authorities that is not there": (
        {"minute": 1, "redis_host": "h", "redis_ssl": True, "redis_ca_file": "/nowhere/ca.pem"},
        "redis_ca_file: is not there",
    ),
    "the Sentinels' user without Sentinels": (
        {"minute": 1, "redis_url": "redis://h:1/0", "redis_sentinel_username": "s"},
        "redis_sentinel_username: needs a redis_url of redis+sentinel://",
    ),
    "the Sentinels' password without Sentinels": (
        {"minute": 1, "redis_url": "redis://h:1/0", "redis_sentinel_password": "hunter2"},
        "redis_sentinel_password: needs a redis_url of redis+sentinel://",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configuration_is_refused_by_name(start: Start, case: str) -> None:
    config, said = BAD[case]
    with pytest.raises(RPCError, match=re.escape(said)) as refused:
        start(**config)
    assert "ter2" not in str(refused.value)


def test_a_frozen_redis_holds_up_nobody_else(
    server: Server, kong: Driver, start: Start, subject: str, own_redis: RedisProcess
) -> None:
    """Two instances in one server process: while one waits for its Redis, the other answers."""
    slow = start(minute=100, redis_url=own_redis.url, timeout_ms=1500)
    quick = start(minute=1000, attestation=ATTESTATION)
    own_redis.signal(signal.SIGSTOP)
    refused: list[int] = []

    def wait_for_the_slow_one() -> None:
        with server.driver() as other:
            refused.append(other.handle(slow, "access", identified(subject)).ended.status)

    waiting = [threading.Thread(target=wait_for_the_slow_one) for _ in range(4)]
    for thread in waiting:
        thread.start()
    answered = 0
    while any(thread.is_alive() for thread in waiting):
        assert kong.handle(quick, "access", attested(subject)).exit is None or answered >= 1000
        answered += 1
    assert refused == [503] * 4
    assert answered > 20, "the server stood still while one Redis was silent"


@pytest.mark.parametrize(
    ("tier", "features"),
    [
        ({}, ["context_1m", "web_search"]),
        ({"tools": ["Read", "WebSearch"]}, ["context_1m", "web_search"]),
        ({"tools": ["Read"]}, ["context_1m"]),
        ({"api_features": []}, []),
    ],
)
def test_what_a_tier_has_that_says_nothing_of_api_features_is_told(
    kong: Driver, start: Start, subject: str, tier: dict[str, Any], features: list[str]
) -> None:
    """By the name of the tier's field, and as the invoker understands it (`plan.features_of`)."""
    report = start(tiers=[{"name": "free", "minute": 60, **tier}], report=True)
    assert kong.handle(report, "access", identified(subject)).ended.body["api_features"] == features


@pytest.mark.parametrize(("most", "kind"), [(32 << 20, "kind"), (1 << 20, "model"), (8 << 20, "graphql")])
def test_how_large_a_body_may_be_that_is_looked_into(most: int, kind: str) -> None:
    tiers = [{"name": "t", "minute": 9, "models": ["m"], "messages": {"minute": 9}}]
    by = {"kind": {"by_model": True}, "graphql": {"by_operation": True}, "model": {}}[kind]
    signs = {"attestation": ATTESTATION} if by else {}
    made = stage_of(RateTiers, {"tiers": tiers, "limit_by": "ip", **by, **signs})
    for length, fits in ((most, True), (most + 1, False)):
        sent = {"content-length": str(length), "x-request-id": "r"}
        answers = {"request.get_raw_body": b"{}", "client.get_forwarded_ip": "192.0.2.1"}
        request = Asked(Kong(sent, **answers), static_line=RequestLine("POST", "/claude/invoke", ""))
        found = made.access(request)
        assert isinstance(found, Pass) if fits else isinstance(found, Refuse) and found.status == 413


QUERY, MUTATION = b'{"query": "{ limits }"}', b'{"query": "mutation { cancel(id: 1) { id } }"}'


def test_of_graphql_only_what_may_start_something_is_counted(kong: Driver, start: Start, subject: str) -> None:
    instance = start(attestation=ATTESTATION, by_operation=True, tiers=TIERS, default_tier="free")

    def asked(body: bytes, **headers: str) -> tuple[Request, Event]:
        request = attested(subject, "free", body=body, headers=headers)
        return request, kong.handle(instance, "access", request)

    for _ in range(3):
        request, event = asked(QUERY)
        assert event.exit is None
        claims = claims_of(request)
        assert "rate-tiers" not in claims["chk"] and not {"lease", "clamp"} & set(claims) and claims["bsh"]
        assert json.loads(request.upstream_headers["x-claude-limits"])["tier"] == "free"
    forged, _ = asked(b'{"query": "{ jobs { next } }"}', **{"x-claude-limits": "{}", "x_claude_limits": "{}"})
    for name in ("x-claude-limits", "x_claude_limits"):
        assert not forged.upstream_headers[name], "what a client sends does not go on"
    request, event = asked(MUTATION, **{"x-claude-limits": "{}"})
    assert event.exit is None and "rate-tiers" in claims_of(request)["chk"] and claims_of(request)["lease"]
    assert not request.upstream_headers["x-claude-limits"]
    # What cannot be read counts as one, and now no place is free.
    for body in (MUTATION, b"{", b"[]", b'{"query": 1}', b'{"query": "query { a } mutation { b }"}'):
        assert asked(body)[1].ended.body["limit"] == "concurrent"


def test_a_page_is_told_what_is_left_and_nothing_is_counted(kong: Driver, start: Start, subject: str) -> None:
    """Of the caller's own limits; of another's for an admin alone. What is told of oneself is what the report says."""
    given = {"attestation": ATTESTATION, "tiers": TIERS, "default_tier": "free"}
    telling, counting = start(tell=True, **given), start(**given)
    reporting = start(report=True, **given)
    assert kong.handle(counting, "access", attested(subject, "pro")).exit is None

    def told(who: str, tier: str = "pro", query: str = "", **more: Any) -> dict[str, Any]:
        request = attested(who, tier, answers={"kong.request.get_raw_query": query}, **more)
        event = kong.handle(telling, "access", request)
        assert event.exit is None, event.ended
        claims = claims_of(request)
        assert "rate-tiers" not in claims["chk"] and "lease" not in claims and claims["tier"] == tier
        assert not request.upstream_headers.get("x_claude_limits")
        return dict(json.loads(request.upstream_headers["x-claude-limits"]))

    for _ in range(2):  # asking costs nothing
        own = told(subject, headers={"x-claude-limits": '{"tier": "forged"}', "x_claude_limits": "{}"})
        said = kong.handle(reporting, "access", attested(subject, "pro")).ended.body
        assert own == {name: said[name] for name in own} and own["tier"] == "pro" and "windows" in own
    admin: dict[str, Any] = {"roles": ("admin",)}
    seen = told("root", "free", f"sub={subject}&tier=pro", **admin)
    assert seen == own | {"sub": subject, "unknown_pools": []}
    assert told("root", "free", f"sub={subject}&tier=", **admin)["tier"] == "free", "the default one"
    assert told("root", "free", "tier=pro", **admin) == told("root", "free", **admin), "of nobody else: his own"
    assert told("mallory", "free", f"sub={subject}&tier=pro") == told("mallory", "free"), "not for others"
    for query, problem in ((f"sub={subject}&tier=gold", "no tier 'gold'"), ("sub=a&x=b", "'x', which is not known")):
        assert problem in told("root", "free", query, **admin)["problem"]


@pytest.mark.parametrize(("pools", "fits"), [(1, True), (4, False)])
def test_limits_that_no_header_has_room_for_are_told_to_be_that(pools: int, fits: bool) -> None:
    """Else the page would say that its route does not tell it any."""
    zone: dict[str, Any] = {"zone": "America/Argentina/Buenos_Aires"}
    budgets = [{"usd": 9, "per": per} | zone for per in ("day", "week", "month")]
    shared = [{"name": f"pool-{n}", "by": "deployment", "hour": 9, "budgets": budgets} for n in range(pools)]
    tiers = [{"name": "t", "minute": 9, "budgets": budgets, "max_usd_per_run": 1}]
    telling = {"tell": True, "limit_by": "ip", "attestation": ATTESTATION}
    made = stage_of(RateTiers, {"tiers": tiers, "pools": shared, **telling})
    asked = Kong({"x-request-id": "r"}, **{"client.get_forwarded_ip": "192.0.2.1"})
    found = made.access(Asked(asked, static_line=RequestLine("GET", "/claude/dashboard/limits", "")))
    assert isinstance(found, Pass)
    header = found.upstream_headers["X-Claude-Limits"]
    assert header is not None and len(header) <= 4096
    told = json.loads(header)
    assert "windows" in told if fits else "GET /claude/limits" in told["problem"]


@pytest.mark.parametrize("more", [{"report": True}, {"by_model": True}, {"by_operation": True}, {"attestation": None}])
def test_telling_is_of_a_route_of_its_own(redis_server: RedisProcess, more: dict[str, Any]) -> None:
    config = {"policy": "redis", "redis_url": redis_server.url, "tiers": MESSAGES, "default_tier": "free"}
    given = config | {"tell": True, "attestation": ATTESTATION} | more
    with pytest.raises(ConfigError) as refused:
        stage_of(RateTiers, {name: value for name, value in given.items() if value is not None})
    assert refused.value.field_name in ("tell", "by_operation", "by_model", "tiers[0].messages"), refused.value


@pytest.mark.parametrize("more", [{"report": True}, {"by_model": True}, {"admin": True}, {"attestation": None}])
def test_by_operation_is_of_a_route_of_its_own(redis_server: RedisProcess, more: dict[str, Any]) -> None:
    config = {"policy": "redis", "redis_url": redis_server.url, "tiers": MESSAGES, "default_tier": "free"}
    given = config | {"by_operation": True, "attestation": ATTESTATION} | more
    with pytest.raises(ConfigError) as refused:
        stage_of(RateTiers, {name: value for name, value in given.items() if value is not None})
    assert refused.value.field_name in ("by_operation", "by_model", "tiers[0].messages", "admin"), refused.value
