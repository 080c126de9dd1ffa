"""X-Claude-Attestation: what a forger, a replayer and a splicer try, one row each."""

from __future__ import annotations

import base64
import dataclasses
import hmac
import json
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from claude_contract.attestation import (
    KID_ROOM,
    MAX_TTL,
    Signer,
    claimed_id,
    demand,
    new_private_key,
    public_key_of,
    signer_from_config,
    verify,
)
from claude_contract.claims import MAX_HEADER, NAME_ROOM, Attestation, body_hash
from claude_contract.errors import ConfigError
from claude_contract.members import AttestationError
from tests.support.attest import signed

SECRET, OLD, FOREIGN = "s" * 32, "o" * 32, "f" * 32
PRIVATE = Ed25519PrivateKey.generate()
PRIVATE_PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC_PEM = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def made(**section: Any) -> Signer:
    signer = signer_from_config(section)
    assert signer
    return signer


HS = made(secret=SECRET)
ED = made(private_key=PRIVATE_PEM, kid="ed")


def opened(
    signer: Signer = HS,
    /,
    *,
    method: str = "POST",
    path: str = "/claude/invoke",
    route: str = "r1",
    request_id: str = "id-1",
) -> Attestation:
    return signer.open(method=method, path=path, route=route, request_id=request_id)


def check(header: str, signer: Signer = HS) -> Attestation:
    return verify(header, signer.keys, issuer="kong-claude", audience="claude-invoker")


def header(signer: Signer = HS, **claims: Any) -> str:
    named = {"route": "r1", "request_id": "id-1", "sub": "alice", "chk": ["jwt-claims"], **claims}
    return signed(signer, "POST", "/claude/invoke", **named)


def subject(attestation: Attestation) -> str | None:
    return attestation.identity.subject if attestation.identity else None


def b64(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(key: bytes | Ed25519PrivateKey, kid: Any, claims: Any, alg: str | None = None, **more: Any) -> str:
    """Signed rightly, whatever is in it; its first part is to the byte what our own signer writes, or a forgery would be
    refused for its spelling alone (see the positive control)."""
    algorithm = alg or ("HS256" if isinstance(key, bytes) else "EdDSA")
    signing_input = f"{b64({'alg': algorithm, 'kid': kid, 'typ': 'JWT', **more})}.{b64(claims)}".encode()
    signature = hmac.digest(key, signing_input, "sha256") if isinstance(key, bytes) else key.sign(signing_input)
    return f"{signing_input.decode()}.{b64(signature)}"


def edit(part: int, change: Callable[[str], str]) -> str:
    parts = header().split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def fresh(**claims: Any) -> dict[str, Any]:
    return {**opened().to_claims(), "sub": "mallory", **claims}


RAW = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def without(name: str) -> dict[str, Any]:
    return {other: value for other, value in fresh().items() if other != name}


def forgeries() -> dict[str, tuple[Signer, str, str]]:
    """Each with the reason for which it is refused, so that none is refused for another than its own. Made anew for each
    test: an attestation that has expired meanwhile would be refused for that alone."""
    now = int(time.time())
    secret, unknown = SECRET.encode(), "unknown_key"
    return {
        "claims edited": (HS, edit(1, lambda _: b64(fresh(tier="enterprise"))), "invalid"),
        "signature of another header": (HS, edit(2, lambda _: header(sub="bob").split(".")[2]), "invalid"),
        "signature empty": (HS, edit(2, lambda _: ""), "invalid"),
        "signature absent": (HS, header().rsplit(".", 1)[0], "invalid"),
        "alg none": (HS, f"{b64({'alg': 'none', 'kid': '1'})}.{b64(fresh())}.", unknown),
        "alg NONE": (HS, f"{b64({'alg': 'NONE', 'kid': '1'})}.{b64(fresh())}.AAAA", unknown),
        "alg none against EdDSA": (ED, f"{b64({'alg': 'none', 'kid': 'ed'})}.{b64(fresh())}.", unknown),
        "HS256 with the EdDSA public key in PEM": (ED, forged(PUBLIC_PEM.encode(), "ed", fresh()), unknown),
        "HS256 with the EdDSA public key in PEM, stripped": (
            ED,
            forged(PUBLIC_PEM.strip().encode(), "ed", fresh()),
            unknown,
        ),
        "HS256 with the raw EdDSA public key": (ED, forged(RAW, "ed", fresh()), unknown),
        "EdDSA named, HS256 with the raw EdDSA public key made": (ED, forged(RAW, "ed", fresh(), "EdDSA"), "invalid"),
        "HS384 named, HS256 made": (HS, forged(secret, "1", fresh(), "HS384"), unknown),
        "EdDSA against a shared secret": (HS, forged(PRIVATE, "1", fresh()), unknown),
        "HS256 named, EdDSA made": (HS, forged(PRIVATE, "1", fresh(), "HS256"), "invalid"),
        "another EdDSA key": (ED, forged(Ed25519PrivateKey.generate(), "ed", fresh()), "invalid"),
        "another secret": (HS, forged(FOREIGN.encode(), "1", fresh()), "invalid"),
        "kid unknown": (HS, forged(secret, "2", fresh()), unknown),
        "kid of a path": (HS, forged(b"", "../../dev/null", fresh()), unknown),
        "kid absent": (HS, jwt.encode(fresh(), SECRET, "HS256"), unknown),
        "kid a list": (HS, forged(secret, ["1"], fresh()), unknown),
        "kid a map": (HS, forged(secret, {}, fresh()), unknown),
        "jwk in the header": (ED, forged(Ed25519PrivateKey.generate(), "ed", fresh(), jwk={"kty": "OKP"}), unknown),
        "crit": (HS, forged(secret, "1", fresh(), crit=["x"], x=1), unknown),
        "expired": (HS, header(iat=now - 60, exp=now - 1), "expired"),
        "exp absent": (HS, forged(secret, "1", without("exp")), "malformed"),
        "jti absent": (HS, forged(secret, "1", without("jti")), "malformed"),
        "lives for an hour": (HS, header(exp=now + 3600), "invalid"),
        "issued in the future": (HS, header(iat=now + 600, exp=now + 630), "invalid"),
        "exp infinite": (HS, forged(secret, "1", fresh(exp=float("inf"))), "invalid"),
        "exp NaN": (HS, forged(secret, "1", fresh(exp=float("nan"))), "invalid"),
        "NaN where anything may be": (
            HS,
            forged(secret, "1", fresh(who={"claims": {"team": float("nan")}})),
            "invalid",
        ),
        "another gateway": (HS, header(iss="another"), "invalid"),
        "another receiver": (HS, header(aud="another"), "invalid"),
        "a list of receivers": (HS, header(aud=["claude-invoker", "another"]), "malformed"),
        "a consumer's own token": (HS, forged(secret, "1", {"sub": "alice", "exp": now + 60}), "malformed"),
        "claims that are no object": (HS, forged(secret, "1", [fresh()]), "malformed"),
        "claims that are no JSON": (HS, forged(secret, "1", b"alice"), "invalid"),
        "deeply nested header": (HS, f"{b64(b'[' * 20000)}.e30.AAAA", unknown),
        "deeply nested claims": (HS, forged(secret, "1", b"[" * 20000), "invalid"),
        "not ASCII": (HS, "é.é.é", unknown),
        "not ASCII behind what is ours": (HS, edit(1, lambda _: "é"), "invalid"),
        "half a surrogate pair": (HS, "\udcff.\udcff.\udcff", unknown),
        "empty": (HS, "", unknown),
        "two joined by a comma": (HS, f"{header()}, {header()}", "invalid"),
    }


@pytest.mark.parametrize("name", forgeries())
def test_forgeries(name: str) -> None:
    signer, text, reason = forgeries()[name]
    with pytest.raises(AttestationError) as refused:
        check(text, signer)
    assert refused.value.reason == reason


def test_the_forger_signs_as_the_gateway_does() -> None:
    """The control of the forgeries: with nothing wrong in it, what their tool makes is believed."""
    assert subject(check(forged(SECRET.encode(), "1", fresh()))) == "mallory"
    assert subject(check(forged(PRIVATE, "ed", fresh()), ED)) == "mallory"


def test_the_first_part_is_the_same_in_every_release() -> None:
    """A receiver looks for it to the byte: another spelling would be nobody's attestation, at a receiver that is not
    upgraded yet."""
    assert header().partition(".")[0] == "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ"
    assert header(ED).partition(".")[0] == "eyJhbGciOiJFZERTQSIsImtpZCI6ImVkIiwidHlwIjoiSldUIn0"


@pytest.mark.parametrize(("lives", "believed"), [(MAX_TTL, True), (MAX_TTL + 1, False)])
def test_how_long_it_may_live(lives: int, believed: bool) -> None:
    now = int(time.time())
    lasting = header(iat=now, exp=now + lives)
    if believed:
        assert check(lasting).expires_at == now + lives
    else:
        with pytest.raises(AttestationError, match="lives longer than it may"):
            check(lasting)


@pytest.mark.parametrize(
    ("moment", "skew", "reason"),
    [
        (0, 0, None),
        (29.9, 0, None),
        (30, 0, "expired"),
        (30, 5, None),
        (34.9, 5, None),
        (35, 5, "expired"),
        (-0.1, 0, "invalid"),
        (-5, 5, None),
        (-5.1, 5, "invalid"),
    ],
)
def test_when_it_is_good(moment: float, skew: float, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`moment`: seconds after it was signed, for 30 of which it is good. `skew` forgives on both sides."""
    signed_at = 1_700_000_000
    text = header(iat=signed_at, exp=signed_at + 30)
    monkeypatch.setattr(time, "time", lambda: signed_at + moment)
    binding = opened().binding
    readers: list[Callable[[], Attestation]] = [
        lambda: verify(text, HS.keys, issuer=HS.issuer, audience=HS.audience, skew=skew)
    ]
    if not skew:
        readers += [lambda: check(text), lambda: HS.resume(text, binding)]
    for read in readers:
        try:
            read()
            found = None
        except AttestationError as error:
            found = error.reason
        assert found == reason


@pytest.mark.parametrize("signer", [HS, ED], ids=["HS256", "EdDSA"])
def test_the_honest_header_verifies(signer: Signer) -> None:
    found = check(header(signer), signer)
    assert subject(found) == "alice"
    assert found.binding == opened(signer).binding
    assert found.expires_at - found.issued_at == 30


@given(st.text() | st.builds(lambda *parts: ".".join(map(b64, parts)), st.binary(), st.binary(), st.binary()))
def test_arbitrary_text(text: str) -> None:
    with pytest.raises(AttestationError):
        check(text)


@pytest.mark.parametrize("signer", [HS, ED], ids=["HS256", "EdDSA"])
@given(position=st.integers(0, 1000), character=st.characters())
def test_no_character_of_it_may_be_another(signer: Signer, position: int, character: str) -> None:
    good = header(signer)
    position %= len(good)
    if good[position] != character:
        with pytest.raises(AttestationError):
            check(good[:position] + character + good[position + 1 :], signer)


@pytest.mark.parametrize("signer", [HS, ED], ids=["HS256", "EdDSA"])
def test_a_signature_has_one_spelling(signer: Signer) -> None:
    """Base64 has bits to spare at its end, and writes two letters of its alphabet in two ways."""
    good = header(signer)
    rest, last = good[:-1], good[-1]
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    bits = 4 if signer is ED else 2  # that mean nothing: of 64 bytes, and of 32
    same = alphabet.index(last) >> bits << bits
    others = [rest + alphabet[same + each] for each in range(1 << bits)]
    assert good in others
    for text in [*others, good + "=", good + "==", good.replace("-", "+").replace("_", "/"), good + "\n", good + "A"]:
        if text == good:
            check(text, signer)
        else:
            with pytest.raises(AttestationError) as refused:
                check(text, signer)
            assert refused.value.reason == "invalid"


def test_a_signature_is_the_one_that_openssl_makes() -> None:
    """RFC 8032 leaves no choice: two libraries that sign the same bytes differently would not both be right."""
    signed, _, signature = ED.sign_claims(fresh()).rpartition(".")
    assert base64.urlsafe_b64decode(signature + "==") == PRIVATE.sign(signed.encode())


def test_only_the_public_key_verifies() -> None:
    public = {"ed": PRIVATE.public_key()}
    assert subject(verify(header(ED), public, issuer="kong-claude", audience="claude-invoker")) == "alice"


@pytest.mark.parametrize("line_break", ["\n", "\\n", " ", "\r\n", ""])
def test_a_key_survives_its_way_through_an_environment(line_break: str) -> None:
    signer = signer_from_config({"private_key": PRIVATE_PEM.strip().replace("\n", line_break), "kid": "ed"})
    assert signer
    assert subject(check(header(signer), ED)) == "alice"


def test_rotation_from_a_shared_secret_to_a_key_and_to_the_next_key() -> None:
    first = signer_from_config({"secret": SECRET, "kid": "1"})
    second = signer_from_config(
        {"private_key": PRIVATE_PEM, "kid": "2", "previous_secret": SECRET, "previous_kid": "1"}
    )
    third = signer_from_config(
        {"private_key": new_private_key(), "kid": "3", "previous_private_key": PUBLIC_PEM, "previous_kid": "2"}
    )
    assert first and second and third
    assert subject(check(header(first), second)) == subject(check(header(second), third)) == "alice"
    with pytest.raises(AttestationError):
        check(header(first), third)


def test_rotation() -> None:
    old = made(secret=OLD, kid="0")
    new = made(secret=SECRET, kid="1", previous_secret=OLD, previous_kid="0")
    assert subject(check(header(old), new)) == subject(check(header(new), HS)) == "alice"
    with pytest.raises(AttestationError):
        check(header(new), old)


@pytest.mark.parametrize(
    "other",
    [{"method": "GET"}, {"path": "/claude/jobs"}, {"path": "/claude/invoke/"}, {"route": "r2"}, {"request_id": "id-2"}],
)
def test_an_attestation_of_another_request_is_not_continued(other: dict[str, str]) -> None:
    with pytest.raises(AttestationError) as refused:
        HS.resume(header(), opened(**other).binding)
    assert refused.value.reason == "mismatch"


def test_a_continued_attestation_keeps_its_jti_and_is_not_prolonged() -> None:
    now = int(time.time())
    first = header(iat=now - 20, exp=now + 10)
    continued = HS.resume(first, opened().binding)
    again = check(HS.sign(replace(continued, checks=("jwt-claims", "rate-tiers"))))
    assert (again.id, again.expires_at) == (check(first).id, now + 10)


def test_another_gateway_of_the_same_secret_is_not_continued() -> None:
    other = dataclasses.replace(HS, issuer="another")
    with pytest.raises(AttestationError):
        other.resume(header(), opened(other).binding)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({}, None),
        ({"method": "PUT"}, "mismatch"),
        ({"path": "/claude/invoke?x=1"}, "mismatch"),
        ({"path": "/claude%2Finvoke"}, "mismatch"),
        ({"checks": ["jwt-claims", "rate-tiers"]}, "checks"),
        ({"body": b"{}x"}, "body"),
        ({"body": None}, "body"),
    ],
)
def test_what_the_receiver_demands(wish: dict[str, Any], reason: str | None) -> None:
    demanded = {"method": "POST", "path": "/claude/invoke", "checks": ["jwt-claims"], "body": b"{}", **wish}
    claims = check(header(bsh=body_hash(b"{}")))
    try:
        demand(claims, **demanded)
        found = None
    except AttestationError as error:
        found = error.reason
    assert found == reason


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"kid": "1"}, "attestation.secret: is empty"),
        ({"secret": ""}, "attestation.secret: is empty"),
        ({"secret": "short"}, "must be at least 32 bytes"),
        ({"secret_file": "/nowhere/at/all"}, "attestation.secret_file: /nowhere/at/all cannot be read"),
        ({"private_key": ""}, "attestation.private_key: is empty"),
        ({"private_key": "", "secret": SECRET}, "attestation.private_key: is empty"),
        ({"secret": PRIVATE_PEM}, "attestation.secret: is a PEM key; it belongs into private_key"),
        ({"secret": SECRET, "previous_kid": "0", "previous_secret": PUBLIC_PEM}, "belongs into previous_private_key"),
        ({"private_key": "x"}, "attestation.private_key: is not a PEM"),
        ({"private_key": PUBLIC_PEM}, "is a public key"),
        ({"secret": SECRET, "previous_kid": "1", "previous_secret": OLD}, "attestation.previous_kid: is the same"),
        ({"secret": SECRET, "previous_kid": "0"}, "attestation.previous_secret: is empty"),
        ({"secret": SECRET, "ttl": 61}, "attestation.ttl: must be 1 to 60"),
    ],
)
def test_settings_that_cannot_be_honoured(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        signer_from_config(config)


@pytest.mark.parametrize(
    ("name", "room"), [("kid", KID_ROOM), ("previous_kid", KID_ROOM), ("issuer", NAME_ROOM), ("audience", NAME_ROOM)]
)
def test_names_have_their_room_in_the_attestation(name: str, room: int) -> None:
    def configured(value: str) -> Signer | None:
        return signer_from_config({"secret": SECRET, "previous_secret": OLD, name: value})

    assert configured("n" * room)
    with pytest.raises(ConfigError, match=f"attestation.{name}: takes more than {room} bytes"):
        configured("n" * (room + 1))
    with pytest.raises(ConfigError, match=f"attestation.{name}: takes more"):
        configured("é" * (room // 2))  # as ASCII escapes, since a kid is written so


def test_a_key_of_another_kind_is_none() -> None:
    """An RSA key would be loaded, and nothing that it signs would be believed."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    private = rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for config in (
        {"private_key": private},
        {"secret": SECRET, "previous_kid": "0", "previous_private_key": public},
    ):
        with pytest.raises(ConfigError, match="must be an Ed25519 key"):
            signer_from_config(config)


@pytest.mark.parametrize(("text", "signer"), [(PRIVATE_PEM, ED), (SECRET, HS)], ids=["key", "secret"])
def test_a_key_or_a_secret_in_a_file(tmp_path: Path, text: str, signer: Signer) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    assert subject(check(header(made(secret_file=str(file), kid=signer.kid)), signer)) == "alice"


def test_what_is_no_text_in_utf8_comes_back_as_it_was_signed() -> None:
    assert subject(check(header(sub="a\udcffb"))) == "a\udcffb"


def test_gateway_and_receiver_are_those_of_the_configuration() -> None:
    own = made(secret=SECRET, issuer="this-gateway", audience="that-invoker")
    binding = opened(own).binding
    assert (binding.issuer, binding.audience) == ("this-gateway", "that-invoker")
    text = signed(own, "POST", "/claude/invoke")
    assert verify(text, own.keys, issuer="this-gateway", audience="that-invoker").binding == replace(
        binding, route="r", request_id="q"
    )
    for issuer, audience in (("kong-claude", "that-invoker"), ("this-gateway", "claude-invoker")):
        with pytest.raises(AttestationError, match="of another gateway or for another receiver"):
            verify(text, own.keys, issuer=issuer, audience=audience)


def test_the_largest_header_that_is_sent() -> None:
    """base64 has no text of some lengths: with a `kid` of two letters the bound is met to the byte."""
    signer, sent = made(secret=SECRET, kid="12"), 0
    with pytest.raises(AttestationError) as refused:
        for length in range(MAX_HEADER // 2, MAX_HEADER):
            sent = len(signer.sign(replace(opened(signer), checks=("c" * length,))))
    assert (refused.value.reason, sent) == ("too_large", MAX_HEADER)


@given(st.text("abc_-", min_size=1, max_size=30))
def test_ones_own_is_found_again_by_its_id(jti: str) -> None:
    assert claimed_id(header(jti=jti)) == jti


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "..", "é.é.é", f"e30.{b64({'jti': 1})}.x", f"e30.{b64({})}.x"])
def test_what_has_no_id_is_nobodys(text: str) -> None:
    assert claimed_id(text) is None


@pytest.mark.parametrize(("ttl", "taken"), [(1, True), (MAX_TTL, True), (MAX_TTL + 1, False), (-1, False)])
def test_how_long_attestations_may_be_set_to_live(ttl: int, taken: bool) -> None:
    if taken:
        assert made(secret=SECRET, ttl=ttl).ttl == ttl
    else:
        with pytest.raises(ConfigError, match=r"attestation\.ttl"):
            made(secret=SECRET, ttl=ttl)


def test_a_secret_of_exactly_its_least_length_and_one_byte_less() -> None:
    assert made(secret="s" * 32).key == b"s" * 32
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        made(secret="s" * 31)


def test_the_public_half() -> None:
    assert public_key_of(PRIVATE_PEM, "key") == PUBLIC_PEM
    with pytest.raises(ConfigError, match="key: is a public key"):
        public_key_of(PUBLIC_PEM, "key")


def test_keys_do_not_show() -> None:
    assert SECRET not in repr(HS)
    assert signer_from_config({}) is None
    assert signer_from_config(None) is None
