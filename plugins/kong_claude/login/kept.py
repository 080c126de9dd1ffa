"""Logins in files that nobody else can read: `$XDG_CONFIG_HOME/kong-claude/logins/NAME.json`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from claude_contract import secret_file
from claude_contract.secret_file import SecretFileError
from kong_claude.problem import Problem

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Login:
    """A login and its present token, which is good from `since` on for `life_s` seconds (Unix time)."""

    issuer: str
    client_id: str
    client_secret: str | None
    scope: str
    audience: str | None
    id_token: bool
    token: str
    since: float
    life_s: int
    refresh_token: str | None

    @property
    def client(self) -> dict[str, str | None]:
        """How the client tells the issuer who it is (RFC 6749 section 2.3.1)."""
        return {"client_id": self.client_id, "client_secret": self.client_secret}


def command(name: str, login: Login) -> str:
    """The command by which one logs in once more, for a person to repeat."""
    words = ["kong-claude", "login", "--name", name, "--issuer", login.issuer, "--client-id", login.client_id]
    words += ["--scope", login.scope]
    words += ["--audience", login.audience] if login.audience else []
    words += ["--id-token"] if login.id_token else []
    return shlex.join(words) + (" --client-secret-file FILE" if login.client_secret else "")


def default_name(issuer: str) -> str:
    """The issuer's host, and its port where it has one."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", urlsplit(issuer).netloc).strip("-.") or "default"


def folder() -> Path:
    """Made with mode 0700. Raises Problem."""
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".config"  # as the specification says
    path = base / "kong-claude" / "logins"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise Problem(f"{path} cannot be made: {error.strerror}; XDG_CONFIG_HOME names another place") from None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Problem(f"{path} must belong to you alone: chmod 0700 {path}")
    return path


def names() -> list[str]:
    """Raises Problem."""
    return sorted(path.stem for path in folder().glob("*.json"))


def chosen(name: str | None) -> str:
    """The login of that name, or the only one. Raises Problem."""
    known = names()
    if name is not None:
        if name in known:
            return name
        raise Problem(f"there is no login {name}: kong-claude login")
    if not known:
        raise Problem("nobody is logged in: kong-claude login --issuer URL --client-id ID")
    if len(known) > 1:
        raise Problem(f"there are several logins, --name one of them: {', '.join(known)}")
    return known[0]


def find(name: str) -> Login | None:
    """Raises Problem."""
    return read(name) if _path(name).exists() else None


def read(name: str) -> Login:
    """Raises Problem."""
    path = _path(name)
    try:
        return Login(**json.loads(secret_file.read(path)))
    except SecretFileError as error:
        raise Problem(str(error)) from None
    except (ValueError, TypeError):
        raise Problem(f"{path} is of another version or broken: kong-claude logout --name {name}, then login") from None


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time changes logins; another one waits."""
    file = os.open(folder() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextmanager
def replacing(name: str) -> Iterator[Callable[[Login], None]]:
    """A function that puts a login in the place of the one before it, whole or not at all; within `locked`.

    The new file is there before anything is asked of the issuer: what cannot be written is not fetched, since a
    refresh token is good once. Raises Problem.
    """
    path = _path(name)
    new = path.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)
        file = os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w")
    except OSError as error:
        raise Problem(f"{new} cannot be written: {error.strerror}") from None

    def put(login: Login) -> None:
        try:
            json.dump(asdict(login), file)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            raise Problem(f"{path} cannot be written: {error.strerror}; log in again") from None

    try:
        with file:
            yield put
    finally:
        new.unlink(missing_ok=True)


def forget(name: str) -> None:
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise Problem("--name is of letters, digits, '.', '_' and '-'")
    return folder() / f"{name}.json"
