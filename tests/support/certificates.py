"""The certificates of the system, read once for all clients of a test process.

Each client of httpx reads them, and each `httpx.get` is one: 22 ms of a core, also towards 127.0.0.1. Tests make thousands of
them, and ask again and again until a process answers.
"""

from __future__ import annotations

import functools
import os
import ssl
from typing import Any

import httpx
from httpx._transports import default


def read_once() -> None:
    """For clients that name no certificates of their own."""
    setattr(default, "create_ssl_context", _context)  # noqa: B010 (not one of httpx's public names)


def _context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is not True or cert is not None:
        return httpx.create_ssl_context(verify, cert, trust_env)
    return _usual(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _usual(trust_env: bool, *_places: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)
