"""The small commands: token, guard, and what they say about bad input."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from claude_contract.duration import duration
from kong_claude import PLUGINS
from kong_claude.cli.main import main
from kong_claude.environment import PLUGINS as ALL
from kong_claude.guard import LUA_PLUGINS, PAIRED
from kong_claude.problem import Problem
from kong_claude_local import stack, up
from kong_claude_local.state import Running, process_start, recall, remember
from kong_claude_local.token import claims
from tests.support.waiting import HANG_S


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KONG_CLAUDE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_token_prints_one_jwt_and_nothing_else(capsys: pytest.CaptureFixture[str], own_home: Path) -> None:
    options = ["--sub", "alice", "--tier", "pro", "--role", "admin", "--claim", "team=core", "--claim", "n=[1]"]
    assert main(["token", *options, "--ttl", "15m"]) == 0
    # The first one makes the secret, and says so: the stack may be another directory's.
    assert capsys.readouterr().err.startswith(
        f"signed with a new secret, {own_home / 'jwt-secret'}: a stack of another"
    )
    assert main(["token", *options, "--ttl", "15m"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    secret = (own_home / "jwt-secret").read_text().strip()
    found = jwt.decode(
        printed.out.strip(), secret, algorithms=["HS256"], audience="claude-code", issuer="kong-claude-dev"
    )
    assert (found["sub"], found["tier"], found["roles"], found["team"], found["n"]) == (
        "alice",
        "pro",
        ["admin"],
        "core",
        [1],
    )
    assert found["exp"] - found["iat"] == 900


@pytest.mark.parametrize(("command", "code"), [("status", 1), ("down", 0)])
def test_where_nothing_runs_that_is_said_and_nothing_made(
    command: str, code: int, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == code
    assert f"no stack of {own_home} is running" in capsys.readouterr().out
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("http://127.0.0.1:1", True),
        ("http://gateway.example:1", False),
        ("http://127.0.0.1:1@gateway.example:1", False),
        ("https://127.0.0.1:1", False),
        ("http://127.0.0.1.example:1", False),
        ("http://[", False),
    ],
)
def test_a_directory_that_others_made_names_no_gateway_elsewhere(
    address: str, asked: bool, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks in a clone would send his token there. Where nobody is known, it is the machine's own gateway."""
    monkeypatch.setenv("CLAUDE_TOKEN", "of-an-admin")
    monkeypatch.delenv("CLAUDE_GATEWAY_URL", raising=False)
    started = process_start(os.getpid())
    assert started is not None
    remember(Running(os.getpid(), started, address, "", "", "", None, None))
    assert (recall() is not None) is asked
    sent: list[str] = []

    def gateway(base: str, *_: object, **__: object) -> None:
        sent.append(base)
        raise Problem("no more of it")

    monkeypatch.setattr("urllib.request.Request", gateway)
    assert main(["limits", "get"]) == 2 and "no more of it" in capsys.readouterr().err
    assert sent == [f"{address if asked else 'http://127.0.0.1:8000'}/claude/admin/limits"]


def test_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"kong-claude {version('kong-claude')}\n"


def test_secrets_are_made_once_and_for_the_owner_only(own_home: Path) -> None:
    main(["token", "--sub", "a"])
    first = (own_home / "jwt-secret").read_text()
    main(["token", "--sub", "b"])
    assert (own_home / "jwt-secret").read_text() == first
    assert len(first) > 32
    assert stat.S_IMODE((own_home / "jwt-secret").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("4w", 28 * 86400), ("36525d", 36525 * 86400)],
)
def test_durations(text: str, expected: int) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "90", "0s", "007d", "-1d", "1.5h", "1h30m", "1y", "1 d", "36526d", "9999999w", "٣d"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no length of time such as 30m"):
        duration(text)


@pytest.mark.parametrize(
    "command", [["token", "--sub", "a", "--ttl"], ["limits", "set", "--for"], ["report", "--since"]]
)
def test_each_command_says_what_is_no_duration(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "soon"])
    assert "soon is no length of time such as 30m" in capsys.readouterr().err


def test_a_token_is_somebodys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["token", "--sub", ""])
    assert ended.value.code == 2 and "a subject is somebody" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--claim", "novalue"], "not KEY=VALUE"),
    ],
)
def test_bad_options_say_what_to_write(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--sub", "a", *options]) == 2
    assert said in capsys.readouterr().err


def test_claims_are_json_where_they_are_json() -> None:
    assert claims(["a=1", "b=x", 'c={"d": true}', "e=1=2"]) == {"a": 1, "b": "x", "c": {"d": True}, "e": "1=2"}


BOTH = ["--plugin", "claude-jwt-claims", "--plugin", "claude-rate-tiers"]


@pytest.mark.parametrize("by", ["route", "service"])
def test_guard_is_yaml_that_compares_the_mark(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "--by", by, *BOTH]) == 0
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    (code,) = entry["config"]["access"]
    assert entry["name"] == "post-function"
    assert '"claude_identity", "claude_admission"' in code
    assert f"kong.router.get_{by}()" in code
    assert main(["guard", "--by", by, "--lua-plugin", *BOTH]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == [
        {"name": "claude-guard", "config": {"by": by, "plugin": "claude-jwt-claims"}},
        {"name": "claude-guard-tiers", "config": {"by": by}},
    ]


def test_guard_for_a_mark_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "--mark", "reports"]) == 0
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    assert 'left.mark ~= "reports"' in entry["config"]["access"][0]


def test_the_path_of_the_pair_holds_each_plugins_half(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "--pair"]) == 0
    pair, guards, *rest = capsys.readouterr().out.strip().split(";")
    assert rest == ["", ""]
    for name in (*PAIRED, "claude-pair"):
        part = "partner" if name == "claude-pair" else "handler"
        assert Path(pair.replace("?", f"kong/plugins/{name}/{part}")).is_file()
    assert Path(guards.replace("?", "kong/plugins/claude-guard/handler")).is_file()


def test_the_lua_path_holds_each_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "--lua-path"]) == 0
    pattern = capsys.readouterr().out.strip().removesuffix(";;")
    for name in LUA_PLUGINS:
        for part in ("handler", "schema"):
            assert Path(pattern.replace("?", f"kong/plugins/{name}/{part}")).is_file()


@pytest.mark.parametrize("mark", ['a"b', "a b", "a\nb", "", "]]"])
def test_a_mark_cannot_break_out_of_the_lua(mark: str) -> None:
    assert main(["guard", "--mark", mark]) == 2


@pytest.mark.parametrize("command", ["up", "down", "status", "token", "invoke", "guard", "doctor", "report", "export"])
def test_help_is_enough(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 60


def test_nothing_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 1
    assert main(["down"]) == 0
    assert main(["invoke", "hi"]) == 2
    assert "kong-claude up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("up", "kong-claude-local[stack]"),
        ("invoke", "pip install kong-claude-local"),
        ("worker", "claude-invoker worker"),
    ],
)
def test_a_part_that_is_not_installed_is_named(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kong_claude.cli.main.installed", dict)
    assert main([command]) == 2
    assert said in capsys.readouterr().err


def test_what_up_writes_of_plugins_is_what_kong_would_be_told(tmp_path: Path) -> None:
    """And where nothing was written Kong asks the plugin server, as elsewhere."""
    layout = stack.Layout(config=tmp_path / "kong.yml", plugins=PLUGINS, state=tmp_path, run=tmp_path)
    environment = stack.gateway(layout).environment

    def told(plugin: str) -> Any:
        command = environment[f"KONG_PLUGINSERVER_{plugin.upper().replace('-', '_')}_QUERY_CMD"]
        return json.loads(subprocess.run(command, shell=True, capture_output=True, check=True, timeout=HANG_S).stdout)

    asked = told("claude-metrics")
    up.describe(layout)
    assert {plugin: told(plugin)[0]["Name"] for plugin in ALL} == {plugin: plugin for plugin in ALL}
    assert told("claude-metrics") == asked == json.loads(layout.described("claude-metrics").read_text())
