"""A file that a run left, or that was uploaded, as an HTTP answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from claude_invoker.head import asked_method
from claude_invoker.model import Artifact
from claude_invoker.problem import Problem


class Readable(Protocol):
    """Files that artifacts stand for, as `runs.kept.Files`: on this machine's disk, or read from elsewhere."""

    def here(self, artifact: Artifact) -> Path | None: ...

    async def read(self, artifact: Artifact, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]: ...


_RANGE = r"(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})"
_NAME = "!#$&+^`|"
"""What else a name may have as it is (RFC 8187, attr-char)."""
_RANGES = re.compile(rf"bytes=[ \t]*({_RANGE}(?:[ \t]*,[ \t]*{_RANGE}){{0,9}})", re.IGNORECASE)


async def file_answer(request: Request, files: Readable, found: Artifact) -> Response:
    """Its type by content, its SHA-256 as ETag, ranges; 304 where the client has it. Raises Problem 416; 404, 503
    where it cannot be had."""
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
    wanted = request.headers.get("range")
    ranges: list[str] | None = None
    if wanted is not None:
        ranges = satisfiable(wanted, found.size)
        if ranges == []:
            none = f"the file has {found.size} bytes, and none of them is in this range"
            raise Problem(416, "range-not-satisfiable", none, {"Content-Range": f"bytes */{found.size}"})
        # FileResponse answers 400 or 416 where RFC 9110 has a part of them, or all of the file.
        others = [line for line in request.scope["headers"] if line[0] != b"range"]
        new = [(b"range", f"bytes={','.join(ranges)}".encode())] if ranges else []
        request.scope["headers"] = others + new
    if (path := files.here(found)) is not None:
        return FileResponse(path, media_type=found.type, headers=headers)
    if request.headers.get("if-range", etag) != etag:
        ranges = None
    return await _streamed(request, files, found, ranges, headers)


async def file_itself(request: Request, files: Readable, found: Artifact, headers: dict[str, str]) -> Response:
    """All of it. Raises Problem 404, 503."""
    if (path := files.here(found)) is not None:
        return FileResponse(path, media_type=found.type, headers=headers)
    return await _streamed(request, files, found, None, headers)


def disposition(path: str) -> str:
    """To be kept under the file's own name (RFC 6266, RFC 8187): a browser shows nothing of it as a page of this
    origin."""
    name = path.rsplit("/", 1)[-1]
    plain = "".join(each if each.isascii() and each.isprintable() and each not in '"\\%' else "_" for each in name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe=_NAME)}"
    return f'attachment; filename="{plain}"{extended}'


async def _streamed(
    request: Request, files: Readable, found: Artifact, ranges: list[str] | None, headers: dict[str, str]
) -> Response:
    """From the store, in one piece: of several ranges none is taken, which RFC 9110 leaves to us (14.2)."""
    start, end = 0, found.size
    status = 200
    if ranges is not None and len(ranges) == 1:
        status = 206
        start, end = _bounds(ranges[0], found.size)
        headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{found.size}"}
    headers = headers | {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
    if asked_method(request) == "HEAD":
        return Response(status_code=status, media_type=found.type, headers=headers)
    pieces = await files.read(found, start, end)
    return StreamingResponse(pieces, status_code=status, media_type=found.type, headers=headers)


def _bounds(part: str, size: int) -> tuple[int, int]:
    """First byte, and the one after the last, of a range that has some."""
    first, _, last = part.partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), size if not last else min(size, int(last) + 1)


def satisfiable(wanted: str, size: int) -> list[str] | None:
    """Those ranges of a Range header that have a byte of a file of so many. None where it is to be ignored: another
    unit, a form that is none, more than ten ranges (RFC 9110, section 14.2)."""
    given = _RANGES.fullmatch(wanted.strip())
    if given is None:
        return None
    found = []
    for part in given[1].replace("\t", " ").split(","):
        first, _, last = part.strip().partition("-")
        if first and last and int(first) > int(last):
            return None
        if int(first) < size if first else int(last) > 0 < size:
            found.append(f"{first}-{last}")
    return found
