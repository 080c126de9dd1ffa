"""A page of the dashboard, as an answer."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import HTMLResponse

from claude_invoker.api.links import base
from claude_invoker.dashboard.guard import HEADERS
from claude_invoker.dashboard.render import html


def home(request: Request) -> str:
    return f"{base(request)}/dashboard"


def page(request: Request, name: str, status: int = 200, **values: object) -> HTMLResponse:
    return HTMLResponse(html(name, home=home(request), **values), status_code=status, headers=HEADERS)
