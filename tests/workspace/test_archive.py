"""Archives: what comes in stays where it belongs and within its bounds, what goes out is what was there."""

from __future__ import annotations

import base64
import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_contract.claims import UNCLAMPED
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.settings import Settings
from claude_invoker.workspace import files
from claude_invoker.workspace.archive import Bounds, TooLarge, pack, unpack
from claude_invoker.workspace.files import NoPlace

USER = 3_300_000 if os.geteuid() == 0 else None
SMALL = Bounds(entries=10, bytes=100_000)
Made = Callable[..., bytes]


def zipped(*members: tuple[str, bytes], mode: int = 0o100644) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for path, content in members:
            info = zipfile.ZipInfo(path)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content)
    return made.getvalue()


def tarred(*members: tuple[str, bytes], mode: int = 0o100644, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as opened:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.mode, info.type, info.linkname = mode & 0o777, kind, link
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            opened.addfile(info, io.BytesIO(content))
    return made.getvalue()


MAKERS = pytest.mark.parametrize("made", [zipped, tarred])


@MAKERS
def test_an_archive_is_unpacked_for_the_run(tmp_path: Path, made: Made) -> None:
    (tmp_path / "old").write_text("old")
    unpack(tmp_path, made(("a/b/c", b"x"), ("old", b"new"), ("\u00e9 y", b"\0"), mode=0o100755), USER, SMALL)
    assert (tmp_path / "a/b/c").read_bytes() == b"x" and (tmp_path / "old").read_bytes() == b"new"
    assert (tmp_path / "\u00e9 y").read_bytes() == b"\0"
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o700, "a script of a caller's starts"
    if USER is not None:
        assert {path.stat().st_uid for path in (tmp_path / "a").rglob("*")} == {USER}


def test_an_archive_as_tar_makes_it_has_directories(tmp_path: Path) -> None:
    (tmp_path / "from" / "d" / "empty").mkdir(parents=True)
    (tmp_path / "from" / "d" / "f").write_text("x")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as opened:
        opened.add(tmp_path / "from", ".")
    (tmp_path / "to").mkdir()
    unpack(tmp_path / "to", made.getvalue(), None, SMALL)
    assert (tmp_path / "to/d/f").read_text() == "x"


PATHS = [
    "../out",
    "/tmp/out",
    "a/../../out",
    "a//b",
    "a\\..\\out",
    ".git/config",
    "sub/.GIT/hooks/x",
    "git~1/x",
    "a\nb",
]


@MAKERS
@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_and_nothing_is_written_before_all_was_looked_at(
    tmp_path: Path, made: Made, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    hostile = made(("fine", b"x"), (path, b"x"))
    with pytest.raises(NoPlace):
        unpack(work, hostile, None, SMALL)
    assert not list(work.iterdir()) and [found.name for found in tmp_path.iterdir()] == ["work"]
    if path == "../out":
        with monkeypatch.context() as without:
            without.setattr(files.Names, "problem_of", lambda self, path: None)
            without.setattr(files, "_below", lambda at, name, path, uid: os.open(name, os.O_DIRECTORY, dir_fd=at))
            unpack(work, hostile, None, SMALL)
        assert (tmp_path / "out").exists(), "the control"


def test_no_link_comes_in_and_none_is_gone_through(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
        with pytest.raises(NoPlace):
            unpack(work, tarred(("a", b""), kind=kind, link="/etc/passwd"), None, SMALL)
    with pytest.raises(NoPlace, match="no regular file"):
        unpack(work, zipped(("a", b"/etc/passwd"), mode=0o120777), None, SMALL)
    (work / "out").symlink_to(tmp_path)
    with pytest.raises(NoPlace):
        unpack(work, zipped(("out/x", b"x")), None, SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


def with_size(made: bytes, says: int) -> bytes:
    """A .zip of one entry that says that it has so many bytes."""
    at = made.index(b"PK\x01\x02") + 24
    return made[:at] + says.to_bytes(4, "little") + made[at + 4 :]


def headers(name: bytes) -> bytes:
    """A .tar.gz whose header of pax says that it is as long as that."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(name)
    return gzip.compress(info.tobuf() + name)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip": (lambda: zipped(("a", bytes(200_000))), "more than 100,000 bytes"),
    "tar": (lambda: tarred(("a", bytes(200_000))), "more than 100,000 bytes"),
    "zip-parts": (lambda: zipped(*((f"{n}", bytes(60_000)) for n in range(2))), "more than 100,000 bytes"),
    "tar-parts": (lambda: tarred(*((f"{n}", bytes(60_000)) for n in range(2))), "more than 100,000 bytes"),
    "zip-lies": (lambda: with_size(zipped(("a", bytes(200_000))), 10), "broken"),
    "tar-headers": (lambda: headers(bytes(50 << 20)), "more than 100,000 bytes"),
    "zip-entries": (lambda: zipped(*((f"{n}", b"") for n in range(11))), "more than 10 entries"),
    "tar-entries": (lambda: tarred(*((f"{n}", b"") for n in range(11))), "more than 10 entries"),
    "zip-directories": (lambda: zipped(("/".join("abcdefghijk"), b"x")), "more than 10 files and directories"),
    "tar-directories": (lambda: tarred(("/".join("abcdefghijk"), b"x")), "more than 10 files and directories"),
    "zip-one-name": (lambda: zipped(("Docs/a", b"x"), ("docs/b", b"y")), "one name with Docs"),
    "tar-one-name": (lambda: tarred(("caf\u00e9", b"x"), ("cafe\u0301", b"y")), "one name with"),
    "zip-twice": (lambda: zipped(("a", b"x"), ("a", b"y")), "twice"),
    "tar-twice": (lambda: tarred(("a", b"x"), ("a", b"y")), "twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_more_than_it_seems_is_refused_and_leaves_nothing(tmp_path: Path, bomb: str) -> None:
    made, said = BOMBS[bomb]
    with pytest.raises(NoPlace, match=said):
        unpack(tmp_path, made(), None, SMALL)
    assert not list(tmp_path.iterdir())
    if bomb in ("zip", "tar", "zip-entries", "tar-entries", "zip-directories", "tar-directories"):
        unpack(tmp_path, made(), None, Bounds())  # the control: it is the bound


@pytest.mark.parametrize(
    ("made", "said"),
    [
        # Made in the test: what is in a parameter is in its name, and a .gz says when it was made.
        pytest.param(lambda: headers(bytes(50 << 20)), "a header in it is too long", id="tar"),
        pytest.param(
            lambda: zipped(*((f"{n:0>60000}", b"") for n in range(200))),
            "the list of what is in it is too long",
            id="zip",
        ),
    ],
)
def test_what_readers_would_have_in_memory_at_once_is_bounded(
    tmp_path: Path, made: Callable[[], bytes], said: str
) -> None:
    """Whatever all of it together may have."""
    sent = tmp_path / "sent"
    sent.write_bytes(made())
    tracemalloc.start()
    try:
        with pytest.raises(NoPlace, match=said):
            unpack(tmp_path, sent, None, Bounds(bytes=1 << 30))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@MAKERS
def test_a_large_file_in_an_archive_is_never_in_memory(tmp_path: Path, made: Made) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(made(("a", bytes(60 << 20))))
    tracemalloc.start()
    try:
        unpack(tmp_path, sent, None, Bounds())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size == 60 << 20


CUT_OFF = [zipped(("a", b"x" * 99))[:-30], tarred(("a", os.urandom(99)))[:-40]]


@pytest.mark.parametrize("broken", [b"", b"hello", b"PK\x03\x04", b"\x1f\x8b", *CUT_OFF], ids=range(6))
def test_what_is_no_archive_is_said(tmp_path: Path, broken: bytes) -> None:
    with pytest.raises(NoPlace):
        unpack(tmp_path, broken, None, SMALL)


def test_all_that_was_left_is_in_one_file(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "d").mkdir(parents=True)
    (work / "d" / "f").write_bytes(b"x" * 100)
    (work / "d" / "run").write_text("x")
    (work / "d" / "run").chmod(0o700)
    (work / "link").symlink_to("/etc/passwd")
    (work / ".git").mkdir()
    (work / ".git" / "config").write_text("x")
    os.mkfifo(work / "pipe")
    found = pack(work, tmp_path / "kept", 10_000)
    assert found.path == "tree.tar.gz" and found.size == (tmp_path / "kept" / found.path).stat().st_size
    with tarfile.open(tmp_path / "kept" / found.path) as opened:
        told = {info.name: (info.type, info.mode, info.linkname, info.uid) for info in opened}
        content = opened.extractfile("d/f")
        assert content is not None and content.read() == b"x" * 100
    assert told == {
        "d": (tarfile.DIRTYPE, 0o755, "", 0),
        "d/f": (tarfile.REGTYPE, 0o644, "", 0),
        "d/run": (tarfile.REGTYPE, 0o755, "", 0),
        "link": (tarfile.SYMTYPE, 0o755, "/etc/passwd", 0),
    }


@pytest.mark.parametrize("what", ["random", "holes"])
def test_what_is_too_much_for_an_archive_leaves_none(tmp_path: Path, what: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with (work / "a").open("wb") as file:
        file.write(os.urandom(20_000)) if what == "random" else file.truncate(1 << 40)
    with pytest.raises(TooLarge):
        pack(work, tmp_path / "kept", 10_000)
    assert not list((tmp_path / "kept").iterdir())
    if what == "random":
        pack(work, tmp_path / "kept", 30_000)  # the control


def test_an_archive_counts_as_what_a_run_holds_in_memory() -> None:
    asked = {"prompt": "x", "tools": []}
    settings, boundary = Settings(trust="open"), Boundary(Strength.USER)
    sent = base64.b64encode(bytes(30_000)).decode()
    without = plan(InvokeRequest.model_validate(asked), UNCLAMPED, settings, boundary)
    chosen = plan(InvokeRequest.model_validate(asked | {"archive": sent}), UNCLAMPED, settings, boundary)
    assert chosen.size >= without.size + 30_000 and chosen.without_input().archive is None
