"""The program that the CLI takes for its shell: it enters a narrower domain, then becomes Bash.

It is a script in the trees' directory, root's and nobody else's to write. Whatever it cannot do, it does not become
Bash. Where it is missing the CLI takes another shell (it falls back silently), so `intact` is asked before each run.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from claude_invoker.isolation import confine
from claude_invoker.isolation.again import WITHIN_S, again
from claude_invoker.isolation.domains import Rule

TREE = "CLAUDE_INVOKER_TREE"
"""The variable that names the tree. Who could set another has no more than the CLI's own domain to choose from."""
SPARE = "CLAUDE_INVOKER_SPARE"
"""The variable that says how many of the processes that there may be (RLIMIT_NPROC) commands leave to the CLI."""

_MAIN = """
import sys

tree = os.environ.pop({tree!r})
domain = ruleset([(os.path.join(tree, path), rights) for path, rights in {rules!r}], {port})
leave(int(os.environ.pop({spare!r}, "0")))
enter(domain, bytes.fromhex({program!r}))
unignore()
os.environ["SHELL"] = "/bin/bash"  # what a command starts is in the domain already
os.execv("/bin/bash", ["bash", *sys.argv[1:]])
"""
_MAIN_OF_THE_CLI = """
import sys

tree = os.path.dirname(os.getcwd())
restrict(ruleset([(os.path.join(tree, path), rights) for path, rights in {rules!r}], int(sys.argv[1])))
unignore()
os.execv(sys.argv[2], sys.argv[2:])
"""


class NoInterpreter(Exception):
    """Why commands could not be put into a domain of their own."""


def text(interpreter: str, rules: tuple[Rule, ...], program: bytes, port: int = 0) -> str:
    """The script: -I and -S, so that nothing of the run's environment or directories is read by the interpreter."""
    source = Path(confine.__file__).read_text()
    main = _MAIN.format(tree=TREE, spare=SPARE, rules=rules, program=program.hex(), port=port)
    return f"#!{interpreter} -ISB\n{source}{main}"


def text_for_the_cli(interpreter: str, rules: tuple[Rule, ...]) -> str:
    """The same for a CLI that starts in a domain where it cannot be put into it before: PORT PROGRAM ARGUMENT…"""
    return f"#!{interpreter} -ISB\n{Path(confine.__file__).read_text()}{_MAIN_OF_THE_CLI.format(rules=rules)}"


def as_user(uid: int | None) -> dict[str, Any]:
    """For `subprocess`: as this user and nothing else of ours; None: as we are."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": ()}


def interpreter(uid: int | None) -> str:
    """A Python below /usr, which is all that a run may execute, that this user can start. Raises NoInterpreter."""
    for candidate in dict.fromkeys((os.path.realpath(sys.executable), "/usr/local/bin/python3", "/usr/bin/python3")):
        if not candidate.startswith("/usr/") or not Path(candidate).is_file():
            continue
        command = [candidate, "-ISB", "-c", "import ctypes, sys; sys.exit(sys.version_info < (3, 9))"]

        def attempt(command: list[str] = command) -> object:
            return subprocess.run(command, check=True, env={}, capture_output=True, timeout=WITHIN_S, **as_user(uid))

        try:
            again(candidate, attempt)
        except TimeoutError as error:
            raise NoInterpreter(f"{candidate}: {error}") from error
        except (OSError, subprocess.SubprocessError):
            continue
        return candidate
    raise NoInterpreter("there is no Python 3.9 or newer below /usr (Debian: apt-get install python3)")


def install(directory: Path, name: str, content: str) -> Path:
    """Writes the script, in one step. The CLI takes no shell that has neither bash nor zsh in its name.

    Raises OSError.
    """
    path = directory / name
    made = directory / f".{name}-{secrets.token_hex(4)}"  # others may do the same beside us
    made.write_text(content)
    made.chmod(0o755)
    made.rename(path)
    return path


def intact(path: Path) -> bool:
    """Whether the CLI would take it: there, ours, executable, and not to be changed by others."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o755
