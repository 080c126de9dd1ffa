"""One small change of a file, which some test has to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Mutant:
    """`start` to `end` of a file's text are replaced. `before` and `after` are the lines that this is in, each in one."""

    path: str
    line: int
    start: int
    end: int
    becomes: str
    before: str
    after: str

    @classmethod
    def of(cls, path: str, text: str, start: int, end: int, becomes: str) -> Mutant:
        first = text.rfind("\n", 0, start) + 1
        last = text.find("\n", end)
        before, after = text[first:last], text[first:start] + becomes + text[end:last]
        return cls(path, text.count("\n", 0, start) + 1, start, end, becomes, _one(before), _one(after))

    def applied(self, text: str) -> str:
        return text[: self.start] + self.becomes + text[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} → {self.after}"


def _one(lines: str) -> str:
    return " ".join(lines.split())
