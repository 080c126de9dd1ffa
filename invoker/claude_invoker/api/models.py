"""The names under which a run is had on the paths of the vendors' APIs: `claude-code`, `claude-code-sonnet`, …"""

from __future__ import annotations

from claude_invoker.api.problems import wrong
from claude_invoker.settings import Settings

RUN = "claude-code"
FAMILIES = ("haiku", "sonnet", "opus")
"""Shown where the operator names no models; a run takes any name that the caller's tier allows."""


def shown(settings: Settings) -> list[str]:
    """The names that a list of models has. Which of them a caller may use the tier says, when a run is asked for."""
    return [RUN, *(f"{RUN}-{name}" for name in settings.models or FAMILIES)]


def of_run(name: object) -> str | None:
    """The model that a run is asked for by a name; None: whichever a run has. Raises Problem 422."""
    if not isinstance(name, str) or not name:
        raise wrong([{"at": "model", "error": "must be the name of a model"}])
    if name == RUN:
        return None
    if name.startswith(f"{RUN}-"):
        return name.removeprefix(f"{RUN}-")
    raise wrong(
        [
            {
                "at": "model",
                "error": f"must be {RUN}, or {RUN}-MODEL such as {RUN}-sonnet, which start a run: "
                "requests to a model itself are not passed on here",
            }
        ]
    )
