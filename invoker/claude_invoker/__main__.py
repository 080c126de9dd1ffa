"""`claude-invoker` and `python -m claude_invoker`: serves, or runs queued jobs; all settings are `INVOKER_*`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import uvicorn
from pydantic import ValidationError

from claude_invoker import __version__
from claude_invoker.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT. 2 for settings that cannot work."""
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
        help="serve: answer HTTP requests (default); worker: run queued jobs, as many workers as wanted",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    command = parser.parse_args(argv).command
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "saq"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = Settings()
        if command == "worker":
            return _work(settings)
        return _serve(settings)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            name = "_".join(map(str, item["loc"])).upper()
            print(f"claude-invoker: {f'INVOKER_{name}: ' if name else ''}{item['msg']}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"claude-invoker: {error}", file=sys.stderr)
        return 2


def _work(settings: Settings) -> int:
    from claude_invoker.worker import serve

    if not settings.redis_url:
        raise ValueError("INVOKER_REDIS_URL is not set: jobs wait in Redis")
    asyncio.run(serve(settings))
    return 0


def _serve(settings: Settings) -> int:
    from claude_invoker.app import create_app

    app = create_app(settings)
    if settings.trust == "open":
        print(
            f"claude-invoker: INVOKER_TRUST=open: anybody on this machine can run the Claude CLI "
            f"by http://{settings.host}:{settings.port}",
            file=sys.stderr,
        )
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.stop_grace_s,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
