"""Fetches a small JSON document over HTTP: no redirects, a bound on size and on time."""

from __future__ import annotations

import json
import time
from typing import Any

import urllib3

MAX_DOCUMENT = 512 * 1024  # bytes

# A connection per fetch: fetches are minutes apart, and a pooled one could be half-dead.
_HEADERS = {"Accept": "application/json", "Connection": "close", "User-Agent": "kong-claude"}


class FetchError(Exception):
    """The document is not to be had. The text is for the gateway's log."""


def fetch_json(url: str, timeout: float) -> Any:
    """The JSON document at `url` within `timeout` seconds. Raises FetchError.

    Redirects are errors: a key set's place is configured, or named by a document fetched from a configured place.
    """
    deadline = time.monotonic() + timeout
    with urllib3.PoolManager(num_pools=1) as pool:
        try:
            response = pool.request(
                "GET",
                url,
                headers=_HEADERS,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(total=timeout),
                preload_content=False,
                decode_content=False,
            )
            try:
                if response.status != 200:
                    raise FetchError(f"{url} answered {response.status}")
                data = b""
                while chunk := response.read1(64 * 1024):
                    data += chunk
                    if len(data) > MAX_DOCUMENT:
                        raise FetchError(f"{url} sent more than {MAX_DOCUMENT} bytes")
                    if time.monotonic() > deadline:
                        raise FetchError(f"{url} took longer than {timeout:g} s")
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise FetchError(f"{url} cannot be fetched: {type(error).__name__}") from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FetchError(f"{url} did not send JSON") from error
