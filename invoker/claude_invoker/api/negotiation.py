"""Content negotiation for `POST /invoke` (RFC 9110, section 12.5.1), as far as an answer can differ."""

from __future__ import annotations

import itertools

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
_ANY = ("*/*", "application/*", "*")  # Java's own client says "*"


def takes_json(accept: str | None) -> bool:
    """Whether JSON is among what the client takes, even if it likes something else more."""
    for part in (accept or "*/*").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name in (JSON, *_ANY, "application/problem+json") and _quality(parameters) > 0:
            return True
    return False


def preferred(accept: str | None) -> str:
    """The media type to answer with: the one of highest quality that is named first; JSON by default."""
    return next(iter(_ranked(accept)), JSON)


def before_json(accept: str | None) -> tuple[str, ...]:
    """The media types that a client likes more than JSON, the best first."""
    return tuple(itertools.takewhile(lambda name: name != JSON, _ranked(accept)))


def _ranked(accept: str | None) -> list[str]:
    """What it takes, the best first; all that JSON goes for is JSON."""
    found: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if "/" in name and (quality := _quality(parameters)) > 0:
            found.append((quality, JSON if name in (*_ANY, "application/problem+json") else name))
    return [name for _, name in sorted(found, key=lambda each: -each[0])]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
