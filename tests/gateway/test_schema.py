"""The Schemas as Kong reads them (held to recorded Kong by the conformance suite): what is filled in, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from kong_claude import PLUGINS
from kong_claude.gateway.schema import SCHEMA
from minikong import admin, declarative
from minikong.precedence import Precedence
from minikong.schema import bundled
from tests.gateway.runners import PLUGINS as PLUGIN_OF_SECTION
from tests.gateway.table import ALL
from tests.support.kong_driver import Driver

NAMES = ("claude-jwt-claims", "claude-rate-tiers", "claude-prompt-context", "claude-gateway")


@cache
def schemas() -> declarative.Schema:
    dumped = {}
    for name in NAMES:
        command = [sys.executable, "-m", "kong_claude.server", "-d", str(PLUGINS), "--dump", name]
        (info,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        dumped[name] = info["Schema"]
    return declarative.Schema({**bundled.schemas(), **dumped})


def load(plugin: str, config: dict[str, Any]) -> dict[str, Any] | str:
    """The Config JSON that the plugin server would get, or why the configuration is refused."""
    route = {"name": "r", "paths": ["/"], "plugins": [{"name": plugin, "config": config}]}
    document = {
        "_format_version": "3.0",
        "services": [{"name": "s", "url": "http://127.0.0.1:9", "routes": [route]}],
    }
    gateway = admin.Admin(schemas(), environ={})
    status, _, body = gateway.handle(
        "POST", "/config", json.dumps(document).encode(), {"content-type": "application/json"}
    )
    if status != 201:
        return body.decode()
    (entity,) = [p for p in Precedence(gateway.config).entities if p.name == plugin]
    made: dict[str, Any] = json.loads(json.dumps(entity.instance_config()))
    return made


def test_an_empty_prompt_context_gets_the_defaults() -> None:
    made = load("claude-prompt-context", {})
    assert isinstance(made, dict)
    own = {n: v for n, v in made.items() if not n.startswith("__") and n != "route_id"}
    assert own == {
        "shape": "invoke",
        "on_locked": "reject",
        "apply": "auto",
        "rewrite_max_bytes": 65536,
        "max_body_bytes": 8388608,
        "form": False,
        "explain": False,
        "explain_permission": "claude:explain",
    }


def test_context_fields_get_their_defaults() -> None:
    made = load("claude-prompt-context", {"context": {"repository": {"source": "header:X-Repo"}}})
    assert isinstance(made, dict)
    assert made["context"] == {
        "repository": {"source": "header:X-Repo", "required": False, "max_length": 256, "render": False}
    }


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"shape": "xml"}, "shape"),
        ({"context": {"a b": {"source": "header:X"}}}, "context"),
        ({"context": {"a": {}}}, "source"),
        ({"context": {"a": {"source": "X-Repo"}}}, "source"),
        ({"context": {"a": {"source": "header:X", "max_length": 0}}}, "max_length"),
        ({"context": {"a": "header:X"}}, "context"),
        ({"rewrite_max_bytes": 1 << 20}, "rewrite_max_bytes"),
        ({"max_prompt_bytes": 0}, "max_prompt_bytes"),
        ({"apply": "never"}, "apply"),
        ({"unknown": 1}, "unknown"),
    ],
)
@pytest.mark.parametrize("plugin", ["claude-prompt-context", "claude-gateway"])
def test_what_kong_refuses(plugin: str, config: dict[str, Any], names: str) -> None:
    refused = load(plugin, config if plugin == "claude-prompt-context" else {"prompt_context": config})
    assert isinstance(refused, str)
    assert names in refused


def test_sections_that_are_not_there_stay_away() -> None:
    made = load("claude-gateway", {"prompt_context": {}})
    assert isinstance(made, dict)
    assert set(PLUGIN_OF_SECTION) & made.keys() == {"prompt_context"}


@pytest.mark.parametrize("section", PLUGIN_OF_SECTION)
def test_a_section_is_filled_in_as_its_plugin_is(section: str) -> None:
    alone = load(PLUGIN_OF_SECTION[section][0], ALL[section])
    fused = load("claude-gateway", {section: ALL[section]})
    assert isinstance(alone, dict) and isinstance(fused, dict)
    assert fused[section] == {n: v for n, v in alone.items() if not n.startswith("__") and n != "route_id"}


def test_a_configuration_as_kong_sends_it_starts(kong: Driver) -> None:
    made = load("claude-gateway", {**ALL, "attestation": {"secret": "x" * 32}})
    assert isinstance(made, dict)
    assert kong.start_instance("claude-gateway", made) is not None


def fields(of: Any) -> Any:
    for field in of:
        ((name, attributes),) = field.items()
        yield name, attributes
        for nested in (attributes, attributes.get("elements", {}), attributes.get("values", {})):
            yield from fields(nested.get("fields", []))


def test_every_field_has_a_description_that_kong_accepts() -> None:
    found = list(fields(SCHEMA))
    assert len(found) > 50
    assert [name for name, attributes in found if len(attributes.get("description", "")) < 10] == []
