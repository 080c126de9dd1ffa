"""What a browser is shown where a page of the dashboard cannot be had: a page, too."""

from __future__ import annotations

from fastapi import Request, Response

from claude_invoker.dashboard.pages import page
from claude_invoker.problem import TITLES, Problem
from claude_invoker.services import services


def trouble(request: Request, problem: Problem) -> Response | None:
    """None where nobody asks for a page, or not for one of the dashboard: then it is a problem as for programs."""
    inside = request.scope["path"].removeprefix(services(request).settings.prefix)
    if not (inside + "/").startswith("/dashboard/") or "text/html" not in request.headers.get("accept", ""):
        return None
    title, forbidden = TITLES[problem.kind], problem.status == 403
    answer = page(request, "trouble", problem.status, title=title, detail=problem.detail, forbidden=forbidden)
    answer.headers.update(problem.headers)
    return answer
