"""`python -m kong_claude_local.standin --port N [--record FILE] [--chunk-delay-ms MS]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from kong_claude_local.standin.server import StandIn


async def _run(stand_in: StandIn, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with stand_in.running(port):
        print(f"stand-in of the Messages API on {stand_in.url}: answers are canned", flush=True)
        await stop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kong_claude_local.standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--record", type=Path, help="append one JSON line per request to this file")
    parser.add_argument("--charges", type=Path, help="append one JSON line per answer that is charged to this file")
    parser.add_argument("--chunk-delay-ms", type=float, default=0.0, help="pause between streamed chunks")
    parser.add_argument("--any-interface", action="store_true", help="allow other addresses: only inside a container")
    options = parser.parse_args()
    stand_in = StandIn(
        host=options.host,
        record=options.record,
        charges=options.charges,
        chunk_delay_ms=options.chunk_delay_ms,
        any_interface=options.any_interface,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(stand_in, options.port))
    except ValueError as error:
        print(f"stand-in: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"stand-in: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
