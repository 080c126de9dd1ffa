"""How a refusal looks to the client: Kong's shape, or RFC 9457 problem details where the client asks for them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from kong_claude.decision import Refuse

PROBLEM = "application/problem+json"


def wants_problem(accept: str | None) -> bool:
    """True where the Accept header names problem+json with a weight above zero."""
    for part in (accept or "").lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        if media == PROBLEM:
            return not any(p.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for p in parameters)
    return False


def render(refusal: Refuse, *, request_id: str, accept: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a refusal. The body is a JSON object; Kong encodes it and sets the length."""
    headers = dict(refusal.headers)
    if wants_problem(accept):
        headers["Content-Type"] = PROBLEM
        try:
            title = HTTPStatus(refusal.status).phrase
        except ValueError:
            title = "Error"
        body: dict[str, Any] = {
            "type": f"urn:kong-claude:problem:{refusal.reason}",
            "title": title,
            "status": refusal.status,
            "detail": refusal.message,
        }
    else:
        body = {"message": refusal.message}
    body.update(refusal.detail)
    if request_id:
        body["request_id"] = request_id
    return body, headers
