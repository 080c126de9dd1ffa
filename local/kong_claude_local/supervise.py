"""Keeps a handful of child processes running and ends them all, whatever happens to the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

COLOURS = (36, 33, 35, 32, 34)
RESTARTS = 5  # within WINDOW seconds; then the stack gives up
WINDOW = 60.0
PATIENCE = 8.0  # seconds for an orderly end before SIGKILL
PR_SET_PDEATHSIG = 1


@dataclass
class Part:
    """One process of the stack. `ready` is polled after the start until it is true."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)  # exact; nothing is inherited
    ready: Callable[[], bool]
    ready_within: float = 30.0  # seconds
    quiet: bool = False  # its output goes to the log file only


class PartFailed(Exception):
    """A part that ended before it was ready."""

    def __init__(self, part: Part, code: int | None, last: str) -> None:
        super().__init__(f"{part.name} did not start" + (f" (exit code {code})" if code is not None else " in time"))
        self.part, self.code, self.last = part, code, last


class Supervisor:
    """Starts parts in order and stops them in reverse order. Not thread-safe: one thread drives it."""

    def __init__(self, log: Path, out: IO[str] | None = None, restarts: float = RESTARTS) -> None:
        self.restarts = restarts
        self.out = out or sys.stdout
        self.log = log.open("a")
        self.running: list[tuple[Part, subprocess.Popen[str]]] = []
        self.starts: dict[str, list[float]] = {}
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._tails: dict[str, list[str]] = {}

    def start(self, part: Part) -> None:
        """Starts a part and waits until it is ready. Raises PartFailed."""
        process = self._spawn(part)
        self.running.append((part, process))
        deadline = time.monotonic() + part.ready_within
        while not self.stopping.is_set():
            if part.ready():
                return
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                time.sleep(0.1)  # lets the reader see the last lines
                raise PartFailed(part, code, "\n".join(self._tails[part.name]))
            time.sleep(0.05)

    def watch(self) -> str | None:
        """Restarts parts that die, until `stopping` is set; the name of a part that dies again and again."""
        while not self.stopping.wait(0.2):
            for index, (part, process) in enumerate(list(self.running)):
                if process.poll() is None:
                    continue
                recent = [t for t in self.starts[part.name] if t > time.monotonic() - WINDOW]
                if len(recent) > self.restarts:
                    return part.name
                self.say(part.name, f"ended with {process.returncode}, starting it again")
                self.running[index] = (part, self._spawn(part))
        return None

    def stop(self) -> None:
        """Ends every part: SIGTERM in reverse order, SIGKILL to the group of what is left."""
        self.stopping.set()
        for _, process in reversed(self.running):
            if process.poll() is None:
                process.terminate()
                # The gateway goes first so that nothing behind it meets new requests.
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    pass
        for _, process in self.running:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            process.wait()
        self.running.clear()
        self.log.close()

    def say(self, name: str, line: str) -> None:
        """One line of the readable log: screen and file."""
        with self._lock:
            if not self.log.closed:
                self.log.write(f"{time.strftime('%H:%M:%S')} {name} | {line}\n")
                self.log.flush()
            try:
                print(self._label(name) + line, file=self.out, flush=True)
            except (OSError, ValueError):
                pass  # a closed terminal must not end the stack

    def _label(self, name: str) -> str:
        label = f"{name:<9}| "
        if not self.out.isatty():
            return label
        return f"\x1b[{COLOURS[sum(map(ord, name)) % len(COLOURS)]}m{label}\x1b[0m"

    def _spawn(self, part: Part) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            part.command,
            env=dict(part.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends the parts in order
            preexec_fn=_die_with_parent,
        )
        self.starts.setdefault(part.name, []).append(time.monotonic())
        self._tails[part.name] = []
        threading.Thread(target=self._read, args=(part, process), daemon=True).start()
        return process

    def _read(self, part: Part, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        tail = self._tails[part.name]
        for line in process.stdout:
            line = line.rstrip("\n")
            tail.append(line)
            del tail[:-400]  # a real Kong's errors are long
            if part.quiet:
                with self._lock:
                    if not self.log.closed:
                        self.log.write(f"{time.strftime('%H:%M:%S')} {part.name} | {line}\n")
            else:
                self.say(part.name, line)


def _die_with_parent() -> None:
    """In the child: ask Linux for SIGTERM when the supervisor dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
