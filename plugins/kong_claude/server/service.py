"""The process: loads plugins, claims the socket, serves until told to stop."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import signal
import time
from pathlib import Path

import gevent
from gevent.event import Event

from kong_claude.server.connection import READ
from kong_claude.server.core import Server
from kong_claude.server.listener import Listener, SocketInUse
from kong_claude.server.plugins import load_all
from kong_claude.server.watchdog import Watchdog, start_ticks

log = logging.getLogger("kong_claude.pluginserver")

TRANSIENT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def serve(args: argparse.Namespace) -> int:
    """Returns the exit status."""
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
        watchdog = Watchdog(server)
        if args.metrics_listen:
            from kong_claude.server.metrics import serve_metrics

            serve_metrics(args.metrics_listen, server, watchdog)
        path = str(Path(args.prefix) / args.socket_name)
        listener = Listener(path, args.socket_mode, args.listen_queue_size)
    except (OSError, SocketInUse) as error:
        log.error("cannot serve: %s", error)
        return 1

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    acceptor = gevent.get_hub().loop.io(listener.sock.fileno(), READ)

    def accept() -> None:
        for _ in range(64):
            try:
                server.accept(listener.accept())
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in TRANSIENT:
                    log.error("cannot accept a connection: %s", error.strerror)
                    acceptor.stop()
                    gevent.spawn_later(0.1, acceptor.start, accept)
                return

    gc.collect()
    gc.freeze()  # modules live for ever: no collection needs to look at them
    gc.enable()
    acceptor.start(accept)
    watchdog.start()
    orphaned = Event()

    def parent_gone() -> None:
        orphaned.set()
        stop.set()

    ticks = start_ticks(server, watchdog, parent_gone)
    log.info("serving %s at %s, pid %d", ", ".join(plugins) or "no plugins", path, os.getpid())

    stop.wait()
    acceptor.stop()
    listener.close()
    if orphaned.is_set():
        log.info("Kong has gone, exiting")
    else:
        _drain(server, args.drain_timeout)
    ticks.stop()
    watchdog.stopped = True
    return 0


def _drain(server: Server, seconds: float) -> None:
    """Events that run may end; new ones on open connections are still answered meanwhile."""
    log.info("stopping, %d events to end", len(server.events))
    deadline = time.monotonic() + seconds
    while server.connections and (server.events or server.unfinished) and time.monotonic() < deadline:
        gevent.sleep(0.01)
    gevent.get_hub().loop.run_callback(server.close)  # ending events is for the hub only
    gevent.sleep(0.05)
