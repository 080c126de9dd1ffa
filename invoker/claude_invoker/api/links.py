"""Links in answers: they carry the prefix by which the request came."""

from __future__ import annotations

from fastapi import Request

from claude_invoker.hrefs import result_with_hrefs, with_hrefs
from claude_invoker.model import Artifact, RunResult, RunView
from claude_invoker.services import services


def base(request: Request) -> str:
    """The public prefix where the request used it, else nothing."""
    prefix: str = services(request).settings.prefix
    return prefix if prefix and request.scope["path"].startswith(prefix + "/") else ""


def with_links(request: Request, result: RunResult) -> RunResult:
    return result_with_hrefs(base(request), result)


def view_with_links(request: Request, view: RunView) -> RunView:
    return view.model_copy(
        update={
            "artifacts": linked(request, view.id, view.artifacts),
            "result": None if view.result is None else with_links(request, view.result),
        }
    )


def linked(request: Request, run_id: str, artifacts: list[Artifact]) -> list[Artifact]:
    return with_hrefs(base(request), run_id, artifacts)
