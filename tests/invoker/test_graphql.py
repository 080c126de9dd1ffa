"""GraphQL at the invoker: what one document may ask for, and what its fields answer. Through the gateway:
`tests/e2e/test_graphql.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from graphql import execute, get_introspection_query, validate
from hypothesis import given
from hypothesis import strategies as st

from claude_contract import graphql as contract
from claude_contract.attestation import HEADER
from claude_invoker.api.graphql import bounds
from claude_invoker.api.graphql.bounds import operation_of
from claude_invoker.api.graphql.schema import SCHEMA, Asking
from claude_invoker.caller import Caller
from claude_invoker.problem import Problem
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker
from tests.invoker.test_trust import SECRET, attestation
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("graphql")  # its invoker is started once
PATH = "/claude/graphql"


def doubling(levels: int) -> str:
    """Fragments each of which stands for two of the next: 2^levels fields in a few lines."""
    made = [f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }}" for n in range(levels)]
    return "{ ...f0 } " + " ".join(made) + f" fragment f{levels} on Query {{ limits }}"


REFUSED = {
    "fragments that double": (doubling(40), "more than 500 fields"),
    "fragments in a circle": ("{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }", "circle"),
    "a fragment of itself": ("{ ...a } fragment a on Query { ...a }", "circle"),
    "a circle that nobody uses": ("{ limits } fragment a on Query { ...a }", "circle"),
    "aliases": ("{" + " ".join(f"a{n}: limits" for n in range(11)) + "}", "more than 10 aliases"),
    "lists under aliases": (
        "{" + " ".join(f"a{n}: runs(limit: 100) {{ next }}" for n in range(11)) + "}",
        "more than 10 aliases",
    ),
    "many at once": ("{" + " ".join(["limits"] * 11) + "}", "more than 10 things"),
    "many at once, inside": (
        "{ ... { ...a } ...a } fragment a on Query {" + " limits" * 6 + "}",
        "more than 10 things",
    ),
    "deep": ("{ a" * 16 + "}" * 16, "more than 15 levels"),
    "deep fragments": (
        "{ ...f0 }"
        + "".join(f" fragment f{n} on X {{ a {{ ...f{n + 1} }} }}" for n in range(16))
        + " fragment f16 on X {a}",
        "more than 15 levels",
    ),
    "as deep as a parser goes": ("{a" * 660, "nested too deeply"),
    "lists in lists": ("{ a(b: " + "[" * 1900, "nested too deeply"),
    "tokens": ("{ limits " + "# x\n, a: limits " * 1000 + "}", "more than 2000 tokens"),
    "a long text": ('{ a(b: "' + "x" * 70_000 + '") }', "longer than 65536"),
    "no operation": ("fragment a on Query { limits }", "0 operations"),
    "two operations": ("query a { limits } query b { limits }", "2 operations"),
    "two mutations": ('mutation { a: cancel(id: "1") { id } b: cancel(id: "2") { id } }', "one field"),
    "the same mutation twice": ('mutation { cancel(id: "1") { id } cancel(id: "1") { id } }', "one field"),
    "mutations by a fragment": (
        "mutation { ...a } fragment a on Mutation { invoke { id } createJob { id } }",
        "one field",
    ),
    "mutations inside": ("mutation { ... { invoke { id } createJob { id } } }", "one field"),
    "nothing": ("", "not understood"),
    "no GraphQL": ("{", "not understood"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_what_asks_for_too_much_is_refused_before_anything_is_done(text: str, why: str) -> None:
    began = time.process_time()
    with pytest.raises(Problem, match=why) as refused:
        operation_of(text)
    assert refused.value.status in (400, 422)
    assert time.process_time() - began < 5, "a generous bound: without bounds the doubled fragments never end"


def test_without_bounds_the_same_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_TEXT", "MAX_TOKENS", "MAX_DEPTH", "MAX_ALIASES", "MAX_FIELDS", "MAX_FIRST"):
        monkeypatch.setattr(bounds, name, 1 << 60)
    for name in ("aliases", "many at once", "many at once, inside", "deep", "deep fragments", "a long text"):
        operation_of(REFUSED[name][0])
    operation_of(doubling(10))  # of 40 levels it would not end


def test_what_tools_ask_of_a_schema_is_within_the_bounds() -> None:
    text = get_introspection_query(specified_by_url=True, directive_is_repeatable=True, input_value_deprecation=True)
    document, _ = operation_of(text)
    assert not validate(SCHEMA, document)


def test_a_schema_that_is_asked_for_again_and_again_is_refused() -> None:
    inside = "name"
    for _ in range(6):
        inside = f"fields {{ type {{ {inside} }} }}"
    document, _ = operation_of("{ __schema { types { " + inside + " } } }")
    assert "introspection" in validate(SCHEMA, document)[0].message.lower()


LITERALS = {
    "deep": ("{a: " * 70 + "1" + "}" * 70, "nested more than 64 levels"),
    "deep lists": ("{a: " + "[" * 70 + "]" * 70 + "}", "nested more than 64 levels"),
    "infinite": ("{a: 1e999}", "beyond those of JSON"),
    "a number of any length": ("{a: -" + "9" * 4000 + "}", "beyond those of JSON"),
    "a number that no reader takes": ("{a: " + "9" * 5000 + "}", "beyond those of JSON"),
}


def creating(schema: str) -> Any:
    return validate(
        SCHEMA, operation_of(f'mutation {{ createJob(input: {{prompt: "x", outputSchema: {schema}}}) {{ id }} }}')[0]
    )


@pytest.mark.parametrize(("value", "why"), LITERALS.values(), ids=LITERALS)
def test_a_value_in_the_document_is_one_that_could_come_as_json(value: str, why: str) -> None:
    """What no reader of JSON has seen would be stored with a job, and nobody could read that again."""
    assert why in creating(value)[0].message
    assert not creating('{type: "object", properties: {a: {maximum: 1.5, enum: [A, null, true, "b"]}}}'), "the control"


async def test_a_long_answer_lets_others_be_served_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"path": "a", "status": "modified", "added": 1, "removed": 1}] * 50
    view = {"id": "run_1", "changes": rows, "result": {"changes": rows}}

    async def found(*_: Any, **__: Any) -> Any:
        return view

    assert SCHEMA.query_type is not None
    monkeypatch.setattr(SCHEMA.query_type.fields["run"], "resolve", found)
    inside = "changes { path status added removed }"
    query = " ".join(f'a{number}: run(id: "1") {{ {inside} result {{ {inside} }} }}' for number in range(10))
    document, _ = operation_of(f"{{ {query} }}")

    async def turns(asking: Any) -> int:
        """How often anybody else could have been served."""
        count = 0

        async def others() -> None:
            nonlocal count
            while True:
                count += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        done = await execute(SCHEMA, document, context_value=asking)  # type: ignore[misc]
        other.cancel()
        assert done.errors is None and len(done.data["a9"]["result"]["changes"]) == 50
        return count

    asking = Asking(None, Caller("alice"))  # type: ignore[arg-type]
    assert await turns(asking) > 20, "once for each list"
    control = SimpleNamespace(turn=contextlib.AsyncExitStack())
    assert await turns(control) < 20


def test_subscriptions_are_refused() -> None:
    document, _ = operation_of("subscription { limits }")
    assert validate(SCHEMA, document)


STARTS = {
    '{"query": "mutation { a }"}': True,
    '{"query": "query { a } mutation { b }"}': True,
    '{"query": "\\u006dutation{a}"}': True,
    '{"query": "{ a }", "query": "mutation{a}"}': True,
    '{"query": "mutation{a}", "query": "{ a }"}': False,
    '{"query": "{ a } # a mutation"}': True,
    '{"query": "{ __schema { mutationType { name } } }"}': False,
    '{"query": "{ a }", "variables": {"b": "mutation"}}': False,
    '{"query": 1}': True,
    '{"variables": {}}': True,
    "[]": True,
    '[{"query": "{ a }"}]': True,
    "": True,
    "\xff": True,
}


@pytest.mark.parametrize(("body", "starts"), STARTS.items())
def test_what_may_start_something(body: str, starts: bool) -> None:
    assert contract.may_start(body.encode("latin-1")) is starts


@given(
    before=st.text(st.sampled_from('{} ,#\n\t\ufeff"a_9'), max_size=8),
    after=st.text(st.sampled_from("{} ,#\n\t(a_9@"), max_size=8),
    text=st.sampled_from(
        ("mutation{invoke{id}}", "mutation M{invoke{id}}", "mutation\n@a{invoke{id}}", "query{limits}")
    ),
)
def test_no_mutation_goes_by_unseen(before: str, after: str, text: str) -> None:
    """Whatever the invoker's parser takes for one, the gateway has counted."""
    query = before + text + after
    try:
        _, operation = operation_of(query)
    except Problem:
        return
    if operation.operation.value == "mutation":
        assert contract.may_start(json.dumps({"query": query}).encode())


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        ('{"query": "{ limits { name } }"}', True),
        ('{"query": "{limits}"}', True),
        ('{"query": "{ runs { id } }"}', False),
        ('{"query": "{ limits_ my_limits limitsOf Limits }"}', False),
        ('{"query": "{ runs }", "variables": {"a": "limits"}}', False),
        ("limits", False),
    ],
)
def test_what_may_name_the_limits(body: str, asks: bool) -> None:
    assert contract.asks_for_limits(body.encode()) == asks
    assert contract.LIMITS_HEADER == "X-Claude-Limits", "as a gateway of another release writes it"


@pytest.fixture(scope="module")
def invoker(start_invoker: Callable[..., Invoker]) -> Iterator[Invoker]:
    redis = started()  # no other test's: its worker would run their jobs
    found = start_invoker(trust="attested", attestation_key=SECRET, redis_url=redis.url, worker="embedded")
    yield found
    found.stop()
    redis.close()


LOOKS, STARTED = ["jwt-claims"], ["jwt-claims", "rate-tiers"]


def ask(
    invoker: Invoker,
    query: str,
    subject: str = "alice",
    checks: list[str] = STARTED,
    headers: dict[str, str] | None = None,
    method: str = "POST",
    content: bytes | None = None,
    **variables: Any,
) -> httpx.Response:
    body = content if content is not None else json.dumps({"query": query, "variables": variables}).encode()
    signed = attestation("POST", PATH, body, sub=subject, chk=checks)
    given = {"content-type": "application/json", HEADER: signed} | (headers or {})
    return httpx.request(method, f"{invoker.url}{PATH}", content=body, headers=given, timeout=HANG_S)


def data(answer: httpx.Response) -> Any:
    assert answer.status_code == 200 and "errors" not in answer.json(), answer.text
    return answer.json()["data"]


def code(answer: httpx.Response) -> tuple[int, str]:
    """The status, and the first error's code."""
    return answer.status_code, answer.json()["errors"][0]["extensions"]["code"]


INVOKE = "mutation($input: InvokeRequestInput!) { invoke(input: $input) { id result costUsd usage { outputTokens } } }"
CREATE = "mutation($input: JobRequestInput!) { createJob(input: $input) { id state links } }"
JOB = "query($id: ID!) { job(id: $id) { id state result { result } } }"
CANCEL = "mutation($id: ID!) { cancel(id: $id) { id state } }"


def test_runs_and_jobs(invoker: Invoker) -> None:
    answer = ask(invoker, INVOKE, input={"prompt": "[[say hello there]]", "maxTurns": 3})
    run = data(answer)["invoke"]
    assert answer.headers["x-claude-run"] == run["id"] and float(answer.headers["x-claude-cost-usd"]) == run["costUsd"]
    assert "hello there" in run["result"] and run["costUsd"] > 0 and run["usage"]["outputTokens"] > 0
    mine = data(ask(invoker, "{ runs(state: succeeded, limit: 1) { runs { id state costUsd links } } }", checks=LOOKS))
    links = {"self": f"/claude/runs/{run['id']}"}
    listed = {"id": run["id"], "state": "succeeded", "costUsd": run["costUsd"], "links": links}
    assert mine == {"runs": {"runs": [listed]}}
    query = (
        "query($id: ID!) { first: run(id: $id) { id state result { numTurns } } jobs(limit: 5) { jobs { id } next } }"
    )
    seen = data(ask(invoker, query, checks=LOOKS, id=run["id"]))
    assert seen["first"] == {"id": run["id"], "state": "succeeded", "result": {"numTurns": 1}}
    job = data(ask(invoker, CREATE, input={"prompt": "[[say from the queue]]"}))["createJob"]
    assert job["links"]["self"] == f"/claude/jobs/{job['id']}"
    until = time.monotonic() + HANG_S
    while (now := data(ask(invoker, JOB, checks=LOOKS, id=job["id"]))["job"])["state"] != "done":
        assert time.monotonic() < until, now
        time.sleep(0.1)
    assert "from the queue" in now["result"]["result"]
    listed = data(ask(invoker, "{ jobs(state: done) { jobs { id } } }", checks=LOOKS))["jobs"]["jobs"]
    assert {"id": job["id"]} in listed


def test_cancelling(invoker: Invoker) -> None:
    job = data(ask(invoker, CREATE, input={"prompt": "[[hang]]"}))["createJob"]
    assert data(ask(invoker, CANCEL, id=job["id"]))["cancel"]["id"] == job["id"]
    until = time.monotonic() + HANG_S
    while data(ask(invoker, JOB, checks=LOOKS, id=job["id"]))["job"]["state"] != "cancelled":
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_is_wrong_is_said_in_extensions(invoker: Invoker) -> None:
    both = ask(invoker, INVOKE, input={"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]})
    assert code(both) == (200, "invalid") and both.json()["errors"][0]["extensions"]["status"] == 422
    assert both.json()["errors"][0]["path"] == ["invoke"] and both.json()["data"] == {"invoke": None}
    assert code(ask(invoker, INVOKE, input={"prompt": "hi", "tools": ["Bash(rm)"]})) == (200, "invalid")
    assert code(ask(invoker, INVOKE, input={"prompt": 1})) == (200, "invalid")
    assert code(ask(invoker, "{ nothing }")) == (400, "bad-request")
    for limit in ("101", "0", "null"):
        assert code(ask(invoker, f"{{ jobs(limit: {limit}) {{ next }} }}", checks=LOOKS)) == (200, "invalid")
    assert code(ask(invoker, "{ limits }", checks=LOOKS)) == (200, "not-configured")
    told = ask(invoker, "{ limits }", checks=LOOKS, headers={contract.LIMITS_HEADER: '{"tier": "free"}'})
    assert data(told) == {"limits": {"tier": "free"}}


@pytest.mark.parametrize("kind", ["run", "job"])
def test_what_another_tenant_has_is_as_if_it_were_not(invoker: Invoker, kind: str) -> None:
    if kind == "run":
        mine = data(ask(invoker, INVOKE, "alice", input={"prompt": "[[say mine]]"}))["invoke"]["id"]
    else:
        mine = data(ask(invoker, CREATE, "alice", input={"prompt": "[[say mine]]"}))["createJob"]["id"]
    no_such = mine[:-4] + ("0000" if mine[-4:] != "0000" else "1111")
    look = f"query($id: ID!) {{ {kind}(id: $id) {{ id }} }}"
    for query in (look, CANCEL):
        others, none = (ask(invoker, query, "mallory", id=each).json() for each in (mine, no_such))
        assert others == none and others["errors"][0]["extensions"]["status"] == 404
    assert data(ask(invoker, look, "alice", checks=LOOKS, id=mine))[kind]["id"] == mine, "the control"
    for lists in ("jobs", "runs"):
        assert data(ask(invoker, f"{{ {lists} {{ {lists} {{ id }} }} }}", "mallory", checks=LOOKS))[lists][lists] == []


@pytest.mark.parametrize("given", ["../jobs", "a/b", "é", "", "run_1?x"])
def test_ids_that_are_none(invoker: Invoker, given: str) -> None:
    for query in ("query($id: ID!) { run(id: $id) { id } }", "query($id: ID!) { job(id: $id) { id } }", CANCEL):
        answer = ask(invoker, query, id=given)
        assert answer.json()["errors"][0]["extensions"]["status"] == 404, answer.text


def test_a_mutation_that_the_gateway_has_not_admitted_starts_nothing(invoker: Invoker) -> None:
    """It has looked at the same bytes, and signed what it found."""
    refused = ask(invoker, INVOKE, checks=LOOKS, input={"prompt": "hi"})
    assert refused.status_code == 401 and "errors" in refused.json()
    assert ask(invoker, "{ limits }", checks=LOOKS).status_code == 200
    body = json.dumps({"query": "{ limits }"}).encode()
    another = attestation("POST", PATH, b"{}", sub="alice", chk=STARTED)
    assert ask(invoker, "", content=body, headers={HEADER: another}).status_code == 401


FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "batch": ({"content": b'[{"query": "{ limits }"}]'}, 422),
    "GET": ({"method": "GET", "content": b""}, 405),
    "a page's form": ({"headers": {"content-type": "text/plain"}}, 415),
    "a form": ({"headers": {"content-type": "application/x-www-form-urlencoded"}}, 415),
    "no query": ({"content": b"{}"}, 422),
    "a stored query": ({"content": b'{"extensions": {"persistedQuery": {}}, "query": 1}'}, 422),
    "variables that are none": ({"content": b'{"query": "{ limits }", "variables": []}'}, 422),
    "more than can be looked at": (
        {"content": json.dumps({"query": "{ limits }", "variables": {"a": [[0] * 1000] * 51}}).encode()},
        422,
    ),
    "a member that nobody knows": ({"content": b'{"query": "{ limits }", "map": {}}'}, 422),
    "half a surrogate pair": ({"content": b'{"query": "{ limits }", "variables": {"a": "\\ud83d"}}'}, 400),
}


@pytest.mark.parametrize(("more", "status"), FORMS.values(), ids=FORMS)
def test_other_forms_of_requests_are_refused(invoker: Invoker, more: dict[str, Any], status: int) -> None:
    answer = ask(invoker, "{ limits }", **more)
    assert answer.status_code == status and answer.json()["errors"][0]["extensions"]["status"] == status, answer.text
