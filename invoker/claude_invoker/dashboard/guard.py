"""What protects the pages: headers on every answer, who looks at them, and the check that a change was asked for by a
page of ours."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from claude_invoker.api.border import host_of
from claude_invoker.api.replicas import was_forwarded
from claude_invoker.caller import Caller
from claude_invoker.problem import Problem
from claude_invoker.trust import attested

Viewer = Annotated[Caller, Depends(attested)]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers then send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def from_our_page(request: Request) -> None:
    """A FastAPI dependency for whatever changes something. Raises Problem 400, 403.

    The cookie is SameSite=Strict already; this also holds against other ports and subdomains of the same site, and for
    the login, which needs no cookie. `Sec-Fetch-Site` (W3C Fetch Metadata) cannot be set by scripts; where a browser
    does not send it (plain http to another host than localhost) the `Origin` must name our host. What another replica
    hands on it has looked at (so `attested` comes first).
    """
    if was_forwarded(request):
        return
    site = request.headers.get("sec-fetch-site")
    if site is None:
        origin = request.headers.get("origin", "")
        # Kong says by X-Forwarded-Host what the browser asked for, without the port.
        ours = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
        host = host_of("Origin", origin) if origin.startswith(("http://", "https://")) else None
        allowed = host is not None and host == host_of("Host", f"//{ours}")
    else:
        allowed = site == "same-origin"
    if not allowed:
        what = "this must be asked for by a page of the dashboard: open it again and press its button there"
        raise Problem(403, "forbidden", what)
