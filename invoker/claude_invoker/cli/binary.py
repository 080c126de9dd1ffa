"""Where the CLI is, and which version it has."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import tempfile
from pathlib import Path

from claude_invoker.cli.command import PATH


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
