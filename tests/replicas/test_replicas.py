"""Two invokers as processes of their own: whichever is asked, the answer is that of the run."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest
import redis

from claude_contract.attestation import HEADER, Signer
from claude_invoker.audit import person
from tests.invoker.conftest import Invoker, as_root, tool, wait_for
from tests.jobs.conftest import CHECKS, SECRET, attestation, raw_path
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed
from tests.support.waiting import HANG_S

pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(180)]
SLOW = "[[delay 500]] [[say one two three four five six]]"
FILE = tool("Write", file_path="a b.md", content="# A")


class As(httpx.Auth):
    """The gateway in front of an invoker."""

    requires_request_body = True

    def __init__(self, subject: str = "alice", **claims: Any) -> None:
        self.subject, self.claims = subject, claims

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        path = raw_path(request)
        request.headers[HEADER] = attestation(request.method, path, self.subject, request.content, **self.claims)
        yield request


def client(of: Invoker, subject: str = "alice", **claims: Any) -> httpx.Client:
    return httpx.Client(base_url=of.url, auth=As(subject, **claims), timeout=HANG_S)


Pair = tuple[Invoker, Invoker]


@pytest.fixture(scope="module")
def start(start_invoker: Callable[..., Invoker], shared_redis: RedisProcess) -> Callable[..., Invoker]:
    def started(**more: Any) -> Invoker:
        url = shared_redis.url
        shared = {"redis_url": url, "runs_redis_url": url, "attestation_key": SECRET, "trust": "attested"}
        return start_invoker(pool_size=0, idle_s=60, **(shared | more))

    return started


@pytest.fixture(scope="module")
def pair(start: Callable[..., Invoker]) -> Pair:
    return start(), start()


def ids(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


def test_any_replica_answers_for_a_run_that_is_over(pair: Pair) -> None:
    one, other = pair
    with client(one) as here, client(other) as there:
        ran = here.post("/claude/invoke", json={"prompt": FILE, "tools": ["Write"]})
        assert ran.status_code == 200, ran.text
        run = f"/claude/runs/{ran.json()['id']}"
        wait_for(lambda: there.get(run).json()["state"] == "succeeded", what="its record")
        assert there.get(run).json() == here.get(run).json()
        assert there.get(f"{run}/artifacts").json() == here.get(f"{run}/artifacts").json() == ran.json()["artifacts"]
        # It has no files of the other, which has.
        file = there.get(ran.json()["artifacts"][0]["href"])
        assert (file.status_code, file.text) == (200, "# A")
        part = there.get(ran.json()["artifacts"][0]["href"], headers={"Range": "bytes=2-"})
        assert (part.status_code, part.text) == (206, "A")
        assert there.head(ran.json()["artifacts"][0]["href"]).headers["etag"] == file.headers["etag"]
        assert there.get(f"{run}/artifacts", params={"format": "zip"}).content[:2] == b"PK"
        assert there.get(f"{run}/events").text == here.get(f"{run}/events").text
        assert there.get(f"{run}/events", headers={"Last-Event-ID": "9999"}).status_code == 204
        assert there.delete(run).status_code == 202


def test_all_replicas_list_a_callers_runs(pair: Pair) -> None:
    """By HTTP and by GraphQL: those that are over and one that goes on, wherever it is."""
    streamed = {"Accept": "text/event-stream"}

    def ask(api: httpx.Client, **wanted: Any) -> Any:
        answer = api.get("/claude/runs", params=wanted)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with client(pair[0], "lister") as here, client(pair[1], "lister") as there, client(pair[1], "other") as other:
        first, *others = (api.post("/claude/invoke", json={"prompt": "hi"}).json() for api in (here, there, here))
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW, "session": "new"}, headers=streamed) as stream:
            last = stream.headers["x-claude-run"]
            wait_for(lambda: ask(there)["runs"][0]["id"] == last, what="its record")
            ids = [last, *reversed([first["id"], *(run["id"] for run in others)])]
            assert [run["state"] for run in ask(there)["runs"]] == ["running"] + ["succeeded"] * 3
            assert ask(here) == ask(there) and [run["id"] for run in ask(here)["runs"]] == ids
            assert ask(other)["runs"] == []
            page = ask(there, limit=3)
            assert [run["id"] for run in page["runs"]] == ids[:3]
            assert [run["id"] for run in ask(here, limit=3, cursor=page["next"])["runs"]] == ids[3:]
            assert [run["id"] for run in ask(there, state="running")["runs"]] == [last]
            assert there.delete(f"/claude/runs/{last}").status_code == 202
            stream.read()
        assert [run["id"] for run in ask(there, state="cancelled")["runs"]] == [last]
        shown = ask(there, until=ask(there)["runs"][2]["created_at"])["runs"]
        assert [run["id"] for run in shown] == [first["id"]]
        assert shown[0]["model"] == first["model"] and shown[0]["cost_usd"] == first["cost_usd"] > 0
        assert there.get(shown[0]["links"]["self"]).json()["result"]["result"] == first["result"]
        query = "query($c: String) { runs(state: succeeded, limit: 2, cursor: $c) { runs { id costUsd links } next } }"
        pages, cursor = list[Any](), None
        while cursor or not pages:
            answer = there.post("/claude/graphql", json={"query": query, "variables": {"c": cursor}}).json()
            pages.append(answer["data"]["runs"])
            cursor = pages[-1]["next"]
        assert [run["id"] for each in pages for run in each["runs"]] == ids[1:]


def test_a_list_of_what_is_none_is_refused(pair: Pair) -> None:
    wrong = {"state": "waiting", "since": "inf", "until": "yesterday", "cursor": "1.5", "limit": "101"}
    with client(pair[0]) as api:
        for name, value in wrong.items():
            answer = api.get("/claude/runs", params={name: value})
            assert (answer.status_code, answer.json()["type"][-8:]) == (422, ":invalid"), answer.text
            assert name in answer.text
        for argument in ("state: waiting", "since: 1e999", 'cursor: "1.5"', "limit: 0", "limit: null"):
            answer = api.post("/claude/graphql", json={"query": f"{{ runs({argument}) {{ next }} }}"})
            (error,) = answer.json()["errors"]
            assert error["extensions"]["status"] in (400, 422), answer.text
        assert api.get("/claude/runs", params={"since": "1e9", "until": "2e9", "limit": "100"}).status_code == 200


def test_a_run_that_goes_on_is_followed_and_cancelled_by_way_of_another(pair: Pair) -> None:
    one, other = pair
    streamed = {"Accept": "text/event-stream"}
    with client(one) as here, client(other) as there:
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=streamed) as stream:
            run = stream.headers["location"]
            assert there.get(run).json()["state"] in ("waiting", "running")
            followed = there.get(f"{run}/events").text
            own = stream.read().decode()
        assert ids(followed) == ids(own) and "event: run.finished" in followed
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=streamed) as stream:
            assert there.delete(stream.headers["location"]).status_code == 202
            assert "cancelled by its caller" in stream.read().decode()
        admin = client(other, "root", roles=["admin"])
        with admin, here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=streamed) as stream:
            assert admin.delete(stream.headers["location"]).status_code == 202
            assert "cancelled by an administrator" in stream.read().decode()
            run = stream.headers["x-claude-run"]

    def noted() -> Any:
        rows = [row["details"] for row in person.export(one.state / "audit", "alice") if row["kind"] == "run.end"]
        return [(row["cancelled_by"], row["reason"]) for row in rows if row["run"] == run]

    assert wait_for(noted, what="its line") == [("root", "cancelled by an administrator")]


def test_a_run_that_goes_on_is_looked_at_and_cancelled_by_graphql_of_another(pair: Pair) -> None:
    one, other = pair
    streamed = {"Accept": "text/event-stream"}

    def asked(api: httpx.Client, text: str, run: str) -> Any:
        answer = api.post("/claude/graphql", json={"query": text, "variables": {"id": run}})
        assert answer.status_code == 200, answer.text
        return answer.json()

    with client(one) as here, client(other) as there, client(other, "mallory") as stranger:
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=streamed) as stream:
            run = stream.headers["location"].rpartition("/")[2]
            look = "query ($id: ID!) { run(id: $id) { id state } }"
            assert asked(there, look, run)["data"]["run"]["state"] in ("waiting", "running")
            assert asked(stranger, look, run)["errors"][0]["extensions"]["code"] == "not-found"
            ended = asked(there, "mutation ($id: ID!) { cancel(id: $id) { id } }", run)
            assert ended["data"]["cancel"]["id"] == run, ended
            assert "cancelled by its caller" in stream.read().decode()


def test_a_run_is_nobody_elses_at_any_replica(pair: Pair) -> None:
    one, other = pair
    with client(one) as here:
        run = "/claude/runs/" + here.post("/claude/invoke", json={"prompt": FILE, "tools": ["Write"]}).json()["id"]
    asked = [
        ("GET", run), ("GET", f"{run}/events"), ("DELETE", run), ("GET", f"{run}/artifacts"),
        ("GET", f"{run}/artifacts/a%20b.md"), ("GET", "/claude/runs/run_of_nobody"),
    ]  # fmt: skip
    with client(other, "mallory") as stranger, client(other, "root", roles=["admin"]) as admin:
        unknown = stranger.get("/claude/runs/run_0").json()
        for method, path in asked:
            refused = stranger.request(method, path)
            assert (refused.status_code, refused.json()) == (404, unknown), path  # as one that does not exist
        assert admin.get(run).status_code == 200


def test_what_replicas_say_to_each_other_nobody_else_can_say(pair: Pair, shared_redis: RedisProcess) -> None:
    """The header that a replica believes of another: only with the key, for that replica, that request, once."""
    one, _ = pair
    with client(one) as here:
        run = "/claude/runs/" + here.post("/claude/invoke", json={"prompt": "hi"}).json()["id"]
    with redis.Redis.from_url(shared_redis.url) as known:
        key = known.get("claude:{runs}:key")
        names = [name.decode() for name in known.hkeys("claude:{runs}:replicas")]
    assert isinstance(key, bytes) and len(key) == 32
    (name,) = [name for name in names if f":{one.pid}:" in name]
    kid = "claude-invoker replica"
    claims: dict[str, Any] = {"sub": "alice", "chk": CHECKS}

    def ask(secret: bytes, audience: str, path: str = run) -> int:
        signer = Signer(kid, secret, {kid: secret}, issuer="claude-invoker", audience=audience)
        header = signed(signer, "GET", path, **claims)
        answers = [httpx.get(f"{one.url}{run}", headers={HEADER: header}).status_code for _ in range(2)]
        assert answers[1] == 401  # once
        return answers[0]

    assert ask(key, name) == 200  # the control
    assert ask(key, "another:1:ff") == 401
    assert ask(b"x" * 32, name) == 401
    assert ask(SECRET.encode(), name) == 401
    assert ask(key, name, "/claude/runs/run_other") == 401


def test_a_run_whose_replica_is_killed_ends_as_an_error_and_one_that_was_over_is_kept(
    start: Callable[..., Invoker], pair: Pair
) -> None:
    victim, other = start(), pair[1]
    with client(victim) as here, client(other) as there:
        done = "/claude/runs/" + here.post("/claude/invoke", json={"prompt": "hi"}).json()["id"]
        wait_for(lambda: there.get(done).json()["state"] == "succeeded", what="its record")
        with here.stream(
            "POST",
            "/claude/invoke",
            json={"prompt": SLOW.replace("500", "9000")},
            headers={"Accept": "text/event-stream"},
        ) as stream:
            run = stream.headers["location"]
            assert there.get(run).status_code == 200
            os.kill(victim.pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                stream.read()
        assert there.get(run).status_code == 503  # it may come back
        wait_for(lambda: there.get(run).status_code == 200, what="that it is given up")
        view = there.get(run).json()
        assert (view["state"], view["error"]["type"][-11:]) == ("failed", "worker-lost")
        assert "event: error" in there.get(f"{run}/events", headers={"Last-Event-ID": "3"}).text
        assert there.get(done).json()["result"]["result"]


def test_an_answer_outlives_whoever_gave_it(start: Callable[..., Invoker], pair: Pair, own_redis: RedisProcess) -> None:
    """A run's end is known to all before it is told to its caller: a kill right after it loses nothing."""
    victim, other = (start(runs_redis_url=own_redis.url) for _ in range(2))
    streamed = {"Accept": "text/event-stream"}
    with client(victim) as here, client(other) as there, redis.Redis.from_url(own_redis.url) as runs:
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=streamed) as stream:
            run, text = stream.headers["location"], ""
            for piece in stream.iter_text():
                if "six" in piece:
                    # What is to be written of its end takes a moment, but not as long as is waited for.
                    runs.execute_command("CLIENT", "PAUSE", 900, "WRITE")
                text += piece
                if "event: run.finished" in text:
                    os.kill(victim.pid, signal.SIGKILL)
                    break
        wait_for(lambda: there.get(run).status_code == 200, what="what is known of it")
        assert there.get(run).json()["state"] == "succeeded"


def test_a_full_or_dead_redis_of_runs_stops_no_run(start: Callable[..., Invoker], own_redis: RedisProcess) -> None:
    runs = own_redis
    invoker = start(runs_redis_url=runs.url)
    with redis.Redis.from_url(runs.url) as full, client(invoker) as api:
        full.config_set("maxmemory", "1")
        full.config_set("maxmemory-policy", "noeviction")
        run = api.post("/claude/invoke", json={"prompt": "hi"})
        assert run.status_code == 200
        assert api.get(f"/claude/runs/{run.json()['id']}").status_code == 200
        assert api.get("/claude/runs/run_0").status_code == 404
        job = api.post("/claude/jobs", json={"prompt": "hi"})
        assert (job.status_code, "their Redis is full" in job.text) == (503, True), job.text
        assert int(job.headers["retry-after"]) > 0
        runs.kill()
        again = api.post("/claude/invoke", json={"prompt": "hi"})
        assert again.status_code == 200
        assert api.get(f"/claude/runs/{again.json()['id']}").status_code == 200
        assert api.get("/claude/runs/run_0").status_code == 503  # who knows
    assert invoker.ready()
    assert "records of runs are not written" in invoker.log.read_text()


def test_jobs_are_where_runs_are_and_money_where_limits_are(
    start: Callable[..., Invoker], own_redis: RedisProcess, shared_redis: RedisProcess
) -> None:
    """What jobs hold never fills the Redis by which the gateway lets requests in."""
    invoker = start(runs_redis_url=own_redis.url, worker="embedded")
    with client(invoker) as api:
        made = api.post("/claude/jobs", json={"prompt": "[[say fine]]"})
        assert made.status_code == 202, made.text
        wait_for(lambda: api.get(made.headers["location"]).json()["state"] == "done", what="the job")
    job = made.json()["id"]

    def keys(server: RedisProcess) -> list[bytes]:
        return list(server.client().scan_iter("*"))

    assert [key for key in keys(own_redis) if job.encode() in key]
    assert not [key for key in keys(shared_redis) if job.encode() in key]
    assert not [key for key in keys(own_redis) if b"budget" in key or b"leases" in key]


def test_many_at_once(pair: Pair) -> None:
    """Each request goes to either: nothing is lost, and nothing answered wrongly."""
    wrong: list[str] = []

    def one(number: int) -> None:
        clients = [client(invoker, f"user{number}") for invoker in pair]
        for turn in range(3):
            body = {"prompt": f"[[say {number}-{turn}]]"}
            made = clients[(number + turn) % 2].post("/claude/invoke", json=body)
            if made.status_code != 200:
                wrong.append(made.text)
                continue
            for asked in clients:
                seen = asked.get(f"/claude/runs/{made.json()['id']}").json()
                if seen.get("result", {}).get("result") != made.json()["result"]:
                    wrong.append(str(seen))
        for opened in clients:
            opened.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
