"""Arbitrary bytes as a token: always refused, never an exception; and the parser accepts one spelling only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from claude_contract.nesting import MAX_DEPTH
from kong_claude.jwt_claims.jwks import keys_from_issuer, keys_from_text
from kong_claude.jwt_claims.token import MAX_TOKEN, Checks, InvalidToken, parse
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
        ({"exp": 253402300800}, "claims"),  # the year 10000
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


AUDIENCES: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "its own": ({"aud": AUDIENCE}, ("aud",), True),
    "among others": ({"aud": ["x", AUDIENCE]}, ("aud",), True),
    "another": ({"aud": "x"}, ("aud",), False),
    "others": ({"aud": ["x", "y"]}, ("aud",), False),
    "a part of it": ({"aud": AUDIENCE[:-1]}, ("aud",), False),
    "none": ({}, ("aud",), False),
    "null": ({"aud": None}, ("aud",), False),
    "an empty list": ({"aud": []}, ("aud",), False),
    "a name of an object's member": ({"aud": {AUDIENCE: 1}}, ("aud",), False),
    "beside a number": ({"aud": [AUDIENCE, 5]}, ("aud",), False),
    "in a list of lists": ({"aud": [[AUDIENCE]]}, ("aud",), False),
    "a number": ({"aud": 5}, ("aud",), False),
    "true": ({"aud": True}, ("aud",), False),
    "by another claim": ({"client_id": AUDIENCE}, ("aud", "client_id"), True),
    "by a claim that is not asked for": ({"client_id": AUDIENCE}, ("aud",), False),
    "by another claim, beside null": ({"aud": None, "client_id": AUDIENCE}, ("aud", "client_id"), True),
    "by another claim, beside an empty list": ({"aud": [], "client_id": AUDIENCE}, ("aud", "client_id"), True),
    "another, whatever the next claim says": ({"aud": "x", "client_id": AUDIENCE}, ("aud", "client_id"), False),
    "no text, whatever the next claim says": ({"aud": 0, "client_id": AUDIENCE}, ("aud", "client_id"), False),
    "an empty text, whatever the next claim says": ({"aud": "", "client_id": AUDIENCE}, ("aud", "client_id"), False),
}


@pytest.mark.parametrize(("claims", "asked", "meant"), AUDIENCES.values(), ids=AUDIENCES)
def test_whom_a_token_is_meant_for(claims: dict[str, Any], asked: tuple[str, ...], meant: bool) -> None:
    checks = Checks(frozenset({AUDIENCE}), asked, leeway=0, maximum_expiration=0)
    if meant:
        assert checks.check({"exp": 200, **claims}, now=100.0) == 200
    else:
        with pytest.raises(InvalidToken) as refused:
            checks.check({"exp": 200, **claims}, now=100.0)
        assert refused.value.reason == "audience"


HEADER = {"alg": "HS256"}
HEAD = b64(json.dumps(HEADER).encode())  # ends with the 4 bits that a Q has too many
UNREADABLE: dict[str, tuple[str, str]] = {
    "two parts": ("e30.e30", "malformed"),
    "four parts": (f"{sign(HEADER, '{}')}.e30", "malformed"),
    "padding": (sign(HEADER, "{}").replace(".", "=.", 1), "malformed"),
    "a line break behind it": (f"{sign(HEADER, '{}')}\n", "malformed"),
    "a part of impossible length": ("e30a1.e30.AAAA", "malformed"),
    # Some bits of a last letter are of no byte: with them a token had several spellings.
    "bits that no byte needs, in the header": (f"{HEAD[:-1]}R.e30.AAAA", "malformed"),
    "bits that no byte needs, in the claims": (f"{HEAD}.e31.AAAA", "malformed"),
    "bits that no byte needs, in the signature": (f"{HEAD}.e30.AB", "malformed"),
    "crit": (sign({**HEADER, "crit": []}, "{}"), "unsupported"),
    "b64": (sign({**HEADER, "b64": True}, "{}"), "unsupported"),
    "crit and b64": (sign({**HEADER, "crit": ["b64"], "b64": False}, "{}"), "unsupported"),
    "no algorithm": (sign({}, "{}"), "malformed"),
    "an algorithm that is no text": (sign({"alg": ["HS256"]}, "{}"), "malformed"),
    "a kid that is no text": (sign({**HEADER, "kid": 1}, "{}"), "malformed"),
    "a typ that is no text": (sign({**HEADER, "typ": None}, "{}"), "malformed"),
    "a header that is no object": (f"{b64(b'[]')}.e30.AAAA", "malformed"),
    "claims that are no object": (sign(HEADER, "[]"), "malformed"),
    "claims that are no JSON": (sign(HEADER, "{"), "malformed"),
    "claims that are no UTF-8": (f"{b64(json.dumps(HEADER).encode())}.{b64(bytes([0xFF]))}.AAAA", "malformed"),
    "a name twice": (sign(HEADER, '{"sub": "a", "sub": "b"}'), "malformed"),
    "a name twice, deep": (sign(HEADER, '{"a": [{"b": 1, "b": 1}]}'), "malformed"),
    "half a surrogate pair": (sign(HEADER, '{"sub": "\\ud800"}'), "malformed"),
    "a claim that is nested too deeply": (sign(HEADER, f'{{"a": {"[" * MAX_DEPTH}{"]" * MAX_DEPTH}}}'), "malformed"),
    "a header that is nested too deeply": (
        sign({**HEADER, "x": json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)}, "{}"),
        "malformed",
    ),
}


@pytest.mark.parametrize(("compact", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_each_token_that_cannot_be_read_has_its_reason(compact: str, reason: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        parse(compact)
    assert refused.value.reason == reason
    assert str(refused.value).startswith("the token"), "a sentence for the caller"


@pytest.mark.parametrize(("compact", "part"), [(f"{b64(b'[]')}.e30.AAAA", "header"), (sign(HEADER, "[]"), "payload")])
def test_which_part_cannot_be_read_is_said(compact: str, part: str) -> None:
    with pytest.raises(InvalidToken, match=f"^the token's {part} is not a JSON object$"):
        parse(compact)


@pytest.mark.parametrize(
    ("given", "found"),
    [("JWT", "jwt"), ("at+jwt", "at+jwt"), ("application/at+JWT", "at+jwt"), ("application/", ""), ("x/jwt", "x/jwt")],
)
def test_a_type_is_read_with_and_without_its_prefix(given: str, found: str) -> None:
    """RFC 7515, 4.1.9."""
    assert parse(sign({**HEADER, "typ": given}, "{}")).typ == found
    assert parse(sign(HEADER, "{}")).typ == "jwt"


def test_exp_is_handed_back_as_it_is() -> None:
    """A token is remembered until then."""
    checks = Checks(frozenset({AUDIENCE}), ("aud",), leeway=0, maximum_expiration=0)
    assert checks.check({"aud": AUDIENCE, "exp": 200.5}, now=100.0) == 200.5
    assert checks.check({"aud": AUDIENCE, "exp": 253402300799}, now=100.0) == 253402300799


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
        assert parse(compact).claims == {"n": [json.loads(number)]}
    else:
        with pytest.raises(InvalidToken) as refused:
            parse(compact)
        assert refused.value.reason == "malformed"


def test_the_control_without_those_bits_it_is_read() -> None:
    assert HEAD.endswith("Q")
    assert parse(f"{HEAD}.e30.AA").algorithm == "HS256"
