"""By which proxy the API is asked, where a machine gets to the internet by one only: by the variables that all programs
read, HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, each in small letters too. Pure, and apart from what asks: the
invoker has no use for that one's library."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from claude_invoker.egress.addresses import is_loopback


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
