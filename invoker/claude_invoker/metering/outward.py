"""How the API is reached where a machine gets to the internet by a proxy only, by the variables that all programs read:
HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, each in small letters too; and SSL_CERT_FILE, for one that reads along."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import httpx

from claude_invoker.egress.addresses import is_loopback
from claude_invoker.metering.wire import Upstream

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
_TIMEOUT = httpx.Timeout(None, connect=10.0)


def proxy_for(base_url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy for the API's address; None where it is asked directly: no variable says otherwise, NO_PROXY names it,
    or it is this machine. Raises ValueError for one that is none of HTTP; the text has no more of it than its kind."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    given = {name.lower(): value for name, value in sorted(environment.items()) if name.lower().endswith("_proxy")}
    proxy = given.get(f"{parts.scheme}_proxy") or given.get("all_proxy")
    if not proxy or is_loopback(host):
        return None
    place = parts.netloc.rpartition("@")[2]
    if _bypass(place, {"no": given.get("no_proxy", "")}):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    kind = urlsplit(proxy).scheme
    if kind not in ("http", "https") or not urlsplit(proxy).hostname:
        raise ValueError(f"{parts.scheme.upper()}_PROXY: the API is reached by a proxy of http or https, not {kind}")
    return proxy


_bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # as requests asks it


def client(upstreams: Iterable[Upstream], certificates: str | None = None) -> httpx.AsyncClient:
    """A client that reads no environment, and takes each proxy for its address alone. `certificates`: a file of
    authorities that are trusted beside the usual ones. Raises OSError, ssl.SSLError for one that cannot be read."""
    context = httpx.create_ssl_context(trust_env=False)
    if certificates is not None:
        context.load_verify_locations(cafile=certificates)
    by = {
        each.base_url: httpx.AsyncHTTPTransport(proxy=each.proxy, verify=context, limits=_LIMITS)
        for each in upstreams
        if each.proxy is not None
    }
    return httpx.AsyncClient(verify=context, timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, mounts=by)
