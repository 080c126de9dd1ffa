"""The pipeline: order, effects in few calls, the mark last, and a refusal whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.attestation import HEADER, signer_from_config
from claude_contract.claims import MAX_HEADER, METHOD_ROOM, Additions, Limits, body_hash
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.in_flight import ANSWERED
from kong_claude.metrics.entry import entry
from kong_claude.pipeline import Pipeline, plugin, sectioned
from kong_claude.request import MAX_HEADERS, Request
from kong_claude.schema import read
from kong_claude.stage import Shared, Stage
from tests.support.attest import claims_in, signed

ATTESTATION = {"secret": "a" * 32, "request": "POST /claude/invoke"}
ID = {"x-request-id": "r-1"}


class Ended(BaseException):
    """`kong.response.exit` is never answered: nothing of the plugin runs after it."""


class Kong:
    """Records PDK calls, answers from a table: what an event of the plugin server does."""

    def __init__(self, headers: Mapping[str, Any] | None = None, **answers: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers = {"request.get_headers": dict(headers or ID), **answers}

    def __getattr__(self, name: str) -> Any:
        return Path(self, name)

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]

    def args(self, method: str) -> tuple[Any, ...]:
        (found,) = [args for called, args in self.calls if called == method]
        return found


class Path:
    def __init__(self, kong: Kong, name: str) -> None:
        self.kong, self.name = kong, name

    def __getattr__(self, name: str) -> Path:
        return Path(self.kong, f"{self.name}.{name}")

    def __call__(self, *args: Any) -> Any:
        self.kong.calls.append((self.name, args))
        if self.name == "response.exit":
            raise Ended
        value = self.kong.answers.get(self.name)
        if isinstance(value, Exception):
            raise value
        return value(*args) if callable(value) else value


@dataclass(frozen=True, slots=True)
class Empty:
    """A configuration without fields."""


class Fixed(Stage[None]):
    """A stage with one decision (or one exception)."""

    def __init__(
        self,
        decide: Callable[[Request], Decision] | Decision | Exception,
        check: str = "one",
        shared_key: str = "claude_one",
    ) -> None:
        self.decide, self.check, self.shared_key = decide, check, shared_key
        self.undone: list[Pass] = []
        self.closed = False

    def access(self, request: Request) -> Decision:
        decision = self.decide(request) if callable(self.decide) else self.decide
        if isinstance(decision, Exception):
            raise decision
        return decision

    def undo(self, passed: Pass) -> None:
        self.undone.append(passed)

    def close(self) -> None:
        self.closed = True


def run(stages: list[Fixed], kong: Kong, **config: Any) -> Kong:
    key = stages[0].shared_key if len(stages) == 1 else "claude_gateway"
    try:
        Pipeline(stages, key, read(Shared, {"mark": "m", "service_id": "service", **config})).access(kong)
    except Ended:
        pass
    return kong


def attested(kong: Kong) -> dict[str, Any]:
    signer = signer_from_config(ATTESTATION)
    assert signer
    return claims_in(kong.args("service.request.set_headers")[0][HEADER], signer)


def test_the_mark_is_the_last_act_and_effects_are_one_call_each() -> None:
    first = Pass(upstream_headers={"X-A": "1", "X-Gone": None}, response_headers={"R-A": "1"}, shared={"a": 1})
    second = Pass(upstream_headers={"X-B": "2"}, response_headers={"R-B": "2"}, body=b"new", shared={"b": 2})
    kong = run([Fixed(first, "one", "k1"), Fixed(second, "two", "k2")], Kong(), attestation=ATTESTATION)
    assert kong.methods == [
        "request.get_headers",
        "service.request.set_headers",
        "service.request.set_raw_body",
        "response.set_headers",
        "ctx.shared.set",
    ]
    headers = kong.args("service.request.set_headers")[0]
    assert {name: headers[name] for name in ("X-A", "X-B", "X-Gone")} == {"X-A": "1", "X-B": "2", "X-Gone": {}}
    assert kong.args("response.set_headers")[0] == {"R-A": "1", "R-B": "2"}
    assert kong.args("ctx.shared.set") == ("claude_gateway", {"k1": {"a": 1}, "k2": {"b": 2}, "mark": "m"})
    assert attested(kong)["chk"] == ["one", "two"]


def test_the_default_mark_is_the_route() -> None:
    kong = run([Fixed(Pass())], Kong(), mark=None, route_id="route-7")
    assert kong.args("ctx.shared.set") == ("claude_one", {"mark": "route-7"})


def test_the_mark_of_a_plugin_on_a_service_is_the_service_and_on_both_the_route() -> None:
    on_service = {"mark": None, "service_id": "service-3"}
    assert run([Fixed(Pass())], Kong(), **on_service).args("ctx.shared.set") == ("claude_one", {"mark": "service-3"})
    on_both = on_service | {"route_id": "route-7"}
    assert run([Fixed(Pass())], Kong(), **on_both).args("ctx.shared.set") == ("claude_one", {"mark": "route-7"})


@pytest.mark.parametrize("mark", [None, "m"])
def test_a_plugin_that_is_bound_to_nothing_does_not_start(mark: str | None) -> None:
    """Its mark would be the same everywhere, and any route's guard could be satisfied by it."""
    with pytest.raises(ConfigError, match="bind it to a route or a service"):
        run([Fixed(Pass())], Kong(), mark=mark, service_id=None)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 503])
def test_a_refusal_ends_it(status: int) -> None:
    never = Fixed(AssertionError("must not run"))
    first = Fixed(Pass(shared={"lease": 1}))
    kong = run([first, Fixed(Refuse(status, "no", "why", {"H": "1"})), never], Kong())
    assert kong.methods == ["request.get_headers", "response.exit"]
    headers = {"H": "1", "X-Claude-Refusal": "one/why"}
    assert kong.args("response.exit") == (status, {"message": "no", "request_id": "r-1"}, headers)
    assert first.undone == [first.decide]


def test_an_answer_ends_it_too_with_its_empty_lists_and_what_is_none() -> None:
    kong = run([Fixed(Answer(200, {"limits": [], "of": None}, {"H": "1"}))], Kong())
    assert kong.methods[-1] == "response.exit"
    headers = {"Content-Type": "application/json; charset=utf-8", "H": "1"}
    assert kong.args("response.exit") == (200, '{"limits":[],"of":null}', headers)


ERRORS = [ValueError("x"), RuntimeError(), KeyError("k"), RecursionError(), MemoryError(), TimeoutError(), OSError(5)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("position", [0, 1])
def test_an_exception_in_a_stage_is_a_refusal(error: Exception, position: int) -> None:
    stages = [Fixed(Pass(shared={"lease": 1})), Fixed(Pass())]
    stages[position].decide = error
    kong = run(stages, Kong())
    status, body, headers = kong.args("response.exit")
    assert (status, body) == (503, {"message": "service temporarily unavailable"})
    assert headers == {"Retry-After": "1", "X-Claude-Refusal": "pipeline/internal_error"}
    assert "log.err" in kong.methods
    assert "ctx.shared.set" not in kong.methods
    assert bool(stages[0].undone) is (position == 1)


CALLS = [
    "request.get_headers",
    "nginx.get_var",
    "service.request.set_headers",
    "response.set_headers",
    "ctx.shared.set",
]


@pytest.mark.parametrize("method", CALLS)
def test_an_exception_in_a_call_is_a_refusal(method: str) -> None:
    passed = Pass(upstream_headers={"X-A": "1"}, response_headers={"R": "1"}, shared={"a": 1})
    kong = Kong({}, **{method: RuntimeError("gone")})
    run([Fixed(passed)], kong, attestation={"secret": "a" * 32})
    assert kong.args("response.exit")[0] == 503
    assert "ctx.shared.set" not in kong.methods[:-2] or method == "ctx.shared.set"


MANY = {f"x-{n}": "1" for n in range(MAX_HEADERS)}
NAMED = {
    "of the first stage": (
        [Fixed(Refuse(401, "no", "no_token"), "one"), Fixed(Pass(), "two")],
        {},
        401,
        "one/no_token",
    ),
    "of a later stage": (
        [Fixed(Pass(), "one"), Fixed(Refuse(429, "no", "rate_limited"), "two")],
        {},
        429,
        "two/rate_limited",
    ),
    "before any stage": ([Fixed(AssertionError("must not run"))], {"headers": MANY}, 431, "request/too_many_headers"),
    "a method that cannot be attested": (
        [Fixed(AssertionError("must not run"))],
        {"request": f"{'X' * (METHOD_ROOM + 1)} /claude/invoke"},
        501,
        "request/unknown_method",
    ),
    "behind all stages": (
        [Fixed(Pass(), "one"), Fixed(Pass(claims=Additions("x" * 9000)), "two")],
        {},
        431,
        "attestation/attestation_too_large",
    ),
    "a failure": ([Fixed(ValueError("x"))], {}, 503, "pipeline/internal_error"),
}


@pytest.mark.parametrize(("stages", "sent", "expected", "name"), NAMED.values(), ids=NAMED)
def test_a_refusal_carries_the_name_of_the_check_that_made_it(
    stages: list[Fixed], sent: dict[str, Any], expected: int, name: str
) -> None:
    attestation = ATTESTATION | ({"request": sent["request"]} if "request" in sent else {})
    kong = run(stages, Kong(sent.get("headers")), attestation=attestation)
    status, _, headers = kong.args("response.exit")
    assert (status, headers["X-Claude-Refusal"]) == (expected, name)
    answered = {"status": status, "headers": {"x-claude-refusal": name}}
    found = entry({"source": "exit", "response": answered}, None)
    assert (found.refusal, found.line["refusal"]) == (tuple(name.split("/")), name)  # as metrics and log have it
    assert "ctx.shared.set" not in kong.methods


def test_an_unchecked_pass_is_not_attested_as_checked() -> None:
    kong = run([Fixed(Pass(checked=False), "one"), Fixed(Pass(), "two")], Kong(), attestation=ATTESTATION)
    assert attested(kong)["chk"] == ["two"]


def attest(**claims: Any) -> str:
    signer = signer_from_config(ATTESTATION)
    assert signer
    return signed(
        signer, "POST", "/claude/invoke", **{"route": "", "request_id": "r-1", "chk": ["jwt-claims"], **claims}
    )


def test_a_later_plugin_continues_an_attestation() -> None:
    kong = run(
        [Fixed(Pass(claims=Limits("pro")))],
        Kong({**ID, HEADER.lower(): attest(sub="alice")}),
        attestation=ATTESTATION,
    )
    found = attested(kong)
    assert (found["sub"], found["tier"], found["chk"]) == ("alice", "pro", ["jwt-claims", "one"])


def test_an_attestation_of_another_version_is_not_continued_and_the_log_says_what_to_upgrade() -> None:
    kong = run([Fixed(Pass())], Kong({**ID, HEADER.lower(): attest(sub="alice", v=9)}), attestation=ATTESTATION)
    assert "sub" not in attested(kong)
    (text,) = kong.args("log.warn")
    assert "of version 9" in text and "upgrade" in text


def test_what_does_not_fit_into_an_attestation_is_refused_and_given_back() -> None:
    stages = [Fixed(Pass(shared={"lease": 1})), Fixed(Pass(claims=Additions("x" * 9000)), "two", "claude_two")]
    kong = run(stages, Kong(), attestation=ATTESTATION)
    status, body, headers = kong.args("response.exit")
    assert (status, headers["X-Claude-Refusal"]) == (431, "attestation/attestation_too_large")
    assert f"at most {MAX_HEADER}" in body["message"]
    assert "ctx.shared.set" not in kong.methods
    assert [len(stage.undone) for stage in stages] == [1, 1]
    assert "ctx.shared.set" in run(stages, Kong()).methods  # the control: where nothing is attested, it passes


def test_who_establishes_the_identity_starts_afresh() -> None:
    stage = Fixed(Pass(claims=Identity("bob")))
    stage.establishes_identity = True
    kong = run([stage], Kong({**ID, HEADER.lower(): attest(sub="alice", tier="enterprise")}), attestation=ATTESTATION)
    found = attested(kong)
    assert (found["sub"], found["chk"]) == ("bob", ["one"])
    assert "tier" not in found


def test_a_stage_sees_what_the_ones_before_have_made_of_the_request() -> None:
    """As the plugins apart see it of each other: a token that was taken off is not read again, nor sent on."""
    seen: list[Any] = []

    def looking(request: Request) -> Decision:
        seen.append((request.header("x-token"), request.header("x-who"), request.raw_query, request.body(100)))
        return Pass()

    first = Pass(
        upstream_headers={"X-Token": None, "X-Who": "ada"},
        body=b"new",
        raw_query="a=b",
        consumer=({"id": "c"}, None),
    )
    kong = run([Fixed(first, "one", "k1"), Fixed(looking, "two", "k2")], Kong({**ID, "x-token": "secret"}))
    assert seen == [(None, "ada", "a=b", b"new")]
    assert kong.args("service.request.set_raw_query") == ("a=b",)
    assert kong.args("service.request.set_raw_body") == (b"new",)
    assert kong.methods[-1] == "ctx.shared.set"


@pytest.mark.parametrize("position", [0, 1])
def test_one_stage_that_establishes_the_identity_is_enough_to_start_afresh(position: int) -> None:
    """The control: without one, what an earlier plugin attested goes on."""
    stages = [Fixed(Pass(), "one", "k1"), Fixed(Pass(), "two", "k2")]
    sent = {**ID, HEADER.lower(): attest(sub="alice", tier="enterprise", chk=["jwt-claims"])}
    continued = attested(run(stages, Kong(sent), attestation=ATTESTATION))
    assert (continued["sub"], continued["chk"]) == ("alice", ["jwt-claims", "one", "two"])
    stages[position].establishes_identity = True
    found = attested(run(stages, Kong(sent), attestation=ATTESTATION))
    assert not {"sub", "tier"} & found.keys()
    assert found["chk"] == ["one", "two"]


def test_a_check_that_was_made_before_is_attested_once() -> None:
    kong = run(
        [Fixed(Pass())], Kong({**ID, HEADER.lower(): attest(sub="alice", chk=["one", "zero"])}), attestation=ATTESTATION
    )
    assert attested(kong)["chk"] == ["one", "zero"]


def test_a_stage_that_leaves_nothing_is_not_in_the_shared_context() -> None:
    kong = run([Fixed(Pass(shared={"a": 1}), "one", "k1"), Fixed(Pass(), "two", "k2")], Kong())
    assert kong.args("ctx.shared.set") == ("claude_gateway", {"k1": {"a": 1}, "mark": "m"})


def made(value: Any) -> Any:
    """Claims are signed when the test runs: made with the table, they could have expired."""
    if isinstance(value, list):
        return [made(one) for one in value]
    return attest(**value) if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "sent",
    [
        {HEADER.lower(): "forged"},
        {HEADER.lower(): [{"sub": "a"}, {"sub": "b"}]},
        {HEADER.lower(): {"sub": "a", "rid": "another"}},
        {"x_claude_attestation": "forged"},
        {"x-claude_attestation": "forged", HEADER.lower(): "forged"},
    ],
)
@pytest.mark.parametrize("attestation", [ATTESTATION, None])
def test_a_forged_attestation_never_reaches_the_upstream(sent: dict[str, Any], attestation: Any) -> None:
    signed = {name: made(value) for name, value in sent.items()}
    kong = run([Fixed(Pass())], Kong({**ID, **signed}), attestation=attestation)
    written = kong.args("service.request.set_headers")[0]
    for name in sent:
        value = written[HEADER] if name == HEADER.lower() else written[name]
        assert value == {} or (name == HEADER.lower() and attested(kong).get("sub") is None)


def test_a_removed_header_never_takes_the_one_in_its_place_with_it() -> None:
    """Kong sets headers in no order and without case: `x-who` removed after `X-Who` was set left nothing."""
    removed = Pass(upstream_headers={"x-who": None, "x_who": None, "X-Who": "ada", "x-other": None})
    written = run([Fixed(removed)], Kong(ID)).args("service.request.set_headers")[0]
    assert written == {"x_who": {}, "X-Who": "ada", "x-other": {}}


def test_the_body_that_goes_upstream_is_bound() -> None:
    def reading(request: Request) -> Decision:
        assert request.body(100) == b"hi"
        return Pass()

    kong = run(
        [Fixed(reading)],
        Kong(ID, **{"request.get_raw_body": b"hi"}),
        attestation=ATTESTATION,
    )
    assert attested(kong)["bsh"] == body_hash(b"hi")
    kong = run([Fixed(Pass(body=b"new"))], Kong(), attestation=ATTESTATION)
    assert attested(kong)["bsh"] == body_hash(b"new")
    assert "bsh" not in attested(run([Fixed(Pass())], Kong(), attestation=ATTESTATION))


def test_each_thing_is_asked_once() -> None:
    def curious(request: Request) -> Decision:
        for _ in range(3):
            assert request.header("x-request-id") == "r-1"
            assert request.client_ip == "10.0.0.1"
            assert request.line.method == "GET"
            assert request.body(10) == b""
            assert request.identity is None
        return Pass()

    answers = {"client.get_forwarded_ip": "10.0.0.1", "nginx.get_var": "GET /p?q HTTP/1.1", "request.get_raw_body": ""}
    kong = run([Fixed(curious)], Kong(ID, **answers))
    assert len(kong.methods) == len(set(kong.methods))


@pytest.mark.parametrize(
    ("accept", "content"), [(None, None), ("*/*", None), ("application/problem+json", "application/problem+json")]
)
def test_a_refusal_is_in_the_form_that_was_asked_for(accept: str | None, content: str | None) -> None:
    kong = run([Fixed(Refuse(403, "no", "why"))], Kong(ID | ({"accept": accept} if accept else {})))
    _, body, headers = kong.args("response.exit")
    assert headers.get("Content-Type") == content
    assert body.get("message", body.get("detail")) == "no"


@pytest.mark.parametrize(
    ("consumer", "told"),
    [
        (({"id": "c"}, {"id": "k"}), ({"id": "c"}, {"id": "k"})),
        (({"id": "c"}, None), ({"id": "c"},)),  # Kong drops what comes behind a nil
    ],
)
def test_kong_is_told_the_consumer_without_what_is_none(consumer: Any, told: tuple[Any, ...]) -> None:
    assert run([Fixed(Pass(consumer=consumer))], Kong()).args("client.authenticate") == told


@pytest.mark.parametrize(
    ("claims", "told"),
    [(Identity("ada"), ("ada", "")), (Limits("pro"), ("", "pro")), (Identity("ada", tier="pro"), ("ada", "pro"))],
)
def test_the_log_learns_what_is_known_of_a_caller_who_is_refused(claims: Any, told: tuple[str, str]) -> None:
    kong = run([Fixed(Pass(claims=claims), "one"), Fixed(Refuse(403, "no", "why"), "two")], Kong())
    name, said = kong.args("log.set_serialize_value")
    assert (name, said["subject"], said["tier"]) == (ANSWERED, *told)


ENDS = [Answer(200, {}), Refuse(403, "no", "why"), ValueError("x")]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("known", [True, False])
def test_the_log_learns_who_called_however_the_request_ends_here(end: Any, known: bool) -> None:
    """Else nobody's, in the report and in the metrics, is what somebody was answered."""
    claims = (Identity("ada", tier="pro"),) if known else ()
    kong = run([Fixed(Pass(claims=claim), "one") for claim in claims] + [Fixed(end, "two")], Kong())
    told = [args for method, args in kong.calls if method == "log.set_serialize_value"]
    assert [(name, said["subject"], said["tier"]) for name, said in told] == (
        [(ANSWERED, "ada", "pro")] if known else []
    )
    assert kong.methods[-1] == "response.exit"


@pytest.mark.parametrize(("length", "passes"), [(METHOD_ROOM, True), (METHOD_ROOM + 1, False)])
def test_the_longest_method_that_can_be_attested(length: int, passes: bool) -> None:
    kong = run([Fixed(Pass())], Kong(), attestation=ATTESTATION | {"request": f"{'M' * length} /claude/invoke"})
    assert ("ctx.shared.set" in kong.methods) is passes


@pytest.mark.parametrize("value", ["POST", "POST claude", "POST  /x", " /x", "/x"])
def test_a_fixed_request_that_is_none(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^attestation\.request: must be a method and a path"):
        run([Fixed(Pass())], Kong(), attestation={"secret": "a" * 32, "request": value})


def test_the_plugin_class_closes_its_stages_and_logs_only_where_it_must() -> None:
    closed, logged = [], []

    class Quiet(Fixed):
        Config, shared_key = Empty, "claude_quiet"

        def __init__(self, config: Empty, shared: Shared) -> None:
            super().__init__(Pass(), shared_key=self.shared_key)

        def close(self) -> None:
            closed.append(self)

    class Logging(Quiet):
        def log(self, kong: Any, left: Callable[[], Mapping[str, Any]]) -> None:
            logged.append(left())

    class Settled(Logging):
        settles = False  # as limits without leases are

    quiet, logging, settled = plugin(Quiet), plugin(Logging), plugin(Settled)
    assert not hasattr(quiet, "log")
    quiet({"route_id": "r"}).close()
    assert len(closed) == 1
    kong = Kong()
    quiet({"route_id": "r"}).access(kong)
    assert kong.args("ctx.shared.set") == ("claude_quiet", {"mark": "r"})
    for kinds in ((Quiet, Logging), (Logging, Quiet)):  # one that has a lease to settle is enough
        assert hasattr(plugin(*kinds, sections=Sections), "log")
    logging({"route_id": "r"}).log(Kong(**{"ctx.shared.get": {"lease": 1}}))
    assert logged == [{"lease": 1}]
    kong = Kong()
    settled({"route_id": "r"}).log(kong)
    assert (logged, kong.methods) == ([{"lease": 1}], [])


@dataclass(frozen=True, slots=True)
class Sections:
    one: Any = None
    two: Any = None
    three: Any = None


class Sectioned(Fixed):
    def __init__(self, config: Any, shared: Shared) -> None:
        if config == "wrong":
            raise ConfigError("field", "is wrong")
        super().__init__(Pass(), shared_key=config)


@pytest.mark.parametrize("there", [c for n in (1, 2, 3) for c in combinations(("one", "two", "three"), n)])
def test_each_section_that_is_there_is_a_stage_whatever_else_is_missing(there: tuple[str, ...]) -> None:
    shared = read(Shared, {"route_id": "r"})
    made = sectioned(Sections(**{name: name for name in there}), [Sectioned] * 3, shared)
    assert tuple(stage.shared_key for stage in made) == there


def test_sections_that_check_nothing_or_are_wrong_do_not_start() -> None:
    shared = read(Shared, {"route_id": "r"})
    with pytest.raises(ConfigError, match=r"^one: no section is configured"):
        sectioned(Sections(), [Sectioned] * 3, shared)
    with pytest.raises(ConfigError, match=r"^two\.field: is wrong"):
        sectioned(Sections(one="one", two="wrong"), [Sectioned] * 3, shared)


NAMES = st.text(alphabet="aBx-_", min_size=1, max_size=6)


@given(st.dictionaries(NAMES, st.binary(max_size=5).map(lambda b: b.decode("utf-8", "surrogateescape")), max_size=8))
def test_any_headers(headers: dict[str, str]) -> None:
    kong = run([Fixed(Pass(upstream_headers={"x-a": None}))], Kong(headers, **{"nginx.get_var": "x"}))
    assert kong.methods[-1] == "ctx.shared.set"


@pytest.mark.parametrize(
    ("sent", "upstream", "calls"),
    [
        ("/a/b-c_d~1.x/", "never asked", 1),
        ("/", "never asked", 1),
        ("/claude/repos/o.rg/.github", "/claude/repos/o.rg/.github", 2),
        ("/a%5fb", "/a_b", 2),
        ("/a//b/./c/../d", "/a/b/d", 2),
        ("/%c3%bc?x=%20", "/%C3%BC", 2),
        ("/\u00fc", "/%C3%BC", 2),
        ("http://kong/a", "/a", 2),
        ("*", "*", 2),
    ],
)
def test_an_attestation_is_bound_to_the_path_that_the_service_gets(sent: str, upstream: str, calls: int) -> None:
    variables: dict[str, Any] = {"request": f"GET {sent} HTTP/1.1", "upstream_uri": upstream}
    kong = Kong(None, **{"nginx.get_var": variables.__getitem__})
    request = Request(kong)
    assert request.upstream_path == (upstream if calls == 2 else sent)
    assert len(kong.calls) == calls
