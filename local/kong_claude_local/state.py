"""Where a local stack keeps its files: `$KONG_CLAUDE_HOME`, else `.kong-claude/` in the current directory."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from claude_contract import secret_file
from claude_contract.attestation import new_private_key
from kong_claude.problem import Problem


@dataclass(frozen=True)
class Running:
    """A stack that was started: its supervisor and where its parts listen."""

    pid: int
    started: float  # /proc start time of the supervisor, against a recycled pid
    proxy: str  # http://127.0.0.1:8000
    admin: str
    invoker: str
    redis: str
    standin: str | None
    log: str | None
    run: str = ""  # directory of its sockets


def place() -> Path:
    """Where the state directory is, or would be."""
    return Path(os.environ.get("KONG_CLAUDE_HOME") or ".kong-claude").resolve()


def home() -> Path:
    """The state directory, made with mode 0700."""
    path = place()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"cannot make {path}: {error.strerror}; set KONG_CLAUDE_HOME to a writable directory") from error
    return path


def secret(name: str) -> str:
    """A development secret: `$CLAUDE_<NAME>` where set, else a file that is made on first use (mode 0600).

    `attestation-key` is an Ed25519 key in PEM, every other one random text. Raises Problem for a file that others
    can read.
    """
    from_environment = os.environ.get(f"CLAUDE_{name.upper().replace('-', '_')}")
    if from_environment:
        return from_environment
    path = home() / name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            return secret_file.read(path)
        except secret_file.SecretFileError as error:
            raise Problem(str(error)) from error
    with os.fdopen(descriptor, "w") as file:
        value = new_private_key().strip() if name == "attestation-key" else secrets.token_urlsafe(48)
        file.write(value + "\n")
    return value


def process_start(pid: int) -> float | None:
    """When a process started (clock ticks since boot), or None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else float(fields[19])


def remember(running: Running) -> None:
    path = home() / "stack.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(running)))
    temporary.replace(path)


def forget() -> None:
    (place() / "stack.json").unlink(missing_ok=True)


def recall() -> Running | None:
    """The stack of this directory if its supervisor still runs. Never one of another machine: a directory that somebody
    else has made, such as a clone, would be sent the tokens of whoever asks there."""
    running = _last()
    if running is None or process_start(running.pid) != running.started or not _is_here(running.proxy):
        return None
    return running


def _is_here(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return (parts.scheme, parts.hostname, parts.username) == ("http", "127.0.0.1", None)


def left_over() -> Path | None:
    """The directory of sockets of a stack that was killed here, if one was."""
    last = _last()
    return Path(last.run) if last and last.run and process_start(last.pid) != last.started else None


def _last() -> Running | None:
    try:
        return Running(**json.loads((place() / "stack.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
