"""The blocks of commands in README and documents, as they stand, against the whole stack."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from claude_invoker.model import InvokeRequest
from tests.e2e.conftest import COMMAND, ROOT, Gateway, own_environment
from tests.invoker.conftest import wait_for

pytestmark = pytest.mark.xdist_group("e2e")

LOCAL_LOG = ".kong-claude/runs/audit"


def run_as_shown(script: str, gateway: Gateway, directory: Path) -> subprocess.CompletedProcess[str]:
    """In a shell that ends at the first command that fails, which none may."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=own_environment(gateway.home),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_calls_of_the_readme_answer_what_it_says(gateway: Gateway, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if "TOKEN=" in block)
    for ours, theirs in (
        ("http://127.0.0.1:8000", gateway.url),
        ("http://127.0.0.1:8100", gateway.invoker),
        (".venv/bin/kong-claude", COMMAND),
    ):
        assert ours in script
        script = script.replace(ours, theirs)
    done = run_as_shown(script.replace("curl -", "curl -sS -"), gateway, tmp_path)
    said = done.stdout
    # One call after the other: an answer, a job, no token, no role, not JSON, past the gateway.
    assert re.findall(r"HTTP/1\.1 (\d+)", said) == ["200", "202", "401", "403", "400", "401"]
    assert "event: message_stop" in said and "event: run.finished" in said
    assert re.search(r"^location: /claude/jobs/job_", said, re.MULTILINE | re.IGNORECASE)
    assert '"tier":"pro"' in said
    assert 'claude_requests_total{method="POST",route="claude-invoke",status="200"}' in said


def test_the_local_stacks_admin_api_as_the_document_asks_it(gateway: Gateway, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/admin-api.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if "--unix-socket" in block)
    shutil.copy(ROOT / "kong.yml", tmp_path)
    done = run_as_shown(script.replace("kong-claude", COMMAND), gateway, tmp_path)
    routes = [
        route for service in yaml.safe_load((ROOT / "kong.yml").read_text())["services"] for route in service["routes"]
    ]
    assert f"{len(routes)} routes, 0 openings" in done.stderr
    assert "{vault://env/claude-attestation-key}" in done.stdout


def test_what_a_consumer_is_told_works_as_it_stands(gateway: Gateway, tmp_path: Path) -> None:
    text = (ROOT / "docs/api.md").read_text()
    setting, calls, listing, generating = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for ours, theirs in (("http://127.0.0.1:8000", gateway.url), (".venv/bin/kong-claude", COMMAND)):
        assert ours in setting
        setting = setting.replace(ours, theirs)
    (tmp_path / "program.py").write_text(program)
    generating = generating.replace("openapi-python-client", f"{Path(sys.executable).parent}/openapi-python-client")
    script = f"{setting}{calls}export GATEWAY TOKEN\n{sys.executable} program.py\n{generating}"
    done = run_as_shown(f"{script}({listing}) > runs.json", gateway, tmp_path)
    second, _, rest = done.stdout.partition("}hello")
    assert "and again" in second and '"session":"' in second
    assert rest.startswith("202\n"), rest
    assert rest.count("canned answer") == 2, rest
    events = (tmp_path / "events").read_text()
    assert "event: error" in events and "run.finished" not in events
    assert (tmp_path / "claude_client" / "api" / "invoke" / "invoke_invoke.py").is_file()
    listed = json.loads((tmp_path / "runs.json").read_text())
    assert listed["next"] is None and all("haiku" in run["model"] for run in listed["runs"])


def test_what_to_do_when_something_happens_is_done_so(gateway: Gateway, tmp_path: Path) -> None:
    spent, blocked, back, revoked = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/incidents.md").read_text(), re.DOTALL)
    programs = Path(sys.executable).parent

    def done(script: str) -> str:
        for name, program in (("kong-claude", COMMAND), ("claude-invoker", programs / "claude-invoker")):
            script = re.sub(rf"(?<![\w./-]){name} ", f"{program} ", script)
        return run_as_shown(f"export INVOKER_AUDIT_DIR={log}\n{script}", gateway, tmp_path).stdout

    def of_the_local_stack(document: str) -> str:
        (shown,) = [
            b for b in re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.DOTALL) if LOCAL_LOG in b
        ]
        return done(shown.replace(LOCAL_LOG, str(gateway.home / "runs" / "audit")))

    with gateway.client("alice", "--tier", "pro") as alice:
        ran = alice.post("/claude/invoke", json={"prompt": "hi"})
        assert ran.status_code == 200, ran.text
        # Not by `rglob`: directories of runs go meanwhile.
        (log,) = (Path(top) for top, _, names in os.walk(gateway.home) if fnmatch.filter(names, "audit-*.jsonl"))
        wait_for(lambda: ran.json()["id"] in details(log), what="the run in the audit log")
        said = done(spent)
        assert re.search(r"^ +[0-9.]+ +[0-9]+ +[0-9]+ +\S+Z +alice$", said, re.MULTILINE), said
        assert "usd_per_day" in said
        done(blocked)
        assert alice.post("/claude/invoke", json={"prompt": "hi"}).status_code == 403
        assert alice.get("/claude/runs").status_code == 200, "she may look"
        done(back)
        assert alice.post("/claude/invoke", json={"prompt": "hi"}).status_code == 200

        # No password, and no port.
        socket = json.loads(done("kong-claude status --json"))["redis"].removeprefix("unix://")
        server = '-u "$CLAUDE_REDIS_URL"'
        assert revoked.count(server) == 2
        assert done(revoked.replace("redis-cli", f"{programs}/redis-cli").replace(server, f"-s {socket}")) == "1\n1\n"
        assert " alice" in of_the_local_stack("docs/audit.md")
        assert "Without an access log" in of_the_local_stack("docs/metrics.md")


def details(log: Path) -> str:
    return "".join(path.read_text() for path in log.glob("details-*.jsonl"))


def test_the_consumers_document_has_every_field_and_no_other() -> None:
    table = (ROOT / "docs/api.md").read_text().partition("| field |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([a-z_]+)`", row.split(" | ")[0])}
    assert named == {*InvokeRequest.model_fields, "callback_url"}
