"""PCRE patterns on Python's `re`: what PCRE writes differently, translated."""

from __future__ import annotations

import re
from functools import lru_cache

_START_OPTION = re.compile(r"(?:\(\*[A-Z_]+(?:=\d+)?\))+")
_FLAGS = re.compile(r"\(\?([imsx]*)(?:-([imsx]+))?\)")
_NAMED = re.compile(r"\(\?(?:<(?=[A-Za-z_])|'([A-Za-z_]\w*)')")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\^?[a-z]+:\]|[^\]\\])*\]", re.S)
_POSIX = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "xdigit": "0-9A-Fa-f",
    "word": r"\w",
    "punct": r"!-/:-@\[-`{-~",
}
_ESCAPES = {r"\z": r"\Z", r"\Z": r"(?=\n?\Z)", r"\h": r"[ \t]", r"\R": r"(?:\r\n|[\n\r\f\v])", r"\e": r"\x1b"}


@lru_cache(maxsize=4096)
def compile(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """The pattern for `re`. Raises re.error where it is no valid regex.

    Translated: named groups, options at the start and in the middle, POSIX classes, `\\z`, `\\Z`, `\\h`, `\\R`.
    What `re` has not (recursion, `\\K`, callouts) is refused as if it were no regex.
    """
    return re.compile(_translate(pattern), flags | re.ASCII)


# What `re` says, what PCRE2 says, and whether PCRE2 finds it only at the end of the pattern.
_MESSAGES = (
    ("unterminated character set", "missing terminating ] for character class", True),
    ("missing ), unterminated", "missing closing parenthesis", True),
    ("bad escape (end of pattern)", "\\ at end of pattern", True),
    ("nothing to repeat", "quantifier does not follow a repeatable item", False),
    ("multiple repeat", "quantifier does not follow a repeatable item", False),
    ("unbalanced parenthesis", "unmatched closing parenthesis", False),
    ("bad character range", "range out of order in character class", False),
    ("unknown extension", "unrecognized character after (? or (?-", False),
    ("look-behind requires", "length of lookbehind assertion is not limited", False),
)


def explain(pattern: str, problem: re.error) -> str:
    """The error as ngx.re gives it, where PCRE2's own text is known."""
    for ours, theirs, at_end in _MESSAGES:
        if problem.msg.startswith(ours):
            rest = "" if at_end else pattern[problem.pos or 0 :]
            return f'pcre2_compile() failed: {theirs} in "{pattern}"' + (f' at "{rest}"' if rest else "")
    return f'pcre2_compile() failed: {problem.msg} in "{pattern}"'


def _translate(pattern: str) -> str:
    start = _START_OPTION.match(pattern)
    at = start.end() if start else 0
    out: list[str] = []
    scopes: list[list[str]] = [[]]  # the options set in the middle, for each open group
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            out.append(_ESCAPES.get(pattern[at : at + 2], pattern[at : at + 2]))
            at += 2
        elif char == "[" and (found := _CLASS.match(pattern, at)):
            out.append(_class(found[0]))
            at = found.end()
        elif found := _FLAGS.match(pattern, at):
            # PCRE: from here to the end of the group, its other branches included.
            opening = f"(?{found[1]}{'-' + found[2] if found[2] else ''}:"
            out.append(opening)
            scopes[-1].append(opening)
            at = found.end()
        elif char == "(":
            named = _NAMED.match(pattern, at)
            if named:
                out.append(f"(?P<{named[1]}>" if named[1] else "(?P<")
                at = named.end()
            else:
                out.append("(")
                at += 1
            scopes.append([])
        elif char == ")":
            out.append(")" * (len(scopes.pop()) + 1) if len(scopes) > 1 else ")")
            at += 1
        elif char == "|":
            out.append(")" * len(scopes[-1]) + "|" + "".join(scopes[-1]))
            at += 1
        else:
            out.append(char)
            at += 1
    return "".join(out) + ")" * sum(map(len, scopes))


def _class(text: str) -> str:
    def posix(match: re.Match[str]) -> str:
        if match[1] or match[2] not in _POSIX:
            raise re.error(f"unknown POSIX class name {match[0]}")
        return _POSIX[match[2]]

    made = re.sub(r"\[:(\^?)([a-z]+):\]", posix, text)
    # `re` warns of set operations to come where PCRE sees plain characters.
    return made[0] + re.sub(r"(?<!\\)\[", r"\\[", made[1:-1]) + made[-1]
