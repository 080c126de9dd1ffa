"""The runs of an engine, and how much memory they hold: input, events and results."""

from __future__ import annotations

from collections import Counter

from claude_invoker.holding import Bounds, refusal
from claude_invoker.runs.run import Run

_RUN = 4096
"""Bytes of a run beside its texts."""


class Shelf:
    """Runs that are over and that no client reads are dropped for those that come, the oldest first. One that is not
    over forgets its own oldest events where nothing else is left."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.runs: dict[str, Run] = {}
        self.bytes = 0
        self._sizes: dict[str, int] = {}
        self._of: Counter[str] = Counter()
        self._over: dict[str, dict[str, Run]] = {}
        """By subject, and "" for all, in the order of their ends."""

    def put(self, run: Run) -> None:
        """Adds a run with its input. Raises Problem 429 or 507 where there is no room for one; a job has its own in
        Redis already."""
        size = run.plan.size + _RUN
        if not self._room(run, size) and not run.is_job:
            of_all = self.bytes + size > self._bounds.in_all
            raise refusal("all" if of_all else "subject", self._bounds)
        self.runs[run.id] = run
        self._sizes[run.id] = 0
        self._add(run, size)
        run.events.on_size = lambda by: self.grew(run, by)

    def grew(self, run: Run, by: int) -> None:
        """What the run holds has become more by so many bytes, or less."""
        if run.id not in self._sizes:
            return
        self._add(run, by)
        if by > 0 and not self._room(run, 0):
            while not self._fits(run, 0) and run.events.forget_oldest():
                pass

    def ended(self, run: Run) -> None:
        """The run is over: its input goes, and it may be dropped."""
        self.grew(run, -run.plan.size)
        run.plan = run.plan.without_input()
        if run.id in self._sizes:
            for whose in (run.subject, ""):
                self._over.setdefault(whose, {})[run.id] = run

    def take(self, run_id: str) -> None:
        """Forgets a run, if it is there."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return
        self._add(run, -self._sizes[run_id])
        del self._sizes[run_id]
        for whose in (run.subject, ""):
            over = self._over.get(whose, {})
            over.pop(run_id, None)
            if not over:
                self._over.pop(whose, None)

    def _add(self, run: Run, by: int) -> None:
        self._sizes[run.id] += by
        self.bytes += by
        self._of[run.subject] += by
        if self._of[run.subject] <= 0:
            del self._of[run.subject]

    def _fits(self, run: Run, size: int) -> bool:
        """Whether there is room for so many bytes more of this run, for its subject and in all."""
        return self._of[run.subject] + size <= self._bounds.per_subject and self.bytes + size <= self._bounds.in_all

    def _room(self, run: Run, size: int) -> bool:
        """Makes room for so many bytes more of this run. Whether there is."""
        while self._of[run.subject] + size > self._bounds.per_subject and self._drop(run.subject):
            pass
        while self.bytes + size > self._bounds.in_all and self._drop(""):
            pass
        return self._fits(run, size)

    def _drop(self, whose: str) -> bool:
        """Drops the oldest that is over of a subject's runs, or of all (""). False where there is none."""
        for over in self._over.get(whose, {}).values():
            if not over.watchers:
                self.take(over.id)
                return True
        return False
