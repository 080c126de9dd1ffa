"""A page of the dashboard, as an answer."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse

from claude_invoker.api.links import base
from claude_invoker.dashboard.guard import HEADERS
from claude_invoker.dashboard.render import html
from claude_invoker.services import services

_POLICY = "Content-Security-Policy"


def home(request: Request) -> str:
    return f"{base(request)}/dashboard"


def page(request: Request, name: str, status: int = 200, **values: object) -> HTMLResponse:
    headers = _headers(services(request).settings.single_sign_on)
    return HTMLResponse(html(name, home=home(request), **values), status_code=status, headers=headers)


def _headers(sign_on: str | None) -> dict[str, str]:
    """Browsers hold what a form's answer leads to to the policy as well, and the log-out's leads there."""
    there = urlsplit(sign_on or "")
    if not there.netloc:
        return HEADERS
    forms = f"form-action 'self' {there.scheme}://{there.netloc};"
    return HEADERS | {_POLICY: HEADERS[_POLICY].replace("form-action 'self';", forms)}
