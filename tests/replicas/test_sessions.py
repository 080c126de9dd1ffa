"""A conversation goes on at whichever invoker its next turn lands."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from claude_invoker.runs.turns import LEASE_S
from tests.invoker.conftest import Invoker, StandInProcess, as_root, tool, wait_for
from tests.replicas.test_replicas import client
from tests.support.s3 import S3, away

pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def start(start: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return functools.partial(start, total_s=120)


def turn(api: httpx.Client, prompt: str, session: str = "new", **more: Any) -> dict[str, Any]:
    answered = api.post("/claude/invoke", json={"prompt": prompt, "session": session, **more})
    assert answered.status_code == 200, answered.text
    answer: dict[str, Any] = answered.json()
    return answer


def test_turns_at_two_invokers_one_of_which_is_killed(
    start: Callable[..., Invoker], s3: S3, prefix: str, stand_in: StandInProcess
) -> None:
    one, other = start(), start()
    mark = secrets.token_hex(4)
    with client(one) as here, client(other) as there, client(other, "mallory") as stranger:
        write = tool("Write", file_path="deep/n.txt", content="4711")
        first = turn(here, f"first-{mark} my number is 4711 {write}")
        session = first["session"]
        second = turn(there, f"second-{mark} {tool('Read', file_path='deep/n.txt')}", session)
        assert second["session"] == session and "4711" in second["result"], second
        assert second["artifacts"] == [], "a file of an earlier turn is no artifact of this one"
        # Back, where the tree is of the turn before: only what changed is fetched.
        third = turn(
            here, f"third-{mark} {tool('Edit', file_path='deep/n.txt', old_string='4711', new_string='42')}", session
        )
        assert [artifact["path"] for artifact in third["artifacts"]] == ["deep/n.txt"]
        os.kill(one.pid, signal.SIGKILL)
        shutil.rmtree(one.state, ignore_errors=True)
        fourth = turn(there, f"fourth-{mark} {tool('Read', file_path='deep/n.txt')}", session)
        assert "42" in fourth["result"]
        reached = next(line for line in reversed(stand_in.lines()) if f"fourth-{mark}" in str(line["messages"]))
        said = str(reached["messages"])
        assert all(f"{which}-{mark}" in said for which in ("first", "second", "third")), "the whole conversation"
        assert stranger.post("/claude/invoke", json={"prompt": "x", "session": session}).status_code == 404
        assert (
            there.post(
                "/claude/invoke", json={"prompt": "x", "session": "00000000-0000-0000-0000-000000000000"}
            ).status_code
            == 404
        )
    names = [name for name in s3.names(prefix) if name.startswith("sessions/")]
    assert len([name for name in names if name.endswith(".manifest")]) == 1, "what is not needed any more goes"
    assert session not in str(names)


@pytest.mark.slow  # an invoker of its own
def test_one_turn_at_a_time_over_all_invokers(start: Callable[..., Invoker]) -> None:
    one, other = start(), start()
    statuses: list[int] = []
    with client(one) as here, client(other) as there:
        session = turn(here, "x")["session"]

        def ask(api: httpx.Client) -> None:
            body = {"prompt": "[[delay 500]] [[say a b c d e f]]", "session": session}
            statuses.append(api.post("/claude/invoke", json=body).status_code)

        threads = [threading.Thread(target=ask, args=(api,)) for api in (here, there)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 409]


@pytest.mark.slow  # an invoker of its own
def test_while_the_store_is_away_a_session_goes_on_where_it_is(start: Callable[..., Invoker], s3: S3) -> None:
    one, other = start(), start()
    with client(one) as here, client(other) as there:
        session = turn(here, tool("Write", file_path="a.txt", content="1"))["session"]
        with away(s3):
            turn(here, tool("Edit", file_path="a.txt", old_string="1", new_string="22"), session)
            assert "22" in turn(here, tool("Read", file_path="a.txt"), session)["result"]
            refused = there.post("/claude/invoke", json={"prompt": "x", "session": session})
            assert (refused.status_code, "could not send it" in refused.text) == (503, True), refused.text
        read = {"prompt": tool("Read", file_path="a.txt"), "session": session}
        wait_for(lambda: there.post("/claude/invoke", json=read).status_code == 200, what="that it is sent")
        assert "22" in turn(there, tool("Read", file_path="a.txt"), session)["result"]


@pytest.mark.slow  # a lease lapses
def test_an_invoker_that_was_paused_does_not_overwrite_what_another_has_gone_on_with(
    start: Callable[..., Invoker],
) -> None:
    one, other = start(), start()
    with client(one) as here, client(other) as there:
        session = turn(here, tool("Write", file_path="a.txt", content="of the first turn"))["session"]
        body = {"prompt": "[[delay 1000]] [[say a b c d e f g h]]", "session": session}
        edit = {"prompt": tool("Edit", file_path="a.txt", old_string="first", new_string="third"), "session": session}
        with here.stream("POST", "/claude/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            pieces = stream.iter_text()
            while "content_block_delta" not in next(pieces):
                pass
            assert there.post("/claude/invoke", json=edit).status_code == 409  # the control: it is its turn
            os.kill(one.pid, signal.SIGSTOP)
            wait_for(
                lambda: there.post("/claude/invoke", json=edit).status_code == 200,
                what="that it is taken over",
                within_s=6 * LEASE_S,
            )
            os.kill(one.pid, signal.SIGCONT)
            rest = "".join(pieces)
        assert "event: error" in rest and "another invoker has gone on with this session" in rest, rest
        for api in (there, here, there):
            assert "of the third turn" in turn(api, tool("Read", file_path="a.txt"), session)["result"]
