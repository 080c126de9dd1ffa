"""`kong-claude down`: stops the stack that `kong-claude up` started in this directory."""

from __future__ import annotations

import argparse
import os
import signal
import time

from kong_claude_local.state import forget, place, process_start, recall

HELP = "stop the local stack of this directory, or of $KONG_CLAUDE_HOME; exit code 0 also where none runs"
PATIENCE = 20.0  # seconds for an orderly stop before SIGKILL


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> int:
    del options
    running = recall()
    if running is None:
        print(f"no stack of {place()} is running; KONG_CLAUDE_HOME names another")
        return 0
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while process_start(running.pid) == running.started:
        if time.monotonic() > deadline:
            os.kill(running.pid, signal.SIGKILL)  # its children ask to die with it
            break
        time.sleep(0.05)
    forget()
    print("stopped")
    return 0
