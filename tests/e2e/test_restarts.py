"""docs/restarts.md: what becomes of open streams where the gateway is loaded anew, or started again. On minikong, or with KONG=…
on a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from kong_claude_local.standin import StandIn
from kong_claude_local.standin import server as standin
from tests.e2e.conftest import Gateway, standing
from tests.e2e.test_passthrough import noted
from tests.support.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.xdist_group("restarts"), pytest.mark.timeout(600)]
KONG = os.environ.get("KONG")
HAIKU = "claude-haiku-4-5"
SSE = {"Accept": "text/event-stream"}


class Held(StandIn):
    """Each of its streams goes on behind the first words when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def _stream(self, document: dict[str, Any], reply: Any, send: Any) -> None:
        await send.head(200, (("content-type", "text/event-stream"),))
        for event in standin._events(document, reply):
            await send.data(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()))
            while event["type"] == "content_block_delta" and not self.go_on.is_set():
                if send._reader.at_eof():
                    raise ConnectionResetError("the client has left")
                await asyncio.sleep(0.02)
        await send.end()


@dataclass
class Api:
    """It, in a thread of its own."""

    held: Held
    loop: asyncio.AbstractEventLoop

    def hold(self) -> None:
        self.loop.call_soon_threadsafe(self.held.go_on.clear)

    def let_go_on(self) -> None:
        self.loop.call_soon_threadsafe(self.held.go_on.set)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    loop = asyncio.new_event_loop()
    held = Held()
    loop.run_until_complete(held.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Api(held, loop)
    asyncio.run_coroutine_threadsafe(held.stop(), loop).result(HANG_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(HANG_S)
    loop.close()


@pytest.fixture(scope="module")
def stack(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with standing(
        tmp_path_factory.mktemp("stack"),
        ANTHROPIC_API_KEY="sk-ant-none",
        INVOKER_ANTHROPIC_BASE_URL=api.held.url,
        # Who comes back later than after five seconds, as on a busy machine, finds the run.
        INVOKER_DETACH_GRACE_S=str(HANG_S),
    ) as found:
        yield found


def program(gateway: Gateway) -> psutil.Process:
    (found,) = gateway.processes("kong_claude_local.real_kong" if KONG else "-m minikong")
    return found


def kong(gateway: Gateway, command: str) -> None:
    assert KONG
    subprocess.run([KONG, command], env=program(gateway).environ(), check=True, capture_output=True, timeout=HANG_S)


def reload(gateway: Gateway) -> None:
    """Returns when it is done: with streams open the workers of before go on beside the new ones."""
    if KONG:
        kong(gateway, "reload")
        wait_for(lambda: gateway.processes("is shutting down"), what="workers of before")
        return
    log = gateway.home / "stack.log"

    def reloads() -> int:
        return sum(line.endswith("reloaded") for line in log.read_text().splitlines())

    before = reloads()
    program(gateway).send_signal(signal.SIGHUP)
    wait_for(lambda: reloads() > before, what="the new configuration")


def restart(gateway: Gateway) -> None:
    """As `kong restart` does it: what it stops ends at once, and it is started again."""
    before = program(gateway)
    if KONG:
        kong(gateway, "stop")
    else:
        before.terminate()
    wait_for(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE, what="its end")
    with gateway.client("watcher") as watcher:

        def answers() -> bool:
            try:
                return watcher.get("/claude/limits").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, what="the gateway")


@dataclass
class Stream:
    """An event stream, and what has been read of it."""

    response: httpx.Response
    lines: Iterator[str] = field(init=False)
    read: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.response.status_code == 200, self.response.read()
        self.lines = self.response.iter_lines()

    def until(self, word: str) -> None:
        for line in self.lines:
            self.read.append(line)
            if word in line:
                return
        raise AssertionError((word, self.read))

    def is_cut(self) -> bool:
        """Whether it ends before its end. Reads what is left."""
        try:
            self.read += self.lines
        except httpx.TransportError:
            return True
        return False

    @property
    def names(self) -> list[str]:
        return [line.removeprefix("event: ") for line in self.read if line.startswith("event: ")]

    @property
    def ids(self) -> list[str]:
        return [line.removeprefix("id: ") for line in self.read if line.startswith("id: ")]


@dataclass
class Streams:
    """One of each kind, open, of a caller who has none else. `run` and `job` are their paths."""

    message: Stream
    events: Stream
    follow: Stream
    run: str
    job: str


def opened(gateway: Gateway, client: httpx.Client, exits: ExitStack) -> Streams:
    """Each has had its first words, and waits for more."""

    def stream(method: str, path: str, **options: Any) -> Stream:
        return Stream(exits.enter_context(client.stream(method, path, **options)))

    ask = [{"role": "user", "content": "[[say one two]]"}]
    body = {"model": HAIKU, "max_tokens": 99, "stream": True, "messages": ask}
    message = stream("POST", "/claude/v1/messages", json=body)
    message.until("content_block_delta")
    events = stream("POST", "/claude/invoke", json={"prompt": "[[say one two]]"}, headers=SSE)
    events.until("event: content_block_delta")
    job = client.post("/claude/jobs", json={"prompt": "[[say one two]]"}).headers["location"]
    follow = stream("GET", f"{job}/events", headers=SSE)
    follow.until("event: content_block_delta")
    return Streams(message, events, follow, events.response.headers["location"], job)


def test_a_reload_leaves_streams_alone(stack: Gateway, api: Api) -> None:
    api.hold()
    with ExitStack() as exits:
        client = exits.enter_context(stack.client("loaded", "--tier", "team", timeout=HANG_S))
        found = opened(stack, client, exits)
        reload(stack)
        api.let_go_on()
        for stream, last in (
            (found.message, "message_stop"),
            (found.events, "run.finished"),
            (found.follow, "job.done"),
        ):
            assert not stream.is_cut()
            assert stream.names[-1] == last, stream.read
            assert stream.ids == list(dict.fromkeys(stream.ids))
        wait_for(lambda: noted(stack, "loaded"), what="its line in the audit log")
        assert [line["end"] for line in noted(stack, "loaded")] == ["complete"]


def test_a_restart_cuts_streams_and_runs_and_jobs_can_be_come_back_to(stack: Gateway, api: Api) -> None:
    api.hold()
    with ExitStack() as exits:
        client = exits.enter_context(stack.client("restarted", "--tier", "team", timeout=HANG_S))
        found = opened(stack, client, exits)
        restart(stack)
        for stream in (found.message, found.events, found.follow):
            assert stream.is_cut(), stream.read
        assert "message_stop" not in found.message.names
        # The message is over, and what was streamed of it is booked.
        wait_for(lambda: noted(stack, "restarted"), what="its line in the audit log")
        (line,) = noted(stack, "restarted")
        assert line["end"] == "left" and line["cost_usd"] > 0, line
        # The run and the job go on, and whoever followed them goes on where he was.
        again = []
        for stream, path in ((found.events, f"{found.run}/events"), (found.follow, f"{found.job}/events")):
            headers = SSE | {"Last-Event-ID": stream.ids[-1]}
            again.append(Stream(exits.enter_context(client.stream("GET", path, headers=headers))))
        api.let_go_on()
        for before, after, last in ((found.events, again[0], "run.finished"), (found.follow, again[1], "job.done")):
            assert not after.is_cut()
            assert after.names[-1] == last and not set(before.ids) & set(after.ids), after.read
        assert client.get(found.run).json()["state"] == "succeeded"
        assert client.get(found.job).json()["state"] == "done"

        def booked() -> bool:
            usd = client.get("/claude/limits").json()["usd"]
            return bool(usd["reserved"] == 0)

        wait_for(booked, what="the last booking")
        spent = client.get("/claude/limits").json()["usd"]["day"]["spent"]
        costs = [client.get(path).json()["cost_usd"] for path in (found.run, found.job)]
        assert spent == pytest.approx(sum(costs) + line["cost_usd"]), "each once"


def test_an_answer_in_one_piece_is_got_by_its_key_and_lost_without_one(stack: Gateway, api: Api) -> None:
    api.hold()
    body, key = {"prompt": "[[say one two]]"}, {"Idempotency-Key": "once"}
    lost: list[httpx.TransportError] = []

    def ask(subject: str, headers: dict[str, str]) -> None:
        with stack.client(subject, "--tier", "team", timeout=2 * HANG_S) as client:
            try:
                client.post("/claude/invoke", json=body, headers=headers)
            except httpx.TransportError as error:
                lost.append(error)

    asking = [threading.Thread(target=ask, args=each) for each in (("keyed", key), ("unkeyed", {}))]
    for each in asking:
        each.start()
    with (
        stack.client("keyed", "--tier", "team", timeout=HANG_S) as keyed,
        stack.client("unkeyed", "--tier", "team", timeout=HANG_S) as unkeyed,
    ):
        before = [run_of(client) for client in (keyed, unkeyed)]
        restart(stack)
        for each in asking:
            each.join(HANG_S)
        assert len(lost) == 2
        wait_for(lambda: run_of(unkeyed)["state"] == "cancelled", what="the end of the run without a key")
        api.let_go_on()
        again = keyed.post("/claude/invoke", json=body, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, before[0]["id"]), again.text
        assert again.headers["idempotent-replayed"] == "true"
        assert [run_of(client)["id"] for client in (keyed, unkeyed)] == [each["id"] for each in before]


def run_of(client: httpx.Client) -> dict[str, Any]:
    """The only one of its caller."""
    runs = wait_for(lambda: client.get("/claude/runs").json()["runs"], what="the run")
    (run,) = runs
    assert isinstance(run, dict)
    return run
