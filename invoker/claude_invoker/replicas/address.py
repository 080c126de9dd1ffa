"""Where other replicas reach this one."""

from __future__ import annotations

import socket

from claude_invoker.settings import Settings

_ANY = ("0.0.0.0", "::")


def address(settings: Settings) -> str:
    """A URL without a path. Raises OSError where this machine does not know its own address."""
    if settings.replica_url:
        return settings.replica_url
    host = settings.host
    if host in _ANY:
        try:
            host = socket.gethostbyname(socket.gethostname())
        except OSError as error:
            raise OSError(f"set INVOKER_REPLICA_URL: this machine's own address is unknown ({error})") from error
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
