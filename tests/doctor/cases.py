"""Cases: a file, the environment that the doctor is told, and the truth about both, from a seed."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from claude_contract.attestation import new_private_key
from kong_claude.doctor import reach, rules, view
from tests.doctor.forms import BESIDE, OFTEN, WAYS, WIDE, Finding, Maker, Planted, Way, path
from tests.doctor.settings import SETTINGS
from tests.doctor.world import World, Written, written

TOKEN_SECRET = "q8Zr1xJ0f7VbN3kLw5TgYh2MdC9sEaPu"


@functools.cache
def secrets() -> dict[str, str]:
    return {"CLAUDE_JWT_SECRET": TOKEN_SECRET, "CLAUDE_ATTESTATION_KEY": new_private_key()}


@dataclass(frozen=True)
class Case:
    number: int
    written: Written
    environment: Mapping[str, str]
    paths: tuple[str, ...]
    """Those of the routes that may lead to the invoker."""
    beside: str
    """The path of the other one, which no other case has."""
    found: frozenset[Finding]
    opens: frozenset[str]
    shuts: frozenset[str]
    forms: frozenset[str]

    def view(self, directory: Path) -> view.View:
        file = directory / f"kong{self.number}.{self.written.suffix}"
        if not file.exists():
            file.write_text(self.written.text)
        return view.from_file(file, self.environment)

    def differences(self, directory: Path) -> list[str]:
        """Where the doctor and the truth part."""
        seen = self.view(directory)
        said = {(opening.rule, opening.where) for opening in rules.examine(seen)}
        missed = [f"missed {found}" for found in sorted(self.found - said)]
        false = [f"false {found}" for found in sorted(said - self.found)]
        beside = [] if any(where == f"route {BESIDE}" for _, where in self.found) else [BESIDE]
        elsewhere = [route.name for route in reach.elsewhere(seen)]
        return missed + false + ([f"not examined: {elsewhere}"] if elsewhere != beside else [])


def cases(count: int, port: int, seed: int = 0) -> Iterator[Case]:
    """`port`: of the upstream. Each way, and each wrong setting, is there as often as the others."""
    turns: Counter[str] = Counter()
    for number, ways in enumerate(queue(count, seed)):
        maker = Maker(seed * 1_000_003 + number, port, secrets(), turns)
        planted = [way(maker) for way in ways]
        if number % 5:  # every fifth has sound settings
            setting = SETTINGS[turns["setting"] % len(SETTINGS)]
            turns["setting"] += 1
            planted.append(setting(maker.world))
            maker.world.forms.add(f"setting: {setting.__name__}")
        maker.world.forms.update(f"way: {way.__name__}" for way in ways)
        yield case(number, maker.world, planted)


def queue(count: int, seed: int) -> list[list[Way]]:
    """The ways of each file: one or two, or one alone."""
    every = [way for way in WAYS for _ in range(OFTEN.get(way, 1))]
    random.Random(seed).shuffle(every)
    ways = itertools.cycle(every)
    waiting: list[Way] = []
    made = []
    for number in range(count):
        mine = [waiting.pop() if waiting else next(ways)]
        if number % 2:
            waiting.append(next(ways))
            if not {mine[0], waiting[0]}.intersection(WIDE):
                mine.append(waiting.pop())
        made.append(mine)
    return made


def case(number: int, world: World, planted: list[Planted]) -> Case:
    text = written(world)
    served = [e for e in world.of("routes") if "paths" in e.fields and not e.said]
    paths = [path(route) for route in served if route.label != BESIDE]
    return Case(
        number,
        text,
        dict(world.environment),
        tuple(paths),
        next(path(route) for route in served if route.label == BESIDE),
        frozenset(found for p in planted for found in p.found),
        frozenset().union(*(p.opens for p in planted)),
        frozenset().union(*(p.shuts for p in planted)),
        frozenset(world.forms),
    )


def counted(made: list[Case]) -> Counter[str]:
    return Counter(form for one in made for form in one.forms)
