"""What runs were charged and what was booked for them: a stand-in that writes its charges down, a real ledger, invokers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil

from claude_contract import ledger
from claude_contract.attestation import HEADER
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import Invoker, clean_environment, free_port
from tests.invoker.test_trust import SECRET, attestation
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

OPUS, SONNET, HAIKU = "claude-opus-5-5", "claude-sonnet-4-5", "claude-haiku-4-5"
# US dollars for a million tokens, from Anthropic's price list: input, output, cache read, cache write 5 min, 1 h.
LIST = {
    HAIKU: ("1", "5", "0.1", "1.25", "2"),
    OPUS: ("4", "20", "0.2", "5", "8"),
    SONNET: ("3", "15", "0.3", "3.75", "6"),
    f"{SONNET} beyond 200,000": ("6", "22.5", "0.6", "7.5", "12"),
}
SEARCH = Decimal("0.01")
IN_US = Decimal("1.1")
CHUNK = 16
"""Letters of a chunk that the stand-in has sent and nobody has read when somebody is killed, at most."""
UNREAD = 256
"""Tokens that are billed for what may have been sent and not read by a proxy that was killed."""


def price(model: str, usage: dict[str, Any], output: int) -> Decimal:
    """US dollars, by the list."""
    made = usage.get("cache_creation") or {}
    hour = made.get("ephemeral_1h_input_tokens", 0)
    five = usage.get("cache_creation_input_tokens", 0) - hour
    read = usage.get("cache_read_input_tokens", 0)
    fresh = usage["input_tokens"]
    if model == SONNET and fresh + read + five + hour > 200_000:
        model = f"{SONNET} beyond 200,000"
    tokens = (fresh, output, read, five, hour)
    searches = int((usage.get("server_tool_use") or {}).get("web_search_requests", 0))
    rates = [Decimal(rate) / 1_000_000 for rate in LIST[model]]
    factor = IN_US if usage.get("inference_geo") == "us" else 1
    return SEARCH * searches + factor * sum(
        (count * rate for count, rate in zip(tokens, rates, strict=True)), Decimal(0)
    )


def micro(usd: Decimal) -> int:
    return int((usd * 1_000_000).to_integral_value(ROUND_CEILING))


@dataclass
class Charges:
    """The stand-in, and what it would have charged."""

    url: str
    path: Path

    def of(self, mark: str) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [charge for charge in map(json.loads, lines) if mark in charge["prompt"]]

    def asked_first(self, model: str) -> Decimal:
        """What a run pays in addition whose model the CLI does not know by name: it asks the API whether it does, by a
        request that has no mark in it."""
        asked = [charge for charge in self.of('"text": "Hi"') if charge["model"] == model]
        return price(model, asked[0]["usage"], asked[0]["usage"]["output_tokens"]) if asked else Decimal(0)

    def bounds(self, mark: str, model: str = OPUS, *, struck: bool = False) -> tuple[int, int]:
        """The least and the most micro-USD that may be booked for all requests with that mark: the same where every
        answer was complete. Of one that was cut off the proxy may have read one chunk less, and counts a token for
        three letters where the stand-in counts one for four; one that was killed is billed for what it may not have read.
        A run that ended before it asked anything else may have asked about its model, or not. `struck`: a proxy was
        killed meanwhile, which may have read less of what was complete."""
        first, charges = self.asked_first(model), self.of(mark)
        least, most = billable(charges, struck=struck)
        return micro(least + first if charges else least), micro(most + first)


def billable(charges: Iterable[dict[str, Any]], *, struck: bool) -> tuple[Decimal, Decimal]:
    """The least and the most US dollars of these requests alone, as `Charges.bounds` says."""
    least = most = Decimal(0)
    for charge in charges:
        model, usage, streamed = charge["model"], charge["usage"], charge["streamed"]
        if charge["complete"]:
            low = high = usage["output_tokens"]
        else:
            low, high = (max(1, -(-letters // 3)) for letters in (streamed - CHUNK, streamed))
            high += UNREAD
        if struck:
            high = max(high, -(-streamed // 3) + UNREAD)
        least += price(model, usage, low)
        most += price(model, usage, high)
    return least, most


@contextmanager
def charging(folder: Path) -> Iterator[Charges]:
    charges, port = folder / "charges.jsonl", free_port()
    command = [sys.executable, "-m", "kong_claude_local.standin", "--port", str(port), "--charges", str(charges)]
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "stand-in" in process.stdout.readline()
    try:
        yield Charges(f"http://127.0.0.1:{port}", charges)
    finally:
        process.terminate()
        process.wait(HANG_S)


@dataclass
class Billed:
    """A run of one subject, which is all that the subject runs."""

    mark: str
    lease: ledger.Lease
    thread: threading.Thread
    model: str
    answer: list[httpx.Response] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    """When its client had its answer, or left."""


SLOT = ledger.Slot(concurrent=2, run_micro_usd=1_000_000, ttl_ms=120_000)


@dataclass
class Till:
    """A ledger in Redis, and runs that are billed there."""

    redis: RedisProcess
    charges: Charges
    runs: list[Billed] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "trust": "attested",
            "attestation_key": SECRET,
            "redis_url": self.redis.url,
            "anthropic_base_url": self.charges.url,
            "idle_s": 60,
            "api_timeout_s": 30,
            "first_output_s": 60,
        }

    def begin(
        self,
        invoker: Invoker,
        mark: str,
        prompt: str,
        *,
        patience_s: float = 120.0,
        slot: ledger.Slot = SLOT,
        shared: ledger.Shared = ledger.ALONE,
        lease: ledger.Lease | None = None,
        **body: Any,
    ) -> Billed:
        """A run in a thread of its own, and its lease (`lease`: taken before). `patience_s`: after which its client
        leaves."""
        lease = lease or self.let_in(mark, slot, shared)
        content = json.dumps({"prompt": f"{prompt} ({mark})", "model": OPUS} | body).encode()
        header = attestation("POST", "/claude/invoke", content, lease=str(lease), slot=slot.claim())
        run = Billed(mark, lease, threading.Thread(target=lambda: ask(), daemon=True), body.get("model", OPUS))

        def ask() -> None:
            try:
                run.answer.append(
                    httpx.post(
                        f"{invoker.url}/claude/invoke", content=content, headers={HEADER: header}, timeout=patience_s
                    )
                )
            except httpx.HTTPError:
                pass  # the invoker was killed
            run.ended = time.monotonic()

        run.thread.start()
        self.runs.append(run)
        return run

    def let_in(self, mark: str, slot: ledger.Slot = SLOT, shared: ledger.Shared = ledger.ALONE) -> ledger.Lease:
        """As the gateway does it."""
        subject = ledger.subject_key("subject", mark)
        lease = ledger.Lease.new(ledger.NAMESPACE, subject, slot.run_micro_usd, shared)
        assert self.store.acquire(lease, slot).admitted
        return lease

    def spent(self, run: Billed) -> int:
        """Micro-USD that the ledger has of it; -1 while it is still held."""
        asked = ledger.Peek(ledger.NAMESPACE, run.lease.subject_key, shared=run.lease.shared)
        used = self.store.peek(asked)
        return -1 if used.running else used.spent_day_micro_usd

    def wrong(self, run: Billed) -> str:
        """What is not as it should be; empty where what is booked is what was charged."""
        least, most = self.charges.bounds(run.mark, run.model)
        booked = self.spent(run)
        return "" if least <= booked <= most else f"{run.mark}: booked {booked}, charged {least} to {most}"

    @property
    def store(self) -> RedisLedger:
        return RedisLedger(RedisAddress(self.redis.url, timeout=HANG_S))


def proxy_of(invoker: Invoker) -> psutil.Process:
    return _children(invoker, "claude_invoker.metering")[0]


def clis_of(invoker: Invoker) -> list[psutil.Process]:
    return invoker.clis()


def _children(invoker: Invoker, word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(invoker.pid).children():
        with suppress(psutil.Error):  # it ends meanwhile
            if word in process.cmdline():
                found.append(process)
    return found


def eventually(condition: Callable[[], object], what: Callable[[], object], within_s: float = HANG_S) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.05)
