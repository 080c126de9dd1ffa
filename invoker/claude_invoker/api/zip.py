"""All artifacts of a run as one archive, written while it is sent."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import AsyncIterator
from typing import IO, Literal, cast

from fastapi.responses import StreamingResponse

from claude_invoker.model import Artifact
from claude_invoker.runs.kept import Files

Form = Literal["zip"]
"""What a list of artifacts is to be instead."""


class _Buffer:
    """A sink that zipfile writes to and we empty: no archive is ever held whole."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


async def zipped(name: str, files: Files, artifacts: list[Artifact]) -> StreamingResponse:
    """Raises Problem 404, 503 where the first cannot be had."""
    first = await files.read(artifacts[0]) if artifacts else None
    return StreamingResponse(
        _pieces(files, artifacts, first),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}.zip"'},
    )


async def _pieces(files: Files, artifacts: list[Artifact], first: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    buffer = _Buffer()
    with zipfile.ZipFile(cast("IO[bytes]", buffer), "w", zipfile.ZIP_DEFLATED) as archive:
        for artifact in artifacts:
            pieces, first = first or await files.read(artifact), None
            with archive.open(zipfile.ZipInfo(artifact.path), "w", force_zip64=True) as entry:
                async for piece in pieces:
                    await asyncio.to_thread(entry.write, piece)
                    yield buffer.taken()
    yield buffer.taken()
