"""A form (RFC 7578) of a run's request and its files, taken apart while it comes: files go to the disk piece by piece.

What is wrong with it is a problem of 4xx, as with all that the API parses (see `border`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.multipart import parse_options_header

from claude_invoker.api.border import content_length, understood
from claude_invoker.problem import Problem
from claude_invoker.workspace.files import Names
from claude_invoker.workspace.intake import Intake

_log = logging.getLogger(__name__)
MEDIA = "multipart/form-data"
_MOST_FILES = 1000
_PIECE = 1 << 20
"""Bytes that wait for the disk: each is a thread's work, not that of the loop that all requests share."""


@dataclass(frozen=True)
class Form:
    """`request`: its part of that name. `archive` and `files`, by their paths in the run's directory, lie in
    `directory`. `digest`: of these."""

    directory: Path
    request: bytes
    files: tuple[tuple[str, Path], ...]
    archive: Path | None
    digest: str


@contextlib.asynccontextmanager
async def form_of(
    request: Request,
    intake: Intake,
    subject: str,
    max_request: int,
    max_form: int,
    while_coming: contextlib.AbstractAsyncContextManager[None],
) -> AsyncIterator[Form]:
    """The form in the body, which is read within `while_coming`. Its directory is deleted in the end unless something
    was started with it (`request.state.started`).

    For a request whose caller is `attested_form`. Raises Problem 400, 413, 415, 422; 503 and 507 where it cannot be
    stored; what `while_coming` does.
    """
    with understood("Content-Type"):
        media, options = parse_options_header(request.headers.get("content-type"))
    if media.decode("latin-1") != MEDIA or not options.get(b"boundary"):
        raise Problem(415, "bad-request", f"the body must be {MEDIA}, with a boundary")
    length = content_length(dict(request.scope["headers"]).get(b"content-length")) or max_form
    directory = None
    try:
        async with while_coming:
            with stored():
                directory = await intake.made(subject, length)
                parts = _Parts(directory, max_request)
                await _read(request, parts, options[b"boundary"])
        yield parts.form()
    finally:
        if directory is not None and not request.state.started:
            await asyncio.to_thread(intake.delete, directory)


@contextlib.contextmanager
def stored() -> Iterator[None]:
    """Raises Problem 503 for an OSError within."""
    try:
        yield
    except OSError as error:
        _log.error("what a caller sends cannot be stored: %s", error.strerror)
        raise Problem(503, "busy", "the files cannot be stored now", {"Retry-After": "10"}) from error


async def _read(request: Request, parts: _Parts, boundary: bytes) -> None:
    with understood("the form's boundary"):
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.opened,
                "on_part_data": parts.data,
                "on_part_end": parts.closed,
                "on_end": parts.end,
            },
        )

    def feed(data: bytes) -> None:
        try:
            parser.write(data)
        except (Problem, OSError):
            raise
        except Exception as error:  # parsers fail over bytes in more ways than they say
            raise Problem(400, "bad-request", "the form is not understood") from error

    try:
        async for piece in pieces(request.stream()):
            await asyncio.to_thread(feed, piece)
    finally:
        parts.close()


async def pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth a thread's work; the last one may be short, and empty."""
    waiting = bytearray()
    async for piece in stream:
        waiting += piece
        if len(waiting) >= _PIECE:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


class _Parts:
    """What the parser tells, as it comes."""

    def __init__(self, directory: Path, max_request: int) -> None:
        self._directory = directory
        self._max_request = max_request
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._request: bytearray | None = None
        self._archive: Path | None = None
        self._files: dict[str, Path] = {}
        self._names = Names()
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._of_part = hashlib.sha256()
        self._path = ""
        self._ended = False

    def begin(self) -> None:
        self._headers.clear()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._headers[name.lower()] = value
        for part in self._header:
            part.clear()

    def opened(self) -> None:
        """All headers of a part are there. Raises Problem, OSError."""
        _, said = parse_options_header(self._headers.get(b"content-disposition"))
        name = said.get(b"name", b"").decode("utf-8", "replace")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise Problem(422, "invalid", "a part has a Content-Transfer-Encoding: send its bytes as they are")
        self._of_part, self._path = hashlib.sha256(), ""
        if name == "request" and self._request is None:
            self._request = bytearray()
        elif name == "archive" and self._archive is None:
            self._archive = self._directory / "archive"
            self._file = self._archive.open("xb")
        elif name == "files":
            self._open_file(said.get(b"filename", b""))
        elif name in ("request", "archive"):
            raise Problem(422, "invalid", f"the form has two parts {name}")
        else:
            raise Problem(422, "invalid", "a form has the parts request, files and archive, and no others")

    def _open_file(self, named: bytes) -> None:
        number = len(self._files)
        try:
            path = named.decode()
            problem = self._names.problem_of(path) if path else "is missing"
        except UnicodeDecodeError:
            problem = "is not UTF-8"
        if problem is not None:
            raise Problem(422, "invalid", f"files[{number}]: its filename {problem}")
        if number == _MOST_FILES:
            raise Problem(422, "invalid", f"a form has {_MOST_FILES:,} files at most: send an archive")
        self._path, self._files[path] = path, self._directory / str(number)
        self._file = self._files[path].open("xb")

    def data(self, data: bytes, start: int, end: int) -> None:
        """Raises Problem 413, OSError."""
        piece = memoryview(data)[start:end]
        if self._file is not None:
            self._file.write(piece)
            self._of_part.update(piece)
            return
        assert self._request is not None
        if len(self._request) + len(piece) > self._max_request:
            raise Problem(
                413, "too-large", f"the part request is larger than {self._max_request} bytes (INVOKER_MAX_BODY)"
            )
        self._request += piece

    def closed(self) -> None:
        if self._file is not None:
            self.close()
            self._digest.update(f"{self._of_part.hexdigest()}{self._path}\0".encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def end(self) -> None:
        self._ended = True

    def form(self) -> Form:
        """Raises Problem 400, 422."""
        if not self._ended:
            raise Problem(400, "bad-request", "the form is cut off")
        if self._request is None:
            raise Problem(422, "invalid", "the form has no part request, with the request as JSON")
        files = tuple(self._files.items())
        return Form(self._directory, bytes(self._request), files, self._archive, self._digest.hexdigest())
