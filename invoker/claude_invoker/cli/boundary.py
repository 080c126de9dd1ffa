"""Finds out by doing how strong the boundary around a run is here, and gives the launcher what makes it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from claude_invoker.cli.launcher import Launcher, WayOut
from claude_invoker.cli.rehearsal import rehearse
from claude_invoker.egress.filters import Filters
from claude_invoker.isolation import trial
from claude_invoker.isolation.box import Box
from claude_invoker.isolation.strength import Boundary, Property, Strength, admit, computed

_log = logging.getLogger(__name__)


async def establish(
    launcher: Launcher,
    filters: Filters,
    programs: Path,
    catalog: Path,
    workplace: Path,
    least: Strength,
    *,
    commands_below: bool,
) -> Boundary:
    """The strongest that works, from now on around everything that `launcher` starts; and `filters` for runs that reach
    hosts, where runs can be kept to them.

    `programs` and `catalog`: directories of ours that runs can pass through. Raises TooWeak, NoUserFree, OSError.
    """
    # One of the runs' own: whatever has the killer's is struck by every invoker of this machine that ends a run.
    uid = launcher.users.take()
    try:
        return await _established(launcher, filters, programs, catalog, workplace, least, uid, commands_below)
    finally:
        if uid is not None:
            await launcher.retire_user(uid)


async def _established(
    launcher: Launcher,
    filters: Filters,
    programs: Path,
    catalog: Path,
    workplace: Path,
    least: Strength,
    uid: int | None,
    commands_below: bool,
) -> Boundary:
    egress = Boundary(Strength.NONE).egress_obstacle
    properties = [await asyncio.to_thread(trial.own_users, uid)]
    boxes: list[Box] = []
    if uid is None or computed(properties) >= Strength.USER:
        boxes, tried = await asyncio.to_thread(trial.boxes, programs, launcher.cli, uid, catalog)
        properties += tried
    for box in boxes:
        launcher.box = box
        obstacle = await rehearse(launcher, workplace)
        properties.append(Property(f"a command of the real CLI within {box.strength.label}", box.strength, obstacle))
        if obstacle is None:
            break
        launcher.box = None
    if launcher.box is not None:
        network, egress = await asyncio.to_thread(trial.network_of_its_own, launcher.box, uid)
        launcher.way_out = None if network is None else WayOut(network, filters)
    boundary = admit(properties, least, commands_below=commands_below, egress_obstacle=egress)
    _log.info("the boundary around a run: %s", boundary.strength.label)
    if launcher.box is not None and launcher.box.less is not None:
        _log.info("%s %s", boundary.strength.label, launcher.box.less)
    for missing in boundary.missing:
        _log.warning("for `%s` is missing: %s: %s", missing.needed_for.label, missing.name, missing.obstacle)
    if egress is not None:
        _log.warning("tiers that open hosts (egress) are refused, since runs cannot be kept to them: %s", egress)
    if boundary.left_out:
        _log.warning("tools that no run may have here: %s", ", ".join(boundary.left_out))
    return boundary
