"""jwt (kong/plugins/jwt/handler.lua, jwt_parser.lua)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from minikong import cjson
from minikong.bundled.authentication import Denied, refusal, set_consumer
from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.luavalue import LuaError, tostring
from minikong.pdk.nginx import variable
from minikong.pdk.registry import Exit
from minikong.pdk.request import first, get_headers, get_query, lookup

_BEARER = re.compile(rb"\s*[Bb]earer\s+(.+)")
_HASHES: dict[str, Any] = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
ALGORITHMS = frozenset([kind + size for kind in ("HS", "RS", "ES", "PS") for size in ("256", "384", "512")] + ["EdDSA"])


class Jwt:
    name = "jwt"
    priority = 1450
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        if not conf.get("run_on_preflight", True) and ctx.request.method == "OPTIONS":
            return
        anonymous = conf.get("anonymous")
        if anonymous and ctx.credential is not None:
            return
        try:
            self._authenticate(ctx, conf)
        except _Refused as refused:
            if not anonymous:
                ctx.exited = True
                raise Exit(401, refused.body, refused.headers) from None
            config = self.gateway.config
            consumer = config.consumers.get(anonymous) or config.consumer_by_username(anonymous)
            set_consumer(ctx, consumer, None)
        except Denied as denied:
            raise refusal(ctx, denied) from None

    def _authenticate(self, ctx: Context, conf: dict[str, Any]) -> None:
        realm = conf.get("realm")
        base = f'Bearer realm="{realm}"' if realm else "Bearer"
        invalid = base + ' error="invalid_token"'
        tokens = _tokens(ctx, conf)
        if not tokens:
            raise _Refused("Unauthorized", base)
        if len(tokens) > 1:
            raise _Refused("Multiple tokens provided", invalid)
        token = tokens.pop()
        if not isinstance(token, bytes):
            raise _Refused("Unrecognizable token", invalid)
        try:
            header, claims, signature, signed = _decode(token)
        except ValueError as problem:
            raise _Refused(f"Bad token; {problem}", invalid) from None
        claim = conf["key_claim_name"]
        key = claims.get(claim.encode()) or header.get(claim.encode())
        if key is None or key is False:
            raise _Refused(f"No mandatory '{claim}' in claims", invalid)
        if key == b"":
            raise _Refused(f"Invalid '{claim}' in claims", invalid)
        config = self.gateway.config
        name = tostring(key).decode("utf-8", "surrogateescape")
        credential = config.credential("jwt_secrets", "key", name)
        if credential is None:
            raise _Refused(f"No credentials found for given '{claim}'", invalid)
        fields = credential.fields
        algorithm = fields.get("algorithm") or "HS256"
        if header.get(b"alg") != algorithm.encode():
            raise _Refused("Invalid algorithm", invalid)
        secret = fields.get("secret") if algorithm.startswith("HS") else fields.get("rsa_public_key")
        if not secret:
            raise _Refused("Invalid key/secret", invalid)
        raw = secret.encode("utf-8", "surrogateescape")
        if algorithm.startswith("HS") and conf.get("secret_is_base64"):
            raw = _base64(raw)
        if not verify(algorithm, signed, signature, raw):
            raise _Refused("Invalid signature", invalid)
        problems = _check_claims(claims, conf.get("claims_to_verify") or ())
        problems = problems or _check_expiration(claims, conf.get("maximum_expiration") or 0)
        if problems:
            raise _Refused(problems, invalid)
        set_consumer(ctx, config.consumers.get(credential.consumer_id), credential)
        ctx.shared[b"authenticated_jwt_token"] = token


class _Refused(Exception):
    def __init__(self, body: str | dict[Any, Any], challenge: str) -> None:
        super().__init__(body)
        self.body = {b"message": body.encode()} if isinstance(body, str) else body
        self.headers = {b"WWW-Authenticate": challenge.encode()}


def _tokens(ctx: Context, conf: dict[str, Any]) -> set[Any]:
    found: set[Any] = set()
    query = get_query(ctx)
    for name in conf.get("uri_param_names") or ():
        value = query.get(name.encode())
        found.update(t for t in (value if isinstance(value, list) else [value]) if t not in (None, b""))
    for name in conf.get("cookie_names") or ():
        cookie = variable(ctx, "cookie_" + name)
        if cookie:
            found.add(cookie)
    headers = get_headers(ctx)
    for name in conf.get("header_names") or ():
        value = first(lookup(headers, name.encode()))
        match = _BEARER.search(value) if isinstance(value, bytes) else None
        if match:
            found.add(match[1])
    return found


def _base64(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def _decode(token: bytes) -> tuple[dict[Any, Any], dict[Any, Any], bytes, bytes]:
    parts = token.split(b".", 2)
    if len(parts) != 3:
        raise ValueError("invalid JSON")
    try:
        header, claims = cjson.decode(_base64(parts[0])), cjson.decode(_base64(parts[1]))
        signature = _base64(parts[2])
    except ValueError:
        raise ValueError("invalid JSON") from None
    if not isinstance(header, dict):
        raise LuaError("attempt to index local 'header'")
    if header.get(b"alg", b"").decode("latin-1") not in ALGORITHMS:
        raise ValueError("invalid alg")
    if not isinstance(claims, dict):
        raise LuaError("attempt to index local 'claims'")
    return header, claims, signature, parts[0] + b"." + parts[1]


def verify(algorithm: str, signed: bytes, signature: bytes, key: bytes) -> bool:
    """Whether `signature` is good. Raises LuaError for a key that cannot be used."""
    size = algorithm[2:]
    if algorithm.startswith("HS"):
        return hmac.compare_digest(hmac.new(key, signed, getattr(hashlib, f"sha{size}")).digest(), signature)
    try:
        public = serialization.load_pem_public_key(key)
    except ValueError:
        raise LuaError("Consumer Public Key is Invalid") from None
    try:
        if algorithm == "EdDSA" and isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            public.verify(signature, signed)
        elif algorithm.startswith("ES") and isinstance(public, ec.EllipticCurvePublicKey):
            wanted = {"256": 64, "384": 96, "512": 132}[size]
            if len(signature) != wanted:
                raise LuaError(f"Signature must be {wanted} bytes.")
            half = wanted // 2
            der = encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
            public.verify(der, signed, ec.ECDSA(_HASHES[size]()))
        elif isinstance(public, rsa.RSAPublicKey) and algorithm[:2] in ("RS", "PS"):
            digest = _HASHES[size]()
            pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
            public.verify(signature, signed, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _check_claims(claims: dict[Any, Any], wanted: Any) -> dict[Any, Any]:
    problems: dict[Any, Any] = {}
    now = int(time.time())
    for name in wanted:
        value = claims.get(name.encode())
        if isinstance(value, bool) or not isinstance(value, int | float):
            problems[name.encode()] = b"must be a number"
        elif name == "nbf" and value > now:
            problems[b"nbf"] = b"token not valid yet"
        elif name == "exp" and value <= now:
            problems[b"exp"] = b"token expired"
    return problems


def _check_expiration(claims: dict[Any, Any], maximum: float) -> dict[Any, Any]:
    expires = claims.get(b"exp")
    if maximum <= 0:
        return {}
    if isinstance(expires, bool) or not isinstance(expires, int | float) or expires - int(time.time()) > maximum:
        return {b"exp": b"exceeds maximum allowed expiration"}
    return {}
