"""`python -m claude_invoker.metering CONTROL HANDED LISTENER JOURNAL KEY UID`: the metering proxy.

Started by `control`. The first five are descriptors: the socket pairs to the invoker, of lines and of what it hands
over, the socket on which runs ask, the journals' directory, and what holds the API's key. UID is the user that it
becomes once its code is loaded (which may lie where that user cannot go); -1: it stays who it is. It ends when the
invoker does, by whatever way: the socket pairs are closed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys

import uvloop

from claude_invoker.metering import handing, key, wire
from claude_invoker.metering.books import Books
from claude_invoker.metering.journal import Journal
from claude_invoker.metering.ownprice import OwnPrice
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.proxy import KeyProxy

_log = logging.getLogger("claude_invoker.metering")
_DUMPABLE, _NO_NEW_PRIVS = 4, 38
_END_S = 5.0
"""How long the requests that are under way may take to be left and written down."""


def seal() -> None:
    """No program that is started gains rights, nobody but root looks into this process, and it has as many connections
    as it may. Before there are threads. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_NO_NEW_PRIVS, 1), (_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each request: its client's connection, the API's


def become(uid: int) -> None:
    """This user for good, without any capability. Raises OSError."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


async def serve(
    control: socket.socket, handed: socket.socket, listener: socket.socket, directory: int, api_key: str, uid: int
) -> None:
    """Until the invoker is no more. Raises ValueError where it says what cannot be understood, OSError."""
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=wire.MAX_LINE)
    setup = wire.to_proxy.decode(await reader.readuntil(b"\n"))
    if not isinstance(setup, wire.Setup) or setup.version != wire.VERSION:
        raise ValueError("the invoker is of another release")
    prices = Prices({name: OwnPrice(**price) for name, price in setup.prices.items()}, setup.unknown_price)
    proxy = KeyProxy(setup.upstreams, api_key, setup.certificates)
    await proxy.rehearse()
    if uid >= 0:
        become(uid)
    journal = Journal(directory)
    journal.open()
    journal.adopt()
    books = Books(journal, prices, proxy, lambda message: writer.write(wire.line(message)))
    handing.take(handed, books.answer, books.refuse)
    gc.freeze()  # else each full collection walks through all libraries, for 10 ms, while streams wait
    writer.write(wire.line(wire.Ready()))
    try:
        while line := await reader.readline():
            message = wire.to_proxy.decode(line)
            if isinstance(message, wire.Serve):
                await proxy.start(listener)
            else:
                books.take(message)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await proxy.stop()
        journal.close()


def main(arguments: list[str]) -> int:
    *sockets, directory, key_file, uid = map(int, arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends after the invoker, which may still have runs
    try:
        api_key = key.read(key_file)
        os.close(key_file)
        seal()
        control, handed, listener = (socket.socket(fileno=each) for each in sockets)
        serving = serve(control, handed, listener, directory, api_key, uid)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
    except (OSError, ValueError) as error:
        _log.error("the metering proxy ends: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
