"""The names under which a run is had on the paths of the vendors' APIs: `claude-code`, `claude-code-sonnet`, …; and
under Anthropic's those of models themselves."""

from __future__ import annotations

from claude_contract.kinds import RUN, names_run
from claude_invoker.api.problems import wrong
from claude_invoker.metering.models import permits
from claude_invoker.metering.prices import public_names
from claude_invoker.settings import Settings

FAMILIES = ("haiku", "sonnet", "opus")
"""Shown where the operator names no models; a run takes any name that the caller's tier allows."""


def runs(settings: Settings) -> list[str]:
    """The names of runs that a list of models has. Which of them a caller may use his tier says."""
    return [RUN, *(f"{RUN}-{name}" for name in settings.models or FAMILIES)]


def all_names(settings: Settings) -> list[str]:
    """The same with the models themselves of which the price is known."""
    named = dict.fromkeys([*public_names(), *settings.prices])
    return [*runs(settings), *(name for name in named if permits(settings.models or None, name))]


def of_run(name: object) -> str | None:
    """The model that a run is asked for by a name; None: whichever a run has. Raises Problem 422."""
    if not isinstance(name, str) or not name:
        raise wrong([{"at": "model", "error": "must be the name of a model"}])
    if names_run(name):
        return name.removeprefix(RUN).removeprefix("-") or None
    raise wrong(
        [
            {
                "at": "model",
                "error": f"must be {RUN}, or {RUN}-MODEL such as {RUN}-sonnet, which start a run: "
                "requests to a model itself are passed on at /v1/messages",
            }
        ]
    )
