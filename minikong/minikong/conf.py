"""Kong's configuration as far as minikong honours it: a `kong.conf` file and `KONG_*` variables.

Names, defaults and the order (defaults, file, environment) are Kong's own (kong/templates/kong_defaults.lua,
kong/conf_loader). A key that minikong does not know is refused by its name; a key whose effect has no
meaning here is accepted only if it is in `WITHOUT_EFFECT`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


class ConfError(Exception):
    """A setting that cannot be used; the text names the key and where it came from."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a host and port, or the path of a unix socket after `unix:` as host and port 0."""

    host: str
    port: int
    ssl: bool = False
    http2: bool = False

    @property
    def path(self) -> str | None:
        return self.host.removeprefix("unix:") if self.host.startswith("unix:") else None

    def url(self, bound: tuple[str, int]) -> str:
        """Where clients reach it: `http://host:port`, or `unix:/path`. `bound` is what `Edge.listen` returned."""
        if self.path is not None:
            return self.host
        return f"{'https' if self.ssl else 'http'}://{bound[0]}:{bound[1]}"


@dataclass(frozen=True, slots=True)
class PluginServer:
    """One entry of `pluginserver_names`. Without `start_command` the server is managed by somebody else."""

    name: str
    socket: str
    query_command: str
    start_command: str | None = None


@dataclass(frozen=True, slots=True)
class Gzip:
    """nginx's ngx_http_gzip_module, as far as `nginx_proxy_gzip*` sets it. Sizes in bytes."""

    enabled: bool = False
    types: tuple[str, ...] = ("text/html",)
    min_length: int = 20
    proxied: tuple[str, ...] = ("off",)
    vary: bool = False
    comp_level: int = 1
    http_version: str = "1.1"


# Accepted because a real kong.conf carries them, and without effect because minikong is one process
# without a database, a cluster, a GUI, a DNS cache or log files of its own.
WITHOUT_EFFECT = frozenset(
    """
    database role anonymous_reports router_flavor mem_cache_size worker_consistency
    worker_state_update_frequency db_update_frequency db_update_propagation db_cache_ttl db_cache_neg_ttl
    db_resurrect_ttl db_cache_warmup_entities lmdb_environment_path lmdb_map_size
    dedicated_config_processing node_id vaults request_debug request_debug_token
    nginx_http_log_format proxy_access_log proxy_error_log proxy_stream_access_log proxy_stream_error_log
    admin_access_log
    admin_error_log status_access_log status_error_log admin_gui_access_log admin_gui_error_log
    admin_gui_listen admin_gui_url admin_gui_path admin_gui_api_url status_listen stream_listen
    nginx_user nginx_worker_processes nginx_daemon nginx_main_user nginx_main_worker_processes
    nginx_main_daemon nginx_main_worker_rlimit_nofile nginx_main_env nginx_events_worker_connections
    nginx_events_multi_accept nginx_http_keepalive_requests nginx_http_lua_regex_match_limit
    nginx_http_lua_regex_cache_max_entries nginx_admin_client_max_body_size
    nginx_admin_client_body_buffer_size upstream_keepalive_pool_size upstream_keepalive_max_requests
    dns_resolver dns_order dns_valid_ttl dns_stale_ttl dns_cache_size dns_not_found_ttl
    dns_error_ttl dns_no_sync new_dns_client resolver_address resolver_hosts_file resolver_family
    resolver_valid_ttl resolver_stale_ttl resolver_lru_cache_size resolver_mem_cache_size resolver_error_ttl
    lua_socket_pool_size lua_ssl_trusted_certificate lua_ssl_verify_depth lua_ssl_protocols
    lua_package_cpath ssl_cipher_suite ssl_ciphers ssl_protocols
    ssl_prefer_server_ciphers ssl_dhparam ssl_session_tickets ssl_session_timeout ssl_session_cache_size
    admin_ssl_cert admin_ssl_cert_key
    """.split()  # noqa: SIM905 -- a word list reads better than sixty quoted lines
)

# Variables of Kong's container image that are no settings of the gateway.
_NOT_SETTINGS = frozenset({"KONG_VERSION", "KONG_SHA256", "KONG_PREFIX_DIR"})

_DEFAULTS: dict[str, str] = {
    "prefix": "/usr/local/kong/",
    "log_level": "notice",
    "plugins": "bundled",
    "proxy_listen": "0.0.0.0:8000, 0.0.0.0:8443 ssl",
    "admin_listen": "127.0.0.1:8001",
    "ssl_cert": "",
    "ssl_cert_key": "",
    "headers": "server_tokens, latency_tokens, x-kong-request-id",
    "headers_upstream": "x-kong-request-id",
    "trusted_ips": "",
    "real_ip_header": "X-Real-IP",
    "real_ip_recursive": "off",
    "error_default_type": "text/plain",
    "allow_debug_header": "off",
    "client_max_body_size": "0",
    "client_body_buffer_size": "8k",
    "nginx_http_charset": "UTF-8",
    "upstream_keepalive_idle_timeout": "60",
    "dns_hostsfile": "/etc/hosts",
    "declarative_config": "",
    "declarative_config_string": "",
    "pluginserver_names": "",
    "lua_package_path": "./?.lua;./?/init.lua;",
    "untrusted_lua": "sandbox",
    "untrusted_lua_sandbox_requires": "",
    "untrusted_lua_sandbox_environment": "",
    "lua_max_req_headers": "100",
    "lua_max_resp_headers": "100",
    "lua_max_uri_args": "100",
    "lua_max_post_args": "100",
}

# nginx directives that may be injected as nginx_http_<directive> or nginx_proxy_<directive>.
_NGINX: dict[str, str] = {
    "client_max_body_size": "0",
    "client_body_buffer_size": "8k",
    "large_client_header_buffers": "4 8k",
    "client_header_timeout": "60s",
    "client_body_timeout": "60s",
    "send_timeout": "60s",
    "keepalive_timeout": "75s",
    "lua_socket_connect_timeout": "60s",
    "lua_socket_send_timeout": "60s",
    "lua_socket_read_timeout": "60s",
    "real_ip_header": "X-Real-IP",
    "real_ip_recursive": "off",
    "gzip": "off",
    "gzip_types": "text/html",
    "gzip_min_length": "20",
    "gzip_proxied": "off",
    "gzip_vary": "off",
    "gzip_comp_level": "1",
    "gzip_http_version": "1.1",
}
DEFAULT_PLUGINSERVER_PATH = Path("/usr/local/bin")  # Kong runs <path>/<name> where no command is given
_INJECTED = re.compile(r"nginx_(?:http|proxy)_(\w+)")
_PLUGINSERVER = re.compile(r"pluginserver_(\w+)_(socket|start_cmd|query_cmd)")
_LISTEN_FLAGS = re.compile(
    r"(ssl|http2|proxy_protocol|deferred|bind|reuseport|backlog=\d+|ipv6only=(?:on|off)|so_keepalive=\S*)"
)
_SANDBOX = ("on", "off", "sandbox")


@dataclass(frozen=True, slots=True)
class KongConf:
    """Times are in seconds, sizes in bytes (0: no limit). `plugins` may hold "bundled"."""

    prefix: str
    log_level: str
    plugins: frozenset[str]
    proxy_listen: tuple[Listen, ...]
    admin_listen: tuple[Listen, ...]
    ssl_cert: str | None
    ssl_cert_key: str | None
    headers: frozenset[str]
    headers_upstream: frozenset[str]
    trusted_ips: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network | str, ...]  # "unix:" stays a string
    real_ip_header: str
    real_ip_recursive: bool
    error_default_type: str
    allow_debug_header: bool
    charset: str
    client_max_body_size: int
    client_body_buffer_size: int
    large_client_header_buffers: tuple[int, int]  # number, size
    client_header_timeout: float
    client_body_timeout: float
    send_timeout: float
    keepalive_timeout: float
    lua_socket_connect_timeout: float
    lua_socket_send_timeout: float
    lua_socket_read_timeout: float
    upstream_keepalive_idle_timeout: float
    gzip: Gzip
    pluginservers: tuple[PluginServer, ...]
    lua_package_path: str
    untrusted_lua: str  # "on" | "off" | "sandbox"
    untrusted_lua_sandbox_requires: tuple[str, ...]
    untrusted_lua_sandbox_environment: tuple[str, ...]
    lua_max_req_headers: int
    lua_max_resp_headers: int
    lua_max_uri_args: int
    lua_max_post_args: int
    dns_hostsfile: str
    declarative_config: str | None
    declarative_config_string: str | None
    warnings: tuple[str, ...] = field(default=(), compare=False)  # what Kong would print while starting
    settings: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # all by name, as text


def load(
    path: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> KongConf:
    """The configuration of a kong.conf (optional), the `KONG_*` variables of `env`, and `overrides` (strongest).

    Raises:
        ConfError: an unknown key or a value of the wrong form; says which key, and where it stands.
        OSError: `path` cannot be read.
    """
    given: dict[str, tuple[str, str]] = {}  # key -> (value, where it stands)
    if path is not None:
        given |= _read_file(Path(path))
    for name, value in (env or {}).items():
        if name.startswith("KONG_") and name not in _NOT_SETTINGS:
            given[name[5:].lower()] = (value, f"environment variable {name}")
    for key, value in (overrides or {}).items():
        given[key] = (value, f"setting {key}")
    return _Reader(given).conf()


def _read_file(path: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for number, raw in enumerate(path.read_text().splitlines(), 1):
        line = re.sub(r"(?<!\\)#.*$", "", raw).replace("\\#", "#").strip()
        if not line:
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise ConfError(f"{path}:{number}: expected 'key = value'")
        found[key.strip()] = (value.strip(), f"{path}:{number}")
    return found


class _Reader:
    """Turns the given strings into a `KongConf`; every error names the key and where it stands."""

    def __init__(self, given: dict[str, tuple[str, str]]) -> None:
        self._given = given

    def conf(self) -> KongConf:
        names = [name.lower() for name in self._list("pluginserver_names")]
        self._refuse_unknown({name.replace("-", "_") for name in names})
        servers, warnings = self._pluginservers(names)
        buffers = self._nginx("large_client_header_buffers").split()
        if len(buffers) != 2:
            raise self._error("large_client_header_buffers", "expected 'number size'")
        return KongConf(
            prefix=self._text("prefix").rstrip("/") or "/",
            log_level=self._one_of("log_level", ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")),
            plugins=frozenset(self._list("plugins")),
            proxy_listen=self._listeners("proxy_listen"),
            admin_listen=self._listeners("admin_listen"),
            ssl_cert=self._text("ssl_cert") or None,
            ssl_cert_key=self._text("ssl_cert_key") or None,
            headers=frozenset(h.lower() for h in self._list("headers") if h.lower() != "off"),
            headers_upstream=frozenset(h.lower() for h in self._list("headers_upstream") if h.lower() != "off"),
            trusted_ips=tuple(self._network(ip) for ip in self._list("trusted_ips")),
            real_ip_header=self._nginx_or_own("real_ip_header"),
            real_ip_recursive=self._boolean("real_ip_recursive", self._nginx_or_own("real_ip_recursive")),
            error_default_type=self._one_of(
                "error_default_type", ("application/json", "application/xml", "text/html", "text/plain")
            ),
            allow_debug_header=self._boolean("allow_debug_header"),
            charset=self._text("nginx_http_charset"),
            client_max_body_size=self._size("client_max_body_size"),
            client_body_buffer_size=self._size("client_body_buffer_size"),
            large_client_header_buffers=(int(buffers[0]), parse_size(buffers[1])),
            client_header_timeout=self._seconds("client_header_timeout"),
            client_body_timeout=self._seconds("client_body_timeout"),
            send_timeout=self._seconds("send_timeout"),
            keepalive_timeout=self._seconds("keepalive_timeout"),
            lua_socket_connect_timeout=self._seconds("lua_socket_connect_timeout"),
            lua_socket_send_timeout=self._seconds("lua_socket_send_timeout"),
            lua_socket_read_timeout=self._seconds("lua_socket_read_timeout"),
            upstream_keepalive_idle_timeout=float(self._text("upstream_keepalive_idle_timeout")),
            gzip=self._gzip(),
            pluginservers=tuple(servers),
            lua_package_path=self._text("lua_package_path"),
            untrusted_lua=self._one_of("untrusted_lua", _SANDBOX),
            untrusted_lua_sandbox_requires=tuple(self._list("untrusted_lua_sandbox_requires")),
            untrusted_lua_sandbox_environment=tuple(self._list("untrusted_lua_sandbox_environment")),
            lua_max_req_headers=self._integer("lua_max_req_headers"),
            lua_max_resp_headers=self._integer("lua_max_resp_headers"),
            lua_max_uri_args=self._integer("lua_max_uri_args"),
            lua_max_post_args=self._integer("lua_max_post_args"),
            dns_hostsfile=self._text("dns_hostsfile"),
            declarative_config=self._text("declarative_config") or None,
            declarative_config_string=self._text("declarative_config_string") or None,
            warnings=(*warnings, *self._http2_warnings()),
            settings={**_DEFAULTS, **{key: value.strip() for key, (value, _) in self._given.items()}},
        )

    def _refuse_unknown(self, servers: set[str]) -> None:
        for key, (_, where) in self._given.items():
            if key in _DEFAULTS or key in WITHOUT_EFFECT:
                continue
            injected = _INJECTED.fullmatch(key)
            if injected and injected[1] in _NGINX:
                continue
            server = _PLUGINSERVER.fullmatch(key)
            if server and server[1] in servers:
                continue
            raise ConfError(f"{where}: unknown setting '{key}'")

    def _error(self, key: str, problem: str) -> ConfError:
        _, where = self._given.get(key, ("", "default"))
        return ConfError(f"{where}: {key}: {problem}")

    def _text(self, key: str) -> str:
        value = self._given[key][0] if key in self._given else _DEFAULTS[key]
        return value.strip()

    def _nginx(self, directive: str) -> str:
        for key in (f"nginx_proxy_{directive}", f"nginx_http_{directive}"):
            if key in self._given:
                return self._given[key][0].strip()
        return _NGINX[directive]

    def _nginx_or_own(self, key: str) -> str:
        """Settings that Kong has under their own name and as a directive; the directive wins."""
        given = any(f"nginx_{block}_{key}" in self._given for block in ("proxy", "http"))
        return self._nginx(key) if given else self._text(key)

    def _list(self, key: str) -> list[str]:
        return [part.strip() for part in self._text(key).split(",") if part.strip()]

    def _boolean(self, key: str, value: str | None = None) -> bool:
        text = (self._text(key) if value is None else value).lower()
        if text not in ("on", "off", "true", "false"):
            raise self._error(key, f"expected on or off, not '{text}'")
        return text in ("on", "true")

    def _integer(self, key: str) -> int:
        try:
            return int(self._text(key))
        except ValueError:
            raise self._error(key, "expected an integer") from None

    def _one_of(self, key: str, allowed: Iterable[str]) -> str:
        value = self._text(key)
        if value not in allowed:
            raise self._error(key, f"expected one of: {', '.join(allowed)}")
        return value

    def _size(self, key: str) -> int:
        try:
            return parse_size(self._nginx_or_own(key))
        except ValueError as problem:
            raise self._error(key, str(problem)) from None

    def _seconds(self, directive: str) -> float:
        try:
            return parse_time(self._nginx(directive))
        except ValueError as problem:
            raise self._error(directive, str(problem)) from None

    def _network(self, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | str:
        if text == "unix:":
            return text
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError as problem:
            raise self._error("trusted_ips", str(problem)) from None

    def _listeners(self, key: str) -> tuple[Listen, ...]:
        found: list[Listen] = []
        for entry in self._list(key):
            if entry == "off":
                return ()
            address, *flags = entry.split()
            for flag in flags:
                if not _LISTEN_FLAGS.fullmatch(flag):
                    raise self._error(key, f"unknown flag '{flag}'")
            if "proxy_protocol" in flags:
                raise self._error(key, "proxy_protocol is not supported by minikong")
            # More than Kong, which wants <ip>:<port> although its nginx could: loopback is open to every user of a
            # machine, and minikong runs where there is nothing else to keep them out.
            if key == "admin_listen" and address.startswith("unix:/"):
                found.append(Listen(address, 0, "ssl" in flags, "http2" in flags))
                continue
            host, colon, port = address.rpartition(":")
            if not colon or not port.isdigit() or int(port) > 65535:
                raise self._error(key, f"expected <ip>:<port>, not '{address}'")
            found.append(Listen(host.strip("[]"), int(port), "ssl" in flags, "http2" in flags))
        return tuple(found)

    def _http2_warnings(self) -> list[str]:
        """minikong speaks HTTP/1.1 only; a client that offers both still gets an answer."""
        keys = [key for key in ("proxy_listen", "admin_listen") if any(item.http2 for item in self._listeners(key))]
        return [f"{key}: http2 is not supported by minikong, clients get HTTP/1.1" for key in keys]

    def _gzip(self) -> Gzip:
        return Gzip(
            enabled=self._boolean("gzip", self._nginx("gzip")),
            types=("text/html", *(t for t in self._nginx("gzip_types").split() if t != "text/html")),
            min_length=parse_size(self._nginx("gzip_min_length")),
            proxied=tuple(self._nginx("gzip_proxied").split()),
            vary=self._boolean("gzip_vary", self._nginx("gzip_vary")),
            comp_level=int(self._nginx("gzip_comp_level")),
            http_version=self._nginx("gzip_http_version"),
        )

    def _pluginservers(self, names: list[str]) -> tuple[list[PluginServer], list[str]]:
        servers: list[PluginServer] = []
        warnings: list[str] = []
        prefix = self._text("prefix").rstrip("/")
        for name in names:
            keys = f"pluginserver_{name.replace('-', '_')}"

            def given(suffix: str, keys: str = keys) -> str | None:
                return self._given.get(f"{keys}_{suffix}", ("", ""))[0] or None

            default = DEFAULT_PLUGINSERVER_PATH / name
            start, query = given("start_cmd"), given("query_cmd")
            if default.exists():
                start, query = start or str(default), query or f"{default} -dump"
            if not query:
                raise self._error("pluginserver_names", f"query_command undefined for pluginserver {name}")
            if not start:
                warnings.append(
                    f"start_command undefined for pluginserver {name}; assuming external process management"
                )
            servers.append(PluginServer(name, given("socket") or f"{prefix}/{name}.socket", query, start))
        return servers, warnings


_SIZE = re.compile(r"(\d+)([kKmMgG]?)")
_TIME = re.compile(r"(\d+)(ms|s|m|h|d|)")


def parse_size(text: str) -> int:
    """nginx's sizes in bytes: "8k", "10m", "0". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"expected a size such as 8k, not '{text}'")
    return int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2].lower()]


def parse_time(text: str) -> float:
    """nginx's times in seconds: "500ms", "2s", "1m", "60". Raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(f"expected a time such as 60s, not '{text}'")
    return int(match[1]) * {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]
