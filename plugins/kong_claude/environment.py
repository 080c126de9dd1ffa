"""What Kong's environment must hold to run plugins of this package, as values; and written for those who read it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kong_claude.guard import ERRORS, LUA_PATH, PLUGIN
from kong_claude.problem import Problem

PLUGINS = ("claude-gateway", "claude-jwt-claims", "claude-rate-tiers", "claude-prompt-context", "claude-metrics")
"""Those that the plugin server runs."""
READ_BODIES = {"claude-gateway", "claude-prompt-context"}
SOCKET = "claude.sock"
EVENT_TIMEOUT, READ_TIMEOUT = "2", "5s"
"""A plugin's answer takes at most the first; Kong waits for the second, which is more than twice as long
(docs/pluginserver.md, "How an event ends")."""
LONGEST_SOCKET = 107  # bytes of a path in sockaddr_un, without its end


@dataclass(frozen=True)
class Server:
    """Where the plugin server is and how it is started."""

    program: str
    """Full path of kong-claude-pluginserver: Kong starts it without PATH."""
    prefix: str
    """Directory of its socket, which Kong's user may write."""
    lua_path: str = LUA_PATH
    pair_path: str | None = None
    """Where Kong finds the Lua half of the plugins; None for single calls."""
    directory: str | None = None
    """Of the plugins' files, where they are not those of the package."""
    metrics: str | None = None
    """host:port for Prometheus."""

    @property
    def socket(self) -> str:
        return f"{self.prefix.rstrip('/')}/{SOCKET}"


IMAGE = Server("/opt/kong-claude/bin/kong-claude-pluginserver", "/tmp", "/opt/kong-claude/lua/?.lua")  # noqa: S108
"""In the image of plugins/Dockerfile, whose file system is read-only but for /tmp."""
IMAGE_PAIR_PATH = "/opt/kong-claude/pair/?.lua"


def environment(plugins: Sequence[str], server: Server, present: Mapping[str, str] | None = None) -> dict[str, str]:
    """KONG_… → value, in the order in which one would explain them.

    `plugins` as Kong names them, the first owns the process. Of `present`, Kong's environment so far, the lists of
    plugins, plugin servers and Lua paths are kept and added to. Raises Problem where Kong could not start the server.
    """
    if not server.prefix.startswith("/"):
        raise Problem(f"--prefix {server.prefix}: Kong wants a full path, such as /usr/local/kong")
    if len(server.socket.encode()) > LONGEST_SOCKET:
        raise Problem(f"{server.socket} is too long for a socket ({LONGEST_SOCKET} bytes); choose a shorter --prefix")
    for path in (server.program, server.prefix):
        if path != shlex.quote(path):
            raise Problem(f"{path} stands in a command line that Kong hands to a shell: use a path of plain characters")
    before = present or {}
    in_lua = tuple(dict.fromkeys(PLUGIN[plugin] for plugin in plugins if plugin in PLUGIN))
    if "claude-gateway" in plugins:  # as kong.yml has them
        in_lua += (ERRORS,)
    made = {
        "KONG_PLUGINS": joined(before.get("KONG_PLUGINS", "bundled"), *plugins, *in_lua),
        "KONG_LUA_PACKAGE_PATH": _lua_path(
            [path for path in (server.pair_path, server.lua_path) if path], before.get("KONG_LUA_PACKAGE_PATH", ";;")
        ),
        "KONG_PLUGINSERVER_NAMES": joined(before.get("KONG_PLUGINSERVER_NAMES", ""), *plugins),
    }
    files = f" -d {server.directory}" if server.directory else ""
    metrics = f" --metrics-listen {server.metrics}" if server.metrics else ""
    for plugin in plugins:
        made[variable(plugin, "SOCKET")] = server.socket
        if plugin == plugins[0]:
            made[variable(plugin, "START_CMD")] = (
                f"{server.program}{files} -p {server.prefix} --socket-name {SOCKET}"
                f" --no-lua-style --event-timeout {EVENT_TIMEOUT}{metrics}"
            )
        made[variable(plugin, "QUERY_CMD")] = f"{server.program}{files} --dump {plugin}"
    made["KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"] = READ_TIMEOUT
    if READ_BODIES.intersection(plugins):
        made["KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE"] = "1m"
    return made


def variable(plugin: str, of: str) -> str:
    """Of a plugin's entry in KONG_PLUGINSERVER_NAMES: SOCKET, START_CMD or QUERY_CMD."""
    return f"KONG_PLUGINSERVER_{plugin.upper().replace('-', '_')}_{of}"


def joined(present: str, *more: str) -> str:
    """A comma-separated list of Kong's with more names in it, each once."""
    return ",".join(dict.fromkeys(name for name in (*(part.strip() for part in present.split(",")), *more) if name))


def _lua_path(own: Sequence[str], present: str) -> str:
    parts = [part for part in present.split(";") if part and part not in own]
    return ";".join((*own, *parts)) + ";;"


WHY = {
    "KONG_LUA_PACKAGE_PATH": "where the guards are",
    "KONG_PLUGINSERVER_NAMES": "an entry for each plugin, by full paths; they share the process that the first starts",
    "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT": "for so long Kong waits for the plugin server, then the guard refuses",
    "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE": "a plugin reads bodies up to this, longer ones are refused",
}


@dataclass(frozen=True)
class Form:
    """How a reader of settings wants them."""

    head: tuple[str, ...]
    line: Callable[[str, str], str]
    """One setting, from its KONG_… name and value."""
    indent: str = ""
    note: Mapping[str, str] = field(default_factory=lambda: WHY)

    def written(self, settings: Mapping[str, str]) -> str:
        lines = list(self.head)
        for name, value in settings.items():
            if name in self.note:
                lines.append(f"{self.indent}# {self.note[name]}")
            lines.append(self.indent + self.line(name, value))
        return "\n".join(lines) + "\n"


def _env(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}"


def _systemd(name: str, value: str) -> str:
    # systemd.exec(5): "%" begins a specifier; a value in double quotes has C's escapes.
    return f'Environment="{name}={value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'.replace(
        "%", "%%"
    )


def _compose(name: str, value: str) -> str:
    return f"{name}: {json.dumps(value)}".replace("$", "$$")


def _helm(name: str, value: str) -> str:
    return f"{name.removeprefix('KONG_').lower()}: {json.dumps(value)}"


FORMS = {
    "env": Form(("# set -a; . ./THIS-FILE; set +a; kong restart",), _env),
    "systemd": Form(
        (
            "# /etc/systemd/system/kong.service.d/claude.conf; then systemctl daemon-reload and restart kong",
            "[Service]",
        ),
        _systemd,
    ),
    "compose": Form(("environment:",), _compose, indent="  "),
    "helm": Form(("# values for the chart kong/ingress", "gateway:", "  env:"), _helm, indent="    "),
}
