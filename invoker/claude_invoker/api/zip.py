"""All artifacts of a run as one archive, written while it is sent."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fastapi.responses import StreamingResponse

from claude_invoker.model import Artifact

_PIECE = 1 << 20


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


def zipped(name: str, files: Path, artifacts: list[Artifact]) -> StreamingResponse:
    return StreamingResponse(
        _pieces(files, artifacts),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}.zip"'},
    )


def _pieces(files: Path, artifacts: list[Artifact]) -> Iterator[bytes]:
    buffer = _Buffer()
    with zipfile.ZipFile(cast("IO[bytes]", buffer), "w", zipfile.ZIP_DEFLATED) as archive:
        for artifact in artifacts:
            with (
                (files / artifact.path).open("rb") as source,
                archive.open(zipfile.ZipInfo(artifact.path), "w", force_zip64=True) as entry,
            ):
                while piece := source.read(_PIECE):
                    entry.write(piece)
                    yield buffer.taken()
    yield buffer.taken()
