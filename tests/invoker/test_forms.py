"""Runs that come with files, as a form: what is in it is in the run's directory, and nothing of it in memory."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from msgspec.structs import replace

from claude_contract import ledger
from claude_contract.attestation import Signer
from claude_contract.claims import body_hash
from claude_contract.ledger.calls import to_acquire
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import Invoker, StandInProcess, tool, wait_for
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed
from tests.support.waiting import HANG_S
from tests.workspace.test_archive import tarred, zipped

SECRET = "s" * 32
SIGNER = Signer("1", SECRET.encode(), {})
LIST = {"prompt": tool("Bash", command="find . -type f -exec sha256sum {} +"), "tools": ["Bash"]}
Parts = list[tuple[str, Any]]


def asked(**more: Any) -> tuple[str, Any]:
    return "request", (None, json.dumps(LIST | more), "application/json")


def file(path: str, content: bytes = b"x") -> tuple[str, Any]:
    return "files", (path, content)


def post(client: httpx.Client, *parts: tuple[str, Any], **more: Any) -> httpx.Response:
    return client.post("/invoke/form", files=list(parts), timeout=120, **more)


def said(client: httpx.Client, answer: httpx.Response) -> str:
    """What the run's command has printed."""
    assert answer.status_code == 200, answer.text
    return client.get(f"/runs/{answer.json()['id']}/events").text


def intake(invoker: Invoker) -> list[Path]:
    return list((invoker.state / "intake").iterdir())


def test_files_and_an_archive_are_there_when_the_run_begins(api: httpx.Client, invoker: Invoker) -> None:
    archive = tarred(("a/b", b"1"), ("kept", b"2"))
    answer = post(
        api, file("data/a.csv", b"a,b\n"), ("archive", ("x.tar.gz", archive)), asked(), file("caf\u00e9", b"\0" * 100)
    )
    found = said(api, answer)
    assert all(f"./{path}" in found for path in ("a/b", "kept", "data/a.csv")) and "caf" in found
    assert not answer.json()["artifacts"], "as with files in JSON, what it leaves as it was is none"
    wait_for(lambda: not intake(invoker), what="nothing that is left of the form")


def test_a_key_stands_for_the_files_as_well(api: httpx.Client, invoker: Invoker) -> None:
    key = {"Idempotency-Key": f"form-{os.getpid()}"}
    plain = {"prompt": "hi", "tools": []}
    first = post(api, asked(**plain), file("a", b"1"), headers=key)
    assert post(api, asked(**plain), file("a", b"1"), headers=key).json()["id"] == first.json()["id"]
    for other in (file("a", b"2"), file("b", b"1")):
        answer = post(api, asked(**plain), other, headers=key)
        assert answer.status_code == 422 and "another request" in answer.text
    wait_for(lambda: not intake(invoker), what="nothing that is left of the forms")


LINKED = tarred(("a", b""), kind=tarfile.SYMTYPE, link="/etc/passwd")
REFUSED: dict[str, tuple[Parts, int, str]] = {
    "no request": ([file("a")], 422, "no part request"),
    "two requests": ([asked(), asked()], 422, "two parts request"),
    "no JSON": ([("request", (None, "{"))], 400, "not JSON"),
    "files in it": ([asked(files=[{"path": "a", "content": "x"}])], 422, "parts of their own"),
    "other part": ([asked(), ("other", (None, "x"))], 422, "no others"),
    "no name": ([asked(), ("files", (None, "x"))], 422, "files[0]: its filename is missing"),
    "out": ([asked(), file("fine"), file("../out")], 422, "files[1]: its filename must be relative"),
    "absolute": ([asked(), file("/etc/x")], 422, "must be relative"),
    "git": ([asked(), file("a/.GIT/config")], 422, ".git"),
    "twice": ([asked(), file("a"), file("a")], 422, "is there twice"),
    "case": ([asked(), file("A/x"), file("a/y")], 422, "one name with A"),
    "unicode": ([asked(), file("caf\u00e9"), file("cafe\u0301")], 422, "on some systems"),
    "depth": ([asked(), *(file("/".join([str(n), *"abcdefgh" * 60])) for n in range(50))], 422, "20,000 files and"),
    "many": ([asked(), *(file(str(n)) for n in range(1001))], 422, "1,000 files at most"),
    "large request": ([asked(system="x" * 10_000_000), file("a")], 413, "INVOKER_MAX_BODY"),
    "two archives": ([asked(), ("archive", b"x"), ("archive", b"x")], 422, "two parts archive"),
    "no archive": ([asked(), ("archive", b"x")], 422, "neither a .zip nor a .tar.gz"),
    "zip-slip": ([asked(), ("archive", zipped(("../out", b"x")))], 422, "must be relative"),
    "link": ([asked(), ("archive", LINKED)], 422, "no regular file"),
}


def bomb() -> Parts:
    """Made by its test alone, and not by each process that collects it: that takes seconds."""
    return [asked(), ("archive", tarred(("a", bytes(600 << 20))))]


@pytest.mark.parametrize("kind", [*REFUSED, "bomb"])
def test_what_may_not_be_is_refused_and_leaves_nothing(
    api: httpx.Client, invoker: Invoker, stand_in: StandInProcess, kind: str
) -> None:
    parts, status, why = REFUSED[kind] if kind != "bomb" else (bomb(), 422, "more than 536,870,912 bytes")
    before, spent = {path.name for path in invoker.state.iterdir()}, len(stand_in.lines())
    answer = post(api, *parts)
    assert answer.status_code == status and why in answer.text, answer.text
    wait_for(lambda: not intake(invoker), what="nothing that is left of the form")
    made = {path.name for path in invoker.state.iterdir()} - before
    assert made <= {"tiers.json", "uploads"}, "of the invoker's first form"
    assert len(stand_in.lines()) == spent


RAW: dict[str, tuple[str, bytes, int]] = {
    "no boundary": ("multipart/form-data", b"", 415),
    "json": ("application/json", b"{}", 415),
    "long boundary": (f"multipart/form-data; boundary={'b' * 5000}", b"x", 400),
    "empty": ("multipart/form-data; boundary=b", b"", 400),
    "no form": ("multipart/form-data; boundary=b", b"hello", 400),
    "cut off": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{',
        400,
    ),
    "long header": ("multipart/form-data; boundary=b", b"--b\r\nX: " + b"x" * 100_000, 400),
    "many headers": ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 1000, 400),
    "no headers": ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 422),
    "encoded": (
        "multipart/form-data; boundary=b",
        b"--b\r\nContent-Disposition: form-data; name=files; filename=a\r\nContent-Transfer-Encoding: base64\r\n\r\nx",
        422,
    ),
    "not UTF-8": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name=files; filename="\xff"\r\n\r\nx\r\n--b--\r\n',
        422,
    ),
}


@pytest.mark.parametrize("kind", RAW)
def test_what_is_no_form_is_said(api: httpx.Client, invoker: Invoker, kind: str) -> None:
    media, body, status = RAW[kind]
    answer = api.post("/invoke/form", content=body, headers={"Content-Type": media})
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json", answer.text
    wait_for(lambda: not intake(invoker), what="nothing that is left of the form")


OF_ATTESTED = pytest.mark.xdist_group("attested-forms")  # their invoker is started once


@pytest.fixture(scope="module")
def attested(start_invoker: Callable[..., Invoker]) -> Iterator[Invoker]:
    found = start_invoker(trust="attested", attestation_key=SECRET, max_upload=120_000_000)
    yield found
    found.stop()


def header(**claims: Any) -> dict[str, str]:
    given = {"sub": "alice", "chk": ["jwt-claims", "rate-tiers"]} | claims
    return {"X-Claude-Attestation": signed(SIGNER, "POST", "/invoke/form", **given)}


@OF_ATTESTED
def test_a_form_is_a_caller_s_whom_the_gateway_vouches_for(attested: Invoker) -> None:
    request = attested.client().build_request("POST", "/invoke/form", files=[asked(prompt="hi", tools=[])])
    body, media = request.read(), {"Content-Type": request.headers["content-type"]}
    with attested.client() as client:
        for headers, status in (
            (header(), 200),
            ({}, 401),
            (header(chk=["jwt-claims"]), 401),
            (header(bsh=body_hash(b"another")), 401),
            # What the gateway has seen is to be held against what comes, and this body is read when that is too late.
            (header(bsh=body_hash(body)), 401),
        ):
            answer = client.post("/invoke/form", content=body, headers=headers | media)
            assert answer.status_code == status, answer.text
        used = header()
        assert client.post("/invoke/form", content=body, headers=used | media).status_code == 200
        assert client.post("/invoke/form", content=body, headers=used | media).status_code == 401
        words = client.post(
            "/invoke/form", content=body, headers=header(add={"drop": ["tools"], "context": {"x": "y"}}) | media
        )
        assert words.status_code == 200, "the gateway's additions are applied to the part request"
    wait_for(lambda: not intake(attested), what="nothing that is left of the forms")


class Peak:
    """The most that a process has held in memory since this was made (clear_refs, proc(5))."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.before = psutil.Process(pid).memory_info().rss

    @property
    def grown(self) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 - self.before


def incompressible(size: int) -> bytes:
    return os.urandom(1 << 20) * (size >> 20)


@OF_ATTESTED
@pytest.mark.parametrize("kind", ["file", "archive"])
def test_a_hundred_megabytes_are_never_in_memory(attested: Invoker, kind: str) -> None:
    content = incompressible(100 << 20)
    if kind == "archive":
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz", compresslevel=0) as opened:
            info = tarfile.TarInfo("large.bin")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
        part: tuple[str, Any] = ("archive", ("x.tar.gz", made.getvalue()))
    else:
        part = file("large.bin", content)
    # How many bytes there are is said to the gateway by the check of the run: the model itself only greets.
    check = asked(prompt="hi", tools=[], check="wc -c < large.bin")
    with attested.client() as client:
        post(client, asked(prompt="hi", tools=[]), file("a"), headers=header())  # what it has anyway
        peak = Peak(attested.pid)
        answer = post(client, check, part, headers=header())
        assert answer.status_code == 200, answer.text
        assert answer.json()["check"]["output"].strip() == str(100 << 20)
        assert peak.grown < 40 << 20
    wait_for(lambda: not intake(attested), what="nothing that is left of the form")


@OF_ATTESTED
def test_more_than_may_come_does_not_come(attested: Invoker) -> None:
    part = file("a", bytes(121_000_000))
    with attested.client() as client:
        answer = post(client, asked(), part, headers=header())
        assert answer.status_code == 413 and "INVOKER_MAX_UPLOAD" in answer.text
        # All other paths have the bound that they had.
        other = client.post("/invoke", content=bytes(11_000_000), headers=header())
        assert other.status_code == 413 and "INVOKER_MAX_BODY" in other.text
    assert not intake(attested)


def test_who_sends_slowly_keeps_his_place_and_has_no_more_than_that(
    redis_server: RedisProcess, start_invoker: Callable[..., Invoker]
) -> None:
    """Room on the disk is kept for what is on its way: by a form a minute, of which nothing comes, it was all taken, and
    others were refused with 507."""
    invoker = start_invoker(trust="attested", attestation_key=SECRET, redis_url=redis_server.url, pool_size=0)
    store = RedisLedger(RedisAddress(redis_server.url, timeout=HANG_S))
    slot = ledger.Slot(concurrent=1, ttl_ms=60_000)

    def let_in() -> ledger.Lease | None:
        """As the gateway does it, which waits so long for the invoker to confirm it."""
        lease = ledger.Lease.new(ledger.NAMESPACE, "slow", 0)
        return lease if store.admit(replace(to_acquire(lease, slot), confirm_ms=1000)).admitted else None

    def running() -> int:
        return store.peek(ledger.Peek(ledger.NAMESPACE, "slow", slot=slot)).running

    assert let_in() and running() == 1
    wait_for(lambda: running() == 0, what="the end of a place that nobody has confirmed")  # the control
    lease = let_in()
    attestation = header(sub="slow", lease=str(lease), slot=slot.claim(), clamp={})["X-Claude-Attestation"]
    head = f"POST /invoke/form HTTP/1.1\r\nHost: x\r\nX-Claude-Attestation: {attestation}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000000\r\n\r\n--b\r\n"
    address = httpx.URL(invoker.url)
    with socket.create_connection((address.host, address.port or 80)) as client:
        client.sendall(head.encode())
        wait_for(lambda: intake(invoker), what="the form")
        time.sleep(2)
        assert running() == 1 and let_in() is None
    wait_for(lambda: running() == 0, what="its place, once it has left")
    assert not intake(invoker)
