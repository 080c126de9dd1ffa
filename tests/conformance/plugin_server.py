"""A plugin server that plays what was recorded: PDK calls of a case, or whole frames with their oddities."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from tests.conformance.match import decode, difference, encode, expand

Call = dict[str, Any]
Frame = dict[str, Any]


@dataclass
class Event:
    """One HandleEvent in progress; `calls` are what is still to be asked."""

    plugin: str
    phase: str
    calls: deque[Call]
    current: Call | None = None


@dataclass
class Script:
    """Recorded frames, consumed as the gateway sends its own."""

    frames: list[Frame]
    delay: float = 0.0  # seconds before the first reply
    start_delay: float = 0.0  # seconds before every reply to StartInstance
    parallel: bool = False  # requests run side by side: the order of frames and connections is not fixed
    used: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    conns: dict[int, int] = field(default_factory=dict)  # recorded connection -> real one

    @property
    def left(self) -> list[Frame]:
        return [f for i, f in enumerate(self.frames) if i not in self.used and f.get("from") == "kong"]


def is_plain(frames: list[Frame]) -> bool:
    """Whether the server in `frames` only does what a call script can: answer with PDK calls and "ret"."""
    for entry in frames:
        if entry.get("from") != "server":
            continue
        frame = entry.get("frame")
        if frame is None or "note" in entry or frame[0] != 1 or frame[2] is not None:
            return False
        result = frame[3]
        if not isinstance(result, dict):
            return False
        data = result.get("Data")
        asks = isinstance(data, dict) and data.keys() == {"Method", "Args"}
        if "Id" not in result and not ("EventId" in result and (data == "ret" or asks)):
            return False
    return True


class PluginServer:
    """Listens on a unix socket. `play_calls` and `play_frames` set what the next events do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.instances: dict[Any, str] = {}  # id -> plugin
        self.configs: list[tuple[str, Any]] = []  # (plugin, decoded Config) as started
        self.answers: list[tuple[Call, Any]] = []
        self.seen: list[tuple[str, str]] = []  # (plugin, phase) of every event
        self.open: dict[Any, Event] = {}
        self.script: Script | None = None
        self.connections = 0
        self._calls: dict[tuple[str, str], deque[Call]] = defaultdict(deque)
        self._ids = itertools.count()
        self._events = itertools.count()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._known: set[Any] = set()  # instance ids of this case's recording
        self._bound: dict[Any, Any] = {}  # recorded instance id -> real one
        self._delayed: set[asyncio.Task[None]] = set()
        self._ending = "ret"
        self._slow = 0.0
        self._slow_answers = 0.0

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        self.path.unlink(missing_ok=True)
        await asyncio.sleep(0)

    # -- what to play

    def play_calls(
        self, calls: list[Call], *, ending: str = "ret", slow: float = 0.0, slow_answers: float = 0.0
    ) -> None:
        """Each event plays the calls of its plugin and phase, up to one that is never answered.

        `ending` of an access event: "ret", "error", "close" or "hang"; `slow` seconds before "ret", `slow_answers`
        seconds before every call.
        """
        self._reset()
        self._ending = ending
        self._slow = slow
        self._slow_answers = slow_answers
        for call in calls:
            self._calls[call["plugin"], call["phase"]].append(call)

    def play_frames(self, frames: list[Frame], *, parallel: bool = False, start_delay: float = 0.0) -> None:
        self._reset()
        self.script = Script(self._own(frames), parallel=parallel, start_delay=start_delay)

    def delay_first(self, delay: float) -> None:
        """The first reply of the script comes late, the others at once."""
        assert self.script is not None
        self.script.delay = delay

    def fresh(self) -> None:
        """A new gateway: the recorded ids and connections start anew."""
        self._known.clear()
        self.instances.clear()

    def _own(self, frames: list[Frame]) -> list[Frame]:
        """Without the closing of instances that earlier cases of the recording had started."""
        kept: list[Frame] = []
        dropped: set[Any] = set()
        for entry in frames:
            frame = entry.get("frame")
            if frame and entry["from"] == "server" and isinstance(frame[-1], dict) and "Id" in frame[-1]:
                if frame[1] in dropped:
                    continue
                self._known.add(frame[-1]["Id"])
            if (
                frame
                and entry["from"] == "kong"
                and frame[2] == "plugin.CloseInstance"
                and frame[3][0] not in self._known
            ):
                dropped.add(frame[1])
                continue
            kept.append(entry)
        return kept

    def _reset(self) -> None:
        self._calls.clear()
        self.answers.clear()
        self.seen.clear()
        self.open.clear()
        self.script = None
        self._bound = {}
        self._ending, self._slow, self._slow_answers = "ret", 0.0, 0.0

    async def settled(self, patience: float = 0.6) -> None:
        """Waits until the log events have come and gone, or the script is used up."""
        deadline = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < deadline and not self._done():
            await asyncio.sleep(0.002)

    def _done(self) -> bool:
        if self.script is not None:
            return not self.script.left
        before = {plugin for plugin, phase in self.seen if phase != "log"}
        before |= {plugin for plugin, phase in self._calls if phase == "log"}
        logged = {plugin for plugin, phase in self.seen if phase == "log"}
        # A call that Kong never answered leaves its event open for ever.
        waiting = any(
            e.phase == "log" and (e.current is None or e.current["answer"] is not None) for e in self.open.values()
        )
        return before <= logged and not waiting

    # -- the protocol

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=1 << 28
        )
        try:
            while data := await reader.read(1 << 20):
                unpacker.feed(data)
                for frame in unpacker:
                    self._received(frame, number, writer)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _received(self, frame: list[Any], number: int, writer: asyncio.StreamWriter) -> None:
        _, msgid, method, params = frame
        argument = params[0] if params else {}
        if method == "plugin.HandleEvent":
            plugin = self.instances.get(argument.get("InstanceId"), "?")
            self.seen.append((plugin, argument["EventName"]))
        if self.script is not None and self._play_frame(frame, number, writer):
            return
        if method == "plugin.StartInstance":
            self._send(writer, [1, msgid, None, self._started(argument, next(self._ids))])
        elif method == "plugin.CloseInstance":
            self._send(writer, [1, msgid, None, {"Name": "", "Id": argument, "Config": {}}])
        elif method == "plugin.HandleEvent":
            event_id = next(self._events)
            calls = self._take(plugin, argument["EventName"])
            self.open[event_id] = Event(plugin, argument["EventName"], calls)
            self._next(event_id, msgid, writer)
        else:
            event = self.open.get(argument.get("EventId"))
            if event is None:
                self._send(writer, [1, msgid, "no event", None])
                return
            if event.current is not None:
                answer = {"rpc": method}
                if "Data" in argument:
                    answer["data"] = encode(argument["Data"])
                self.answers.append((event.current, answer))
                event.current = None
            self._next(argument["EventId"], msgid, writer)

    def _take(self, plugin: str, phase: str) -> deque[Call]:
        """The calls of one event: up to the first that Kong never answers; the next event goes on from there."""
        left = self._calls.pop((plugin, phase), deque())
        taken: deque[Call] = deque()
        while left:
            taken.append(left.popleft())
            if taken[-1]["answer"] is None and left:
                self._calls[plugin, phase] = left
                break
        return taken

    def _started(self, argument: dict[str, Any], instance_id: Any) -> dict[str, Any]:
        config = json.loads(argument["Config"])
        self.instances[instance_id] = argument["Name"]
        self.configs.append((argument["Name"], config))
        return {"Name": argument["Name"], "Id": instance_id, "Config": config, "StartTime": 1700000000.5}

    def _next(self, event_id: int, msgid: int, writer: asyncio.StreamWriter) -> None:
        event = self.open[event_id]
        if not event.calls:
            del self.open[event_id]
            self._end(event, event_id, msgid, writer)
            return
        event.current = call = event.calls.popleft()
        self.answers.append((call, None)) if call["answer"] is None else None
        data = (
            decode(call["raw_data"]) if "raw_data" in call else {"Method": call["method"], "Args": decode(call["args"])}
        )
        reply = msgpack.packb([1, msgid, None, {"Data": data, "EventId": event_id}], unicode_errors="surrogateescape")
        if self._slow_answers and event.phase == "access":
            self._later(lambda: self._delayed_write(reply, writer, self._slow_answers))
        else:
            writer.write(reply)

    def _end(self, event: Event, event_id: int, msgid: int, writer: asyncio.StreamWriter) -> None:
        ending = self._ending if event.phase == "access" else "ret"
        reply = msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": event_id}])
        if ending == "error":
            self._send(writer, [1, msgid, "boom", None])
        elif ending == "close":
            writer.close()
        elif ending == "ret" and self._slow and event.phase == "access":
            self._later(lambda: self._delayed_write(reply, writer, self._slow))
        elif ending == "ret":
            writer.write(reply)

    def _send(self, writer: asyncio.StreamWriter, frame: Any) -> None:
        writer.write(msgpack.packb(frame, unicode_errors="surrogateescape"))

    # -- recorded frames

    def _play_frame(self, frame: list[Any], number: int, writer: asyncio.StreamWriter) -> bool:
        script = self.script
        assert script is not None
        index = self._find(frame, script)
        if index is None:
            script.problems.append(f"not wanted: {encode(frame)}")
            return False
        entry = script.frames[index]
        script.used.add(index)
        self._compare(frame, entry, number, script)
        for reply in _replies(script.frames, index):
            self._reply(reply, frame, writer, script)
        return True

    def _find(self, frame: list[Any], script: Script) -> int | None:
        for index, entry in enumerate(script.frames):
            if index in script.used or entry.get("from") != "kong" or entry["frame"][2] != frame[2]:
                continue
            want, got = entry["frame"][3][0], frame[3][0] if frame[3] else {}
            if frame[2] == "plugin.HandleEvent":
                bound = self._bound.get(want.get("InstanceId"), got.get("InstanceId"))
                if want["EventName"] != got["EventName"] or bound != got.get("InstanceId"):
                    continue
            elif frame[2] == "plugin.StartInstance":
                if want["Name"] != got["Name"]:
                    continue
            elif frame[2].startswith("plugin.Step") and want.get("EventId") != got.get("EventId"):
                continue
            return index
        return None

    def _compare(self, frame: list[Any], entry: Frame, number: int, script: Script) -> None:
        want, got = expand(entry["frame"][3]), encode(frame[3])
        if frame[2] == "plugin.HandleEvent" and "InstanceId" in want[0] and "InstanceId" in got[0]:
            self._bound.setdefault(want[0]["InstanceId"], got[0]["InstanceId"])
            got = [{**got[0], "InstanceId": want[0]["InstanceId"]}]
        if frame[2] == "plugin.StartInstance":
            want = [{**want[0], "Config": _any_seq(want[0]["Config"])}]
        found = difference(got, want, frame[2])
        if found:
            script.problems.append(found)
        # Which pooled connection is taken is part of the recording, unless it varied there too.
        if not (script.parallel or isinstance(entry["conn"], dict)):
            expected = script.conns.setdefault(entry["conn"], number)
            if expected != number:
                script.problems.append(f"{frame[2]} came on connection {number}, want {expected}")

    def _reply(self, entry: Frame, frame: list[Any], writer: asyncio.StreamWriter, script: Script) -> None:
        if "raw_b64" in entry:
            writer.write(base64.b64decode(entry["raw_b64"]))
            return
        if "frame" not in entry:
            if "closed" in entry["note"]:
                writer.close()
            return
        recorded = entry["frame"]
        if recorded[0] == 2:
            self._send(writer, decode(recorded))
            return
        result = recorded[3]
        if frame[2] == "plugin.StartInstance" and isinstance(result, dict) and "Id" in result:
            self._started(frame[3][0], result["Id"])
            self._bound[result["Id"]] = result["Id"]
        data = msgpack.packb([1, frame[1], decode(recorded[2]), decode(result)], unicode_errors="surrogateescape")
        if "pieces" in entry.get("note", ""):
            self._later(lambda: self._in_pieces(data, writer))
        elif script.start_delay and frame[2] == "plugin.StartInstance":
            self._later(lambda: self._delayed_write(data, writer, script.start_delay))
        elif script.delay:
            delay, script.delay = script.delay, 0.0
            self._later(lambda: self._delayed_write(data, writer, delay))
        else:
            writer.write(data)

    def _later(self, work: Callable[[], Any]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._delayed.add(task)
        task.add_done_callback(self._delayed.discard)

    async def _in_pieces(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(data), 3):
            writer.write(data[at : at + 3])
            await asyncio.sleep(0.005)

    async def _delayed_write(self, data: bytes, writer: asyncio.StreamWriter, delay: float) -> None:
        await asyncio.sleep(delay)
        writer.write(data)


def _replies(frames: list[Frame], index: int) -> list[Frame]:
    """What the server did after the gateway's frame `index` on that connection."""
    found = []
    for entry in frames[index + 1 :]:
        if entry.get("conn") != frames[index]["conn"]:
            continue
        if entry["from"] == "kong":
            break
        found.append(entry)
    return found


def _any_seq(config: Any) -> Any:
    """`__seq__` counts over the life of a Kong that ran all cases."""
    if isinstance(config, dict) and "$json_string" in config:
        return {"$json_string": {**config["$json_string"], "__seq__": {"$volatile": 1}}}
    return config
