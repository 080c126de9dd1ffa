"""`claude-invoker` and `python -m claude_invoker`: serves, or runs queued jobs; all settings are `INVOKER_*`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from claude_invoker import __version__
from claude_invoker.metering import key

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from claude_invoker.settings import Settings


_M_MMAP_THRESHOLD = -3  # <malloc.h>


class CannotStart(Exception):
    """What keeps the invoker from starting, in one sentence for whoever starts it."""


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT. 2 for settings that cannot work, and where it cannot start."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["audit"]:
        from claude_invoker.audit import cli as audit

        return audit.main(arguments[1:])
    if arguments[:1] == ["catalog"]:
        from claude_invoker.catalog import cli as catalog
        from claude_invoker.mcp.memory import ENTRY

        return catalog.main(arguments[1:], (ENTRY,))
    parser = argparse.ArgumentParser(
        prog="claude-invoker",
        description="Runs the Claude CLI for requests that the gateway has attested. Settings are INVOKER_* variables, "
        "each also as INVOKER_…_FILE, a path to a file that only this user can read.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "worker"),
        default="serve",
        help="serve: answer HTTP requests (default); worker: run queued jobs, as many workers as wanted; "
        "audit: verify the audit log, who has spent what, what it has of a person, and deleting that "
        "(claude-invoker audit --help); catalog: look at a catalog of skills (claude-invoker catalog --help)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    command = parser.parse_args(arguments).command
    _give_large_blocks_back()
    key.shed()  # before anything is loaded that takes time, since it begins anew
    gc.disable()  # until all is imported (`_loaded`): collections would be a seventh of that
    from pydantic import ValidationError

    from claude_invoker.settings import Settings, unknown

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "saq"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = Settings()
        for warning in warnings(unknown(os.environ)):
            print(f"claude-invoker: {warning}", file=sys.stderr)
        if command == "worker":
            return _work(settings)
        return _serve(settings)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            name = "_".join(map(str, item["loc"])).upper()
            said = item["msg"].removeprefix("Value error, ")
            print(f"claude-invoker: {f'INVOKER_{name}: ' if name else ''}{said}", file=sys.stderr)
        return 2
    except (CannotStart, OSError, ValueError) as error:
        print(f"claude-invoker: {error}", file=sys.stderr)
        return 2
    finally:
        gc.enable()


def _loaded() -> None:
    """What lives now does so for ever: no collection needs to look at it."""
    gc.freeze()
    gc.enable()


def _give_large_blocks_back() -> None:
    """glibc raises the size from which it returns a block to the system with each large block that is freed, so that
    answers of megabytes stay: 16 of 2 MB took 197 MB where 64 are kept, with a fixed size 96."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


def warnings(unknown: list[str]) -> list[str]:
    """What lets the invoker start and is hardly meant, a sentence each."""
    found = [f"{name} is not a setting of this version and has no effect" for name in unknown]
    if not key.is_given():
        found.append("INVOKER_ANTHROPIC_API_KEY is not set: the Messages API will refuse every run")
    return found


def _work(settings: Settings) -> int:
    from redis.exceptions import RedisError

    from claude_invoker.worker import serve

    if not settings.redis_url:
        raise ValueError("INVOKER_REDIS_URL is not set: jobs wait in Redis")
    _loaded()
    try:
        asyncio.run(serve(settings))
    except RedisError as error:
        raise CannotStart(_said(error)) from error
    return 0


def _serve(settings: Settings) -> int:
    import uvicorn

    from claude_invoker.api.lending import Lendable
    from claude_invoker.app import create_app
    from claude_invoker.bounded_http import heads_within
    from claude_invoker.draining import LAST_ANSWERS_S, DrainingServer

    app = create_app(settings)
    _loaded()
    if settings.trust == "open":
        print(
            f"claude-invoker: INVOKER_TRUST=open: anybody on this machine can run the Claude CLI "
            f"by http://{settings.host}:{settings.port}",
            file=sys.stderr,
        )
    # lifespan: _answer has it, since uvicorn would print the traceback of a start that fails.
    config = uvicorn.Config(
        app,
        http=heads_within(settings.request_head_s, Lendable),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        # With 0 uvicorn would say, as an error, that nothing had been in time.
        timeout_graceful_shutdown=max(1, min(settings.stop_grace_s, LAST_ANSWERS_S)),
    )
    parts = app.state.services
    server = DrainingServer(config, parts.engine, parts.desk, settings.stop_grace_s)
    with _bound(settings.host, settings.port) as listener:
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(_answer(server, app, listener))
        except KeyboardInterrupt:
            pass
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket of that address, which does not listen yet. Taken before anything is started, since a start takes
    seconds. Raises CannotStart."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        problem = f"INVOKER_HOST={host}, INVOKER_PORT={port}: {error.strerror}"
        raise CannotStart(f"{problem}; end what listens there, or choose others") from error
    return listener


async def _answer(server: uvicorn.Server, app: FastAPI, listener: socket.socket) -> None:
    """Starts what the application needs, then listens until a signal. Raises CannotStart."""
    from redis.exceptions import RedisError

    with server.capture_signals():  # also while starting: what has been started is then ended in order
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(app.router.lifespan_context(app))
            except (OSError, ValueError, RuntimeError, RedisError) as error:
                raise CannotStart(_said(error)) from error
            gc.freeze()  # else each full collection walks through all libraries, for 70 ms, while streams wait
            if not server.should_exit:
                address, port = listener.getsockname()[:2]
                logging.getLogger("uvicorn.error").info("listening on %s port %d", address, port)
                await server.serve([listener])


def _said(error: Exception) -> str:
    from redis.exceptions import RedisError

    if isinstance(error, RedisError):
        return f"Redis cannot be used ({error}): correct INVOKER_REDIS_URL, or start it"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror} (INVOKER_STATE_DIR is where runs are kept)"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
