"""Content negotiation for `POST /invoke` (RFC 9110, section 12.5.1), as far as an answer can differ."""

from __future__ import annotations

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
    best, best_quality = JSON, 0.0
    for part in (accept or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if "/" not in name:
            continue
        quality = _quality(parameters)
        if quality > best_quality:
            best, best_quality = name, quality
    return JSON if best in (*_ANY, "application/problem+json") else best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
