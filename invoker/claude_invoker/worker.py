"""`kong-claude worker` and `python -m claude_invoker.worker`: runs queued jobs until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from pydantic import ValidationError

from claude_invoker.jobs.queue import open_queue
from claude_invoker.jobs.runner import Runner
from claude_invoker.jobs.store import Store, connect
from claude_invoker.ledger import Ledger
from claude_invoker.runs.engine import Engine
from claude_invoker.settings import Settings


async def serve(settings: Settings) -> None:
    """Takes jobs until SIGTERM or SIGINT; what runs then is cancelled and settled."""
    assert settings.redis_url is not None
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ledger = Ledger(settings.redis_url)
    redis = connect(settings.redis_url)
    queue = open_queue(settings.redis_url)
    async with Engine(settings, ledger) as engine:
        async with Runner(settings, engine, Store(redis, settings.tier_priority), queue).serving():
            logging.getLogger(__name__).info("worker ready, %d runs at once", settings.worker_concurrency)
            await stop.wait()
    await queue.disconnect()
    await redis.aclose()
    await ledger.close()


def main() -> int:
    """2 for settings that cannot work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("saq").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings()
        if not settings.redis_url:
            raise ValueError("INVOKER_REDIS_URL is not set: jobs wait in Redis")
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            print(
                f"kong-claude worker: INVOKER_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}", file=sys.stderr
            )
        return 2
    except ValueError as error:
        print(f"kong-claude worker: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(settings))
    except (OSError, ValueError) as error:
        print(f"kong-claude worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
