"""What an issuer of tokens is asked over HTTP: where its endpoints are, and one form at a time.

The libraries for OAuth clients (Authlib, requests-oauthlib) have neither discovery nor the waiting of the device flow,
and want an HTTP client beside the standard library's; what is left is three forms.
"""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlencode, urlsplit

from kong_claude.no_redirects import NoRedirects
from kong_claude.problem import Problem

TIMEOUT_S = 30
_MAX_BYTES = 1 << 20
_TEXT = re.compile(r"[!-~]+")


class Unreachable(Problem):
    """The issuer did not answer as one: it may be asked again."""


class Refused(Problem):
    """The issuer answered with an error of OAuth's; `code` is its name (RFC 6749 section 5.2)."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(f"{code}: {said}" if said else code)
        self.code = code


@dataclass(frozen=True)
class Endpoints:
    """Where an issuer is asked; None: it has no such endpoint."""

    token: str
    device: str | None
    revocation: str | None


def discover(issuer: str) -> Endpoints:
    """The issuer's own document (OpenID Connect Discovery, else RFC 8414). Raises Problem."""
    _check(issuer, "--issuer")
    document = _document(issuer)
    if document.get("issuer") != issuer:
        raise Problem(f"that provider calls itself {printable(document.get('issuer'))}: --issuer must be the same text")

    def endpoint(name: str) -> str | None:
        address = document.get(name)
        if address is None:
            return None
        if isinstance(address, str):
            _check(address, f"the issuer's {name}", loopback=_loopback(issuer))
            return address
        raise Problem(f"the issuer's {name} is no address")

    token = endpoint("token_endpoint")
    if token is None:
        raise Problem(f"{issuer} has no token endpoint")
    return Endpoints(token, endpoint("device_authorization_endpoint"), endpoint("revocation_endpoint"))


def _document(issuer: str) -> dict[str, Any]:
    parts = urlsplit(issuer)
    of_oauth = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path.rstrip('/')}"
    for address in (f"{issuer.rstrip('/')}/.well-known/openid-configuration", of_oauth):
        status, body = _ask(urllib.request.Request(address))
        if status == 200:
            return _members(body, address)
        if status != 404:
            raise Unreachable(f"{address} answers with status {status}")
    raise Problem(f"{issuer} publishes no document of its endpoints: is it the issuer?")


def send(endpoint: str, form: Mapping[str, str | None]) -> dict[str, Any]:
    """The members of a good answer (empty where there is none). Raises Refused, and Unreachable."""
    given = {name: value for name, value in form.items() if value is not None}
    request = urllib.request.Request(endpoint, urlencode(given).encode(), {"Accept": "application/json"})
    status, body = _ask(request)
    if status == 200:
        return _members(body, endpoint) if body else {}
    found = _members(body, endpoint, status)
    code = found.get("error")
    if status >= 500 or not isinstance(code, str):
        raise Unreachable(f"{endpoint} answers with status {status}")
    said = printable(found.get("error_description", ""))
    # A provider that repeats what it was sent must not have it printed.
    told = any(len(value) >= 16 and value in said for value in given.values())
    raise Refused(printable(code), "" if told else said)


def _opener() -> urllib.request.OpenerDirector:
    # Through a proxy only what it cannot read.
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme == "https"}
    return urllib.request.build_opener(NoRedirects, urllib.request.ProxyHandler(proxies))


def _ask(request: urllib.request.Request) -> tuple[int, bytes]:
    """Status and body, all of it within `TIMEOUT_S`: that of a socket begins anew with each byte, and who waits here
    may hold the lock of all logins, and signals back. Raises Unreachable."""
    answered: SimpleQueue[tuple[int, bytes] | Unreachable] = SimpleQueue()

    def ask() -> None:
        try:
            answered.put(_answer(request))
        except Unreachable as problem:
            answered.put(problem)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answered.get(timeout=TIMEOUT_S)
    except Empty:
        raise Unreachable(f"{request.full_url} has not answered within {TIMEOUT_S} seconds") from None
    if isinstance(found, Unreachable):
        raise found
    return found


def _answer(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        try:
            answer = _opener().open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read(_MAX_BYTES)
    # http.client's own errors (a broken answer) are neither OSError nor ValueError, and may quote what came.
    except Exception as error:
        why = getattr(error, "reason", None) or type(error).__name__
        raise Unreachable(f"{request.full_url} cannot be asked: {printable(why)}") from None


def _members(body: bytes, address: str, status: int = 200) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unreachable(f"{address} answers with status {status} and no JSON object")
    return found


def _check(address: str, what: str, *, loopback: bool = True) -> None:
    """Nothing goes over a network that others read. Raises Problem."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  raises where it is none
    except ValueError:
        raise Problem(f"{what} is no address: {printable(address)}") from None
    if not (_TEXT.fullmatch(address) and parts.hostname) or parts.username is not None or parts.fragment:
        raise Problem(f"{what} is no address: {printable(address)}")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback and _loopback(address)):
        raise Problem(f"{what} must begin with https:// (http:// only on this machine): {address}")


def _loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(address: Any, what: str) -> str:
    """An address from the issuer that a person is to open. Raises Problem."""
    if not isinstance(address, str):
        raise Problem(f"the issuer names no {what}")
    _check(address, f"the issuer's {what}")
    return address


def printable(text: Any) -> str:
    """What comes from elsewhere, for a terminal: one short line without control characters."""
    kept = "".join(letter if letter.isprintable() else " " for letter in str(text)[:300])
    return " ".join(kept.split())
