"""GraphQL through the whole stack: what counts, what does not, and who sees what."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import httpx
import pytest
from graphql import build_client_schema, get_introspection_query

from tests.e2e.conftest import ROOT, Gateway
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.xdist_group("e2e")
PATH = "/claude/graphql"
INVOKE = "mutation($input: InvokeRequestInput!) { invoke(input: $input) { id result costUsd } }"
CREATE = "mutation($input: JobRequestInput!) { createJob(input: $input) { id state } }"
RETRY = "mutation($id: ID!) { retryJob(id: $id) { id state retryOf } }"
CANCEL = "mutation($id: ID!) { cancel(id: $id) { id } }"


def ask(client: httpx.Client, query: str, headers: dict[str, str] | None = None, **variables: Any) -> httpx.Response:
    return client.post(PATH, json={"query": query, "variables": variables}, headers=headers)


def data(answer: httpx.Response) -> Any:
    assert answer.status_code == 200 and "errors" not in answer.json(), answer.text
    return answer.json()["data"]


def counted(client: httpx.Client) -> int:
    """What the caller has used of his minute, and has under way."""
    found = client.get("/claude/limits").json()
    (minute,) = [each for each in found["windows"] if each["name"] == "minute"]
    return int(minute["limit"]) - int(minute["remaining"])


def reserved(client: httpx.Client) -> float:
    """What the caller's runs hold of his budgets, in USD."""
    return float(client.get("/claude/limits").json()["usd"]["reserved"])


def lasting(report: Any) -> Any:
    """A report without the seconds that are left of its windows, which pass between two reports."""
    if isinstance(report, dict):
        return {name: lasting(value) for name, value in report.items() if name != "reset_s"}
    return [lasting(value) for value in report] if isinstance(report, list) else report


def test_a_mutation_is_counted_once_and_a_query_is_not(gateway: Gateway) -> None:
    with gateway.client("gql-counted", "--tier", "free", timeout=HANG_S) as client:
        schema = data(ask(client, get_introspection_query()))
        assert build_client_schema(schema).mutation_type is not None
        limits = data(ask(client, "{ limits }", {"X-Claude-Limits": '{"tier": "forged"}'}))["limits"]
        assert limits["tier"] == "free" and lasting(limits) == lasting(client.get("/claude/limits").json())
        assert counted(client) == 0
        run = data(ask(client, INVOKE, input={"prompt": "[[say through graphql]]"}))["invoke"]
        assert "through graphql" in run["result"] and run["costUsd"] > 0
        assert counted(client) == 1
        found = data(ask(client, "query($id: ID!) { run(id: $id) { state } jobs { jobs { id } } }", id=run["id"]))
        assert found["run"] == {"state": "succeeded"}
        (listed,) = data(ask(client, "{ runs { runs { id } } }"))["runs"]["runs"]
        assert [listed["id"]] == [run["id"]] == [each["id"] for each in client.get("/claude/runs").json()["runs"]]
        assert counted(client) == 1
        # Written so that it only shows once the JSON is read.
        body = b'{"query": "\\u006dutation { cancel(id: \\"job_x\\") { id } }"}'
        answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert answer.json()["errors"][0]["extensions"]["status"] == 404
        assert counted(client) == 2


def test_the_document_shows_a_call_that_works(gateway: Gateway) -> None:
    (shown,) = re.findall(r"^curl .*?}}}'$", (ROOT / "docs" / "graphql.md").read_text(), re.DOTALL | re.MULTILINE)
    own = {"PATH": os.environ["PATH"], "GATEWAY": gateway.url, "TOKEN": gateway.token("gql-shown", "--tier", "pro")}
    done = subprocess.run(["sh", "-c", shown], env=own, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert "canned answer" in json.loads(done.stdout)["data"]["invoke"]["result"]


def test_the_gateways_words_and_clamps_are_those_of_other_paths(gateway: Gateway) -> None:
    with gateway.client("gql-clamped", "--tier", "free", timeout=HANG_S) as client:
        data(ask(client, INVOKE, {"X-Repo": "acme/app"}, input={"prompt": "[[say words]] gql-marked"}))
        (asked,) = [line for line in gateway.record() if "gql-marked" in str(line.get("messages"))]
        assert "code review assistant" in str(asked["system"]) and "acme/app" in str(asked["system"])
        opus = ask(client, INVOKE, input={"prompt": "hi", "model": "opus"}).json()
        assert opus["errors"][0]["extensions"]["code"] == "forbidden"


def test_where_no_place_is_free_a_job_waits_and_a_run_says_so(gateway: Gateway) -> None:
    with gateway.client("gql-busy", "--tier", "free", timeout=HANG_S) as client:
        first = data(ask(client, CREATE, input={"prompt": "[[hang]]"}))["createJob"]["id"]
        job = "query($id: ID!) { job(id: $id) { state } }"
        # A job is running before its place is taken: whoever is let in between has that, and the job goes on waiting.
        wait_for(lambda: client.get("/claude/limits").json()["concurrent"]["running"] == 1, what="the job's place")
        busy = ask(client, INVOKE, input={"prompt": "hi"}).json()["errors"][0]["extensions"]
        assert (busy["code"], busy["status"]) == ("busy", 503)
        waits = data(ask(client, CREATE, input={"prompt": "hi"}))["createJob"]
        assert waits["state"] == "queued"
        for each in (waits["id"], first):
            assert data(ask(client, CANCEL, id=each))["cancel"]["id"] == each
        wait_for(lambda: data(ask(client, job, id=first))["job"]["state"] == "cancelled", what="its end")


def test_a_job_is_tried_again_as_todays_tier_allows_it(gateway: Gateway) -> None:
    """Each try is one admission, whatever becomes of it; the same key is the same job."""

    def cancelled(subject: str, tier: str, **wanted: str) -> str:
        with gateway.client(subject, "--tier", tier, timeout=HANG_S) as client:
            made = data(ask(client, CREATE, input={"prompt": "[[hang]]"} | wanted))["createJob"]["id"]
            data(ask(client, CANCEL, id=made))
            wait_for(lambda: client.get(f"/claude/jobs/{made}").json()["state"] == "cancelled", what="its end")
            wait_for(lambda: reserved(client) == 0, what="its money")  # a moment later
            return str(made)

    job, opus = cancelled("gql-again", "pro"), cancelled("gql-fallen", "team", model="opus")
    with gateway.client("gql-again", "--tier", "pro", timeout=HANG_S) as client:
        before = counted(client)
        key = {"Idempotency-Key": "once"}
        new = data(ask(client, RETRY, key, id=job))["retryJob"]
        assert new["retryOf"] == job != new["id"]
        assert data(ask(client, RETRY, key, id=job))["retryJob"]["id"] == new["id"]
        assert (
            data(ask(client, "query($id: ID!) { job(id: $id) { retriedAs } }", id=job))["job"]["retriedAs"] == new["id"]
        )
        assert counted(client) == before + 2
        for wrong, code, status in ((new["id"], "conflict", 409), (f"job_{'0' * 24}", "not-found", 404)):
            (error,) = ask(client, RETRY, id=wrong).json()["errors"]
            assert (error["extensions"]["code"], error["extensions"]["status"]) == (code, status), error
        data(ask(client, CANCEL, id=new["id"]))
        two = ask(client, 'mutation { a: retryJob(id: "1") { id } b: retryJob(id: "2") { id } }')
        assert two.status_code == 422
        assert counted(client) == before + 6
    with gateway.client("gql-fallen", "--tier", "free", timeout=HANG_S) as client:  # a tier that has fewer models
        (error,) = ask(client, RETRY, id=opus).json()["errors"]
        assert error["extensions"]["status"] == 403 and "model opus" in error["extensions"]["detail"], error
    with gateway.client("gql-stranger", "--tier", "pro", timeout=HANG_S) as client:
        (error,) = ask(client, RETRY, id=job).json()["errors"]
        assert error["extensions"]["status"] == 404


def test_without_a_token_or_by_what_pages_can_send_there_is_nothing(gateway: Gateway) -> None:
    with gateway.client() as nobody:
        for query in ("{ limits }", get_introspection_query(), INVOKE):
            refused = ask(nobody, query)
            assert refused.status_code == 401
            (error,) = refused.json()["errors"]
            assert error["message"] and error["extensions"]["status"] == 401
    with gateway.client("gql-page") as client:
        assert client.get(PATH, params={"query": "mutation { cancel(id: 1) { id } }"}).status_code == 404
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            body = b'{"query": "{ limits }"}'
            assert client.post(PATH, content=body, headers={"Content-Type": kind}).status_code == 415
        assert client.post(PATH, json=[{"query": "{ limits }"}]).status_code in (400, 422)
        two = ask(client, 'mutation { a: cancel(id: "1") { id } b: cancel(id: "2") { id } }')
        assert (two.status_code, two.json()["errors"][0]["extensions"]["code"]) == (422, "invalid")
        token = client.headers.pop("Authorization").removeprefix("Bearer ")
        assert ask(client, "{ limits }", {"Cookie": f"claude_token={token}"}).status_code == 401
