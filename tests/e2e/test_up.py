"""`kong-claude up`: bad input is named, and whatever happens no process is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from claude_invoker.isolation.strength import Strength
from kong_claude import PLUGINS
from kong_claude_local import configuration, stack
from kong_claude_local import up as up_module
from tests.e2e.conftest import COMMAND, ROOT, Gateway, free_port, gateway_option, own_environment, up
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.timeout(240)]


def belonging_to(home: Path) -> list[str]:
    """Command lines of processes that were started for this stack: all of them name its state or run directory."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        try:
            environment = process.info["environ"] or {}
            words = " ".join([*(process.info["cmdline"] or []), *environment.values()])
        except psutil.Error:
            continue
        if str(home) in words and process.pid != os.getpid():
            found.append(f"{process.pid} {' '.join(process.info['cmdline'] or [])}")
    return found


def assert_nothing_left(home: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while left := belonging_to(home):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def environment(home: Path) -> dict[str, str]:
    # TMPDIR is inherited by every part, so that each of them can be recognised.
    return own_environment(home) | {"TMPDIR": str(home)}


@pytest.fixture
def home() -> Iterator[Path]:
    # Unix sockets live below TMPDIR, and their paths end at 108 bytes.
    short = Path("/tmp") / f"kc-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    short.mkdir()
    yield short
    shutil.rmtree(short, ignore_errors=True)


def press_ctrl_c(process: subprocess.Popen[str]) -> int:
    """As a person does: once, and again where nothing happens. A Python that is just starting can lose the first."""
    drain = threading.Thread(target=process.stdout.read, daemon=True)  # type: ignore[union-attr]
    drain.start()
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        os.killpg(process.pid, signal.SIGINT)  # the whole foreground process group gets it
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("Ctrl-C does not end the stack")


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, 0.05),
        *[pytest.param(signal.SIGINT, after, marks=pytest.mark.slow) for after in (0.4, 1.0, 2.0, 3.5, 5.0, None)],
        pytest.param(signal.SIGKILL, 2.0, marks=pytest.mark.slow),
        (signal.SIGKILL, None),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "ready" if value is None else f"{value}s",
)
def test_no_process_is_left_behind(home: Path, number: signal.Signals, after: float | None) -> None:
    process = subprocess.Popen(
        [COMMAND, "up", "--port", str(free_port()), "--config", str(ROOT / "kong.yml")],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    if after is None:
        for line in process.stdout:
            if "dashboard:" in line:
                break
    else:
        time.sleep(after)
    if number == signal.SIGKILL:
        process.kill()
        code = process.wait(HANG_S)
    else:
        code = press_ctrl_c(process)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:  # 1 is Python's own, interrupted before it has come to our program
        assert code in (0, 130, -signal.SIGINT) or (code == 1 and after == 0.05)
    assert_nothing_left(home)


def test_up_status_down(home: Path) -> None:
    port = free_port()
    env = environment(home)
    command = [COMMAND, "up", "--detach", "--port", str(port), "--config", str(ROOT / "kong.yml")]
    started = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert started.returncode == 0, started.stderr
    assert "ANSWERS ARE CANNED" in started.stdout
    (boundary,) = [line for line in started.stdout.splitlines() if line.startswith("boundary around a run: ")]
    assert any(f": {strength.label}, tools left out: " in boundary for strength in Strength)
    assert "curl" in started.stdout
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert again.returncode == 2
    assert "already running" in again.stderr
    status = subprocess.run([COMMAND, "status", "--json"], env=env, capture_output=True, text=True, timeout=HANG_S)
    assert status.returncode == 0
    assert json.loads(status.stdout)["ready"] == {"gateway": True, "invoker": True}
    said = subprocess.run([COMMAND, "invoke", "hi"], env=env, capture_output=True, text=True, timeout=HANG_S)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.strip()
    streamed = subprocess.run(
        [COMMAND, "invoke", "hi", "--stream"], env=env, capture_output=True, text=True, timeout=HANG_S
    )
    assert streamed.stdout.strip() == said.stdout.strip()
    assert subprocess.run([COMMAND, "down"], env=env, timeout=HANG_S).returncode == 0
    assert_nothing_left(home)
    assert subprocess.run([COMMAND, "status"], env=env, capture_output=True, timeout=HANG_S).returncode == 1


@pytest.mark.slow  # two starts
def test_after_a_kill_the_next_start_goes_on_and_leaves_one_run_directory(home: Path) -> None:
    port = free_port()

    def started() -> Gateway:
        done = subprocess.run(
            [COMMAND, "up", "--detach", "--port", str(port), "--config", str(ROOT / "kong.yml")],
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        running = json.loads((home / "stack.json").read_text())
        return Gateway(running["proxy"], running["invoker"], home, running["pid"])

    first = started()
    with first.client("alice", "--tier", "pro") as api:
        session = api.post("/claude/invoke", json={"prompt": "hi", "session": "new"}).json()["session"]
    assert session
    os.kill(first.pid, signal.SIGKILL)
    assert_nothing_left(home)
    assert len(list(home.glob("kong-claude-*"))) == 1, "a killed supervisor removes nothing"
    second = started()
    try:
        assert len(list(home.glob("kong-claude-*"))) == 1
        with second.client("alice", "--tier", "pro") as api:
            answer = api.post("/claude/invoke", json={"prompt": "again", "session": session})
        assert (answer.status_code, answer.json().get("session")) == (200, session), answer.text
    finally:
        subprocess.run([COMMAND, "down"], env=environment(home), check=True, timeout=HANG_S)
    assert list(home.glob("kong-claude-*")) == []


@pytest.mark.parametrize(
    ("edit", "line", "field"),
    [
        (("strip_path: false\n", "strip_pat: false\n"), "strip_pat: false", "strip_pat"),
        (("{claim: roles", "{clame: roles"), "clame", "clame"),
        (("minute: 60", "minute: sixty"), "minute: sixty", "minute"),
        (("_format_version", "format_version"), None, "_format_version"),
        (("methods: [POST]", "methods: [POST"), None, ""),
    ],
    ids=["unknown-field", "unknown-nested-field", "text-for-a-number", "no-format-version", "not-yaml"],
)
def test_an_error_in_kong_yml_is_named_with_its_line(
    home: Path, edit: tuple[str, str], line: str | None, field: str
) -> None:
    config = home / "broken.yml"
    text = (ROOT / "kong.yml").read_text().replace(*edit, 1)
    config.write_text(text)
    failed = up(home, free_port(), config=config)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "broken.yml" in failed.stderr
    assert field in failed.stderr
    if line and not gateway_option():  # a real Kong knows no lines
        number = next(i for i, found in enumerate(text.splitlines(), 1) if line in found)
        # An error in an entity may be reported at the entity's first line.
        assert any(f":{n}" in failed.stderr for n in range(max(1, number - 40), number + 1)), failed.stderr
    assert_nothing_left(home)


def test_a_port_in_use_is_one_line(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = up(home, taken.getsockname()[1])
    assert failed.returncode == 2
    assert "--port" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_missing_file_and_a_missing_binary_are_one_line(home: Path) -> None:
    failed = up(home, free_port(), config=home / "nowhere.yml")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "--config" in failed.stderr
    command = [COMMAND, "up", "--detach", "--port", str(free_port()), "--config", str(ROOT / "kong.yml")]
    env = own_environment(home) | {"CLAUDE_CLI_PATH": "/nonexistent/claude"}
    failed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "/nonexistent/claude" in failed.stderr


def test_a_full_disk_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kong_claude.cli.main import main
    from kong_claude_local import up as module

    monkeypatch.setenv("KONG_CLAUDE_HOME", str(home))
    monkeypatch.setattr(module, "MIN_FREE", 1 << 60)
    assert main(["up", "--port", str(free_port()), "--config", str(ROOT / "kong.yml")]) == 2
    assert "make room" in capsys.readouterr().err


CHANGES = {
    "a plugin refuses it": ("default_tier: free", "default_tier: fre", "{at}: plugin claude-gateway on route claude-invoke, "
        "config.rate_tiers.default_tier: must name one of the tiers: free, pro, team"),
    "of another kind, by an anchor": ("{name: free, minute: 10,", "{name: free, minute: ten,",
        "{at}: plugins[1].config.rate_tiers.tiers[1].minute (plugin claude-gateway): expected an integer"),
    "an unknown field": ("methods: [POST]", "methos: [POST]",
        "{at}: services[1].routes[1].methos (route claude-invoke): unknown field"),
    "a guard's": ("by: route}", "by: rout}", "{at}: services[1].plugins[1].config.by (plugin claude-guard of service "
        "claude-code-service): expected one of: route, service"),
    "no YAML": ("url: http://invoker:8100", "url: [", "{next but two}: did not find expected ',' or ']'"),
}  # fmt: skip
"""{at}: where the change is; {next but two}: three lines further, where the list without an end meets what is no part of it."""


def said_of(text: str, home: Path, kong: str | None = None) -> list[str]:
    """The problems of a configuration."""
    config = home / "kong.yml"
    config.write_text(text)
    secrets = up_module.secrets_for(config)
    return configuration.problems(stack.Layout(config, PLUGINS, home, home, secrets=secrets, kong=kong))


@pytest.mark.parametrize(("before", "after", "line"), CHANGES.values(), ids=CHANGES)
def test_a_mistake_is_said_once_with_file_line_entity_and_field(
    before: str, after: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KONG_CLAUDE_HOME", str(home))
    text = (ROOT / "kong.yml").read_text()
    at = text[: text.index(before)].count("\n") + 1
    said = line.replace("{at}", f"kong.yml:{at}").replace("{next but two}", f"kong.yml:{at + 3}")
    assert said_of(text.replace(before, after, 1), home) == [said]


UNKNOWN = "plugins:\n- {name: cors, config: {whatever: 1}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{clame: roles", "rules[1].clame (plugin claude-gateway): unknown field"),  # and not that `claim` is missing
        ("{claim: roles", None),
    ],
    ids=["ours", "a plugin that minikong does not know"],
)
def test_of_a_real_kong_only_what_our_own_plugins_are_given_is_said_before_it_starts(
    text: str, said: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KONG_CLAUDE_HOME", str(home))
    config = (ROOT / "kong.yml").read_text().replace("{claim: roles", text, 1).replace("plugins:\n", UNKNOWN, 1)
    found = said_of(config, home, kong="/usr/local/bin/kong")
    assert (said in {line.partition("config.jwt_claims.")[2] for line in found}) if said else found == []
    assert any("(plugin cors)" in line for line in said_of(config, home)), "the control: minikong refuses it"


def test_control_our_own_files_have_no_mistake(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONG_CLAUDE_HOME", str(home))
    for file in (ROOT / "kong.yml", *(ROOT / "examples").glob("*.yml")):
        assert said_of(file.read_text(), home) == [], file


def test_a_mistake_is_said_before_anything_is_started(home: Path) -> None:
    config = home / "kong.yml"
    config.write_text((ROOT / "kong.yml").read_text().replace("default_tier: free", "default_tier: fre"))
    command = [COMMAND, "up", "--port", str(free_port()), "--config", str(config)]
    failed = subprocess.run(command, env=own_environment(home), capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "kong.yml:32: " in failed.stderr
