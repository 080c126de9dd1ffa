"""`kong-claude env`: what each reader of settings makes of it, and that it is what the shipped files have."""

from __future__ import annotations

import configparser
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kong_claude.cli.main import main
from kong_claude.doctor import view
from kong_claude.environment import FORMS, IMAGE, PLUGINS, Server, environment
from kong_claude.problem import Problem

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["kong"]["environment"]
SERVER = Server("/opt/kong-claude/bin/kong-claude-pluginserver", "/usr/local/kong", "/lua/?.lua")
# What a value could hold that one of the readers gives a meaning to.
ODD = {"KONG_A": "a \"b\" 'c' $d ${e} %f \\g # h: i", "KONG_B": ";;", "KONG_C": "on", "KONG_D": "5s"}


def test_the_compose_file_has_what_it_prints() -> None:
    server = Server(IMAGE.program, IMAGE.prefix, IMAGE.lua_path, metrics="pluginserver:8109")
    printed = yaml.safe_load(FORMS["compose"].written(environment(PLUGINS, server)))["environment"]
    assert {name: COMPOSE.get(name) for name in printed} == printed
    ours = {name for name in COMPOSE if "PLUGIN" in name or "LUA" in name or "BODY_BUFFER" in name}
    assert ours == printed.keys()


def test_what_the_documents_print_for_the_shipped_configuration_is_all_that_it_needs() -> None:
    (line,) = re.findall(r"^kong-claude env (--plugin .*)$", (ROOT / "docs/pluginserver.md").read_text(), re.MULTILINE)
    named = line.replace("--plugin", "").split()
    shipped = view.from_file(ROOT / "kong.yml", {})
    used = {str(plugin["name"]) for plugin in shipped.plugins if str(plugin["name"]).startswith("claude-")}
    assert set(named) == used & set(PLUGINS)
    assert used <= set(environment(named, SERVER)["KONG_PLUGINS"].split(","))


def as_shell(text: str, folder: Path) -> dict[str, str]:
    (folder / "f").write_text(text)
    script = "set -eua; . ./f; env -0"
    said = subprocess.run(["sh", "-c", script], cwd=folder, env={}, capture_output=True, check=True).stdout.decode()
    return dict(line.split("=", 1) for line in said.split("\0") if line.startswith("KONG_"))


def as_systemd(text: str, folder: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(re.sub(r"^Environment=", lambda _: f"E{next(numbers)}=", text, flags=re.MULTILINE))
    found = {}
    for value in parser["Service"].values():
        assert value[0] == value[-1] == '"'
        assert not re.search(r"(?<!%)(?:%%)*%(?!%)", value), "no specifier"
        plain = re.sub(r"\\(.)", r"\1", value[1:-1]).replace("%%", "%")
        name, _, found_value = plain.partition("=")
        found[name] = found_value
    return found


numbers = iter(range(10_000))


def as_compose(text: str, folder: Path) -> dict[str, str]:
    read = yaml.safe_load(text)["environment"]
    assert all(not re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", value) for value in read.values()), "nothing to interpolate"
    return {name: value.replace("$$", "$") for name, value in read.items()}


def as_helm(text: str, folder: Path) -> dict[str, str]:
    return {f"KONG_{name.upper()}": value for name, value in yaml.safe_load(text)["gateway"]["env"].items()}


READERS = {"env": as_shell, "systemd": as_systemd, "compose": as_compose, "helm": as_helm}


@pytest.mark.parametrize("form", FORMS)
def test_every_reader_gets_the_values_as_they_are(form: str, tmp_path: Path) -> None:
    for settings in (ODD, environment(PLUGINS, SERVER)):
        assert READERS[form](FORMS[form].written(settings), tmp_path) == settings


def test_one_entry_for_each_plugin_and_one_process() -> None:
    made = environment(["claude-metrics", "claude-jwt-claims"], SERVER)
    assert made["KONG_PLUGINS"] == "bundled,claude-metrics,claude-jwt-claims,claude-guard"
    assert made["KONG_PLUGINSERVER_NAMES"] == "claude-metrics,claude-jwt-claims"
    assert [name for name in made if name.endswith("START_CMD")] == ["KONG_PLUGINSERVER_CLAUDE_METRICS_START_CMD"]
    assert sum(name.endswith("QUERY_CMD") for name in made) == 2
    assert "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE" not in made, "neither reads bodies"


def test_what_kong_has_already_is_kept() -> None:
    before = {
        "KONG_PLUGINS": "bundled, oidc,claude-guard",
        "KONG_PLUGINSERVER_NAMES": "go",
        "KONG_LUA_PACKAGE_PATH": "/mine/?.lua;;",
    }
    made = environment(["claude-jwt-claims"], SERVER, before)
    assert made["KONG_PLUGINS"] == "bundled,oidc,claude-guard,claude-jwt-claims"
    assert made["KONG_PLUGINSERVER_NAMES"] == "go,claude-jwt-claims"
    assert made["KONG_LUA_PACKAGE_PATH"] == "/lua/?.lua;/mine/?.lua;;"
    assert environment(["claude-jwt-claims"], SERVER, made) == made, "and twice is once"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [("kong", "full path"), ("/" + "k" * 100, "too long for a socket"), ("/a b", "plain characters")],
)
def test_where_kong_could_not_start_it(prefix: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Problem, match=said):
        environment(["claude-gateway"], Server("/p", prefix))
    assert main(["env", "--prefix", prefix]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err


@pytest.mark.parametrize("form", FORMS)
def test_with_the_pair_its_half_comes_before_the_guards(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And once, where the environment names it already."""
    assert main(["env", "--format", form]) == 0
    assert "/pair/?.lua" not in capsys.readouterr().out
    assert main(["env", "--format", form, "--pair"]) == 0
    assert re.search(r"/pair/\?\.lua;[^;]*/lua/\?\.lua;;", capsys.readouterr().out)
    path = environment(PLUGINS, replace(SERVER, pair_path="/pair/?.lua"))["KONG_LUA_PACKAGE_PATH"]
    assert path == "/pair/?.lua;/lua/?.lua;;"
    again = environment(
        PLUGINS, replace(SERVER, pair_path="/pair/?.lua"), {"KONG_LUA_PACKAGE_PATH": f"/x/?.lua;{path}"}
    )
    assert again["KONG_LUA_PACKAGE_PATH"] == "/pair/?.lua;/lua/?.lua;/x/?.lua;;"
