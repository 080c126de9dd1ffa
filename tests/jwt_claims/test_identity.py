"""What a request that passes carries on: the shared context for other plugins, headers, attestation, consumer. All over the socket."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from claude_contract.attestation import HEADER, signer_from_config
from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.caller import ClaimNames
from kong_claude.jwt_claims.issuers import issuers_from_config
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.schema import JwtClaimsConfig
from kong_claude.jwt_claims.token import InvalidToken
from kong_claude.schema import read
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import ATTESTATION, ISSUER, bearer, config, issuer, token
from tests.support.attest import claims_in
from tests.support.kong_driver import Event
from tests.support.stages import stage_of

ALICE = {"id": "b32379d9-3d28-5683-a79c-72139be6e34f", "username": "alice", "custom_id": "alice-custom", "tags": []}
NAMES = ClaimNames("sub", "tier", "roles", "permissions")
GUEST = {"id": "11111111-2222-4333-8444-555555555555", "username": "guest"}


def load(*known: dict[str, Any]) -> dict[str, Any]:
    """Answers `kong.client.load_consumer` as Kong does: by username or id, only when told to search."""

    def find(name: Any, search: bool = False) -> Any:
        assert search is True, "Kong raises a Lua error for a name that is no UUID"
        return next((c for c in known if name in (c["username"], c["id"])), None)

    return {"kong.client.load_consumer": find}


def upstream(event: Event) -> dict[str, Any]:
    """The arguments of the only set_headers call, names as sent."""
    ((headers,),) = [args for method, args in event.calls if method == "kong.service.request.set_headers"]
    assert isinstance(headers, dict)
    return headers


def attested(event: Event) -> dict[str, Any]:
    signer = signer_from_config(ATTESTATION)
    assert signer
    return claims_in(upstream(event)[HEADER], signer)


def test_three_calls_for_a_pass_and_two_for_a_refusal(send: Send) -> None:
    event, _ = send(config(), bearer(token()))
    assert event.methods == ["kong.request.get_headers", "kong.service.request.set_headers", "kong.ctx.shared.set"]
    event, _ = send(config(), {"x-request-id": "r-1"})
    assert event.methods == ["kong.request.get_headers", "kong.response.exit"]


def test_the_identity_in_shared_context_and_attestation(send: Send) -> None:
    compact = token(scope="read write", email="alice@example.com", org={"id": 7}, roles=["claude:invoke", "dev"])
    event, request = send(config(permissions_claim="scope", forward_claims=["org.id", "absent"]), bearer(compact))
    who = {
        "idp": ISSUER,
        "perms": ["read", "write"],
        "email": "alice@example.com",
        "tid": "t-1",
        "claims": {"org.id": 7},
    }
    identity = {"sub": "alice", "tier": "pro", "roles": ["claude:invoke", "dev"], "who": who}
    assert request.shared == {"claude_identity": {**identity, "mark": "the-route"}}
    found = attested(event)
    assert {name: found[name] for name in identity} == identity
    assert found["chk"] == ["jwt-claims"]
    assert (found["mth"], found["pth"], found["rid"]) == ("POST", "/claude/invoke", "r-1")


def test_other_claim_names(send: Send) -> None:
    settings = config(
        rules=None, subject_claim="user.name", tier_claim="https://example.com/tier", roles_claim="realm_access.roles"
    )
    tier: dict[str, Any] = {"https://example.com/tier": "free"}
    compact = token(user={"name": "bob"}, **tier, realm_access={"roles": ["r"]}, tier="enterprise")
    shared = send(settings, bearer(compact))[1].shared["claude_identity"]
    assert (shared["sub"], shared["tier"], shared["roles"]) == ("bob", "free", ["r"])


def test_issuers_keep_their_subjects_apart(send: Send) -> None:
    two = issuer("RS256", issuer="https://two.example/", subject_prefix="two:")
    settings = config(issuers=[issuer(), two])
    assert send(settings, bearer(token()))[1].shared["claude_identity"]["sub"] == "alice"
    other = token("RS256", iss="https://two.example/")
    assert send(settings, bearer(other))[1].shared["claude_identity"]["sub"] == "two:alice"


@pytest.mark.parametrize(
    ("prefix", "subject", "status"),
    [
        ("", "two:alice", 401),
        ("", "consumer:guest", 401),
        ("", "two", None),
        ("", "alice:two:", None),
        ("t", "wo:alice", 401),
        ("two", ":alice", 401),
        ("two:", "alice", None),
        ("con", "sumer:guest", 401),
    ],
)
def test_no_subject_passes_for_another_issuers_or_a_consumer(
    send: Send, prefix: str, subject: str, status: int | None
) -> None:
    """`two:alice` of an issuer without a prefix would be `alice` of the issuer with the prefix `two:`."""
    one = issuer(**({"subject_prefix": prefix} if prefix else {}))
    two = issuer("RS256", issuer="https://two.example/", subject_prefix="two:")
    event, request = send(config(issuers=[one, two]), bearer(token(sub=subject)))
    if status is None:
        assert request.shared["claude_identity"]["sub"] == prefix + subject
    else:
        assert event.exit is not None
        assert event.exit.status == status
        assert "claude_identity" not in request.shared


def test_control_without_the_others_prefixes_two_callers_were_one() -> None:
    two = issuer("RS256", issuer="https://two.example/", subject_prefix="two:")
    issuers = issuers_from_config(read(JwtClaimsConfig, config(issuers=[issuer(), two])))
    one, names = issuers[ISSUER], NAMES
    victim = names.identity({"sub": "alice"}, issuers["https://two.example/"])
    assert names.identity({"sub": "two:alice"}, replace(one, foreign=())).subject == victim.subject
    with pytest.raises(InvalidToken):
        names.identity({"sub": "two:alice"}, one)


NO_TEXTS: list[Any] = ["", " ", " a", "a ", "a\nb", "a\0", "x" * 256, 7, True, ["a"], {"a": "b"}]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("sub", [None, *NO_TEXTS], ["a", "a b", "x" * 255, "Zoë 100%"]),
        ("tier", [*NO_TEXTS, "a b", "a/b", "x" * 65], [None, "a", "x" * 64, "A.b_c:d-9"]),
        ("jti", NO_TEXTS, [None, "a", "a b", "x" * 255]),
    ],
)
def test_what_others_rely_on_is_a_plain_text(name: str, wrong: list[Any], right: list[Any]) -> None:
    made = issuers_from_config(read(JwtClaimsConfig, config()))[ISSUER]
    for value in wrong:
        with pytest.raises(InvalidToken, match=name) as refused:
            NAMES.identity({"sub": "alice", name: value}, made)
        assert refused.value.reason == "claims"
    for value in right:
        found = NAMES.identity({"sub": "alice", name: value}, made)
        assert {"sub": found.subject, "tier": found.tier, "jti": found.token_id}[name] == value


def test_what_nobody_relies_on_is_left_out_where_it_is_no_plain_text() -> None:
    made = issuers_from_config(read(JwtClaimsConfig, config()))[ISSUER]
    for value in [None, *NO_TEXTS]:
        assert NAMES.identity({"sub": "alice", "email": value}, made).email is None
    claims = {
        "sub": "alice",
        "roles": ["a", *(value for value in NO_TEXTS if isinstance(value, str)), "b"],
        "permissions": ["c", " d"],
        "email": "a@b",
    }
    found = NAMES.identity(claims, made)
    assert (found.roles, found.permissions, found.email) == (("a", "b"), ("c",), "a@b")


def test_the_consumers_prefix_is_reserved() -> None:
    with pytest.raises(ConfigError, match="Kong's consumers"):
        issuers_from_config(read(JwtClaimsConfig, config(issuers=[issuer(subject_prefix="consumer:x")])))


def test_plain_headers(send: Send) -> None:
    headers = upstream(send(config(), bearer(token()))[0])
    assert (headers["X-Claude-Subject"], headers["X-Claude-Tier"]) == ("alice", "pro")
    headers = upstream(send(config(), bearer(token(sub="Zoë 100%", tier=None)))[0])
    assert headers["X-Claude-Subject"] == "Zo%C3%AB 100%25"
    assert headers["X-Claude-Tier"] == {}  # an empty table removes
    headers = upstream(send(config(), bearer(token(sub="Zo%C3%AB 100%25")))[0])
    assert headers["X-Claude-Subject"] == "Zo%25C3%25AB 100%2525"  # not the caller above


@pytest.mark.parametrize(
    "name",
    [
        "x-claude-subject",
        "x_claude_subject",
        "x-claude_subject",
        "x-claude-tier",
        "x_claude_tier",
        "x-consumer-id",
        "x_consumer_id",
        "x-consumer-custom-id",
        "x-consumer-username",
        "x_consumer-username",
        "x-credential-identifier",
        "x-anonymous-consumer",
        "x-claude-attestation",
        "x_claude_attestation",
        "x-claude_attestation",
    ],
)
def test_what_the_client_sends_under_our_names_does_not_pass(send: Send, name: str) -> None:
    event, _ = send(config(), bearer(token(), **{name: "forged"}))
    written = {key.lower(): value for key, value in upstream(event).items()}
    assert written[name] != "forged"
    if "_" in name or name.startswith(("x-consumer", "x-credential", "x-anonymous")):
        assert written[name] == {}


def test_a_subject_never_lingers_from_an_earlier_attestation(send: Send) -> None:
    """A stolen attestation of the same request id gives nothing to another caller."""
    event, _ = send(config(), bearer(token(sub="boss", tier="enterprise", roles=["claude:invoke", "root"])))
    stolen = upstream(event)[HEADER]
    event, _ = send(config(), bearer(token(tier=None), **{HEADER.lower(): stolen}))
    found = attested(event)
    assert found["sub"] == "alice"
    assert "tier" not in found
    assert found["roles"] == ["claude:invoke"]


def test_without_attestation_a_forged_one_is_removed(send: Send) -> None:
    event, _ = send(config(attestation=None), bearer(token(), **{HEADER.lower(): "forged"}))
    assert upstream(event)[HEADER] == {}


PLACES: list[tuple[dict[str, Any], dict[str, Any], int | None]] = [
    ({}, {"cookie": "jwt={good}"}, 401),
    ({"cookie_names": ["jwt"]}, {"cookie": "a=1; jwt={good}; b=2"}, None),
    ({"cookie_names": ["jwt"]}, {"cookie": "xjwt={good}"}, 401),
    ({"cookie_names": ["jwt"]}, {"cookie": "jwt="}, 401),
    ({"cookie_names": ["jwt"]}, {"cookie": "jwt={good}; jwt={other}"}, 401),
    ({"cookie_names": ["jwt"]}, {"cookie": "jwt={good}; jwt={good}"}, None),
    ({"cookie_names": ["jwt"]}, {"cookie": "jwt={good}", "authorization": "Bearer {other}"}, 401),
    ({"cookie_names": ["jwt"]}, {"cookie": "jwt={good}", "authorization": "Bearer {good}"}, None),
    ({"header_names": ["X-Token"]}, {"x-token": "Bearer {good}"}, None),
    ({"header_names": ["X-Token"]}, {"authorization": "Bearer {good}"}, 401),
    ({"header_names": ["X-Token", "authorization"]}, {"x-token": "bearer {good}", "authorization": "Basic x"}, None),
]


@pytest.mark.parametrize(("fields", "headers", "status"), PLACES)
def test_places(send: Send, fields: dict[str, Any], headers: dict[str, str], status: int | None) -> None:
    tokens = {"good": token(), "other": token(sub="bob")}
    sent = {name: value.format(**tokens) for name, value in headers.items()}
    event, _ = send(config(**fields), {"x-request-id": "r-1", **sent})
    assert (event.exit and event.exit.status) == status


def test_a_token_in_the_query_goes_no_further(send: Send) -> None:
    compact = token()
    uri = {
        "kong.nginx.get_var": lambda name: (
            f"/p%20q?a=1&jwt={compact}&j%77t={compact}&b=%20" if name == "request_uri" else None
        )
    }
    event, _ = send(config(uri_param_names=["jwt"]), {"x-request-id": "r-1"}, answers=uri)
    assert event.exit is None
    assert ("kong.service.request.set_raw_query", ["a=1&b=%20"]) in event.calls
    serialized = dict(args for method, args in event.calls if method == "kong.log.set_serialize_value")
    assert serialized == {"request.uri": "/p%20q?a=1&b=%20", "request.url": "/p%20q?a=1&b=%20"}


def test_a_refused_token_in_the_query_is_not_logged_either(send: Send) -> None:
    uri = {"kong.nginx.get_var": "/p?jwt=bad&jwt=worse"}
    event, _ = send(config(uri_param_names=["jwt"]), {"x-request-id": "r-1"}, answers=uri)
    assert event.ended.status == 401
    assert ("kong.service.request.set_raw_query", [""]) in event.calls
    assert "bad" not in str(event.calls[:-1])


def test_the_consumer_that_a_claim_names(send: Send) -> None:
    settings = config(consumer_claim="sub")
    event, request = send(settings, bearer(token(), **{"x-consumer-username": "forged"}), answers=load(ALICE))
    (authenticate,) = [args for method, args in event.calls if method == "kong.client.authenticate"]
    consumer, credential = authenticate
    assert consumer == ALICE
    assert credential["consumer"] == {"id": ALICE["id"]}
    headers = upstream(event)
    assert headers["X-Consumer-ID"] == ALICE["id"]
    assert headers["X-Consumer-Username"] == "alice"
    assert headers["X-Consumer-Custom-ID"] == "alice-custom"
    assert headers["X-Credential-Identifier"] == "alice"
    assert request.shared["claude_identity"]["who"]["con"] == "alice"
    assert request.shared["claude_identity"]["who"]["crd"] == credential["id"]
    assert attested(event)["who"]["con"] == "alice"


@pytest.mark.parametrize(("attestation", "status"), [(ATTESTATION, 403), (None, None)])
@pytest.mark.parametrize("anonymous", [True, False])
def test_a_consumer_whose_name_does_not_fit_into_the_attestation(
    send: Send, attestation: dict[str, Any] | None, status: int | None, anonymous: bool
) -> None:
    long = ALICE | {"username": "a" * 1200}
    who: dict[str, Any] = {"anonymous": ALICE["id"]} if anonymous else {"consumer_claim": "account"}
    headers = {"x-request-id": "r-1"} if anonymous else bearer(token(account=ALICE["id"]))
    event, _ = send(config(attestation=attestation, **who), headers, answers=load(long))
    assert (event.exit.status if event.exit else None) == status
    assert ("kong.client.authenticate" in event.methods) == (status is None)


@pytest.mark.parametrize("claim", ["absent", "roles", "x"])
def test_a_claim_that_names_no_consumer(send: Send, claim: str) -> None:
    event, request = send(config(consumer_claim=claim), bearer(token(x="nobody")), answers=load(ALICE))
    assert event.exit is None
    assert "kong.client.authenticate" not in event.methods
    assert "con" not in request.shared["claude_identity"]["who"]


ANONYMOUS = config(anonymous="guest")


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer x"}, bearer(token(exp=1)), {"authorization": "Bearer"}]
)
def test_anonymous(send: Send, headers: dict[str, Any]) -> None:
    event, request = send(ANONYMOUS, {"x-request-id": "r-1", **headers}, answers=load(GUEST))
    assert event.exit is None
    assert ("kong.client.authenticate", [GUEST]) in event.calls
    sent = upstream(event)
    assert sent["X-Anonymous-Consumer"] == "true"
    assert sent["X-Consumer-Username"] == "guest"
    assert request.shared["claude_identity"]["sub"] == "consumer:guest"
    assert "tier" not in request.shared["claude_identity"]


def test_anonymous_is_no_way_around_the_rules(send: Send) -> None:
    event, _ = send(ANONYMOUS, bearer(token(roles=[])), answers=load(GUEST))
    assert event.ended.status == 403


def test_an_anonymous_consumer_that_does_not_exist(send: Send) -> None:
    event, request = send(ANONYMOUS, {"x-request-id": "r-1"}, answers=load())
    assert event.ended.status == 500
    assert not request.shared
    assert any("doesn't exist" in str(args) for _, args in request.log)


def test_anonymous_after_another_authentication(send: Send) -> None:
    answers = {"kong.client.get_credential": {"id": "c"}, "kong.client.get_consumer": ALICE}
    event, request = send(ANONYMOUS, {"x-request-id": "r-1", "x-consumer-username": "alice"}, answers=answers)
    assert event.exit is None
    assert request.shared["claude_identity"]["sub"] == "consumer:alice"
    assert "x-consumer-username" not in upstream(event)  # the other plugin's own


def test_preflight(send: Send) -> None:
    assert send(config(), {"x-request-id": "r-1"}, method="OPTIONS")[0].ended.status == 401
    settings = config(run_on_preflight=False)
    event, request = send(settings, {"x-request-id": "r-1", "x-claude-subject": "boss"}, method="OPTIONS")
    assert event.exit is None
    found = attested(event)
    assert found["chk"] == []
    assert "sub" not in found
    assert upstream(event)["x-claude-subject"] == {}
    assert request.shared["claude_identity"] == {"mark": "the-route"}
    assert send(settings, {"x-request-id": "r-1"}, method="POST")[0].ended.status == 401


def test_problem_details(send: Send) -> None:
    event, _ = send(config(realm="claude"), {"x-request-id": "r-1", "accept": "application/problem+json"})
    assert event.ended.headers == {
        "Content-Type": "application/problem+json",
        "WWW-Authenticate": 'Bearer realm="claude"',
        "X-Claude-Refusal": "jwt-claims/no_token",
    }
    assert event.ended.body == {
        "type": "urn:kong-claude:problem:no_token",
        "title": "Unauthorized",
        "status": 401,
        "detail": "a bearer token is needed",
        "request_id": "r-1",
    }


@pytest.mark.parametrize(
    ("headers", "capture", "expected"),
    [
        ({"x-repo": "acme/app", "x-branch": "main"}, None, {"name": "acme/app", "ref": "main"}),
        ({"x-repo": "acme/app"}, None, {"name": "acme/app"}),
        ({"x-branch": "main"}, "acme/app", {"name": "acme/app", "ref": "main"}),
        ({"x-repo": "acme/app"}, "acme/app", {"name": "acme/app"}),
        ({"x-branch": "main"}, None, None),
        ({"x-repo": ["acme/app", "acme/other"]}, None, None),
        ({"x-repo": "acme/app", "x-branch": ["main", "other"]}, None, None),
    ],
)
def test_the_one_repository_that_is_named_is_attested(
    send: Send, headers: dict[str, Any], capture: str | None, expected: dict[str, str] | None
) -> None:
    settings = config(repo_claim="repos", repo_capture="repo")
    captures = {"kong.request.get_uri_captures": {"named": {"repo": capture} if capture else {}, "unnamed": []}}
    event, _ = send(settings, bearer(token(repos=["acme/*"]), **headers), answers=captures)
    assert event.exit is None
    assert attested(event).get("repo") == expected


@pytest.mark.parametrize("headers", [{"x-repo": "acme/" + "a" * 200}, {"x-repo": "acme/app", "x-branch": "b" * 300}])
def test_a_name_that_does_not_fit_is_refused_by_itself(send: Send, headers: dict[str, Any]) -> None:
    settings = config(repo_claim="repos")
    event, _ = send(settings, bearer(token(repos=["acme/*"]), **headers))
    assert event.ended.status == 400 and "128 characters at most" in event.ended.body["message"]


@pytest.mark.parametrize(
    ("push_claim", "pushes", "may"),
    [
        ("pushes", ["acme/*"], True),
        ("pushes", "acme/app", True),
        ("pushes", ["acme/other", "acme"], False),
        ("pushes", [], False),
        ("pushes", None, False),
        ("pushes", [True, {"acme/app": 1}], False),
        (None, ["acme/*"], False),
    ],
)
def test_who_may_push_is_said_by_a_claim_of_its_own(send: Send, push_claim: str | None, pushes: Any, may: bool) -> None:
    """To work on a repository does not allow to push to it."""
    settings = config(repo_claim="repos", **({} if push_claim is None else {"push_claim": push_claim}))
    claims = {"repos": ["acme/*"]} | ({} if pushes is None else {"pushes": pushes})
    event, _ = send(settings, bearer(token(**claims), **{"x-repo": "acme/app"}))
    assert event.exit is None
    assert attested(event)["repo"] == {"name": "acme/app"} | ({"push": True} if may else {})


@pytest.mark.parametrize(
    ("pulls", "may"), [(["acme/*"], True), (["acme/other"], False), ([], False), (None, False), (True, False)]
)
def test_who_may_open_pull_requests_is_said_by_another(send: Send, pulls: Any, may: bool) -> None:
    """To push does not allow to open one, nor the other way round."""
    settings = config(repo_claim="repos", push_claim="pushes", pull_request_claim="pulls")
    for pushes in (["acme/*"], []):
        claims = {"repos": ["acme/*"], "pushes": pushes} | ({} if pulls is None else {"pulls": pulls})
        event, _ = send(settings, bearer(token(**claims), **{"x-repo": "acme/app"}))
        said = ({"push": True} if pushes else {}) | ({"pull_request": True} if may else {})
        assert attested(event)["repo"] == {"name": "acme/app"} | said


def test_what_may_be_pushed_to_may_still_not_be_worked_on(send: Send) -> None:
    event, _ = send(
        config(repo_claim="repos", push_claim="pushes"),
        bearer(token(repos=[], pushes=["acme/*"]), **{"x-repo": "acme/app"}),
    )
    assert event.ended.status == 403


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"push_claim": "pushes"}, "repo_claim"),
        ({"repo_claim": "repos", "pull_request_claim": "pulls"}, "push_claim"),
    ],
)
def test_a_claim_that_allows_more_needs_the_one_before(fields: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=f"allows nothing without {missing}"):
        stage_of(JwtClaims, config(**fields))
