"""One run on a process of the CLI: its conversation, its deadlines, its end and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from claude_invoker.catalog.layout import Layout
from claude_invoker.cli import outcome
from claude_invoker.cli.command import Given, Shape
from claude_invoker.cli.contained import Contained
from claude_invoker.cli.kill import StillAlive
from claude_invoker.cli.launcher import Launcher, Ready
from claude_invoker.cli.messages import Result
from claude_invoker.cli.pool import Pool
from claude_invoker.cli.process import CliError, CliProcess
from claude_invoker.cli.rounds import aside, go_on
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.mcp.relay import Failed
from claude_invoker.metering.control import Metering, NoProxy, Terms
from claude_invoker.model import Check, RunResult
from claude_invoker.plan import Checking, Plan
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts
from claude_invoker.runs.checks import judged, of_failure
from claude_invoker.runs.conversation import Conversation, unavailable
from claude_invoker.runs.deferral import Deferral, SoFar, few
from claude_invoker.runs.idle import HARMLESS, Idle, alive, is_alone
from claude_invoker.runs.kept import Keeping
from claude_invoker.runs.remains import Remains
from claude_invoker.runs.run import Run, Step
from claude_invoker.runs.sessions import Session
from claude_invoker.runs.settling import settle, settling
from claude_invoker.runs.translate import Translator
from claude_invoker.runs.watch import Watch
from claude_invoker.settings import Settings
from claude_invoker.workspace import archive, files
from claude_invoker.workspace.checkout import instructions
from claude_invoker.workspace.intake import Intake
from claude_invoker.workspace.uploads import Uploads
from claude_invoker.workspace.workspaces import Workspaces

_log = logging.getLogger(__name__)

INTERRUPT_S = 1.0
TERM_S = 3.0
_LAST_ANSWER_S = 2.0
"""How long a run that has ended waits for the last of its requests; what that costs is booked when it is known."""
_REQUESTS_PER_TURN = 8
"""Retries, subagents and summaries: what a turn may cost in API requests before the proxy refuses more."""


_Kind = Literal["begun", "new", "deferred"]


class Executor:
    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        launcher: Launcher,
        metering: Metering,
        watch: Watch,
        workspaces: Workspaces | None,
        keeping: Keeping,
        idle: Idle,
        layout: Layout,
        intake: Intake,
        uploads: Uploads,
    ) -> None:
        self._pool = pool
        self._launcher = launcher
        self._metering = metering
        self._watch = watch
        self._idle = idle
        self._layout = layout
        self._intake = intake
        self._uploads = uploads
        self._conversation = Conversation(settings.first_output_s, settings.idle_s)
        bounds = artifacts.Bounds(settings.artifact_max_bytes, settings.artifact_max_count)
        self._most_files = settings.artifact_max_count + 1  # one more, so that it is told that there are too many
        self._remains = Remains(bounds, workspaces, keeping)
        self._ending: set[asyncio.Task[None]] = set()

    async def execute(self, run: Run, session: Session | None) -> None:
        """Runs the plan on a process, in the session's tree where there is one, and leaves nothing of it alive.
        Sets `run.result`, or `run.deferral`. Raises Problem, CliError."""
        run.state = "running"
        begun = session is not None and await asyncio.to_thread(lambda: session.begun)
        suits = session is not None and session.away is None and self._idle.suits(run)
        if run.plan.skills or run.plan.starts_servers:
            await self._bring_libraries(run)
        if run.relay is not None:
            try:
                await run.relay.open()
            except Failed as error:
                raise unavailable(str(error)) from error
        kind: _Kind | None = None if session is None else "begun" if begun else "new"
        shape = self._shape(run, kind if run.earlier is None else "deferred", keeps=suits)
        ready = None if session is None else await self._idle.take(session, run)
        goes_on = ready is not None
        left = None if session is None or run.earlier is not None else session.away
        if ready is None:
            first = shape if left is None else settling(shape, left.tool)
            with run.step("start process"):
                ready = await self._pool.take(first, session.tree if session else None)
            if ready.furnished is not None and ready.furnished[0] >= run.created_at:  # else it was warm
                run.steps.append(Step("check out", *ready.furnished))
            if suits:
                ready.at_first = await alive(ready.process)
        process = ready.process
        if run.plan.ends_session:
            ready.keep_tree = False  # unless it is put away
        stays = may_stay = False
        run.work = process.tree.work
        try:
            if session is not None and left is not None:
                await self._settle(run, ready, shape)
                session.away = None
            before = ready.before
            if run.plan.files or run.plan.archive is not None:
                await self._put(run, process)
                before = None
            if before is None:
                before = await asyncio.to_thread(artifacts.survey, process.tree.work)
            for path in () if run.earlier is None else run.earlier.changed:
                before.pop(path, None)
            began = time.monotonic()
            try:
                said = await self._rounds(run, ready, goes_on=goes_on)
                may_stay = suits and await self._may_stay(run, ready)
            finally:
                await unbroken(self._leave(run, ready, before, gently=session is not None, stays=may_stay))
            stays = may_stay and run.is_counted
            seconds = time.monotonic() - began
            if run.permissions.deferred is not None and session is not None:
                run.deferral = await self._put_away(run, session.id, before, said, seconds)
                ready.keep_tree = True
        finally:
            if not stays:
                disposing = self._launcher.dispose_soon(ready)
                if session is not None and disposing is not None:
                    await unbroken(disposing)  # the next turn may begin when this one is over
        if stays:
            run.stays = ready
        is_kept = session is None or session.tree.root.exists()
        if run.deferral is not None:
            if not is_kept:
                run.deferral = None
                raise Problem(507, "no-room", "what the run has left is too much to be put away until it may go on")
            return
        if not is_kept:
            run.session = None  # what it has left there was too much to keep
        run.pushed = await self._remains.push(run)
        run.result = self._result(run, said, seconds)

    async def _settle(self, run: Run, ready: Ready, shape: Shape) -> None:
        """Ends what a job has left in the session, and makes it ready for this run. Raises CliError."""
        await settle(ready.process)
        await self._wind_down(run, ready, gently=True)
        await go_on(self._launcher, ready, shape)

    def _result(self, run: Run, said: Sequence[Result], seconds: float) -> RunResult:
        """What is answered, of all that the run has been."""
        result, so_far = said[-1], _so_far(run, said, seconds)
        return RunResult(
            id=run.id,
            result="" if outcome.is_cut_off(result, run.account) else result.result or "",
            structured=result.structured_output,
            model=run.model,
            instead_of=run.plan.instead_of,
            session=run.session,
            usage=so_far.usage,
            cost_usd=so_far.cost_usd,
            duration_ms=round(so_far.seconds * 1000),
            num_turns=so_far.turns,
            stop_reason="interrupted"
            if run.interrupted and result.is_error
            else outcome.stop_reason(result, run.account),
            budget=run.account.budget,
            permission_denials=so_far.denials,
            artifacts=run.artifacts,
            left_out=run.left_out,
            isolation=run.isolation,
            egress=so_far.egress,
            repository=run.repository,
            changes=run.changes,
            check=run.check,
            pushed=run.pushed,
            decisions=list(run.permissions.decided.values()),
        )

    async def _put_away(
        self, run: Run, session: str, before: artifacts.Seen, said: Sequence[Result], seconds: float
    ) -> Deferral:
        """What the run's next part has to know. Nothing of its process is alive."""
        permissions, so_far = run.permissions, _so_far(run, said, seconds)
        assert permissions.deferred is not None and run.work is not None
        return Deferral(
            session=session,
            permission=permissions.deferred,
            remembered=permissions.remembered,
            asked=permissions.asked,
            changed=await asyncio.to_thread(artifacts.changed, run.work, before, self._most_files),
            repairs=run.repairs,
            so_far=so_far.model_copy(update={"denials": few(so_far.denials)}),
        )

    def shape_of(self, plan: Plan) -> Shape:
        """Of a run that begins in an empty directory, in no session."""
        return Shape(
            plan.tools, plan.max_turns, plan.max_budget_usd, None, plan.egress, None, self._given(plan), plan.asked
        )

    def _given(self, plan: Plan) -> Given:
        return self._layout.of(plan.skills, plan.agents, plan.server_tools, starts_servers=plan.starts_servers)

    def _shape(self, run: Run, session: _Kind | None, *, keeps: bool) -> Shape:
        plan = run.plan
        if session is None and plan.check is not None and plan.check.max_repairs:
            session = "new"  # the next process goes on with its transcript
        budget = None if keeps else plan.max_budget_usd
        return replace(self.shape_of(plan), max_budget_usd=budget, session=session, checkout=run.checkout)

    async def _bring_libraries(self, run: Run) -> None:
        """Raises Problem 503."""
        try:
            await asyncio.to_thread(self._layout.bring_libraries)
        except OSError as error:
            _log.error("run %s: the libraries of skills cannot be laid out: %s", run.id, error.strerror)
            raise Problem(503, "busy", "the libraries of skills cannot be had now", {"Retry-After": "10"}) from error

    async def _put(self, run: Run, process: CliProcess) -> None:
        """Gives the run what its caller has sent along. Raises Problem 422, 503, 507."""
        plan, work, what = run.plan, process.tree.work, "archive"
        try:
            if plan.archive is not None:
                bounds = archive.Bounds() if plan.spool is None else archive.LARGE
                await asyncio.to_thread(archive.unpack, work, plan.archive, process.uid, bounds)
            what = "files"
            async with self._uploads.brought(run.subject, run.owner, plan.files) as brought:
                await asyncio.to_thread(files.put, work, brought, process.uid)
            if plan.spool is not None:
                await asyncio.to_thread(self._intake.delete, plan.spool)
        except files.NoPlace as error:
            raise Problem(422, "invalid", f"{what}: {error}") from error
        except OSError as error:
            _log.error("run %s: its files cannot be put into its directory: %s", run.id, error.strerror)
            raise Problem(503, "busy", "the files cannot be stored now", {"Retry-After": "10"}) from error

    async def _may_stay(self, run: Run, ready: Ready) -> bool:
        """Whether the process may wait for another turn: nothing can go on in it by itself."""
        process = ready.process
        is_whole = process.finished and ready.usable and run.exceeded is None and not run.account.exhausted
        is_whole = is_whole and not run.interrupted
        return is_whole and run.used <= HARMLESS and await is_alone(process, ready.at_first)

    async def _rounds(self, run: Run, ready: Ready, *, goes_on: bool) -> list[Result]:
        """The plan's conversation; where there is a check, that, and the model again while it fails and there are
        repairs, turns, money and time left. What the CLI has said at the end of each. A run that is put away is checked
        when it has gone on. Raises Problem, CliError."""
        plan = run.plan
        end = asyncio.get_running_loop().time() + plan.total_s
        await self._open_account(run, ready.token)
        shown = await asyncio.to_thread(_shown, run)
        awaited = None if run.earlier is None else run.earlier.permission.call
        said = await self._converse(
            run, ready, shown, end, goes_on=run.earlier is not None, same=goes_on, awaited=awaited
        )
        run.repairs = 0 if run.earlier is None else run.earlier.repairs
        while plan.check is not None and not run.interrupted and run.permissions.deferred is None:
            await self._wind_down(run, ready, gently=True)
            check = run.check = await self._check(run, ready, plan.check, end, run.repairs)
            turns = plan.max_turns - sum(each.num_turns for each in said)
            usd = plan.max_budget_usd - run.cost_usd
            is_over = check.ended_for == "timeout" or min(turns, usd) <= 0 or run.account.exhausted
            if check.passed or is_over or run.repairs >= plan.check.max_repairs:
                break
            begun: Literal["begun", "new"] = "begun" if ready.process.tree.has_transcript else "new"
            shape = replace(ready.process.shape, session=begun, max_turns=turns, max_budget_usd=usd)
            run.repairs += 1
            run.events.append("repair", {"number": run.repairs, "of": plan.check.max_repairs})
            await go_on(self._launcher, ready, shape)
            content = ({"type": "text", "text": of_failure(check)},)
            said += await self._converse(run, ready, content, end, goes_on=True)
        return said

    async def _check(self, run: Run, ready: Ready, checking: Checking, end: float, repairs: int) -> Check:
        """Runs it, till the loop's time `end` at most, and says how it went. Raises CliError."""
        process = ready.process
        if process.passage is not None:
            process.passage.close()
        run.events.append("check", {"state": "started", "command": checking.command, "repairs": repairs})
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            command = await aside(self._launcher, ready, checking.command)
            if command.passage is not None:
                command.passage.begin(run.went_out)
            with self._watch.over(command, functools.partial(self._stop, run, command), run.subject):
                said = await command.said(max(0.0, end - began))
            if said.is_outside:
                raise CliError("a check cannot enter the boundary around runs")
        except StillAlive as error:
            raise CliError(f"a check does not end: {error}") from error
        if command.passage is not None:
            command.passage.close()
        check = judged(said, checking.command, round((loop.time() - began) * 1000), repairs)
        run.events.append("check", {"state": "finished", **check.model_dump(mode="json", exclude={"junit"})})
        return check

    async def _converse(
        self,
        run: Run,
        ready: Ready,
        content: tuple[dict[str, Any], ...],
        end: float,
        *,
        goes_on: bool = False,
        same: bool = False,
        awaited: str | None = None,
    ) -> list[Result]:
        """Sends the plan with this content, and translates what comes back until the loop's time `end`. `goes_on`: the
        run has begun by another process; `same`: the process has had a turn before; `awaited`: the call of a tool with
        which it goes on. The result messages. Raises Problem, CliError."""
        process, translator = ready.process, Translator(run, goes_on=goes_on, awaited=awaited)
        with self._watch.over(process, functools.partial(self._stop, run, process), run.subject):
            return await self._conversation.held(
                run, process, content, end, translator, same=same, awaited=awaited, servers=run.servers
            )

    def _stop(self, run: Run, process: Contained, problem: Problem) -> None:
        """Ends a run that takes more of the machine than it may: at once, whatever it is doing."""
        run.exceed(problem)
        task = asyncio.create_task(self._end_now(process))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_now(self, process: Contained) -> None:
        with contextlib.suppress(StillAlive):  # whoever winds the run down finds that out, too
            await process.end()

    async def _open_account(self, run: Run, token: str) -> None:
        """From now on the run's token is worth something. Raises Problem 503."""
        plan = run.plan
        terms = Terms(
            run.lease,
            Decimal(str(plan.max_budget_usd)),
            plan.models,
            plan.max_turns * _REQUESTS_PER_TURN,
            plan.features,
            run.slot,
            run.tier,
        )
        key = f"{run.id}:{secrets.token_hex(4)}"
        try:
            await self._metering.open(key, token, terms, run.account)
        except NoProxy as error:
            raise Problem(503, "busy", str(error), {"Retry-After": "5"}) from error
        run.account_key, run.is_counted = key, False

    async def _leave(
        self, run: Run, ready: Ready, before: artifacts.Seen, *, gently: bool, stays: bool = False
    ) -> None:
        """What the run owes at its end: its cost, and its files. `stays`: its process waits for another turn."""
        process = ready.process
        if not stays:
            await self._wind_down(run, ready, gently=gently)
        if run.account_key:
            run.is_counted = await self._metering.close(run.account_key, _LAST_ANSWER_S)
        if run.permissions.deferred is not None:
            return  # its files are those of its last part
        await self._remains.collect(run, process, before)

    async def _wind_down(self, run: Run, ready: Ready, *, gently: bool) -> None:
        """Ends the process and all it started: at once after a result (a session's CLI writes its transcript
        first), else by an interrupt, which also yields the cost so far; where that is not heard, by SIGTERM."""
        process = ready.process
        if not process.finished and process.returncode is None and run.exceeded is None:
            process.interrupt()
            with contextlib.suppress(TimeoutError, CliError):
                async with asyncio.timeout(INTERRUPT_S):
                    async for message in process.messages():
                        if isinstance(message, Result):
                            run.cli_cost_usd = message.used.costUSD
                            break
            if not process.finished:
                await process.terminated(TERM_S)
        if gently and run.exceeded is None:
            process.close_input()
            await process.exited(TERM_S)
        try:
            await process.end()
            if ready.aside is not None:
                await ready.aside.end()
        except StillAlive as error:
            raise CliError(f"the run does not end: {error}") from error


def _so_far(run: Run, said: Sequence[Result], seconds: float) -> SoFar:
    """With the part of the run that is over now."""
    before = SoFar() if run.earlier is None else run.earlier.so_far
    return before.with_part(
        cost_usd=run.cost_usd,
        usage=outcome.usage(run.account.total),
        turns=sum(each.num_turns for each in said),
        seconds=seconds,
        denials=[denial for each in said for denial in outcome.denials(each)],
        egress=run.egress,
    )


def _shown(run: Run) -> tuple[dict[str, Any], ...]:
    """The message for the model: what the repository tells it, where that is the operator's wish, and the caller's."""
    checkout = run.checkout
    # A session was told in its first turn.
    said = None if checkout is None or checkout.base is not None else instructions(checkout.store)
    if not said:
        return run.plan.content
    text = f'<repository-instructions path="CLAUDE.md">\n{said}\n</repository-instructions>'
    return ({"type": "text", "text": text}, *run.plan.content)
