"""One gateway with the plugins and nothing else: minikong, or with KONG=… a real Kong."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kong_claude import PLUGINS
from kong_claude_local import stack
from kong_claude_local.supervise import PartFailed, Supervisor
from tests.chaos.stack import free_ports


@dataclass(frozen=True)
class Alone:
    """`spare` is a port for whatever its environment makes it listen on."""

    directory: Path
    proxy: int
    metrics: int
    spare: int
    supervisor: Supervisor


@contextmanager
def gateway_alone(
    config: str, more: Callable[[Mapping[str, str], int, int], Mapping[str, str]], plugins: Path = PLUGINS
) -> Iterator[Alone]:
    """As long as the block runs. `more`: what is to be in its environment beside (or instead of) what it is given, which
    has one worker; of the proxy's port and the spare one."""
    directory = Path(tempfile.mkdtemp(prefix="kc-alone-"))
    proxy, metrics, admin, spare = free_ports(4)
    layout = stack.Layout(
        config=directory / "kong.json",
        plugins=plugins,
        state=directory,
        run=directory,
        port=proxy,
        metrics_port=metrics,
        admin_port=admin,
        kong=os.environ.get("KONG") or None,
    )
    layout.config.write_text(config)
    part = stack.gateway(layout)
    environment = {**part.environment, "KONG_NGINX_WORKER_PROCESSES": "1", **more(part.environment, proxy, spare)}
    supervisor = Supervisor(directory / "log", io.StringIO())
    try:
        try:
            supervisor.start(replace(part, environment=environment))
        except PartFailed as failure:
            failure.add_note(failure.last)
            raise
        yield Alone(directory, proxy, metrics, spare, supervisor)
    finally:
        supervisor.stop()
        shutil.rmtree(directory, ignore_errors=True)
