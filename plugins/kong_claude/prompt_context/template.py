"""Templates of the gateway's own texts: `{{name}}` stands for a context value, nothing else is special."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from claude_contract.errors import ConfigError
from kong_claude.prompt_context.inert import inert

_HOLE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Template:
    """`parts` alternate: text, name, text, name, …, text."""

    source: str
    parts: tuple[str, ...]

    @property
    def shortest(self) -> str:
        """The text with nothing for any value."""
        return "".join(self.parts[::2])

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with inert values, in one pass: what a value holds is never read as a template."""
        if len(self.parts) == 1:
            return self.source
        filled = (inert(values.get(part, "")) if index % 2 else part for index, part in enumerate(self.parts))
        return "".join(filled)


def parse(source: str | None, names: Collection[str], field_name: str) -> Template:
    """A template over the context's names. Raises ConfigError for an unknown one."""
    parts = tuple(_HOLE.split(source or ""))
    for name in parts[1::2]:
        if name not in names:
            raise ConfigError(field_name, f"{{{{{name}}}}} is not a name in context")
    return Template(source or "", parts)
