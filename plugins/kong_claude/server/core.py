"""Dispatch, the life of an event, instances.

Everything here runs in gevent's hub or in the event's own worker; nothing holds a lock across plugin code. The rules:
a call is answered or its connection closed; Kong never pipelines, so a frame that arrives while a call is open means
that Kong has given that call up; what fails is answered with `kong.response.exit(503)`, because Kong lets a request
pass on an error reply as on a closed connection.
"""

from __future__ import annotations

import _socket
import json
import logging
import os
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

import gevent

from kong_claude import generations
from kong_claude.server import wire
from kong_claude.server.connection import CONNECTIONS, Connection, Construction
from kong_claude.server.pair import Pair, given
from kong_claude.server.plugins import Instance, Instances, Phase, Plugin
from kong_claude.server.siblings import ASK, TAKE, UNKNOWN_EVENT, Siblings
from kong_claude.server.wire import EVENT_ID, REPLY, RESULT, RET, UNAVAILABLE, event_key, pack
from kong_claude.server.worker import Connection as AnyConnection
from kong_claude.server.worker import EventEnd, Worker, pdk

log = logging.getLogger("kong_claude.pluginserver")

IDLE_WORKERS = 256
INSTANCE_IDLE_SECONDS = 900.0
MAX_KNOWN_EVENTS = 4096


class Server:
    """State of the plugin server. `event_timeout` in seconds; `max_in_flight` events at once (twice that in log)."""

    def __init__(
        self,
        plugins: Mapping[str, Plugin],
        *,
        lua_style: bool = True,
        event_timeout: float = 25.0,
        max_in_flight: int = 1024,
    ) -> None:
        self.plugins = plugins
        self.event_timeout = event_timeout
        self.max_in_flight = max_in_flight
        self.instances = Instances()
        self.events: dict[bytes, Worker] = {}  # by event_key
        # The bytes of HandleEvent after msgid, once decoded: Kong sends the same for ever.
        self.known_events: dict[bytes, tuple[Instance, Phase]] = {}
        self.connections: set[Connection] = set()
        self.unfinished: set[Connection] = set()
        self.siblings: Siblings | None = None
        self.overloaded = self.protocol_errors = 0
        self.kong = pdk(lua_style)
        self._idle: list[Worker] = []
        self._workers: WeakSet[Worker] = WeakSet()
        self._hub = gevent.get_hub()
        # Ids differ from those of any earlier process: a Step for an event that died with it must not find another.
        self._next_event = (1 << 51) | secrets.randbits(50)
        self._methods: dict[str, Callable[[Connection, bytes, Any], None]] = {
            "plugin.HandleEvent": self._handle_event,
            "plugin.StartInstance": self._start_instance,
            "plugin.CloseInstance": self._close_instance,
            "plugin.InstanceStatus": self._instance_status,
            "plugin.GetPluginInfo": self._plugin_info,
            "plugin.GetStatus": self._status,
            "plugin.StepError": self._step_error,
            ASK: self._ask,
            TAKE: self._take,
        }
        self._methods |= dict.fromkeys(wire.STEP_METHODS, self._step)

    # -- connections

    def accept(self, sock: _socket.socket, sibling: bool = False) -> None:
        sock.setblocking(False)
        self.connections.add(Connection(self, sock, sibling))

    def dispatch(self, conn: Connection, frame: Any) -> None:
        """One whole frame. What is no request closes the connection: nobody could be answered."""
        if not (isinstance(frame, (list, tuple)) and len(frame) == 4 and frame[0] == 0):
            return self.violation(conn, "malformed frame: not a request")
        _, number, method, args = frame
        if type(number) is not int or type(method) is not str or not isinstance(args, (list, tuple)):
            return self.violation(conn, "malformed request")
        msgid = pack(number)
        handler = self._methods.get(method)
        if handler is None:
            log.warning("unknown RPC method %.60r", method)
            conn.reply(wire.error(msgid, "RPC method is not supported"))
            return None
        arg = args[0] if args else None
        if self.siblings is not None and not conn.sibling and (doors := self._elsewhere(self.siblings, method, arg)):
            waiting = gevent.Greenlet(self.siblings.hand_over, frame, doors)
            self._await(
                conn, waiting, lambda done: conn.reply(done) if done else self._handle(handler, conn, msgid, arg)
            )
        else:
            self._handle(handler, conn, msgid, arg)
        return None

    def _handle(
        self, handler: Callable[[Connection, bytes, Any], None], conn: Connection, msgid: bytes, arg: Any
    ) -> None:
        try:
            handler(conn, msgid, arg)
        except Exception as error:
            self.internal_error(conn, error)

    def _elsewhere(self, siblings: Siblings, method: str, arg: Any) -> list[Path]:
        """Which siblings may have the event of a step that is not for one of ours."""
        if (method in wire.STEP_METHODS or method == "plugin.StepError") and isinstance(arg, dict):
            number = arg.get("EventId")
            if type(number) is int and event_key(number) not in self.events:
                return siblings.doors()
        return []

    def _await(self, conn: Connection, greenlet: Any, then: Callable[[Any], None]) -> None:
        """Runs the greenlet, then `then` with its value (None where it failed), unless Kong has given the call up."""
        conn.call = pending = Construction(conn, greenlet)

        def answer(done: Any) -> None:
            if pending.conn is not None:
                pending.conn = None
                then(done.value)

        greenlet.link(answer)
        greenlet.start()

    def _ask(self, conn: Connection, msgid: bytes, asked: Any) -> None:
        """A sibling's question (see `generations`)."""
        question, argument = asked
        known = generations.answers.get(question) if conn.sibling else None
        if known is None:
            conn.reply(wire.error(msgid, "RPC method is not supported"))
        else:
            self._await(conn, gevent.Greenlet(known, argument), lambda said: conn.reply(wire.result(msgid, said)))

    def _take(self, conn: Connection, msgid: bytes, _: Any) -> None:
        """A predecessor's connections of Kong: they came with these words, and are read from already."""
        conn.reply(wire.result(msgid, conn.sibling))

    def hand_over_connections(self) -> None:
        """To who has taken our path: those on which nothing is under way. What Kong says on them meanwhile waits."""
        while self.siblings and (resting := [c for c in self.connections if c.at_rest][:CONNECTIONS]):
            if self.siblings.pass_on([conn.pause() for conn in resting]):
                for conn in resting:
                    conn.close()
            else:
                for conn in resting:
                    conn.resume()
                return

    def internal_error(self, conn: Connection, error: Exception) -> None:
        """An error of the server itself: an event that is owed an answer is refused, anything else loses the
        connection."""
        log.error("internal error: %s", _where(error))
        worker = conn.call
        if isinstance(worker, Worker) and worker.conn is conn:
            worker.done = True
            worker.conn = None
            conn.reply(REPLY + worker.msgid + worker.tail + UNAVAILABLE)
        else:
            conn.close()

    def violation(self, conn: Connection, what: str) -> None:
        self.protocol_errors += 1
        log.warning("%s, connection closed", what)
        conn.close()

    def abandon(self, conn: Connection) -> None:
        """Kong has given up the connection's open call: what works for it ends, nothing is answered."""
        call, conn.call = conn.call, None
        if call is None or call.conn is not conn:
            return
        call.conn = None
        if isinstance(call, Worker):
            self._end(call)
        else:
            call.greenlet.kill(block=False)

    # -- events

    def _handle_event(self, conn: Connection, msgid: bytes, event: Any) -> None:
        if type(event) is not dict:
            return self.violation(conn, "malformed event")
        instance_id = event.get("InstanceId")
        instance = self.instances.by_id.get(instance_id) if type(instance_id) is int else None
        if instance is None:
            # Kong starts the instance and repeats the event when the text begins like this.
            conn.reply(wire.error(msgid, f"no plugin instance #{_short(instance_id)}"))
            return None
        name = event.get("EventName")
        if type(name) is list and name and type(name[0]) is str and name[0] in instance.phases:
            # Kong's Lua half sent it. One of another version is answered call by call.
            came = given(name)
            pair = Pair(instance.questions, came) if came else None
            return self.begin(conn, msgid, instance, instance.phases[name[0]], pair)
        phase = instance.phases.get(name) if type(name) is str else None
        if phase is None:
            log.error("plugin %s has no phase %s", instance.plugin.name, _short(name))
            self._refuse(conn, msgid, self._new_event_id(), True)
            return None
        if len(self.known_events) >= MAX_KNOWN_EVENTS:
            self.known_events.clear()
        for keys in (("InstanceId", "EventName"), ("EventName", "InstanceId")):
            rest = wire.HANDLE_EVENT + pack({key: event[key] for key in keys})
            self.known_events[rest] = (instance, phase)
        self.begin(conn, msgid, instance, phase)
        return None

    def begin(self, conn: Connection, msgid: bytes, instance: Instance, phase: Phase, pair: Pair | None = None) -> None:
        """Runs the event in a worker, up to its first wait."""
        if len(self.events) >= self.max_in_flight and (
            phase.name != "log" or len(self.events) >= 2 * self.max_in_flight
        ):
            self.overloaded += 1
            phase.stats.denied += 1
            self._refuse(conn, msgid, self._new_event_id(), phase.refuses)
            return
        if self._idle:
            worker = self._idle.pop()
        else:
            worker = Worker(self._hub, self, self.kong)
            self._workers.add(worker)
        worker.gr_context = None  # context variables are the event's own
        worker.msgid = msgid
        worker.instance = instance
        worker.phase = phase
        worker.pair = pair
        worker.conn = conn
        worker.done = False
        worker.calls = 0
        worker.started = instance.last_used = time.monotonic()
        instance.active += 1
        conn.call = worker
        self._next_event = number = self._next_event + 1
        worker.id = key = EVENT_ID + pack(number)
        worker.tail = RESULT + key
        self.events[key] = worker
        worker.switch()

    def _new_event_id(self) -> int:
        self._next_event += 1
        return self._next_event

    def _step(self, conn: Connection, msgid: bytes, step: Any, error: bool = False) -> None:
        if type(step) is not dict:
            return self.violation(conn, "malformed answer to a PDK call")
        event_id = step.get("EventId")
        if type(event_id) is not int:
            event_id = 0
        worker = self.events.get(event_key(event_id))
        if worker is None and conn.sibling:
            conn.reply(wire.error(msgid, UNKNOWN_EVENT))
            return None
        if worker is None or worker.conn is not None:
            log.warning("step of an unknown event %d, refused", event_id)
            self._refuse(conn, msgid, event_id, True)
            return None
        worker.msgid = msgid
        worker.conn = conn
        conn.call = worker
        worker.error = (step.get("Data") or "error") if error else None
        worker.switch(None if error else step.get("Data"))
        return None

    def _step_error(self, conn: Connection, msgid: bytes, step: Any) -> None:
        self._step(conn, msgid, step, error=True)

    def _refuse(self, conn: Connection, msgid: bytes, event_id: int, refuses: bool) -> None:
        conn.reply(REPLY + msgid + RESULT + event_key(event_id) + (UNAVAILABLE if refuses else RET))

    def failed(self, worker: Worker, error: BaseException) -> None:
        """Plugin code raised (runs in the worker). A refusal where the phase and the plugin's on_error allow it."""
        phase: Phase = worker.phase
        phase.stats.exceptions += 1
        log.error(
            "plugin %s, %s: uncaught %s (answered with %s)",
            worker.instance.plugin.name,
            phase.name,
            _where(error),
            "503" if phase.refuses else "ret",
        )
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", "".join(traceback.format_exception(error)))
        try:
            conn = worker.conn or worker.await_open_call()
        except EventEnd:
            return
        self._answer_failure(worker, conn)

    def _answer_failure(self, worker: Worker, conn: AnyConnection) -> None:
        worker.done = True
        worker.conn = None
        if worker.phase.refuses:
            worker.phase.stats.denied += 1
        conn.reply(REPLY + worker.msgid + worker.tail + (UNAVAILABLE if worker.phase.refuses else RET))

    def finished(self, worker: Worker) -> bool:
        """The worker's event is over (runs in the worker). Returns whether to keep the worker."""
        instance = worker.instance
        worker.phase.stats.observe(time.monotonic() - worker.started, worker.calls)
        assert worker.id is not None
        del self.events[worker.id]
        worker.id = None
        worker.error = None
        del worker.instance, worker.phase  # an idle worker must not keep a closed instance
        instance.active -= 1
        if instance.closing and not instance.active:
            gevent.spawn(self._run_close, instance)
        if len(self._idle) < IDLE_WORKERS:
            self._idle.append(worker)
            return True
        return False

    @property
    def busy_workers(self) -> int:
        return len(self._workers) - len(self._idle)

    def expire(self, worker: Worker, now: float) -> None:
        """The event has lasted too long (from the hub or from inside the worker): answer, then unwind it."""
        if not worker.done:
            worker.phase.stats.timeouts += 1
            conn = worker.conn
            log.error(
                "plugin %s, %s: event ended after %.1f s, %s",
                worker.instance.plugin.name,
                worker.phase.name,
                now - worker.started,
                "waiting for Kong's answer" if conn is None else "plugin code still at work",
            )
            if conn is None:
                worker.done = True
            elif now - worker.started > 2 * self.event_timeout:
                # The loop was blocked for so long that Kong may have given up: a late answer would meet the
                # next event on this connection.
                worker.done = True
                worker.conn = None
                self._hub.loop.run_callback(conn.close)
            else:
                self._answer_failure(worker, conn)

    def _end(self, worker: Worker) -> None:
        """Unwinds the plugin code of an event that nobody waits for (from the hub only)."""
        worker.done = True
        if worker.id is not None and worker.dead:  # an internal error has ended it
            del self.events[worker.id]
        elif worker.id is not None:
            worker.throw(EventEnd)

    def sweep(self, now: float) -> None:
        """Ends what has lasted too long; called a few times a second from the hub."""
        limit = now - self.event_timeout
        overdue = []
        for worker in self.events.values():  # in order of their start
            if worker.started > limit:
                break
            overdue.append(worker)
        for worker in overdue:
            self.expire(worker, now)
            self._end(worker)
        for conn in [c for c in self.unfinished if c.since < limit]:
            self.violation(conn, "incomplete frame: the rest did not come in time")

    def close(self) -> None:
        """Ends everything: what still runs is answered first."""
        now = time.monotonic()
        for worker in list(self.events.values()):
            self.expire(worker, now)
        for conn in list(self.connections):
            conn.close()
        for instance in list(self.instances.by_id.values()):
            self.drop(instance)

    # -- instances

    def _start_instance(self, conn: Connection, msgid: bytes, arg: Any) -> None:
        # A constructor may fetch keys or connect to Redis: it must not run in the hub.
        def answer(made: Any) -> None:
            if isinstance(made, Instance):
                conn.reply(wire.result(msgid, made.status()))
            else:
                conn.reply(wire.error(msgid, made if isinstance(made, str) else "the constructor was ended"))

        self._await(conn, gevent.Greenlet(self._construct, arg), answer)

    def _construct(self, arg: Any) -> Instance | str:
        """The new instance, or the error text for Kong's log."""
        name = arg.get("Name") if isinstance(arg, dict) else None
        plugin = self.plugins.get(name) if isinstance(name, str) else None
        if plugin is None:
            return f"plugin {_short(name)} is not loaded"
        try:
            config = json.loads(arg["Config"])
        except (KeyError, TypeError, ValueError):
            return f"plugin {plugin.name}: Config is not JSON"
        timeout = gevent.Timeout(self.event_timeout)
        try:
            with timeout:
                made = plugin.module.new(config).cls
        except (Exception, gevent.Timeout, SystemExit) as error:
            if error is timeout:
                text = f"plugin {plugin.name}: no instance after {self.event_timeout:g} s"
            else:
                kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
                text = f"plugin {plugin.name}: {kind}{error}"[:1000].replace("\n", " ")
            log.error("starting instance: %s", text)
            return text
        instance = Instance(self.instances.new_id(), plugin, config, made)
        self.instances.by_id[instance.id] = instance
        log.info("instance #%d of %s started", instance.id, plugin.name)
        return instance

    def _close_instance(self, conn: Connection, msgid: bytes, instance_id: Any) -> None:
        instance = self.instances.by_id.get(instance_id) if type(instance_id) is int else None
        if instance is None:
            conn.reply(wire.error(msgid, f"no plugin instance #{_short(instance_id)}"))
            return
        self.drop(instance)
        status = instance.status()
        del status["StartTime"]
        conn.reply(wire.result(msgid, status))

    def drop(self, instance: Instance) -> None:
        """Forgets an instance; its `close()` runs when its last event is over."""
        del self.instances.by_id[instance.id]
        for key in [k for k, (known, _) in self.known_events.items() if known is instance]:
            del self.known_events[key]
        instance.plugin.module.set_last_close_instance_time()
        instance.closing = True
        log.info("instance #%d of %s closed", instance.id, instance.plugin.name)
        if not instance.active:
            gevent.spawn(self._run_close, instance)

    def _run_close(self, instance: Instance) -> None:
        try:
            with gevent.Timeout(self.event_timeout):
                instance.close()
        except (Exception, gevent.Timeout, SystemExit) as error:
            log.error("plugin %s: close(): %s", instance.plugin.name, _where(error))

    def evict(self, now: float) -> None:
        """Drops instances that Kong has forgotten: it never closes those of removed plugins."""
        for instance in self.instances.unused_since(now - INSTANCE_IDLE_SECONDS):
            self.drop(instance)

    def _instance_status(self, conn: Connection, msgid: bytes, instance_id: Any) -> None:
        instance = self.instances.by_id.get(instance_id) if type(instance_id) is int else None
        if instance is None:
            conn.reply(wire.error(msgid, f"no plugin instance #{_short(instance_id)}"))
        else:
            conn.reply(wire.result(msgid, instance.status()))

    def _plugin_info(self, conn: Connection, msgid: bytes, name: Any) -> None:
        plugin = self.plugins.get(name) if type(name) is str else None
        if plugin is None:
            conn.reply(wire.error(msgid, f"plugin {_short(name)} is not loaded"))
        else:
            conn.reply(wire.result(msgid, plugin.info()))

    def _status(self, conn: Connection, msgid: bytes, _: Any) -> None:
        instances = self.instances.by_id.values()
        plugins = {
            name: {
                "Name": name,
                "Modtime": plugin.module.mtime,
                "LoadTime": plugin.module.load_time,
                "Instances": [i.status() for i in instances if i.plugin is plugin],
                "LastStartInstance": plugin.module.last_start_instance_time,
                "LastCloseInstance": plugin.module.last_close_instance_time,
            }
            for name, plugin in self.plugins.items()
        }
        conn.reply(wire.result(msgid, {"Pid": os.getpid(), "EventsInFlight": len(self.events), "Plugins": plugins}))


def _short(value: Any) -> str:
    """A value from the wire for a message: bounded, and nothing but a scalar."""
    return str(value)[:60] if isinstance(value, (int, float, str)) or value is None else type(value).__name__


def _where(error: BaseException) -> str:
    """Type and place of an exception. Its message may hold a header's value: that is for the debug level."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if tb is None:
        return type(error).__name__
    code = tb.tb_frame.f_code
    return f"{type(error).__name__} at {code.co_filename}:{tb.tb_lineno} in {code.co_name}"
