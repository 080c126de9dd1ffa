"""The process: loads plugins, claims the socket, serves until told to stop, and until its successor does."""

from __future__ import annotations

import _socket
import argparse
import errno
import gc
import logging
import os
import signal
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from kong_claude import generations
from kong_claude.server.connection import READ
from kong_claude.server.core import Server
from kong_claude.server.keeper import Master
from kong_claude.server.listener import Listener, SocketInUse, accept
from kong_claude.server.logs import Logs
from kong_claude.server.plugins import load_all
from kong_claude.server.siblings import Siblings
from kong_claude.server.watchdog import Watchdog, start_ticks

log = logging.getLogger("kong_claude.pluginserver")

TRANSIENT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
BEAT = 0.1  # seconds between two looks at who has the path
SUCCESSION = 60.0  # seconds that a server whose worker has gone waits for the next one


def serve(args: argparse.Namespace, master: Master | None, logs: Logs) -> int:
    """Returns the exit status. `master`: the Kong that has started us, where it is nginx."""
    if args.multiprocessing or args.gevent:
        log.info("-m and -g have no effect: one process, gevent always")
    try:
        plugins = load_all(args.directory)
        server = Server(
            plugins,
            lua_style=not args.no_lua_style,
            event_timeout=args.event_timeout,
            max_in_flight=args.max_in_flight,
        )
        watchdog = Watchdog(server, logs.warn_at_once)
        path = os.path.join(args.prefix, args.socket_name)  # noqa: PTH118 - as Kong writes it
        listener = Listener(path, args.socket_mode, args.listen_queue_size, master)
    except (OSError, SocketInUse) as error:
        log.error("cannot serve: %s", error)
        return 1
    siblings = Siblings(listener, args.event_timeout + 1)
    if master is not None:
        server.siblings = siblings
        generations.reach_others_by(siblings.ask)
    leave_metrics: Callable[[], None] = lambda: None  # noqa: E731
    if args.metrics_listen:
        from kong_claude.server.metrics import serve_metrics

        leave_metrics = serve_metrics(args.metrics_listen, server, watchdog, siblings)

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    gc.collect()
    gc.freeze()  # modules live for ever: no collection needs to look at them
    gc.enable()
    front = Acceptor(server, listener.sock)
    side = None if listener.door is None else Acceptor(server, listener.door, sibling=True)
    watchdog.start()
    orphaned = Event()

    def parent_gone() -> None:
        orphaned.set()
        stop.set()

    ticks = start_ticks(server, watchdog, parent_gone)
    log.info("serving %s at %s, pid %d", ", ".join(plugins) or "no plugins", path, os.getpid())

    restores = True
    while not (stop.wait(BEAT) or listener.superseded):
        try:
            front, restores = _restored(server, listener, front), True
        except OSError as error:
            if restores:
                log.error("%s was removed, and cannot be there again: %s", path, error)
            restores = False
    if master is not None:
        if not listener.superseded:
            _outlive_worker(master, listener)
        if listener.superseded:
            log.info("another server has taken %s over", path)
            leave_metrics()
            _hand_over(server, siblings, args.event_timeout + 1)
    front.stop()
    listener.close()
    if orphaned.is_set() and master is None:
        log.info("Kong has gone, exiting")
    else:
        _drain(server, args.drain_timeout)
    if side is not None:
        side.stop()
    listener.close_door()
    ticks.stop()
    watchdog.stopped = True
    return 0


class Acceptor:
    """Accepts what comes on a listening socket."""

    def __init__(self, server: Server, sock: _socket.socket, sibling: bool = False) -> None:
        self._server, self._sock, self._sibling = server, sock, sibling
        self._stopped = False
        self._watcher = gevent.get_hub().loop.io(sock.fileno(), READ)
        self._watcher.start(self.take)

    def take(self) -> bool:
        """What waits now, up to 64. Returns whether more may."""
        for _ in range(64):
            try:
                self._server.accept(accept(self._sock), self._sibling)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in TRANSIENT:
                    log.error("cannot accept a connection: %s", error.strerror)
                    self._watcher.stop()
                    gevent.spawn_later(0.1, self._again)
                return False
        return True

    def _again(self) -> None:
        if not self._stopped:
            self._watcher.start(self.take)

    def stop(self) -> None:
        self._stopped = True
        self._watcher.stop()


def _restored(server: Server, listener: Listener, front: Acceptor) -> Acceptor:
    """`front`, or who accepts in its place since the file of its socket was removed. Raises OSError."""
    before = listener.restored()
    if before is None:
        return front
    log.warning("%s was removed; listening there again", listener.path)
    while front.take():
        pass
    front.stop()
    before.close()
    return Acceptor(server, listener.sock)


def _outlive_worker(master: Master, listener: Listener) -> None:
    """Our worker ends; its Kong may not, and then all workers need us until the next server listens."""
    _release_output()
    deadline = time.monotonic() + SUCCESSION
    while master.alive and not listener.superseded and time.monotonic() < deadline:
        gevent.sleep(BEAT)


def _hand_over(server: Server, siblings: Siblings, patience: float) -> None:
    """All connections, then what was kept in memory. Events that run end here, by steps that come back to us."""
    deadline = time.monotonic() + patience
    server.hand_over_connections()
    while (server.events or server.connections) and time.monotonic() < deadline:
        gevent.sleep(BEAT / 10)
        server.hand_over_connections()
    for question, what in generations.bequests.items():
        siblings.bequeath(question, what())


def _release_output() -> None:
    """Kong reads the output of a server until it ends, and starts no other before."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _drain(server: Server, seconds: float) -> None:
    """Events that run may end; new ones on open connections are still answered meanwhile."""
    log.info("stopping, %d events to end", len(server.events))
    deadline = time.monotonic() + seconds
    while server.connections and (server.events or server.unfinished) and time.monotonic() < deadline:
        gevent.sleep(0.01)
    gevent.get_hub().loop.run_callback(server.close)  # ending events is for the hub only
    gevent.sleep(0.05)
