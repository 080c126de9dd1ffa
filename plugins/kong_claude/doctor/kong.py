"""Rules about Kong's own settings, each asked only where they can be seen. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from kong_claude.doctor.guards import GUARDS, SUITE
from kong_claude.doctor.opening import Opening
from kong_claude.doctor.reach import AUTHENTICATING, asks
from kong_claude.doctor.view import View, runs
from kong_claude.environment import variable
from kong_claude.guard import LUA_PLUGINS

PLUGIN_SERVER = "kong-claude-pluginserver"
DEVELOPMENT = "kong-claude-dev"  # the issuer of `kong-claude token`
MAX_READ_TIMEOUT = 10.0  # seconds a silent plugin server may hold a request
EVENT_TIMEOUT = 25.0  # seconds, the plugin server's default
MIN_BODY_BUFFER = 64 << 10  # bytes
BODY_READERS = ("claude-gateway", "claude-rate-tiers", "claude-prompt-context")
READ_TIMEOUT = "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"
BODY_BUFFER, BODY_BUFFER_TOO = "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE", "KONG_CLIENT_BODY_BUFFER_SIZE"
NAMES = "KONG_PLUGINSERVER_NAMES"
START = re.compile(r"KONG_PLUGINSERVER_\w+_START_CMD")


def timeouts(view: View) -> Iterator[Opening]:
    """A silent plugin server holds a request for so long; and no event may take longer."""
    if not view.settings.shows(READ_TIMEOUT):
        return
    timeout = seconds(view.settings.get(READ_TIMEOUT) or "60s")
    if timeout is None or timeout > MAX_READ_TIMEOUT:
        yield Opening(
            "unbounded-timeout",
            READ_TIMEOUT,
            f"a silent plugin server holds each request for {timeout or '?'} s",
            "set it to 5s",
        )
    for name, command in starts(view):
        if PLUGIN_SERVER in command:
            event = re.search(r"--event-timeout[ =](\d+(?:\.\d+)?)", command)
            if timeout is not None and float(event[1] if event else EVENT_TIMEOUT) * 2 >= timeout:
                yield Opening(
                    "late-event-timeout",
                    name,
                    "an event may end after Kong has stopped waiting for it",
                    f"--event-timeout below half of {READ_TIMEOUT}",
                )


def body_buffer(view: View) -> Iterator[Opening]:
    if not view.settings.shows(BODY_BUFFER, BODY_BUFFER_TOO):
        return
    size = view.settings.get(BODY_BUFFER) or view.settings.get(BODY_BUFFER_TOO) or "8k"
    if (size_in_bytes(size) or 0) < MIN_BODY_BUFFER and any(p.get("name") in BODY_READERS for p in view.plugins):
        yield Opening(
            "small-body-buffer",
            BODY_BUFFER,
            f"prompts over {size} go to disk before a plugin reads them",
            "set it to 1m",
        )


def plugin_servers(view: View) -> Iterator[Opening]:
    """Each plugin in use is an entry of its own, and ours is the server that runs it."""
    if not view.settings.shows(NAMES):
        return
    served = listed(view.settings.get(NAMES))
    for plugin in used(view):
        key = variable(plugin, "QUERY_CMD")
        if plugin not in served:
            yield Opening("no-pluginserver", plugin, f"has no entry in {NAMES}", "one entry per plugin (Kong 3.9)")
        elif f"--dump {plugin}" not in (view.settings.get(key) or ""):
            yield Opening("wrong-dump", key, "Kong reads only the first plugin of a dump", f"… --dump {plugin}")
    for name, command in starts(view):
        if PLUGIN_SERVER not in command and not serves(view, name).isdisjoint(used(view)):
            yield Opening(
                "stock-pluginserver",
                name,
                f"starts a server that is not {PLUGIN_SERVER}: an exception in it lets the request pass",
                "kong-claude env, with a --plugin for each",
            )


def enabled(view: View) -> Iterator[Opening]:
    if not view.settings.shows("KONG_PLUGINS"):
        return
    names = listed(view.settings.get("KONG_PLUGINS") or "bundled")
    ours = {*SUITE, *LUA_PLUGINS}
    present = {str(p.get("name")) for p in view.plugins}
    needed = (present & ours) | (names - {"bundled"})
    for plugin in sorted(present - names):  # one that is switched off, too
        if plugin in ours or "bundled" not in names:
            word = plugin if plugin in ours else f"bundled, and so not {plugin}"
            yield Opening("not-enabled", "KONG_PLUGINS", f"does not name {word}", f"bundled,{','.join(sorted(needed))}")


def untrusted_lua(view: View) -> Iterator[Opening]:
    guarding = {p["name"] for p in view.plugins if p.get("name") in GUARDS and runs(p)}
    if "post-function" in guarding and view.settings.get("KONG_UNTRUSTED_LUA") == "off":
        yield Opening(
            "untrusted-lua",
            "KONG_UNTRUSTED_LUA",
            "is off, so that no post-function runs and no guard with it",
            "leave it at sandbox, or use the plugin claude-guard: kong-claude guard --lua-plugin",
        )


def development(view: View) -> Iterator[Opening]:
    """The issuer of `kong-claude token` is for one machine."""
    if not view.settings.shows("KONG_PROXY_LISTEN"):
        return
    # A container listens on all its addresses; who started it says where its port was published.
    published = view.settings.get("CLAUDE_PUBLISHED_ON")
    listens = f"{published}:8000" if published else view.settings.get("KONG_PROXY_LISTEN") or "0.0.0.0:8000"  # Kong's
    if all(map(own_machine, listens.split(","))):
        return
    trusting = [
        route.name
        for route in view.served
        for plugin in route.active(*AUTHENTICATING)
        if any(issuer.get("issuer") == DEVELOPMENT for issuer in (asks(plugin) or {}).get("issuers") or ())
    ]
    if trusting:
        yield Opening(
            "development-issuer",
            f"issuer {DEVELOPMENT}",
            f"who has its secret is anybody on {', '.join(trusting)}, and others reach Kong ({listens})",
            "name your identity provider instead (docs/identity), or listen on 127.0.0.1",
        )


RULES: tuple[Callable[[View], Iterator[Opening]], ...] = (
    timeouts,
    body_buffer,
    plugin_servers,
    enabled,
    untrusted_lua,
    development,
)


def used(view: View) -> list[str]:
    """The plugins of this suite that stand in the configuration."""
    return sorted({p["name"] for p in view.plugins if p.get("name") in SUITE})


def starts(view: View) -> Iterator[tuple[str, str]]:
    """How plugin servers are started: names and commands."""
    return ((name, command) for name, command in view.settings.values.items() if START.fullmatch(name))


def serves(view: View, start: str) -> set[str]:
    """The plugins of this suite that the process of a START_CMD runs: its own, and those with the same socket."""
    socket = view.settings.get(start.replace("_START_CMD", "_SOCKET"))
    own = {plugin for plugin in SUITE if start == variable(plugin, "START_CMD")}
    return own | {plugin for plugin in SUITE if socket and socket == view.settings.get(variable(plugin, "SOCKET"))}


def listed(text: str | None) -> set[str]:
    return {name.strip() for name in (text or "").split(",")}


def own_machine(listen: str) -> bool:
    """Whether only this machine reaches an entry of proxy_listen."""
    address = (listen.split() or ["off"])[0]
    host = address.rpartition(":")[0].strip("[]")
    if address == "off" or address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def seconds(text: str) -> float | None:
    match = re.fullmatch(r"(\d+)(ms|s|m|h)?", text.strip())
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, None: 1}[match[2]] if match else None


def size_in_bytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([kKmMgG])?", text.strip())
    return int(match[1]) << {"k": 10, "m": 20, "g": 30}.get((match[2] or "").lower(), 0) if match else None
