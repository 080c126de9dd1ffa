"""Reads what a run has changed in its repository."""

from __future__ import annotations

from collections.abc import Sequence

from claude_invoker.dashboard import patch
from claude_invoker.model import Artifact
from claude_invoker.problem import Problem
from claude_invoker.runs.kept import Files
from claude_invoker.workspace.difference import PATCH


def patch_among(artifacts: Sequence[Artifact]) -> Artifact | None:
    return next((each for each in artifacts if each.path == PATCH), None)


async def difference(files: Files, found: Artifact) -> patch.Shown | None:
    """Its beginning; None where it cannot be had now."""
    size = min(found.size, patch.MOST_BYTES)
    try:
        said = b"".join([piece async for piece in await files.read(found, 0, size)])
    except (Problem, OSError):
        return None
    return patch.shown(said, is_whole=size == found.size)
