"""MessagePack-RPC as Kong 3.9 speaks it.

Kong sends `[0, msgid, "plugin.X", [arg]]` and never pipelines; the server answers `[1, msgid, error, result]`. The
result of HandleEvent and Step is `{"EventId": id, "Data": "ret" | {"Method": m, "Args": [...]}}`. Header values are
bytes: what is not UTF-8 is carried as lone surrogates (PEP 383) in both directions, so that a plugin can refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack

MAX_FRAME = 128 << 20  # a 64 MB body and what comes with it
MAX_ITEMS = 1 << 20  # elements of one array or map: bounds what a forged length can allocate

# One packer for everything small: it keeps its buffer. Bodies go through `pack_large`, which gives it back.
pack: Callable[[Any], bytes] = msgpack.Packer(unicode_errors="surrogateescape").pack
# Exactly one frame; anything else raises, and goes to `Decoder`. Options would cost as much as the decoding.
unpack: Callable[[bytes], Any] = msgpack.unpackb

REQUEST = b"\x94\x00"  # then msgid, method, arguments
REPLY = b"\x94\x01"  # then msgid, error, result
RESULT = b"\xc0\x82"  # no error; a map of EVENT_ID + id and DATA + value
EVENT_ID = b"\xa7EventId"
DATA = b"\xa4Data"
RET = DATA + b"\xa3ret"

# Kong's usual frames, told by their constant parts instead of decoded: `REQUEST msgid` and then one of
#   a method of STEPS and VALUE_FIRST value EVENT_ID id, or ID_FIRST id DATA value (its key order is each worker's
#   own), or ID_ONLY id where the value is nil;
#   HANDLE_EVENT rest.
# Whatever looks otherwise is decoded.
_KINDS = ("", "Service", "Consumer", "Route", "Plugin", "Credential", "MemoryStats", "MultiMap")
STEP_METHODS = tuple(f"plugin.Step{kind}" for kind in _KINDS)
STEPS = frozenset(map(pack, STEP_METHODS))
VALUE_FIRST = b"\x91\x82" + DATA
ID_FIRST = b"\x91\x82" + EVENT_ID
ID_ONLY = b"\x91\x81"
NIL = b"\xc0"
HANDLE_EVENT = b"\xb2plugin.HandleEvent\x91"
ID_LENGTH = len(EVENT_ID) + 9  # ids are of eight bytes
# Where the method begins, by the first byte of msgid (Kong sends whole numbers as the shortest int); 0: not known.
METHOD_AT = bytes({0xCC: 4, 0xCD: 5, 0xCE: 7, 0xCF: 11}.get(first, 3 if first < 0x80 else 0) for first in range(256))


def pack_large(value: Any) -> bytes:
    """Like `pack`, without keeping a buffer of that size."""
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed


def call_part(method: str) -> bytes:
    """The constant middle of a PDK call; the packed argument array follows."""
    return DATA + b"\x82\xa6Method" + pack(method) + b"\xa4Args"


UNAVAILABLE = call_part("kong.response.exit") + pack([503, {"message": "service temporarily unavailable"}])


def event_key(event_id: int) -> bytes:
    """How an event is known: its EventId as it ends Kong's frames."""
    return EVENT_ID + pack(event_id)


def result(msgid: bytes, value: Any) -> bytes:
    return REPLY + msgid + b"\xc0" + pack_large(value)


def error(msgid: bytes, text: str) -> bytes:
    return REPLY + msgid + pack(text) + b"\xc0"


class Decoder:
    """Frames that do not arrive whole in one read, or that `unpack` refuses (bytes that are not UTF-8)."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            unicode_errors="surrogateescape",
            strict_map_key=False,
            max_buffer_size=MAX_FRAME,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
        self._fed = self._whole = 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields whole frames. Raises any Exception for what is no MessagePack or beyond the bounds."""
        self._fed += len(data)
        self._unpacker.feed(data)
        for frame in self._unpacker:
            self._whole = self._unpacker.tell()
            yield frame

    @property
    def empty(self) -> bool:
        """Nothing of a next frame has come yet."""
        return self._whole == self._fed
