"""An Idempotency-Key on what starts a run: who repeats a request has the run of the first, at any invoker, and pays once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from claude_invoker.idempotency import BEGINNING_S, KEPT_S, Claim, Claims, begins_anew
from claude_invoker.model import RunView
from claude_invoker.problem import PREFIX, Problem
from claude_invoker.replicas.record import LOST
from tests.invoker.conftest import Invoker, StandInProcess, as_root, tool, wait_for
from tests.jobs.conftest import SECRET
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_replicas import SLOW, Pair, client, ids, pair, start

__all__ = ["pair", "start"]  # fixtures
pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(180)]
STREAM = {"Accept": "text/event-stream"}


def keyed(key: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": key} | more


def asked_for(stand_in: StandInProcess, word: str) -> int:
    return sum(word in str(line) for line in stand_in.lines())


@pytest.fixture(scope="module")
def alone(start_invoker: Callable[..., Invoker]) -> Pair:
    """Without a Redis of the runs there is one that knows of them."""
    one = start_invoker(pool_size=0, idle_s=60, attestation_key=SECRET, trust="attested")
    return one, one


@pytest.fixture(params=["alone", "pair"])
def places(request: pytest.FixtureRequest) -> Pair:
    """Where a request is sent first, and where it is repeated."""
    found: Pair = request.getfixturevalue(request.param)
    return found


def test_a_repetition_has_the_answer_of_the_first(places: Pair, stand_in: StandInProcess) -> None:
    word = f"once{time.monotonic_ns()}"
    body = {"prompt": f"[[say {word}]]"}
    with client(places[0]) as here, client(places[1]) as there:
        first = here.post("/claude/invoke", json=body, headers=keyed("k1"))
        assert first.status_code == 200 and "idempotent-replayed" not in first.headers
        paid = asked_for(stand_in, word)
        for again in (there.post("/claude/invoke", json=body, headers=keyed("k1")) for _ in range(2)):
            assert again.status_code == 200, again.text
            assert again.json() == first.json()
            assert again.headers["idempotent-replayed"] == "true"
            assert again.headers["x-claude-input-tokens"] == again.headers["x-claude-output-tokens"] == "0"
            assert float(again.headers["x-claude-cost-usd"]) == 0 < float(first.headers["x-claude-cost-usd"])
        stream = there.post("/claude/invoke", json=body, headers=keyed("k1") | STREAM)
        assert "event: run.finished" in stream.text and stream.headers["x-claude-run"] == first.json()["id"]
        assert asked_for(stand_in, word) == paid, "the API was asked for one run"
        other = there.post("/claude/invoke", json={"prompt": "[[say other]]"}, headers=keyed("k1"))
        assert (other.status_code, "another request" in other.text) == (422, True)
    with client(places[1], "bob") as bob:  # whose key is his own
        assert bob.post("/claude/invoke", json=body, headers=keyed("k1")).json()["id"] != first.json()["id"]


def test_vendors_clients_pay_once_too(places: Pair) -> None:
    message = {"model": "claude-code", "max_tokens": 9, "messages": [{"role": "user", "content": "[[say fine]]"}]}
    chat = {"model": "claude-code", "messages": message["messages"]}
    with client(places[0]) as here, client(places[1]) as there:
        for path, body in (("/claude/v1/messages", message), ("/claude/v1/chat/completions", chat)):
            key = keyed(path)
            first = here.post(path, json=body, headers=key)
            again = there.post(path, json=body, headers=key)
            assert (first.status_code, again.status_code) == (200, 200), again.text
            assert again.json()["id"] == first.json()["id"]
            streamed = there.post(path, json=body | {"stream": True}, headers=key)
            assert streamed.status_code == 200 and "fine" in streamed.text, streamed.text


def test_who_repeats_while_it_goes_on_waits_for_the_same_run(places: Pair, stand_in: StandInProcess) -> None:
    word = f"slow{time.monotonic_ns()}"
    body = {"prompt": f"{SLOW} {word}"}
    answers: dict[str, Any] = {}

    def ask(of: Invoker, name: str, accept: str) -> None:
        with client(of) as api:
            answers[name] = api.post("/claude/invoke", json=body, headers=keyed("slow", Accept=accept))

    asking = [threading.Thread(target=ask, args=(places[0], "first", "application/json"))]
    asking[0].start()
    wait_for(lambda: asked_for(stand_in, word), what="the first request at the API")
    for name, accept in (("json", "application/json"), ("stream", "text/event-stream")):
        asking.append(threading.Thread(target=ask, args=(places[1], name, accept)))
        asking[-1].start()
    for each in asking:
        each.join(100)
    first = answers["first"].json()
    assert answers["json"].json() == first
    assert answers["stream"].headers["x-claude-run"] == first["id"]
    assert ids(answers["stream"].text)[0] == 1 and "event: run.finished" in answers["stream"].text


def test_who_comes_back_in_time_finds_the_run_that_went_on(start: Callable[..., Invoker]) -> None:
    """Without a key nobody can come back, and the run ends with its client."""
    invoker = start(detach_grace_s=60)
    with client(invoker) as api:
        for key, state in (({}, "cancelled"), (keyed("gone"), "succeeded")):
            with pytest.raises(httpx.ReadTimeout):
                api.post("/claude/invoke", json={"prompt": SLOW}, headers=key, timeout=2)
            time.sleep(0.5)
            runs = api.get("/metrics").text
            assert runs
            if key:
                again = api.post("/claude/invoke", json={"prompt": SLOW}, headers=key)
                assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true"), (state, again.text)
            else:
                wait_for(lambda: 'outcome="cancelled"' in api.get("/metrics").text, what="the end of it")


def test_what_cost_nothing_begins_anew_and_what_failed_stays(start: Callable[..., Invoker]) -> None:
    invoker = start()
    with client(invoker) as api:
        refused = api.post("/claude/invoke", json={"prompt": "hi", "tools": ["Nonsense"]}, headers=keyed("k"))
        assert refused.status_code in (403, 422)
        assert api.post("/claude/invoke", json={"prompt": "hi"}, headers=keyed("k")).status_code == 200
        failing = {"prompt": tool("Bash", command="exit") + "[[status 400]]"}
        first = api.post("/claude/invoke", json=failing, headers=keyed("f"))
        again = api.post("/claude/invoke", json=failing, headers=keyed("f"))
        assert first.status_code == again.status_code >= 400
        assert again.headers["x-claude-run"] == first.headers["x-claude-run"]
        assert again.json() == first.json()


@pytest.mark.parametrize(
    ("state", "error", "cost", "anew"),
    [
        ("failed", Problem(503, "busy"), 0.0, True),
        ("failed", Problem(429, "too-much-held"), 0.0, True),
        ("failed", Problem(403, "limited"), 0.0, True),
        ("failed", Problem(403, "forbidden"), 0.0, False),
        ("failed", Problem(503, "api-overloaded"), 0.01, False),
        ("failed", LOST, 0.0, False),
        ("failed", Problem(502, "cli-failed"), 0.0, False),
        ("cancelled", Problem(499, "cancelled"), 0.0, False),
        ("succeeded", None, 0.0, False),
        ("running", None, 0.0, False),
    ],
)
def test_only_a_refusal_that_cost_nothing_begins_anew(
    state: Any, error: Problem | None, cost: float, anew: bool
) -> None:
    document = None if error is None else error.document()
    view = RunView(id="r", state=state, created_at=0, cost_usd=cost, error=document)
    assert begins_anew(view) == anew
    if error is not None:
        assert Problem.of(error.document()).document() == error.document()
        assert error.document()["type"].startswith(PREFIX)


@pytest.mark.slow  # a lease's time
def test_a_dead_invokers_run_is_not_run_again(start: Callable[..., Invoker]) -> None:
    """It may have had effects: who repeats the request is told."""
    one, other = start(), start()
    with client(one) as here, client(other) as there:
        with here.stream("POST", "/claude/invoke", json={"prompt": SLOW}, headers=keyed("dead") | STREAM) as stream:
            os.kill(one.pid, signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                stream.read()

        def answer() -> httpx.Response:
            return there.post("/claude/invoke", json={"prompt": SLOW}, headers=keyed("dead"))

        wait_for(lambda: "worker-lost" in answer().text, what="the truth about it")
        assert answer().headers["x-should-retry"] == "false"


async def test_one_of_many_has_the_key(redis_server: RedisProcess) -> None:
    for url in (None, redis_server.url):
        claims, mine = Claims(url), [Claim("f", f"run_{number}", float(number)) for number in range(3)]
        held = [await claims.claim("ada", "k", each) for each in mine]
        assert held == [mine[0]] * 3
        assert not await claims.replace("ada", "k", mine[1], mine[2])
        assert await claims.replace("ada", "k", mine[0], mine[2])
        assert await claims.claim("ada", "k", mine[1]) == mine[2]
        assert await claims.replace("ada", "k", mine[2], None)
        assert await claims.claim("ada", "k", mine[1]) == mine[1]
        assert await claims.claim("ad", "a:k", mine[0]) == mine[0], "another subject's key"
        await claims.close()


@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
async def test_whether_a_run_may_not_be_there_yet_goes_by_no_replicas_clock(
    redis_server: RedisProcess, ahead_s: float
) -> None:
    """A replica that was ten seconds ahead took a claim that was a moment old for one whose run is gone, and ran it too."""
    claims, mine = Claims(redis_server.url), Claim("f", "run_1", time.time() + ahead_s)
    await claims.claim("ada", "new", mine)
    assert await claims.is_beginning("ada", "new", mine)
    await Redis.from_url(redis_server.url).expire("claude:{runs}:once:ada:new", int(KEPT_S - BEGINNING_S) - 1)
    assert not await claims.is_beginning("ada", "new", mine), "control: an old one"
    assert not await claims.is_beginning("ada", "none", mine)
    await claims.close()


async def test_nobody_runs_twice_because_redis_is_away(own_redis: RedisProcess) -> None:
    claims = Claims(own_redis.url)
    own_redis.kill()
    with pytest.raises(Problem, match="503 busy"):
        await claims.claim("ada", "k", Claim("f", "run_1", 0.0))
    with pytest.raises(Problem, match="503 busy"):
        await claims.is_beginning("ada", "k", Claim("f", "run_1", 0.0))
    await claims.close()
