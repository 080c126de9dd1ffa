"""kong.conf and KONG_*: what is honoured, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from minikong import conf


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kong.conf"
    file.write_text(
        "# a comment\nproxy_listen = 0.0.0.0:80, [::1]:443 http2 ssl backlog=5 # another\nlog_level = debug\n"
        "database = off\n"
    )
    made = conf.load(file, {"KONG_LOG_LEVEL": "warn", "HOME": "/", "KONG_VERSION": "3.9.1"})
    assert made.proxy_listen == (conf.Listen("0.0.0.0", 80), conf.Listen("::1", 443, ssl=True, http2=True))
    assert made.log_level == "warn"


@pytest.mark.parametrize(
    ("key", "value", "attribute", "wanted"),
    [
        ("nginx_http_lua_socket_read_timeout", "500ms", "lua_socket_read_timeout", 0.5),
        ("nginx_proxy_client_max_body_size", "1m", "client_max_body_size", 1 << 20),
        ("client_max_body_size", "8k", "client_max_body_size", 8192),
        ("nginx_http_client_body_buffer_size", "64k", "client_body_buffer_size", 65536),
        ("real_ip_recursive", "on", "real_ip_recursive", True),
        ("headers", "off", "headers", frozenset()),
        ("headers", "Via, X-Kong-Request-Id", "headers", frozenset({"via", "x-kong-request-id"})),
        ("admin_listen", "off", "admin_listen", ()),
    ],
)
def test_values(key: str, value: str, attribute: str, wanted: object) -> None:
    assert getattr(conf.load(overrides={key: value}), attribute) == wanted


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("nope", "1", "unknown setting 'nope'"),
        ("nginx_http_proxy_magic", "1", "unknown setting 'nginx_http_proxy_magic'"),
        ("pluginserver_other_socket", "/x", "unknown setting 'pluginserver_other_socket'"),
        ("proxy_listen", "8000", "proxy_listen: expected <ip>:<port>, not '8000'"),
        ("proxy_listen", "0.0.0.0:80 quic", "proxy_listen: unknown flag 'quic'"),
        ("trusted_ips", "10.0.0.0/99", "trusted_ips: '10.0.0.0/99' does not appear to be an IPv4 or IPv6 network"),
        ("untrusted_lua", "lax", "untrusted_lua: expected one of: on, off, sandbox"),
        ("client_max_body_size", "big", "client_max_body_size: expected a size such as 8k, not 'big'"),
        ("pluginserver_names", "py", "pluginserver_names: query_command undefined for pluginserver py"),
        ("allow_debug_header", "maybe", "allow_debug_header: expected on or off, not 'maybe'"),
    ],
)
def test_refusals_name_the_key_and_its_place(key: str, value: str, problem: str) -> None:
    with pytest.raises(conf.ConfError) as refused:
        conf.load(env={f"KONG_{key.upper()}": value})
    assert str(refused.value) == f"environment variable KONG_{key.upper()}: {problem}"


def test_plugin_servers() -> None:
    made = conf.load(
        overrides={
            "prefix": "/p/",
            "pluginserver_names": "py-A,b",
            "pluginserver_py_a_query_cmd": "q",
            "pluginserver_py_a_start_cmd": "s --x",
            "pluginserver_b_query_cmd": "r",
            "pluginserver_b_socket": "/p/py-a.socket",
        }
    )
    assert made.pluginservers == (
        conf.PluginServer("py-a", "/p/py-a.socket", "q", "s --x"),
        conf.PluginServer("b", "/p/py-a.socket", "r", None),
    )
    assert made.warnings == ("start_command undefined for pluginserver b; assuming external process management",)


def test_what_a_listener_cannot_do_is_said() -> None:
    made = conf.load(None, {}, {"proxy_listen": "127.0.0.1:8443 ssl http2"})
    assert [warning for warning in made.warnings if "http2" in warning]
    with pytest.raises(conf.ConfError, match="proxy_protocol is not supported"):
        conf.load(None, {}, {"proxy_listen": "127.0.0.1:8000 proxy_protocol"})
