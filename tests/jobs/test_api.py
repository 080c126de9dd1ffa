"""`/jobs` through the application, its worker, and the ledger of the gateway."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_contract import ledger
from claude_invoker.audit import person
from claude_invoker.cli.binary import find_cli
from claude_invoker.jobs import reconciler
from claude_invoker.jobs.queue import Queues, enqueue_ticket
from claude_invoker.jobs.record import JobRequest
from claude_invoker.jobs.store import PREFIX, Store
from kong_claude_local.standin import StandIn
from tests.jobs.conftest import OVER, Gateway, job, lease, limits_on, serving, slot, until
from tests.rate_tiers.servers import RedisProcess
from tests.support.event_stream import blocks
from tests.support.waiting import HANG_S


async def leases(gateway: Gateway, subject: str) -> ledger.Usage:
    asked = ledger.Peek(ledger.NAMESPACE, ledger.subject_key("subject", subject))
    async with limits_on(gateway.redis_url) as limits:
        return await limits.peek(asked)


async def test_a_job_runs_and_leaves_what_it_made(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state) as gateway:
        answer = await gateway.ask("POST", "/claude/jobs", json={"prompt": "job=one write=made.txt"})
        assert answer.status_code == 202
        created = answer.json()
        assert answer.headers["location"] == f"/claude/jobs/{created['id']}" == created["links"]["self"]
        assert answer.headers["retry-after"] == "1"
        job = await gateway.see(created)
        assert (job["state"], job["result"]["result"], job["attempt"]) == ("done", "did one", 1)
        assert job["cost_usd"] == 0.01
        assert job["title"] == "job=one write=made.txt"
        assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
        (artifact,) = job["result"]["artifacts"]
        assert artifact["href"] == f"/claude/jobs/{job['id']}/artifacts/made.txt"
        got = await gateway.ask("GET", artifact["href"])
        assert got.text == "one\n"
        assert got.headers["etag"] == f'"{artifact["sha256"]}"'
        listed = (await gateway.ask("GET", "/claude/jobs")).json()
        assert [(shown["id"], shown["state"], "result" in shown and shown["result"]) for shown in listed["jobs"]] == [
            (job["id"], "done", None)
        ]
        assert (await gateway.ask("GET", "/claude/jobs?state=failed")).json()["jobs"] == []
        assert gateway.app.state.services.engine.runs == {}  # the record says all


async def test_others_jobs_are_not_there(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state) as gateway:
        created = await gateway.create("job=mine write=f")
        await gateway.see(created)
        here = created["links"]["self"]
        for method, path in [
            ("GET", here),
            ("DELETE", here),
            ("GET", f"{here}/events"),
            ("GET", f"{here}/artifacts"),
            ("GET", f"{here}/artifacts?format=zip"),
            ("GET", f"{here}/artifacts/f"),
            ("GET", f"/claude/dashboard/jobs/{created['id']}"),
            ("GET", f"/claude/dashboard/jobs/{created['id']}/live"),
            ("GET", f"/claude/dashboard/jobs/{created['id']}/artifacts/f"),
        ]:
            assert (await gateway.ask(method, path, "bob")).status_code == 404, path
        refused = await gateway.ask("GET", "/claude/jobs?all=true", "bob")
        assert refused.status_code == 403 and "needs the role admin" in refused.json()["detail"]
        assert (await gateway.ask("GET", "/claude/jobs?all=false", "bob")).json()["jobs"] == []
        admin = {"roles": ["admin"]}
        assert (await gateway.ask("GET", here, "root", claims=admin)).json()["subject"] == "alice"
        everybody = await gateway.ask("GET", "/claude/jobs?all=true", "root", claims=admin)
        assert [each["subject"] for each in everybody.json()["jobs"]] == ["alice"]
        query = {"query": f'{{ job(id: "{created["id"]}") {{ subject }} }}'}
        for subject, told, claims in (("root", "alice", admin), ("alice", None, {})):
            said = await gateway.ask("POST", "/claude/graphql", subject, json=query, claims=claims)
            assert said.json()["data"]["job"]["subject"] == told
        own = (await gateway.ask("GET", "/claude/jobs")).json()["jobs"]
        assert [each["subject"] for each in own] == [None], "to an admin alone"
        for wrong in ("job_x", "job_" + "0" * 24, "run_" + "0" * 24, "job_*"):
            assert (await gateway.ask("GET", f"/claude/jobs/{wrong}")).status_code == 404, wrong


PREFERRED = (
    ("", 200),
    ("respond-async", 202),
    ("wait=10, Respond-Async", 202),
    ("respond-async; x=1", 202),
    ("return=minimal", 200),
)


async def test_invoke_answers_later_where_that_is_preferred(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state) as gateway:
        for words, status in PREFERRED:
            headers = {"Prefer": words} if words else {}
            answer = await gateway.ask("POST", "/claude/invoke", json={"prompt": "job=p"}, headers=headers)
            assert answer.status_code == status, (words, answer.text)
            if status == 202:
                assert answer.headers["preference-applied"] == "respond-async"
                assert answer.headers["location"].startswith("/claude/jobs/job_")
                assert (await gateway.see(answer.json()))["state"] == "done"


async def test_what_the_gateway_lets_in_to_wait_waits_for_its_place(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state) as gateway:
        prompts = {f"p{n}": {"lease": lease("alice"), **slot(1)} for n in range(3)}
        order = state / "order"
        order.touch()
        order.chmod(0o666)  # runs have users of their own
        created = []
        for name, claims in prompts.items():
            body = {"prompt": f"job={name} sleep=0.4 log={order}"}
            answer = await gateway.ask("POST", "/claude/invoke", json=body, claims=claims)
            assert answer.status_code == 202, answer.text
            created.append(answer.json())
        jobs = [await gateway.see(each) for each in created]
        assert [job["state"] for job in jobs] == ["done"] * 3
        # By what the runs say: a place is free when a run is settled, which is before its end is written down.
        assert [line.split()[0] for line in order.read_text().splitlines()] == ["begin", "end"] * 3
        assert [job["attempt"] for job in jobs] == [1, 1, 1]
        usage = await leases(gateway, "alice")
        assert (usage.running, usage.reserved_micro_usd, usage.spent_day_micro_usd) == (0, 0, 30_000)


async def test_a_subjects_waiting_jobs_follow_each_other_closely(
    redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller at its limit must not wait for the reconciler between two jobs: there is none here after the start."""
    monkeypatch.setattr(reconciler, "EVERY_S", 10 * HANG_S)
    async with serving(redis_server, state) as gateway:
        created = []
        for n in range(12):
            claims = {"lease": lease("alice"), **slot(1)}
            created.append(
                (await gateway.ask("POST", "/claude/jobs", json={"prompt": f"job={n}"}, claims=claims)).json()
            )
        assert [(await gateway.see(each))["state"] for each in created] == ["done"] * 12


async def test_a_lease_from_the_gateway_is_given_back_while_a_job_waits(
    redis_server: RedisProcess, state: Path
) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        held = ledger.Lease.new(ledger.NAMESPACE, "alice", 250_000)
        terms = ledger.Slot(concurrent=1, run_micro_usd=250_000)
        async with limits_on(gateway.redis_url) as limits:
            await limits.acquire(held, terms)
        claims = {"lease": str(held), "slot": terms.claim()}
        answer = await gateway.ask("POST", "/claude/jobs", json={"prompt": "hi"}, claims=claims)
        assert answer.status_code == 202
        assert (await leases(gateway, "alice")).running == 0


async def test_a_job_that_begins_before_its_request_is_answered_keeps_its_place(
    redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker takes the lease that the request had: what the gateway has taken is given back before, not after."""
    terms = ledger.Slot(concurrent=1, run_micro_usd=250_000, ttl_ms=60_000)
    async with serving(redis_server, state) as gateway:
        place: Store = gateway.app.state.services.jobs.store
        claims = {"lease": lease("alice"), "slot": terms.claim()}
        enqueued = enqueue_ticket

        async def slowly(queues: Queues) -> None:
            await enqueued(queues)

            async def runs() -> bool:
                found = [await place.get(job_id) for job_id in await place.running()]
                return any(job is not None and job.work for job in found)

            await until(runs, "the job to run")

        monkeypatch.setattr("claude_invoker.api.jobs.enqueue_ticket", slowly)
        answer = await gateway.ask("POST", "/claude/jobs", json={"prompt": "job=a sleep=600"}, claims=claims)
        assert answer.status_code == 202
        assert (await leases(gateway, "alice")).running == 1
        await gateway.ask("DELETE", answer.json()["links"]["self"])


async def test_a_key_is_one_whether_its_request_waits_or_runs(redis_server: RedisProcess, state: Path) -> None:
    """The gateway lets one in to wait and the next one to run, as there are places: both were paid for."""
    async with serving(redis_server, state, worker="none") as gateway:

        async def post(key: str, *, waits: bool, prompt: str = "hi") -> httpx.Response:
            headers = {"Idempotency-Key": key} | ({"Prefer": "respond-async"} if waits else {})
            return await gateway.ask("POST", "/claude/invoke", json={"prompt": prompt, "tools": []}, headers=headers)

        job = await post("waits", waits=True)
        assert job.status_code == 202
        for waits in (False, True):
            again = await post("waits", waits=waits)
            assert (again.status_code, again.json()["id"]) == (202, job.json()["id"])
            assert (await post("waits", waits=waits, prompt="another")).status_code == 422
        run = await post("runs", waits=False)
        assert run.status_code == 200, run.text
        for waits in (True, False):
            again = await post("runs", waits=waits)
            assert (again.status_code, again.json()["id"]) == (200, run.json()["id"]), again.text
            assert again.headers["Idempotent-Replayed"] == "true"
        # The control: with a key each they are four.
        others = [await post(f"own-{waits}", waits=waits) for waits in (True, False)]
        ids = {each.json()["id"] for each in (job, run, *others)}
        assert [each.status_code for each in others] == [202, 200] and len(ids) == 4


async def test_idempotency(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:

        async def post(
            key: str, body: dict[str, object], subject: str = "alice", path: str = "/claude/jobs"
        ) -> tuple[int, str]:
            headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
            answer = await gateway.ask("POST", path, subject, json=body, headers=headers)
            return answer.status_code, answer.json().get("id")

        first = await post("k1", {"prompt": "a"})
        assert first[0] == 202
        assert await post("k1", {"prompt": "a"}) == first
        assert (await post("k1", {"prompt": "b"}))[0] == 422
        assert (await post("k1", {"prompt": "a"}, path="/claude/invoke"))[0] == 422
        stranger = await post("k1", {"prompt": "b"}, "bob")
        assert stranger[0] == 202
        assert stranger[1] != first[1]
        assert (await post("k 2", {"prompt": "a"}))[0] == 400
        assert (await post("x" * 256, {"prompt": "a"}))[0] == 400
        both = await asyncio.gather(*[post("k3", {"prompt": "c"}) for _ in range(10)])
        assert len(set(both)) == 1
        assert sum((await gateway.app.state.services.jobs.store.waiting()).values()) == 3


REFUSED: tuple[tuple[bytes, dict[str, object], int], ...] = (
    (b"nonsense", {}, 400),
    (b"[]", {}, 422),
    (b'{"prompt": ""}', {}, 422),
    (b'{"prompt": "x", "callback_url": "ftp://x"}', {}, 422),
    (b'{"prompt": "x", "tools": ["Bash"]}', {"clamp": {"tools": ["Read"]}}, 403),
    (b'{"prompt": "x", "model": "opus"}', {"clamp": {"models": ["haiku"]}}, 403),
    (b'{"prompt": "x"}', {"chk": ["jwt-claims"]}, 401),
    (b'{"prompt": "x"}', {"chk": ["rate-tiers"]}, 401),
)


async def test_what_cannot_run_is_refused_at_once(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        for body, claims, status in REFUSED:
            answer = await gateway.ask("POST", "/claude/jobs", content=body, claims=claims)
            assert answer.status_code == status, (body, claims, answer.text)
            assert await gateway.app.state.services.jobs.store.redis.keys(PREFIX + "*") == []


TAGS_THAT_ARE_NONE: tuple[tuple[object, str], ...] = (
    (["a b"], "tags[0]"),
    (["ok", ""], "tags[1]"),
    (["x" * 41], "tags[0]"),
    (["-a"], "tags[0]"),
    (["a\n"], "tags[0]"),
    (["ü"], "tags[0]"),
    ([1], "tags[0]"),
    ([f"t{n}" for n in range(9)], "tags"),
    ("nightly", "tags"),
)


QUERIES_OF_NO_LIST = (
    ("jobs", "tags=nightly", "'tags', which is not known here: there is state, cursor, limit, all, tag"),
    ("jobs", "state=done&Tag=nightly", "'Tag', which is not known here: there is state"),
    ("jobs", "tag=nightly&tag=night", "names tag more than once"),
    ("jobs", "all=true&x" + "y" * 300, "'x" + "y" * 59 + "', which"),
    ("runs", "tags=night", "'tags', which is not known here: there is state, since, until, session"),
    ("files", "sha256=0", "'sha256', which is not known here: nothing can be asked for there"),
    ("catalog", "kind=skill", "'kind', which is not known here"),
    ("{job}/artifacts", "fromat=zip", "'fromat', which is not known here: there is format"),
    ("{run}/artifacts", "fromat=zip", "'fromat', which is not known here: there is format"),
    ("{job}/permissions", "state=waiting", "'state', which is not known here"),
    ("{run}/permissions", "state=waiting", "'state', which is not known here"),
)


async def test_jobs_and_runs_are_found_by_their_tags(redis_server: RedisProcess, state: Path) -> None:
    """They are given back, listed, part of what an Idempotency-Key stands for, and in the audit log."""
    async with serving(redis_server, state) as gateway:
        for tags, at in TAGS_THAT_ARE_NONE:
            for path in ("/claude/jobs", "/claude/invoke"):
                refused = await gateway.ask("POST", path, json={"prompt": "hi", "tags": tags})
                assert refused.status_code == 422 and refused.json()["errors"][0]["at"] == at, (tags, refused.text)
        most = ["nightly", "billing", *(f"t{n}" for n in range(5)), "x" * 40]
        job = await gateway.see(await gateway.create("job=a", tags=most))
        assert (job["state"], job["tags"]) == ("done", most)
        other = await gateway.see(await gateway.create("job=b", tags=["night", "night"]))
        assert other["tags"] == ["night"]
        assert (await gateway.create("job=c", tags=None))["tags"] == []
        answer = await gateway.ask("POST", "/claude/invoke", json={"prompt": "job=d", "tags": ["night", "x"]})
        run = answer.json()["id"]
        assert (await gateway.ask("GET", f"/claude/runs/{run}")).json()["tags"] == ["night", "x"]
        for place, tag, found in (
            ("jobs", "nightly", [job["id"]]),
            ("jobs", "night", [other["id"]]),
            ("jobs", "nigh", []),
            ("jobs", "nightly&state=failed", []),
            ("runs", "night", [run]),
            ("runs", "nightly", []),
        ):
            listed = (await gateway.ask("GET", f"/claude/{place}?tag={tag}")).json()
            assert [each["id"] for each in listed[place]] == found, (place, tag)
            assert (await gateway.ask("GET", f"/claude/{place}?tag={tag}", "bob")).json()[place] == []
            page = (await gateway.ask("GET", f"/claude/dashboard/{place}?tag={tag}")).text
            assert re.findall(r'id="(?:job|run)-((?:job|run)_[0-9a-f]{24})"', page) == found, (place, tag)
        # A name that is none would show all as though it had been found.
        job_path, run_path = f"jobs/{job['id']}", f"runs/{run}"
        for place, query, told in QUERIES_OF_NO_LIST:
            path = f"/claude/{place.format(job=job_path, run=run_path)}"
            assert (await gateway.ask("GET", path)).status_code == 200, path
            refused = await gateway.ask("GET", f"{path}?{query}")
            assert (refused.status_code, refused.json()["type"][-12:]) == (400, ":bad-request"), refused.text
            assert told in refused.json()["detail"], refused.text
            assert (await gateway.client.get(f"{path}?{query}")).status_code == 401  # nothing to who is nobody
        for owner in (job_path, run_path):
            refused = await gateway.ask("GET", f"/claude/{owner}/artifacts?format=tar")
            assert refused.status_code == 422 and "'zip'" in refused.text
        # Clients of the vendors' send what their later versions know.
        assert (await gateway.ask("GET", "/claude/v1/models?beta=true")).status_code == 200
        asked = '{ jobs(tag: "night") { jobs { tags } } runs(tag: "x") { runs { tags } } }'
        said = (await gateway.ask("POST", "/claude/graphql", json={"query": asked})).json()
        assert said["data"] == {"jobs": {"jobs": [{"tags": ["night"]}]}, "runs": {"runs": [{"tags": ["night", "x"]}]}}
        again = []
        for tags in (["a"], ["a"], ["b"]):
            body, key = {"prompt": "job=e", "tags": tags}, {"Idempotency-Key": "k"}
            again.append((await gateway.ask("POST", "/claude/jobs", json=body, headers=key)).status_code)
        assert again == [202, 202, 422]
        written = person.export(state / "state" / "audit", "alice")
        of_run = {line["details"]["run"]: line["details"]["tags"] for line in written if line["kind"] == "run.end"}
        assert of_run[job["id"]] == most and of_run[run] == ["night", "x"]
        # The operator's metrics have none: anybody could make as many series as he likes.
        metrics = (await gateway.client.get("/metrics")).text
        assert "claude_invoker_" in metrics and "nightly" not in metrics


async def test_a_job_with_tags_is_one_that_the_release_before_runs(store: Store) -> None:
    """It refused a request with members that it does not know."""
    new = job(tags=["nightly"])
    await store.add(new)
    assert json.loads(await store.redis.hget(PREFIX + f"job:{new.id}", "request")) == {"prompt": "hi"}
    found = await store.get(new.id)
    assert found is not None and found.request == JobRequest(prompt="hi", tags=["nightly"])


async def test_cancelling(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker_concurrency=1) as gateway:
        running = await gateway.create("job=long sleep=600")
        waiting = await gateway.create("job=next")
        await gateway.see(running, "alice", "running")
        look = (await gateway.ask("GET", waiting["links"]["self"])).json()
        assert (look["state"], look["position"]) == ("queued", 0)
        gone = await gateway.ask("DELETE", waiting["links"]["self"])
        assert (gone.status_code, gone.json()["state"]) == (202, "cancelled")
        assert (await gateway.ask("DELETE", running["links"]["self"])).status_code == 202
        job = await gateway.see(running)
        assert job["state"] == "cancelled"
        assert job["error"]["detail"] == "cancelled by its caller"
        assert (await gateway.ask("DELETE", running["links"]["self"])).json()["state"] == "cancelled"
        # An admin's, of one that runs and of one that waits; in the audit log it is who it was.
        long, next_one = await gateway.create("job=longer sleep=600"), await gateway.create("job=again")
        await gateway.see(long, "alice", "running")
        for each in (next_one, long):
            gone = await gateway.ask("DELETE", each["links"]["self"], "root", claims={"roles": ["admin"]})
            assert gone.status_code == 202
        assert (await gateway.see(long))["error"]["detail"] == "cancelled by an administrator"
        done = await gateway.see(await gateway.create("job=after"))
        assert done["state"] == "done"
        late = (await gateway.ask("POST", f"{done['links']['self']}/interrupt")).json()
        told = {name: late[name] for name in ("status", "title", "detail")}
        assert told == {"status": 409, "title": "This cannot be done now", "detail": "the job is done"}

        def of(kind: str) -> dict[str, Any]:
            written = person.export(state / "state" / "audit", "alice")
            return {line["details"]["run"]: line for line in written if line["kind"] == kind}

        async def noted() -> bool:
            return done["id"] in of("run.end")

        await until(noted, "the last line")
        ends = {run: line["details"] for run, line in of("run.end").items()}
        told = {run: (each["end"], each["cancelled_by"], each["reason"]) for run, each in ends.items()}
        assert told == {
            running["id"]: ("cancelled", "alice", "cancelled by its caller"),
            long["id"]: ("cancelled", "root", "cancelled by an administrator"),
            done["id"]: ("succeeded", None, None),
        }
        withdrawn = {run: (line["actor"], line["details"]["state"]) for run, line in of("job.cancelled").items()}
        assert withdrawn == {waiting["id"]: ("alice", "queued"), next_one["id"]: ("root", "queued")}


async def test_events_go_on_where_a_client_left_on_another_server(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state) as gateway:
        created = await gateway.create("job=told")
        await gateway.see(created)
        whole = (await gateway.ask("GET", created["links"]["events"])).text
    told = blocks(whole)
    names = [block.split("\n")[1].removeprefix("event: ") for block in told]
    assert names[0] == "run.started"
    assert names[-2:] == ["run.finished", "job.done"]
    ids = [block.split("\n")[0].removeprefix("id: ") for block in told]
    async with serving(redis_server, state, worker="none") as other:
        for n, last in enumerate(ids):
            headers = {"Last-Event-ID": last}
            answer = await other.ask("GET", created["links"]["events"], headers=headers)
            assert answer.status_code == (204 if last == ids[-1] else 200)
            assert blocks(answer.text) == told[n + 1 :]
        everything = await other.ask("GET", created["links"]["events"], headers={"Last-Event-ID": "nonsense"})
        assert everything.text == whole and whole.startswith("retry: ")


async def test_expiry_is_410_and_takes_the_files_along(redis_server: RedisProcess, state: Path) -> None:
    settings = {"retention_s": 3600.0, "tier_retention_s": {"brief": 1.0}}
    async with serving(redis_server, state, **settings) as gateway:
        answer = await gateway.ask(
            "POST", "/claude/jobs", json={"prompt": "job=brief write=f"}, claims={"tier": "brief"}
        )
        created = answer.json()

        async def over() -> bool:
            found = await gateway.ask("GET", created["links"]["self"])
            return found.status_code == 410 or found.json()["state"] in OVER

        await until(over, "its end")
        kept = await gateway.create("job=kept write=f")
        await gateway.see(kept)
    # Another worker, that has not run it, must clean up.
    async with serving(redis_server, state, **settings) as gateway:

        async def gone() -> bool:
            return (await gateway.ask("GET", created["links"]["self"])).status_code == 410

        await until(gone, "410")
        assert (await gateway.ask("GET", created["links"]["self"], "bob")).status_code == 404
        assert (await gateway.ask("GET", created["links"]["events"])).status_code == 410
        folder = state / "state" / "artifacts" / created["id"]

        async def deleted() -> bool:
            return not folder.exists()

        await until(deleted, "the files' end")
        assert (state / "state" / "artifacts" / kept["id"] / "f").exists()
        assert [job["id"] for job in (await gateway.ask("GET", "/claude/jobs")).json()["jobs"]] == [kept["id"]]


async def test_the_real_cli_runs_a_job(redis_server: RedisProcess, state: Path) -> None:
    async with StandIn().running() as standin:
        real = {"cli_path": find_cli(None), "anthropic_base_url": standin.url, "anthropic_api_key": "sk-ant-dummy"}
        async with serving(redis_server, state, **real) as gateway:
            made = json.dumps({"file_path": "out.md", "content": "# made"})
            prints = json.dumps({"command": "head -c 25000 /dev/zero | tr '\\0' x"})
            prompt = f"[[tool Write {made}]] [[tool Bash {prints}]] [[say written]]"
            created = await gateway.create(prompt, tools=["Write", "Bash"])
            job = await gateway.see(created)
            assert job["state"] == "done", job
            # What a tool has said is cut in the stream, which says where all of it is.
            stream = (await gateway.ask("GET", created["links"]["events"])).text
            told = map(json.loads, re.findall("^data: (.*)$", stream, re.MULTILINE))
            (long,) = [event for event in told if "truncated" in event]
            assert (long["truncated"], len(long["content"]), long["characters"]) == (True, 20_000, 25_000)
            assert (await gateway.ask("GET", long["href"])).json()["content"] == "x" * 25_000
            assert (await gateway.ask("GET", long["href"], "bob")).status_code == 404
            assert (await gateway.ask("GET", created["links"]["events"] + "/9-9")).status_code == 404
            assert job["result"]["result"] == "written"
            assert [artifact["path"] for artifact in job["result"]["artifacts"]] == ["out.md"]
            refused = await gateway.see(await gateway.create("[[status 400]]"))
            assert (refused["state"], refused["error"]["status"]) == ("failed", 422)
