"""Errors as problem details (RFC 9457): one table of stable types, one exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PREFIX = "urn:kong-claude:problem:"

TITLES = {
    "bad-request": "The request is not understood",
    "unauthenticated": "No valid attestation of the gateway",
    "forbidden": "This is not allowed",
    "not-found": "It does not exist, or it is not yours",
    "method-not-allowed": "Method not allowed",
    "not-acceptable": "There is nothing of the asked type",
    "range-not-satisfiable": "The range is outside of the file",
    "no-repository": "The repository is not known here, or its server does not have it",
    "no-ref": "The repository has no such branch, tag or commit",
    "repository": "The repository holds what is not checked out",
    "repository-unavailable": "The repository cannot be had now",
    "conflict": "This cannot be done now",
    "gone": "It is not there any more",
    "too-slow": "The request came too slowly",
    "too-large": "The body is too large",
    "invalid": "The request is not valid",
    "too-much-held": "Too much is kept for runs and jobs",
    "no-room": "There is no room on the disk",
    "limit": "The run took more of the machine than it may",
    "unmet-schema": "The answer does not follow output_schema",
    "prompt-rejected": "The model API does not accept this prompt",
    "busy": "The run cannot start now",
    "limited": "A limit of the gateway is reached",
    "not-bookable": "What runs cost cannot be booked now",
    "not-configured": "This part of the service is not configured",
    "api-overloaded": "The model API is overloaded or limits us",
    "api-auth": "The model API does not accept the invoker's key",
    "api-error": "The model API failed",
    "api-unreachable": "The model API does not answer",
    "timeout": "The run took too long",
    "cancelled": "The run was cancelled",
    "worker-lost": "The worker that ran the job is gone",
    "cli-failed": "The Claude CLI failed",
    "mcp-unavailable": "An MCP server cannot be had now",
    "other-release": "Another release stored this",
    "internal": "Internal error",
}


@dataclass
class Problem(Exception):
    """An error with an HTTP face. `kind` is a key of `TITLES`; `api_status` is the model API's own status."""

    status: int
    kind: str
    detail: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    api_status: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The problem+json object."""
        document: dict[str, Any] = {
            "type": PREFIX + self.kind,
            "title": TITLES[self.kind],
            "status": self.status,
        }
        if self.detail:
            document["detail"] = self.detail
        if self.api_status is not None:
            document["api_status"] = self.api_status
        return document | self.extra

    @classmethod
    def of(cls, document: dict[str, Any]) -> Problem:
        """The inverse of `document`, without headers."""
        known = ("type", "title", "status", "detail", "api_status")
        kind = str(document.get("type", "")).removeprefix(PREFIX)
        return cls(
            int(document.get("status", 500)),
            kind if kind in TITLES else "internal",
            document.get("detail", ""),
            api_status=document.get("api_status"),
            extra={name: value for name, value in document.items() if name not in known},
        )

    def __str__(self) -> str:
        return f"{self.status} {self.kind}: {self.detail or TITLES[self.kind]}"
