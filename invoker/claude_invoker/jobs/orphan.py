"""What a worker that died on this machine has left of a job."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from claude_invoker.cli.walk import delete
from claude_invoker.jobs.record import Job
from claude_invoker.model import Artifact
from claude_invoker.runs import artifacts
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)


def is_orphaned(job: Job) -> bool:
    """True where this machine has the directory in which the job ran, and its engine no longer holds the lock on it."""
    lock = Path(job.work).parents[1] / ".lock" if job.work.count("/") > 2 else None
    if lock is None or lock.parents[1].name != "engines":
        return False
    try:
        with lock.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # it is held, or not there
        return False


def left_in(job: Job, settings: Settings) -> list[Artifact]:
    """Keeps the files of a dead run as artifacts, where this machine can see them."""
    if not job.work or not Path(job.work).is_dir():
        return []
    bounds = artifacts.Bounds(settings.artifact_max_bytes, settings.artifact_max_count)
    into = artifacts.directory(settings, job.id)
    try:
        delete(into)  # of a recovery that died half-way
        return artifacts.collect(Path(job.work), {}, into, bounds).kept
    except OSError as error:
        _log.warning("job %s: what it left cannot be read (%s)", job.id, error.strerror)
        return []
