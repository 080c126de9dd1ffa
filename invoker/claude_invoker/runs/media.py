"""Which media type a file of a run has: by its content; its name only tells kinds of text apart. Pure."""

from __future__ import annotations

import codecs
import functools
import mimetypes
import os
from collections.abc import Iterator

import puremagic
import puremagic.main as magic

HEAD = 262_144
"""Bytes of a file's beginning by which it is judged."""
_OFFICE = "application/vnd.openxmlformats-officedocument"
_OFFICE_KINDS = (
    (b"word/", f"{_OFFICE}.wordprocessingml.document"),
    (b"xl/", f"{_OFFICE}.spreadsheetml.sheet"),
    (b"ppt/", f"{_OFFICE}.presentationml.presentation"),
)
_LOCAL = b"PK\x03\x04"
OPEN_DOCUMENT = "application/vnd.oasis.opendocument."
_SAID = (b"application/epub+zip", OPEN_DOCUMENT.encode())
"""What the first entry of an archive may say that it is."""
_TEXT_TYPES = {
    ".md": "text/markdown",
    ".csv": "text/csv",
    ".json": "application/json",
    ".ipynb": "application/x-ipynb+json",
    ".html": "text/html",
    ".htm": "text/html",
    ".svg": "image/svg+xml",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    # To the machine's own list these are films, or translations of Qt's.
    ".ts": "text/x-typescript",
    ".tsx": "text/x-typescript",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@functools.cache
def types() -> frozenset[str]:
    """All that a file may be said to be, without parameters; of those that say it themselves (OpenDocument) there are
    more, below `OPEN_DOCUMENT`."""
    multi = (each for several in magic.multi_part_dict.values() for each in several)
    known = (magic.magic_header_array, magic.magic_footer_array, magic.extension_only_array, multi)
    by_content = {str(each.mime_type) for several in known for each in several if each.mime_type}
    mimetypes.init()
    texts = {kind for kind in mimetypes.types_map.values() if kind.startswith("text/")}
    ours = {"application/octet-stream", "application/zip", "application/wasm", "application/epub+zip", "text/plain"}
    return frozenset(by_content | texts | ours | {kind for _, kind in _OFFICE_KINDS} | set(_TEXT_TYPES.values()))


def may_be(wanted: str) -> bool:
    """Whether any file is of that type, or of that range such as `image/*`."""
    if wanted.startswith(OPEN_DOCUMENT):
        return True
    if wanted.endswith("/*"):
        return any(kind.startswith(wanted.removesuffix("*")) for kind in types())
    return wanted in types()


def content_type(path: str, head: bytes) -> str:
    """`head`: the first `HEAD` bytes."""
    if head.startswith(_LOCAL):
        return _of_archive(head)
    if head.startswith(b"\0asm"):
        return "application/wasm"
    encoding = _encoding(head)
    if encoding is None:
        try:
            return str(puremagic.magic_string(head)[0].mime_type or "application/octet-stream")
        except (puremagic.PureError, IndexError, ValueError):
            return "application/octet-stream"
    found = _of_text(path)
    # What is not said is taken for UTF-8.
    return found if encoding == "utf-8" or not found.startswith("text/") else f"{found}; charset={encoding}"


def essence(media_type: str) -> str:
    """Without parameters."""
    return media_type.partition(";")[0].strip()


def _of_text(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    guessed = _TEXT_TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "text/plain"
    return guessed if guessed.startswith("text/") or suffix in _TEXT_TYPES else "text/plain"


def _encoding(head: bytes) -> str | None:
    """None: it is no text."""
    if head.startswith(_UTF_16) and not head.startswith(_UTF_32):
        return "utf-16" if _decodes(head[: min(4096, len(head) // 2 * 2)], "utf-16") else None
    if b"\0" in head or head.startswith(b"%PDF-"):
        return None
    return "utf-8" if _decodes(head[:4096], "utf-8") else None


def _decodes(head: bytes, encoding: str) -> bool:
    """A character that is cut at the end is none that is wrong."""
    try:
        head.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start > 4096 - 4
    return True


def _of_archive(head: bytes) -> str:
    names = set()
    for number, (name, content) in enumerate(_entries(head)):
        if number == 0 and name == b"mimetype" and content.startswith(_SAID) and content.isascii():
            return content.decode()
        names.add(name)
    if b"[Content_Types].xml" in names:
        for above, kind in _OFFICE_KINDS:
            if any(name.startswith(above) for name in names):
                return kind
    return "application/zip"


def _entries(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names of an archive's files, as far as they are in its beginning, and what is said of each in so many bytes where
    it is not compressed."""
    at = 0
    while at >= 0:
        length, extra = (int.from_bytes(head[at + place : at + place + 2], "little") for place in (26, 28))
        size = int.from_bytes(head[at + 18 : at + 22], "little")
        begins = at + 30 + length
        is_stored = head[at + 8 : at + 10] == b"\0\0"
        content = head[begins + extra : begins + extra + size] if is_stored and size <= 100 else b""
        yield head[at + 30 : begins], content
        at = head.find(_LOCAL, at + len(_LOCAL))
