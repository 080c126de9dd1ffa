"""Where runs run: as many at once as there are places, each with the repository and the session that it works in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from redis.exceptions import RedisError

from claude_contract.keys import joined
from claude_invoker.cli.tree import Checkout
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import lost_meanwhile
from claude_invoker.runs.execution import Executor
from claude_invoker.runs.idle import Idle
from claude_invoker.runs.moving import Moving, taken
from claude_invoker.runs.run import Run
from claude_invoker.runs.sessions import Away, Session, Sessions, record_name
from claude_invoker.workspace.continuing import remembered
from claude_invoker.workspace.repository import Wanted
from claude_invoker.workspace.workspaces import Workspaces

_log = logging.getLogger(__name__)


async def no_job(job_id: str) -> bool:
    """Where there is no Redis for them."""
    return False


class Places:
    def __init__(
        self,
        places: int,
        executor: Executor,
        sessions: Sessions,
        moving: Moving,
        idle: Idle,
        workspaces: Workspaces | None,
        refuse: Callable[[str], None],
    ) -> None:
        """`refuse`: raises Problem 507 where the disk has no room for a subject's run."""
        self._free = asyncio.Semaphore(places)
        self._executor = executor
        self._sessions = sessions
        self._moving = moving
        self._idle = idle
        self._workspaces = workspaces
        self._refuse = refuse
        self.job_goes_on: Callable[[str], Awaitable[bool]] = no_job
        """Whether a job of that id is there, and not over. Raises RedisError, OSError."""

    async def work(self, run: Run, wait_s: float | None) -> None:
        if run.is_job:
            self._refuse(run.subject)
        if run.plan.repository is not None and run.plan.session in (None, "new"):
            assert self._workspaces is not None
            # Which may take long: nobody waits for it.
            with run.step("fetch repository"):
                run.checkout = await self._workspaces.ready(run.plan.repository, run.branch)
        try:
            with run.step("wait for a place"):
                async with asyncio.timeout(wait_s):
                    await self._free.acquire()
        except TimeoutError as error:
            raise Problem(503, "busy", "every place to run is taken", {"Retry-After": "5"}) from error
        try:
            if run.plan.session is None:
                await self._executor.execute(run, None)
            else:
                await self._in_session(run, run.plan.session)
        finally:
            self._free.release()

    async def _in_session(self, run: Run, wish: str) -> None:
        # A session on a repository is another's to who comes without it, or with another.
        repository = run.plan.repository
        owner = run.subject if repository is None else joined("\0", run.subject, repository.name)
        await self._idle.settled(record_name(owner, wish))
        try:
            async with self._held(run, owner, wish) as session:
                await self._refuse_taken(run, session)
                run.session = None if run.plan.ends_session else session.id
                if run.session is not None:
                    run.permissions.recall(session.remembered)
                run.permissions.before_deferring = lambda asked: self._sessions.leave(
                    session, Away(run.id, asked.tool, run.plan.ends_session)
                )
                if repository is not None:
                    with run.step("fetch repository"):
                        run.checkout = await self._of_session(run, repository, session)
                try:
                    await self._executor.execute(run, session)
                finally:
                    if run.result is not None:
                        session.away = None
                    await self._remember(run, session)
        except BaseException:
            if run.stays is not None:
                ready, run.stays = run.stays, None
                await unbroken(self._idle.drop(ready))
            raise
        if run.stays is not None:
            ready, run.stays = run.stays, None
            await unbroken(self._idle.keep(session.name, ready, run, self._sessions.mark(session.name)))

    @contextlib.asynccontextmanager
    async def _held(self, run: Run, owner: str, wish: str) -> AsyncIterator[Session]:
        """Raises Problem 404, 409, 410 for a job that has lost what it left when it was put away, 503."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                holding = self._moving.hold(owner, wish, lambda: run.exceed(taken()))
                session = await stack.enter_async_context(holding)
            except Problem as problem:
                if run.earlier is None or problem.status != 404:
                    raise
                raise lost_meanwhile() from problem
            yield session

    async def _refuse_taken(self, run: Run, session: Session) -> None:
        """Raises Problem 409 where a job goes on with it that is put away, 503."""
        if session.away is None or session.away.job == run.id:
            return
        try:
            goes_on = await self.job_goes_on(session.away.job)
        except (RedisError, OSError) as error:
            raise Problem(503, "busy", "the Redis of the jobs does not answer", {"Retry-After": "2"}) from error
        if goes_on:
            job = session.away.job
            raise Problem(409, "conflict", f"the session goes on with {job}, which waits to be allowed something")

    async def _remember(self, run: Run, session: Session) -> None:
        """Where that is not possible it is asked again."""
        if lines := run.permissions.for_later():
            try:
                await asyncio.to_thread(self._sessions.remember, session, lines)
            except OSError as error:
                _log.error("run %s: what was decided for its session is not kept: %s", run.id, error.strerror)

    async def _of_session(self, run: Run, wanted: Wanted, session: Session) -> Checkout:
        """What its turn works on. Raises Problem 403, 404, 409, 422, 503."""
        assert self._workspaces is not None
        base = await asyncio.to_thread(remembered, session.tree)
        if base is not None:
            return await self._workspaces.gone_on(wanted, base, run.branch, rebase=run.plan.rebase)
        found = run.checkout or await self._workspaces.ready(wanted, run.branch)
        return replace(found, is_session=True)
