"""What a running Kong tells by its Admin API: its entities, and of its settings what it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kong_claude import ask
from kong_claude.doctor.settings import Settings
from kong_claude.doctor.view import View, build
from kong_claude.problem import Problem

HIDDEN = "******"
"""In the place of what Kong keeps to itself, such as a database's password."""
SHOWN = (
    *("KONG_PLUGINS", "KONG_PLUGINSERVER_*", "KONG_UNTRUSTED_LUA", "KONG_PROXY_LISTEN"),
    *("KONG_NGINX_HTTP_*", "KONG_CLIENT_BODY_BUFFER_SIZE"),
)
"""What is looked at of Kong's settings. Its Lua path is not: it names files of its own machine."""
TIMEOUT = 10.0  # seconds, for one answer


def from_admin(url: str, environment: Settings) -> View:
    """Asks a running Kong's Admin API, which shows vault references, not what they resolve to. What it shows of Kong's
    settings counts, the rest is as `environment` has it. Raises Problem."""
    return replace(build(everything(url), settings(url).over(environment)), is_running=True)


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    kinds = ("services", "routes", "plugins", "upstreams", "consumers")
    found = {kind: fetch(url, f"/{kind}") for kind in kinds}
    pools = [f"/upstreams/{upstream['id']}/targets" for upstream in found["upstreams"]]
    targets = [target for pool in pools for target in fetch(url, pool)]
    # Kong Enterprise alone has groups; without them plugins of one are known by its id.
    return {**found, "targets": targets, "consumer_groups": fetch(url, "/consumer_groups", optional=True)}


def settings(url: str) -> Settings:
    """Kong's settings by their names in its environment, of `GET /`. The worker that started a plugin server answers
    that with 500 (Kong 3.9): of such a Kong nothing is known but the plugins that it has loaded. Raises Problem where
    nothing answers."""
    root = document(url, "/", optional=True)
    said = root.get("configuration")
    if isinstance(said, Mapping) and isinstance(said.get("plugins"), list):
        whole = {f"KONG_{name.upper()}": written(value) for name, value in said.items() if readable(value)}
        found = Settings(whole, SHOWN)
        return Settings({name: value for name, value in whole.items() if found.shows(name)}, SHOWN)
    loaded = document(url, "/plugins/enabled", optional=True).get("enabled_plugins")
    return Settings({"KONG_PLUGINS": written(loaded)}, ("KONG_PLUGINS",)) if loaded and readable(loaded) else Settings()


def readable(value: Any) -> bool:
    """Whether it stands in kong.conf like that: tables are made of other settings."""
    words = value if isinstance(value, list) else [value]
    return value != HIDDEN and all(isinstance(word, str) for word in words)


def written(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ",".join(value)


def fetch(url: str, path: str, *, optional: bool = False) -> list[dict[str, Any]]:
    """All pages of a list. Raises Problem; where it is `optional`, not for a list that is not there."""
    found: list[dict[str, Any]] = []
    page: str | None = f"{path}?size=1000"
    while page:
        answer = document(url, page, optional=optional)
        found += answer.get("data") or []
        page = answer.get("next")
    return found


def document(url: str, path: str, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object at a path; an empty one for any other status than 200 where it is `optional`. Raises Problem."""
    try:
        status, body = ask.get(url, path, timeout=TIMEOUT)
        if status != 200:
            if optional:
                return {}
            raise ValueError(f"{path}: status {status}")
        answer = json.loads(body)
        if not isinstance(answer, dict):
            raise ValueError(f"{path}: not a JSON object")
    except (OSError, ValueError) as error:
        raise Problem(f"{url} does not answer like Kong's Admin API ({error})") from error
    return answer
