"""The table of what servers answer (`redis.py`), as the gateway and the invoker take it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_contract.ledger import AsyncLedger, Lease, LedgerUnavailable, Slot, UnreadableLedger
from claude_invoker import redis_clients
from kong_claude.rate_tiers import redis_ledger
from kong_claude.rate_tiers.redis_circuit import FAILURES
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.interop.redis import ANSWERS, Answer

SLOT = Slot(concurrent=1, run_micro_usd=1, ttl_ms=1000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Its URL; it answers every command by the line that is put into the list."""
    listener, said = socket.socket(socket.AF_UNIX), [b""]
    listener.bind(f"{tmp_path}/r")
    listener.listen()

    def serve(client: socket.socket) -> None:
        try:
            while client.recv(1 << 16):
                client.sendall(b"-" + said[0] + b"\r\n")
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"unix://{tmp_path}/r", said
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_the_gateway_lets_nobody_in_by_it(
    answer: Answer, server: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_ledger, "in_greenlets", lambda: False)
    url, said = server
    said[0] = answer.text.encode()
    asked = RedisLedger(Settings(url, timeout=5))
    for _ in range(FAILURES):
        with pytest.raises(LedgerUnavailable) as refused:
            asked.acquire(Lease.new("claude", "alice", 1), SLOT)
        assert not isinstance(refused.value, UnreadableLedger), refused.value
    assert asked.circuits.open is answer.away
    asked.close()


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
async def test_nor_does_the_invoker(answer: Answer, server: tuple[str, list[bytes]]) -> None:
    url, said = server
    client = redis_clients.client(url, socket_timeout=5.0, driver_info=None)
    said[0] = answer.text.encode()
    with pytest.raises(LedgerUnavailable) as refused:
        await AsyncLedger(client).acquire(Lease.new("claude", "alice", 1), SLOT)
    assert not isinstance(refused.value, UnreadableLedger), refused.value
    await client.aclose()


def test_the_control_a_damaged_record_is_told_as_one(server: tuple[str, list[bytes]]) -> None:
    url, said = server
    said[0] = b"ERR Error running script (call to f_1): @user_script:12: bad argument #1 to 'unpack'"
    asked = RedisLedger(Settings(url, timeout=5))
    with pytest.raises(UnreadableLedger):
        asked.acquire(Lease.new("claude", "alice", 1), SLOT)
    asked.close()
