"""`kong-claude worker`: runs queued jobs; as many as wanted, on as many machines as wanted."""

from __future__ import annotations

import argparse
import os
import sys

HELP = "run a job worker in the foreground (settings: INVOKER_*, as for the invoker)"


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> int:
    del options
    os.execv(sys.executable, [sys.executable, "-m", "claude_invoker.worker"])
    return 0
