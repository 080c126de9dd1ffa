"""The command line and the environment of a CLI process: pure, and exact (nothing is inherited).

Facts about the flags were measured on CLI 2.1.330; docs/invoker.md lists them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from claude_contract.destinations import Destination
from claude_contract.rules import AGENT, QUESTION
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.isolation import network
from claude_invoker.isolation.shell import SPARE, TREE

_WAIT = 'until [ -e "$1" ]; do sleep 0.02; done'
PATH = "/usr/local/bin:/usr/bin:/bin"
PLUGIN = "catalog"
"""What the CLI calls all that comes from the catalog: its skill `pdf` is `catalog:pdf` to it."""


_WITHOUT_ETC = {"GIT_CONFIG_NOSYSTEM": "1"}
"""What is told to leave out files that the boundary closes: git would warn of each."""


_FILTER = f"http://{network.HOST}:{network.PORT}"
# http_proxy too: the filter says why it takes no http, where "network is unreachable" would not.
_PROXY = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), _FILTER) | {
    "NODE_USE_ENV_PROXY": "1"
}


@dataclass(frozen=True)
class Given:
    """What a process has of the catalog. `skills` and `agents`: a plugin of the CLI each, with one entry of the
    folder's name; `libraries`: packages for the scripts of skills. It reads these, and writes none of them.
    `server_tools`: of MCP servers, by the names that the CLI has for them."""

    skills: tuple[Path, ...] = ()
    agents: tuple[Path, ...] = ()
    libraries: Path | None = None
    server_tools: tuple[str, ...] = ()

    @property
    def readable(self) -> tuple[Path, ...]:
        found = (*self.skills, *self.agents)
        return found if self.libraries is None else (*found, self.libraries)

    @property
    def tools(self) -> tuple[str, ...]:
        """By which a model calls them."""
        return (*(("Skill",) if self.skills else ()), *((AGENT,) if self.agents else ()))

    @property
    def rules(self) -> tuple[str, ...]:
        """What may be called. (Skills and agents of its own the CLI lets its model call whatever is allowed.)"""
        given = (("Skill", self.skills), (AGENT, self.agents))
        called = (f"{tool}({PLUGIN}:{folder.name})" for tool, folders in given for folder in folders)
        return (*called, *self.server_tools)


NOTHING = Given()
_WITHOUT_ITS_OWN = {
    "disableBundledSkills": True,
    "skillOverrides": {"doctor": "off", "plugin-authoring": "off"},
    "enabledPlugins": {f"cc-plugin-{name}@builtin": False for name in ("agents-md", "privacy", "plugin-authoring")},
}
"""Settings of a process that has something of ours. Some skills of its own are called without being allowed, and
`plugin-authoring` is there even where they are all turned off."""


@dataclass(frozen=True)
class Shape:
    """What is fixed when a process starts; a warm process serves only a run of its own shape."""

    tools: tuple[str, ...]
    max_turns: int
    max_budget_usd: float | None
    """Of the process, however many turns it has; None: of each its own, which the metering proxy sees to."""
    session: Literal["begun", "new", "deferred"] | None = None
    """Whether the tree is a session's, and whether it has a transcript to go on with, or even a call of a tool that was
    deferred: the CLI goes on with that by itself."""
    egress: tuple[Destination, ...] = ()
    """Hosts that the run reaches besides the API."""
    checkout: Checkout | None = None
    """What it works on; None: it begins in an empty directory."""
    given: Given = NOTHING
    asked: tuple[str, ...] = ()
    """Tools, those that come with `given` among them, that run only where we have said so of the very call."""


@dataclass(frozen=True)
class Deadlines:
    """How long the CLI waits for the API (seconds), and how often it asks again."""

    api_timeout_s: float
    api_retries: int


def command(cli: Path, shape: Shape, gate: Path | None = None) -> list[str]:
    """The argument vector. Nothing of a caller's is in it, since every user of the machine can read it: a session is
    gone on with by its directory, which holds one conversation, never by its id.

    `gate`: what a deferred call of a tool waits for: till this file is there. The CLI begins with it when it starts,
    whether or not it has been told of our hook by then."""
    given = shape.given
    tools = ",".join((*shape.tools, *given.tools))
    # Not what is asked about: of a hook that fails, or an answer that it does not understand, the CLI takes no notice.
    rules = (*shape.tools, *given.rules)
    allowed = ",".join(rule for rule in rules if rule.partition("(")[0] not in shape.asked)
    arguments = [
        str(cli),
        "--print",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--restricted",
        "--setting-sources=",
        "--strict-mcp-config",
        "--permission-mode=dontAsk",
        f"--tools={tools}",
        f"--max-turns={shape.max_turns}",
    ]
    if shape.max_budget_usd is not None:
        arguments.append(f"--max-budget-usd={shape.max_budget_usd!r}")
    if allowed:
        arguments.append(f"--allowedTools={allowed}")
    if QUESTION in shape.tools:
        # Else the CLI has no such tool. It asks by its hook all the same: under `dontAsk` nothing is asked this way.
        arguments.append("--permission-prompt-tool=stdio")
    settings: dict[str, object] = {}
    if shape.egress:
        # It would ask api.anthropic.com about the host first, by a way that there is not.
        settings["skipWebFetchPreflight"] = True
    if given != NOTHING:
        settings |= _WITHOUT_ITS_OWN
        arguments += [f"--plugin-dir={folder}" for folder in (*given.skills, *given.agents)]
        # So that the file tools read what is beside a SKILL.md.
        arguments += [f"--add-dir={folder}" for folder in given.skills]
    if given.skills and "Bash" in shape.asked:
        # Commands in a skill's text, with what its model says to it put in, run when it is called: nobody is asked.
        settings["disableSkillShellExecution"] = True
    if not given.skills:
        arguments.append("--disable-slash-commands")
    if gate is not None:
        # Till its servers are there, or have ended, the CLI begins nothing.
        waiting = {"type": "stdio", "command": "/bin/sh", "args": ["-c", _WAIT, "sh", str(gate)]}
        arguments.append(f"--mcp-config={json.dumps({'mcpServers': {'gate': waiting}}, separators=(',', ':'))}")
    if settings:
        arguments.append(f"--settings={json.dumps(settings, separators=(',', ':'))}")
    if shape.session is None:
        arguments.append("--no-session-persistence")
    else:
        arguments.append("--system-prompt-snapshot=off")
        if shape.session != "new":
            arguments.append("--continue")
    return arguments


def environment(
    tree: Tree,
    run: str,
    api: Path,
    key_fd: int,
    deadlines: Deadlines,
    shell: Path | None,
    *,
    egress: bool = False,
    given: Given = NOTHING,
    spare: int = 0,
) -> dict[str, str]:
    """Every variable of the process. The key is not among them: it is read once from descriptor `key_fd`.

    `api`: the socket by which the API is reached. `shell`: what it starts for commands; None: the system's. `egress`:
    there is a filter that leads to hosts (see `isolation.network`). `given`: what it has of the catalog. `spare`: how
    many of the processes that the kernel counts its commands leave to it.
    """
    named = {} if shell is None else {"CLAUDE_CODE_SHELL": str(shell)}
    agents = {"CLAUDE_AGENT_SDK_DISABLE_BUILTIN_AGENTS": "1"} if given.agents else {}
    return environment_of_commands(tree, run, shell, egress=egress, given=given, spare=spare) | {
        **named,
        **agents,
        "CLAUDE_CONFIG_DIR": str(tree.config),
        "CLAUDE_CODE_TMPDIR": str(tree.temp),
        "ANTHROPIC_UNIX_SOCKET": str(api),
        # What the CLI would ask if it did not know the socket: nobody listens there.
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR": str(key_fd),
        "API_TIMEOUT_MS": str(int(deadlines.api_timeout_s * 1000)),
        "CLAUDE_CODE_MAX_RETRIES": str(deadlines.api_retries),
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # Subagents and commands in the background would go on after the result.
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        # A model calls a skill with words of its own, and `@path` in them would be that file: with no tool that reads,
        # and nobody asked.
        "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }


def environment_of_commands(
    tree: Tree, run: str, shell: Path | None, *, egress: bool, given: Given = NOTHING, spare: int = 0
) -> dict[str, str]:
    """What every command of a run has, also one that the CLI does not start; as `environment` says."""
    boundary = {} if shell is None else {TREE: str(tree.root), SPARE: str(spare), **_WITHOUT_ETC}
    if egress:
        boundary |= _PROXY
    if given.libraries is not None:
        boundary["PYTHONPATH"] = str(given.libraries)
    return boundary | {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": str(tree.home),
        "TMPDIR": str(tree.temp),
        "CLAUDE_INVOKER_PROCESS": run,
    }
