"""Mutants of the Lua scripts that Redis runs: one operator, number, condition or command changed."""

from __future__ import annotations

import re

from tests.mutants.mutant import Mutant

_COMMENT = re.compile(r"--[^\n]*")
_STRING = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
# The first that matches at a place is taken, so the longer ones stand first.
_OPERATORS: tuple[tuple[str, str, str], ...] = (
    (r"~=", "~=", "=="),
    (r"==", "==", "~="),
    (r"<=", "<=", "<"),
    (r">=", ">=", ">"),
    (r"(?<![<>~=])<(?!=)", "<", "<="),
    (r"(?<![<>~=])>(?!=)", ">", ">="),
    (r"\band\b", "and", "or"),
    (r"\bor\b", "or", "and"),
    (r"\bnot ", "not ", ""),
    (r"(?<=\w |\) |\] )\+(?= )", "+", "-"),
    (r"(?<=\w |\) |\] )-(?= )", "-", "+"),
    (r"(?<=\w |\) |\] )\*(?= )", "*", "+"),
    (r"(?<=\w |\) |\] )/(?= )", "/", "*"),
    (r"\bmath\.min\b", "math.min", "math.max"),
    (r"\bmath\.max\b", "math.max", "math.min"),
    (r"\bmath\.ceil\b", "math.ceil", "math.floor"),
    (r"\bmath\.floor\b", "math.floor", "math.ceil"),
    (r"\btrue\b", "true", "false"),
    (r"\bfalse\b", "false", "true"),
    (r"\bLPUSH\b", "LPUSH", "RPUSH"),
    (r"\bLPOP\b", "LPOP", "RPOP"),
)
_NUMBER = re.compile(r"(?<![\w.%])(?<!KEYS\[)(?<!ARGV\[)\d+(?![\w.])")
_CONDITION = re.compile(r"\b(?:else)?if (.+?) then\b|\bwhile (.+?) do\b")
# A command for its effect: the whole statement on one line, behind `then` on the same line too.
_EFFECT = re.compile(r"(?:^[ \t]*|\bthen )((?:redis\.call|grow|forget|take_off|write_\w+|book_cost|count_in)\([^\n]*?\))(?=$| end$)", re.M)  # fmt: skip


def mutants(path: str, text: str) -> list[Mutant]:
    """All of a file, in its order; comments stay as they are, and of strings the commands to Redis alone are changed."""
    blank = _COMMENT.sub(lambda found: " " * len(found[0]), text)
    code = _STRING.sub(lambda found: found[0] if found[0][1:-1].isupper() else " " * len(found[0]), blank)
    found: set[Mutant] = set()

    def add(start: int, end: int, becomes: str) -> None:
        found.add(Mutant.of(path, text, start, end, becomes))

    for pattern, _, becomes in _OPERATORS:
        for match in re.finditer(pattern, code):
            add(*match.span(), becomes)
    for match in _NUMBER.finditer(code):
        add(*match.span(), str(int(match[0]) + 1))
    for match in _CONDITION.finditer(code):
        group = 1 if match[1] else 2
        add(*match.span(group), f"not ({text[slice(*match.span(group))]})")
    for match in _EFFECT.finditer(code):
        add(*match.span(1), "")
    return sorted(found)
