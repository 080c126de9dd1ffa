"""Where the API's key lies: behind a descriptor, for the metering proxy to read. The invoker itself never has it.

From a file it is not read here at all. From the environment it is taken before anything else is done, and the program
begins anew without it: what a process was started with stays in its memory, and under `/proc`.
"""

from __future__ import annotations

import os
import stat
import sys

from claude_contract import secret_file
from claude_contract.secret_file import SecretFileError

NAMES = ("INVOKER_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY")
_FILE = "INVOKER_ANTHROPIC_API_KEY_FILE"
_KEPT = "INVOKER_KEPT_API_KEY"
"""The descriptor that the program has left to itself."""
OURS = (NAMES[0], _FILE, _KEPT)
"""Variables of the invoker's that are no settings."""


def shed() -> None:
    """Begins the program anew without the key in its environment; returns where there is none."""
    value = next(filter(None, map(os.environ.get, NAMES)), None)
    if value is None:
        return
    kept = _in_memory(value)
    os.set_inheritable(kept, True)
    environment = {name: text for name, text in os.environ.items() if name not in NAMES}
    os.execve(sys.executable, sys.orig_argv, environment | {_KEPT: str(kept)})


def is_given() -> bool:
    return any(os.environ.get(name) for name in (*NAMES, _FILE, _KEPT))


def descriptor() -> int:
    """A descriptor of what the proxy is to read (pread(2)), which the caller closes. Empty where there is no key.

    Raises SecretFileError.
    """
    if (kept := os.environ.pop(_KEPT, None)) is not None:
        os.set_inheritable(int(kept), False)
        return int(kept)
    if (value := next(filter(None, map(os.environ.get, NAMES)), None)) is not None:
        return _in_memory(value)
    if path := os.environ.get(_FILE):
        try:
            return _again_and_again(secret_file.opened(path))
        except SecretFileError as error:
            raise SecretFileError(f"{_FILE}: {error}") from error
    return _in_memory("")


def _again_and_again(file: int) -> int:
    """The same for each proxy that is started: a pipe can be read once."""
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    with open(file, encoding="utf-8") as opened:
        return _in_memory(opened.read())


def _in_memory(value: str) -> int:
    file = os.memfd_create("api-key", os.MFD_CLOEXEC)
    os.write(file, value.encode())
    return file


def read(file: int) -> str:
    """The key, in the proxy. Raises ValueError."""
    try:
        return os.pread(file, 1 << 16, 0).decode().strip()
    except UnicodeDecodeError:
        raise ValueError("the API's key is not UTF-8 text") from None
