"""What a plugin may ask of Kong about the current request, each asked once.

A PDK call is a round trip to Kong (about 40 µs of Kong's CPU), so every answer is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace
from propcache.api import cached_property

from claude_contract.claims import Additions, Attestation, Limits
from claude_contract.identity import Identity, identity_from_shared
from kong_claude.decision import Claims, Pass

MAX_HEADERS = 1000  # the most that kong.request.get_headers returns
_NORMAL_PATH = re.compile(r"(?:/(?!\.)[!#$&'()*+,:;=@\[\]A-Za-z0-9\-_.~]+)*/?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:#@/+=-]{1,128}")


class RequestLine(NamedTuple):
    """The request line as the client sent it: `path` is raw (still escaped), `query` without `?`."""

    method: str
    path: str
    query: str


def answer(value: Any) -> Any:
    """The data of a PDK call: stock kong-pdk returns `(data, error)` in its Lua style, else the data alone."""
    return value[0] if isinstance(value, tuple) else value


def text(value: Any) -> str:
    """Kong's strings come as str or bytes; bytes that are not UTF-8 are kept as surrogates, never dropped."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


class Request:
    """One request, seen through the PDK, and what stages have found about it so far.

    `attestation`: what earlier plugins found, or a fresh one; None where this plugin signs nothing (see `pipeline`).
    """

    def __init__(self, kong: Any, *, static_line: RequestLine | None = None) -> None:
        self.kong = kong
        self.attestation: Attestation | None = None
        self.limits: Limits | None = None
        self.additions: Additions | None = None
        self._identity: Identity | None = None
        self._static_line = static_line
        if static_line is not None:
            self.line = static_line
        self._body: bytes | None = None

    @cached_property
    def headers(self) -> Mapping[str, list[str]]:
        """Lower-case name → values in order. One call."""
        raw = answer(self.kong.request.get_headers(MAX_HEADERS)) or {}
        return {
            (name if type(name) is str else text(name)).lower(): value
            if type(value) is list and len(value) == 1 and type(value[0]) is str
            else [text(v) for v in (value if isinstance(value, list) else [value])]
            for name, value in raw.items()
        }

    def follow(self, passed: Pass) -> None:
        """Shows the next stage what the next plugin would see: the request with this stage's effects."""
        if passed.upstream_headers or passed.body is not None:
            headers = dict(self.headers)
            for name, value in passed.upstream_headers.items():
                if value is None:
                    headers.pop(name.lower(), None)
                else:
                    headers[name.lower()] = [value]
            if passed.body is not None:
                self._body = passed.body
                headers["content-length"] = [str(len(passed.body))]
            self.headers = headers
            self.__dict__.pop("_folded", None)
        if passed.raw_query is not None:
            self.raw_query = passed.raw_query
        if passed.consumer is not None:
            self.consumer = passed.consumer[0]

    def header(self, name: str) -> str | None:
        """The first value of a header (`name` in lower case), or None."""
        values = self.headers.get(name)
        return values[0] if values else None

    def spellings(self, name: str) -> list[str]:
        """The names under which the client sent `name` (lower case): nginx passes `x_a` and `x-a`, WSGI folds them."""
        plain = [name] if name in self.headers else []
        return plain + self._folded[name] if name in self._folded else plain

    def sent(self, name: str) -> list[str]:
        """The values of a header (`name` in lower case) under whatever spelling the client used."""
        if not self._folded:
            return self.headers.get(name, [])
        return [value for spelling in self.spellings(name) for value in self.headers[spelling]]

    def spellings_of(self, names: frozenset[str]) -> list[str]:
        """The spellings of all these names, in no order."""
        if not self._folded and names.isdisjoint(self.headers):
            return []
        return [spelling for name in names for spelling in self.spellings(name)]

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        """The names that the client wrote with an underscore."""
        folded: dict[str, list[str]] = {}
        if "_" not in "".join(self.headers):
            return folded
        for name in self.headers:
            if "_" in name:
                folded.setdefault(name.replace("_", "-"), []).append(name)
        return folded

    @property
    def too_many_headers(self) -> bool:
        """Kong cuts the list at MAX_HEADERS: then what was cut could hide anything."""
        return sum(map(len, self.headers.values())) >= MAX_HEADERS

    @cached_property
    def line(self) -> RequestLine:
        """Method, raw path and query. Free where the configuration fixes them, else one call."""
        method, _, rest = text(answer(self.kong.nginx.get_var("request")) or "").partition(" ")
        target = rest.rpartition(" ")[0] or rest
        path, _, query = target.partition("?")
        return RequestLine(method, path, query)

    @cached_property
    def upstream_path(self) -> str:
        """The path as the service gets it, which an attestation is bound to. Free where it has its normal form; else
        one call: Kong decodes and merges what the route matches (kong/tools/uri.lua)."""
        if _NORMAL_PATH.fullmatch(self.line.path):
            return self.line.path
        path, _, _ = text(answer(self.kong.nginx.get_var("upstream_uri")) or "").partition("?")
        return path or self.line.path

    @cached_property
    def raw_query(self) -> str:
        """The query string without `?`. Free with `line`, unless the configuration fixes that: then one call."""
        if self._static_line is None:
            return self.line.query
        return text(answer(self.kong.request.get_raw_query()) or "")

    def body(self, limit: int) -> bytes | None:
        """The request body, or None where it is larger than `limit` bytes. One call.

        With an explicit limit Kong also reads a body that it spilled to disk (without one it answers 500). A spilled
        body over the limit is a Lua error, 500 and no answer to the plugin: so the declared length is asked first.
        """
        length = self.header("content-length")
        if length is not None and not (length.isdecimal() and int(length) <= limit):
            return None
        if self._body is None:
            raw = answer(self.kong.request.get_raw_body(limit))
            if raw is None:  # on disk and larger than the limit
                return None
            self._body = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else bytes(raw)
        return self._body if len(self._body) <= limit else None

    @property
    def body_seen(self) -> bytes | None:
        """The body if a stage has read it."""
        return self._body

    @cached_property
    def client_ip(self) -> str:
        """The client's address behind trusted proxies. One call."""
        return text(answer(self.kong.client.get_forwarded_ip()) or "")

    @cached_property
    def consumer(self) -> Mapping[str, Any] | None:
        """The authenticated Kong consumer. One call."""
        return answer(self.kong.client.get_consumer()) or None

    @cached_property
    def captures(self) -> Mapping[str, str]:
        """Named captures of the route's regular expression. One call."""
        found = answer(self.kong.request.get_uri_captures()) or {}
        named = found.get("named") or {}
        return {text(k): text(v) for k, v in named.items()} if isinstance(named, Mapping) else {}

    @cached_property
    def id(self) -> str:
        """The request id: the correlation-id plugin's header where there is one, else Kong's own (one call)."""
        for name in ("x-request-id", "kong-request-id"):
            given = self.header(name)
            if given and _REQUEST_ID.fullmatch(given):
                return given
        return text(answer(self.kong.nginx.get_var("kong_request_id")) or "")

    def learn(self, claims: Claims | None) -> None:
        """What a stage has found, for the stages after it and for the attestation."""
        if isinstance(claims, Identity):
            self._identity = claims
        elif isinstance(claims, Limits):
            self.limits = claims
        elif claims is not None:
            self.additions = claims

    @property
    def attested_identity(self) -> Identity | None:
        """Who is calling, as a stage found it or the attestation says."""
        if self._identity is None and self.attestation is not None:
            return self.attestation.identity
        return self._identity

    @property
    def known_identity(self) -> Identity | None:
        """As `identity`, as far as it is known without a call."""
        return self.attested_identity or self.__dict__.get("_shared_identity")

    @property
    def known_limits(self) -> Limits | None:
        """The caller's tier with its bounds, as a stage found it or the attestation says."""
        return self.limits or (self.attestation.limits if self.attestation else None)

    @property
    def identity(self) -> Identity | None:
        """Who is calling, as an earlier stage or plugin established it, in the tier that applies; None if nobody did.

        Comes free from the attestation; only where none is configured it costs one call.
        """
        found = self.attested_identity or self._shared_identity
        if found is not None and self.limits is not None and self.limits.tier != found.tier:
            return replace(found, tier=self.limits.tier)
        return found

    @cached_property
    def _shared_identity(self) -> Identity | None:
        return identity_from_shared(answer(self.kong.ctx.shared.get("claude_identity")))
