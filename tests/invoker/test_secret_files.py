"""Invoker and worker do not start with a secret that another user can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.invoker.conftest import clean_environment
from tests.support.waiting import HANG_S

SECRET = "k" * 40


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(
    "setting", ["ATTESTATION_KEY", "ATTESTATION_PREVIOUS_KEY", "ANTHROPIC_API_KEY", "WEBHOOK_SECRET", "REDIS_URL"]
)
def test_a_readable_secret_stops_the_start(command: str, setting: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    # Without a CLI the start ends after the settings in any case: what differs is the reason.
    environment = clean_environment() | {
        "INVOKER_CLI_PATH": "/nonexistent/claude",
        "INVOKER_ATTESTATION_KEY": SECRET,
        "INVOKER_REDIS_URL": "redis://127.0.0.1:1/0",
        "INVOKER_STATE_DIR": str(tmp_path / "state"),
        f"INVOKER_{setting}_FILE": str(file),
    }

    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "claude_invoker", command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode != 0
        assert SECRET not in done.stdout + done.stderr
        return done.stdout + done.stderr

    file.chmod(0o644)
    said = start()
    assert (
        f"INVOKER_{setting}_FILE: {file} can be read or changed by other users (mode 0644): chmod 0400 {file}" in said
    )
    assert "Traceback" not in said
    file.unlink()
    assert f"INVOKER_{setting}_FILE: {file} cannot be read" in start()
    file.write_text(SECRET)
    file.chmod(0o400)
    said = start()
    assert "_FILE" not in said
    assert "/nonexistent/claude" in said
