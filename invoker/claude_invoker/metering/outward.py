"""Asks the API, through a proxy where `outbound_proxy` names one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable

import aiohttp
import certifi
from yarl import URL

from claude_invoker.metering.wire import Upstream

_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10.0)
_KEPT_S = 50.0
"""How long an idle connection is kept: the next request of a conversation needs no handshake. Servers keep them for a
minute and more; one that is closed while a request leaves fails it, and it is not sent twice."""
_MAX_UNREAD = 1 << 15
"""Bytes of an answer that are read ahead of whom they are for; beyond twice that the API waits."""
_MAX_LINE = 1 << 16

Headers = Iterable[tuple[bytes, bytes]]


class Outward:
    """Asks the API, by connections that are kept. Reads no environment, takes each proxy for its address alone, keeps
    no cookies, follows no redirects and sends nothing twice. To be made where a loop runs, and closed."""

    def __init__(self, upstreams: Iterable[Upstream], certificates: str | None = None) -> None:
        """`certificates`: a file of authorities that are trusted beside the usual ones. Raises OSError, ssl.SSLError
        for one that cannot be read."""
        context = ssl.create_default_context(cafile=certifi.where())
        context.set_alpn_protocols(["http/1.1"])
        if certificates is not None:
            context.load_verify_locations(cafile=certificates)
        self._proxies = {each.base_url.rstrip("/"): each.proxy for each in upstreams}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context, limit=0, keepalive_timeout=_KEPT_S, resolver=aiohttp.ThreadedResolver()
            ),
            timeout=_TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_MAX_UNREAD,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
        )

    async def post(
        self, base_url: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> aiohttp.ClientResponse:
        """The answer, of which the head is there; the caller reads and closes it. `target`: path and query. The length
        of a body that is no bytes is among `headers`. Raises aiohttp.ClientError, TimeoutError."""
        answer = await self._session.post(
            URL(base_url + target, encoded=True),
            headers=[(name.decode(), _text(value)) for name, value in headers],
            data=body,
            proxy=self._proxies.get(base_url),
            allow_redirects=False,
        )
        if answer.status < 200:  # 101: what follows is no HTTP, and whoever passes it on would say so to its client
            answer.close()
            raise aiohttp.ClientPayloadError("the answer is no HTTP")
        _end_with_its_connection(answer)
        return answer

    async def close(self) -> None:
        await self._session.close()


def _end_with_its_connection(answer: aiohttp.ClientResponse) -> None:
    """Where something comes that is no HTTP aiohttp closes the connection, and who reads the answer waits for ever."""
    protocol = None if answer.connection is None else answer.connection.protocol
    closed = None if protocol is None else protocol.closed
    if closed is None:
        return
    content = answer.content

    def end(_: object) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the answer is no HTTP"))

    def forget() -> None:
        closed.remove_done_callback(end)

    closed.add_done_callback(end)
    content.on_eof(forget)


def _text(value: bytes) -> str:
    """A header's, which is sent as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
