"""The filter by itself, as the process that it is: who gets through, where to, how far, and when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from claude_contract.destinations import Destination, parse
from claude_invoker.egress import filter, filters
from claude_invoker.egress.filters import Filters, Passage
from claude_invoker.egress.wire import Moved, Visit
from tests.invoker.conftest import as_root
from tests.invoker.names import FEW, INSIDE, OUTSIDE
from tests.support.processes import command_line
from tests.support.waiting import HANG_S

pytestmark = as_root
UID = 275_000  # nobody else's on this machine
_uids = itertools.count(UID)


@dataclass
class Served:
    """A host that counts who comes, and says what it is told."""

    port: int
    came: int = 0


@asynccontextmanager
async def serving(address: str, port: int = 0) -> AsyncIterator[Served]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.came += 1
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, address, port)
    served = Served(server.sockets[0].getsockname()[1])
    async with server:
        yield served


@asynccontextmanager
async def serving_both() -> AsyncIterator[tuple[Served, Served]]:
    """OUTSIDE and INSIDE at one port, which is free at both: somebody else may have it at one of them."""
    async with contextlib.AsyncExitStack() as kept:
        while True:
            site = await kept.enter_async_context(serving(OUTSIDE))
            with contextlib.suppress(OSError):
                inside = await kept.enter_async_context(serving(INSIDE, site.port))
                break
        yield site, inside


@dataclass
class Run:
    """What a run has: an address, and who hears of it."""

    passage: Passage
    address: tuple[str, int]
    said: list[Visit | Moved] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def ask(self, head: str | bytes) -> str:
        """The answer, to its end or to the end of a head that lets through."""
        reader, writer = await self.connect()
        writer.write(head.encode() if isinstance(head, str) else head)
        answer = b""
        while b"200 Connection" not in answer and (chunk := await asyncio.wait_for(reader.read(65536), HANG_S)):
            answer += chunk
        writer.close()
        return answer.decode()

    async def go(self, host: str) -> str:
        return await self.ask(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")


@asynccontextmanager
async def filtered(
    monkeypatch: pytest.MonkeyPatch, mode: str = "strict", max_bytes: int = 1 << 20
) -> AsyncIterator[Filters]:
    program = (str(Path(__file__).with_name("names.py")), mode)
    monkeypatch.setattr(filters, "_PROGRAM", program)
    given: list[int | None] = []

    async def user() -> int:
        given.append(next(_uids))
        return given[-1] or 0

    found = Filters(user, given.remove, max_bytes)
    try:
        yield found
    finally:
        await found.stop()
    assert not given, "every user id is given back"


async def opened(found: Filters, *hosts: str, begin: bool = True) -> Run:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    address = listener.getsockname()
    run = Run(await found.open(listener, tuple(map(parse, hosts))), address)
    if begin:
        run.passage.begin(run.said.append)
    return run


async def heard(run: Run, text: str) -> None:
    async with asyncio.timeout(HANG_S):
        while not any(text in str(said) for said in run.said):
            await asyncio.sleep(0.01)


async def arrived(served: Served, number: int) -> None:
    """A connection is there before the host has taken it."""
    async with asyncio.timeout(HANG_S):
        while served.came < number:
            await asyncio.sleep(0.01)
    assert served.came == number


REFUSED = {
    "evil.test": (403, "evil.test:{port} is not among the hosts"),
    "site.example.test.evil.test": (403, "not among the hosts"),
    OUTSIDE: (403, "not among the hosts"),
    INSIDE: (403, "not among the hosts"),
    "inside.example.test": (403, "an address that is not one of the internet's"),
    "both.example.test": (403, "an address that is not one of the internet's"),
    "mapped.example.test": (403, "an address that is not one of the internet's"),
    "unknown.example.test": (502, "is not known"),
}


async def test_where_a_run_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_both() as (site, inside), filtered(monkeypatch) as found:
        run = await opened(found, f"*.example.test:{site.port}")
        for host, (status, why) in REFUSED.items():
            answer = await run.go(f"{host}:{site.port}")
            assert answer.startswith(f"HTTP/1.1 {status} ") and why.format(port=site.port) in answer
            await heard(run, why.format(port=site.port))
        assert not site.came and not inside.came
        assert (found.traffic.led, found.traffic.refused) == (0, len(REFUSED))
        for number, host in enumerate(("site.example.test", "SITE.example.test"), start=1):
            assert "200 Connection" in await run.go(f"{host}:{site.port}")
            assert run.said[-1] == Visit(1, f"site.example.test:{site.port}", OUTSIDE)
            await arrived(site, number)
        assert not inside.came


async def test_where_a_run_gets_to_without_the_defence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    async with serving_both() as (site, inside):
        async with filtered(monkeypatch, "any_address") as found:
            run = await opened(found, f"*.example.test:{site.port}")
            for name in ("inside", "both", "mapped"):
                assert "200 Connection" in await run.go(f"{name}.example.test:{site.port}")
            await arrived(inside, 2)
            await arrived(site, 1)
        async with filtered(monkeypatch, "any_host") as found:
            run = await opened(found, f"other.example.test:{site.port}")
            assert "200 Connection" in await run.go(f"site.example.test:{site.port}")
            assert "is not known" in await run.go(f"evil.test:{site.port}"), "it is asked for"


@pytest.mark.parametrize("without", [None, "asks_twice"])
async def test_a_name_that_changes_its_mind(monkeypatch: pytest.MonkeyPatch, without: str | None) -> None:
    """The address that was looked at is the one that is called."""
    async with (
        serving_both() as (site, inside),
        filtered(monkeypatch, without or "strict") as found,
    ):
        run = await opened(found, f"flips.example.test:{site.port}")
        assert "200 Connection" in await run.go(f"flips.example.test:{site.port}")
        asked, other = (site, inside) if without is None else (inside, site)
        await arrived(asked, 1)
        assert other.came == 0
        assert "not one of the internet's" in await run.go(f"flips.example.test:{site.port}")


HEADS: list[tuple[str | bytes, int]] = [
    ("GET http://site.example.test/ HTTP/1.1\r\nHost: site.example.test\r\n\r\n", 405),
    ("CONNECT site.example.test HTTP/1.1\r\n\r\n", 405),
    ("CONNECT [::1]:443 HTTP/1.1\r\n\r\n", 405),
    ("CONNECT site.example.test:443@inside.example.test:443 HTTP/1.1\r\n\r\n", 405),
    ("CONNECT site.example.test:443 HTTP/2\r\n\r\n", 405),
    ("CONNECT site.example.test.:443 HTTP/1.1\r\n\r\n", 403),
    ("CONNECT site.example.test:99999 HTTP/1.1\r\n\r\n", 403),
    ("CONNECT site.example.test:443\r\nX: HTTP/1.1\r\n\r\n", 405),
    (b"\x16\x03\x01\x02\x00\xff\r\n\r\n", 405),
    ("CONNECT site.example.test:443 HTTP/1.1\r\n" + "X: y\r\n" * 2000 + "\r\n", 431),
]


async def test_what_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with filtered(monkeypatch) as found:
        run = await opened(found, "site.example.test")
        for head, status in HEADS:
            assert (await run.ask(head)).startswith(f"HTTP/1.1 {status} "), head


async def test_a_passage_is_worth_something_from_begin_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OUTSIDE) as site, filtered(monkeypatch) as found:
        host = f"site.example.test:{site.port}"
        run = await opened(found, host, begin=False)
        assert "the run has not begun" in await run.go(host)
        run.passage.begin(run.said.append)
        reader, writer = await run.connect()
        writer.write(f"CONNECT {host} HTTP/1.1\r\n\r\nhello".encode())
        assert b"hello" in await reader.readuntil(b"hello")
        run.passage.close()
        run.passage.close()
        assert await asyncio.wait_for(reader.read(), HANG_S) == b"", "what is open breaks"
        with pytest.raises(OSError):
            await run.connect()
        # A second passage has nothing of the first.
        other = await opened(found, "other.example.test")
        assert "not among the hosts" in await other.go(host)


async def test_each_run_has_its_own_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OUTSIDE) as site, filtered(monkeypatch) as found:
        hosts = [f"{name}.example.test:{site.port}" for name in ("site", "other")]
        runs = [await opened(found, host) for host in hosts]
        for run, own, others in zip(runs, hosts, reversed(hosts), strict=True):
            assert "200 Connection" in await run.go(own)
            assert "not among the hosts" in await run.go(others)
        assert [
            visit.destination for run in runs for visit in run.said if isinstance(visit, Visit) and visit.address
        ] == hosts


async def test_bytes_are_bounded_for_all_connections_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sends and what it gets."""
    async with serving(OUTSIDE) as site, filtered(monkeypatch, max_bytes=100_000) as found:
        host = f"site.example.test:{site.port}"
        run, other = await opened(found, host), await opened(found, host)

        async def echoed(size: int) -> int:
            reader, writer = await run.connect()
            writer.write(f"CONNECT {host} HTTP/1.1\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x" * size)
            writer.write_eof()
            return await _all(reader)

        assert await echoed(40_000) == 40_000
        assert await echoed(40_000) < 40_000
        await heard(run, "has moved the 100000 bytes that it may (INVOKER_EGRESS_MAX_BYTES)")
        assert "403 this run has moved the 100000 bytes" in await run.go(host)
        assert "200 Connection" in await other.go(host), "another run has its own"
        assert 80_000 <= found.traffic.bytes <= 100_000


async def _all(reader: asyncio.StreamReader) -> int:
    total = 0
    with contextlib.suppress(ConnectionError):
        while chunk := await asyncio.wait_for(reader.read(65536), HANG_S):
            total += len(chunk)
    return total


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OUTSIDE) as site, filtered(monkeypatch) as found:
        host = f"site.example.test:{site.port}"
        run = await opened(found, host)
        held = [await run.connect() for _ in range(filter.MAX_OPEN)]
        assert "429 this run has 64 connections open" in await run.go(host)
        for _, writer in held:
            writer.close()
        answer = ""
        async with asyncio.timeout(HANG_S):
            while "200 Connection" not in answer:
                answer = await run.go(host)
        other = await opened(found, host)
        assert "200 Connection" in await other.go(host)


@pytest.mark.parametrize(
    "at_will", [pytest.param(False, id="bounded"), pytest.param(True, id="control", marks=pytest.mark.slow)]
)
async def test_names_that_take_long_keep_no_other_run_waiting(monkeypatch: pytest.MonkeyPatch, at_will: bool) -> None:
    async with (
        serving(OUTSIDE) as site,
        filtered(monkeypatch, "slow_names_at_will" if at_will else "slow_names") as found,
    ):
        run = await opened(found, f"*.stuck.example.test:{site.port}")
        other = await opened(found, f"site.example.test:{site.port}")
        stuck = [asyncio.create_task(run.go(f"n{n}.stuck.example.test:{site.port}")) for n in range(filter.MAX_OPEN)]
        assert "is not known" in await stuck[0]
        answers = [await other.go(f"site.example.test:{site.port}") for _ in range(3)]
        assert all("200 Connection" in answer for answer in answers) is not at_will, answers
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)


@pytest.mark.parametrize("mode", ["few_connections", "without_bounds"], ids=["bounded", "control"])
async def test_whoever_has_asked_too_often_is_not_heard_any_more(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """It would go on taking the time of the process that all runs share."""
    async with serving(OUTSIDE) as site, filtered(monkeypatch, mode) as found:
        run, other = await opened(found, "other.example.test"), await opened(found, f"site.example.test:{site.port}")
        asked, last = 0, ""
        with contextlib.suppress(OSError):
            while asked < FEW + 50:
                last = await run.go(f"evil.test:{site.port}") or last
                asked += 1
        if mode == "few_connections":
            assert asked <= FEW + 1 and "is all that it gets" in last
            assert found.traffic.refused == FEW
        else:
            assert asked == FEW + 50 and "not among the hosts" in last
        assert "200 Connection" in await other.go(f"site.example.test:{site.port}")


async def test_the_filter_has_no_privileges_and_its_end_closes_every_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OUTSIDE) as site, filtered(monkeypatch) as found:
        host = f"site.example.test:{site.port}"
        run = await opened(found, host)
        assert "200 Connection" in await run.go(host)
        (process,) = (child for child in psutil.Process().children() if "names.py" in command_line(child))
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() and int(status["Uid"].split()[0]) >= UID
        assert set(status["Uid"].split()) == {status["Uid"].split()[0]}, "real, effective, saved"
        assert not status["Groups"].strip()
        assert all(int(status[name], 16) == 0 for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"))
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(HANG_S):
            while run.passage.alive:
                await asyncio.sleep(0.01)
        with pytest.raises(OSError):
            await run.connect()
        run.passage.close()
        again = await opened(found, host)
        assert "200 Connection" in await again.go(host), "the next run has another filter"


async def test_the_real_filter_looks_names_up() -> None:
    """As the user that it has become: Python's library may be closed to that."""

    async def user() -> int:
        return UID

    found = Filters(user, lambda uid: None, 1 << 20)
    run = await opened(found, "*.claude-invoker.invalid")
    try:
        answer = await run.go("site.claude-invoker.invalid:443")
        assert answer.startswith("HTTP/1.1 502 site.claude-invoker.invalid:443 is not known")
    finally:
        await found.stop()


def test_a_run_without_a_name_in_common_reaches_nothing() -> None:
    passage = filter.Passage(1, (Destination("*.example.test"),), 1, 1, begun=True)
    with pytest.raises(filter.Refused, match="not among"):
        passage.admit(b"CONNECT example.test:443 HTTP/1.1\r\n\r\n")
    assert passage.admit(b"CONNECT a.example.test:443 HTTP/1.1\r\n\r\n") == Destination("a.example.test")
