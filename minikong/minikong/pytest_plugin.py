"""pytest fixtures for authors of Python Kong plugins.

def test_hello(minikong):
    kong = minikong(KONG_YML, plugins=Path("plugins"))
    answer = httpx.get(kong.base_url + "/hello")
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from minikong.app import App

_PATIENCE = 20.0  # seconds for the plugin servers to listen


class MiniKong:
    """A running minikong in a thread of its own."""

    def __init__(self, config: str | Path, plugins: Sequence[Path], settings: dict[str, str]) -> None:
        from minikong import cli, conf

        self._prefix = Path(tempfile.mkdtemp(prefix="minikong-"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="minikong", daemon=True)
        self._thread.start()
        try:
            made = {"prefix": str(self._prefix), "proxy_listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
            made |= cli.plugin_settings(plugins, self._prefix)
            if isinstance(config, Path):
                made["declarative_config"] = str(config)
            else:
                made["declarative_config_string"] = config
            self._conf = conf.load(overrides=made | settings)
            self._app: App = self._run(self._start())
        except BaseException:
            self._end()
            raise
        self.base_url = self._conf.proxy_listen[0].url(self._app.proxy_addresses[0])
        self.admin_url = self._conf.admin_listen[0].url(self._app.admin_addresses[0])
        self._wait_for_servers()

    async def _start(self) -> App:
        from minikong import app

        return await app.start(self._conf)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _wait_for_servers(self) -> None:
        """Kong answers 500 until a plugin server listens; a test should not have to know."""
        deadline = time.monotonic() + _PATIENCE
        for server in self._conf.pluginservers:
            while server.start_command:
                with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                    probe.connect(server.socket)
                    break
                if time.monotonic() > deadline:
                    self.stop()
                    raise TimeoutError(f"plugin server {server.name} does not listen on {server.socket}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Stops the gateway and its plugin servers."""
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self._run(self._app.stop())
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            self._loop.close()
        shutil.rmtree(self._prefix, ignore_errors=True)


Start = Callable[..., MiniKong]


@pytest.fixture
def minikong() -> Iterator[Start]:
    """`minikong(config, plugins=…, **settings)` starts a gateway that ends with the test.

    `config` is a kong.yml: a path, or its text. `plugins` is a directory of Python plugins or several.
    `settings` are keys of kong.conf. What Kong would refuse raises what `minikong.app.start` raises.
    """
    running: list[MiniKong] = []

    def start(config: str | Path, plugins: Path | Sequence[Path] = (), **settings: str) -> MiniKong:
        directories = [plugins] if isinstance(plugins, Path) else list(plugins)
        made = MiniKong(config, directories, settings)
        running.append(made)
        return made

    yield start
    for made in running:
        made.stop()
