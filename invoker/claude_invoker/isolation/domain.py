"""The `landlock` strength: a Landlock domain and a filter of system calls, which need no rights."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.isolation import confine, domains, reaper
from claude_invoker.isolation.box import Box, Entry, Kind
from claude_invoker.isolation.network import Way
from claude_invoker.isolation.strength import Strength


@dataclass(frozen=True)
class Domain(Box):
    shared: bool
    """Whether its runs have our user id."""

    @property
    def strength(self) -> Strength:
        return Strength.LANDLOCK

    @property
    def ways(self) -> tuple[Way, ...]:
        return super().ways if self.shared else tuple(Way)

    @contextmanager
    def around(self, tree: Path, kind: Kind, api: Path, readable: tuple[Path, ...] = ()) -> Iterator[Entry]:
        domain = confine.ruleset(domains.of_cli(tree, (*self.programs, *readable)), kind.port)
        enter = functools.partial(confine.enter, domain, kind.filter)

        def enter_watched() -> None:
            last = reaper.last_as_we_do()
            enter()
            reaper.stay_behind(last)

        try:
            if self.shared:
                yield Entry(enter=enter_watched, first=lambda started: started, end=reaper.END)
            else:
                yield Entry(enter=enter)
        finally:
            os.close(domain)
