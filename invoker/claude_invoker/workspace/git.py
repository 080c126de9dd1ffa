"""git, so that nothing but what we say decides what it does: not the machine's configuration, and nothing that a
repository or a server can bring.

Every process has a bound in time, memory, bytes of a file and bytes of output, and its own user where there is one for
it. A credential goes by a descriptor, so that it is in no command line, no environment and no file of git's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from claude_contract import secret_file
from claude_invoker.cli.child import Child, Limits
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.isolation.box import Entry
from claude_invoker.workspace.repository import Source

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXY = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
_STDERR = 4000

CONFIGURATION = {
    # What a repository could make run.
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.askPass": "",
    "credential.helper": "",
    "diff.external": "",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "diff.ignoreSubmodules": "all",
    "gc.auto": "0",
    "maintenance.auto": "false",
    # What a repository may hold: no `.git` under any name that a file system takes for it, no malformed object.
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "transfer.fsckObjects": "true",
    "fetch.fsckObjects": "true",
    # Slips that old histories are full of, by programs that are long gone: they lead nowhere.
    "fetch.fsck.badTimezone": "ignore",
    "fetch.fsck.missingSpaceBeforeDate": "ignore",
    "fetch.fsck.zeroPaddedFilemode": "ignore",
    # One pack for each transfer: the bound on a file's size is then one on what is brought.
    "transfer.unpackLimit": "1",
    "fetch.unpackLimit": "1",
    # Bytes of a file are those of its blob, on every system.
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.symlinks": "true",
    "core.fileMode": "true",
    # Where a server leads.
    "protocol.allow": "never",
    "protocol.file.allow": "never",
    "protocol.ext.allow": "never",
    "http.followRedirects": "false",
}


SSH_OPTIONS = {
    # Only the given key, and only to a server that has a given host key.
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "KnownHostsCommand": "none",
    "UpdateHostKeys": "no",
    "VerifyHostKeyDNS": "no",
    "CheckHostIP": "no",
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "AddKeysToAgent": "no",
    "PreferredAuthentications": "publickey",
    # No other program, and no way back.
    "ProxyCommand": "none",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectTimeout": "15",
    "LogLevel": "ERROR",
}
_OF_SSH = ("Host key verification failed", "Permission denied (", "Connection ", "Could not resolve", "No user exists")
"""What ssh says before git does that it "could not read from remote repository"."""


class GitFailed(Exception):
    """git has ended with an error, or was ended (`code` None). The text is its own, without a credential."""

    def __init__(self, said: str, code: int | None = None, output: bytes = b"") -> None:
        super().__init__(said)
        self.code = code
        self.output = output


class SaysTooMuch(GitFailed):
    """git has printed more than it may, and was ended."""


class Git(Protocol):
    """git on some directory. Raises GitFailed, OSError."""

    async def __call__(self, *arguments: str, stdin: bytes = b"", output: int = ...) -> bytes: ...


@dataclass(frozen=True)
class Bounds:
    """Of one process: seconds; bytes of one file that it writes (0: any number) and of what it prints."""

    seconds: float = 60.0
    file_size: int = 0
    output: int = 64 << 20
    memory: int = 4 << 30


def program() -> str | None:
    """Where git is; None where it is not installed."""
    return shutil.which("git", path=_PATH)


def obstacle_to_ssh(uid: int | None) -> str | None:
    """Why git, as user `uid` (None: ours), cannot speak ssh here; None where it can."""
    if shutil.which("ssh", path=_PATH) is None:
        return "needs ssh: install openssh-client"
    user = os.geteuid() if uid is None else uid
    try:
        pwd.getpwuid(user)
    except KeyError:
        line = f"claude-git:x:{user}:{user}::/nonexistent:/usr/sbin/nologin"
        return f"has ssh started as user {user}, and ssh starts as no user without a name: add {line} to /etc/passwd"
    return None


def words(arguments: Sequence[str], configuration: Mapping[str, str] | None = None) -> list[str]:
    """The command line of a git that does what `arguments` say."""
    chosen = {**CONFIGURATION, **(configuration or {})}
    return ["git", *(word for name, value in chosen.items() for word in ("-c", f"{name}={value}")), *arguments]


def environment(**more: str) -> dict[str, str]:
    """Every variable of such a process."""
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LITERAL_PATHSPECS": "1",
        **more,
    }


async def run(
    arguments: Sequence[str],
    *,
    cwd: Path,
    uid: int | None,
    env: Mapping[str, str] | None = None,
    configuration: Mapping[str, str] | None = None,
    bounds: Bounds | None = None,
    stdin: bytes = b"",
    pass_fds: tuple[int, ...] = (),
    entry: Entry | None = None,
    ended: Callable[[], Awaitable[None]] | None = None,
    into: Path | None = None,
) -> bytes:
    """What git prints, which goes `into` a new file where one is named. `entry`: the boundary that it
    starts in; `ended`: what ends all that its user has. Nothing of it is alive when this returns.

    Raises GitFailed, OSError.
    """
    bounds = bounds or Bounds()
    child = await Child.start(
        words(arguments, configuration),
        env=environment() if env is None else env,
        cwd=cwd,
        uid=uid,
        pass_fds=pass_fds,
        limits=Limits(bounds.memory, bounds.file_size),
        entry=entry,
        line_limit=1 << 16,
    )
    tail = bytearray()

    async def complain() -> None:
        while chunk := await child.stderr.read(4096):
            tail.extend(chunk)
            del tail[:-_STDERR]

    complaining = asyncio.create_task(complain())
    try:
        async with asyncio.timeout(bounds.seconds):
            with contextlib.suppress(ConnectionError):
                child.stdin.write(stdin)
                await child.stdin.drain()
            child.stdin.close()
            output = await _output(child, bounds.output, into)
            await child.exited.wait()
            await complaining
    except TimeoutError as error:
        raise GitFailed(f"git took longer than {bounds.seconds:g} s") from error
    finally:
        complaining.cancel()
        await unbroken(_end(child, ended))
    if child.returncode:
        lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
        # Of several lines the first that says what is fatal; what follows is advice.
        said = next(filter(_is_telling, lines), lines[-1] if lines else "")
        raise GitFailed(f"git ended with {child.returncode}: {said[:300]}", child.returncode, output)
    return output


def _is_telling(line: str) -> bool:
    return line.startswith(("fatal:", "error:")) or any(map(line.__contains__, _OF_SSH))


async def _output(child: Child, most: int, into: Path | None) -> bytes:
    kept = bytearray()
    size = 0
    with contextlib.ExitStack() as opened:
        file = None if into is None else opened.enter_context(into.open("xb"))
        while chunk := await child.stdout.read(1 << 16):
            size += len(chunk)
            if size > most:
                raise SaysTooMuch(f"git has more to say than {most:,} bytes")
            if file is None:
                kept += chunk
            else:
                await asyncio.to_thread(file.write, chunk)
    return bytes(kept)


async def _end(child: Child, ended: Callable[[], Awaitable[None]] | None) -> None:
    try:
        if child.hold is not None:
            child.hold.strike()
            await child.hold.over.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        if ended is not None:
            await ended()
        await child.exited.wait()
    finally:
        child.close()


@dataclass(frozen=True)
class Access:
    """What a process needs to be let in by a server. Worth something as long as the context lasts that has given it."""

    configuration: Mapping[str, str]
    env: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()

    async def ask(self, directory: Path, uid: int | None, bounds: Bounds, *arguments: str) -> bytes:
        """What git prints that asks that server, of a directory of git's own. Raises GitFailed, OSError."""
        return await run(
            arguments,
            cwd=directory,
            uid=uid,
            env={**self.env, "GIT_DIR": str(directory)},
            configuration=self.configuration,
            pass_fds=self.pass_fds,
            bounds=bounds,
        )


@contextlib.contextmanager
def access(source: Source, uid: int | None, password: str | None = None) -> Iterator[Access]:
    """How git, as user `uid`, may ask the server of a source: only by the scheme of its address, and with its
    credential for that server alone. `password`: instead of what its token file says. Raises SecretFileError,
    OSError."""
    configuration = {f"protocol.{source.scheme}.allow": "always"}
    if source.is_ssh:
        assert source.key_file is not None and source.known_hosts is not None
        key, hosts = secret_file.read(source.key_file) + "\n", source.known_hosts.read_text("utf-8", "replace")
        with _lent(key, uid) as key_fd, _lent(hosts, uid) as hosts_fd:
            env = environment(GIT_SSH_COMMAND=_ssh(key_fd, hosts_fd), GIT_SSH_VARIANT="ssh")
            yield Access(configuration, env, (key_fd, hosts_fd))
        return
    env = environment(**_outward())
    if password is None and source.token_file is not None:
        password = secret_file.read(source.token_file)
    if password is None:
        yield Access(configuration, env)
        return
    with _lent(f"username={source.username}\npassword={password}\n", uid) as lent:
        configuration[f"credential.{source.host}.helper"] = f"!f() {{ cat /proc/self/fd/{lent}; }}; f"
        yield Access(configuration, env, (lent,))


@contextlib.contextmanager
def _lent(text: str, uid: int | None) -> Iterator[int]:
    """A descriptor of a file that has no name, which is that user's to read."""
    with open(os.memfd_create("claude-invoker"), "w+b", 0) as file:
        file.write(text.encode())
        os.fchmod(file.fileno(), 0o400)
        if uid is not None:
            os.fchown(file.fileno(), uid, uid)
        yield file.fileno()


def _ssh(key: int, hosts: int) -> str:
    """The command line of ssh, for a shell: constant but for two numbers, so that nothing in a name or a path can be
    taken for a part of it. Of git's own descriptors, since ssh closes those that it is given (`$PPID` is git)."""
    options = SSH_OPTIONS | {
        "IdentityFile": f"/proc/$PPID/fd/{key:d}",
        "UserKnownHostsFile": f"/proc/$PPID/fd/{hosts:d}",
    }
    return " ".join(["exec ssh -F none", *(f"-o {name}={value}" for name, value in options.items())])


def _outward() -> dict[str, str]:
    """The variables by which the machine's proxy is found."""
    return {name: os.environ[name] for name in _PROXY if name in os.environ}
