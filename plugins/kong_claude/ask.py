"""GET from an address that is `http://host:port` or, as a local stack's Admin API, `unix:/path/of/the.sock`."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(address: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body; `timeout` in seconds. Raises OSError where nothing answers, ValueError for no address."""
    try:
        if address.startswith("unix:"):
            connection = _UnixConnection(address.removeprefix("unix:"), timeout)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()
        with urllib.request.urlopen(address.rstrip("/") + path, timeout=timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except HTTPException as error:
        raise OSError(f"no answer in HTTP ({type(error).__name__})") from error


def answers(address: str, path: str, timeout: float = 3) -> bool:
    """True where a GET is answered with 2xx within `timeout` seconds."""
    try:
        return 200 <= get(address, path, timeout)[0] < 300
    except (OSError, ValueError):
        return False
