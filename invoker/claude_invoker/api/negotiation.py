"""Content negotiation for `POST /invoke` (RFC 9110, section 12.5.1), as far as an answer can differ."""

from __future__ import annotations

import itertools

from claude_invoker.api.waiting import NOT_AGAIN
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem
from claude_invoker.runs import media

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
_PROBLEM = "application/problem+json"
_ANY = "*/*"


def takes_json(accept: str | None) -> bool:
    """Whether JSON is among what the client takes, even if it likes something else more: as the most specific of the
    ranges says that it is in."""
    ranges = _ranges(accept or _ANY)
    for level in (JSON, _PROBLEM, "application/*", _ANY):
        if found := [quality for quality, name in ranges if name == level]:
            return max(found) > 0
    return False


def preferred(accept: str | None) -> str:
    """The media type to answer with: the one of highest quality that is named first; JSON by default."""
    return next(iter(_ranked(accept)), JSON)


def refuse_what_no_run_gives(accept: str | None, plan: Plan) -> None:
    """Before a run that would cost, and whose answer could be none of what its client takes. Raises Problem 406."""
    if takes_json(accept):
        return
    kinds = _ranked(accept)
    is_a_file = any(map(media.may_be, kinds))
    if EVENT_STREAM in kinds or (is_a_file and plan.may_leave_files):
        return
    why = "a run with these tools leaves no files" if is_a_file else "a run leaves no file of such a type"
    detail = f"Accept takes neither {JSON} nor {EVENT_STREAM}, and {why}"
    raise Problem(406, "not-acceptable", detail, dict(NOT_AGAIN))


def before_json(accept: str | None) -> tuple[str, ...]:
    """The media types that a client likes more than JSON, the best first."""
    return tuple(itertools.takewhile(lambda name: name != JSON, _ranked(accept)))


def _ranked(accept: str | None) -> list[str]:
    """What it takes, the best first; all that JSON goes for is JSON, unless the client takes none: then anything is an
    event stream."""
    ranges = _ranges(accept or "")
    of_json = dict.fromkeys((_ANY, "application/*", _PROBLEM), JSON)
    stands_for = of_json if takes_json(accept) else {_ANY: EVENT_STREAM}
    taken = sorted((each for each in ranges if each[0] > 0), key=lambda each: -each[0])
    return [stands_for.get(name, name) for _, name in taken]


def _ranges(accept: str) -> list[tuple[float, str]]:
    """Each media range with its quality."""
    found = []
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if "/" in name or name == "*":  # as Java's own client says
            found.append((_quality(parameters), _ANY if name == "*" else name))
    return found


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
