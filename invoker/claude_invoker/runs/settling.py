"""The call of a tool that a job has left in a session where it was put away, when nobody decides about it any more: the
job is over. The CLI would begin the next turn with that call, whether or not it has our hook by then; so the call is
ended first, by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from claude_invoker.cli.command import NOTHING, Shape
from claude_invoker.cli.messages import HookCall, Result
from claude_invoker.cli.process import FIRST_MODEL, CliProcess

_WITHIN_S = 10.0
"""In which the CLI has begun with the call: it takes a twentieth of that. A turn that was lost may have ended it."""


def settling(shape: Shape, tool: str) -> Shape:
    """Of a process in which a call of that tool is ended: it is asked about, and no other is there."""
    return replace(shape, session="deferred", tools=(tool,), asked=(tool,), given=NOTHING)


async def settle(process: CliProcess) -> None:
    """Interrupts the call, which the model is told in the next turn. No model is asked. Raises CliError."""
    await process.begin(FIRST_MODEL, None, None, ())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WITHIN_S):
            async for message in process.messages():
                if isinstance(message, HookCall):
                    process.interrupt()
                elif isinstance(message, Result):
                    return
