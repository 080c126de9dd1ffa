"""Runs plans on CLI processes. Without HTTP: an API process and a queue's worker both hold one `Engine`.

```
async with Engine(settings) as engine:
    run = engine.submit(plan, caller)           # Problem 403, 404, 409
    async for event in run.events.follow(): …   # optional
    result = await run.wait()                   # Problem
```
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from claude_invoker import disk
from claude_invoker.caller import Caller
from claude_invoker.catalog.catalog import load
from claude_invoker.catalog.layout import Layout
from claude_invoker.cli.binary import cli_version, find_cli, programs_of, reachable_binary
from claude_invoker.cli.boundary import establish
from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape
from claude_invoker.cli.contained import KILL_S
from claude_invoker.cli.kill import Killer, StillAlive, owners
from claude_invoker.cli.launcher import CannotFurnish, Launcher
from claude_invoker.cli.pool import Pool
from claude_invoker.cli.process import CliError
from claude_invoker.cli.tree import CATALOGS, Checkout, Discarded, Tree, Workplace, dismantle, prepare, tree_root
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.cli.users import Users
from claude_invoker.disk import Disk
from claude_invoker.egress.filters import Filters
from claude_invoker.ending import ended
from claude_invoker.isolation.strength import Boundary, Strength, TooWeak
from claude_invoker.ledger import Booking, Ledger
from claude_invoker.mcp import memory
from claude_invoker.mcp.memory import Memories
from claude_invoker.mcp.servers import NO_TOKENS, Servers
from claude_invoker.metering import control, key
from claude_invoker.metering.control import Metering
from claude_invoker.model import InvokeRequest, PermissionDecision
from claude_invoker.plan import Plan
from claude_invoker.plan import plan as plan_of
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts
from claude_invoker.runs.deferral import Deferral
from claude_invoker.runs.events import EventLog
from claude_invoker.runs.execution import Executor
from claude_invoker.runs.forgetting import Forgetting
from claude_invoker.runs.idle import Idle
from claude_invoker.runs.kept import Keeping
from claude_invoker.runs.moving import Moving
from claude_invoker.runs.places import Places
from claude_invoker.runs.run import Run, new_id
from claude_invoker.runs.sessions import Sessions
from claude_invoker.runs.shelf import Shelf
from claude_invoker.runs.sweeper import Sweeper
from claude_invoker.runs.tiers import Tiers
from claude_invoker.runs.turns import Turns
from claude_invoker.runs.watch import Bounds, Watch
from claude_invoker.settings import Settings
from claude_invoker.store.store import open_store
from claude_invoker.workspace.checkout import cannot_be_ready
from claude_invoker.workspace.continuing import CannotRebase
from claude_invoker.workspace.intake import Intake
from claude_invoker.workspace.repository import Wanted
from claude_invoker.workspace.uploads import Uploads
from claude_invoker.workspace.workspaces import Workspaces

_log = logging.getLogger(__name__)

_SWEEP_S = 10.0
_NOTHING_ASKED = InvokeRequest(prompt="anything")
_DELETE_S = 10.0
"""How long the last trees may take to be deleted when the engine stops."""


class Engine:
    """Owns the processes, trees, sessions and artifacts under `settings.state_dir`."""

    def __init__(self, settings: Settings, ledger: Ledger | None = None) -> None:
        self.settings = settings
        self.ledger = ledger
        api_key = key.descriptor()
        self.cli = find_cli(settings.cli_path)
        self.version = ""
        self._shelf = Shelf(settings.held)
        self.boundary = Boundary(Strength.NONE)
        """What surrounds a run; known once the engine has been entered."""
        self._tiers = Tiers(settings.state_dir / "tiers.json")
        self.users = Users(settings.uid_base, settings.state_dir / "locks" / "users")
        self.on_start: Callable[[Run], None] = lambda run: None
        self.on_end: Callable[[Run], Awaitable[None]] = _nothing
        """Waited for before anybody is told that the run is over: what is answered outlives this process."""
        self.on_finish: Callable[[Run], None] = lambda run: None
        self.on_decided: Callable[[Any, PermissionDecision, Mapping[str, Any]], None] = lambda run, decision, given: (
            None
        )
        """Told of the run, or of the job that has none now (`audit.runs.Decidable`), and with which input was asked."""
        self.on_withdrawn: Callable[[Any, str], None] = lambda job, by: None
        """Told of a job that was cancelled while it had no run (`audit.runs.Withdrawable`), and for which subject."""
        self._state = settings.state_dir
        self._trees = tree_root(settings.state_dir, isolated=self.users.isolated)
        self.keeping = Keeping(settings, open_store(settings.store, settings.key_of_store))
        """Where the files of runs are, those that are over included."""
        self._workplace = Workplace(self._trees)
        self.catalog = load(settings.catalog, (memory.ENTRY,))
        """What runs may be given; known to work here once the engine has been entered."""
        for each in self.catalog.refused:
            _log.warning("INVOKER_CATALOG: left out: %s", each)
        memories = Memories(url, settings.memory_ttl_s) if (url := settings.jobs_redis_url) else None
        self._servers = Servers(settings.mcp_secrets, memories, settings.memory_claim)
        self._layout = Layout(self._trees / CATALOGS / self._workplace.path.name)
        self._discarded = Discarded(self._trees / "discarded")
        self._killer = Killer(self.users.killer) if self.users.isolated else None
        self._sessions = Sessions(
            self._trees / "sessions", settings.state_dir / "sessions", self._discarded, settings.session_ttl_s
        )
        turns = Turns(settings.runs_redis_url, settings.session_ttl_s) if settings.runs_redis_url else None
        self._moving = Moving(self._sessions, settings.state_dir / "moved", turns, self.keeping.store)
        self.metering = Metering(
            control.Settings(settings.anthropic_base_url, settings.prices, settings.unknown_price),
            settings.state_dir / "journal",
            self.users.meter if self.users.isolated else None,
            api_key,
        )
        self.metering.purses = None if ledger is None else ledger.draws
        self._launcher = Launcher(
            self.cli,
            self._workplace.path,
            self._discarded,
            self.users,
            self._killer,
            self.metering,
            Deadlines(settings.api_timeout_s, settings.api_retries),
            Limits(settings.memory_limit, settings.file_size_limit, settings.process_limit, settings.max_runs),
        )
        self.workspaces: Workspaces | None = None
        """None where no repositories are configured."""
        if settings.repositories is not None:
            fetcher = self.users.fetcher if self.users.isolated else None
            # Where git's own user gets to: what is above the state directory may be closed to it, as to those of runs.
            above = self._state if self._trees.is_relative_to(self._state.absolute()) else self._trees
            self.workspaces = Workspaces(settings, self._launcher, above / "repositories", fetcher)
            self._launcher.furnish = self._furnish
        idle_s = min(settings.session_idle_s, settings.session_ttl_s)
        self.idle = Idle(self._launcher, self._sessions, idle_s, settings.session_idle_memory)
        """Processes that wait for their session's next turn."""
        self._moving.before_restoring = self.idle.forget
        self.filters = Filters(self._launcher.free_user, self.users.give_back, settings.egress_max_bytes)
        self.pool = Pool(
            self._launcher,
            minimum=settings.pool_size,
            maximum=settings.pool_max,
            starts=settings.max_starts,
        )
        on_disk = settings.on_disk
        self.intake = Intake(settings.state_dir / "intake", on_disk["trees"], lambda size: self.disk.room_for(size))
        """What callers have sent for runs that have not begun yet."""
        self.uploads = Uploads(
            self.keeping.store, settings.state_dir / "uploads", on_disk["uploads"], settings.upload_ttl_s, self.intake
        )
        """What they have put for requests that come later."""
        sources: dict[disk.Kind, disk.Source] = {
            "sessions": self._moving,
            "artifacts": self.keeping,
            "uploads": self.uploads,
        }
        if self.workspaces is not None:
            sources["repositories"] = self.workspaces
        self.keeping.goes_on = lambda run_id: run_id in self.runs and not self.runs[run_id].is_over
        paths = (self._state, self._trees)
        self.disk = Disk(sources, on_disk, settings.disk_reserve, paths, settings.books)
        """What this machine keeps of runs that are over."""
        shared = Bounds(settings.memory_limit, settings.process_limit, settings.tree_limit, settings.tree_entries_limit)
        self.watch = Watch(shared, lambda: self._launcher.box is None, on_disk["trees"])
        self._executor = Executor(
            settings,
            self.pool,
            self._launcher,
            self.metering,
            self.watch,
            self.workspaces,
            self.keeping,
            self.idle,
            self._layout,
            self.intake,
            self.uploads,
        )
        self.places = Places(
            settings.max_runs,
            self._executor,
            self._sessions,
            self._moving,
            self.idle,
            self.workspaces,
            lambda subject: self.disk.refuse(subject),
        )
        forgetting = Forgetting(
            settings,
            self._shelf,
            self.keeping,
            self.uploads,
            self._sessions,
            self._moving,
            self.places,
            self.workspaces,
        )
        self._sweeper = Sweeper(
            {
                "deleting the answers of old runs": forgetting.runs,
                "ending old sessions": lambda: asyncio.to_thread(self._sessions.expire),
                "deleting what jobs have left that are over": forgetting.left_by_jobs,
                "deleting old artifacts": forgetting.files,
                "sending what other invokers have left": forgetting.adopt_files,
                "sending sessions": self._moving.send_again,
                "deleting the trees of ended runs": lambda: asyncio.to_thread(self._discarded.empty),
                "booking what runs have spent": self._book_leftovers,
                "ending what is left of runs": self._launcher.end_leftovers,
                "deleting old checkouts": forgetting.checkouts,
                "deleting what came for runs that never began": lambda: asyncio.to_thread(self.intake.sweep),
                "keeping the disk within its bounds": self.disk.clear,
            },
            _SWEEP_S,
        )
        self._watching: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._reclaimed = False
        self.draining = False
        """Whether no more runs begin, because the process is to stop."""

    async def reclaim(self) -> None:
        """Ends what runs of invokers that died have left alive. What they left in files can be looked at after it, and
        what they have cost, since the metering proxy is there.

        A start never fails because of what a run has left: what cannot be ended keeps its user id for itself.
        """
        if self._reclaimed:
            return
        prepare(self._state, self._trees)
        self.intake.open()
        self.uploads.open()
        self.users.open()
        if self.workspaces is not None:
            await asyncio.to_thread(self.workspaces.open)
        for uid, whose in ((self.users.meter, "the metering proxy's"), (self.users.fetcher, "git's")):
            if self.users.share(uid, whose) and owners((uid,)):
                assert self._killer is not None
                try:
                    await self._killer.end(uid, KILL_S)  # of an invoker that died: the proxy's journal has all
                except StillAlive as error:
                    raise RuntimeError(f"user {uid} is {whose}: {error}") from error
        self._workplace.open()
        await self.metering.start(self._workplace.api / "sock")
        for uid in self.users.orphaned():
            await self._launcher.retire_user(uid)
        self._reclaimed = True

    async def __aenter__(self) -> Engine:
        await self.reclaim()
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _open(self) -> None:
        for path in self._workplace.abandoned():
            for left in (self._trees / CATALOGS / path.name, path):
                with contextlib.suppress(OSError):  # another invoker starts as well, and was faster
                    self._discarded.take(left)
        await asyncio.to_thread(self._sessions.recover)
        self.version = await cli_version(self.cli)
        programs = programs_of(self._trees)
        self._launcher.cli = await asyncio.to_thread(reachable_binary, self.cli, programs, isolated=self.users.isolated)
        laying_out = asyncio.create_task(asyncio.to_thread(self._layout.write, self.catalog))
        try:
            self.boundary = await establish(
                self._launcher,
                self.filters,
                programs,
                self._layout.root.parent,
                self._workplace.path,
                Strength[self.settings.isolation.upper()],
                commands_below=self.settings.allow_commands_below,
            )
        finally:
            self.catalog = await laying_out
        self.catalog = self.catalog.without(self._servers.obstacles(self.catalog, self.boundary.strength))
        if self.workspaces is not None and self.boundary.strength == Strength.NONE:
            raise TooWeak(
                "INVOKER_REPOSITORIES: runs would read all repositories, since nothing keeps them from this user's "
                "files here: start the invoker as root, or where bubblewrap or Landlock work. Missing: "
                + self.boundary.why
            )
        await self.metering.ready()
        if self.ledger is not None:
            self._watching = asyncio.create_task(self.ledger.watch(self.settings.ledger_grace, self.metering.hold))
        rehearsed = self._launcher.box is not None  # which was the real CLI's start
        await self.pool.start(self._default_shape(), await self._shapes_of_tiers(), rehearsed=rehearsed)
        if self.keeping.outbox is not None:
            self.keeping.outbox.start()
        self._sweeper.start()

    async def __aexit__(self, *_: object) -> None:
        """Cancels what runs and leaves no process behind."""
        self.stop_runs()
        tasks = [run.task for run in self.runs.values() if run.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._sweeper.stop()
        await self.idle.stop()
        if self.keeping.outbox is not None:
            await self.keeping.outbox.stop()
        await self.pool.stop()
        if self.workspaces is not None:
            await self.workspaces.close()
        await self.filters.stop()
        if self._watching is not None:
            await ended(self._watching)
        await self.metering.stop()
        await self._moving.close()
        await self._servers.close()
        if self._killer is not None:
            await self._killer.stop()
        self._workplace.close(self._discarded)
        with contextlib.suppress(OSError):  # it was not laid out
            self._discarded.take(self._layout.root)
        await asyncio.to_thread(self._discarded.close, _DELETE_S)
        dismantle(self._trees)
        self.users.close()

    def stop_runs(self) -> None:
        """Cancels what runs. (Its worker decides whether a job begins again.)"""
        for run in list(self.runs.values()):
            run.cancel("the invoker is stopping")

    def _default_shape(self) -> Shape:
        """Of a run that asks for nothing in particular, without the tools that no run may have here."""
        settings = self.settings
        tools = tuple(
            tool for tool in settings.tools if tool in settings.tools_allowed and not self.boundary.refuses(tool)
        )
        return Shape(tools, settings.max_turns, settings.max_budget_usd)

    async def _shapes_of_tiers(self) -> list[Shape]:
        """Of runs that ask for nothing in particular, of each tier that had some before."""
        found = []
        for clamp in (await asyncio.to_thread(self._tiers.load)).values():
            with contextlib.suppress(Problem):  # what such a run would be told
                usual = plan_of(_NOTHING_ASKED, clamp, self.settings, self.boundary, catalog=self.catalog)
                found.append(self._executor.shape_of(usual))
        return found

    @property
    def obstacle(self) -> str | None:
        """Why no run could start now; None where one could."""
        if self.draining:
            return "the invoker is stopping"
        if not self.version:
            return "the CLI has not been found yet"
        if not self._sweeper.alive:
            return "old runs are not swept away"
        if self.metering.obstacle is not None:
            return self.metering.obstacle
        return self.pool.obstacle

    @property
    def sweeping_troubles(self) -> list[str]:
        """What is to be swept away and is not; the log says why."""
        return self._sweeper.troubled

    @property
    def runs(self) -> dict[str, Run]:
        """Those that are not over, and those whose answers are kept, by their ids."""
        return self._shelf.runs

    @property
    def held_bytes(self) -> int:
        """What they hold in memory: input, events and results."""
        return self._shelf.bytes

    def forget(self, run_id: str) -> None:
        """Keeps nothing of a run in memory, if it is there."""
        self._shelf.take(run_id)

    @property
    def running(self) -> int:
        return sum(run.state == "running" for run in self.runs.values())

    @property
    def waiting(self) -> int:
        return sum(run.state == "waiting" for run in self.runs.values())

    def submit(
        self,
        plan: Plan,
        caller: Caller,
        job_id: str | None = None,
        *,
        run_id: str | None = None,
        earlier: Deferral | None = None,
        decided: Sequence[PermissionDecision] = (),
        tokens: Mapping[str, str] = NO_TOKENS,
        retry_of: str = "",
    ) -> Run:
        """Begins a run; it waits up to `queue_wait_s` for a place, a job's as long as it takes. Returns at once.
        `run_id`: the id it has; None: a new one. `earlier`: what it goes on with, and what was `decided` of it.
        `tokens`: of its caller's, by the MCP server that each is for. `retry_of`: the job that it tries again.

        Raises Problem 429 or 507 where runs hold too much memory, or the disk has no room, 503 where the invoker is
        stopping."""
        if self.draining and job_id is None:
            raise Problem(503, "busy", "the invoker is stopping", {"Retry-After": "1"})
        if job_id is None:
            self.disk.refuse(caller.subject)
        run_id = job_id or run_id or new_id()
        retention_s = self.settings.tier_retention_s.get(caller.tier or "", self.settings.retention_s)
        run = Run(run_id, caller.subject, plan, artifacts.directory(self.settings, run_id), retention_s)
        run.owner, run.tier, run.team = caller.owner, caller.tier or "", caller.team
        run.route, run.request_id = caller.route or "", caller.request_id or ""
        run.isolation = self.boundary.label
        run.is_job, run.retry_of = job_id is not None, retry_of
        run.co_author = caller.as_author
        if self.ledger is not None:
            run.lease, run.slot = caller.lease, caller.slot
            self.ledger.note(caller)
        run.events = EventLog(self.settings.held_per_run)
        run.permissions.is_heard = run.is_job
        if earlier is not None:
            run.earlier = earlier
            run.permissions.bring(earlier, decided)
        if plan.servers:
            run.servers = self._servers.given(plan, self.catalog)
            run.relay = self._servers.relay(plan, self.catalog, caller, tokens, run.permissions.spend)
        run.permissions.on_decided = functools.partial(self.on_decided, run)
        if self._tiers.note(run.tier, caller.clamp):
            self.go_on(asyncio.to_thread(self._tiers.write))
        self._shelf.put(run)
        self.on_start(run)
        wait_s = None if job_id else self.settings.queue_wait_s
        run.task = asyncio.create_task(self._execute(run, caller, wait_s))
        return run

    def repository(self, caller: Caller) -> Wanted | None:
        """What a run of the caller's works on; None: nothing. Raises Problem 403, 404, 422."""
        return None if self.workspaces is None else self.workspaces.wanted(caller)

    async def _furnish(self, tree: Tree, uid: int | None, checkout: Checkout) -> artifacts.Seen:
        assert self.workspaces is not None
        await self.workspaces.furnish(tree, uid, checkout)
        return await asyncio.to_thread(artifacts.survey, tree.work)

    def find(self, run_id: str, caller: Caller, may: Callable[[Caller, str], bool] = Caller.may_see) -> Run:
        """A run that the caller `may` see. Raises Problem 404, also for the runs of others."""
        run = self.runs.get(run_id)
        if run is None or not may(caller, run.subject):
            raise no_such_run()
        return run

    async def _execute(self, run: Run, caller: Caller, wait_s: float | None) -> None:
        """However it goes, the run ends: with a result or a problem, its lease settled, its readers told."""
        keeper = None if self.ledger is None else asyncio.create_task(self.ledger.hold(caller))
        try:
            await self.places.work(run, wait_s)
        except Problem as problem:
            run.problem = problem
        except CannotRebase as error:
            run.problem = Problem(409, "conflict", f"the session cannot be rebased, and is as it was: {error}")
        except CannotFurnish as error:
            _log.error("run %s: %s", run.id, error)
            run.problem = cannot_be_ready("" if run.checkout is None else run.checkout.name)
        except CliError as error:
            _log.error("run %s: %s", run.id, error)
            run.problem = Problem(502, "cli-failed", "the Claude CLI ended without a result")
        except asyncio.CancelledError:
            run.problem = Problem(499, "cancelled", run.cancel_reason or "cancelled")
        except Exception:
            _log.exception("run %s", run.id)
            run.problem = Problem(500, "internal")
        finally:
            if run.problem is not None:
                run.problem = run.exceeded or run.problem
            if run.relay is not None:
                self.go_on(run.relay.close())
            if run.plan.spool is not None:
                self.go_on(asyncio.to_thread(self.intake.delete, run.plan.spool))
            if keeper is not None:
                self.go_on(ended(keeper))
                await self._settle(run, caller.lease)
            await unbroken(self._finish(run))

    async def _settle(self, run: Run, lease: str | None) -> None:
        """Books the cost. Never raises; goes on by itself where the run is cancelled meanwhile."""
        if lease is None:
            return
        task = self.go_on(self._book(run, lease))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            pass
        except Exception:
            _log.exception("run %s: its cost of %r USD was not booked", run.id, run.cost_usd)

    def go_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """It is done when the engine stops, at the latest."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _book(self, run: Run, lease: str) -> None:
        assert self.ledger is not None
        cost = run.account.micro_usd
        booking = await self.ledger.book(lease, cost, final=run.is_counted, slot=run.slot, tier=run.tier)
        if booking is not None and run.is_counted:
            self.metering.booked(run.account_key, booking is Booking.NOW)  # else the sweeper does it

    async def _book_leftovers(self) -> None:
        if self.ledger is None:
            return
        for debt in await self.metering.owed():
            booking = await self.ledger.book(debt.lease, debt.micro_usd)
            if booking is not None:
                self.metering.booked(debt.run, booking is Booking.NOW)

    async def _finish(self, run: Run) -> None:
        run.finished_at = time.time()
        if run.problem is not None:
            run.deferral = None
            run.permissions.end()  # what was to be put away, if anything
        elif run.result is None and run.deferral is None:
            run.problem = Problem(500, "internal")
        if run.deferral is not None:
            run.state = "waiting"
            run.permissions.close()  # what is decided comes before the last event, and is stored with the job
            run.events.finish("run.deferred", {"id": run.id, "permission": run.deferral.permission.id})
        elif run.problem is None:
            run.state = "succeeded"
            assert run.result is not None
            event = run.events.finish("run.finished", run.result.model_dump(mode="json"))
            self._shelf.grew(run, len(event.data))  # the result itself
        else:
            run.state = "cancelled" if run.problem.kind == "cancelled" else "failed"
            run.events.finish("error", run.problem.document() | {"run": run.id, "cost_usd": run.cost_usd})
        with _logged(run):
            self.on_finish(run)
        with _logged(run):
            await self.on_end(run)
        run.events.close()
        run.done.set()
        self._shelf.ended(run)


def no_such_run() -> Problem:
    """What is said of a run that does not exist, and of another's."""
    return Problem(404, "not-found", "there is no such run")


@contextlib.contextmanager
def _logged(run: Run) -> Iterator[None]:
    """Whatever fails in the block, the run ends."""
    try:
        yield
    except Exception:
        _log.exception("run %s: its end was not recorded", run.id)


async def _nothing(run: Run) -> None:
    """Nobody else has to know."""
