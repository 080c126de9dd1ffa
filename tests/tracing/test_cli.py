"""Why the CLI's own OpenTelemetry is not used (docs/tracing.md): what the pinned CLI does with it. Where one of these
fails for a newer CLI, the document is to be read again."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from claude_invoker.cli.binary import find_cli
from tests.invoker.conftest import KEY, StandInProcess, tool
from tests.support.otlp import receiving
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.slow  # the CLI four times, of no invoker
TRACE = "0af7651916cd43dd8448eb211c80319c"
SIGNALS = ("TRACES", "METRICS", "LOGS")


def cli(home: Path, stand_in: StandInProcess, exporter: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A turn that calls a command which prints its environment."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home),
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": stand_in.url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "TRACEPARENT": f"00-{TRACE}-b7ad6b7169203331-01",
        **{f"OTEL_{signal}_EXPORTER": exporter for signal in SIGNALS},
    } | more
    flags = ["--input-format=stream-json", "--output-format=stream-json", "--verbose", "--permission-mode=dontAsk"]
    message = {"role": "user", "content": [{"type": "text", "text": tool("Bash", command="env")}]}
    return subprocess.run(
        [find_cli(None), "--print", *flags, "--setting-sources=", "--tools=Bash", "--allowedTools=Bash"],
        input=json.dumps({"type": "user", "message": message}) + "\n",
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )


def test_by_tcp_it_sends_spans_of_its_parents_trace_which_each_command_knows(
    tmp_path: Path, stand_in: StandInProcess
) -> None:
    with receiving() as otlp:
        said = cli(tmp_path, stand_in, "otlp", OTEL_EXPORTER_OTLP_ENDPOINT=otlp.url).stdout
        names = {span.name for span in otlp.of(TRACE)}
    assert {"claude_code.interaction", "claude_code.llm_request", "claude_code.tool"} <= names
    assert f"TRACEPARENT=00-{TRACE}" in said


@pytest.mark.parametrize("scheme", ["unix://", "http+unix://"])
def test_by_a_unix_socket_it_sends_nothing(tmp_path: Path, stand_in: StandInProcess, scheme: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "otlp"))
        listener.listen()
        listener.setblocking(False)
        cli(tmp_path, stand_in, "otlp", OTEL_EXPORTER_OTLP_ENDPOINT=f"{scheme}{tmp_path}/otlp")
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_to_the_console_it_writes_nothing_beside_its_messages(tmp_path: Path, stand_in: StandInProcess) -> None:
    answer = cli(tmp_path, stand_in, "console")
    assert answer.stderr == ""
    assert all("type" in json.loads(line) for line in answer.stdout.splitlines())
    assert "claude_code." not in answer.stdout
