"""Where the CLI is, and which version it has."""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from claude_invoker.cli.command import PATH
from claude_invoker.cli.tree import is_reachable


def find_cli(configured: Path | None) -> Path:
    """The configured binary, else the one pinned by the claude-agent-sdk wheel, else `claude` in PATH.

    Raises FileNotFoundError with what to do.
    """
    if configured is not None:
        if configured.is_file():
            return configured.resolve()
        raise FileNotFoundError(f"CLAUDE_CLI_PATH={configured} is not a file")
    sdk = importlib.util.find_spec("claude_agent_sdk")
    if sdk is not None and sdk.origin is not None:
        bundled = Path(sdk.origin).parent / "_bundled" / "claude"
        if bundled.is_file():
            return bundled.resolve()
    if found := shutil.which("claude"):
        return Path(found).resolve()
    raise FileNotFoundError("no Claude CLI: pip install claude-agent-sdk, or set CLAUDE_CLI_PATH")


async def cli_version(cli: Path) -> str:
    """What `claude --version` prints, e.g. `2.1.330 (Claude Code)`. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": PATH, "HOME": home, "CLAUDE_CONFIG_DIR": home, "DISABLE_AUTOUPDATER": "1"}
        process = await asyncio.create_subprocess_exec(
            cli,
            "--version",
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(30):
                output, errors = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise RuntimeError("the Claude CLI does not answer --version") from error
    if process.returncode != 0:
        raise RuntimeError(f"the Claude CLI does not run: {errors.decode(errors='replace')[:300]}")
    return output.decode(errors="replace").strip()


def programs_of(trees: Path) -> Path:
    """The directory of the programs that are ours and that runs execute. Raises OSError."""
    path = trees / "bin"
    path.mkdir(mode=0o711, exist_ok=True)
    path.chmod(0o711)
    return path


def reachable_binary(cli: Path, programs: Path, *, isolated: bool) -> Path:
    """The binary at a path that a run's own user can execute and not read: then nobody of that user, such as a command
    of the run, can look into the process or take its descriptors (ptrace(2), "dumpable"). Where it is another (a
    checkout under /root, say, or one that others may read) this is a copy of it in `programs`. Raises OSError.

    (Running it by descriptor would not do: it starts itself again for Grep and Glob, by its path.)
    """
    if not isolated:
        return cli  # which we may not read either, in an image that is made for root
    status = cli.stat()
    closed = status.st_uid == 0 and stat.S_IMODE(status.st_mode) & 0o077 == 0o011
    with cli.open("rb") as file:
        is_script = file.read(2) == b"#!"  # which its interpreter has to read
    if is_reachable(cli) and (closed or is_script):
        return cli
    target = programs / f"claude-{status.st_size:x}-{status.st_mtime_ns:x}"
    if not target.exists():
        made = programs / f".{target.name}-{secrets.token_hex(4)}"  # others may do the same beside us
        shutil.copyfile(cli, made)
        made.chmod(0o755 if is_script else 0o711)
        made.rename(target)
    return target
