"""Attacks on tokens, one row each: all refused, through the plugin server's socket, without a trace upstream."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.token import InvalidToken, parse
from tests.interop.tokens import ENTRA, OTHER_TENANT, TENANT, certificate, ed448_jwk, ed448_key
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import (
    AUDIENCE,
    ISSUER,
    OTHER_SECRET,
    SECRET,
    b64,
    bearer,
    claims,
    config,
    issuer,
    jwk,
    pem,
    private_key,
    sign,
    token,
)
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S

HS, RS, ES, ED = (config(algorithm) for algorithm in ("HS256", "RS256", "ES256", "EdDSA"))
KIDS = config(issuers=[{"issuer": ISSUER, "algorithms": ["RS256"], "jwks": json.dumps({"keys": [jwk("RS256")]})}])
EITHER = config(audience_claims=["aud", "client_id"])
NOW = int(time.time())
HEAD = {"alg": "HS256", "typ": "JWT"}


def unsigned(alg: str) -> str:
    return f"{b64(json.dumps({'alg': alg, 'typ': 'JWT'}).encode())}.{b64(json.dumps(claims()).encode())}"


def with_exp(text: str) -> str:
    """A signed payload whose exp is written exactly like this."""
    return sign(HEAD, json.dumps(claims(exp=12345)).replace("12345", text))


def forged(header: dict[str, Any], algorithm: str = "RS256") -> str:
    """Signed with the attacker's own key, which the header offers."""
    return sign({"typ": "JWT", "alg": algorithm, **header}, claims(), algorithm, private_key(algorithm, "attacker"))


def raw_public(algorithm: str) -> str:
    """The public key's bytes as text, each byte a character below 128 or a surrogate of one."""
    key = private_key(algorithm).public_key()
    encoded: bytes = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return encoded.decode("latin-1")


def edit(part: int, change: Callable[[str], str], algorithm: str = "HS256") -> str:
    parts = token(algorithm).split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def loosen(signature: str) -> str:
    """Another spelling of the same bytes: the unused bits of the last character set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return signature[:-1] + alphabet[alphabet.index(signature[-1]) | 1]


def hs(secret: str, **header: str) -> str:
    """HS256 with any secret, which PyJWT itself would refuse to sign with."""
    parts = [b64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "HS256", **header}, claims())]
    signing_input = ".".join(parts)
    return f"{signing_input}.{b64(hmac.digest(secret.encode(), signing_input.encode(), 'sha256'))}"


ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    # algorithm
    **{f"alg {alg}, no signature": (HS, unsigned(alg) + ".") for alg in ("none", "None", "NONE", "nOnE", "", "HS256")},
    **{f"alg {alg}, some signature": (RS, unsigned(alg) + ".AAAA") for alg in ("none", "None", "NONE", "nOnE")},
    "alg none with the real signature": (HS, f"{unsigned('none')}.{token().split('.')[2]}"),
    "alg with a space": (HS, sign({"alg": "HS256 "}, claims())),
    "alg in lower case": (HS, sign({"alg": "hs256"}, claims())),
    "alg absent": (HS, sign({"typ": "JWT"}, claims())),
    "alg a list": (HS, sign({"alg": ["HS256"]}, claims())),
    "alg null": (HS, sign({"alg": None}, claims())),
    "HS256 with the RSA public key as secret": (RS, hs(pem("RS256"))),
    "HS256 with the RSA public key, stripped": (RS, hs(pem("RS256").strip())),
    "HS256 with the EC public key as secret": (ES, hs(pem("ES256"))),
    "HS256 with the EdDSA public key as secret": (ED, hs(pem("EdDSA"))),
    "HS256 with the raw EdDSA public key as secret": (ED, hs(raw_public("EdDSA"))),
    "HS256 with the public key without PEM's lines": (RS, hs("".join(pem("RS256").splitlines()[1:-1]))),
    "Ed448's name on an Ed25519 signature": (ED, sign({"alg": "Ed448"}, claims(), "EdDSA")),
    "Ed25519 with another key": (ED, sign({"alg": "Ed25519"}, claims(), "EdDSA", private_key("EdDSA", "attacker"))),
    "Ed25519 in lower case": (ED, sign({"alg": "ed25519"}, claims(), "EdDSA")),
    "Ed25519 where RS256 is configured": (RS, sign({"alg": "Ed25519"}, claims(), "EdDSA")),
    "Ed25519 and an RSA signature": (RS, sign({"alg": "Ed25519"}, claims(), "RS256")),
    "Ed25519, no signature": (ED, unsigned("Ed25519") + "."),
    "HS256 with an empty secret": (HS, hs("")),
    "HS512 where HS256 is configured": (HS, token("HS512")),
    "PS256 where RS256 is configured": (RS, token("PS256")),
    "RS512 where RS256 is configured": (RS, token("RS512")),
    # keys
    "another secret": (HS, sign(HEAD, claims(), "HS256", OTHER_SECRET)),
    "another RSA key": (RS, token("RS256", "attacker")),
    "kid path traversal": (KIDS, token("RS256", "attacker", {"kid": "../../../../dev/null"})),
    "kid of an empty file, empty secret": (KIDS, hs("", kid="/dev/null")),
    "kid SQL text": (KIDS, token("RS256", "attacker", {"kid": "x' UNION SELECT 'key';--"})),
    "kid template text": (KIDS, token("RS256", "attacker", {"kid": "{{7*7}}${jndi:ldap://x}"})),
    "kid of a URL": (KIDS, token("RS256", "attacker", {"kid": "https://evil.example/key"})),
    "kid a number": (KIDS, sign({"alg": "RS256", "kid": 1}, claims(), "RS256")),
    "kid a list": (KIDS, sign({"alg": "RS256", "kid": ["one"]}, claims(), "RS256")),
    "kid null": (KIDS, forged({"kid": None})),
    "the right kid, another key": (KIDS, token("RS256", "attacker", {"kid": "one"})),
    "kid absent, another key": (KIDS, token("RS256", "attacker")),
    "jku injection": (KIDS, forged({"jku": "https://evil.example/jwks.json", "kid": "evil"})),
    "x5u injection": (KIDS, forged({"x5u": "https://evil.example/cert.pem"})),
    "jwk injection": (KIDS, forged({"jwk": jwk("RS256", "attacker")})),
    "jwk injection under the right kid": (KIDS, forged({"jwk": jwk("RS256", "attacker", kid="one"), "kid": "one"})),
    "x5c injection": (KIDS, forged({"x5c": ["MIIB"]})),
    # signature
    "signature absent": (HS, token().rsplit(".", 1)[0]),
    "signature empty": (HS, token().rsplit(".", 1)[0] + "."),
    "signature of another token": (HS, edit(2, lambda _: token(sub="mallory").split(".")[2])),
    "signature truncated": (HS, edit(2, lambda p: p[:-2])),
    "signature doubled": (HS, edit(2, lambda p: p + p)),
    "signature padded": (HS, edit(2, lambda p: p + "=")),
    "signature in another spelling": (HS, edit(2, loosen)),
    "signature with a line break": (HS, edit(2, lambda p: p[:5] + "\n" + p[5:])),
    "signature in standard base64": (HS, edit(2, lambda p: p[:-1] + "+")),
    "ES256 psychic signature (r = s = 0)": (ES, edit(2, lambda _: b64(bytes(64)), "ES256")),
    "ES256 r = s = order": (
        ES,
        edit(
            2,
            lambda _: b64(bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551") * 2),
            "ES256",
        ),
    ),
    "ES256 signature empty": (ES, edit(2, lambda _: "", "ES256")),
    "ES256 signature in DER": (ES, edit(2, lambda _: b64(bytes.fromhex("3006020101020101")), "ES256")),
    "EdDSA all zero": (ED, edit(2, lambda _: b64(bytes(64)), "EdDSA")),
    "EdDSA short": (ED, edit(2, lambda _: b64(bytes(63)), "EdDSA")),
    "RS256 signature 0": (RS, edit(2, lambda _: b64(bytes(256)), "RS256")),
    "RS256 signature 1": (RS, edit(2, lambda _: b64(bytes(255) + b"\x01"), "RS256")),
    # form
    "payload edited": (HS, edit(1, lambda _: b64(json.dumps(claims(tier="enterprise")).encode()))),
    "payload truncated": (HS, edit(1, lambda p: p[:-3])),
    "header padded": (HS, edit(0, lambda p: p + "=")),
    "two parts": (HS, "a.b"),
    "four parts": (HS, token() + ".AAAA"),
    "five parts (JWE)": (HS, f"{b64(json.dumps({'alg': 'dir', 'enc': 'A256GCM'}).encode())}..AAAA.AAAA.AAAA"),
    "only dots": (HS, ".."),
    "huge": (HS, "A" * 1_000_000),
    "huge but well-formed": (HS, sign(HEAD, claims(filler="x" * 20_000))),
    "Ed25519 over an Ed448 signature": (
        config(issuers=[{"issuer": ISSUER, "algorithms": ["EdDSA"], "jwks": json.dumps({"keys": [ed448_jwk()]})}]),
        sign({"alg": "Ed25519", "kid": "one"}, claims(), "EdDSA", ed448_key()),
    ),
    "deeply nested payload": (HS, sign(HEAD, "[" * 6000 + "]" * 6000)),
    "deeply nested header": (HS, sign("[" * 6000, claims())),
    "deeply nested claim": (HS, sign(HEAD, '{"a":' * 2000 + "1" + "}" * 2000)),
    **{
        f"claim nested {levels} deep": (
            config(forward_claims=["deep"]),
            sign(HEAD, json.dumps(claims())[:-1] + ',"deep":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"),
        )
        for levels in (65, 600, 900)
    },
    "number with 5000 digits": (HS, sign(HEAD, json.dumps(claims())[:-1] + ',"n":' + "9" * 5000 + "}")),
    "nested JWT": (HS, sign({**HEAD, "cty": "JWT"}, token())),
    "nested JWT as a string": (HS, sign({**HEAD, "cty": "JWT"}, json.dumps(token()))),
    "payload a list": (HS, sign(HEAD, json.dumps([claims()]))),
    "payload empty": (HS, sign(HEAD, "")),
    "payload not UTF-8": (HS, ".".join([*token().split(".")[:1], b64(b'{"a":"\xff"}'), "AAAA"])),
    "header not JSON": (HS, sign("alg=HS256", claims())),
    "header with a BOM": (HS, sign("\ufeff" + json.dumps(HEAD), claims())),
    "half a surrogate pair": (HS, sign(HEAD, claims(name="\ud800"))),
    "duplicate claim": (HS, sign(HEAD, json.dumps(claims())[:-1] + ',"tier":"enterprise"}')),
    "duplicate claim, escaped": (HS, sign(HEAD, json.dumps(claims())[:-1] + ',"\\u0074ier":"enterprise"}')),
    "duplicate header": (HS, sign('{"alg":"none","alg":"HS256"}', claims())),
    "duplicate in a nested claim": (HS, sign(HEAD, json.dumps(claims())[:-1] + ',"x":{"a":1,"a":2}}')),
    "crit": (HS, sign({**HEAD, "crit": ["exp"], "exp": 1}, claims())),
    "crit empty": (HS, sign({**HEAD, "crit": []}, claims())),
    "crit b64": (HS, sign({**HEAD, "crit": ["b64"], "b64": True}, claims())),
    "b64 = false": (HS, sign({**HEAD, "b64": False}, claims())),
    "b64 = false, raw payload": (HS, f"{b64(json.dumps({**HEAD, 'b64': False}).encode())}.{json.dumps(claims())}.AAAA"),
    # times
    "expired": (HS, token(exp=NOW - 3600)),
    "expired just beyond the leeway": (HS, token(exp=NOW - 6)),
    "exp absent": (HS, token(exp=None)),
    "exp null": (HS, with_exp("null")),
    "exp a string": (HS, with_exp(f'"{NOW + 3500}"')),
    "exp negative": (HS, with_exp(f"-{NOW}")),
    "exp NaN": (HS, with_exp("NaN")),
    "exp Infinity": (HS, with_exp("Infinity")),
    "exp -Infinity": (HS, with_exp("-Infinity")),
    "exp 1e308": (HS, with_exp("1e308")),
    "exp 1e400": (HS, with_exp("1e400")),
    "exp 1e999": (HS, with_exp("1e999")),
    "exp in the year 10000": (HS, with_exp("253402300800")),
    "exp true": (HS, with_exp("true")),
    "exp a list": (HS, with_exp(f"[{NOW + 3500}]")),
    "exp in milliseconds": (config(maximum_expiration=86400), with_exp(str((NOW + 600) * 1000))),
    "exp beyond maximum_expiration": (config(maximum_expiration=3600), token(exp=NOW + 90_000)),
    "exp 1E+400": (HS, with_exp("1E+400")),
    "exp -1e400": (HS, with_exp("-1e400")),
    "exp 1e-400": (HS, with_exp("1e-400")),
    "exp -0.0": (HS, with_exp("-0.0")),
    "exp a fraction beyond the year 9999": (HS, with_exp("253402300799.5")),
    "exp a fraction, long ago": (HS, with_exp("1700000000.5")),
    "exp false": (HS, with_exp("false")),
    "exp a map": (HS, with_exp("{}")),
    "exp in an exponent, long ago": (HS, with_exp("1.7e9")),
    "exp a fraction of 5000 digits": (HS, with_exp("9" * 5000 + ".0")),
    "nbf a fraction in the future": (HS, token(nbf=NOW + 86_400.5)),
    "nbf true": (HS, token(nbf=True)),
    "nbf false": (HS, token(nbf=False)),
    "nbf an empty list": (HS, token(nbf=[])),
    "nbf negative": (HS, token(nbf=-1)),
    "iat a fraction in the future": (HS, token(iat=NOW + 86_400.5)),
    "iat in milliseconds": (HS, token(iat=NOW * 1000)),
    "iat 1e400": (HS, sign(HEAD, json.dumps(claims(iat=12345)).replace("12345", "1e400"))),
    "iat text": (HS, sign(HEAD, claims(iat=""))),
    "nbf in the future": (HS, token(nbf=NOW + 86_400)),
    "nbf a string": (HS, token(nbf="0")),
    "iat in the future": (HS, token(iat=NOW + 86_400)),
    "iat NaN": (HS, sign(HEAD, json.dumps(claims(iat=float("nan"))))),
    # issuer and audience
    "iss absent": (HS, token(iss=None)),
    "iss of someone else": (HS, token(iss="https://evil.example/")),
    "iss without the slash": (HS, token(iss=ISSUER.rstrip("/"))),
    "iss in capitals": (HS, token(iss=ISSUER.upper())),
    "iss a list": (HS, sign(HEAD, claims(iss=[ISSUER]))),
    "iss with a zero-width space": (HS, token(iss=ISSUER + "\u200b")),
    "iss with a Cyrillic letter": (HS, token(iss=ISSUER.replace("e", "\u0435", 1))),
    "iss in full width": (HS, token(iss="ｈttps://idp.example.com/")),
    "iss with a NUL": (HS, token(iss=ISSUER + "\x00")),
    "iss another of the same gateway": (
        config(issuers=[issuer(), issuer("RS256", issuer="https://two.example/")]),
        token("HS256", iss="https://two.example/"),
    ),
    "aud absent": (HS, token(aud=None)),
    "aud of someone else": (HS, token(aud="another")),
    "aud empty": (HS, token(aud="")),
    "aud an empty list": (HS, token(aud=[])),
    "aud a number": (HS, sign(HEAD, claims(aud=1))),
    "aud a map": (HS, sign(HEAD, claims(aud={AUDIENCE: True}))),
    "aud with a number in the list": (HS, sign(HEAD, claims(aud=[AUDIENCE, 1]))),
    "aud a prefix": (HS, token(aud=AUDIENCE[:-1])),
    "aud in capitals": (HS, token(aud=AUDIENCE.upper())),
    "aud with a soft hyphen": (HS, token(aud="claude\u00ad-code")),
    "aud with a non-breaking hyphen": (HS, token(aud="claude\u2011code")),
    "aud a map, our client_id": (EITHER, token(aud={AUDIENCE: 1}, client_id=AUDIENCE)),
    "aud an empty map, our client_id": (EITHER, token(aud={}, client_id=AUDIENCE)),
    "aud empty, our client_id": (EITHER, token(aud="", client_id=AUDIENCE)),
    "aud false, our client_id": (EITHER, token(aud=False, client_id=AUDIENCE)),
    "aud 0, our client_id": (EITHER, token(aud=0, client_id=AUDIENCE)),
    "aud a list of null, our client_id": (EITHER, token(aud=[None], client_id=AUDIENCE)),
    "aud null and no client_id": (EITHER, sign(HEAD, json.dumps(claims())[:-1].replace(f'"{AUDIENCE}"', "null") + "}")),
    "aud an empty list, client_id of someone else": (EITHER, token(aud=[], client_id="another")),
    "aud absent, client_id a map": (EITHER, token(aud=None, client_id={AUDIENCE: 1})),
    "aud absent, client_id in a list with a number": (EITHER, token(aud=None, client_id=[AUDIENCE, 1])),
    "aud absent, our azp where it does not count": (EITHER, token(aud=None, azp=AUDIENCE)),
    # type and subject
    "typ of a logout token": (HS, token(header={"typ": "logout+jwt"})),
    "typ of a DPoP proof": (HS, token(header={"typ": "dpop+jwt"})),
    "typ a number": (HS, sign({"alg": "HS256", "typ": 1}, claims())),
    "sub absent": (HS, token(sub=None)),
    "sub empty": (HS, token(sub="")),
    "sub a number": (HS, sign(HEAD, claims(sub=1))),
    "sub with a line break": (HS, token(sub="alice\r\nX-Claude-Tier: enterprise")),
    "sub with a NUL": (HS, token(sub="alice\x00")),
    "sub with a right-to-left override": (HS, token(sub="alice\u202e")),
    "sub very long": (HS, token(sub="a" * 256)),
    "tier a list": (HS, token(tier=["pro", "enterprise"])),
    "tier with a line break": (HS, token(tier="pro\nx")),
    "required claim absent": (config(required_claims=["org.id"]), token(org={"name": "x"})),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(send: Send, name: str) -> None:
    configuration, attack = ATTACKS[name]
    start = time.monotonic()
    event, request = send(configuration, bearer(attack))
    assert time.monotonic() - start < HANG_S
    assert event.exit is not None
    assert event.exit.status == (400 if event.exit.headers["WWW-Authenticate"].endswith('"invalid_request"') else 401)
    assert event.exit.headers["WWW-Authenticate"].startswith("Bearer error=")
    assert event.exit.body["message"]
    assert event.exit.body["request_id"] == "r-1"
    assert len(event.calls) <= 2
    assert not request.upstream_headers
    assert not request.shared
    assert all(part not in str(event.exit) for part in attack.split(".") if len(part) > 8)


@pytest.mark.parametrize(
    "algorithm",
    [
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
    ],
)
def test_the_honest_token_passes(send: Send, algorithm: str) -> None:
    """What makes the table above say something: only the attack differs from this."""
    event, request = send(config(algorithm), bearer(token(algorithm)))
    assert event.exit is None
    assert request.shared["claude_identity"]["mark"] == "the-route"


def jwks(algorithms: list[str], *keys: dict[str, Any], **fields: Any) -> dict[str, Any]:
    text = json.dumps({"keys": keys})
    return config(issuers=[{"issuer": ISSUER, "algorithms": algorithms, "jwks": text, **fields}])


def tenants(*ids: str, name: str = ENTRA) -> dict[str, Any]:
    entry = {"issuer": name, "algorithms": ["RS256"], "public_key": pem("RS256")}
    return config(issuers=[entry | ({"tenants": ids} if ids else {})])


def secret(text: str, **fields: Any) -> dict[str, Any]:
    return config(issuers=[{"issuer": ISSUER, "algorithms": ["HS256"], "secret": text, **fields}])


def entra(tenant: str) -> str:
    return token("RS256", iss=ENTRA.replace("{tenantid}", tenant))


ENCODED = base64.b64encode(SECRET.encode()).decode()
SLASHED = f"{TENANT}/{OTHER_TENANT}"
OPENED: dict[str, tuple[dict[str, Any], Callable[[], str], dict[str, Any]]] = {
    # What each setting and each tolerance could let in: a configuration, what it must refuse, and as the control the
    # configuration in which exactly this token is right.
    "aud of someone else, our client_id": (
        EITHER,
        lambda: token(aud="another", client_id=AUDIENCE),
        config(audience_claims=["client_id"]),
    ),
    "our aud, where client_id counts and is of someone else": (
        config(audience_claims=["client_id", "aud"]),
        lambda: token(client_id="another"),
        EITHER,
    ),
    "client_id where it does not count": (HS, lambda: token(aud=None, client_id=AUDIENCE), EITHER),
    "an empty aud where nothing else counts": (HS, lambda: token(aud=[], client_id=AUDIENCE), EITHER),
    "a tenant that is not of the list": (
        tenants(TENANT),
        lambda: entra(OTHER_TENANT),
        tenants(TENANT, OTHER_TENANT),
    ),
    "a tenant with a slash": (
        tenants(TENANT, OTHER_TENANT),
        lambda: entra(SLASHED),
        tenants(name=ENTRA.replace("{tenantid}", SLASHED)),
    ),
    "the base64 of the secret as the secret": (
        secret(ENCODED, secret_is_base64=True),
        lambda: hs(ENCODED),
        secret(ENCODED),
    ),
    "the decoded secret where it is no base64": (
        secret(ENCODED),
        lambda: hs(SECRET),
        secret(ENCODED, secret_is_base64=True),
    ),
    "an Ed448 signature as EdDSA where Ed25519 is configured": (
        jwks(["Ed25519"], jwk("EdDSA")),
        lambda: sign({"alg": "EdDSA", "kid": "one"}, claims(), "EdDSA", ed448_key()),
        jwks(["EdDSA"], ed448_jwk()),
    ),
    "a key beside n and e in x5c": (
        jwks(["RS256"], jwk("RS256", x5c=[certificate("RS256", "attacker")])),
        lambda: token("RS256", "attacker", {"kid": "one"}),
        jwks(["RS256"], {"kty": "RSA", "kid": "one", "x5c": [certificate("RS256", "attacker")]}),
    ),
    "a further certificate in x5c": (
        jwks(["RS256"], {"kty": "RSA", "kid": "one", "x5c": [certificate(), certificate("RS256", "attacker")]}),
        lambda: token("RS256", "attacker", {"kid": "one"}),
        jwks(["RS256"], {"kty": "RSA", "kid": "one", "x5c": [certificate("RS256", "attacker"), certificate()]}),
    ),
    "a key whose alg is another": (
        jwks(["RS256", "RS512"], jwk("RS256", alg="RS512"), jwk("RS256", "attacker", alg="RS256")),
        lambda: token("RS256", header={"kid": "one"}),
        jwks(["RS256", "RS512"], jwk("RS256", alg=""), jwk("RS256", "attacker", alg="RS256")),
    ),
    "a kid of another key of the set": (
        jwks(["RS256"], jwk("RS256"), jwk("RS256", "attacker")),
        lambda: token("RS256", "attacker", {"kid": "one"}),
        jwks(["RS256"], jwk("RS256", kid="two"), jwk("RS256", "attacker", kid="one")),
    ),
    "expired by a fraction": (HS, lambda: token(exp=time.time() - 5.001), config(leeway=120)),
    "nbf ahead by a fraction": (HS, lambda: token(nbf=time.time() + 30.5), config(leeway=120)),
    "iat ahead by a fraction": (HS, lambda: token(iat=time.time() + 30.5), config(leeway=120)),
    "exp too far by a fraction": (
        config(maximum_expiration=600, leeway=0),
        lambda: token(exp=time.time() + 660.5),
        config(maximum_expiration=660, leeway=5),
    ),
}


@pytest.mark.parametrize("name", OPENED)
def test_nothing_is_opened_beside_what_is_meant(send: Send, name: str) -> None:
    configuration, attack, meant = OPENED[name]
    compact = attack()
    event, request = send(configuration, bearer(compact))
    assert event.ended.status == 401
    assert not request.shared
    event, request = send(meant, bearer(compact))
    assert event.exit is None, event.exit
    assert request.shared


HEADERS: dict[str, tuple[dict[str, Any], int]] = {
    "no header": ({}, 401),
    "another scheme": ({"authorization": "Basic YTpi"}, 401),
    "Bearer without a token": ({"authorization": "Bearer"}, 400),
    "Bearer and spaces": ({"authorization": "Bearer   "}, 400),
    "two words": ({"authorization": f"Bearer {token()} {token()}"}, 400),
    "a comma": ({"authorization": f"Bearer {token()}, Bearer x"}, 400),
    "a byte that is not UTF-8": ({"authorization": "Bearer \udcff"}, 400),
    "a good token and a byte that is not UTF-8": ({"authorization": f"Bearer {token()}\udcff"}, 400),
    "a NUL": ({"authorization": f"Bearer {token()}\x00"}, 400),
    "a Unicode space": ({"authorization": f"Bearer\u00a0{token()}"}, 401),
    "two different tokens": ({"authorization": [f"Bearer {token()}", f"Bearer {token(sub='bob')}"]}, 401),
    "a token beside another scheme": ({"authorization": [f"Bearer {token()}", "Basic YTpi"]}, 401),
    "a token beside an empty one": ({"authorization": [f"Bearer {token()}", "Bearer"]}, 400),
    "more headers than Kong shows": ({f"x-{n}": "1" for n in range(1000)} | bearer(token()), 431),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_headers_are_refused(send: Send, name: str) -> None:
    headers, status = HEADERS[name]
    event, request = send(HS, {"x-request-id": "r-1", **headers})
    assert event.exit is not None
    assert event.exit.status == status
    assert not request.shared
    if status == 401 and name in ("no header", "another scheme", "a Unicode space"):
        assert event.exit.headers["WWW-Authenticate"] == "Bearer"


RAW = config(raw_header_names=["X-Api-Key"])
RAW_HEADERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "the token": ({"x-api-key": token()}, None),
    "the token and blanks": ({"x-api-key": f" {token()}\t"}, None),
    "the token twice": ({"x-api-key": [token(), token()]}, None),
    "the token in both headers": ({"x-api-key": token(), "authorization": f"Bearer {token()}"}, None),
    "a token in each header": ({"x-api-key": token(sub="bob"), "authorization": f"Bearer {token()}"}, 401),
    "a key of the API beside the token": ({"x-api-key": "sk-ant-api03-x", "authorization": f"Bearer {token()}"}, 401),
    "two tokens": ({"x-api-key": [token(), token(sub="bob")]}, 401),
    "a token and nothing": ({"x-api-key": [token(), ""]}, 401),
    "nothing": ({"x-api-key": ""}, 401),
    "blanks": ({"x-api-key": "  "}, 401),
    "Bearer alone": ({"x-api-key": "Bearer"}, 400),
    "another scheme": ({"x-api-key": "Basic YTpi"}, 400),
    "a token and a comma": ({"x-api-key": f"{token()},{token()}"}, 400),
    "a token and a line break": ({"x-api-key": f"{token()}\n"}, 400),
    "without Bearer where it is needed": ({"authorization": token()}, 401),
    "a header that is not named": ({"x-token": token()}, 401),
    "an underscore for the hyphen": ({"x_api_key": token()}, 401),
}


@pytest.mark.parametrize("name", RAW_HEADERS)
def test_tokens_without_bearer(send: Send, name: str) -> None:
    headers, status = RAW_HEADERS[name]
    event, request = send(RAW, {"x-request-id": "r-1", **headers})
    assert (event.exit.status if event.exit else None) == status
    assert bool(request.shared) == (status is None)


def test_control_without_the_bounds_an_endless_exp_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(JwtClaims, HS)
    for text, reason in (("1e400", "malformed"), ("1e300", "claims")):
        with pytest.raises(InvalidToken) as refused:
            stage.verify(with_exp(text))
        assert refused.value.reason == reason
    monkeypatch.setattr("kong_claude.jwt_claims.token.MAX_TIME", float("inf"))
    assert stage.verify(with_exp("1e300"))
    monkeypatch.setattr("kong_claude.jwt_claims.token._finite", float)
    assert stage.verify(with_exp("1e400"))


def test_control_a_public_key_as_secret_would_let_everybody_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Keycloak shows its realm's key: without PEM's lines, easily taken for a secret."""
    shown = "".join(pem("RS256").splitlines()[1:-1])
    with pytest.raises(ConfigError, match="is a public or private key"):
        stage_of(JwtClaims, secret(shown))
    monkeypatch.setattr("kong_claude.jwt_claims.keys._is_published", lambda material: False)
    assert stage_of(JwtClaims, secret(shown)).verify(hs(shown))


def test_control_without_the_bound_a_deep_claim_would_be_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """How deep its writers can go (context, attestation, logs) depends on where they are called."""
    compact = sign(HEAD, '{"deep":' + "[" * 600 + "]" * 600 + "}")
    with pytest.raises(InvalidToken, match="64 levels"):
        parse(compact)
    monkeypatch.setattr("kong_claude.jwt_claims.token.too_deep", lambda value: False)
    assert "deep" in parse(compact).claims


def test_a_claim_nested_as_deeply_as_allowed_is_handed_on(send: Send) -> None:
    inner = json.loads("[" * 62 + "]" * 62)
    event, request = send(config(forward_claims=["deep"]), bearer(token(deep=inner)))
    assert event.exit is None
    assert request.shared["claude_identity"]["who"]["claims"] == {"deep": inner}
