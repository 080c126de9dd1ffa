"""What a run leaves: what it has changed of its repository, its files, all of them in one, a branch that is pushed."""

from __future__ import annotations

import asyncio
import logging

from claude_invoker.cli.process import CliProcess
from claude_invoker.cli.walk import TooMuch
from claude_invoker.model import Artifact, LeftOut, Pushed
from claude_invoker.runs import artifacts
from claude_invoker.runs.kept import Keeping
from claude_invoker.runs.run import Run
from claude_invoker.workspace import archive
from claude_invoker.workspace.difference import PATCH, NoDifference, difference
from claude_invoker.workspace.push import NotPushed
from claude_invoker.workspace.workspaces import Workspaces

_log = logging.getLogger(__name__)


class Remains:
    """Takes them from the tree of a run that is over: nothing of it is alive, or nothing that could change it."""

    def __init__(self, bounds: artifacts.Bounds, workspaces: Workspaces | None, keeping: Keeping) -> None:
        self._bounds = bounds
        self._keeping = keeping
        self._workspaces = workspaces

    async def collect(self, run: Run, process: CliProcess, before: artifacts.Seen) -> None:
        """Its files, and what of them is the answer's. `before`: what its tree began with."""
        patch = await self._compare(run, process)
        packed = await self._pack(run, process)
        ours = [artifact for artifact in (patch, packed) if artifact is not None]
        taken = frozenset(artifact.path for artifact in ours)
        report = None if run.check is None or run.plan.check is None else run.plan.check.junit
        collected = await asyncio.to_thread(
            artifacts.collect, process.tree.work, before, run.files, self._bounds, taken, report
        )
        run.artifacts, run.left_out = collected.kept, [*run.left_out, *collected.left_out]
        run.artifacts = await self._keeping.keep(run.id, run.subject, [*ours, *run.artifacts], run.retention_s)
        if run.check is not None and any(artifact.path == report for artifact in run.artifacts):
            run.check.junit = report
        for artifact in run.artifacts:
            run.events.append("artifact", artifact.model_dump(mode="json"))
        if collected.left_out:
            _log.warning("run %s: files were left out: %s", run.id, collected.left_out[0].reason)

    async def push(self, run: Run) -> Pushed | None:
        """Leaves what the run has changed at the repository's server, where that was asked for. That it cannot be is a
        part of the answer."""
        plan, branch = run.plan, run.branch
        if branch is None or plan.push is None or plan.repository is None or run.checkout is None:
            return None
        assert self._workspaces is not None
        pushed = Pushed(branch=branch, problem=not_pushed(run))
        if run.patch is not None and pushed.problem is None:
            message = f"{plan.push.message or f'Work of {run.id}'}\n\nRun: {run.id}\nCo-authored-by: {run.co_author}\n"
            try:
                pushed.commit = await self._workspaces.push(plan.repository, run.checkout, branch, run.patch, message)
                if plan.push.pull_request:
                    title, body = message.partition("\n")[0], f"Run: {run.id}"  # nothing that mentions anybody
                    pushed.pull_request = await self._workspaces.open_pull_request(
                        plan.repository, run.checkout, branch, title, body
                    )
            except NotPushed as error:
                pushed.problem = str(error)
        run.events.append("pushed", pushed.model_dump(mode="json"))
        return pushed

    async def _pack(self, run: Run, process: CliProcess) -> Artifact | None:
        """All that the run has left in one file, where that was asked for and is possible."""
        if not run.plan.packs:
            return None
        try:
            return await asyncio.to_thread(archive.pack, process.tree.work, run.files, self._bounds.max_bytes)
        except (archive.TooLarge, TooMuch, OSError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            run.left_out = [*run.left_out, LeftOut(path=archive.NAME, reason=f"it cannot be made: {said}")]
            return None

    async def _compare(self, run: Run, process: CliProcess) -> Artifact | None:
        """What the run has changed of its repository; the patch, where there is one."""
        if run.checkout is None or self._workspaces is None:
            return None
        confined, tree = self._workspaces.confined, process.tree
        try:
            found = await difference(confined, tree, process.uid, run.checkout, run.files, self._bounds.max_bytes)
        except NoDifference as error:
            _log.error("run %s: what it has changed cannot be told: %s", run.id, error)
            run.left_out = [LeftOut(path=PATCH, reason=f"it cannot be told what has changed: {error}")]
            return None
        run.changes = found.changes
        if found.without is not None:
            run.left_out = [LeftOut(path=PATCH, reason=found.without)]
        run.patch = None if found.patch is None else run.files / found.patch.path
        return found.patch


def not_pushed(run: Run) -> str | None:
    """Why a branch with what the run has changed is not even tried."""
    if run.check is not None and not run.check.passed:
        return "its check has failed"
    if run.check is None and run.plan.check is not None:
        return "it was interrupted before its check"
    if run.patch is None:
        untold = any(left.path == PATCH for left in run.left_out)
        return "it cannot be told what has changed" if untold else "nothing has changed"
    return None
