"""What docs/workspace.md has somebody type who has no git server and no token yet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, free_port, own_environment

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
]


def test_the_shown_commands_lead_to_a_branch(tmp_path: Path) -> None:
    section = (ROOT / "docs/workspace.md").read_text().partition("### To try it\n")[2].partition("\n### ")[0]
    (shown,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    port, served = free_port(), free_port()
    for was, now in (
        ("127.0.0.1:8000", f"127.0.0.1:{port}"),
        ("kong-claude up ", f"kong-claude up --port {port} "),
        ("127.0.0.1:8090", f"127.0.0.1:{served}"),
        ("git_server repositories ", f"git_server repositories --port {served} "),
    ):
        assert was in shown
        shown = shown.replace(was, now)
    shutil.copy(ROOT / "kong.yml", tmp_path)
    environment = own_environment(tmp_path / "home")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = f"set -e\ntrap 'kong-claude down >/dev/null; kill %1' EXIT\n{shown}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if '"pushed"' in line]
    answer = json.loads(line[line.index("{") : line.rindex("}") + 1])
    assert answer["check"]["passed"] and answer["pushed"]["problem"] is None
    assert f"claude/{answer['id']}" in done.stdout.replace(line, ""), "it is at the server"
    assert answer["changes"] == [{"path": "a.txt", "status": "modified", "added": 1, "removed": 1}]
