"""Jobs of every kind are put away and go on: in a session, on a repository, with a check, with MCP servers, and with
several calls at once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_invoker.runs.sessions import Away, away_of, line_of
from tests.catalog.mcp_servers import SECRET, Tickets, described, tickets_server
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, StandInProcess, as_root, defended_and_without, tool
from tests.invoker.test_workspace import TOKEN
from tests.permissions.conftest import BASH, bash, clamp
from tests.permissions.test_deferral import decide, put_away
from tests.permissions.test_jobs import asked_by, create, ended
from tests.replicas.test_replicas import client
from tests.support.git_server import GitServer, serving

pytestmark = [as_root, pytest.mark.timeout(240), pytest.mark.xdist_group("permissions")]
CREATE = "mcp__tickets__create"


@pytest.fixture(scope="module")
def tickets() -> Iterator[Tickets]:
    with tickets_server() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[GitServer]:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "served", TOKEN) as found:
        yield found


@pytest.fixture(scope="module")
def settings(tickets: Tickets, server: GitServer) -> Iterator[dict[str, Any]]:
    """Of an invoker with repositories and a catalog."""
    redis = started()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "catalog/mcp").mkdir(parents=True)
        (root / "secrets").mkdir(mode=0o700)
        of_tickets = described("tickets", ["create", "search"], url=tickets.url, secret="tickets")
        (root / "catalog/mcp/tickets.json").write_text(json.dumps(of_tickets))
        for path, text in (("secrets/tickets", SECRET), ("token", TOKEN)):
            (root / path).write_text(text)
            (root / path).chmod(0o400)
        (root / "repositories.yaml").write_text(
            f"org/*:\n  url: {server.url}/{{repository}}.git\n  token_file: {root}/token\n  refresh_s: 0\n"
        )
        yield {
            "redis_url": redis.url,
            "runs_redis_url": redis.url,
            "approval_hold_s": 0.3,
            "approval_timeout_s": 600,
            "isolation": "user",
            "repositories": root / "repositories.yaml",
            "catalog": root / "catalog",
            "mcp_secrets": root / "secrets",
        }
    redis.close()


@pytest.fixture
def alice(worker: Invoker) -> Iterator[httpx.Client]:
    with client(worker, "alice", **BASH) as api:
        yield api


def session_of(api: httpx.Client, job: str) -> str:
    """What the run of a job that is not over has said that it is in."""
    with api.stream("GET", f"{job}/events") as answer:
        data = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        return str(next(json.loads(each)["session"] for each in data if '"session"' in each))


def turn(api: httpx.Client, session: str, prompt: str = "[[say yes]]", **more: Any) -> httpx.Response:
    return api.post("/claude/invoke", json={"prompt": prompt, "session": session} | more)


def test_a_session_waits_for_the_job_that_is_put_away_in_it(worker: Invoker, alice: httpx.Client) -> None:
    first = turn(alice, "new", tool("Write", file_path="before.txt", content="x"), tools=["Write"])
    session = first.json()["session"]
    path = create(alice, bash("cat before.txt > made.txt; echo it ran"), session=session)
    asked = put_away(alice, path)
    assert worker.clis() == [] and worker.trees() == []
    refused = turn(alice, session)
    assert refused.status_code == 409 and path.rpartition("/")[2] in refused.json()["detail"]
    other = ended(alice, create(alice, "[[say yes]]", session=session))
    assert (other["state"], other["error"]["status"]) == ("failed", 409)
    assert decide(alice, path, asked, remember="session").status_code == 200
    done = ended(alice, path)
    assert done["state"] == "done", done
    assert done["result"]["session"] == session and "it ran" in done["result"]["result"]
    assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["made.txt"]
    # Which holds in the later turns, as it was decided while the job was away.
    again = turn(alice, session, bash("cat before.txt > made.txt; echo it ran"), tools=["Bash"])
    assert again.status_code == 200 and "it ran" in again.json()["result"], again.text
    assert [each["reason"] for each in again.json()["decisions"]] == ["remembered"]


@pytest.mark.parametrize("without", defended_and_without("calls_that_are_left_in_a_session"))
def test_what_a_cancelled_job_has_left_in_a_session_does_not_run(
    start: Callable[..., Invoker],
    settings: dict[str, Any],
    worker: Invoker,
    stand_in: StandInProcess,
    without: tuple[str, ...],
) -> None:
    """The CLI would begin the next turn with it: here one that needs to ask nobody about anything."""
    redis = started() if without else None
    own = settings if redis is None else settings | {"redis_url": redis.url, "runs_redis_url": redis.url}
    invoker = worker if redis is None else start(**own, worker="embedded", without=without)
    with client(invoker, "alice", **BASH) as alice, client(invoker, "alice") as unasked:
        path = create(alice, bash("touch made.txt"), session="new")
        put_away(alice, path)
        session = session_of(alice, path)
        assert turn(unasked, session).status_code == 409
        assert alice.delete(path).json()["state"] == "cancelled"
        before = len(stand_in.lines())
        after = turn(unasked, session, "[[say yes]] what now", tools=["Bash"])
        assert after.status_code == 200, after.text
        assert [artifact["path"] for artifact in after.json()["artifacts"]] == ["made.txt"] * bool(without)
        if redis is not None:
            redis.close()
            return
        seen = [str(line["messages"]) for line in stand_in.lines()[before:] if line["path"] == "/v1/messages"]
        assert after.json()["result"] == "yes" and len(seen) == 1, "the call was ended before anything was asked"
        assert "STOP what you are doing" in seen[0]
        assert turn(alice, session).json()["result"] == "yes"


def test_a_job_on_a_repository(worker: Invoker, server: GitServer) -> None:
    server.create("org/app")
    commit = server.commit("org/app", {"a.txt": "one\n", "b.txt": "b\n"})
    of_app = {"repo": {"name": "org/app"}}
    with client(worker, "alice", **BASH, **of_app) as alice:
        change = tool("Edit", file_path="a.txt", old_string="one", new_string="two")
        look = bash("cat a.txt; git rev-parse HEAD; git status --short; git config -l; echo new > c.txt")
        path = create(alice, tool("Read", file_path="a.txt") + change + look, tools=["Bash", "Edit", "Read"])
        asked = put_away(alice, path)
        server.commit("org/app", {"b.txt": "changed meanwhile\n"})
        assert decide(alice, path, asked).status_code == 200
        done = ended(alice, path)
    assert done["state"] == "done", done
    result = done["result"]
    assert "two" in result["result"] and commit in result["result"] and " M a.txt" in result["result"]
    assert result["repository"] == {"name": "org/app", "ref": "main", "commit": commit}
    assert {change["path"]: change["status"] for change in result["changes"]} == {"a.txt": "modified", "c.txt": "added"}
    assert result["session"] is None


def test_a_check_is_run_when_it_has_gone_on_and_its_repair_is_put_away_too(worker: Invoker) -> None:
    wants = bash("touch good")
    rules = clamp(ask=["Bash"], allow=["Bash(cat wants.txt good)"])
    with client(worker, "alice", **rules) as alice:
        path = create(
            alice,
            bash("touch one"),
            files=[{"path": "wants.txt", "content": wants}],
            check="cat wants.txt good",
            max_repairs=1,
        )
        first = put_away(alice, path)
        assert first["input"] == {"command": "touch one"}
        assert decide(alice, path, first).status_code == 200
        second = put_away(alice, path)
        assert second["input"] == {"command": "touch good"}
        assert decide(alice, path, second).status_code == 200
        done = ended(alice, path)
    assert done["state"] == "done", done
    assert done["result"]["check"]["passed"] and done["result"]["check"]["repairs"] == 1
    assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["good", "one"]


def test_of_several_calls_at_once_the_last_is_put_away(worker: Invoker, alice: httpx.Client) -> None:
    both = bash("echo from-one") + bash("echo from-two").replace("[[tool", "[[beside", 1)
    path = create(alice, both)
    first = asked_by(alice, path)
    second = asked_by(alice, path, but=first["id"])
    assert decide(alice, path, second).status_code == 200
    asked = put_away(alice, path)
    assert asked == first
    assert decide(alice, path, asked).status_code == 200
    done = ended(alice, path)
    assert done["state"] == "done" and {"from-one", "from-two"} <= set(done["result"]["result"].split()), done
    assert done["result"]["num_turns"] <= 4


def test_a_call_of_an_mcp_server(worker: Invoker, tickets: Tickets) -> None:
    """Its server is asked anew, and the call is let pass once."""
    rules = {"clamp": {"rules": {"ask": [CREATE]}, "mcp": ["tickets"]}}
    with client(worker, "alice", **rules) as alice:
        path = create(alice, tool(CREATE, title="one"), tools=["Read"], mcp=["tickets"])
        asked = put_away(alice, path)
        assert tickets.created == []
        assert decide(alice, path, asked, input={"title": "two"}).status_code == 200
        done = ended(alice, path)
    assert done["state"] == "done" and "created: two" in done["result"]["result"], done
    assert tickets.created == ["two"]


@pytest.mark.slow
def test_another_machine_knows_that_a_session_is_taken(
    start: Callable[..., Invoker], settings: dict[str, Any], tmp_path: Path
) -> None:
    redis = started()
    own = settings | {"redis_url": redis.url, "runs_redis_url": redis.url, "store": f"file://{tmp_path}"}
    one, other = start(**own, worker="embedded"), start(**own)
    with client(one, "alice", **BASH) as alice, client(other, "alice", **BASH) as there:
        path = create(alice, bash("touch made.txt"), session="new")
        asked = put_away(alice, path)
        session = session_of(alice, path)
        assert turn(there, session).status_code == 409
        assert decide(there, path, asked).status_code == 200
        done = ended(alice, path)
        assert done["state"] == "done" and done["result"]["session"] == session, done
        assert turn(there, session).json()["result"] == "yes"
        cancelled = create(alice, bash("echo harmless"), session=session)
        put_away(alice, cancelled)
        assert there.delete(cancelled).json()["state"] == "cancelled"
        assert turn(there, session).json()["result"] == "yes"
    redis.close()


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"away": null}', '{"away": {}}', '{"away": {"job": "x"}}', '{"away": 1}', line_of(None)]
)
def test_a_line_that_says_that_nothing_is_left(line: str) -> None:
    assert away_of(line) is None
    for is_own in (False, True):
        left = Away("job_1", 'Bash"\u2028', is_own)
        assert away_of(line_of(left)) == left
