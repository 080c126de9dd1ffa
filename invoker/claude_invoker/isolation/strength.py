"""How strong the boundary around a run is: computed from what holds here, pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Strength(IntEnum):
    """Each keeps a run from more than those below it."""

    NONE = 0
    """Runs share a user: tools that run commands reach the other runs."""
    USER = 1
    """A user id for each run."""
    LANDLOCK = 2
    """A Landlock domain and a seccomp filter for each run, with narrower ones for its commands."""
    NAMESPACES = 3
    """Namespaces in the domain's place; commands have theirs in them."""

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Property:
    """Something that has been tried here. `obstacle`: why it does not hold; None where it does."""

    name: str
    needed_for: Strength
    obstacle: str | None = None


_NEEDS = {
    Strength.USER: {Strength.USER},
    Strength.LANDLOCK: {Strength.LANDLOCK},
    Strength.NAMESPACES: {Strength.LANDLOCK, Strength.NAMESPACES},
}
"""Whose properties a strength needs. Above `user` not those of it: a domain keeps runs of one user apart, too."""


def computed(properties: Iterable[Property]) -> Strength:
    """The strongest of which nothing that it needs is missing, nor has not been tried."""
    found = tuple(properties)
    held = {tried.needed_for for tried in found} - {tried.needed_for for tried in found if tried.obstacle is not None}
    return max((strength for strength, needs in _NEEDS.items() if needs <= held), default=Strength.NONE)


@dataclass(frozen=True)
class Boundary:
    """What surrounds every run of this invoker."""

    strength: Strength
    missing: tuple[Property, ...] = ()
    commands_below: bool = False
    """The operator allows commands whatever the strength is."""
    egress_obstacle: str | None = "a run has a network of its own only from `landlock` on"
    """Why no run can be kept to the hosts that its tier opens; None where it can."""

    @property
    def label(self) -> str:
        """As records show it."""
        return self.strength.label + (" (commands allowed below the least accepted)" if self.commands_below else "")

    @property
    def why(self) -> str:
        """What a stronger one would need."""
        return "; ".join(f"{missing.name}: {missing.obstacle}" for missing in self.missing)

    @property
    def refuses_commands(self) -> str | None:
        """Why no program of ours may be started for a run; None where one may."""
        return "runs share a user here" if self.strength < Strength.USER and not self.commands_below else None

    def refuses(self, tool: str, *, egress: bool = False) -> str | None:
        """Why a run may not have this tool; None where it may. `egress`: the run reaches some hosts."""
        if tool in COMMAND_TOOLS and self.refuses_commands:
            return f"it runs commands, and {self.refuses_commands}"
        if tool in NETWORK_TOOLS and self.strength >= Strength.LANDLOCK and not egress:
            return "it reaches the network, and without hosts that its tier opens (egress) a run reaches only the API"
        return None

    @property
    def left_out(self) -> tuple[str, ...]:
        """The tools that no run may have."""
        egress = self.egress_obstacle is None
        return tuple(tool for tool in sorted(USE_EGRESS) if self.refuses(tool, egress=egress))


COMMAND_TOOLS = frozenset({"Bash"})
NETWORK_TOOLS = frozenset({"WebFetch"})
"""What the CLI itself fetches. WebSearch is the API's."""
USE_EGRESS = COMMAND_TOOLS | NETWORK_TOOLS
"""Without any of these a run has nothing that could go anywhere."""


def admit(
    properties: Iterable[Property], least: Strength, *, commands_below: bool, egress_obstacle: str | None
) -> Boundary:
    """Raises TooWeak where it is less than the least that is accepted."""
    found = tuple(properties)
    missing = tuple(p for p in found if p.obstacle is not None)
    boundary = Boundary(computed(found), missing, commands_below, egress_obstacle)
    if boundary.strength < least and not commands_below:
        raise TooWeak(
            f"the boundary around a run is only `{boundary.strength.label}` here, INVOKER_ISOLATION={least.label} is "
            f"the least accepted. Missing: {boundary.why}. Provide that, accept less (INVOKER_ISOLATION="
            f"{boundary.strength.label}), or run commands all the same (INVOKER_ALLOW_COMMANDS_BELOW=1)"
        )
    return boundary


class TooWeak(ValueError):
    """The boundary is weaker than accepted: the invoker does not start."""
