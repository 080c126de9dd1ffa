"""Arbitrary bytes as a token: always refused, never an exception; and the parser accepts one spelling only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kong_claude.jwt_claims.jwks import keys_from_issuer, keys_from_text
from kong_claude.jwt_claims.token import MAX_TIME, MAX_TOKEN, Checks, InvalidToken, parse
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import AUDIENCE, b64, config, jwk, sign, token

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
GOOD = token()
socket_settings = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(st.text() | st.builds(lambda *parts: ".".join(map(b64, parts)), st.binary(), st.binary(), st.binary()))
@example("..")
@example(b64(b"{}") + "." + b64(b"{}") + "." + b64(b"x"))
def test_parse_raises_nothing_else(compact: str) -> None:
    with pytest.raises(InvalidToken):
        parse(compact)


@given(st.binary(max_size=300))
@socket_settings
def test_bytes_as_a_token_through_the_socket(send: Send, data: bytes) -> None:
    value = "Bearer " + data.decode("utf-8", "surrogateescape")
    event, request = send(config(), {"authorization": value, "x-request-id": "r-1"})
    assert event.exit is not None
    assert event.exit.status in (400, 401)
    assert not request.shared


@given(JSON, JSON)
@socket_settings
def test_signed_nonsense_through_the_socket(send: Send, header: Any, payload: Any) -> None:
    """Validly signed, so that every check after the signature is reached."""
    header = {"alg": "HS256", **(header if isinstance(header, dict) else {"kid": header})}
    event, request = send(config(), {"authorization": f"Bearer {sign(header, payload)}", "x-request-id": "r-1"})
    assert event.exit is not None
    assert event.exit.status == 401
    assert not request.shared


@given(
    st.sampled_from(["sub", "tier", "roles", "permissions", "email", "jti", "iss", "aud", "exp", "nbf", "iat", "x"]),
    JSON,
)
@socket_settings
def test_a_claim_of_any_kind_through_the_socket(send: Send, name: str, value: Any) -> None:
    """Either refused with a reason or passed on whole: never an internal error (503)."""
    try:
        compact = sign({"alg": "HS256"}, json.dumps({**json.loads(json.dumps(claims_of(GOOD))), name: value}))
    except ValueError:
        return
    event, request = send(
        config(forward_claims=["x"], repo_claim="x"), {"authorization": f"Bearer {compact}", "x-request-id": "r-1"}
    )
    assert event.exit is None or event.exit.status in (401, 403), event.exit
    assert (event.exit is None) == bool(request.shared)


def claims_of(compact: str) -> dict[str, Any]:
    return dict(parse(compact).claims)


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_one_changed_character_never_passes(position: int, character: str) -> None:
    """No second spelling of a good token: not in its base64, not anywhere."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed == GOOD:
        return
    try:
        found, good = parse(changed), parse(GOOD)
    except InvalidToken:
        return
    assert (found.signing_input, found.signature) != (good.signing_input, good.signature)


@given(JSON)
def test_any_document_as_key_set(document: Any) -> None:
    try:
        keys_from_issuer(document, frozenset({"RS256"}))
    except ValueError:
        pass


@given(
    st.dictionaries(
        st.sampled_from(["kty", "n", "e", "x", "y", "crv", "k", "alg", "use", "key_ops", "kid", "d"]),
        JSON | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "AQAB", "sig"]),
    )
)
def test_any_key_in_a_key_set(entry: Any) -> None:
    good = jwk("ES256", kid="good")
    keys = keys_from_issuer({"keys": [entry, good]}, frozenset({"RS256", "ES256", "EdDSA"}))
    assert keys.candidates("good", "ES256")


def test_symmetric_keys_of_an_issuer_never_serve() -> None:
    document = {"keys": [{"kty": "oct", "k": b64(b"x" * 64)}]}
    with pytest.raises(ValueError, match="key None is a secret, which nobody publishes"):
        keys_from_issuer(document, frozenset({"HS256"}))
    assert keys_from_text(json.dumps(document), frozenset({"HS256"}), "jwks").keys


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 100}, None),
        ({"exp": 96}, None),
        ({"exp": 95}, "expired"),
        ({"exp": 200, "nbf": 105}, None),
        ({"exp": 200, "nbf": 106}, "not_yet_valid"),
        ({"exp": 200, "iat": 106}, "not_yet_valid"),
        ({"exp": 1105}, None),
        ({"exp": 1106}, "lifetime"),
        ({"exp": 200, "nbf": None, "iat": None}, None),
        ({"exp": 95.5}, None),
        ({"exp": 94.99}, "expired"),
        ({"exp": 1105.5}, "lifetime"),
        ({"exp": 200, "nbf": 105.5}, "not_yet_valid"),
        ({"exp": 200.0, "nbf": 99.9, "iat": 1e2}, None),
        ({"exp": None}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": 200, "nbf": False}, "claims"),
        ({"exp": 200, "iat": "100"}, "claims"),
        ({"exp": 200, "nbf": -1}, "claims"),
        ({"exp": 200, "iat": 0}, None),
        ({"exp": MAX_TIME + 1}, "claims"),
        ({"exp": float("inf")}, "claims"),
        ({"exp": float("nan")}, "claims"),
        ({}, "claims"),
    ],
)
def test_times_at_their_edges(claims: dict[str, Any], reason: str | None) -> None:
    checks = Checks(frozenset({AUDIENCE}), ("aud",), leeway=5, maximum_expiration=1000)
    try:
        checks.check({"aud": AUDIENCE, **claims}, now=100.0)
        found = None
    except InvalidToken as error:
        found = error.reason
    assert found == reason


def test_exp_is_handed_back_as_it_is() -> None:
    """A token is remembered until then."""
    checks = Checks(frozenset({AUDIENCE}), ("aud",), leeway=0, maximum_expiration=0)
    assert checks.check({"aud": AUDIENCE, "exp": 200.5}, now=100.0) == 200.5
    assert checks.check({"aud": AUDIENCE, "exp": MAX_TIME}, now=100.0) == MAX_TIME


def test_nothing_of_a_token_shows() -> None:
    parsed = parse(GOOD)
    assert all(part not in repr(parsed) for part in GOOD.split("."))
    assert repr(parsed.signature) not in repr(parsed)


def test_the_longest_token() -> None:
    head = b64(b'{"alg":"HS256"}')
    body = b64(b"{}" + b" " * ((MAX_TOKEN - len(head) - 2) % 4 * 3))  # what is left is a multiple of 4
    longest = f"{head}.{body}." + "A" * (MAX_TOKEN - len(head) - len(body) - 2)
    assert len(longest) == MAX_TOKEN == 16384
    assert parse(longest).algorithm == "HS256"
    with pytest.raises(InvalidToken) as refused:
        parse(longest + "A")
    assert refused.value.reason == "too_large"


@pytest.mark.parametrize(
    ("number", "fine"),
    [
        ("9223372036854775807", True),
        ("9999999999999999999", True),
        ("10000000000000000000", False),
        ("-1000000000000000000", False),
        ("NaN", False),
        ("Infinity", False),
        ("-Infinity", False),
        ("1e308", True),
        ("1e309", False),
        ("-1e309", False),
    ],
)
def test_numbers_that_somebody_downstream_could_not_read(number: str, fine: bool) -> None:
    compact = sign({"alg": "HS256"}, f'{{"n": [{number}]}}')
    if fine:
        assert "n" in parse(compact).claims
    else:
        with pytest.raises(InvalidToken) as refused:
            parse(compact)
        assert refused.value.reason == "malformed"
