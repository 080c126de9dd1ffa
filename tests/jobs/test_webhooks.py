"""Webhooks: where they may go, what they say, and that they arrive."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from claude_contract import ledger
from claude_contract.ledger import BudgetWarning
from claude_contract.ledger.warnings import OWED
from claude_invoker.jobs import queue, reconciler, webhook
from claude_invoker.jobs.delivery import is_final
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.record import OVER, Job
from claude_invoker.jobs.store import Store
from claude_invoker.model import Artifact, RunResult
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from tests.jobs.conftest import job, limits_on, serving, until
from tests.rate_tiers.servers import RedisProcess

KEY = "a secret of the operator's"


def settings(**more: Any) -> Settings:
    chosen = {
        "webhook_hosts": ("hooks.example.com", "*.wild.example"),
        "webhook_secret": KEY,
        "attestation_key": "k" * 32,
    }
    return Settings(**(chosen | more))


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",  # not https
        "https://hooks.example.com.evil.test/",
        "https://evil.test/hooks.example.com",
        "https://evil.test#hooks.example.com",
        "https://hooks.example.com@evil.test/",
        "https://user:word@hooks.example.com/",
        "https://@hooks.example.com/",
        "https://hooks.example.com\\@evil.test/",
        "https://evil.test\\.hooks.example.com/",
        "https://hooks.example.com#f",
        "https://wild.example/",
        "https://notwild.example/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://localhost/",
        "https://169.254.169.254/latest/meta-data",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com:x/",
        "https://[hooks.example.com/",
        "https:///x",
        "https://ｈooks.example.com/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(Problem) as refused:
        webhook.check_url(url, settings())
    assert refused.value.status == 422


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example.com/x?y=1", "https://HOOKS.example.com:8443/", "https://a.b.wild.example/"],
)
def test_urls_that_are_taken(url: str) -> None:
    webhook.check_url(url, settings())
    with pytest.raises(Problem):
        webhook.check_url(url, settings(webhook_hosts=()))
    with pytest.raises(Problem, match="secret"):
        webhook.check_url(url, settings(webhook_secret=None))


async def test_a_name_is_looked_up_once_and_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against DNS rebinding: what was judged is what is connected to."""
    answers = [["10.0.0.1"], ["10.0.0.1", "93.184.215.14"], ["::1"], []]
    asked = []

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers.pop(0)
        if not found:
            raise socket.gaierror("unknown")
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup, raising=False)
    with pytest.raises(webhook.NotDelivered):
        await webhook.address("x", 443, settings())
    assert await webhook.address("x", 443, settings()) == "93.184.215.14"
    with pytest.raises(webhook.NotDelivered):
        await webhook.address("x", 443, settings())
    with pytest.raises(webhook.NotDelivered):
        await webhook.address("x", 443, settings())
    assert asked == ["x"] * 4


@pytest.mark.parametrize("secret", [KEY, "whsec_" + base64.b64encode(b"k" * 24).decode()])
def test_the_signature_is_that_of_the_specification(secret: str) -> None:
    done = ended()
    headers, body = webhook.signed(webhook.event(done, "/claude"), secret)
    key = secret if secret.startswith("whsec_") else base64.b64encode(secret.encode()).decode()
    event: Any = Webhook(key).verify(body, headers)
    assert (event["specversion"], event["type"]) == ("1.0", "dev.kong-claude.job.done")
    assert event["subject"] == event["data"]["id"] == done.id
    assert event["traceparent"] == headers["traceparent"] == done.traceparent
    assert headers["webhook-id"] == event["id"]
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(body.replace(b"done", b"fine"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"another").decode()).verify(body, headers)


def test_what_it_has_made_can_be_asked_for() -> None:
    done = ended()
    made = Artifact(path="a b/ü.pdf", size=1, type="application/pdf", sha256="0" * 64)
    done.result = RunResult(id=done.id, result="made", model="m", stop_reason="end_turn", artifacts=[made])
    data = webhook.event(done, "/claude")["data"]
    assert data["links"]["self"] == f"/claude/jobs/{done.id}"
    assert data["result"]["artifacts"][0]["href"] == f"/claude/jobs/{done.id}/artifacts/a%20b/%C3%BC.pdf"
    assert done.result.artifacts == [made], "the job's own are as they were"


def ended() -> Job:
    done = job(callback_url="https://hooks.example.com/")
    done.state, done.attempt, done.finished_at, done.traceparent = "done", 1, 1000.0, "00-" + "1" * 32 + "-" + "2" * 16
    return done


@dataclass
class Receiver:
    """Answers in turn with these statuses, the last one for ever."""

    statuses: list[int]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        original = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in head[1:] if line}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((original, body))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writer.write(
            f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:{self.port}/other\r\nContent-Length: 0\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()


def local(**more: Any) -> dict[str, Any]:
    return {"webhook_hosts": ("127.0.0.1",), "webhook_private": True, "webhook_secret": KEY} | more


async def test_it_is_tried_again_until_it_is_taken(
    redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "DELIVERY_DELAY_S", 0.1)
    async with Receiver([500, 429, 204]).listening() as receiver, serving(redis_server, state, **local()) as gateway:
        created = await gateway.create("job=w", callback_url=f"http://127.0.0.1:{receiver.port}/hook")

        async def delivered() -> Any:
            owed = await gateway.app.state.services.jobs.store.owed(2**53)
            found = (await gateway.ask("GET", created["links"]["self"])).json()
            return found if owed == [] and len(found.get("deliveries", [])) == 3 else None

        seen = await until(delivered, "nothing owed")
        assert [delivery["status"] for delivery in seen["deliveries"]] == [500, 429, 204]
    assert len(receiver.requests) == 3
    ids = {headers["webhook-id"] for headers, _ in receiver.requests}
    assert len(ids) == 1
    for headers, body in receiver.requests:
        event: Any = Webhook(base64.b64encode(KEY.encode()).decode()).verify(body, headers)
        assert event["data"]["state"] == "done"
        assert event["data"]["result"]["result"] == "did w"
        assert event["data"]["links"] == created["links"]


@pytest.mark.parametrize("answer", [301, 302, 304, 307, 308, 410])
def test_who_has_moved_or_gone_hears_no_more(answer: int) -> None:
    assert is_final(answer)
    assert not any(map(is_final, (None, 400, 401, 404, 408, 409, 429, 500, 502, 503)))


async def test_a_redirect_is_neither_followed_nor_tried_again(
    redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "DELIVERY_DELAY_S", 0.05)
    async with Receiver([302, 204]).listening() as receiver, serving(redis_server, state, **local()) as gateway:
        first = await gateway.create("job=w", callback_url=f"http://127.0.0.1:{receiver.port}/hook")

        async def one() -> Any:
            return (await gateway.ask("GET", first["links"]["self"])).json().get("deliveries")

        assert [delivery["status"] for delivery in await until(one, "a try")] == [302]
        # The receiver's next request is the next job's, not a second try.
        second = await gateway.create("job=w", callback_url=f"http://127.0.0.1:{receiver.port}/hook")

        async def two() -> bool:
            return len(receiver.requests) == 2

        await until(two, "the next job's")
        told = [json.loads(body)["subject"] for _, body in receiver.requests]
        assert told == [first["id"], second["id"]]

        async def settled() -> bool:
            return not await gateway.app.state.services.jobs.store.owed(2**53)

        await until(settled, "nothing owed")


async def test_a_cancelled_jobs_webhook_is_sent_too(redis_server: RedisProcess, state: Path) -> None:
    async with Receiver([200]).listening() as receiver:
        async with serving(redis_server, state, worker="none", **local()) as gateway:
            created = await gateway.create("job=w", callback_url=f"http://127.0.0.1:{receiver.port}/hook")
            await gateway.ask("DELETE", created["links"]["self"])
            # As if this server had died before it could enqueue the delivery: it is owed all the same.
            jobs = gateway.app.state.services.jobs
            owed = jobs.queues.deliveries
            await jobs.store.redis.delete(owed.namespace("queued"), owed.namespace("incomplete"))
            await jobs.store.redis.zadd("claude:{jobs}:callbacks", {created["id"]: 1})
        async with serving(redis_server, state, **local()) as gateway:

            async def sent() -> bool:
                return bool(receiver.requests)

            await until(sent, "the webhook")
    assert json.loads(receiver.requests[0][1])["type"] == "dev.kong-claude.job.cancelled"


async def test_a_private_address_gets_nothing(redis_server: RedisProcess, state: Path) -> None:
    async with Receiver([200]).listening() as receiver:
        hosts = local(webhook_private=False, webhook_hosts=("localhost",))
        async with serving(redis_server, state, **hosts) as gateway:
            created = await gateway.create("job=w", callback_url=f"https://localhost:{receiver.port}/")

            async def tried() -> Any:
                found = (await gateway.ask("GET", created["links"]["self"])).json()
                return found.get("deliveries")

            deliveries = await until(tried, "a try")
            assert "private" in deliveries[0]["error"]
            assert (await gateway.see(created))["state"] in OVER
    assert receiver.requests == []


# The operator's own


def a_warning(account: str, percent: int = 80) -> BudgetWarning:
    budget = ledger.Budget(10_000_000, "month", "Europe/Berlin")
    start, end = budget.span(time.time_ns() // 1_000_000)
    found = ledger.Figures(budget, 8_000_001, 500_000, start, end, 60_000)
    return BudgetWarning("claude", "*", account, account.startswith("pool."), found, percent)


async def test_the_operator_is_told_of_each_once(
    redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed, tried again until it is taken; a receiver that is gone gets no more, nor one that another worker told."""
    monkeypatch.setattr(queue, "DELIVERY_DELAY_S", 0.1)
    monkeypatch.setattr(reconciler, "EVERY_S", 0.2)
    async with limits_on(redis_server.url) as store, Receiver([500, 204, 204, 410, 204]).listening() as receiver:
        hook = {"budget_webhook": f"http://127.0.0.1:{receiver.port}/budget", "webhook_secret": KEY}
        for account, percent in (("pool.team:claim:red", 80), ("pool.team:claim:red", 95), ("pool.all:*", 80)):
            assert [await store.tell(a_warning(account, percent)) for _ in range(2)] == [True, False]
            await asyncio.sleep(0.002)
        owed = [notice.decode() for notice in await store.redis.zrange(OWED, 0, -1)]
        async with serving(redis_server, state, **hook) as gateway:

            async def all_told() -> bool:
                return not await store.redis.exists(OWED)

            await until(all_told, "nothing is owed")
            assert not await store.tell(a_warning("pool.all:*"))
            queues = gateway.app.state.services.jobs.queues
            for notice in owed:  # by a worker that has looked before
                await queue.enqueue_notice(queues, notice)

            async def all_done() -> bool:
                return bool(await queues.deliveries.count("incomplete") == 0)

            await until(all_done, "no delivery is left")
    events: list[Any] = []
    for headers, body in receiver.requests:
        events.append(Webhook(base64.b64encode(KEY.encode()).decode()).verify(body, headers))
        assert headers["webhook-id"] == events[-1]["id"] and headers["content-type"] == "application/cloudevents+json"
    assert len(receiver.requests) == 4, "three, one of them twice"
    assert len({event["id"] for event in events}) == 3
    told = {(event["data"].get("of", ""), event["data"]["percent"]) for event in events}
    assert told == {("red", 80), ("red", 95), ("", 80)}
    assert {event["type"] for event in events} == {"dev.kong-claude.budget.warning"}
    found = events[0]["data"]["budget"]
    assert (found["name"], found["zone"]) == ("usd_per_month", "Europe/Berlin")
    assert (found["limit"], found["spent"], found["reserved"], found["left"]) == (10.0, 8.000001, 0.5, 1.499999)
    assert found["start"] < time.time() < found["end"]


async def test_without_a_webhook_nothing_is_kept_for_the_operator(redis_server: RedisProcess) -> None:
    """The control: with one it is."""
    queues = queue.open_queues(redis_server.url)
    store = Store.open(redis_server.url, redis_server.url, (), settings().held)

    async def look(**more: Any) -> int:
        ends = Ends(
            settings(redis_url="redis://127.0.0.1:1", **more), None, cast(Any, None), store, queues, cast(Any, None)
        )
        await reconciler.Reconciler(ends, store, queues, Path("/nonexistent"), (), lambda *_: None)._tell_operator()
        return int(await limits.redis.zcard(OWED))

    async with limits_on(redis_server.url) as limits:
        assert await limits.tell(a_warning("pool.all:*"))
        assert [await look(budget_webhook="https://alerts.example.com/"), await look()] == [1, 0]
    await queues.close()
    await store.close()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"budget_webhook": "ftp://alerts.example.com/"}, "must be an http or https URL"),
        ({"budget_webhook": "https:///x"}, "must be an http or https URL"),
        ({"budget_webhook": "https://me:word@alerts.example.com/"}, "without credentials"),
        ({"budget_webhook": "https://[alerts/"}, "must be an http or https URL"),
        ({"budget_webhook": "https://alerts.example.com/", "webhook_secret": None}, "needs INVOKER_WEBHOOK_SECRET"),
        ({"budget_webhook": "https://alerts.example.com/", "redis_url": None}, "needs INVOKER_REDIS_URL"),
    ],
)
def test_an_operators_webhook_that_cannot_be_sent_does_not_start(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        settings(**({"redis_url": "redis://127.0.0.1:1"} | more))
    assert "word" not in str(refused.value)
    assert settings(budget_webhook="http://10.1.2.3/x", redis_url="redis://127.0.0.1:1").budget_webhook is not None
