"""`/files/{sha256}`: a file by itself, for requests that come later."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api.answers import FILE, LOOKING, problems
from claude_invoker.api.border import content_length
from claude_invoker.api.files import file_answer
from claude_invoker.api.form import pieces, stored
from claude_invoker.api.links import base
from claude_invoker.api.openapi import file_body
from claude_invoker.api.query import ONLY_KNOWN
from claude_invoker.caller import Caller
from claude_invoker.model import Artifact, Upload, UploadList
from claude_invoker.problem import Problem
from claude_invoker.services import services
from claude_invoker.trust import attested, attested_unread
from claude_invoker.workspace.uploads import Uploads, no_such_file

router = APIRouter(tags=["files"], responses=LOOKING)
Name = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="The SHA-256 of its content, in hexadecimal digits")]
_PUT_PROBLEMS = problems(400, 408, 413, 507)


@router.put(
    "/files/{sha256}",
    status_code=201,
    response_model=Upload,
    responses={200: {"description": "It was there, and is kept for longer", "model": Upload}, **_PUT_PROBLEMS},
    openapi_extra=file_body(),
)
async def put(request: Request, sha256: Name, caller: Annotated[Caller, Depends(attested_unread)]) -> Response:
    """Keeps the body for a while, by the SHA-256 of it: `files` of a request name it (`upload`)."""
    engine = services(request).engine
    size = content_length(dict(request.scope["headers"]).get(b"content-length")) or engine.settings.max_upload
    async with engine.uploads.room(caller.owner, sha256, size) as was_there:
        with stored():
            directory = await engine.intake.made(caller.subject, size)
            try:
                path = directory / "file"
                found = await _written(request, path)
                if found != sha256:
                    raise Problem(422, "invalid", f"what has come has the SHA-256 {found}: it was cut, or changed")
                upload = await engine.uploads.keep(caller.owner, sha256, path)
            finally:
                await asyncio.to_thread(engine.intake.delete, directory)
    headers = {"Location": f"{base(request)}/files/{sha256}"}
    return JSONResponse(upload.model_dump(mode="json"), status_code=200 if was_there else 201, headers=headers)


async def _written(request: Request, path: pathlib.Path) -> str:
    """The SHA-256 of the body. Raises OSError, Problem 408, 413."""
    digest = hashlib.sha256()
    with path.open("xb") as file:

        def take(piece: bytes) -> None:
            file.write(piece)
            digest.update(piece)

        async for piece in pieces(request.stream()):
            await asyncio.to_thread(take, piece)
    return digest.hexdigest()


@router.get("/files", response_model=UploadList, responses=problems(400), dependencies=[ONLY_KNOWN])
async def listed(request: Request, caller: Annotated[Caller, Depends(attested)]) -> UploadList:
    """The caller's files, those first that go first."""
    held = await services(request).engine.uploads.held(caller.owner)
    return UploadList(files=sorted(held.values(), key=lambda upload: upload.expires_at))


@router.get("/files/{sha256}", response_class=Response, responses=FILE | problems(404))
async def get(request: Request, sha256: Name, caller: Annotated[Caller, Depends(attested_unread)]) -> Response:
    """One of them: its SHA-256 as ETag, ranges."""
    uploads = services(request).engine.uploads
    upload = await _own(uploads, caller, sha256)
    found = Artifact(path=sha256, size=upload.size, type="application/octet-stream", sha256=sha256)
    return await file_answer(request, _Held(uploads, caller.owner), found)


@router.delete("/files/{sha256}", status_code=204, responses=problems(404))
async def delete(request: Request, sha256: Name, caller: Annotated[Caller, Depends(attested_unread)]) -> Response:
    """Keeps it no longer. A run that has begun with it has it."""
    uploads = services(request).engine.uploads
    await _own(uploads, caller, sha256)
    await uploads.delete(caller.owner, sha256)
    return Response(status_code=204)


async def _own(uploads: Uploads, caller: Caller, name: str) -> Upload:
    """Raises Problem 404, also for others' files, 503."""
    found = (await uploads.held(caller.owner)).get(name)
    if found is None:
        raise no_such_file()
    return found


@dataclass(frozen=True)
class _Held:
    """The files of one owner, as `file_answer` reads them."""

    uploads: Uploads
    owner: str

    def here(self, artifact: Artifact) -> None:
        return None

    async def read(self, artifact: Artifact, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return await self.uploads.read(self.owner, artifact.sha256, start, artifact.size if end is None else end)
