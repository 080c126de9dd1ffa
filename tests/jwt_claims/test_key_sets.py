"""Published key sets: any valid key among any junk verifies, and nothing else does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import MIN_SECRET, accepted, algorithms_of
from kong_claude.jwt_claims.jwks import key_from_jwk, keys_from_issuer, keys_from_text, summary
from kong_claude.jwt_claims.keys import Key, KeySet, StaticKeys, from_base64, key_from_pem, key_from_secret
from kong_claude.jwt_claims.token import parse, signed_by
from tests.interop.tokens import certificate, ed448_jwk, ed448_key, shortest
from tests.jwt_claims.support import b64, jwk, pem, private_key, sign
from tests.jwt_claims.test_token import JSON

QUICK = ("RS256", "ES256", "EdDSA")
KINDS = ("RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA")
ALL = frozenset({"RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA"})
P256 = 2**256 - 2**224 + 2**192 + 2**96 - 1


@cache
def signed(algorithm: str, name: str, kid: str | None, key: Any = None, alg: str = "") -> str:
    header = {"alg": alg or algorithm, **({} if kid is None else {"kid": kid})}
    return sign(header, {"sub": "alice"}, algorithm, key or private_key(algorithm, name))


def verifies(keys: KeySet, compact: str) -> bool:
    token = parse(compact)
    return signed_by(token, keys.candidates(token.kid, token.algorithm)) is not None


def one(entry: Any, algorithms: frozenset[str] = ALL) -> Key:
    (key,) = keys_from_issuer({"keys": [entry]}, algorithms).keys
    return key


def without(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}


def point(**change: Callable[[int, int], bytes]) -> dict[str, Any]:
    """The attacker's P-256 key with coordinates made otherwise from (x, y)."""
    numbers = private_key("ES256", "attacker").public_key().public_numbers()
    return {**jwk("ES256", "attacker"), **{name: b64(make(numbers.x, numbers.y)) for name, make in change.items()}}


def x(x: int, y: int) -> bytes:
    return x.to_bytes(32, "big")


def y(x: int, y: int) -> bytes:
    return y.to_bytes(32, "big")


ATTACKER = [jwk(kind, "attacker") for kind in KINDS]
SPOILED: dict[str, dict[str, Any]] = {
    # A key of the attacker's as an entry that serves for nothing, each for one reason.
    "use enc": jwk("RS256", "attacker", use="enc"),
    "use a list": jwk("RS256", "attacker", use=["sig"]),
    "use false": jwk("RS256", "attacker", use=False),
    "use in capitals": jwk("RS256", "attacker", use="SIG"),
    "key_ops without verify": jwk("RS256", "attacker", key_ops=["encrypt"]),
    "key_ops empty": jwk("RS256", "attacker", key_ops=[]),
    "key_ops a text": jwk("RS256", "attacker", key_ops="verify"),
    "alg of another": jwk("RS256", "attacker", alg="RSA-OAEP"),
    "alg not configured": jwk("RS256", "attacker", alg="RS512"),
    "alg of another kind": jwk("ES256", "attacker", alg="RS256"),
    "alg a list": jwk("RS256", "attacker", alg=["RS256"]),
    "alg 0": jwk("RS256", "attacker", alg=0),
    "alg Ed448 of an Ed25519 key": jwk("EdDSA", "attacker", alg="Ed448"),
    "alg HS256 of an RSA key": jwk("RS256", "attacker", alg="HS256"),
    "kid a number": jwk("RS256", "attacker", kid=1),
    "kid a list": jwk("RS256", "attacker", kid=["attacker"]),
    "kty unknown": jwk("RS256", "attacker", kty="AKP"),
    "kty in small letters": jwk("RS256", "attacker", kty="rsa"),
    "kty null": jwk("RS256", "attacker", kty=None),
    "kty a list": jwk("RS256", "attacker", kty=["RSA"]),
    "kty of another": jwk("RS256", "attacker", kty="EC"),
    "kty oct, the modulus as secret": {"kty": "oct", "kid": "attacker", "k": jwk("RS256", "attacker")["n"]},
    "kty oct over an RSA key": jwk("RS256", "attacker", kty="oct", k=b64(b"x" * 64)),
    "no modulus": without(jwk("RS256", "attacker"), "n"),
    "no exponent": without(jwk("RS256", "attacker"), "e"),
    "modulus null": jwk("RS256", "attacker", n=None),
    "modulus empty": jwk("RS256", "attacker", n=""),
    "modulus 0": jwk("RS256", "attacker", n="AA"),
    "exponent 1": jwk("RS256", "attacker", e="AQ"),
    "exponent even": jwk("RS256", "attacker", e="Ag"),
    "1024 bits": jwk("RS256", "attacker", n=b64(b"\xff" * 128)),
    "2047 bits": jwk("RS256", "attacker", n=b64(b"\x7f" + b"\xff" * 255)),
    "no curve": without(jwk("ES256", "attacker"), "crv"),
    "another curve's name": jwk("ES256", "attacker", crv="P-384"),
    "a curve that nobody serves": jwk("ES256", "attacker", crv="secp256k1"),
    "Edwards' curve for EC": jwk("ES256", "attacker", crv="Ed25519"),
    "x absent": without(jwk("ES256", "attacker"), "x"),
    "y absent": without(jwk("ES256", "attacker"), "y"),
    "x of 31 bytes, the last one lost": point(x=lambda x, y: x.to_bytes(32, "big")[:-1]),
    "x of 31 bytes, the first one lost": point(x=lambda x, y: (x | 1 << 255).to_bytes(32, "big")[1:]),
    "y of 31 bytes, the last one lost": point(y=lambda x, y: y.to_bytes(32, "big")[:-1]),
    "x of 33 bytes, the first one 1": point(x=lambda x, y: b"\x01" + x.to_bytes(32, "big")),
    "x of 33 bytes, a zero at the end": point(x=lambda x, y: x.to_bytes(32, "big") + b"\0"),
    "x beyond the field": point(x=lambda x, y: (x + P256).to_bytes(33, "big")),
    "y beyond the field": point(y=lambda x, y: (y + P256).to_bytes(33, "big")),
    "x and y exchanged": point(x=y, y=x),
    "nowhere": point(x=lambda x, y: b"\0", y=lambda x, y: b"\0"),
    "x and y empty": point(x=lambda x, y: b"", y=lambda x, y: b""),
    "the point compressed": point(x=lambda x, y: bytes([2 + y % 2]) + x.to_bytes(32, "big"), y=lambda x, y: b""),
    "Ed25519 of 31 bytes": jwk("EdDSA", "attacker", x=b64(bytes(31))),
    "Ed25519 of 33 bytes": jwk("EdDSA", "attacker", x=b64(bytes(33))),
    "Ed25519 as Ed448": jwk("EdDSA", "attacker", crv="Ed448"),
    "X25519": jwk("EdDSA", "attacker", crv="X25519"),
    "an EC certificate as RSA": {"kty": "RSA", "kid": "attacker", "x5c": [certificate("ES256", "attacker")]},
    "an RSA certificate as EC": {"kty": "EC", "kid": "attacker", "x5c": [certificate("RS256", "attacker")]},
    "an RSA certificate as oct": {"kty": "oct", "kid": "attacker", "x5c": [certificate("RS256", "attacker")]},
    "an Ed25519 certificate as OKP": {"kty": "OKP", "kid": "attacker", "x5c": [certificate("EdDSA", "attacker")]},
    "a certificate on another curve": {
        "kty": "EC",
        "kid": "attacker",
        "crv": "P-384",
        "x5c": [certificate("ES256", "attacker")],
    },
    "a certificate beside half a key": {
        **without(jwk("RS256", "attacker"), "n"),
        "x5c": [certificate("RS256", "attacker")],
    },
    "a certificate beside an exponent's other half": {
        **without(jwk("RS256", "attacker"), "e"),
        "x5c": [certificate("RS256", "attacker")],
    },
    "a certificate beside the other half of a point": {
        **without(jwk("ES256", "attacker"), "x"),
        "x5c": [certificate("ES256", "attacker")],
    },
    "a certificate beside half a point": {
        **without(jwk("ES256", "attacker"), "y"),
        "x5c": [certificate("ES256", "attacker")],
    },
    "a certificate that is none": {"kty": "RSA", "kid": "attacker", "x5c": ["MIIB"]},
    "a certificate as text": {"kty": "RSA", "kid": "attacker", "x5c": certificate("RS256", "attacker")},
    "no certificate": {"kty": "RSA", "kid": "attacker", "x5c": []},
    "a place of certificates": {"kty": "RSA", "kid": "attacker", "x5u": "https://evil.example/cert.pem"},
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_key_serves_nobody_and_takes_no_other_with_it(name: str) -> None:
    keys = keys_from_issuer({"keys": [SPOILED[name], jwk("RS256")]}, ALL)
    assert [key.kid for key in keys.keys] == ["one"]
    assert len(keys.skipped) == 1
    assert verifies(keys, signed("RS256", "one", "one"))
    for kind in KINDS:
        for kid in ("attacker", "one", None):
            assert not verifies(keys, signed(kind, "attacker", kid))


def test_control_the_attackers_key_unspoiled_would_serve() -> None:
    keys = keys_from_issuer({"keys": [*ATTACKER, jwk("RS256")]}, ALL)
    for kind in KINDS:
        assert verifies(keys, signed(kind, "attacker", "attacker"))


def test_control_a_lost_zero_is_the_same_point_and_another_lost_byte_is_not() -> None:
    numbers = private_key("ES256").public_key().public_numbers()
    for packed in (numbers.x.to_bytes(32, "big"), shortest(numbers.x), bytes(9) + shortest(numbers.x)):
        assert one(jwk("ES256", x=b64(packed))).material == private_key("ES256").public_key()


@pytest.mark.parametrize("kind", ["ES256", "ES384", "ES512"])
def test_a_certificate_on_the_curve_that_the_key_names(kind: str) -> None:
    entry = {"kty": "EC", "kid": "one", "x5c": [certificate(kind)]}
    for named in (entry, entry | {"crv": jwk(kind)["crv"]}, entry | {"crv": None}):
        assert one(named).material == private_key(kind).public_key()
        assert one(named).algorithms == {kind}


def test_a_certificate_of_rsa() -> None:
    found = one({"kty": "RSA", "kid": "one", "x5c": [certificate("RS256")]})
    assert found.material == private_key("RS256").public_key()
    assert found.algorithms == {"RS256", "PS384"}


entries = st.one_of(
    JSON,
    st.sampled_from(list(SPOILED.values())),
    st.dictionaries(
        st.sampled_from(["kty", "n", "e", "x", "y", "crv", "k", "alg", "use", "key_ops", "kid", "d", "x5c", "issuer"]),
        JSON | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "AQAB", "sig", "one"]),
    ),
)


@settings(max_examples=60)
@given(st.lists(entries, max_size=6), st.lists(st.sampled_from(QUICK), min_size=1, unique=True), st.randoms())
@example([None, "x", 7, [], {}], ["RS256"], None)
def test_any_valid_key_among_any_junk_verifies_and_nothing_else_does(
    junk: list[Any], kinds: list[str], order: Any
) -> None:
    document = [*junk, *(jwk(kind, kid=f"good-{kind}") for kind in kinds)]
    if order is not None:
        order.shuffle(document)
    keys = keys_from_issuer({"keys": json.loads(json.dumps(document))}, ALL)
    for kind in kinds:
        assert verifies(keys, signed(kind, "one", f"good-{kind}"))
        assert verifies(keys, signed(kind, "one", None))
        assert not verifies(keys, signed(kind, "attacker", f"good-{kind}"))
    for kind in QUICK:
        assert not verifies(keys, signed(kind, "attacker", None))
        assert not verifies(keys, signed(kind, "attacker", "attacker"))
        assert verifies(keys, signed(kind, "one", None)) is (kind in kinds)


@pytest.mark.parametrize("alg", ["", None, "EdDSA", "Ed25519"])
@pytest.mark.parametrize("configured", ["EdDSA", "Ed25519"])
def test_an_ed25519_key_serves_both_of_its_names_and_no_other(alg: str | None, configured: str) -> None:
    keys = keys_from_issuer({"keys": [jwk("EdDSA", alg=alg)]}, frozenset({configured}))
    assert keys.keys[0].algorithms == {"EdDSA", "Ed25519"}
    for name, good in (("EdDSA", True), ("Ed25519", True), ("Ed448", False)):
        assert verifies(keys, signed("EdDSA", "one", "one", alg=name)) is good


@pytest.mark.parametrize("alg", ["", None, "EdDSA", "Ed448"])
@pytest.mark.parametrize("configured", ["EdDSA", "Ed448"])
def test_an_ed448_key_serves_both_of_its_names_and_no_other(alg: str | None, configured: str) -> None:
    keys = keys_from_issuer({"keys": [ed448_jwk(alg=alg)]}, frozenset({configured}))
    assert keys.keys[0].algorithms == {"EdDSA", "Ed448"}
    for name, good in (("EdDSA", True), ("Ed448", True), ("Ed25519", False)):
        assert verifies(keys, signed("EdDSA", "one", "one", ed448_key(), alg=name)) is good


def test_each_of_two_curves_is_excluded_by_the_others_name() -> None:
    both = {"keys": [jwk("EdDSA", "a"), ed448_jwk(kid="b")]}
    assert [key.kid for key in keys_from_issuer(both, frozenset({"Ed25519"})).keys] == ["a"]
    assert [key.kid for key in keys_from_issuer(both, frozenset({"Ed448"})).keys] == ["b"]
    assert [key.kid for key in keys_from_issuer(both, frozenset({"EdDSA"})).keys] == ["a", "b"]


def test_a_keys_own_alg_bounds_what_it_serves() -> None:
    algorithms = frozenset({"RS256", "RS512", "PS256"})
    assert one(jwk("RS256"), algorithms).algorithms == algorithms
    assert one(jwk("RS256", alg="RS512"), algorithms).algorithms == {"RS512"}


def test_of_a_published_private_key_only_the_public_half_is_kept() -> None:
    for kind in KINDS:
        private = json.loads(json.dumps(jwk(kind)))
        key = one({**private, "d": private.get("n") or private["x"], "p": "AQ", "q": "AQ"})
        assert not hasattr(key.material, "private_numbers")
        assert not hasattr(key.material, "private_bytes")
        assert key.material == private_key(kind).public_key()


def test_nothing_of_a_key_shows() -> None:
    document = {"keys": [{"kty": "oct", "k": b64(b"hunter2-" * 8)}]}
    keys = keys_from_text(json.dumps(document), frozenset({"HS256"}), "jwks")
    shown = repr(keys) + repr(keys.keys) + str(keys.candidates(None, "HS256"))
    assert "hunter2" not in shown
    assert repr(keys) == "KeySet(skipped=())"
    assert "RSAPublicKey" not in repr(keys_from_issuer({"keys": [jwk("RS256")]}, ALL).keys)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "no list of keys"),
        ([], "no list of keys"),
        ({}, "no list of keys"),
        ({"keys": None}, "no list of keys"),
        ({"keys": {"one": jwk("RS256")}}, "no list of keys"),
        ({"keys": []}, "no usable key"),
        ({"keys": [None]}, "no usable key: an entry is not an object"),
        ({"keys": [jwk("RS256", use="enc")]}, "no usable key: key 'one' is not for signatures"),
        ({"keys": [jwk("RS256", kid=None, kty="AKP")]}, "no usable key: key None has an unknown kty"),
        ({"keys": [jwk("RS256", n="!")]}, "no usable key: key 'one' cannot be read"),
        ({"keys": [jwk("ES256")]}, "no usable key: key 'one' serves none of RS256"),
        ({"keys": [jwk("RS256", kid={})]}, "no usable key: a kid is not a string"),
        ({"keys": [jwk("HS256")]}, "no usable key: key 'one' serves none of RS256"),
    ],
)
def test_a_set_without_a_usable_key_says_why(document: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        keys_from_issuer(document, frozenset({"RS256"}))


def test_reasons_are_summed_up() -> None:
    assert summary([]) == ""
    assert summary(list("abcde")) == "a; b; c; d; e"
    assert summary(list("abcdefg")) == "a; b; c; d; e; and 2 more"


def test_a_configured_set_must_be_usable_whole() -> None:
    """Who writes keys down means all of them."""
    for entry in (None, SPOILED["use enc"], SPOILED["x of 31 bytes, the last one lost"]):
        with pytest.raises(ConfigError, match="is not a usable JSON Web Key Set"):
            keys_from_text(json.dumps({"keys": [entry, jwk("RS256")]}), frozenset({"RS256"}), "jwks")


def test_names_decide_before_the_nameless() -> None:
    """A key without kid is tried for any token, after those that are named."""
    nameless = without(jwk("RS256", "two"), "kid")
    keys = keys_from_issuer({"keys": [nameless, jwk("RS256"), jwk("RS256", "three")]}, ALL)
    assert [key.kid for key in keys.candidates("one", "RS256")] == ["one", None]
    assert [key.kid for key in keys.candidates("other", "RS256")] == [None]
    assert [key.kid for key in keys.candidates(None, "RS256")] == [None, "one", "three"]
    assert keys.candidates("one", "ES256") == ()
    assert verifies(keys, signed("RS256", "two", "other"))
    assert not verifies(keys, signed("RS256", "three", "one"))


def test_a_key_that_cannot_be_asked_stands_in_nobodys_way() -> None:
    """One of another kind than its algorithm never comes out of a set; if one did, the next is asked all the same."""
    other, good = (Key(None, frozenset({"RS256"}), private_key(kind).public_key()) for kind in ("ES256", "RS256"))
    assert signed_by(parse(signed("RS256", "one", None)), [other, good]) is good
    assert signed_by(parse(signed("RS256", "attacker", None)), [other, good]) is None


def test_weak_keys_serve_nothing() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    numbers = weak.public_numbers()
    entry = {"kty": "RSA", "n": b64(shortest(numbers.n)), "e": b64(shortest(numbers.e))}
    with pytest.raises(ValueError, match="serves none of"):
        key_from_jwk(entry, frozenset({"RS256"}))
    koblitz = ec.generate_private_key(ec.SECP256K1()).public_key().public_numbers()
    entry = {"kty": "EC", "crv": "P-256", "x": b64(shortest(koblitz.x)), "y": b64(shortest(koblitz.y))}
    with pytest.raises(ValueError, match="cannot be read"):
        key_from_jwk(entry, frozenset({"ES256"}))


def test_base64_of_either_alphabet_and_nothing_else() -> None:
    for text in ("-_8", "+/8", "-_8=", " -_\n8 "):
        assert from_base64(text) == b"\xfb\xff"
    for text in ("_w", "_w=", "_w==", "_w===", "/w"):
        assert from_base64(text) == b"\xff"
    bad: Any
    for bad in ("=_w", "-_8*", "\u0661\u0661", "A", None, 7, ["AA"]):
        with pytest.raises((ValueError, AttributeError)):
            from_base64(bad)


@given(st.binary(max_size=40), st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]), st.booleans())
@example(bytes([0, 0, 0x17]), base64.b64encode, True)  # "AAAX"
@example(b"\xff" * 3, base64.urlsafe_b64encode, False)
def test_a_secret_in_base64_is_its_bytes_whatever_they_are(
    data: bytes, encode: Callable[[bytes], bytes], padded: bool
) -> None:
    """A letter that is lost at an end would be another secret, and a shorter one."""
    text = encode(data).decode()
    assert from_base64(text if padded else text.rstrip("=")) == data


def test_a_set_is_the_same_with_the_same_keys_only() -> None:
    """Taken for the same, it would not be taken over: a key that was withdrawn would go on letting in."""

    def published(*entries: Any) -> KeySet:
        return keys_from_issuer({"keys": list(entries)}, ALL)

    first, second = jwk("ES256", "one"), jwk("EdDSA", "two")
    keys = published(first, second)
    assert keys.same(published(first, second)) and keys.same(published(second, first))
    for other in (
        published(first),
        published(first, second, jwk("ES384", "three")),
        published(first, {**second, "kid": "three"}),
        published({**second, "kid": "one"}, {**first, "kid": "two"}),
    ):
        assert not keys.same(other) and not other.same(keys)


def test_configured_keys_are_the_same_whenever_they_are_looked_for() -> None:
    """A token of an unknown kid makes the plugin look for newer ones; None would be a 503."""
    keys = KeySet((key_from_secret("s" * 32, frozenset({"HS256"}), "secret"),))
    source = StaticKeys(keys)
    assert source.current() is keys and source.refreshed(keys) is keys


@pytest.mark.parametrize(
    ("configured", "names"),
    [
        ({"RS256"}, {"RS256"}),
        ({"HS256", "ES256"}, {"HS256", "ES256"}),
        ({"EdDSA"}, {"EdDSA", "Ed25519", "Ed448"}),
        ({"Ed25519"}, {"EdDSA", "Ed25519"}),
        ({"RS256", "Ed448"}, {"RS256", "EdDSA", "Ed448"}),
    ],
)
def test_names_that_tokens_may_give(configured: set[str], names: set[str]) -> None:
    assert accepted(frozenset(configured)) == names


def test_a_secret_serves_the_hashes_that_are_no_longer_than_it() -> None:
    for size, serves in ((31, set()), (32, {"HS256"}), (47, {"HS256"}), (48, {"HS256", "HS384"}), (64, {*MIN_SECRET})):
        assert algorithms_of(b"x" * size) == serves


def test_a_key_serves_what_is_configured_and_no_more() -> None:
    """Though its issuer's algorithms are asked as well."""
    assert key_from_pem(pem("RS256"), frozenset({"RS256"}), "public_key").algorithms == {"RS256"}
    assert key_from_pem(pem("EdDSA"), frozenset({"Ed25519"}), "public_key").algorithms == {"EdDSA", "Ed25519"}
    assert key_from_secret("x" * 64, frozenset({"HS256"}), "secret").algorithms == {"HS256"}
    oct_key = {"kty": "oct", "k": b64(b"x" * 64)}
    assert key_from_jwk(oct_key, frozenset({"HS256", "RS256"})).algorithms == {"HS256"}


def test_a_secret_is_as_long_as_the_hash_or_longer() -> None:
    for algorithm, size in MIN_SECRET.items():
        only = frozenset({algorithm})
        assert key_from_secret("x" * size, only, "secret").material == b"x" * size
        with pytest.raises(ConfigError, match=f"at least {size} bytes for {algorithm}$"):
            key_from_secret("x" * (size - 1), only, "secret")
        packed = b"\xfb\xff\xfe" * (size // 3 + 1)
        for text in (b64(packed), base64.encodebytes(packed).decode()):
            assert key_from_secret(text, only, "secret", is_base64=True).material == packed
    with pytest.raises(ConfigError, match="at least 64 bytes"):
        key_from_secret("x" * 63, frozenset(MIN_SECRET), "secret")


def test_what_looks_like_a_secret_and_is_one() -> None:
    """Base64 of random bytes, DER of something else: no public key."""
    for text in (b64(bytes(range(64))), base64.b64encode(b"0\x82" + bytes(62)).decode(), "MII" + "A" * 61):
        assert key_from_secret(text, frozenset({"HS256"}), "secret")


def test_a_huge_modulus_ends_nothing() -> None:
    """Published by an issuer under the kid of its tokens: refused like a wrong signature."""
    huge = jwk("RS256", n=b64(b"\xff" * 4096))
    keys = keys_from_issuer({"keys": [huge, jwk("RS256", "two", kid="one")]}, ALL)
    assert verifies(keys, signed("RS256", "two", "one"))
