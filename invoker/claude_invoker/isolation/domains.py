"""What a run may open: pure, and a whitelist. Everything else, /proc before all, is closed (Landlock, landlock(7)).

There is no rule on /proc: one on /proc/self would be one on the process that made it, so that its children could read
its memory. The CLI, Bash, git, find and Python run without.
"""

from __future__ import annotations

from pathlib import Path

from claude_invoker.isolation.confine import ALL, EXECUTE, LIST, MAKE_BLOCK, MAKE_CHAR, READ, TRUNCATE, WRITE

Rule = tuple[str, int]
SNAPSHOTS = "config/shell-snapshots"

_LOOK = READ | LIST
_RUN = _LOOK | EXECUTE
_OWN = ALL & ~(MAKE_CHAR | MAKE_BLOCK)
TOP_LEVEL = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
"""Programs, as /usr has them; links to there on most systems."""
# Not all of /etc: it names the machine's users, mounts and neighbours.
ETC = tuple(
    f"/etc/{name}"
    for name in (
        *("alternatives", "ssl", "ca-certificates", "ld.so.cache", "localtime"),
        *("bash.bashrc", "profile", "profile.d", "inputrc", "mime.types"),
        # pip asks which system it is on, and gives up where that is there and closed.
        *("debian_version", "lsb-release"),
    )
)
_WRITABLE = ("/dev/null", "/dev/zero", "/dev/full")
_RANDOM = ("/dev/urandom", "/dev/random")
DEVICES = _WRITABLE + _RANDOM
_SYSTEM: tuple[Rule, ...] = (
    *((path, _RUN) for path in ("/usr", *TOP_LEVEL)),
    *((path, _LOOK) for path in ETC),
    *((path, READ | WRITE | TRUNCATE) for path in _WRITABLE),
    *((path, READ) for path in _RANDOM),
)


def of_cli(tree: Path, programs: tuple[Path, ...]) -> tuple[Rule, ...]:
    """The CLI's: the system's programs, `programs`, and the directories of its tree, but not the tree itself, so that
    none of them can be replaced."""
    own = (f"{tree}/{name}" for name in ("work", "home", "config", "tmp"))
    return (*_SYSTEM, *((str(path), _RUN) for path in programs), *((path, _OWN) for path in own))


def of_shells(programs: tuple[Path, ...]) -> tuple[Rule, ...]:
    """A command's, inside of the CLI's: without the CLI's configuration and transcripts. Paths that are not absolute
    are those in the tree.

    In its snapshots the CLI keeps what a login shell has set, and `find` and `grep` of its own, which are its program
    (`programs`) under another name; each command reads them.
    """
    return (
        *_SYSTEM,
        *((str(path), _RUN) for path in programs),
        *((name, _OWN) for name in ("work", "home", "tmp", SNAPSHOTS)),
    )
