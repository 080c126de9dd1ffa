"""Request heads as nginx 1.25 parses them: lenient where it is, refused where it refuses.

Sources: nginx src/http/ngx_http_parse.c, ngx_http_request.c; RFC 9112 where nginx follows it. Pure: bytes in,
`Head` out. The order of checks is nginx's, because what was parsed before an error decides how Kong words it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from minikong.context import Headers

_METHOD = re.compile(rb"[A-Z_-]*")
_ABSOLUTE = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]*://"
    rb"([A-Za-z0-9.-]*|\[[0-9A-Za-z:._~!$&'()*+,;=-]*\])(?::[0-9]*)?(?=[/? ]|$)"
)
_EARLY_TARGET = re.compile(
    rb"(?:/[^\x00-\x20\x7f]*|[A-Za-z][A-Za-z0-9+.-]*(?::(?:/(?:/(?:[A-Za-z0-9.-]*|\[[^\x00-\x20\x7f/?]*\]?)"
    rb"(?::[0-9]*)?(?:[/?][^\x00-\x20\x7f]*)?)?)?)?)$"
)
_EARLY_VERSION = re.compile(rb"(?:H|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.|HTTP/1\.[0-9]{1,3} *\r?|\r)?$")
_TARGET_BAD = re.compile(rb"[\x00-\x1f\x7f]")
_VERSION = re.compile(rb"HTTP/([1-9][0-9]*)\.([0-9]{1,3}) *\r?$")
_HEADER = re.compile(rb"([^\x00-\x20\x7f:][^\x00-\x20\x7f:]*)(?:: *([^\x00]*))?$")
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-]+$")
_COMPLEX = re.compile(rb"%|//|/\.|#|^\?")
_UNIQUE = frozenset(
    (
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-match",
        b"if-none-match",
        b"content-length",
        b"content-range",
        b"if-range",
        b"transfer-encoding",
        b"expect",
        b"authorization",
    )
)
_DIGITS = re.compile(rb"[0-9]+$")
MAX_OFFSET = 2**63 - 1
MAX_HEADERS = 1000  # header lines, without those whose name nginx does not know as one


@dataclass(slots=True)
class Head:
    """A request head. With `error` set it holds what nginx had parsed when it gave up."""

    method: str = ""
    target: bytes = b"/"  # nginx $request_uri: path and query, without scheme and authority
    uri: bytes = b"/"  # nginx $uri
    version: tuple[int, int] = (1, 0)
    headers: Headers = field(default_factory=Headers)
    host: str = ""  # lower case, without the port; empty if the client named none
    length: int | None = None  # Content-Length
    chunked: bool = False
    keep_alive: bool = False
    expect_continue: bool = False
    error: int = 0  # 400, 405, 414, 494, 501, 505; 0 = fine
    size: int = 0  # bytes of the head on the wire
    preread: int = 0  # free bytes of nginx's header buffer behind the head


class BadHead(Exception):
    """Why a head is refused: the status nginx finalizes the request with."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def parse(data: bytes | bytearray, buffers: tuple[int, int], first: int = 1024) -> Head | None:
    """The head at the start of `data`; None if it is incomplete and so far fine.

    `buffers` is large_client_header_buffers (number, size), `first` is client_header_buffer_size.
    """
    head = Head()
    start = 0
    while start < len(data) and data[start] in b"\r\n":
        start += 1
    if start == len(data):
        return None
    window = _Window(first, buffers)
    try:
        end = data.find(b"\n", start)
        if end < 0:
            _early_request_line(bytes(data[start:]))
            window.take(start, len(data), complete=False, line=True)
            return None
        if end >= window.end:
            _early_request_line(bytes(data[start : min(end, start + buffers[1])]))  # before it is too long
        window.take(start, end + 1, complete=True, line=True)
        _request_line(head, bytes(data[start:end]))
        head.size = end + 1
        if head.version < (1, 0):
            head.preread = 0
            return head
        if not _header_lines(head, data, end + 1, window):
            return None
        head.preread = max(0, window.end - head.size)
        _check(head)
    except BadHead as bad:
        head.error = bad.status
    return head


class _Window:
    """Which part of the stream nginx's current header buffer covers: decides 414 and 494."""

    def __init__(self, first: int, buffers: tuple[int, int]) -> None:
        self.end = first
        self.left, self.size = buffers

    def take(self, start: int, end: int, *, complete: bool, line: bool) -> None:
        """Moves on over the bytes start..end of one line. Raises BadHead 414 (request line) or 494."""
        while end > self.end or (end == self.end and not complete):
            if start < self.end and self.end - start >= self.size:
                raise BadHead(414 if line else 494)
            if self.left == 0:
                raise BadHead(414 if line else 494)
            self.left -= 1
            self.end = (start if start < self.end else self.end) + self.size


def _early_request_line(line: bytes) -> None:
    """Refuses an unfinished request line that cannot become one (nginx answers before the line ends)."""
    method = _METHOD.match(line)
    end = method.end() if method else 0
    if end == len(line):
        return
    if end == 0 or line[end] != 0x20:
        raise BadHead(400)
    target, space, version = line[end:].lstrip(b" ").partition(b" ")
    version = version.lstrip(b" ")
    if not space:
        target = target.removesuffix(b"\r")
    if (target and not _EARLY_TARGET.match(target)) or not _EARLY_VERSION.match(version):
        if re.match(rb"HTTP/([2-9]|1[0-9])", version):
            raise BadHead(505)
        raise BadHead(400)


def _request_line(head: Head, line: bytes) -> None:
    method_end = line.find(b" ")
    method = line[: max(method_end, 0)]
    if not method or _METHOD.fullmatch(method) is None:
        raise BadHead(400)
    rest = line[method_end:].lstrip(b" ")
    head.method = method.decode("ascii")
    if not rest.startswith(b"/"):
        match = _ABSOLUTE.match(rest)
        if match is None:
            raise BadHead(400)
        authority, rest = match[1], rest[match.end() :]
        if rest[:1] not in (b"/", b"?"):
            rest = b"/" + rest
    else:
        authority = None
    target, space, version = rest.partition(b" ")
    if space:
        version = version.lstrip(b" ")
        bare = version in (b"", b"\r")
    else:
        target = target.removesuffix(b"\r")
        bare = True
    if not target or _TARGET_BAD.search(target):
        raise BadHead(400)
    if bare:
        head.version = (0, 9)
        if method != b"GET":
            raise BadHead(400)
    else:
        match = _VERSION.match(version)
        if match is None:
            # the major digit is judged before the rest of the line is seen
            raise BadHead(505 if re.match(rb"HTTP/([2-9]|1[0-9])", version) else 400)
        if int(match[1]) > 1:
            raise BadHead(505)
        minor = int(match[2])
        head.version = (1, minor)
    head.target = target
    head.uri = normal_uri(target)
    if authority is not None:
        head.host = valid_host(authority)


def normal_uri(target: bytes) -> bytes:
    """nginx's $uri of a raw target: percent-decoded, slashes merged, dot segments resolved.

    Raises BadHead(400) for bad escapes, NUL and for `..` above the root.
    """
    if _COMPLEX.search(target) is None:
        return target.partition(b"?")[0]
    path = re.split(rb"[?#]", target, maxsplit=1)[0]
    decoded = bytearray()
    at = 0
    while (percent := path.find(b"%", at)) >= 0:
        decoded += path[at:percent]
        escape = path[percent + 1 : percent + 3]
        if re.fullmatch(rb"[0-9A-Fa-f]{2}", escape) is None or escape == b"00":
            raise BadHead(400)
        decoded.append(int(escape, 16))
        at = percent + 3
    decoded += path[at:]
    out: list[bytes] = []
    segments = bytes(decoded).split(b"/")
    for segment in segments[1:]:
        if segment == b"..":
            if not out:
                raise BadHead(400)
            out.pop()
        elif segment not in (b"", b"."):
            out.append(segment)
    tail = b"/" if out and segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(out) + tail


def valid_host(value: bytes) -> str:
    """The host of a Host header or authority, lower case and without port. Raises BadHead(400)."""
    host_end: int | None = None
    literal = False
    dot = -2
    for i, ch in enumerate(value):
        if ch == 0x2E:
            if dot == i - 1:
                raise BadHead(400)
            dot = i
        elif ch == 0x3A:
            if host_end is None and not literal:
                host_end = i
        elif ch == 0x5B and i == 0:
            literal = True
        elif ch == 0x5D:
            if literal and host_end is None:
                host_end, literal = i + 1, False
        elif ch == 0x2F or ch <= 0x20 or ch == 0x7F:
            raise BadHead(400)
    end = len(value) if host_end is None else host_end
    if dot == end - 1:
        end -= 1
    if end <= 0:
        raise BadHead(400)
    return value[:end].lower().decode("latin-1")


def _header_lines(head: Head, data: bytes | bytearray, at: int, window: _Window) -> bool:
    """Reads header lines into `head`; False while the empty line has not come."""
    lines = head.headers.lines
    seen: set[bytes] = set()
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            window.take(at, len(data), complete=False, line=False)
            _early_header_line(bytes(data[at:]))
            return False
        window.take(at, end + 1, complete=True, line=False)
        line = bytes(data[at:end])
        at = end + 1
        if line in (b"", b"\r"):
            head.size = at
            return True
        _header_line(head, line.rstrip(b"\r"), lines, seen)


def _early_header_line(line: bytes) -> None:
    """Refuses an unfinished header line that cannot become one."""
    bare = line.rstrip(b"\r")
    if b"\r" in bare or (bare and not _HEADER.match(bare)):
        raise BadHead(400)
    if len(line) > 1 and not bare:
        raise BadHead(400)


def _header_line(head: Head, line: bytes, lines: list[tuple[bytes, bytes]], seen: set[bytes]) -> None:
    match = _HEADER.match(line)
    if match is None or b"\r" in line:
        raise BadHead(400)
    name, value = match[1], (match[2] or b"").rstrip(b" ")
    if _PLAIN_NAME.match(name) is None:
        return  # ignore_invalid_headers on
    if len(lines) == MAX_HEADERS:
        raise BadHead(494)
    lines.append((name, value))
    low = name.lower()
    if low == b"host":
        if low in seen:
            raise BadHead(400)
        seen.add(low)
        host = valid_host(value)
        if not head.host:
            head.host = host
    elif low in _UNIQUE:
        if low in seen:
            raise BadHead(400)
        seen.add(low)


def _check(head: Head) -> None:
    """What nginx checks once all header lines are there."""
    headers = head.headers
    close = keep = False
    length = encoding = expect = None
    host = False
    for name, value in headers.lines:
        low = name.lower()
        if low == b"content-length":
            length = value
        elif low == b"transfer-encoding":
            encoding = value
        elif low == b"connection":
            token = value.lower()
            if b"close" in token:
                close, keep = True, False
            elif b"keep-alive" in token:
                close, keep = False, True
        elif low == b"expect":
            expect = value
        elif low == b"host":
            host = True
    if not host and head.version > (1, 0):
        raise BadHead(400)
    if length is not None:
        if _DIGITS.match(length) is None or int(length[:20]) > MAX_OFFSET or len(length.lstrip(b"0")) > 19:
            raise BadHead(400)
        head.length = int(length)
    if encoding is not None:
        if head.version < (1, 1):
            raise BadHead(400)
        if encoding.lower() != b"chunked":
            raise BadHead(501)
        if length is not None:
            raise BadHead(400)
        head.chunked = True
    if head.method in ("CONNECT", "TRACE"):
        raise BadHead(405)
    head.keep_alive = keep or (not close and head.version > (1, 0))
    if expect is not None and head.version >= (1, 1):
        head.expect_continue = expect.lower() == b"100-continue"
