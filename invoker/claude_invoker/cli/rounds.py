"""A run that takes several processes, one after the other: in its tree, as its user, with its token."""

from __future__ import annotations

import asyncio

from claude_invoker.cli.aside import Aside
from claude_invoker.cli.command import Shape
from claude_invoker.cli.launcher import Launcher, Ready
from claude_invoker.cli.process import CliError
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.cli.walk import TooMuch


async def aside(launcher: Launcher, ready: Ready, text: str) -> Aside:
    """A command of the run, whose CLI has ended; the caller ends it. Raises CliError."""
    await unbroken(_aside(launcher, ready, text))
    assert isinstance(ready.aside, Aside)
    return ready.aside


async def _aside(launcher: Launcher, ready: Ready, text: str) -> None:
    process = ready.process
    launcher.refuse_unsurrounded(process.shape)
    try:
        ready.aside = await Aside.spawn(
            text,
            process.tree,
            name=process.name,
            uid=process.uid,
            api=launcher.proxy.socket,
            limits=launcher.bounds,
            killer=launcher.killer,
            box=launcher.box,
            network=launcher.network(process.shape),
            given=process.shape.given,
        )
        await launcher.open_passage(ready.aside, process.shape)
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CliError(f"a command of the run cannot be started: {said}") from error


async def go_on(launcher: Launcher, ready: Ready, shape: Shape) -> None:
    """Gives `ready` another process of the CLI in the place of the one that has ended; as in a session nothing of its
    directory but its files and its transcript is left. Raises CliError."""
    await unbroken(_go_on(launcher, ready, shape))


async def _go_on(launcher: Launcher, ready: Ready, shape: Shape) -> None:
    tree, uid, name = ready.process.tree, ready.process.uid, ready.process.name
    launcher.refuse_unsurrounded(shape)
    try:
        await asyncio.to_thread(tree.take_back, uid)
        await asyncio.to_thread(tree.create, uid)
        ready.process = await launcher.spawn(shape, tree, uid, name, ready.token)
        await launcher.get_ready(ready.process)
    except (OSError, RuntimeError, TooMuch) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CliError(f"the run cannot go on: {said}") from error
