"""A job that asks is put away until somebody decides, and goes on then: wherever it was, whoever has died meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_contract.claims import Clamp
from claude_contract.ledger import NAMESPACE, Lease, Peek, subject_key
from claude_contract.rules import QUESTION, Rules, parse_all
from claude_invoker.cli.messages import Heard, ModelEvent, Said, ToolCall, ToolResult
from claude_invoker.cli.process import Allow, Defer, Deny
from claude_invoker.cli.walk import delete
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.model import InvokeRequest, Permission, PermissionAnswer
from claude_invoker.plan import plan
from claude_invoker.runs.deferral import Deferral, deferrable
from claude_invoker.runs.run import Run
from claude_invoker.runs.translate import Translator
from claude_invoker.settings import Settings
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, as_root, tool, wait_for
from tests.jobs.conftest import limits_on, slot
from tests.permissions.conftest import APPROVER, BASH, bash, clamp
from tests.permissions.test_attacks import Asked
from tests.permissions.test_jobs import asked_by, create, ended
from tests.permissions.test_questions import COLOUR, ask
from tests.replicas.test_replicas import client
from tests.support.processes import gone
from tests.support.waiting import until

OPERATOR = Settings(trust="open", tools_allowed=("Bash", "Read"), approval_timeout_s=300)
WHOLE = Boundary(Strength.NAMESPACES)
pytestmark = [as_root, pytest.mark.timeout(240), pytest.mark.xdist_group("permissions")]


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, Any]]:
    redis = started()
    yield {"redis_url": redis.url, "runs_redis_url": redis.url, "approval_hold_s": 0.3, "approval_timeout_s": 600}
    redis.close()


@pytest.fixture
def alice(worker: Invoker) -> Iterator[httpx.Client]:
    with client(worker, "alice", **BASH) as api:
        yield api


def put_away(api: httpx.Client, path: str) -> Any:
    """What a job asks, once it is put away."""

    def is_it() -> Any:
        seen = api.get(path).json()
        assert seen["state"] in ("queued", "running", "waiting_for_approval"), seen
        return seen["waiting_for_approval"] if seen["state"] == "waiting_for_approval" else None

    (asked,) = wait_for(is_it, what="the job to be put away")
    return asked


def decide(api: httpx.Client, path: str, asked: Any, decision: str = "allow", **more: Any) -> httpx.Response:
    return api.post(f"{path}/permissions/{asked['id']}", json={"decision": decision} | more)


def test_a_job_is_put_away_and_goes_on(worker: Invoker, alice: httpx.Client) -> None:
    first = tool("Write", file_path="first.txt", content="x")
    path = create(alice, first + bash("touch second.txt; echo it ran") + bash("echo three"), tools=["Bash", "Write"])
    asked = put_away(alice, path)
    assert asked["input"] == {"command": "touch second.txt; echo it ran"}
    assert worker.clis() == [] and worker.trees() == []
    assert alice.get(path).json()["cost_usd"] > 0
    assert decide(alice, path, asked).status_code == 200
    assert decide(alice, path, asked, "deny").status_code == 409
    second = put_away(alice, path)
    assert second["input"] == {"command": "echo three"}
    assert decide(alice, path, second, "deny", message="not three").status_code == 200
    done = ended(alice, path)
    assert done["state"] == "done", done
    result = done["result"]
    assert "it ran" in result["result"] and "not three" in result["result"]
    assert [artifact["path"] for artifact in result["artifacts"]] == ["first.txt", "second.txt"]
    assert [(each["id"], each["decision"]) for each in done["decisions"]] == [
        (asked["id"], "allow"),
        (second["id"], "deny"),
    ]
    assert result["session"] is None and result["num_turns"] == 4 and done["attempt"] == 3
    assert result["cost_usd"] == done["cost_usd"] > 0


def test_what_is_decided_of_a_job_that_is_put_away(alice: httpx.Client, worker: Invoker) -> None:
    """A changed input, one that is remembered, and two who decide at once; nobody else."""
    path = create(alice, bash("echo one") + bash("echo two") + bash("echo two") + bash("echo three"))
    asked = put_away(alice, path)
    with client(worker, "bob", **APPROVER) as bob, client(worker, "mallory") as stranger:
        assert decide(stranger, path, asked).status_code == 404
        assert bob.get(f"{path}/permissions").json()["waiting"] == [asked]
        assert decide(alice, path, {"id": "perm_0"}).status_code == 404
        assert decide(alice, path, asked, answers={"Which?": "x"}).status_code == 422
        decided = decide(bob, path, asked, input={"command": "echo another"})
        assert decided.json()["by"] == "bob"
        assert decide(alice, path, put_away(alice, path), remember="run").status_code == 200
        third = put_away(alice, path)
        assert third["input"] == {"command": "echo three"}
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda who: decide(who, path, third), [alice, bob]))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    done = ended(alice, path)
    assert done["result"]["result"].count("two") == 2 and "another" in done["result"]["result"]
    assert [each["reason"] for each in done["decisions"]] == ["answered", "answered", "remembered", "answered"]


def test_whoever_follows_it_sees_one_run(alice: httpx.Client) -> None:
    path = create(alice, bash("echo one"))
    asked = put_away(alice, path)
    assert decide(alice, path, asked).status_code == 200
    names = [line[7:] for line in alice.get(f"{path}/events").text.splitlines() if line.startswith("event: ")]
    ours = [name for name in names if name.partition(".")[0] in ("run", "job", "permission")]
    assert ours == [
        "run.started",
        "permission.requested",
        "run.deferred",
        "job.waiting_for_approval",
        "permission.decided",
        "run.finished",
        "job.done",
    ]


def test_who_decides_while_its_process_ends_is_the_only_one(worker: Invoker, alice: httpx.Client) -> None:
    """Its CLI is stopped before it can end: what is decided by then is stored as the job is put away, and it goes on at
    once. Nobody interrupts it, or tells it anything, that it would not hear."""
    path = create(alice, bash("touch made.txt; echo it ran") * 8)

    def told() -> int:
        """How often a CLI was told to defer a call of the job."""
        noted = "".join(record.read_text() for record in worker.state.glob("sessions/*") if record.is_file())
        return noted.count(path.rpartition("/")[2])

    earlier = ""
    for parts in range(8):
        asked = asked_by(alice, path, but=earlier)  # which it shows for a moment still when it goes on
        earlier = asked["id"]
        for cli in worker.clis():
            cli.suspend()
        if worker.clis() and told() == parts:
            break
        for cli in worker.clis():  # too late: it may have ended
            cli.resume()
        assert decide(alice, path, put_away(alice, path)).status_code == 200
    wait_for(lambda: told() > parts, what="the CLI to be told to defer")
    assert alice.post(f"{path}/interrupt").status_code == 409
    assert alice.post(f"{path}/messages", json={"message": "use tabs"}).status_code == 409
    assert decide(alice, path, asked, remember="run").status_code == 200
    assert decide(alice, path, asked, "deny").status_code == 409
    for cli in worker.clis():
        cli.resume()
    done = ended(alice, path)
    assert done["state"] == "done", done
    assert [each["decision"] for each in done["decisions"]] == ["allow"] * 8
    events = alice.get(f"{path}/events").text.partition(asked["id"])[2]
    names = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
    ours = [name for name in names if name.partition(".")[0] in ("run", "job", "permission")]
    assert ours[:2] == ["permission.decided", "run.deferred"] and "job.waiting_for_approval" not in ours


def test_a_question_waits_as_long(alice: httpx.Client) -> None:
    path = create(alice, ask(COLOUR), tools=[QUESTION])
    asked = put_away(alice, path)
    assert decide(alice, path, asked).status_code == 422
    assert decide(alice, path, asked, answers={"Which colour?": "Green"}).status_code == 200
    assert "Green" in ended(alice, path)["result"]["result"]


def test_nobody_may_decide_about_a_job_of_their_own(worker: Invoker) -> None:
    with (
        client(worker, "alice", **clamp(ask=["Bash"], four_eyes=True)) as alice,
        client(worker, "bob", **APPROVER) as bob,
    ):
        path = create(alice, bash("echo one"))
        asked = put_away(alice, path)
        assert decide(alice, path, asked).status_code == 403
        assert decide(bob, path, asked).status_code == 200
        assert ended(alice, path)["state"] == "done"


def test_a_job_that_is_put_away_is_cancelled(worker: Invoker, alice: httpx.Client) -> None:
    """Nothing of it is left then: its directory was its own, and nobody could go on there."""
    path = create(alice, bash("touch made.txt"))
    asked = put_away(alice, path)
    assert alice.post(f"{path}/interrupt").status_code == 409
    assert alice.delete(path).json()["state"] == "cancelled"
    assert decide(alice, path, asked).status_code == 404
    assert alice.get("/claude/jobs", params={"state": "waiting_for_approval"}).json()["jobs"] == []
    wait_for(lambda: left_by(worker, path) == [], what="the end of what it has left")


def left_by(worker: Invoker, path: str) -> list[Path]:
    """Of the sessions here those that a job has begun to be put away in: their directories."""
    found = []
    for record in worker.state.glob("sessions/*"):
        with suppress(FileNotFoundError):
            said = record.read_text()
            if path.rpartition("/")[2] in said:
                found.append(worker.state / "trees" / "sessions" / json.loads(said.splitlines()[0])["tree"])
    return found


def test_what_a_job_has_left_is_gone_when_it_may_go_on(worker: Invoker, alice: httpx.Client) -> None:
    """It says so: whoever has allowed it has named no session."""
    path = create(alice, bash("touch made.txt"))
    asked = put_away(alice, path)
    (tree,) = left_by(worker, path)
    delete(tree)
    assert decide(alice, path, asked).status_code == 200
    done = ended(alice, path)
    assert (done["state"], done["error"]["status"]) == ("failed", 410), done
    assert "nothing of the call has run" in done["error"]["detail"] and "session" not in done["error"]["title"]


def test_a_changed_input_is_held_against_the_rules_when_it_is_to_run(worker: Invoker) -> None:
    """Where a path leads nobody can tell while the run is away."""
    with client(worker, "alice", **clamp(ask=["Write"], deny=["Edit(/keys/**)"])) as alice:
        path = create(alice, tool("Write", file_path="a", content="x"), tools=["Write"])
        asked = put_away(alice, path)
        other = asked["input"]["file_path"].removesuffix("/a") + "/keys/a"
        assert decide(alice, path, asked, input={"file_path": other, "content": "x"}).status_code == 200
        done = ended(alice, path)
        assert done["result"]["artifacts"] == [] and "is denied" in done["result"]["result"]


def test_nobody_decides_in_time(start: Callable[..., Invoker], settings: dict[str, Any]) -> None:
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url, "approval_timeout_s": 3}
    with client(start(**own, worker="embedded"), "alice", **BASH) as alice:
        path = create(alice, bash("touch made.txt"))
        put_away(alice, path)
        done = ended(alice, path)
    assert [(each["decision"], each["reason"]) for each in done["decisions"]] == [("deny", "timeout")]
    assert "Nobody has allowed it within 3 seconds." in done["result"]["result"] and not done["result"]["artifacts"]
    redis.close()


def test_a_worker_that_is_killed_takes_nothing_with_it(start: Callable[..., Invoker], settings: dict[str, Any]) -> None:
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url}
    server, worker = start(**own), start(**own, worker="embedded")
    with client(server, "alice", **BASH) as alice:
        path = create(
            alice, tool("Write", file_path="first.txt", content="x") + bash("touch second.txt"), tools=["Bash", "Write"]
        )
        asked = put_away(alice, path)
        os.kill(worker.pid, signal.SIGKILL)
        assert decide(alice, path, asked).status_code == 200
        assert alice.get(path).json()["state"] == "queued"
        start(**own, worker="embedded", after=worker)
        done = ended(alice, path)
        assert done["state"] == "done", done
        assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["first.txt", "second.txt"]
    redis.close()


@pytest.mark.slow
def test_a_worker_that_is_killed_before_it_is_stored_that_a_job_is_put_away(
    start: Callable[..., Invoker], settings: dict[str, Any]
) -> None:
    """Its process has ended, its lease is settled, and its session says that the job goes on there: it does not, the
    session does, and nothing is paid twice."""
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url}
    of_hers = Lease.new(NAMESPACE, subject_key("subject", "alice"), 250_000)

    async def spent() -> int:
        async with limits_on(redis.url) as limits:
            return (await limits.peek(Peek(of_hers.namespace, of_hers.subject_key))).spent_day_micro_usd

    server = start(**own)
    with client(server, "alice", lease=str(of_hers), **slot(2), **BASH) as alice:
        dying = start(**own, worker="embedded", without=("a_worker_that_lives_to_put_jobs_away",))
        with client(dying, "alice", **BASH) as there:
            session = there.post("/claude/invoke", json={"prompt": "hi", "session": "new"}).json()["session"]
        path = create(alice, bash("touch made.txt"), session=session)
        wait_for(lambda: gone(dying.pid), what="the worker's end")
        before = wait_for(lambda: asyncio.run(spent()), what="its money")
        invoker = start(**own, worker="embedded", after=dying)
        done = ended(alice, path)
        assert done["state"] == "failed" and done["error"]["type"].endswith("worker-lost"), done
        assert asyncio.run(spent()) == before == round(done["cost_usd"] * 1e6)
        with client(invoker, "alice", **BASH) as there:
            answer = there.post("/claude/invoke", json={"prompt": "[[say on]]", "session": session})
        assert (answer.status_code, answer.json().get("result")) == (200, "on"), answer.text
    redis.close()


@pytest.mark.slow
def test_another_machine_goes_on_with_it(
    start: Callable[..., Invoker], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Which has nothing of it but what the store has, and the record."""
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url, "store": f"file://{tmp_path}"}
    server, worker = start(**own), start(**own, worker="embedded")
    with client(server, "alice", **BASH) as alice:
        write = tool("Write", file_path="first.txt", content="x") + bash("cat first.txt given.txt > second.txt")
        given = [{"path": "given.txt", "content": "y"}]
        path = create(alice, write, tools=["Bash", "Write"], files=given)
        asked = put_away(alice, path)
        os.kill(worker.pid, signal.SIGKILL)
        assert decide(alice, path, asked).status_code == 200
        start(**own, worker="embedded")
        done = ended(alice, path)
        assert done["state"] == "done", done
        assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["first.txt", "second.txt"]
        assert alice.get(f"{path}/artifacts/second.txt").text == "xy"
    redis.close()


def test_its_place_and_its_money_are_others_meanwhile(start: Callable[..., Invoker], settings: dict[str, Any]) -> None:
    """A caller with one place: a second job has it while the first is put away, and the first waits for it then."""
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url}
    of_hers = Lease.new(NAMESPACE, subject_key("subject", "alice"), 250_000)

    def hers() -> httpx.Client:
        return client(invoker, "alice", lease=str(of_hers.again()), **slot(1), **BASH)

    async def running() -> int:
        async with limits_on(redis.url) as limits:
            return (await limits.peek(Peek(of_hers.namespace, of_hers.subject_key))).running

    invoker = start(**own, worker="embedded")
    with client(invoker, "alice", **BASH) as alice:
        with hers() as api:
            first = create(api, bash("echo one"))
        asked = put_away(alice, first)
        assert asyncio.run(running()) == 0
        with hers() as api:
            second = create(api, "[[delay 300]] [[say " + "word " * 10 + "]]")
        wait_for(lambda: alice.get(second).json()["state"] == "running", what="the second job")
        assert decide(alice, first, asked).status_code == 200
        told = wait_for(lambda: alice.get(first).json()["waits_for"], what="why the first waits")
        assert told["limit"] == "concurrent" and alice.get(first).json()["decisions"]
        # Its place is given back just before its end is stored: what tells is how long its words have taken.
        assert ended(alice, first)["started_at"] >= ended(alice, second)["started_at"] + 10 * 0.3
        wait_for(lambda: asyncio.run(running()) == 0, what="the end of its lease")
    redis.close()


@pytest.mark.parametrize(
    ("without", "state"),
    [
        ((), "done"),
        pytest.param(("a_machine_without_bubblewrap",), "done", marks=pytest.mark.slow),
        pytest.param(("a_machine_without_bubblewrap", "a_kernel_without_landlock"), "done", marks=pytest.mark.slow),
        pytest.param(("deferred_calls_that_wait_for_nobody",), "failed", marks=pytest.mark.slow),
    ],
)
def test_a_deferred_call_waits_for_our_hook(
    start: Callable[..., Invoker], settings: dict[str, Any], without: tuple[str, ...], state: str
) -> None:
    """The CLI begins with it when it starts. What it takes for harmless it would run by then, whatever was decided; that
    is noticed, and ends the run."""
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url}
    with client(start(**own, worker="embedded", without=without), "alice", **BASH) as alice:
        path = create(alice, bash("echo harmless"))
        assert decide(alice, path, put_away(alice, path), "deny", message="never").status_code == 200
        done = ended(alice, path)
        assert done["state"] == state
        if state == "done":
            assert "never" in done["result"]["result"] and "harmless" not in done["result"]["result"]
    redis.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_many_are_put_away_while_others_are_served(worker: Invoker, alice: httpx.Client, count: int) -> None:
    paths = [create(alice, bash(f"echo number-{number}")) for number in range(count)]
    asked = {path: put_away(alice, path) for path in paths}
    assert worker.clis() == [] and worker.trees() == []
    with client(worker, "carol") as carol:
        assert carol.post("/claude/invoke", json={"prompt": "[[say served]]"}).json()["result"] == "served"
        other = create(carol, "[[say served]]")
        assert ended(carol, other)["state"] == "done"
    assert all(alice.get(path).json()["state"] == "waiting_for_approval" for path in paths)
    for path in paths:
        assert decide(alice, path, asked[path]).status_code == 200
    for number, path in enumerate(paths):
        done = ended(alice, path)
        assert done["state"] == "done" and f"number-{number}" in done["result"]["result"], done


# Without a run


async def test_nothing_is_deferred_that_is_not_noted_first() -> None:
    """Where the worker dies then, the session's next turn would begin with it, and nobody would know."""
    asked, noted = Asked(ask=["Bash"]), list[str]()
    asked.permissions.defers_after_s = 0.0
    asked.permissions.can_defer = lambda call: True

    def on_a_full_disk(shown: Permission) -> None:
        noted.append(shown.id)
        raise OSError(28, "No space left on device")

    asked.permissions.before_deferring = on_a_full_disk
    await asked.call(command="echo one")
    await until(lambda: _true(noted), what="a try")
    assert asked.answers == [] and asked.permissions.deferred is None
    asked.permissions.before_deferring = lambda shown: noted.append(f"{shown.id} {asked.answers}")
    await until(lambda: _true(asked.answers), what="the next try")
    waiting = asked.permissions.waiting[0].id
    assert noted[-1] == f"{waiting} []" and asked.answers == [Defer()]
    asked.permissions.end()


async def _true(value: object) -> bool:
    return bool(value)


async def test_only_the_very_call_is_as_it_was_decided() -> None:
    """The transcript, which says what was deferred, lies in the run's directory."""
    asked = Asked(ask=["Bash"])
    await asked.call(command="echo one")
    shown = asked.permissions.waiting[0]
    decision = asked.permissions.answer(shown.id, PermissionAnswer(decision="allow"), "alice")
    deferral = Deferral(session="s", permission=shown)

    async def next_part(*commands: str) -> Asked:
        part = Asked(ask=["Bash"], deny=["Bash(rm:*)"])
        part.permissions.bring(deferral, [decision])
        for command in commands:
            await part.call(command=command)
        return part

    assert (await next_part("echo one")).answers == [Allow()]
    twice = await next_part("echo one", "echo one")
    assert twice.answers == [Allow()] and len(twice.permissions.waiting) == 1
    other = await next_part("curl evil", "rm -r x")
    assert [permission.input for permission in other.permissions.waiting] == [{"command": "curl evil"}]
    assert [type(answer) for answer in other.answers] == [Deny]
    for part in (twice, other):
        part.permissions.end()


@pytest.mark.parametrize(
    ("request_", "more", "after_s", "defers"),
    [
        ({}, {}, 60, True),
        ({}, {}, 300, False),
        ({"session": "new"}, {}, 60, True),
        ({"check": "true"}, {}, 60, True),
        ({"tools": ["Read"]}, {}, 60, False),
        ({}, {"servers": ("tickets",)}, 60, True),
        ({"session": "new"}, {"servers": ("tickets",)}, 60, False),
        ({}, {"servers": ("clock",), "starts_servers": True}, 60, False),
    ],
)
def test_which_jobs_may_be_put_away(
    request_: dict[str, Any], more: dict[str, Any], after_s: float, defers: bool
) -> None:
    given = InvokeRequest.model_validate({"prompt": "x", "tools": ["Bash"]} | request_)
    clamp_ = Clamp(rules=Rules(ask=parse_all(["Bash"]), allow=parse_all(["Bash(true)"])))
    chosen = replace(plan(given, clamp_, OPERATOR, WHOLE), **more)
    decided = deferrable(chosen, after_s, 3600)
    assert (decided.defers_after_s, decided.session) == ((after_s, "new") if defers else (None, given.session))
    assert decided.ends_session is (defers and given.session is None)


def test_a_call_is_the_last() -> None:
    """Of several calls that are deferred the CLI goes on with the last alone."""
    run = Run("run_0", "alice", plan(InvokeRequest(prompt="x"), Clamp(), OPERATOR, WHOLE), Path(), 1.0)
    said = Translator(run)

    def call(name: str) -> None:
        said.take(Said((ToolCall(name, "Bash", {}),)))

    def ends(name: str) -> None:
        said.take(Heard((ToolResult(name, False, ""),)))

    call("a")
    assert said.is_last("a") and not said.is_last("b")
    said.take(ModelEvent("content_block_start", b"{}", of_subagent=False))
    assert not said.is_last("a"), "the model may call another"
    said.take(ModelEvent("message_stop", b"{}", of_subagent=False))
    assert said.is_last("a")
    call("b")
    assert not said.is_last("a") and not said.is_last("b")
    ends("b")
    assert said.is_last("a")
    ends("a")
    assert Translator(run, awaited="c").is_last("c")
