"""Which calls of tools pass, are asked about, or are denied: a tier's rules, decided for one call. Pure.

A pattern is written as Claude Code writes its permission rules, and only where the CLI obeys what it seems to say:
`Bash`, `Bash(git log:*)`, `Bash(make test)`, `Edit(/src/**)` and `Read(/docs/*.md)` (from the run's directory on; they
govern all tools that write, or read, files), `WebFetch(domain:example.com)`, `mcp__github__*`.

In doubt it is asked. A command is read as plain words; a shell makes more of it than words as soon as it has an
expansion, a substitution, a redirection or a group, and then nobody can say from outside what it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial
from typing import Any

MAX_PATTERN = 200  # characters
_MOST_COMMAND = 20_000  # characters that are read; a longer one is in doubt
_MOST_COMMANDS = 100  # in one line, each of which is held against each pattern; so is one of more

WRITERS = ("Edit", "Write", "MultiEdit", "NotebookEdit")
"""Tools that `Edit(…)` governs."""
READERS = ("Read", "Grep", "Glob")
"""Tools that `Read(…)` governs."""
AGENT = "Agent"
"""The tool that comes with the agents that a run has."""
QUESTION = "AskUserQuestion"
"""The tool by which a model asks. Each call of it is for a person, so that there are no rules about it."""
_AGENTS = (AGENT, "Task")
"""One tool: it is started by the one name, and asks by the other."""
_OTHERS = (*_AGENTS, "Bash", "TodoWrite", "WebFetch", "WebSearch")
TOOLS = (*WRITERS, *READERS, *_OTHERS)
_URL = re.compile(r"https?://([A-Za-z0-9.-]+)(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?")
_PATHS = {"NotebookEdit": "notebook_path", "Grep": "path", "Glob": "path"}

Place = Callable[[str], str | None]
"""Where a path of a call really is: relative to the run's directory, without links; None where that cannot be told, or
is outside."""


class Verdict(IntEnum):
    """The stricter is the greater."""

    ALLOW = 0
    ASK = 1
    DENY = 2


class _Fit(IntEnum):
    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Pattern:
    """`argument`: the words of a command, a path, a domain; empty for every call of the tool."""

    tool: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.tool}({self.argument})" if self.argument else self.tool

    @property
    def governs(self) -> tuple[str, ...]:
        """The tools that it is about; of an MCP server's none by name."""
        if self.argument:
            return {"Edit": WRITERS, "Read": READERS}.get(self.tool, (self.tool,))
        return _AGENTS if self.tool in _AGENTS else (self.tool,)

    @property
    def is_of_a_server(self) -> bool:
        return self.tool.startswith("mcp__")

    @property
    def server(self) -> str:
        """Of MCP, whose tools it is about; empty where it is about others."""
        return self.tool[5:].partition("__")[0] if self.is_of_a_server else ""


@dataclass(frozen=True, slots=True)
class Decision:
    """`why`: which pattern it was, in words for who is asked."""

    verdict: Verdict
    why: str = ""


PASSES = Decision(Verdict.ALLOW)


@dataclass(frozen=True, slots=True)
class Rules:
    """`allow` is what passes of that which is asked about. `four_eyes`: nobody decides about a run of their own."""

    ask: tuple[Pattern, ...] = ()
    deny: tuple[Pattern, ...] = ()
    allow: tuple[Pattern, ...] = ()
    four_eyes: bool = False

    def __bool__(self) -> bool:
        return bool(self.ask or self.deny)

    def names(self, tool: str) -> bool:
        """Whether a call of the tool may be asked about or denied."""
        return any(tool in pattern.governs or _is_mcp(pattern, tool) for pattern in (*self.ask, *self.deny))

    def decide(self, tool: str, given: Mapping[str, Any], place: Place) -> Decision:
        """About a call of a tool with this input; of several commands in one line the strictest."""
        if tool != "Bash":
            return self._decide(tool, lambda argument: _fit_input(argument, tool, given, place))
        commands = _commands(given.get("command"))
        if commands is None:
            return self._decide(tool, lambda _: _Fit.MAYBE)
        return strictest([self._decide(tool, partial(_fit_words, *command)) for command in commands])

    def _decide(self, tool: str, fit: Callable[[str], _Fit]) -> Decision:
        """`fit`: how the call fits what stands in the brackets of a pattern."""

        def best(patterns: Sequence[Pattern]) -> tuple[Pattern | None, _Fit]:
            fits = ((pattern, _fit(pattern, tool, fit)) for pattern in patterns)
            return max(fits, key=lambda found: found[1], default=(None, _Fit.NO))

        denied, is_denied = best(self.deny)
        if is_denied is _Fit.YES:
            return Decision(Verdict.DENY, f"{denied} is denied")
        if is_denied is _Fit.MAYBE:
            return Decision(Verdict.ASK, f"it cannot be told that it is not {denied}, which is denied")
        asked, is_asked = best(self.ask)
        if is_asked is _Fit.NO or best(self.allow)[1] is _Fit.YES:
            return PASSES
        if is_asked is _Fit.MAYBE:
            return Decision(Verdict.ASK, f"it cannot be told that it is not {asked}")
        return Decision(Verdict.ASK, f"{asked} is asked about")


NO_RULES = Rules()


def strictest(decisions: Iterable[Decision]) -> Decision:
    return max(decisions, key=lambda decision: decision.verdict, default=PASSES)


def parse(text: str) -> Pattern:
    """Raises ValueError, which says what a pattern has to be."""
    if len(text) > MAX_PATTERN:
        raise ValueError(f"has more than {MAX_PATTERN} characters")
    if _MCP.fullmatch(text):
        return Pattern(text)
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(
            "must be a tool, such as Bash or mcp__github__*, or a tool with what it is given, as Bash(git log:*)"
        )
    tool, argument = found.groups()
    if tool not in TOOLS:
        raise ValueError(f"{tool} is not known: there are {', '.join(TOOLS)}, and mcp__server__tool")
    if argument is None:
        return Pattern(tool)
    for family in ("Edit", "Read"):
        if tool != family and tool in Pattern(family, "/").governs:
            raise ValueError(f"matches nothing: {family}({argument}) governs {tool}, too")
    if tool not in _ARGUMENTS:
        raise ValueError(f"matches nothing: of {tool} there are only all calls, as {tool}")
    form, says = _ARGUMENTS[tool]
    if not form.fullmatch(argument) or (tool in ("Edit", "Read") and not _is_bounded(argument)):
        raise ValueError(says)
    return Pattern(tool, argument)


def parse_all(texts: Iterable[str]) -> tuple[Pattern, ...]:
    """Each once. Raises ValueError."""
    return tuple(dict.fromkeys(map(parse, texts)))


# Nothing here is more to a shell than itself.
_PLAIN = r"[A-Za-z0-9_./:=@%+,-]"
_NAME = r"[A-Za-z0-9_.@+,= -]"
_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9]*)(?:\((.*)\))?")
_MCP = re.compile(r"mcp__[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*(?:__(?:\*|[A-Za-z0-9_-]+))?")
_ARGUMENTS = {
    "Bash": (
        re.compile(rf"(?!=){_PLAIN}+(?: {_PLAIN}+)*?(?::\*)?"),
        "must be plain words, such as Bash(make test), with :* behind them for all that begins so: Bash(git log:*)",
    ),
    **{
        tool: (
            re.compile(rf"(?:/(?:\*\*|{_NAME}*[*?]?{_NAME}*))+"),
            f"must be a path from the run's directory on, such as {tool}(/src/**) or {tool}(/docs/*.md): with / in "
            "front, at most two ** and one * or ? in a name",
        )
        for tool in ("Edit", "Read")
    },
    "WebFetch": (
        re.compile(r"domain:(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)+"),
        "must be a domain, such as WebFetch(domain:example.com) or WebFetch(domain:*.example.com)",
    ),
}


def _is_bounded(path: str) -> bool:
    """Whether it names something, and is matched in a time that no path of an enemy's makes long."""
    names = path.split("/")[1:]
    return all(name not in ("", ".", "..") for name in names) and names.count("**") <= 2


def _is_mcp(pattern: Pattern, tool: str) -> bool:
    if not pattern.is_of_a_server:
        return False
    rest = pattern.tool[5:].partition("__")[2]
    return tool == pattern.tool or (rest in ("", "*") and tool.startswith(f"mcp__{pattern.server}__"))


def _fit(pattern: Pattern, tool: str, fit: Callable[[str], _Fit]) -> _Fit:
    if _is_mcp(pattern, tool):
        return _Fit.YES
    if tool not in pattern.governs:
        return _Fit.NO
    return fit(pattern.argument) if pattern.argument else _Fit.YES


def _fit_input(argument: str, tool: str, given: Mapping[str, Any], place: Place) -> _Fit:
    if tool == "WebFetch":
        return _fit_domain(argument.removeprefix("domain:"), given.get("url"))
    name = given.get(_PATHS.get(tool, "file_path"))
    # Grep and Glob read what is below a directory, links included.
    real = place(name) if isinstance(name, str) and tool not in ("Grep", "Glob") else None
    if real is None:
        return _Fit.MAYBE
    return _Fit.YES if _expression(argument).fullmatch(real) else _Fit.NO


def _fit_domain(domain: str, url: Any) -> _Fit:
    """A name with anything odd around it is in doubt."""
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        return _Fit.MAYBE
    host = found[1].lower().removesuffix(".")
    is_it = host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
    return _Fit.YES if is_it else _Fit.NO


@lru_cache(1024)
def _expression(path: str) -> re.Pattern[str]:
    """What it matches, and all that is below it, as in .gitignore."""
    names = path.split("/")[1:]
    parts = []
    for number, name in enumerate(names):
        is_last = number == len(names) - 1
        if name == "**":
            parts.append(r"[^/]+(?:/[^/]+)*" if is_last else r"(?:[^/]+/)*")
        else:
            text = "".join({"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter)) for letter in name)
            parts.append(text if is_last else text + "/")
    return re.compile("".join(parts) + "(?:/.*)?", re.DOTALL)


# Commands

_QUOTED = r"""'[^'\x00]*'|"[^"$`\\!\x00]*\""""
_WORD = rf"(?:{_PLAIN}|{_QUOTED})+"
_TOKEN = re.compile(rf"[ \t]+|(?P<word>{_WORD})|(?P<end>&&|\|\||;|\|(?!&)|\n)")
_PIECE = re.compile(rf"{_QUOTED}|{_PLAIN}+")
# What runs a command that it is told elsewhere than in its words, or gives one another name.
_RUNNERS = frozenset(
    (
        ".",
        "alias",
        "ash",
        "bash",
        "compgen",
        "complete",
        "dash",
        "env",
        "eval",
        "exec",
        "ksh",
        "mapfile",
        "parallel",
        "readarray",
        "sh",
        "source",
        "trap",
        "xargs",
        "zsh",
    )
)


def _commands(line: Any) -> list[tuple[list[str], list[str]]] | None:
    """The simple commands of a command line, as words, and what these could name when another program reads them; None
    where a shell could make something else of it."""
    if not isinstance(line, str) or len(line) > _MOST_COMMAND:
        return None
    found: list[list[str]] = [[]]
    at = 0
    while at < len(line):
        token = _TOKEN.match(line, at)
        if token is None:
            return None
        if token["word"]:
            found[-1].append("".join(map(_unquoted, _PIECE.findall(token["word"]))))
        elif token["end"]:
            found.append([])
        at = token.end()
    commands = [words for words in found if words]
    # With a variable in front, such as GIT_SSH_COMMAND=…, a command runs what it likes.
    if not 0 < len(commands) <= _MOST_COMMANDS or any("=" in words[0] for words in commands):
        return None
    return [(words, _names(words)) for words in commands]


def _names(words: Sequence[str]) -> list[str]:
    return [piece.rpartition("/")[2] for word in words for piece in re.split(r"[\s;|&()]+", word)]


def _unquoted(piece: str) -> str:
    return piece[1:-1] if piece[0] in "'\"" else piece


def _fit_words(words: Sequence[str], names: Iterable[str], argument: str) -> _Fit:
    """Of a simple command, whose `names` are as `_commands` says. By another path, behind options or as what another
    program is to run it is in doubt."""
    wanted = argument.removesuffix(":*").split(" ")
    if (words[: len(wanted)] if argument.endswith(":*") else words) == wanted:
        return _Fit.YES
    program = words[0].rpartition("/")[2]
    left = iter(names)
    is_within = all(name.rpartition("/")[2] in left for name in wanted)  # in this order
    return _Fit.MAYBE if program in _RUNNERS or is_within else _Fit.NO
