"""A job's request is tried again: by its caller alone, as the tier of today allows it, counted as any new one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_contract import ledger
from claude_contract.claims import Repository
from claude_invoker.audit import cli, person
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log
from claude_invoker.caller import Caller
from claude_invoker.holding import Bounds
from claude_invoker.jobs.again import in_place, misplaced, refusal
from claude_invoker.jobs.record import Job, JobRequest, State
from claude_invoker.jobs.store import ALL, HELD, PREFIX, Store, connect, now_ms
from tests.jobs.conftest import Gateway, job, lease, serving, slot
from tests.jobs.test_api import leases
from tests.rate_tiers.servers import RedisProcess

HOME = "/claude/dashboard"
OURS = {"Sec-Fetch-Site": "same-origin"}
KEPT = 65_536


def store_of(gateway: Gateway) -> Store:
    store: Store = gateway.app.state.services.jobs.store
    return store


async def over(store: Store, new: Job, state: str = "failed") -> Job:
    """It has run, and has ended so."""
    await store.add(new)
    claimed = await store.claim(f"ticket of {new.id}", "w")
    assert claimed is not None and claimed[0].id == new.id
    assert await store.finish(claimed[0], state, 3600)
    return await there(store, new.id)


async def there(store: Store, job_id: str) -> Job:
    found = await store.get(job_id)
    assert found is not None
    return found


async def cancelled(gateway: Gateway, prompt: str = "hi", subject: str = "alice", **more: Any) -> str:
    created = await gateway.create(prompt, subject, **more)
    assert (await gateway.ask("DELETE", created["links"]["self"], subject)).json()["state"] == "cancelled"
    return str(created["id"])


async def retry(gateway: Gateway, job_id: str, subject: str = "alice", **options: Any) -> httpx.Response:
    return await gateway.ask("POST", f"/claude/jobs/{job_id}/retry", subject, **options)


async def test_what_was_cancelled_is_done_by_another_job(redis_server: RedisProcess, state: Path) -> None:
    """With the very request, to which nothing is added a second time; both say which the other is."""
    composed = {"add": {"prepend": "Be kind. ", "context": {"branch": "main"}}}
    async with serving(redis_server, state, worker_concurrency=1) as gateway:
        store = store_of(gateway)
        first = await gateway.create("job=first sleep=600")
        await gateway.see(first, "alice", "running")
        body = {"prompt": "job=x", "system": "Short.", "tags": ["nightly"]}
        created = (await gateway.ask("POST", "/claude/jobs", json=body, claims=composed)).json()
        asked = (await there(store, created["id"])).request_json
        assert json.loads(asked)["system"] == "Be kind. Short."
        await gateway.ask("DELETE", created["links"]["self"])
        answer = await retry(gateway, created["id"], claims=composed)
        assert answer.status_code == 202, answer.text
        new = answer.json()
        assert answer.headers["location"] == new["links"]["self"] != created["links"]["self"]
        assert (await there(store, new["id"])).request_json == asked
        await gateway.ask("DELETE", first["links"]["self"])
        done = await gateway.see(new)
        assert (done["state"], done["result"]["result"]) == ("done", "did x")
        assert (done["retry_of"], done["tags"]) == (created["id"], ["nightly"])
        before = (await gateway.ask("GET", created["links"]["self"])).json()
        assert (before["state"], before["retried_as"]) == ("cancelled", new["id"])
        listed = (await gateway.ask("GET", "/claude/jobs?tag=nightly")).json()["jobs"]
        assert [(each["retry_of"], each["retried_as"]) for each in listed] == [(created["id"], None), (None, new["id"])]
        written = [line for line in person.export(state / "state" / "audit", "alice") if line["kind"] == "run.end"]
        assert {line["details"]["run"]: line["details"]["retry_of"] for line in written} == {
            first["id"]: None,
            new["id"]: created["id"],
        }
        refused = await retry(gateway, new["id"])
        assert refused.status_code == 409 and "the job is done" in refused.json()["detail"]


async def test_who_may_and_what_is_counted(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        store, mine = store_of(gateway), await cancelled(gateway)
        admin = {"roles": ["admin"]}
        for path in (f"/claude/jobs/{mine}/retry", f"{HOME}/jobs/{mine}/retry"):
            for subject, claims, status in (
                ("bob", {}, 404),
                ("root", admin, 403),  # sees it, and does not have its caller pay for it
                ("alice", {"chk": ["jwt-claims"]}, 401),  # by a route that counts nothing
                ("alice", {"chk": ["rate-tiers"]}, 401),
            ):
                answer = await gateway.ask("POST", path, subject, claims=claims, headers=OURS)
                assert answer.status_code == status, (path, subject, answer.text)
        for gone in (f"job_{'0' * 24}", "job_*", "run_1"):
            assert (await retry(gateway, gone)).status_code == 404
        for body in (b"{}", b"x", b'{"prompt": "another"}'):
            assert (await retry(gateway, mine, content=body)).status_code == 422, body
        for site in ("cross-site", "same-site", "none"):
            answer = await gateway.ask("POST", f"{HOME}/jobs/{mine}/retry", headers={"Sec-Fetch-Site": site})
            assert answer.status_code == 403, site
        assert await store.redis.zcard(ALL) == 1, "none of these has begun a job"
        # A place that the gateway has taken is given back: at once where nothing begins, and by a job that waits.
        held = ledger.Lease.new(ledger.NAMESPACE, "alice", 250_000)
        waits = await gateway.create("waits")
        for job_id, status in ((waits["id"], 409), (mine, 202)):
            answer = await retry(gateway, job_id, claims={"lease": str(held), **slot(1), "queue": None})
            assert answer.status_code == status, answer.text
            assert (await leases(gateway, "alice")).running == 0
        new = await there(store, answer.json()["id"])
        assert (new.caller.lease, new.caller.queued) == (str(held), True)


TODAY: tuple[tuple[dict[str, Any], dict[str, Any], int], ...] = (
    ({"model": "opus"}, {"models": ["opus", "haiku"]}, 202),
    ({"model": "opus"}, {"models": ["haiku"]}, 403),
    ({"tools": ["Bash"]}, {"tools": ["Read"]}, 403),
    ({"max_turns": 50, "max_budget_usd": 9.0}, {"max_turns": 3, "max_usd": 0.1}, 202),
)


async def test_a_job_of_a_better_tier_has_what_todays_allows(redis_server: RedisProcess, state: Path) -> None:
    better = {"tier": "team", "clamp": {"models": ["opus", "haiku"], "max_turns": 50, "max_usd": 9.0}}
    async with serving(redis_server, state, worker="none") as gateway:
        for wished, clamp, status in TODAY:
            asked = {"prompt": "hi"} | wished
            created = (await gateway.ask("POST", "/claude/jobs", json=asked, claims=better)).json()
            await gateway.ask("DELETE", created["links"]["self"])
            today = {"tier": "free", "clamp": clamp, "lease": lease("alice"), **slot(1)}
            answer = await retry(gateway, created["id"], claims=today)
            assert answer.status_code == status, (wished, answer.text)
            before = await there(store_of(gateway), created["id"])
            assert before.retried_as == (answer.json()["id"] if status == 202 else "")
            if status == 202:
                new = await there(store_of(gateway), answer.json()["id"])
                assert (new.tier, new.caller.tier, new.caller.lease) == ("free", "free", today["lease"])
                assert new.caller.clamp.to_claims() == clamp


async def test_an_idempotency_key_is_one_job(redis_server: RedisProcess, state: Path) -> None:
    """Of ten at once, and also when what is tried again has expired since."""
    none: dict[str, Any] = {"worker": "none"}
    async with serving(redis_server, state, **none) as gateway, serving(redis_server, state, **none) as other:
        store = store_of(gateway)
        one, two = await cancelled(gateway, "job=one"), await cancelled(gateway, "job=two")
        key = {"Idempotency-Key": "k"}
        # By a replica, too, that has not had it.
        asked = [retry((gateway, other)[n % 2], one, headers=key) for n in range(10)]
        (new,) = {answer.json()["id"] for answer in await asyncio.gather(*asked)}
        assert (await there(store, one)).retried_as == new
        assert (await retry(gateway, two, headers=key)).status_code == 422
        assert (await gateway.ask("POST", "/claude/jobs", json={"prompt": "hi"}, headers=key)).status_code == 422
        await store.redis.delete(PREFIX + f"job:{one}")
        again = await retry(gateway, one, headers=key)
        assert (again.status_code, again.json()["id"]) == (202, new)
        assert (await retry(gateway, one)).status_code == 410
        assert (await retry(gateway, two, "bob", headers=key)).status_code == 404
        anew = {(await retry(gateway, two)).json()["id"] for _ in range(2)}
        assert len(anew) == 2, "without a key each is a request of its own"


async def test_a_button_for_its_caller(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        mine = await cancelled(gateway)
        page = f"{HOME}/jobs/{mine}"
        button = f'action="{page}/retry"'
        assert button in (await gateway.ask("GET", page)).text
        of_admin = (await gateway.ask("GET", page, "root", claims={"roles": ["admin"]})).text
        assert button not in of_admin and "only its caller" in of_admin
        pressed = await asyncio.gather(*(gateway.ask("POST", f"{page}/retry", headers=OURS) for _ in range(3)))
        assert {answer.status_code for answer in pressed} == {303}
        (place,) = {answer.headers["location"] for answer in pressed}
        new = (await gateway.ask("GET", place)).text
        assert f'id="before" href="{page}"' in new and "/retry" not in new, "it waits"
        shown = (await gateway.ask("GET", page)).text
        assert f'href="{place}"' in shown and button not in shown
        large = f"{HOME}/jobs/{await cancelled(gateway, 'x' * KEPT)}"
        shown = (await gateway.ask("GET", large)).text
        assert "larger than 64 KiB" in shown and f"{large}/retry" not in shown


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
FRAME = len('{"prompt":""}')


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*blocks, {"type": "text", "text": "what is it?"}]}]}


REQUESTS: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"prompt": "hi"}, "failed", "kept"),
    ({"prompt": "hi"}, "cancelled", "kept"),
    ({"prompt": "hi"}, "done", ""),
    ({"prompt": "x" * (KEPT - FRAME)}, "failed", "kept"),
    ({"prompt": "x" * (KEPT - FRAME + 1)}, "failed", "large"),
    (said(), "failed", "kept"),
    (said(IMAGE), "failed", "attached"),
    (said(PDF), "failed", "attached"),
    ({"prompt": json.dumps(IMAGE, separators=(",", ":"))}, "failed", "kept"),  # words about one
)


async def test_small_requests_are_kept_and_counted(store: Store) -> None:
    for request, state, again in REQUESTS:
        new = Job.new(JobRequest(**request), Caller("alice"), 1000.0)
        ended = await over(store, new, state)
        assert ended.again == again, (str(request)[:80], state)
        assert (ended.request_json == new.request_json) == (again == "kept")
        counted = int(await store.redis.hget(PREFIX + "sizes", new.id))
        assert 0 <= counted - len(ended.request_json) < 5000
    sizes = await store.redis.hgetall(PREFIX + "sizes")
    held = await store.redis.hgetall(HELD)
    assert int(held["all"]) == int(held["of:alice"]) == sum(map(int, sizes.values()))


async def test_the_oldest_kept_requests_make_room(redis_server: RedisProcess) -> None:
    redis = connect(redis_server.url)
    store = Store(redis, (), Bounds(per_subject=300_000))
    ended: list[str] = []
    for _ in range(8):
        ended.append((await over(store, job(prompt="p" * 60_000))).id)
        # Their ends are known to the millisecond: one that has ended in the same as the one before is no older.
        last = now_ms()
        while now_ms() == last:
            pass
    await store.add(job(prompt="p" * 100_000))
    left = [each for each in ended if await store.get(each) is not None]
    assert 0 < len(left) < 5 and left == ended[-len(left) :]
    assert await store.held() <= 300_000
    await redis.aclose()


@pytest.mark.parametrize("gone", ["expired", "dropped"])
async def test_what_is_gone_is_not_written_to(redis_server: RedisProcess, gone: str) -> None:
    """It expires, or makes room, while it is tried again: the new job has all that it needs, and nothing is left of the
    old one."""
    redis = connect(redis_server.url)
    store = Store(redis, (), Bounds(per_subject=200_000))
    old = await over(store, job(prompt="p" * 60_000))
    if gone == "expired":
        await redis.delete(PREFIX + f"job:{old.id}")
    prompt = "p" * (60_000 if gone == "expired" else 150_000)
    new = Job.new(JobRequest(prompt=prompt), Caller("alice"), 2000.0, retry_of=old.id)
    assert await store.add(new) == ("accepted", new.id)
    assert not await redis.exists(PREFIX + f"job:{old.id}")
    assert (await there(store, new.id)).retry_of == old.id
    await redis.aclose()


async def test_nothing_is_written_to_anothers_job(store: Store) -> None:
    theirs = await over(store, job("bob"))
    await store.add(Job.new(JobRequest(prompt="hi"), Caller("alice"), 2000.0, retry_of=theirs.id))
    assert (await there(store, theirs.id)).retried_as == ""


async def test_one_that_is_being_cancelled_has_not_ended(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        created = await gateway.create()
        claimed = await store_of(gateway).claim("t", "w")
        assert claimed is not None
        assert (await gateway.ask("DELETE", created["links"]["self"])).json()["state"] == "running"
        early = await retry(gateway, created["id"])
        assert early.status_code == 409 and "being cancelled" in early.json()["detail"]
        assert await store_of(gateway).finish(claimed[0], "cancelled", 3600)
        assert (await retry(gateway, created["id"])).status_code == 202


async def test_a_persons_requests_are_exported_and_deleted(
    redis_server: RedisProcess,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine, theirs = await over(store, job(prompt="of alice")), await over(store, job("bob", prompt="of bob"))
    done, waits = await over(store, job(), "done"), job(prompt="it waits")
    await store.add(waits)
    log = Log(tmp_path / "audit")
    log.open()
    log.append([Entry("run.start", "alice", "alice")])
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(log.directory))
    monkeypatch.setenv("INVOKER_REDIS_URL", redis_server.url)

    async def said(verb: str) -> list[str]:
        assert await asyncio.to_thread(cli.main, [verb, "--subject", "alice"]) == 0
        return capsys.readouterr().out.splitlines()

    kept = [row for row in map(json.loads, await said("export")) if row["kind"] == "job.request"]
    assert [row["details"] for row in kept] == [{"job": mine.id, "request": {"prompt": "of alice"}}]
    assert await said("forget") == []
    assert "of alice" not in str(await store.redis.hget(PREFIX + f"job:{mine.id}", "request"))
    assert [row for row in map(json.loads, await said("export")) if row["kind"] == "job.request"] == []
    found = refusal(await there(store, mine.id), Caller("alice"))
    assert found is not None and (found.status, "it was deleted" in found.detail) == (410, True)
    for other, prompt in ((theirs, "of bob"), (waits, "it waits"), (done, "-")):
        assert (await there(store, other.id)).request.prompt == prompt
    sizes, held = await store.redis.hgetall(PREFIX + "sizes"), await store.redis.hgetall(HELD)
    assert int(held.pop("all")) == sum(map(int, held.values())) == sum(map(int, sizes.values()))


ALICE = Caller("alice", issuer="https://a")
ON_APP = Caller("alice", issuer="https://a", repository=Repository("org/app", "main", push=True))
AGAIN: tuple[tuple[Caller, Caller, State, str, int | None, str], ...] = (
    (ALICE, ALICE, "failed", "kept", None, ""),
    (ALICE, ALICE, "cancelled", "kept", None, ""),
    (ALICE, ALICE, "done", "", 409, "send its request"),
    (ALICE, ALICE, "queued", "", 409, "is queued"),
    (ALICE, ALICE, "running", "", 409, "is running"),
    (ALICE, ALICE, "waiting_for_approval", "", 409, "waiting_for_approval"),
    (ALICE, ALICE, "failed", "large", 410, "64 KiB"),
    (ALICE, ALICE, "failed", "attached", 410, "images"),
    (ALICE, ALICE, "failed", "", 410, "another release"),
    (ALICE, Caller("bob", issuer="https://a"), "failed", "kept", 403, "only its caller"),
    (ALICE, Caller("bob", roles=("admin",), issuer="https://a"), "failed", "kept", 403, "only its caller"),
    (ALICE, Caller("alice", issuer="https://b"), "failed", "kept", 403, "another issuer"),
    (ON_APP, ALICE, "failed", "kept", None, ""),  # which repository it is comes below
)


def test_whether_it_may_be_tried_again() -> None:
    for before, now, state, again, status, words in AGAIN:
        ended = Job.new(JobRequest(prompt="hi"), before, 1000.0)
        ended.state, ended.again = state, again  # type: ignore[assignment]
        found = refusal(ended, now)
        assert (found and found.status) == status, (before, now, state, again)
        assert words in (found.detail if found else "")


def on(name: str, ref: str | None = None, *, push: bool = False) -> Caller:
    return Caller("alice", issuer="https://a", repository=Repository(name, ref, push=push))


PLACES: tuple[tuple[Caller, Caller, str, str | None], ...] = (
    (ALICE, ALICE, "", None),
    (ON_APP, on("org/app", "main"), "", "main"),
    (ON_APP, on("org/app"), "", "main"),
    (on("org/app"), on("org/app"), "", None),
    (ON_APP, ALICE, "X-Repo: org/app (X-Branch is main, if it is said)", None),
    (ON_APP, on("org/b", "main"), "X-Repo: org/app", None),
    (ON_APP, on("org/app", "next"), "X-Branch is main", None),
    (on("org/app"), on("org/app", "main"), "no X-Branch", None),
    (ALICE, ON_APP, "name none", None),
)


def test_where_it_is_tried_again() -> None:
    """On the job's branch, at a repository that the gateway has allowed now; with what may be done there now."""
    for before, now, words, ref in PLACES:
        ended = Job.new(JobRequest(prompt="hi"), before, 1000.0)
        found = misplaced(ended, now)
        assert (found is None) == (not words) and words in (found.detail if found else ""), (before, now)
        if found is None:
            then = in_place(ended, now)
            assert then == (now if now is ALICE else on("org/app", ref)), "without the push that the job had"
