"""What keeps the invoker from starting is one sentence that says what to do, whatever it is."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from claude_invoker.settings import unknown
from tests.invoker.conftest import as_root, clean_environment
from tests.support.waiting import HANG_S

KEY = "k" * 40


def start(folder: Path, settings: dict[str, str], *without: str) -> tuple[int, list[str]]:
    """Exit code, and what it said beside its log."""
    program = ["tests.invoker.weakened", *without] if without else ["claude_invoker"]
    defaults = {"ATTESTATION_KEY": KEY, "ANTHROPIC_API_KEY": "x", "PORT": "0", "STATE_DIR": str(folder / "state")}
    done = subprocess.run(
        [sys.executable, "-m", *program],
        env=clean_environment() | {f"INVOKER_{name}": value for name, value in (defaults | settings).items()},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return done.returncode, [line for line in done.stderr.splitlines() if " INFO " not in line]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param(
            {"PORT": "taken"}, "INVOKER_HOST=127.0.0.1, INVOKER_PORT={taken}: Address already in use; end", id="port"
        ),
        pytest.param({"STATE_DIR": "/etc/passwd"}, "/etc/passwd: File exists (INVOKER_STATE_DIR is", id="state"),
        pytest.param({"PRICES": "{x"}, "INVOKER_PRICES: is not JSON: ", id="prices"),
        pytest.param({"TIER_RETENTION_S": "pro"}, "INVOKER_TIER_RETENTION_S: is not JSON: ", id="retention"),
        pytest.param({"CLI_PATH": "/bin/false"}, "the Claude CLI does not run", id="cli"),
        pytest.param(
            {"TRUST": "open", "HOST": "0.0.0.0"}, "INVOKER_TRUST=open binds to loopback only, not to 0.0.0.0", id="open"
        ),
        pytest.param(
            # The client tries for some 15 seconds.
            {"REDIS_URL": "redis://127.0.0.1:1/0", "WORKER": "embedded"},
            "Redis cannot be used (Error 111 connecting to 127.0.0.1:1. Connection refused.): correct",
            id="redis",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, lines = start(tmp_path, {name: value.replace("taken", port) for name, value in settings.items()})
    assert code == 2
    (line,) = lines
    assert line.startswith("claude-invoker: " + said.format(taken=port))


@as_root
def test_a_boundary_that_is_too_weak_is_one_sentence(tmp_path: Path) -> None:
    code, lines = start(tmp_path, {"ISOLATION": "landlock"}, "a_kernel_without_landlock")
    assert code == 2
    (line,) = [line for line in lines if not line.startswith("20")]  # the log's begin with the date
    assert line.startswith("claude-invoker: the boundary around a run is only")


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    # Without a CLI the start ends after the settings.
    _, lines = start(tmp_path, {"MAX_BUDGET": "3", "CLI_PATH": "/nowhere"})
    assert lines[0] == "claude-invoker: INVOKER_MAX_BUDGET is not a setting of this version and has no effect"
    assert len(lines) == 2 and "CLAUDE_CLI_PATH=/nowhere" in lines[1]


def test_variables_that_are_no_settings() -> None:
    ours = ["INVOKER_PORT", "INVOKER_REDIS_URL_FILE", "INVOKER_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY", "INVOKERS"]
    links = ["INVOKER_SERVICE_HOST", "INVOKER_SERVICE_PORT_HTTP", "INVOKER_PORT_8100_TCP", "INVOKER_PORT_8100_TCP_ADDR"]
    assert unknown([*ours, *links, "INVOKER_SHARED_UID_TOOLS", "INVOKER_PORTS"]) == [
        "INVOKER_PORTS",
        "INVOKER_SHARED_UID_TOOLS",
    ]
