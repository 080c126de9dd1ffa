"""What an engine forgets of runs that are over, once nobody may want it any more."""

from __future__ import annotations

import asyncio
import random
import time

from claude_invoker.cli.walk import delete
from claude_invoker.runs import artifacts
from claude_invoker.runs.kept import Keeping
from claude_invoker.runs.moving import Moving
from claude_invoker.runs.places import Places, no_job
from claude_invoker.runs.sessions import Sessions
from claude_invoker.runs.shelf import Shelf
from claude_invoker.settings import Settings
from claude_invoker.workspace.uploads import Uploads
from claude_invoker.workspace.workspaces import Workspaces

_EXPIRE_S = 1800.0
"""How often the store is searched for what is too old; each invoker does, and it takes a request for 1,000 objects."""


class Forgetting:
    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        keeping: Keeping,
        uploads: Uploads,
        sessions: Sessions,
        moving: Moving,
        places: Places,
        workspaces: Workspaces | None,
    ) -> None:
        self._settings = settings
        self._shelf = shelf
        self._keeping = keeping
        self._uploads = uploads
        self._sessions = sessions
        self._moving = moving
        self._places = places
        self._workspaces = workspaces
        self._expired_at = time.monotonic() - random.SystemRandom().uniform(0, _EXPIRE_S)  # not all at once

    async def runs(self) -> None:
        """Forgets runs whose retention is over."""
        for run in list(self._shelf.runs.values()):
            if run.finished_at is not None and run.finished_at + run.retention_s < time.time():
                self._shelf.take(run.id)
                await self._keeping.forget(run.id, run.artifacts)

    async def left_by_jobs(self) -> None:
        """Deletes what jobs have left that were put away in sessions of their own, and are over."""
        if self._places.job_goes_on is no_job:  # who has a Redis for them knows
            return
        for name, away in await asyncio.to_thread(self._sessions.left_by_jobs):
            if not await self._places.job_goes_on(away.job):
                await self._moving.drop(name)

    async def files(self) -> None:
        """Deletes artifacts that no engine remembers, once the longest retention is over."""
        await asyncio.to_thread(self._files_here)
        if time.monotonic() - self._expired_at > _EXPIRE_S:
            self._expired_at = time.monotonic()
            await self._keeping.expire()
            await self._uploads.expire()
            await self._moving.expire(self._settings.session_ttl_s)

    def _files_here(self) -> None:
        longest_s = self._settings.longest_retention_s
        for path in artifacts.root(self._settings).iterdir():
            if path.name not in self._shelf.runs and path.stat().st_mtime + longest_s < time.time():
                delete(path)

    async def adopt_files(self) -> None:
        if self._keeping.outbox is not None:
            await asyncio.to_thread(self._keeping.outbox.adopt)

    async def checkouts(self) -> None:
        if self._workspaces is not None:
            going_on = (run for run in self._shelf.runs.values() if run.finished_at is None)
            await self._workspaces.sweep([run.checkout.store for run in going_on if run.checkout is not None])
