"""The server's log. Kong logs what a plugin server prints at `info`, which its default level leaves out, line by line
with its own around it: so there is a file of our own, and JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


class Json(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, message."""

    def format(self, record: logging.LogRecord) -> str:
        return line(record.levelname, record.getMessage(), record.created)


def line(level: str, message: str, at: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03}Z"
    return json.dumps({"time": stamp, "level": level.lower(), "pid": os.getpid(), "message": message})


class Logs:
    """Where lines go: `file`, which may be renamed at any time (it is made anew), else stderr. Raises OSError."""

    def __init__(self, file: Path | None, level: str, form: str) -> None:
        self.file = file
        self.form = form
        logging.addLevelName(logging.WARNING, "WARN")
        handler: logging.Handler = (
            WatchedFileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
        )
        text = logging.Formatter("%(levelname)-4s - [%(asctime)s] %(message)s", "%H:%M:%S")
        handler.setFormatter(Json() if form == "json" else text)
        logging.getLogger().addHandler(handler)
        logging.getLogger("kong_claude").setLevel(level.upper())

    def warn_at_once(self, message: str) -> None:
        """From a thread beside the loop: takes no lock, which the loop may hold. Never raises."""
        text = line("warn", message, time.time()) if self.form == "json" else f"WARN - {message}"
        try:
            out = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640) if self.file else os.dup(2)
            try:
                os.write(out, text.encode() + b"\n")
            finally:
                os.close(out)
        except OSError:
            pass
