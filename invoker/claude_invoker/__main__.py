"""`claude-invoker` and `python -m claude_invoker`: serves the invoker; all settings are `INVOKER_*`."""

from __future__ import annotations

import logging
import sys

import uvicorn
from pydantic import ValidationError

from claude_invoker.app import create_app
from claude_invoker.settings import Settings


def main() -> int:
    """Serves until SIGTERM or SIGINT. 2 for settings that cannot work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "saq"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = Settings()
        app = create_app(settings)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            name = "_".join(map(str, item["loc"])).upper()
            print(f"claude-invoker: {f'INVOKER_{name}: ' if name else ''}{item['msg']}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"claude-invoker: {error}", file=sys.stderr)
        return 2
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
