"""Chunked bodies as nginx reads them (ngx_http_parse_chunked), incrementally; trailers are dropped."""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]+)(?:\r?\n|[; \t])")
_MAX = (2**63 - 1) // 16  # nginx looks before it takes the next digit
_MAX_LINE = 65536  # of one chunk extension or trailer line kept while waiting for its end


class ChunkError(ValueError):
    """The body is not chunked encoding."""


class ChunkedDecoder:
    """Feed raw bytes, take decoded data. `done` after the last chunk and trailer; then `rest` is what follows."""

    __slots__ = ("_line", "_state", "announced", "done", "rest", "size")

    def __init__(self) -> None:
        self._line = b""
        self._state = "size"
        self.size = 0  # bytes left of the current chunk
        self.announced = 0  # sum of the sizes of all chunk heads read so far
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Decoded bytes. Raises ChunkError."""
        if self._line:
            data = self._line + data
            self._line = b""
        out: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self.size]
                out.append(piece)
                at += len(piece)
                self.size -= len(piece)
                if self.size:
                    break
                self._state = "after"
                continue
            end = data.find(b"\n", at)
            line = data[at:] if end < 0 else data[at : end + 1]
            self._check_partial(line)
            if end < 0:
                if len(line) > _MAX_LINE:
                    raise ChunkError("line too long")
                # an extension may be cut short: only its end matters
                self._line = line
                break
            at = end + 1
            self._take_line(line)
        if self.done:
            self.rest = data[at:]
        return b"".join(out)

    def _check_partial(self, line: bytes) -> None:
        if self._state == "after":
            if line not in (b"\r", b"\n", b"\r\n"):
                raise ChunkError("no line end after a chunk")
        elif self._state == "size" and not re.match(rb"[0-9A-Fa-f]+(?:$|[; \t\r\n])", line):
            raise ChunkError("no chunk size")

    def _take_line(self, line: bytes) -> None:
        if self._state == "after":
            self._state = "size"
            return
        bare = line[:-1]
        cr = bare.find(b"\r")
        if cr >= 0 and cr != len(bare) - 1:
            raise ChunkError("bare CR")
        if self._state == "size":
            match = _SIZE.match(line)
            if match is None:
                raise ChunkError("no chunk size")
            digits = match[1].lstrip(b"0")
            if len(digits) > 16 or (size := int(digits or b"0", 16)) > _MAX:
                raise ChunkError("chunk too large")
            if size:
                self.size = size
                self.announced += size
                self._state = "data"
            else:
                self._state = "trailer"
        elif bare in (b"", b"\r"):  # trailer
            self.done = True
