"""One event: plugin code in a greenlet, and the `kong` object it talks to.

A worker's parent is the hub. A PDK call sends its frame from the worker itself and switches to the hub; the Step that
answers it switches back. Workers are re-used: on CPython 3.11 a new greenlet costs an mmap and a munmap.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from greenlet import getcurrent, greenlet
from kong_pdk.exception import PDKException
from kong_pdk.pdk.kong import kong as stubs

from kong_claude.server import wire
from kong_claude.server.pair import ASKED, TOLD, Pair, told_part
from kong_claude.server.wire import REPLY, RET, pack

if TYPE_CHECKING:
    from kong_claude.server.plugins import Instance, Phase

TERMINAL = frozenset(("kong.response.exit", "kong.response.error"))
LARGE = frozenset(("kong.service.request.set_raw_body", "kong.service.request.set_body"))


class EventEnd(BaseException):
    """Unwinds plugin code whose event is over. No Exception: plugin code must not go on after `exit()`."""


class Connection(Protocol):
    """What a worker needs of a connection (see `connection.Connection`)."""

    backlog: Any
    send: Any

    def close(self) -> None: ...
    def reply(self, frame: bytes) -> None: ...
    def not_sent(self, error: OSError) -> int: ...
    def sent_some(self, frame: bytes, sent: int) -> None: ...


class Owner(Protocol):
    """What a worker needs of the server."""

    def failed(self, worker: Worker, error: BaseException) -> None: ...
    def finished(self, worker: Worker) -> bool: ...


class Worker(greenlet):
    """A re-usable greenlet and the state of the event that runs in it.

    `id` (EventId) is None while idle; `msgid` and `tail` are packed parts of its replies. `conn` is the connection
    with Kong's open call: None while Kong works on a PDK call. `pair` is for an event that Kong's Lua half sent.
    """

    __slots__ = (
        "calls",
        "conn",
        "done",
        "error",
        "id",
        "instance",
        "kong",
        "msgid",
        "owner",
        "pair",
        "phase",
        "started",
        "tail",
        "to_hub",
    )

    def __init__(self, hub: Any, owner: Owner, kong: Any) -> None:
        super().__init__(parent=hub)
        self.to_hub: Callable[[], Any] = greenlet.switch.__get__(hub)
        self.owner = owner
        self.kong = kong
        self.id: bytes | None = None
        self.conn: Connection | None = None
        self.msgid = b""
        self.tail = b""
        self.error: Any = None
        self.done = True
        self.calls = 0
        self.started = 0.0
        self.pair: Pair | None = None
        self.instance: Instance
        self.phase: Phase

    def run(self) -> None:
        to_hub = self.to_hub
        while True:
            # Whatever gevent may still have scheduled for this greenlet must not be taken for an event.
            while self.id is None:
                to_hub()
            try:
                self.phase.handler(self.kong)
                if not self.done:
                    conn = self.conn or self.await_open_call()
                    self.done = True
                    self.conn = None
                    conn.reply(self.before() + REPLY + self.msgid + self.tail + RET)
            except EventEnd:
                pass
            except BaseException as error:
                self.owner.failed(self, error)
            if not self.owner.finished(self):
                return

    def before(self) -> bytes:
        """What travels in front of a message."""
        return b"" if self.pair is None else self.pair.flush()

    def await_open_call(self) -> Connection:
        """Kong's answer to a call that plugin code has given up (gevent.Timeout) must come first."""
        while self.conn is None:
            if self.done:
                raise EventEnd
            self.to_hub()
        return self.conn


def _sanitized(args: tuple[Any, ...]) -> list[Any]:
    """Log arguments as kong-pdk sends them: what is no str, int, list or dict becomes its text."""
    return [a if type(a) in (str, int, list, dict) else str(a) for a in args]


def pdk_method(name: str, lua_style: bool) -> Callable[..., Any]:
    """The function behind `kong.a.b`. Returns Kong's answer, or `(answer, error)` with `lua_style`.

    Raises PDKException (StepError, without lua_style), TypeError, ValueError or OverflowError (arguments that
    MessagePack cannot carry), RuntimeError (outside an event).
    """
    part = wire.call_part(name)
    encode = wire.pack_large if name in LARGE else pack
    head = told_part(name)

    def owing() -> Worker:
        """The worker of the running event, with Kong's call open."""
        worker = getcurrent()
        if type(worker) is not Worker:
            raise RuntimeError(f"{name} called outside of the event's own greenlet")
        worker.await_open_call()
        return worker

    def call(*args: Any) -> Any:
        running: Any = getcurrent()
        worker: Worker = running if type(running) is Worker and running.conn is not None else owing()
        conn: Any = worker.conn
        frame = b"".join((REPLY, worker.msgid, worker.tail, part, encode(args)))
        if worker.pair is not None:
            frame = worker.pair.flush() + frame
        worker.conn = None
        worker.calls += 1
        try:
            sent = conn.send(frame)
        except OSError as problem:
            sent = conn.not_sent(problem)
            if sent < 0:
                worker.done = True
                raise EventEnd from None
        if sent != len(frame) or conn.backlog:
            conn.sent_some(frame, sent)
        answer = worker.to_hub()
        while worker.conn is None:  # whatever gevent may still have scheduled for this greenlet
            answer = worker.to_hub()
        if worker.error is None:
            if worker.pair is not None:
                worker.pair.answer(name, answer)
            return (answer, None) if lua_style else answer
        error, worker.error = worker.error, None
        if lua_style:
            return None, error
        raise PDKException(f"exception from {name}: {error}")

    def asked(*args: Any) -> Any:
        worker: Any = getcurrent()
        if type(worker) is Worker and worker.pair is not None:
            known, answer = worker.pair.ask((name, *args))
            if known:
                return (answer, None) if lua_style else answer
        return call(*args)

    def told(*args: Any) -> Any:
        worker: Any = getcurrent()
        if type(worker) is not Worker or worker.pair is None or worker.done:
            return call(*args)
        worker.pair.tell(name, head, args)
        return (None, None) if lua_style else None

    def log(*args: Any) -> Any:
        return call(*_sanitized(args))

    def end(*args: Any) -> NoReturn:
        worker = owing()
        conn = worker.await_open_call()
        frame = worker.before() + REPLY + worker.msgid + worker.tail + part + encode(args)
        worker.conn = None
        worker.calls += 1
        worker.done = True
        worker.phase.stats.exits += 1
        conn.reply(frame)
        raise EventEnd

    if name in TERMINAL:
        return end
    if name in ASKED:
        return asked
    if name in TOLD:
        return told
    return log if name == "kong.log" or name.startswith("kong.log.") else call


class Namespace:
    """`kong.log`, and what the stubs do not know: callable, attributes are made on first use and kept."""

    def __init__(self, name: str, lua_style: bool) -> None:
        self._name = name
        self._lua_style = lua_style
        self._call = pdk_method(name, lua_style)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        name = f"{self._name}.{attribute}"
        made = (pdk_method if self._name == "kong.log" else Namespace)(name, self._lua_style)
        setattr(self, attribute, made)
        return made

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __str__(self) -> str:
        return str(self._call())


def pdk(lua_style: bool) -> Any:
    """The `kong` object that plugins get: one for all events, a call belongs to the greenlet that makes it."""
    return _namespace(stubs, "kong", lua_style)


def _namespace(stub: type, name: str, lua_style: bool) -> ModuleType:
    # A module, because CPython looks its attributes up faster than those of a class with __getattr__.
    namespace = ModuleType(name)
    for key, value in vars(stub).items():
        path = f"{name}.{key}"
        if isinstance(value, staticmethod):
            setattr(namespace, key, pdk_method(path, lua_style))
        elif isinstance(value, type) and path != "kong.log":
            setattr(namespace, key, _namespace(value, path, lua_style))

    def unknown(attribute: str) -> Namespace:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        made = Namespace(f"{name}.{attribute}", lua_style)
        setattr(namespace, attribute, made)
        return made

    setattr(namespace, "__getattr__", unknown)  # noqa: B010
    return namespace
