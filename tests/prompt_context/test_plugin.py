"""The plugin behind a real plugin server, spoken to as Kong does."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from claude_contract.errors import ConfigError
from kong_claude.prompt_context.plugin import PromptContext
from tests.prompt_context.conftest import Send, post
from tests.prompt_context.test_inert import CORPUS
from tests.support.kong_driver import Driver, Event, Request, RPCError
from tests.support.stages import stage_of

SECRET = "0123456789abcdef0123456789abcdef"
FIXED = {"secret": SECRET, "request": "POST /claude/invoke"}
GUIDE = {
    "prepend": "You are a code review assistant. ",
    "context": {"repository": {"source": "header:X-Repo"}, "branch": {"source": "header:X-Branch"}},
}
REPO = {"x-repo": "org/app", "x-branch": "main"}
HI = '{"prompt": "hi", "system": "Be brief."}'


def claims(request: Request) -> dict[str, Any]:
    header = request.upstream_headers["x-claude-attestation"]
    decoded: dict[str, Any] = jwt.decode(header, SECRET, algorithms=["HS256"], audience="claude-invoker")
    return decoded


def sent(request: Request) -> Any:
    return json.loads(request.upstream_body)


def refused(event: Event, status: int) -> str:
    assert event.exit is not None, "the request passed"
    assert event.exit.status == status, event.exit
    changed = [method for method in event.methods if "set_" in method or method.endswith("shared.set")]
    assert set(changed) <= {"kong.log.set_serialize_value"}  # who was refused, for the log
    return str(event.exit.body["message"])


def test_the_example_of_the_guide(send: Send) -> None:
    event, request = send(GUIDE, post(HI, {"x-repo": "org/app", "x-branch": "main"}))
    assert event.exit is None
    assert sent(request) == {
        "prompt": "hi",
        "system": "You are a code review assistant. Be brief.",
        "context": {"repository": "org/app", "branch": "main"},
    }


def test_calls_of_a_rewritten_body(send: Send) -> None:
    event, request = send(GUIDE, post(HI, REPO))
    assert event.methods == [
        "kong.request.get_headers",
        "kong.request.get_raw_body",
        "kong.service.request.set_headers",
        "kong.service.request.set_raw_body",
        "kong.ctx.shared.set",
    ]
    assert request.shared["claude_context"]["mark"] == "m"
    assert request.shared["claude_context"]["version"] in request.upstream_headers["x-claude-context"]


def test_calls_of_attested_additions(send: Send) -> None:
    event, request = send({**GUIDE, "apply": "attested", "attestation": FIXED}, post(HI, REPO))
    assert event.methods == [
        "kong.request.get_headers",
        "kong.service.request.set_headers",
        "kong.ctx.shared.set",
    ]
    assert request.upstream_body is None
    assert claims(request)["add"] == {
        "prepend": "You are a code review assistant. ",
        "context": {"repository": "org/app", "branch": "main"},
    }
    assert "bsh" not in claims(request)


def test_calls_without_a_body(send: Send) -> None:
    empty = post(b"", {"content-type": None})
    assert send(GUIDE, empty)[0].methods == ["kong.request.get_headers", "kong.ctx.shared.set"]
    # Without a length HTTP/2 may still carry a body: only reading tells.
    unknown = Request(method="GET", headers={"host": "x"})
    event, request = send(GUIDE, unknown)
    assert event.methods == ["kong.request.get_headers", "kong.request.get_raw_body", "kong.ctx.shared.set"]
    assert request.upstream_body is None


def test_http2_body_without_length_is_checked(send: Send) -> None:
    event, _ = send({**GUIDE, "locked": ["model"]}, post('{"model":"x"}', {"content-length": None}))
    assert "model" in refused(event, 400)


def test_nothing_is_added_to_an_empty_body(send: Send) -> None:
    """Such as that of a job that is tried again, whose own request has all that was added to it."""
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        event, request = send(GUIDE, post("", {"content-type": kind, "content-length": "0"}))
        assert event.methods == ["kong.request.get_headers", "kong.ctx.shared.set"], kind
        assert request.upstream_body is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_bodyless_methods_pass_untouched(send: Send, method: str) -> None:
    request = Request(
        method=method,
        path="/claude/jobs/1",
        headers={"x-request-id": "r", "x-claude-context": "forged"},
        answers={"kong.nginx.get_var": lambda name: f"{method} /claude/jobs/1 HTTP/1.1"},
    )
    event, _ = send({**GUIDE, "attestation": {"secret": SECRET}, "apply": "attested"}, request)
    assert event.exit is None
    assert request.upstream_body is None
    assert request.upstream_headers["x-claude-context"] in ({}, [])  # removed
    assert "add" not in claims(request)
    assert "kong.request.get_raw_body" not in event.methods


MEDIA: list[tuple[str, dict[str, Any], int | None]] = [
    ("json", {"content-type": "application/json"}, None),
    ("charset", {"content-type": 'Application/JSON; Charset="UTF-8"'}, None),
    ("suffix", {"content-type": "application/vnd.api+json"}, None),
    ("identity", {"content-encoding": "identity"}, None),
    ("none", {"content-type": None}, 415),
    ("empty", {"content-type": ""}, 415),
    ("form", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("text", {"content-type": "text/plain"}, 415),
    ("text json", {"content-type": "text/json"}, 415),
    ("jsonp", {"content-type": "application/jsonp"}, 415),
    ("latin", {"content-type": "application/json; charset=iso-8859-1"}, 415),
    ("utf-16", {"content-type": "application/json; charset=utf-16"}, 415),
    ("utf8", {"content-type": "application/json; charset=utf8"}, None),
    ("us-ascii", {"content-type": "application/json;charset=us-ascii"}, None),
    ("not a name", {"content-type": "application/json; charset=<b>"}, 415),
    ("two charsets", {"content-type": "application/json; charset=utf-8; charset=latin1"}, 415),
    ("charset*", {"content-type": "application/json; charset*=utf-16''x"}, 415),
    ("two", {"content-type": ["application/json", "text/plain"]}, 415),
    ("multipart", {"content-type": "multipart/form-data; boundary=x"}, 415),
    ("gzip", {"content-encoding": "gzip"}, 415),
    ("gzip twice", {"content-encoding": ["identity", "gzip"]}, 415),
    ("list", {"content-encoding": "identity, br"}, 415),
]


@pytest.mark.parametrize(("headers", "status"), [row[1:] for row in MEDIA], ids=[row[0] for row in MEDIA])
@pytest.mark.parametrize("apply", ["body", "attested"])
def test_media_types(send: Send, apply: str, headers: dict[str, Any], status: int | None) -> None:
    event, _ = send({**GUIDE, "apply": apply, "attestation": FIXED}, post(HI, headers))
    if status is None:
        assert event.exit is None
    else:
        refused(event, status)


def test_who_compresses_is_told_what_is_taken(send: Send) -> None:
    event, _ = send(GUIDE, post(HI, {"content-encoding": "gzip"}))
    assert event.exit is not None
    assert dict(event.exit.headers or {})["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("config", "request_", "reason"),
    [
        (GUIDE, post(HI, {"content-length": "+5"}), "bad_request"),
        (GUIDE, post(HI, {"content-encoding": "gzip"}), "bad_encoding"),
        ({**GUIDE, "explain": True}, post(HI, {**REPO, "x-claude-explain": "1"}), "explain_denied"),
    ],
    ids=["length", "encoding", "explain"],
)
def test_the_name_of_a_refusal_stays(send: Send, config: dict[str, Any], request_: Request, reason: str) -> None:
    """Metrics, logs and alerts go by it."""
    event, _ = send(config, request_)
    assert event.exit is not None
    assert dict(event.exit.headers or {})["X-Claude-Refusal"] == f"prompt-context/{reason}"


def test_what_is_wrong_with_the_characters_is_named(send: Send) -> None:
    latin, _ = send(GUIDE, post(HI, {"content-type": "application/json; charset=ISO-8859-1"}))
    assert latin.exit is not None and "charset=iso-8859-1" in str(latin.exit)
    mark, _ = send(GUIDE, post(b"\xef\xbb\xbf" + HI.encode(), {}))
    assert mark.exit is not None and "byte order mark" in str(mark.exit)
    not_utf8, _ = send(GUIDE, post(b'{"prompt":"\xff"}', {"content-type": "application/json; charset=us-ascii"}))
    refused(not_utf8, 400)


BODIES = {
    "array": b"[1]",
    "duplicate": b'{"prompt":"a","prompt":"b"}',
    "nan": b'{"a":NaN}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "invalid utf-8": b'{"a":"\xff"}',
    "deep": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "system": b'{"system":5}',
    "context": b'{"context":"x"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bad_bodies(send: Send, body: bytes) -> None:
    message = refused(send(GUIDE, post(body))[0], 400)
    assert "x" not in message.split() and "prompt" not in message


RULES: list[tuple[str, dict[str, Any], dict[str, Any], int | None, Any]] = [
    ("pattern holds", {"pattern": "[a-z/]+"}, {"x-repo": "org/app"}, None, "org/app"),
    ("pattern breaks", {"pattern": "[a-z/]+"}, {"x-repo": "SECRET"}, 400, "header X-Repo must match [a-z/]+"),
    ("pattern is whole", {"pattern": "[a-z/]+"}, {"x-repo": "org/app\t"}, 400, "header X-Repo must match [a-z/]+"),
    ("missing", {}, {}, None, None),
    ("required", {"required": True}, {}, 400, "header X-Repo is required"),
    ("required but empty", {"required": True}, {"x-repo": ""}, 400, "header X-Repo is required"),
    ("default", {"default": "d"}, {}, None, "d"),
    ("long", {"max_length": 4}, {"x-repo": "SECRET"}, 400, "header X-Repo must not be longer than 4 characters"),
    ("long by default", {}, {"x-repo": "x" * 257}, 400, "header X-Repo must not be longer than 256 characters"),
    ("twice", {}, {"x-repo": ["a", "b"]}, 400, "header X-Repo must be sent once"),
    ("two spellings", {}, {"x-repo": "a", "x_repo": "b"}, 400, "header X-Repo must be sent once"),
    ("not utf-8", {}, {"x-repo": "SECRET\udcff"}, 400, "header X-Repo must be UTF-8"),
    ("utf-8", {}, {"x-repo": "é"}, None, "é"),
]


@pytest.mark.parametrize(("rule", "headers", "status", "want"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
@pytest.mark.parametrize("apply", ["body", "attested"])
def test_rules(send: Send, apply: str, rule: Any, headers: Any, status: int | None, want: Any) -> None:
    config = {
        "apply": apply,
        "attestation": FIXED,
        "context": {"repo": {"source": "header:X-Repo", **rule}, "k": {"source": "const:v"}},
    }
    event, request = send(config, post('{"context":{"repo":"spoofed"}}', headers))
    if status is not None:
        message = refused(event, status)
        assert message == want
        assert "SECRET" not in message
        return
    assert event.exit is None
    got = sent(request)["context"] if apply == "body" else claims(request)["add"]["context"]
    assert got.get("repo") == want
    assert got["k"] == "v"


IDENTITY = {
    "sub": "ada",
    "tier": "pro",
    "who": {"con": "ada-c", "claims": {"department": "r&d", "n": 3, "ok": True, "l": [1]}},
}
SOURCES = [
    ("query:ref", "a b"),
    ("query:none", None),
    ("path:repo", "app"),
    ("path:none", None),
    ("claim:department", "r&d"),
    ("claim:n", "3"),
    ("claim:ok", "true"),
    ("claim:l", None),
    ("claim:sub", "ada"),
    ("claim:tier", "pro"),
    ("claim:none", None),
    ("consumer:username", "ada-c"),
    ("consumer:custom_id", "c-1"),
    ("request:id", "r-1"),
    ("const:x:y", "x:y"),
]


@pytest.mark.parametrize(("source", "want"), SOURCES, ids=[row[0] for row in SOURCES])
def test_sources(send: Send, source: str, want: str | None) -> None:
    request = post(
        "{}",
        shared={"claude_identity": IDENTITY},
        answers={
            "kong.nginx.get_var": lambda name: "POST /x?ref=a%20b&other=1 HTTP/1.1" if name == "request" else None,
            "kong.request.get_uri_captures": {"named": {"repo": "app"}, "unnamed": []},
            "kong.client.get_consumer": {"username": "other", "custom_id": "c-1"},
        },
    )
    event, _ = send({"context": {"v": {"source": source}, "k": {"source": "const:k"}}}, request)
    assert event.exit is None
    assert sent(request)["context"] == {"k": "k"} | ({} if want is None else {"v": want})


def test_a_fixed_request_line_still_has_its_query(send: Send) -> None:
    config = {"context": {"v": {"source": "query:ref", "required": True}}, "attestation": FIXED, "apply": "attested"}
    event, request = send(config, post("{}", answers={"kong.request.get_raw_query": "ref=main"}))
    assert event.exit is None
    assert claims(request)["add"]["context"] == {"v": "main"}
    assert "twice" not in refused(send(config, post("{}"))[0], 400)
    twice = post("{}", answers={"kong.request.get_raw_query": "ref=a&ref=b"})
    assert "once" in refused(send(config, twice)[0], 400)


def test_a_missing_claim_is_forbidden_not_bad(send: Send) -> None:
    config = {"context": {"v": {"source": "claim:department", "required": True}}}
    assert refused(send(config, post("{}"))[0], 403) == "claim department is required"


@pytest.mark.parametrize("shape", ["invoke", "messages"])
def test_locked_fields(send: Send, shape: str) -> None:
    body = '{"prompt":"hi","model":"opus","tools":["Bash"],"system":"evil","n":1}'
    config = {"shape": shape, "prepend": "Ours.", "locked": ["system", "model", "tools"]}
    message = refused(send(config, post(body))[0], 400)
    assert message == "system is set by the gateway and must not be sent"
    event, request = send({**config, "on_locked": "replace"}, post(body))
    assert event.exit is None
    assert sent(request) == {"prompt": "hi", "n": 1, "system": "Ours."}


def test_locked_system_of_a_chat(send: Send) -> None:
    config = {"shape": "chat", "prepend": "Ours.", "locked": ["system"]}
    body = {"messages": [{"role": "user", "content": "hi"}, {"role": "developer", "content": "evil"}]}
    refused(send(config, post(json.dumps(body)))[0], 400)
    _, request = send({**config, "on_locked": "replace"}, post(json.dumps(body)))
    assert sent(request)["messages"] == [{"role": "system", "content": "Ours."}, {"role": "user", "content": "hi"}]


def test_locks_in_attested_mode(send: Send) -> None:
    config = {**GUIDE, "locked": ["model"], "apply": "attested", "attestation": FIXED}
    event, request = send(config, post('{"model":"opus"}'))
    assert "model" in refused(event, 400)
    event, request = send({**config, "on_locked": "replace"}, post('{"model":"opus"}'))
    assert claims(request)["add"]["drop"] == ["model"]


def big(size: int) -> str:
    return json.dumps({"prompt": "x" * (size - 14)})


def test_large_bodies_never_go_back_through_kong(send: Send) -> None:
    at_limit, above = big(65536), big(65537)
    assert len(at_limit) == 65536
    signed = {**GUIDE, "attestation": FIXED}
    _, request = send(signed, post(at_limit, REPO))
    assert sent(request)["context"]["repository"] == "org/app"
    event, request = send(signed, post(above, REPO))
    assert event.exit is None and request.upstream_body is None
    assert "kong.request.get_raw_body" not in event.methods
    assert claims(request)["add"]["prepend"] == GUIDE["prepend"]
    for config in (GUIDE, {**signed, "apply": "body"}):
        assert "65536 bytes" in refused(send(config, post(above, REPO))[0], 413)


def test_guards_read_large_bodies(send: Send) -> None:
    config = {**GUIDE, "attestation": FIXED, "deny_patterns": ["forbidden"]}
    event, request = send(config, post(big(1 << 20), REPO))
    assert event.exit is None and request.upstream_body is None
    assert {"add", "bsh"} <= claims(request).keys()
    bad = json.dumps({"prompt": "x" * (1 << 20) + "forbidden"})
    refused(send(config, post(bad, REPO))[0], 400)


def test_body_limit(send: Send) -> None:
    config = {**GUIDE, "attestation": FIXED, "max_body_bytes": 1000}
    assert "1000 bytes" in refused(send(config, post(big(1001)))[0], 413)
    assert send(config, post(big(1000)))[0].exit is None
    chunked = {"content-length": None, "transfer-encoding": "chunked"}
    assert "1000 bytes" in refused(send(config, post(big(1001), chunked))[0], 413)
    spilled = post(b"", chunked, answers={"kong.request.get_raw_body": lambda limit: None})
    assert "1000 bytes" in refused(send(config, spilled)[0], 413)


def test_a_body_in_chunks_does_not_pass_the_limit_where_bodies_are_not_read(send: Send) -> None:
    """Nobody has said how long it is; 9 MB reached the invoker."""
    config = {**GUIDE, "apply": "attested", "attestation": FIXED, "max_body_bytes": 1000}
    chunked = {"content-length": None, "transfer-encoding": "chunked"}
    assert "1000 bytes" in refused(send(config, post(big(1001), chunked))[0], 413)
    event, request = send(config, post(big(1000), chunked))
    assert event.exit is None and request.upstream_body is None
    assert "bsh" in claims(request)
    declared, _ = send(config, post(big(1000)))
    assert "kong.request.get_raw_body" not in declared.methods


FORM = {**GUIDE, "apply": "attested", "attestation": FIXED, "form": True, "max_body_bytes": 128 << 20}
FORM_DATA = {"content-type": "multipart/form-data; boundary=b"}


def form(length: int | None = 100 << 20, **headers: str | None) -> Request:
    """Whose body is not looked at: it has none that could be."""
    given = {**FORM_DATA, "content-length": None if length is None else str(length)}
    return post(b"", REPO | given | {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_form_passes_unread_and_what_is_added_to_it_is_attested(send: Send) -> None:
    event, request = send({**FORM, "locked": ["tools"], "on_locked": "replace"}, form())
    assert event.exit is None and "kong.request.get_raw_body" not in event.methods
    assert request.upstream_body is None
    found = claims(request)
    assert found["add"]["drop"] == ["tools"] and found["add"]["context"]["repository"] == "org/app"
    assert "bsh" not in found
    assert send(FORM, form(content_encoding=" Identity"))[0].exit is None


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (form(content_type="application/json"), 415),
        (form(content_type="multipart/mixed; boundary=b"), 415),
        (form(content_encoding="gzip"), 415),
        (form((128 << 20) + 1), 413),
        (form(None), 411),  # HTTP/2, too
        (form(None, transfer_encoding="chunked"), 411),
        (form(transfer_encoding="chunked"), 411),
    ],
)
def test_forms_that_do_not_pass(send: Send, request_: Request, status: int) -> None:
    event, _ = send(FORM, request_)
    refused(event, status)
    assert "kong.request.get_raw_body" not in event.methods


def test_a_form_passes_no_other_route(send: Send) -> None:
    for apply in ("attested", "auto", "body"):
        refused(send({**GUIDE, "apply": apply, "attestation": FIXED}, form(100))[0], 415)


GRAPHQL: dict[str, Any] = {**GUIDE, "apply": "attested", "attestation": FIXED, "shape": "graphql"}


def test_a_graphql_request_passes_unread_and_what_is_added_to_it_is_attested(send: Send) -> None:
    event, request = send(GRAPHQL, post('{"query": "{ limits }"}', {**REPO, "content-length": "23"}))
    assert event.exit is None and "kong.request.get_raw_body" not in event.methods and request.upstream_body is None
    assert claims(request)["add"]["context"]["repository"] == "org/app"
    for kind in ("text/plain", "application/graphql", "multipart/form-data; boundary=x"):
        refused(send(GRAPHQL, post("{}", {"content-type": kind, "content-length": "2"}))[0], 415)


@pytest.mark.parametrize(
    "more",
    [{"apply": "auto"}, {"max_prompt_bytes": 3}, {"deny_patterns": ["x"]}, {"locked": ["model"]}, {"explain": True}],
)
def test_what_needs_the_body_of_a_graphql_request_does_not_start(more: dict[str, Any]) -> None:
    stage_of(PromptContext, GRAPHQL)
    with pytest.raises(ConfigError, match="shape"):
        stage_of(PromptContext, GRAPHQL | more)


def test_the_limit_is_passed_to_kong(send: Send) -> None:
    event, _ = send({**GUIDE, "max_body_bytes": 1000}, post(HI))
    assert ("kong.request.get_raw_body", [1000]) in event.calls


def test_prompt_size(send: Send) -> None:
    assert refused(send({"max_prompt_bytes": 3}, post('{"prompt":"éé"}'))[0], 413)
    event, _ = send({"max_prompt_bytes": 4}, post('{"prompt":"éé"}'))
    assert event.exit is None
    assert event.methods == ["kong.request.get_headers", "kong.request.get_raw_body", "kong.ctx.shared.set"]


PROFILES = {
    "prepend": "Base. ",
    "append": " End.",
    "profiles": {"review": {"prepend": "Review. "}, "tests": {"prepend": "Tests. ", "append": " Run them."}},
}


@pytest.mark.parametrize(
    ("more", "headers", "identity", "want"),
    [
        ({}, {}, None, "Base. S End."),
        ({"profile": "review"}, {}, None, "Base. Review. S End."),
        ({"profile": "review"}, {"x-profile": "tests"}, None, "Base. Review. S End."),
        (
            {"profile": "review", "profile_header": "X-Profile"},
            {"x-profile": "tests"},
            None,
            "Base. Tests. S Run them. End.",
        ),
        ({"profile_header": "X-Profile"}, {"x-profile": "nobody"}, None, 400),
        ({"profile_header": "X-Profile"}, {"x-profile": ["tests", "review"]}, None, 400),
        (
            {"profile_claim": "job", "profile_header": "X-Profile"},
            {"x-profile": "tests"},
            "review",
            "Base. Review. S End.",
        ),
        ({"profile_claim": "job"}, {}, "nobody", 403),
        ({"profile_claim": "job", "profile": "tests"}, {}, None, "Base. Tests. S Run them. End."),
    ],
)
def test_profiles(send: Send, more: Any, headers: Any, identity: str | None, want: str | int) -> None:
    shared = {"claude_identity": {"sub": "ada", "who": {"claims": {"job": identity}}}} if identity else {}
    event, request = send({**PROFILES, **more}, post('{"system":"S"}', headers, shared=shared))
    if isinstance(want, int):
        assert "nobody" not in refused(event, want)
    else:
        assert sent(request)["system"] == want


def test_the_prepended_text_is_the_same_for_everybody(send: Send) -> None:
    config = {**PROFILES, "profile": "review", "context": {"repo": {"source": "header:X-Repo", "render": True}}}
    seen = [send(config, post('{"system":"S"}', {"x-repo": repo}))[1] for repo in ("a", "b", "c/d")]
    assert {sent(r)["system"].partition("S")[0] for r in seen} == {"Base. Review. "}
    assert len({r.upstream_headers["x-claude-context"] for r in seen}) == 1
    other = send({**config, "profile": "tests"}, post('{"system":"S"}'))[1]
    assert other.upstream_headers["x-claude-context"] != seen[0].upstream_headers["x-claude-context"]


def test_injection_corpus_through_the_server(kong: Driver) -> None:
    config = {"context": {"repo": {"source": "header:X-Repo", "render": True, "max_length": 4096}}, "mark": "m"}
    instance = kong.start_instance("claude-prompt-context", config)
    for value in CORPUS:
        request = post('{"system":"S"}', {"x-repo": value})
        event = kong.handle(instance, "access", request)
        if len(value) > 4096:
            assert event.exit is not None and event.exit.status == 400
            continue
        lines = sent(request)["system"].split("\n")
        assert [lines[0], lines[1], lines[-1]] == ["S", "", "</gateway-context>"]
        assert len(lines) == 5
        assert sent(request)["context"]["repo"] == value


@pytest.mark.parametrize("shape", ["invoke", "messages", "chat"])
@pytest.mark.parametrize("levels", [64, 65, 199, 250, 1000, 100_000])
def test_a_body_that_is_nested_too_deeply_is_refused_and_nothing_else_happens(
    send: Send, shape: str, levels: int
) -> None:
    inner = "[" * (levels - 1) + "]" * (levels - 1)
    body = f'{{"messages":[{{"role":"user","content":"hi"}}],"tools":{inner}}}'
    event, request = send({"prepend": "Ours. ", "shape": shape}, post(body))
    if levels <= 64:
        assert event.exit is None
        assert sent(request)["tools"] == json.loads(inner)
    else:
        assert refused(event, 400) == "the body is nested more than 64 levels deep"


EXPLAIN = {**GUIDE, "explain": True, "attestation": FIXED}
MAY = {"sub": "ada", "who": {"perms": ["claude:explain"]}}


def test_explain(send: Send) -> None:
    asked = {**REPO, "x-claude-explain": "1"}
    config = {**EXPLAIN, "attestation": None}
    event, request = send(config, post(HI, asked, shared={"claude_identity": MAY}))
    assert event.exit is not None and event.exit.status == 200
    assert json.loads(event.exit.body["body"])["system"] == "You are a code review assistant. Be brief."
    assert event.exit.body["context"] == {"repository": "org/app", "branch": "main"}
    assert not request.upstream_headers and request.upstream_body is None and "claude_context" not in request.shared
    refused(send(config, post(HI, asked))[0], 403)
    assert send({**config, "explain": False}, post(HI, asked))[0].exit is None


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"apply": "attested"}, "apply"),
        ({"profile": "nobody"}, "profile"),
        ({"deny_patterns": ["a", "(a)\\1"]}, r"deny_patterns\[2\]"),
        ({"allow_patterns": ["("]}, r"allow_patterns\[1\]"),
        ({"context": {"a": {"source": "header:X", "pattern": "("}}}, "context.a.pattern"),
        ({"context": {"a": {"source": "cookie:x"}}}, "context.a.source"),
        ({"context": {"a": {"source": "header:"}}}, "context.a.source"),
        ({"context": {"a": {"source": "request:ip"}}}, "context.a.source"),
        ({"prepend": "{{nobody}}"}, "prepend"),
        ({"profiles": {"p": {"append": "{{nobody}}"}}}, "profiles.p.append"),
        ({"prepend": "x" * 9000, "apply": "attested", "attestation": FIXED}, "prepend"),
        ({"max_body_bytes": (64 << 20) + 1}, "max_body_bytes"),
        ({"form": True, "attestation": FIXED}, "form"),
        ({**FORM, "shape": "messages"}, "form"),
        ({**FORM, "locked": ["tools"]}, "on_locked"),
        ({**FORM, "deny_patterns": ["x"]}, "no guard"),
        ({**FORM, "allow_patterns": ["x"]}, "no guard"),
        ({**FORM, "max_prompt_bytes": 1}, "no guard"),
        ({**FORM, "explain": True}, "explain"),
    ],
)
def test_bad_configurations_do_not_start(kong: Driver, config: dict[str, Any], names: str) -> None:
    with pytest.raises(RPCError, match=names):
        kong.start_instance("claude-prompt-context", config)
