"""Secrets from files: read only where no other user of the machine can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path


class SecretFileError(ValueError):
    """A secret file that must not be used. Names the file, its mode and what to do; never its content."""


def read(path: str | Path) -> str:
    """The file's text without surrounding blanks. Raises SecretFileError."""
    try:
        with open(opened(path), encoding="utf-8") as file:
            text = file.read().strip()
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SecretFileError(f"{path} is not UTF-8 text") from None
    if not text:
        raise SecretFileError(f"{path} is empty")
    return text


def opened(path: str | Path) -> int:
    """A descriptor of the file, for another process to read what this one never has. Raises SecretFileError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror}") from error
    # Of the opened file, not of its name: what is judged is what is read.
    found = os.fstat(file)
    problem = exposure(found, os.geteuid(), {os.getegid(), *os.getgroups()})
    if problem is None and (not stat.S_ISREG(found.st_mode) or found.st_size > 0):
        return file
    os.close(file)
    raise SecretFileError(f"{path} {problem} {path}" if problem else f"{path} is empty")


def exposure(found: os.stat_result, user: int, groups: Collection[int]) -> str | None:
    """Who else can read (or change) a file that `user` with `groups` has opened, and the command against it.

    One exception: Kubernetes gives the secrets of a pod that does not run as root to root and the pod's `fsGroup`,
    mode 0440. There the group's bit is the only way in, and the runs of an invoker that is not root are no other user.
    """
    mode = stat.S_IMODE(found.st_mode)
    by_group = mode & 0o037 == 0 and found.st_uid == 0 and user != 0 and found.st_gid in groups
    if mode & 0o077 and not by_group:
        return f"can be read or changed by other users (mode {mode:04o}): chmod 0400"
    if found.st_uid not in (0, user):
        return f"belongs to another user (id {found.st_uid}): chown {user}"
    return None
