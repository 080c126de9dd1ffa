"""A file that a run left, as an HTTP answer."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse

from claude_invoker.model import Artifact


def file_answer(request: Request, directory: Path, found: Artifact) -> Response:
    """Its type by content, its SHA-256 as ETag, ranges; 304 where the client has it."""
    etag = f'"{found.sha256}"'
    headers = {
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
        # What a run wrote must not run as a page of this origin.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private",
    }
    matches = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in matches or "*" in matches:
        return Response(status_code=304, headers=headers)
    return FileResponse(directory / found.path, media_type=found.type, headers=headers)
