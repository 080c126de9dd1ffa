"""Rules over claims: what a verified token must say, and how a denial says what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.rules import email_problem, has, lookup, repository_allowed, rules_from_config, values
from kong_claude.jwt_claims.schema import RuleConfig
from kong_claude.schema import read
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import bearer, config, token

NESTED = {
    "realm_access": {"roles": ["a", "b"]},
    "https://example.com/roles": ["x"],
    "a.b": {"c": 1},
    "a": {"b": {"d": 2}},
    "scope": "read write",
    "title": "chief officer",
    "count": 3,
    "flag": True,
    "mixed": ["x", 1, None, {"y": 1}, True],
    "none": None,
    "scp": "read write",
    "x": {"scope": "a  b", "scp": "a\tb"},
    "p.q": {"r.s": 4},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("realm_access.roles", ["a", "b"]),
        ("https://example.com/roles", ["x"]),
        ("a.b.c", 1),
        ("a.b.d", 2),
        ("a.b.e", None),
        ("realm_access.roles.0", None),
        ("title.x", None),
        ("title.chief", None),
        ("realm_access.roles.a", None),
        ("p.q.r.s", 4),
        ("", None),
        (".", None),
        ("none", None),
    ],
)
def test_lookup(path: str, expected: Any) -> None:
    assert lookup(NESTED, path) == expected
    assert lookup({"": NESTED}, f".{path}") is None


@pytest.mark.parametrize("empty", [0, False, "", [], {}])
def test_a_claim_is_there_unless_it_is_absent_or_null(empty: Any) -> None:
    assert has({"a": {"b": empty}}, "a.b") is True
    assert has(NESTED, "none") is False
    assert has(NESTED, "realm_access.groups") is False


def test_the_longest_name_that_leads_somewhere_decides_though_to_null() -> None:
    assert lookup({"a.b": {"c": None}, "a": {"b.c": "x"}}, "a.b.c") is None
    for nowhere in ({"d": 1}, {}, "text", ["c"], None, 0):
        assert lookup({"a.b": nowhere, "a": {"b.c": "x"}}, "a.b.c") == "x"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("scope", ("read", "write")),
        ("scp", ("read", "write")),
        ("x.scope", ("a", "", "b")),
        ("x.scp", ("a\tb",)),  # RFC 6749 has spaces only
        ("title", ("chief officer",)),  # only scope and scp are lists in disguise
        ("realm_access.roles", ("a", "b")),
        ("count", ("3",)),
        ("flag", ("true",)),
        ("mixed", ("x", "1", "true")),
        ("realm_access", ()),
        ("absent", ()),
    ],
)
def test_values(path: str, expected: tuple[str, ...]) -> None:
    assert values(NESTED, path) == expected


RULES: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("any_of, one held", {"claim": "roles", "any_of": ["a", "b"]}, {"roles": ["b"]}, True),
    ("any_of, none held", {"claim": "roles", "any_of": ["a", "b"]}, {"roles": ["c"]}, False),
    ("any_of, absent", {"claim": "roles", "any_of": ["a"]}, {"roles": None}, False),
    ("any_of, prefix", {"claim": "roles", "any_of": ["admin"]}, {"roles": ["administrator"]}, False),
    ("any_of, one string with spaces", {"claim": "roles", "any_of": ["admin"]}, {"roles": "no admin"}, False),
    ("any_of, a map with that key", {"claim": "roles", "any_of": ["a"]}, {"roles": {"a": True}}, False),
    ("any_of, nested list", {"claim": "roles", "any_of": ["a"]}, {"roles": [["a"]]}, False),
    ("all_of, all held", {"claim": "scope", "all_of": ["r", "w"]}, {"scope": "w r x"}, True),
    ("all_of, one missing", {"claim": "scope", "all_of": ["r", "w"]}, {"scope": "r"}, False),
    ("all_of, scope as list", {"claim": "scope", "all_of": ["r", "w"]}, {"scope": ["r", "w"]}, True),
    ("none_of, held", {"claim": "roles", "none_of": ["banned"]}, {"roles": ["a", "banned"]}, False),
    ("none_of, not held", {"claim": "roles", "none_of": ["banned"]}, {"roles": ["a"]}, True),
    ("none_of, absent", {"claim": "groups", "none_of": ["banned"]}, {}, True),
    ("equals", {"claim": "org.plan", "equals": "paid"}, {"org": {"plan": "paid"}}, True),
    ("equals, other", {"claim": "org.plan", "equals": "paid"}, {"org": {"plan": "free"}}, False),
    ("equals, one of several", {"claim": "org", "equals": "paid"}, {"org": ["paid", "x"]}, False),
    ("equals, boolean", {"claim": "staff", "equals": "true"}, {"staff": True}, True),
    ("equals, boolean against a string", {"claim": "staff", "equals": "true"}, {"staff": "True"}, False),
    ("parts together", {"claim": "roles", "any_of": ["a"], "none_of": ["x"]}, {"roles": ["a", "x"]}, False),
]


@pytest.mark.parametrize(("name", "rule", "claims", "passes"), RULES, ids=[row[0] for row in RULES])
def test_rule(send: Send, name: str, rule: dict[str, Any], claims: dict[str, Any], passes: bool) -> None:
    event, request = send(config(rules=[rule]), bearer(token(**claims)))
    if passes:
        assert event.exit is None
    else:
        assert event.exit is not None
        assert event.exit.status == 403
        assert event.exit.headers["WWW-Authenticate"].startswith('Bearer error="insufficient_scope"')
        assert rule["claim"] in event.exit.body["message"]
        assert not request.shared


def test_every_rule_must_hold(send: Send) -> None:
    rules = [{"claim": "roles", "any_of": ["claude:invoke"]}, {"claim": "scope", "all_of": ["code"]}]
    assert send(config(rules=rules), bearer(token(scope="code")))[0].exit is None
    assert send(config(rules=rules), bearer(token()))[0].ended.status == 403
    assert send(config(rules=rules), bearer(token(roles=[], scope="code")))[0].ended.status == 403


def test_the_challenge_names_what_is_missing(send: Send) -> None:
    rules = [{"claim": "scope", "any_of": ["b", "a"], "all_of": ['c"d', "e f", "g"]}]
    event, _ = send(config(rules=rules, realm="claude"), bearer(token()))
    # What cannot stand in a scope attribute would break out of its quotes.
    assert event.ended.headers["WWW-Authenticate"] == 'Bearer realm="claude", error="insufficient_scope", scope="a b g"'


@pytest.mark.parametrize(
    "rule",
    [
        {"claim": "roles"},
        {"any_of": ["x"]},
        {"claim": "roles", "any_of": []},
        {"claim": "roles", "any_of": ["a"], "none_of": ["a"]},
        {"claim": "roles", "all_of": ["a", "b"], "none_of": ["a"]},
    ],
)
def test_a_rule_that_says_nothing_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^rules\[1\]"):
        rules_from_config([read(RuleConfig, rule)])


EMAILS: list[tuple[Any, Any, bool]] = [
    ("a@example.com", True, True),
    ("a@EXAMPLE.com", True, True),
    ("a@example.com", False, False),
    ("a@example.com", "true", True),  # Apple
    ("a@example.com", "True", False),
    ("a@example.com", "false", False),
    ("a@example.com", "", False),
    ("a@example.com", ["true"], False),
    ("a@sub.example.com", "true", False),
    ("a@example.com", None, False),
    ("a@example.com", 1, False),
    ("a@sub.example.com", True, False),
    ("a@example.com.evil.org", True, False),
    ("a@notexample.com", True, False),
    ("a@evil.org@example.com", True, False),
    ('"a@evil.org"@example.com', True, False),
    ("a@example.com\n", True, False),
    ("a@example.com ", True, False),
    ("a@exаmple.com", True, False),  # a Cyrillic letter
    ("a@ｅxample.com", True, False),
    ("@example.com", True, False),
    ("example.com", True, False),
    (["a@example.com"], True, False),
    (None, True, False),
]


@pytest.mark.parametrize(("email", "verified", "passes"), EMAILS)
def test_email(email: Any, verified: Any, passes: bool) -> None:
    claims = {"email": email, "email_verified": verified}
    assert (email_problem(claims, frozenset({"example.com"})) is None) is passes


def test_email_domains_through_the_socket(send: Send) -> None:
    settings = config(email_domains=["Example.com"])
    assert send(settings, bearer(token(email="a@example.com", email_verified=True)))[0].exit is None
    refused = send(settings, bearer(token(email="a@example.com")))[0].ended
    assert refused.status == 403
    assert refused.body["message"] == "the email address is not verified"


REPOSITORIES: list[tuple[str, list[str], bool]] = [
    ("acme/app", ["acme/*"], True),
    ("acme/app", ["acme/app"], True),
    ("acme/app-api", ["acme/*-api"], True),
    ("acme/app", ["acme/ap?"], True),
    ("acme/a/b", ["acme/*"], False),
    ("acme/a/b", ["acme/**"], True),
    ("acme/app", [], False),
    ("acme/app", ["other/*", "acme/*"], True),
    ("acmeXapp", ["acme.app"], False),
    ("xacme/app", ["acme/*"], False),
    ("acme/app\n", ["acme/*"], False),
    ("acme/../evil/app", ["acme/**"], False),
    ("acme/..", ["acme/*"], False),
    ("acme/./app", ["**"], False),
    (".", ["*"], False),
    ("acme\\.\\app", ["**"], False),
    ("acme/.github", ["acme/*"], True),
    ("acme/...", ["acme/*"], True),
    ("acme/100%", ["**"], False),
    ("acme/app\x7f", ["**"], False),
    ("acme/app", ["acme/ap"], False),
    ("acme//", ["acme/?/"], False),
    ("acme\\..\\x", ["**"], False),
    ("acme/%2e%2e/x", ["**"], False),
    ("acme/аpp", ["acme/*"], False),
    ("", ["*"], False),
    ("(x)", ["(x)"], True),
    ("x", ["(x|y)"], False),
    ("x", ["["], False),
]


@pytest.mark.parametrize(("repository", "globs", "allowed"), REPOSITORIES)
def test_repository(repository: str, globs: list[str], allowed: bool) -> None:
    assert repository_allowed(repository, globs) is allowed


@given(st.text(max_size=80), st.lists(st.text(alphabet="*?ab/[](){}\\^$.|+", max_size=80), max_size=4))
def test_any_glob_is_only_a_glob(repository: str, globs: list[str]) -> None:
    assert repository_allowed(repository, globs) in (True, False)


def test_a_glob_takes_linear_time() -> None:
    assert repository_allowed("a" * 3000 + "b", ["*a" * 200 + "c"]) is False


@pytest.mark.parametrize(
    ("headers", "capture", "passes"),
    [
        ({}, None, True),
        ({"x-repo": "acme/app"}, None, True),
        ({"x-repo": "evil/app"}, None, False),
        ({"x-repo": ["acme/app", "evil/app"]}, None, False),
        ({"x_repo": "evil/app"}, None, False),
        ({"x-repo": "acme/app", "x_repo": "evil/app"}, None, False),
        ({"x-repo": ""}, None, False),
        ({}, "acme/app", True),
        ({}, "evil/app", False),
        ({"x-repo": "acme/app"}, "evil/app", False),
    ],
)
def test_the_repository_in_the_request(send: Send, headers: dict[str, Any], capture: str | None, passes: bool) -> None:
    settings = config(repo_claim="repos", repo_capture="repo")
    captures = {"kong.request.get_uri_captures": {"named": {"repo": capture} if capture else {}, "unnamed": []}}
    event, _ = send(settings, bearer(token(repos=["acme/*"]), **headers), answers=captures)
    assert (event.exit is None) is passes
    if not passes:
        assert event.ended.status == 403


def test_without_the_claim_no_repository_is_allowed(send: Send) -> None:
    event, _ = send(config(repo_claim="repos"), bearer(token(), **{"x-repo": "acme/app"}))
    assert event.ended.status == 403
