"""Processes as they are found: any of them may end while one looks."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def gone(pid: int) -> bool:
    """Ended, whether or not its parent has asked for it: between two looks the second may find nobody."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
