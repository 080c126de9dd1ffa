"""Junk at every route, as bytes on the wire of a real invoker: nothing is answered with 5xx."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import quote_from_bytes, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from claude_invoker.api import health
from claude_invoker.app import ROUTERS
from tests.invoker.conftest import Invoker, wait_for
from tests.jobs.test_attacks import invocation, nested
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("junk")  # its invoker is started once

EXAMPLES = 400 if os.environ.get("INVOKER_LONG") else 50  # of each route, in the long form

# Bytes that some parser minds: of URLs, forms, lists, numbers, ranges, quotes, escapes, UTF-8.
SHARDS = st.sampled_from(
    [b"&" * 11, b"%", b"%00", b"%ff", b"%u1", b"[", b"]", b"://", b"http://[", b"..", b"/", b"\\", b"=", b";", b",", b'"',
     b"q=", b"1e999", b"nan", b"-1", b"9" * 30, b"\xd9\xa1", b"\xff", b"\xed\xa0\x80", b"bytes=", b"5-1", b"0-", b"1-1",
     b"application/openmetrics-text;version=a", b"multipart/form-data; boundary=", b"charset=utf-99", b"*", b"\t", b"x"]
)  # fmt: skip
JUNK = SHARDS | st.lists(SHARDS | st.binary(max_size=6), max_size=6).map(b"".join)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Content-Encoding", "Content-Type", "Cookie",
         "Idempotency-Key", "If-Match", "If-None-Match", "If-Modified-Since", "If-Range", "Last-Event-ID", "Origin",
         "Prefer", "Range", "Sec-Fetch-Site", "traceparent", "tracestate", "X-Claude-Attestation", "X-Forwarded-Host",
         "X-Forwarded-Proto", "X-Request-Id"]
    ),
    JUNK.map(lambda value: value.translate(None, b"\r\n\0").strip()) | st.just(b"same-origin"),
    max_size=6,
)  # fmt: skip
# As our own page sends them, else nothing comes past the check for that.
HEADERS |= HEADERS.map(lambda headers: headers | {"Sec-Fetch-Site": b"same-origin"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    ["messages", "system", "context", "model", "tools", "max_turns", "max_budget_usd", "session", "output_schema",
     "timeout_s", "callback_url"]
)  # fmt: skip
# Without a prompt, so that few of them run.
BODIES = (
    JUNK
    | st.binary(max_size=40)
    | st.dictionaries(MEMBERS, VALUES, max_size=4).map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [invocation(n) for n in (65, 900, 1100)] + [nested(50_000), b'{"prompt":"\\ud800"}', b'{"a":1e400}']
    )
)
SEGMENTS = JUNK.map(lambda value: quote_from_bytes(value, safe="%;=&,") or "x")
QUERIES = st.lists(
    st.tuples(st.sampled_from([b"cursor", b"limit", b"state", b"all", b"format", b"after", b"x"]), JUNK), max_size=3
).map(lambda pairs: "&".join(f"{name.decode()}={quote_from_bytes(value, safe='%=')}" for name, value in pairs))


@pytest.fixture(scope="module", params=["open", "attested"])
def target(request: pytest.FixtureRequest, start_invoker: Callable[..., Invoker]) -> Iterator[Invoker]:
    redis = RedisProcess()
    chosen = {"redis_url": redis.url, "worker": "embedded", "max_runs": 2, "max_body": 1 << 20, "prefix": "/claude"}
    if request.param == "attested":
        chosen |= {"trust": "attested", "attestation_key": "k" * 40}
    found = start_invoker(**chosen)
    yield found
    found.stop()
    redis.close()


@pytest.fixture(scope="module")
def known(target: Invoker) -> dict[str, str]:
    """A run and a job that are there, so that junk also comes past the look-up; none where nobody is let in."""
    with target.client() as client:
        made = client.post("/invoke", json={"prompt": '[[tool Write {"file_path": "f.txt", "content": "x"}]]'})
        if made.status_code != 200:
            assert made.status_code == 401
            return {}
        job = client.post("/jobs", json={"prompt": "hi"}).json()["id"]
        wait_for(lambda: client.get(f"/jobs/{job}").json()["state"] == "done", what="the job")
        return {"run_id": made.json()["id"], "job_id": job, "path": "f.txt"}


def routes() -> list[tuple[str, str]]:
    """Method and path of every route of the application, those outside of the OpenAPI document included."""
    found = {("GET", "/openapi.json"), ("GET", "/claude/openapi.json")}
    for router in (health.router, *ROUTERS):
        own = {
            (method, route.path)
            for route in router.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        }
        found |= own | {(method, f"/claude{path}") for method, path in own}
    assert {path for _, path in found} >= {
        "/invoke",
        "/claude/dashboard/login",
        "/claude/dashboard/runs/{run_id}/cancel",
        "/metrics",
        "/claude/jobs/{job_id}/events",
    }
    return sorted(found)


def status_of(invoker: Invoker, head: bytes, body: bytes) -> int:
    """The status of the answer to raw bytes; the rest of it is not waited for."""
    place = urlsplit(invoker.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=HANG_S) as connection:
        connection.sendall(head + b"\r\n" + body)
        line = connection.makefile("rb").readline()
    assert line.startswith(b"HTTP/1.1 "), line
    return int(line.split()[1])


@st.composite
def junk(draw: st.DrawFn, method: str, template: str, known: dict[str, str]) -> tuple[bytes, bytes]:
    """Head and body of a request to a route."""
    path = template
    while "{" in path:
        placeholder = path[path.index("{") : path.index("}") + 1]
        name = placeholder.strip("{}").partition(":")[0]
        path = path.replace(placeholder, draw(SEGMENTS | st.just(known.get(name, "x"))), 1)
    query, headers, body = draw(QUERIES), draw(HEADERS), draw(BODIES)
    host = draw(st.sampled_from([b"invoker", b"[", b"a/claude/", b"\xff", b"x:y", b""]))
    head = f"{method} {path}{'?' + query if query else ''} HTTP/1.1\r\n".encode()
    head += b"Host: " + host + b"\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
    return head + b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers.items()), body


@pytest.mark.parametrize("examples", [8, pytest.param(EXAMPLES, marks=pytest.mark.slow)])
def test_junk_at_every_route_is_no_error_of_ours(target: Invoker, known: dict[str, str], examples: int) -> None:
    log = target.log.stat().st_size
    seen: set[int] = set()

    def fuzz(method: str, template: str) -> None:
        @given(request=junk(method, template, known))
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(request: tuple[bytes, bytes]) -> None:
            status = status_of(target, *request)
            seen.add(status)
            # /readyz says 503 while a warm process is being replaced.
            assert status < 500 or (status == 503 and template == "/readyz"), (status, request)

        check()

    for method, template in routes():
        fuzz(method, template)
    assert b"Traceback" not in target.log.read_bytes()[log:]
    assert seen >= ({200, 400, 404, 422} if known else {200, 401})
    assert httpx.get(f"{target.url}/healthz").status_code == 200
