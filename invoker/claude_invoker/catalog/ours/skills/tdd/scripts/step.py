"""`step.py start|red|green|refactor`: runs the tests by the command in `.tdd/command`, and says whether a step is done.
Needs no library."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

STATE = Path(".tdd")
COMMAND, SEEN = STATE / "command", STATE / "seen.json"
_TEST = re.compile(r"(^|[._-])(tests?|specs?)([._-]|$)|Tests?\.\w+$", re.IGNORECASE)
_LEFT_OUT = {".git", ".tdd", "node_modules", "__pycache__", ".venv", "target", "dist", "build"}
_LONGEST = 4000


class NotYet(Exception):
    """Why the step is not done."""


def is_test(path: Path) -> bool:
    """By its name, or that of a directory that it is in."""
    return any(_TEST.search(part) for part in path.parts)


def files() -> dict[str, str]:
    """Path → digest of each file of the working directory."""
    found = {}
    for path in sorted(Path().rglob("*")):
        if not _LEFT_OUT.intersection(path.parts) and path.is_file() and not path.is_symlink():
            found[path.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def run_tests() -> bool:
    """Whether they pass; what they print is printed, its end at least."""
    try:
        command = COMMAND.read_text().strip()
    except FileNotFoundError:
        raise NotYet(f"write the command that runs the tests into {COMMAND}") from None
    done = subprocess.run(["/bin/bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    print(f"$ {command}\n{text[-_LONGEST:].rstrip()}\n(exit code {done.returncode})")
    if done.returncode in (126, 127):
        raise NotYet("the command cannot be run: that is no failing test")
    return done.returncode == 0


def start() -> dict[str, str]:
    STATE.mkdir(exist_ok=True)
    if COMMAND.exists() and not run_tests():
        raise NotYet("the tests fail before anything was changed: say so, and make them pass first")
    return files()


def red(before: dict[str, str]) -> dict[str, str]:
    now = files()
    touched = changed(before, now)
    if others := [path for path in touched if not is_test(Path(path))]:
        raise NotYet(f"before a test fails, only tests may change; these did, too: {', '.join(others[:10])}")
    if not touched:
        raise NotYet("no test was added or changed")
    if run_tests():
        raise NotYet("the new test passes already: it shows nothing")
    return now


def green(before: dict[str, str]) -> dict[str, str]:
    now = files()
    if tests := [path for path in changed(before, now) if is_test(Path(path))]:
        raise NotYet(f"the tests have changed since they failed: {', '.join(tests[:10])}")
    if not run_tests():
        raise NotYet("the tests fail still")
    return now


def refactor(before: dict[str, str]) -> dict[str, str]:
    if not run_tests():
        raise NotYet("the tests do not pass any more")
    return files()


def main(arguments: list[str]) -> int:
    steps = {"red": red, "green": green, "refactor": refactor}
    name = arguments[0] if len(arguments) == 1 else ""
    try:
        if name == "start":
            seen = start()
        elif name not in steps:
            raise NotYet("say which step: start, red, green or refactor")
        elif not SEEN.exists():
            raise NotYet("begin with: step.py start")
        else:
            last, before = json.loads(SEEN.read_text())
            if name == "green" and last != "red":
                raise NotYet("green follows red: there is no failing test")
            seen = steps[name](before)
        SEEN.write_text(json.dumps([name, seen]))
    except NotYet as why:
        print(f"{name or 'step'}: not done: {why}")
        return 1
    print(f"{name}: done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
