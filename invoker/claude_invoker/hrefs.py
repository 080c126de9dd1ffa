"""Where the files of a run are to be had, by the prefix under which it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from claude_invoker.model import Artifact, RunResult


def with_hrefs(base: str, run_id: str, artifacts: Sequence[Artifact]) -> list[Artifact]:
    # A queued run is found under its job, which outlives the process that ran it.
    kind = "jobs" if run_id.startswith("job_") else "runs"
    root = f"{base}/{kind}/{run_id}/artifacts/"
    return [artifact.model_copy(update={"href": root + quote(artifact.path)}) for artifact in artifacts]


def result_with_hrefs(base: str, result: RunResult) -> RunResult:
    return result.model_copy(update={"artifacts": with_hrefs(base, result.id, result.artifacts)})
