"""What becomes of a request that the gateway attests, without a CLI: its lease, its additions, its one use."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, Request
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import SecretStr

from claude_contract import ledger
from claude_contract.attestation import HEADER, Signer, in_force, new_private_key
from claude_contract.claims import Additions, Attestation, Binding, body_hash
from claude_contract.identity import Identity
from claude_contract.members import AttestationError
from claude_invoker.additions import with_additions
from claude_invoker.api.replicas import was_forwarded
from claude_invoker.app import create_app
from claude_invoker.caller import DEVELOPER, Caller, caller_in
from claude_invoker.problem import Problem
from claude_invoker.replay import SKEW_S, SeenOnce
from claude_invoker.replicas.forwarding import Forwarder
from claude_invoker.services import Replicas
from claude_invoker.settings import Settings
from claude_invoker.trust import attested, attested_form, attested_run, keys
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.catalog.support import write_agent, write_skill
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed
from tests.support.waiting import HANG_S

SECRET = secrets.token_hex(32)
SIGNER = Signer("1", SECRET.encode(), {"1": SECRET.encode()})
ALL = ["jwt-claims", "prompt-context", "rate-tiers"]


def attestation(path: str, body: bytes, **claims: Any) -> dict[str, str]:
    given = {"sub": "alice", "chk": ALL, "bsh": body_hash(body)} | claims
    return {HEADER: signed(SIGNER, "POST", path, **given)}


@asynccontextmanager
async def application(
    tmp_path: Path, replica: Signer | None = None, seen: list[Caller] | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The application, with some more routes: one starts something if it is told to. `replica`: as whom others sign to
    it; `seen`: gets the callers who look."""
    chosen: dict[str, Any] = {"attestation_key": SECRET, "state_dir": tmp_path, "pool_size": 0} | settings
    app = create_app(Settings(**chosen))
    if replica is not None:
        register: Any = SimpleNamespace(name="me", signer=lambda audience: {"me": replica}[audience])
        others = Replicas(register, Forwarder(1.0))
        app.state.services = dataclasses.replace(app.state.services, replicas=others)

    @app.post("/starts")
    async def starts(request: Request, caller: Annotated[Caller, Depends(attested_run)]) -> dict[str, Any]:
        before = request.state.started
        request.state.started = request.headers["x-starts"] == "yes"
        return {"before": before, "subject": caller.subject, "forwarded": was_forwarded(request)}

    @app.post("/looks")
    async def looks(caller: Annotated[Caller, Depends(attested)]) -> str:
        if seen is not None:
            seen.append(caller)
        return caller.subject

    @app.post("/form")
    async def form(request: Request, caller: Annotated[Caller, Depends(attested_form)]) -> str:
        request.state.started = True
        return caller.subject

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://invoker") as client:
        yield client


SLOT = ledger.Slot(concurrent=1, run_micro_usd=5, ttl_ms=3_600_000)
"""Of a lease that does not lapse meanwhile: that one is gone would otherwise say nothing."""


def taken(redis_server: RedisProcess) -> tuple[RedisLedger, ledger.Lease]:
    """A ledger in which there is a lease, which ada has."""
    store = RedisLedger(RedisAddress(redis_server.url, timeout=HANG_S))
    lease = ledger.Lease.new(ledger.NAMESPACE, "ada", 5)
    assert store.acquire(lease, SLOT).admitted
    return store, lease


@pytest.mark.parametrize("started", [False, True])
async def test_the_lease_is_given_back_where_nothing_was_started_and_only_there(
    tmp_path: Path, redis_server: RedisProcess, started: bool
) -> None:
    store, lease = taken(redis_server)
    headers = attestation("/starts", b"", lease=str(lease), slot=SLOT.claim()) | {
        "X-Starts": "yes" if started else "no"
    }
    async with application(tmp_path, redis_url=redis_server.url) as client:
        answered = await client.post("/starts", headers=headers)
        assert answered.json() == {"before": False, "subject": "alice", "forwarded": False}
    assert store.peek(ledger.Peek(ledger.NAMESPACE, "ada")).running == int(started)
    store.close()


@pytest.mark.parametrize("body", [b"not json", b"{}", b'{"prompt": "x", "tools": ["Nope"]}'])
async def test_a_request_that_is_refused_gives_its_lease_back(
    tmp_path: Path, redis_server: RedisProcess, body: bytes
) -> None:
    store, lease = taken(redis_server)
    headers = attestation("/invoke", body, lease=str(lease), slot=SLOT.claim())
    async with application(tmp_path, redis_url=redis_server.url) as client:
        assert (await client.post("/invoke", content=body, headers=headers)).status_code in (400, 403, 422)
    assert store.peek(ledger.Peek(ledger.NAMESPACE, "ada")).running == 0
    store.close()


async def test_without_redis_there_is_no_lease_to_give_back(tmp_path: Path) -> None:
    headers = attestation("/starts", b"", lease=str(ledger.Lease.new(ledger.NAMESPACE, "ada", 5)))
    async with application(tmp_path) as client:
        assert (await client.post("/starts", headers=headers | {"X-Starts": "no"})).status_code == 200


async def test_an_open_invoker_has_one_caller_who_may_everything(tmp_path: Path) -> None:
    async with application(tmp_path, trust="open", attestation_key=None) as client:
        answered = await client.post("/starts", headers={"X-Starts": "no"})
        assert answered.json()["subject"] == "developer"
    assert (DEVELOPER.subject, DEVELOPER.roles, DEVELOPER.route) == ("developer", ("admin",), "open")


async def test_in_an_open_invoker_a_run_may_have_all_of_the_catalog(tmp_path: Path) -> None:
    write_skill(tmp_path / "catalog", "words")
    write_agent(tmp_path / "catalog", "reviewer")
    seen: list[Caller] = []
    async with application(
        tmp_path, seen=seen, trust="open", attestation_key=None, catalog=tmp_path / "catalog"
    ) as client:
        await client.post("/looks")
    (clamp,) = [caller.clamp for caller in seen]
    assert {"words", "docx"} < set(clamp.skills), "ours are there, too"
    assert (clamp.agents, clamp.mcp) == (("reviewer",), ("memory",))


@pytest.mark.parametrize("trust", ["attested", "open"])
async def test_who_looks_at_the_login_page_came_through_the_limits(tmp_path: Path, trust: str) -> None:
    """`attested_visitor` needs no caller, but an attestation of claude-rate-tiers, and each once."""
    key: dict[str, Any] = {"attestation_key": SECRET if trust == "attested" else None}
    async with application(tmp_path, trust=trust, **key) as client:
        path = "/dashboard/login"
        without = (await client.get(path)).status_code
        assert (without == 401) is (trust == "attested")
        if trust == "attested":
            header = {HEADER: signed(SIGNER, "GET", path, chk=["rate-tiers"])}
            assert [(await client.get(path, headers=header)).status_code for _ in range(2)] == [200, 401]
            assert (await client.get(path, headers={HEADER: signed(SIGNER, "GET", path, chk=[])})).status_code == 401


@pytest.mark.parametrize("sign_on", [None, "/oauth2", "https://claude.example.com/oauth2"])
async def test_where_oauth2_proxy_keeps_the_session_login_and_logout_are_its(
    tmp_path: Path, sign_on: str | None
) -> None:
    async with application(tmp_path, trust="open", attestation_key=None, single_sign_on=sign_on) as client:
        shown = await client.get("/claude/dashboard/login")
        page, policy = shown.text, shown.headers["content-security-policy"].split("; ")
        ours = {"Sec-Fetch-Site": "same-origin"}
        out = await client.post("/claude/dashboard/login/out", headers=ours)
        junk = await client.post("/claude/dashboard/login", headers=ours, content=b"token=junk")
    assert ("Access token" in page) == (sign_on is None)
    # Chromium holds what a form's answer leads to, too, to the page's policy: the button did nothing.
    elsewhere = " https://claude.example.com" if sign_on == "https://claude.example.com/oauth2" else ""
    assert f"form-action 'self'{elsewhere}" in policy
    assert (out.status_code, junk.status_code) == (303, 422)
    # A token that was kept before goes, too.
    assert out.headers["set-cookie"].startswith('claude_token=""; HttpOnly; Max-Age=0; Path=/claude/dashboard;')
    if sign_on is None:
        assert out.headers["location"] == "/claude/dashboard/login"
        assert "That is not a token" in junk.text
    else:
        assert out.headers["location"] == f"{sign_on}/sign_out?rd=%2Fclaude%2Fdashboard%2Flogin"
        assert f'href="{sign_on}/start?rd=%2Fclaude%2Fdashboard"' in page


@pytest.mark.parametrize(
    "value",
    [
        "",
        "oauth2",
        "/",
        "//evil.example",
        "/oauth2/",
        "javascript:x/y",
        "/oauth2?rd=x",
        "https://x",
        "https://x;script-src/a",
    ],
)
def test_what_is_no_place_of_oauth2_proxys_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="single_sign_on"):
        Settings(trust="open", attestation_key=None, single_sign_on=value)


def test_without_a_key_only_an_open_invoker_starts() -> None:
    with pytest.raises(ValueError, match="INVOKER_ATTESTATION_KEY is not set"):
        keys(Settings(trust="attested", attestation_key=None))
    assert keys(Settings(trust="open", attestation_key=None)) == {}


def test_of_an_old_and_a_new_key_either_may_be_missing_and_each_is_named_where_it_is_wrong() -> None:
    old, new = "o" * 32, "n" * 32
    both = Settings(
        attestation_key=SecretStr(new),
        attestation_kid="n",
        attestation_previous_key=SecretStr(old),
        attestation_previous_kid="o",
    )
    assert keys(both) == {"n": new.encode(), "o": old.encode()}
    assert keys(both.model_copy(update={"attestation_key": None})) == {"o": old.encode()}
    assert keys(both.model_copy(update={"attestation_previous_key": None})) == {"n": new.encode()}
    for field, name in (
        ("attestation_key", "INVOKER_ATTESTATION_KEY"),
        ("attestation_previous_key", "INVOKER_ATTESTATION_PREVIOUS_KEY"),
    ):
        for wrong, said in (
            ("x" * 31, "needs at least 32 bytes"),
            (new_private_key(), "is a private key: only the gateway signs"),
            ("-----BEGIN nothing", ""),
        ):
            with pytest.raises(ValueError, match=f"^{name} {said}|^{name}: ") as refused:
                keys(both.model_copy(update={field: SecretStr(wrong)}))
            assert wrong not in str(refused.value)


async def test_why_an_attestation_is_not_believed_is_in_the_challenge(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        header = {HEADER: signed(SIGNER, "POST", "/starts", sub="alice", chk=ALL), "X-Starts": "no"}
        said = [(await client.post("/starts", headers=sent)) for sent in ({}, header, header)]
    assert [answer.status_code for answer in said] == [401, 200, 401]
    reasons = [answer.headers.get("www-authenticate") for answer in said]
    assert reasons == ['X-Claude-Attestation error="missing"', None, 'X-Claude-Attestation error="replay"']


@pytest.mark.parametrize(("path", "whole"), [("/starts", True), ("/looks", True), ("/form", False)])
async def test_a_body_is_held_against_what_the_gateway_saw_of_it(tmp_path: Path, path: str, whole: bool) -> None:
    """A form's is read later, so that one of which the gateway has seen anything is not taken at all."""
    seen, starts = b'{"prompt": "hi"}', {"X-Starts": "no"}
    async with application(tmp_path) as client:
        for body, expected in ((seen, 200 if whole else 401), (b'{"prompt": "ho"}', 401), (b"", 401)):
            answered = await client.post(path, content=body, headers=attestation(path, seen) | starts)
            assert answered.status_code == expected, body
        unseen = {HEADER: signed(SIGNER, "POST", path, sub="alice", chk=ALL)} | starts
        assert (await client.post(path, content=seen, headers=unseen)).status_code == 200


async def test_another_invoker_is_believed_by_its_own_key_and_for_this_one_alone(tmp_path: Path) -> None:
    """And is known as one, so that a request is not handed on a second time."""
    key = secrets.token_bytes(32)
    ours = Signer("replicas", key, {"replicas": key}, issuer="claude-invoker", audience="me")
    elsewhere = dataclasses.replace(ours, audience="another")
    forged = dataclasses.replace(ours, key=SECRET.encode())
    async with application(tmp_path, replica=ours) as client:
        for signer, expected in ((ours, (200, True)), (SIGNER, (200, False))):
            header = {HEADER: signed(signer, "POST", "/starts", sub="alice", chk=ALL), "X-Starts": "no"}
            answered = await client.post("/starts", headers=header)
            assert (answered.status_code, answered.json()["forwarded"]) == expected
        for signer in (elsewhere, forged):
            header = {HEADER: signed(signer, "POST", "/starts", sub="alice", chk=ALL), "X-Starts": "no"}
            assert (await client.post("/starts", headers=header)).status_code == 401


def test_a_caller_is_what_the_attestation_says() -> None:
    bound = Attestation(Binding("i", "a", "POST", "/x", "route-1", "req-1"), 0, 30, "j", identity=Identity("ada"))
    found = caller_in(bound)
    assert (found.subject, found.route, found.request_id) == ("ada", "route-1", "req-1")
    bare = caller_in(replace(bound, binding=Binding("i", "a", "POST", "/x", "", "")))
    assert (bare.route, bare.request_id) == (None, None)


@pytest.mark.parametrize(
    ("caller", "subject", "owns", "sees", "decides"),
    [
        (Caller("ada"), "ada", True, True, True),
        (Caller("ada", roles=("admin",), permissions=("claude:approve",)), "ada", True, True, True),
        (Caller("ada", roles=("team", "administrator"), permissions=("admin",)), "bob", False, False, False),
        (Caller("ada", roles=("team", "administrator")), "", False, False, False),
        (Caller("ada", roles=("team", "admin")), "bob", False, True, False),
        (Caller("ada", roles=("claude:approve",)), "bob", False, False, True),
        (Caller("ada", permissions=("claude:invoke", "claude:approve")), "bob", False, False, True),
        (Caller("ada", permissions=("claude:approver",)), "bob", False, False, False),
    ],
)
def test_whose_runs_a_caller_steers_sees_and_decides_about(
    caller: Caller, subject: str, owns: bool, sees: bool, decides: bool
) -> None:
    found = caller.owns(subject), caller.may_see(subject), caller.may_decide(subject), caller.may_look_on(subject)
    assert found == (owns, sees, decides, sees or decides)


@given(*[st.tuples(st.text(), st.text())] * 2)
def test_what_is_kept_by_its_owner_is_no_others(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Whoever is called the same by another issuer, or has an odd name, is another."""
    first, second = (Caller(subject, issuer=issuer).owner for subject, issuer in (one, other))
    assert (first == second) == (one == other)
    assert re.fullmatch("[0-9a-f]{64}", first)
    odd = [Caller("b\0c", issuer="a"), Caller("c", issuer="a\0b"), Caller("\ud800"), Caller("\ud801"), Caller("?")]
    assert len({caller.owner for caller in odd}) == len(odd)


def test_a_commit_names_its_caller_and_nothing_that_could_pose_as_another_line_or_address() -> None:
    assert Caller("XX ada", email="ada@example.com").as_author == "XX ada <ada@example.com>"
    assert Caller("ada").as_author == "ada <>"
    odd = Caller("ada <root@x>\nparent 0", email="a\0b>\r\n <c@d")
    assert odd.as_author == "ada root@xparent 0 <ab c@d>"


def test_a_caller_is_counted_as_a_run_where_nothing_else_is_said() -> None:
    assert (Caller("ada").kind, DEVELOPER.kind) == ("run", None)


# The gateway's additions

ADDED = Additions("Before. ", " After.", {"repo": "org/app"}, ("tools",))


def test_what_the_gateway_adds_is_around_what_the_caller_wrote() -> None:
    document = {"prompt": "hi", "system": "Be brief.", "tools": ["Bash"], "context": {"repo": "mine", "a": "b"}}
    assert with_additions(document, ADDED) == {
        "prompt": "hi",
        "system": "Before. Be brief. After.",
        "context": {"a": "b", "repo": "org/app"},
    }
    assert with_additions(document, Additions()) is document


@pytest.mark.parametrize("broken", [{"system": 5}, {"system": [5]}, {"context": "org/app"}, {"context": ["org/app"]}])
async def test_what_the_additions_do_not_fit_into_is_422_with_the_reason(
    tmp_path: Path, broken: dict[str, Any]
) -> None:
    with pytest.raises(Problem) as refused:
        with_additions({"prompt": "hi", **broken}, ADDED)
    (name,) = broken
    assert (refused.value.status, refused.value.kind) == (422, "invalid")
    assert (refused.value.detail or "").startswith(f"{name} must be ")
    async with application(tmp_path) as client:
        request = client.build_request("POST", "/invoke", json={"prompt": "hi", **broken})
        request.headers.update(
            attestation("/invoke", request.read(), add={"prepend": "Before.", "context": {"a": "b"}})
        )
        answered = await client.send(request)
    assert (answered.status_code, answered.json()["detail"]) == (422, refused.value.detail)


# One use of each attestation


async def test_a_use_is_remembered_for_as_long_as_the_attestation_can_be_used(redis_server: RedisProcess) -> None:
    """And not for ever, in Redis or in memory. By Redis's own clock."""
    client: Any = redis_server.client()
    seen = SeenOnce(redis_server.url)
    assert [await seen.first("a", 300) for _ in range(2)] == [True, False]
    assert 300 + 4 * SKEW_S - 30 < client.ttl("claude:jti:a") <= 300 + 4 * SKEW_S + 1
    assert await seen.obstacle() is None
    await seen.close()


async def test_memory_forgets_only_what_can_be_used_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SeenOnce(None)
    clock = [1_000_000.0]
    monkeypatch.setattr("claude_invoker.replay.time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert [await seen.first("long", 500) for _ in range(2)] == [True, False]
    for number in range(10_001):
        assert await seen.first(str(number), 10)
    clock[0] += 10 + 4 * SKEW_S  # the last moment at which one could be used
    assert not await seen.first("0", 10)
    clock[0] += 2
    assert not await seen.first("long", 500)
    assert await seen.first("another", 10)
    assert set(seen._seen) == {"long", "another"}
    assert not await seen.first("long", 500)
    assert await seen.obstacle() is None
    await seen.close()


@pytest.mark.parametrize("here_s", [-SKEW_S, 0, SKEW_S])
@pytest.mark.parametrize("there_s", [-SKEW_S, 0, SKEW_S])
async def test_one_use_at_two_invokers_whose_clocks_differ(
    here_s: float, there_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever takes it as early as it may, the other refuses it for as long as it would take it: what is remembered
    of it in Redis outlives that by a second, since seconds there are whole."""
    fresh = SIGNER.open(method="GET", path="/x", route="r", request_id="q", now=1_000_000)
    lives_s = fresh.expires_at - fresh.issued_at
    now, ahead_s = [0.0], 0.0

    def takes() -> bool:
        try:
            in_force(fresh, issuer=SIGNER.issuer, audience=SIGNER.audience, skew=SKEW_S)
        except AttestationError:
            return False
        return True

    monkeypatch.setattr("claude_contract.attestation.time", SimpleNamespace(time=lambda: now[0] + ahead_s))
    monkeypatch.setattr("claude_invoker.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    seen, used, again = SeenOnce(None), False, 0
    for half_s in range(-60, 120):
        now[0] = fresh.issued_at + half_s / 2
        ahead_s = here_s
        if not used and takes():
            used = await seen.first(fresh.id, lives_s)
        ahead_s = there_s
        if used and takes():
            again += 1
            assert not await seen.first(fresh.id, lives_s), half_s
    assert again > 50
    assert await seen.first(fresh.id, lives_s), "and not for ever"


async def test_an_end_leaves_no_connection_to_redis(redis_server: RedisProcess) -> None:
    client: Any = redis_server.client()
    seen = SeenOnce(redis_server.url)
    before = {one["id"] for one in client.client_list()}
    assert await seen.first("mine", 30)
    own = {one["id"] for one in client.client_list()} - before
    assert own
    await seen.close()
    deadline = time.monotonic() + 60
    while own & {one["id"] for one in client.client_list()}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_redis_that_does_not_answer_is_known(tmp_path: Path) -> None:
    seen = SeenOnce(f"unix://{tmp_path}/nobody.sock")
    assert "nobody.sock cannot be used" in (await seen.obstacle() or "")
    with pytest.raises(Problem) as refused:
        await seen.first("a", 30)
    assert (refused.value.status, refused.value.kind, refused.value.headers["Retry-After"]) == (503, "busy", "2")
    await seen.close()
