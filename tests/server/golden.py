"""Plays the `from: kong` frames of a recorded Kong against a plugin server and checks its replies.

The plugin (plugins/probe.py) makes the calls that the recorded server made; so wherever that server behaved, ours must
send the same frames, ids apart. Where it misbehaved on purpose (errors, garbage, silence) Kong's frames are still
played and have to be answered by a well-formed reply.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.match import decode, encode, match
from tests.server.conftest import PLUGINS
from tests.support.kong_driver import Driver, RPCError, Server, plugin_server

PROBES = ("probe", "probe-a", "probe-b", "probe-resp", "probe-cert", "dp")


@dataclass
class Probes:
    """A server over the probe plugins, and the file that tells them what to call."""

    server: Server
    script: Path

    def replay(self, case: dict[str, Any]) -> str | None:
        """Plays one case; returns what differs, or None."""
        recorded = list(frames(case))
        self.script.write_text(json.dumps(list(_calls(recorded))))
        return _Play(self.server, recorded).run()


@contextmanager
def probes(directory: Path) -> Iterator[Probes]:
    plugins, script = directory / "plugins", directory / "script.json"
    plugins.mkdir(parents=True, exist_ok=True)
    for name in PROBES:
        shutil.copy(PLUGINS / "probe.py", plugins / f"{name}.py")
    with plugin_server(plugins, "--no-lua-style", env={"PROBE_SCRIPT": str(script)}) as server:
        yield Probes(server, script)


def frames(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All frames of a case in order, over its steps."""
    for part in (case, *case.get("steps", ())):
        yield from (f for f in part.get("frames", ()) if isinstance(f, dict) and "from" in f)


def _calls(recorded: list[dict[str, Any]]) -> Iterator[list[Any]]:
    """Per HandleEvent in the order of Kong's frames: the calls that the recorded server made."""
    for index, item in enumerate(recorded):
        if item["from"] != "kong" or item["frame"][2] != "plugin.HandleEvent":
            continue
        reply = _reply(recorded, index)
        if reply is None or reply[2] is not None or not isinstance(reply[3], dict):
            if reply is None or not str(reply[2]).startswith("no plugin instance"):
                yield []
            continue
        event, calls = reply[3].get("EventId"), []
        data = reply[3].get("Data")
        at = index
        while isinstance(data, dict):
            calls.append([data["Method"], data["Args"]])
            at = next(
                (
                    i
                    for i in range(at + 1, len(recorded))
                    if recorded[i]["from"] == "kong"
                    and recorded[i]["frame"][2].startswith("plugin.Step")
                    and recorded[i]["frame"][3][0].get("EventId") == event
                ),
                -1,
            )
            step_reply = _reply(recorded, at) if at >= 0 else None
            if step_reply is None or not isinstance(step_reply[3], dict):
                break
            data = step_reply[3].get("Data")
        yield calls


def _reply(recorded: list[dict[str, Any]], index: int) -> list[Any] | None:
    """The recorded server's answer to Kong's frame, if it gave a well-formed one."""
    conn, msgid = recorded[index]["conn"], recorded[index]["frame"][1]
    for item in recorded[index + 1 :]:
        if item["conn"] == conn and item["from"] == "server":
            frame = item.get("frame")
            if isinstance(frame, list) and len(frame) == 4 and frame[:2] == [1, msgid]:
                return frame
    return None


class _Play:
    def __init__(self, server: Server, recorded: list[dict[str, Any]]) -> None:
        self.server = server
        self.recorded = recorded
        self.conns: dict[str, Driver] = {}
        self.instances: dict[str, Any] = {}  # recorded id (as JSON) -> ours
        self.events: dict[str, Any] = {}

    def run(self) -> str | None:
        for index, item in enumerate(self.recorded):
            if item["from"] == "kong":
                problem = self.play(item, _reply(self.recorded, index))
                if problem:
                    return f"frame {index} {json.dumps(item['frame'])[:200]}: {problem}"
        return None

    def play(self, item: dict[str, Any], want: list[Any] | None) -> str | None:
        conn = self.conns.setdefault(json.dumps(item["conn"]), self.server.driver(10))
        method, args = item["frame"][2], list(item["frame"][3])
        error = want[2] if want else None
        lost = isinstance(error, str) and error.startswith("no plugin instance")
        if method == "plugin.StartInstance":
            args = [{"Name": args[0]["Name"], "Config": decode(args[0]["Config"])}]
        elif method == "plugin.HandleEvent":
            args = [self.with_instance(dict(args[0]), item, lost)]
        elif method == "plugin.CloseInstance":
            args = [self.instance(args[0], (want[3] or {}).get("Config") if want else None)]
        elif method.startswith("plugin.Step"):
            step = {k: decode(v) for k, v in args[0].items()}
            if "EventId" in step:
                step["EventId"] = self.events.get(json.dumps(args[0]["EventId"]), step["EventId"])
            args = [step]
        try:
            result: Any = conn.call(method, *args)
        except RPCError as problem:
            lost = lost or (method == "plugin.HandleEvent" and "InstanceId" not in args[0])
            return None if lost and str(problem).startswith("no plugin instance") else f"error {problem}"
        if lost:
            return "no error, but the instance is unknown"
        return self.check(method, result, want)

    def check(self, method: str, result: Any, want: list[Any] | None) -> str | None:
        wanted = want[3] if want and want[2] is None and isinstance(want[3], dict) else None
        if wanted is None:
            return None  # answered, and nothing to compare with
        if "Id" in wanted:
            if method == "plugin.StartInstance":
                self.instances[json.dumps(wanted["Id"])] = result["Id"]
            if result["Id"] != self.instances.get(json.dumps(wanted["Id"]), result["Id"]):
                return f"another instance: {result}"
            keys = [k for k in wanted if k not in ("Id", "StartTime")]
            return None if all(match(result[k], wanted[k]) for k in keys) else f"got {result}, want {wanted}"
        if "EventId" in wanted and method == "plugin.HandleEvent":
            self.events[json.dumps(wanted["EventId"])] = result["EventId"]
        data = wanted.get("Data")
        if data == "ret" or isinstance(data, dict):
            got = encode(result["Data"])
            return None if match(got, data) else f"got {got}, want {data}"
        return None

    def instance(self, recorded_id: Any, config: Any = None) -> Any:
        key = json.dumps(recorded_id)
        if key not in self.instances:  # started before the recording began
            with self.server.driver() as driver:
                self.instances[key] = driver.start_instance("probe", config)
        return self.instances[key]

    def with_instance(self, arg: dict[str, Any], item: dict[str, Any], lost: bool) -> dict[str, Any]:
        if lost:  # a server that has restarted
            key = json.dumps(arg["InstanceId"])
            if key in self.instances:
                with self.server.driver() as driver:
                    try:
                        driver.call("plugin.CloseInstance", self.instances[key])
                    except RPCError:
                        pass  # closed before
            return {**arg, "InstanceId": self.instances.get(key, 1)}
        return {**arg, "InstanceId": self.instance(arg["InstanceId"])} if "InstanceId" in arg else arg
