"""What writes the audit log while an invoker runs: its own entries, and what the gateway has left in Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claude_contract.ledger import calls
from claude_contract.ledger.live import OUTBOX, Change, Target, limits_key
from claude_invoker.audit import writer
from claude_invoker.audit.anchor import FileAnchor, RedisAnchor
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, locked, pairs
from claude_invoker.audit.verify import verify
from claude_invoker.audit.writer import Audit
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S


def noted(directory: Path) -> list[dict[str, Any]]:
    """The lines, each with its details."""
    found = []
    with locked(directory, shared=True):
        for each in pairs(directory):
            rows = zip(each.lines.read_bytes().splitlines(), each.details.read_bytes().splitlines(), strict=True)
            found += [json.loads(row) | json.loads(details) for row, details in rows]
    return found


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def change(server: RedisProcess, minute: int) -> None:
    made = Change({"sub": "alice"}, {"minute": minute}, time.time_ns() // 1_000_000 + 60_000, "root", "why", 0)
    line = {"kind": "limits.change", "actor": "root", "subject": "alice", "details": {"why": "why"}}
    call = calls.change(limits_key("claude"), Target("subject", key="alice"), made, json.dumps(line).encode())
    server.client().eval(call.script.source, len(call.keys), *call.keys, *call.args)


async def test_what_is_noted_and_what_the_gateway_left_is_written_once(tmp_path: Path, own_redis: RedisProcess) -> None:
    client: Any = own_redis.client()
    change(own_redis, 1)  # before anybody was there to write it
    log = Log(tmp_path / "audit")
    anchors = (FileAnchor(tmp_path / "heads"), RedisAnchor(own_redis.url))
    async with Audit(log, anchors, own_redis.url) as audit:
        audit.note(Entry("run.start", "ada"))
        change(own_redis, 2)
        await until(lambda: len(noted(log.directory)) == 4 and not client.xlen(OUTBOX))
        audit.note(Entry("run.end", "ada"))
    rows = noted(log.directory)
    assert rows[-1]["kind"] == "run.end", "what waits at the end is written"
    changes = [row for row in rows if row["kind"] == "limits.change"]
    assert [row["details"]["after"]["limits"] for row in changes] == [{"minute": 1}, {"minute": 2}]
    assert changes[1]["details"]["before"]["limits"] == {"minute": 1} and changes[0]["details"]["before"] is None
    assert (changes[0]["actor"], changes[0]["subject"]) == ("root", "alice")
    for anchor in anchors:
        assert anchor.heads()[-1][1] == log.head
    assert verify(log.directory, [log.head]).findings == []

    async with Audit(Log(log.directory), anchors, own_redis.url):
        change(own_redis, 3)
        await until(lambda: len(noted(log.directory)) == 6 and not client.xlen(OUTBOX))


async def test_what_a_writer_took_and_never_wrote_the_next_one_writes(
    tmp_path: Path, own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = own_redis.client()
    change(own_redis, 1)
    client.xgroup_create(OUTBOX, "audit", id="0")
    assert client.xreadgroup("audit", "a writer that died", {OUTBOX: ">"})
    monkeypatch.setattr(writer, "_ABANDONED_MS", 0)
    log = Log(tmp_path / "audit")
    async with Audit(log, (), own_redis.url):
        await until(lambda: not client.xlen(OUTBOX))
    assert [row["kind"] for row in noted(log.directory)] == ["log.begin", "limits.change"]


async def test_a_disk_that_takes_nothing_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path / "audit")
    real, full = log.append, [True]

    def append(entries: Any) -> Any:
        if full:
            raise OSError(28, "No space left on device")
        return real(entries)

    monkeypatch.setattr(log, "append", append)
    monkeypatch.setattr(writer, "_RETRY_S", 0.01)
    monkeypatch.setattr(writer, "_MOST_WAITING", 5)
    async with Audit(log, (), None) as audit:
        for number in range(8):
            audit.note(Entry("k", str(number)))
        await until(lambda: "cannot be written" in caplog.text)
        full.clear()
        await until(lambda: len(noted(log.directory)) == 7)
    rows = noted(log.directory)
    assert rows[1]["kind"] == "log.lost" and rows[1]["details"] == {"entries": 3}, "more than can wait is told"
    assert [row["actor"] for row in rows[2:]] == ["3", "4", "5", "6", "7"]


async def test_a_redis_that_comes_late_is_waited_for(
    tmp_path: Path, own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_REDIS_RETRY_S", 0.05)
    own_redis.kill()
    log = Log(tmp_path / "audit")
    async with Audit(log, (RedisAnchor(own_redis.url),), own_redis.url) as audit:
        audit.note(Entry("k", "a"))
        await until(lambda: len(noted(log.directory)) == 2)
        own_redis.start()
        change(own_redis, 1)
        await until(lambda: len(noted(log.directory)) == 3)


async def test_what_cannot_be_read_of_the_gateways_lines_is_told_and_stops_nothing(
    tmp_path: Path, own_redis: RedisProcess
) -> None:
    client: Any = own_redis.client()
    client.xadd(OUTBOX, {"line": "{"})
    client.xadd(OUTBOX, {"else": "x"})
    for kind in ("log.forget", "log.moved", "run.end"):  # as whoever can write that Redis may wish to have said
        said: dict[str, Any] = {"kind": kind, "actor": "a", "subject": "alice", "details": {}}
        client.xadd(OUTBOX, {"line": json.dumps(said)})
    change(own_redis, 1)
    log = Log(tmp_path / "audit")
    async with Audit(log, (), own_redis.url):
        await until(lambda: len(noted(log.directory)) == 7)
    assert [row["kind"] for row in noted(log.directory)][1:] == ["limits.unreadable"] * 5 + ["limits.change"]


async def test_where_there_can_be_no_log_there_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(OSError):
        async with Audit(Log(tmp_path / "audit"), (), None):
            pass
