"""The suite's own plugin files under both servers: the same dump, the same start, the same calls."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from kong_claude import PLUGINS
from tests.support.kong_driver import Request, RPCError, plugin_server
from tests.support.waiting import HANG_S

NAMES = sorted(path.stem for path in PLUGINS.glob("claude-*.py"))
STOCK = "from kong_pdk.cli import start_server; start_server()"


def dump(*command: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, *command, "-d", str(PLUGINS)], capture_output=True, text=True, timeout=HANG_S
    )
    return sorted(json.loads(done.stdout), key=lambda info: info["Name"])


def test_the_dump_is_kong_pdks() -> None:
    stock = dump("-c", STOCK, "--dump-all-plugins")
    assert [info["Name"] for info in stock] == NAMES
    assert dump("-m", "kong_claude.server", "--dump-all-plugins") == stock
    assert dump("-m", "kong_claude.server", "--dump", NAMES[0]) == stock[:1]


def test_events_under_both_servers() -> None:
    """Each plugin that starts without configuration makes the same calls and ends alike; others fail to start."""
    outcomes = []
    for stock in (False, True):
        outcome: dict[str, Any] = {}
        with plugin_server(PLUGINS, "--no-lua-style", stock=stock) as server, server.driver() as kong:
            for name in NAMES:
                config = {"route_id": "r1", "__plugin_id": "p1", "__key__": "k"}
                try:
                    instance = kong.start_instance(name, config)
                except RPCError:
                    outcome[name] = "does not start"
                    continue
                request = Request(body=b'{"prompt": "hello"}', headers={"Content-Type": "application/json"})
                event = kong.handle(instance, "access", request) if name != "claude-metrics" else None
                outcome[name] = event and (event.methods, event.exit and event.exit.status)
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    assert any(value != "does not start" for value in outcomes[0].values())
