"""minikong, the fake plugin server and the scripted services of one replay, in one event loop.

The gateway is `app = await minikong.app.start(conf, environ=...)`: it has run the query commands and listens;
`app.admin` is its `minikong.admin.Admin`, `await app.stop()` ends it. It raises what stops Kong from starting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from minikong import app, conf
from tests.conformance.http_replay import Service
from tests.conformance.plugin_server import PluginServer

CONFIGS = Path(__file__).with_name("data") / "configs"
PROBES = ("probe", "probe-a", "probe-b", "probe-resp", "probe-cert")
# What the recording's Kong ran with, beside the settings that a case names.
CONFS: dict[str, dict[str, str]] = {
    "trusted": {"trusted_ips": "127.0.0.1", "real_ip_header": "X-Forwarded-For", "real_ip_recursive": "on"},
    "body64k": {
        "nginx_http_client_body_buffer_size": "64k",
        "nginx_http_client_max_body_size": "1m",
    },
    "debuglog": {"log_level": "debug"},
}
ENVIRON = {"MY_SECRET": "from-env", "TRACE_SECRET": "s3cret", "PATH": "/usr/bin:/bin"}


class LogLines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Stage:
    """Everything on the recorded ports: 8000 and 8443 the gateway, 9000 and 9001 the services."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="mk-"))
        self.server = PluginServer(self.dir / "p.sock")
        self.services = {9000: Service(), 9001: Service()}
        self.gateway: app.App | None = None
        self._settings: dict[str, str] | None = None
        self._kong_yml: str | None = None

    async def __aenter__(self) -> Stage:
        await self.server.start()
        for port, service in self.services.items():
            await service.start(port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_gateway()
        await self.server.stop()
        for service in self.services.values():
            await service.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def settings(self, name: str | None, own: dict[str, str] | None) -> dict[str, str]:
        """The kong.conf of a case: its `conf` and `kong_conf`, with the probe plugins on the fake server."""
        made = {
            "prefix": str(self.dir),
            "proxy_listen": "127.0.0.1:8000, 127.0.0.1:8443 ssl",
            "admin_listen": "off",
            "plugins": "bundled," + ",".join(PROBES),
            "pluginserver_names": ",".join(PROBES),
            "untrusted_lua": "on",
        }
        for probe in PROBES:
            keys = f"pluginserver_{probe.replace('-', '_')}"
            made[f"{keys}_socket"] = str(self.server.path)
            made[f"{keys}_query_cmd"] = f"cat {CONFIGS / f'query-{probe}.json'}"
        return made | CONFS.get(name or "", {}) | (own or {})

    async def prepare(self, settings: dict[str, str], kong_yml: str, *, fresh: bool = False) -> Any:
        """A gateway with these settings and this config. Gives (status, body) of POST /config."""
        if fresh or self.gateway is None or settings != self._settings:
            await self.close_gateway()
            self.gateway = await app.start(conf.load(overrides=settings), environ=ENVIRON)
            self._settings, self._kong_yml = settings, None
            self.server.fresh()
        if kong_yml != self._kong_yml:
            status, body = self.post_config(kong_yml)
            self._kong_yml = kong_yml if status == 201 else None
            return status, body
        return 201, None

    def post_config(self, kong_yml: str) -> tuple[int, Any]:
        assert self.gateway is not None
        status, _, body = self.gateway.admin.handle("POST", "/config", kong_yml.encode(), {})
        return status, json.loads(body)

    async def close_gateway(self) -> None:
        if self.gateway is not None:
            with contextlib.suppress(ConnectionError):
                await self.gateway.stop()
            self.gateway = None

    def script(self, upstream: list[dict[str, Any]]) -> None:
        """The services answer as recorded; whatever else comes gets the default."""
        for port, service in self.services.items():
            service.seen.clear()
            service.script.clear()
            service.script.extend(u["sent"] for u in upstream if u["port"] == port and u.get("sent"))

    @property
    def requests(self) -> int:
        """How many requests the services have seen since `script`."""
        return sum(len(s.seen) for s in self.services.values())
