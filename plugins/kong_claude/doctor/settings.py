"""Kong's settings and secrets as far as they can be seen: what nobody could see is not called wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

LUA_PATH = "KONG_LUA_PACKAGE_PATH"


@dataclass(frozen=True)
class Settings:
    """`values` by their names in Kong's environment. `shown`: the names of which it is known whether Kong has them,
    with `*` for any letters; of others an absent one says nothing."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    shown: tuple[str, ...] = ()

    def get(self, name: str) -> str | None:
        return self.values.get(name)

    def shows(self, *names: str) -> bool:
        return all(any(fnmatchcase(name, pattern) for pattern in self.shown) for name in names)

    def over(self, other: Settings) -> Settings:
        """What is shown here as it is here, the rest as it is there."""
        rest = {name: value for name, value in other.values.items() if not self.shows(name)}
        return Settings({**rest, **self.values}, self.shown + other.shown)


def of_environment(environment: Mapping[str, str]) -> Settings:
    """Kong's whole environment, if some setting of Kong's is in it; else what happens to be there."""
    whole = any(name.startswith("KONG_") for name in environment)
    return Settings(environment, ("*",) if whole else ())
