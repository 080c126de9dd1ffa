"""Collecting what a hostile run left, and the log of its events."""

from __future__ import annotations

import asyncio
import codecs
import io
import os
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_invoker.api.files import disposition, satisfiable
from claude_invoker.cli.tree import Discarded, Tree, Workplace, dismantle, prepare
from claude_invoker.cli.walk import delete
from claude_invoker.runs import artifacts
from claude_invoker.runs.artifacts import Bounds, collect, survey
from claude_invoker.runs.events import EventLog
from claude_invoker.runs.media import HEAD, content_type, essence, may_be
from tests.invoker.conftest import as_root
from tests.support.disk import disk

PLENTY = Bounds(10_000_000, 100)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_only_new_regular_files_are_taken(work: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (work / "old.txt").write_text("old")
    (work / "changed.txt").write_text("old")
    before = survey(work)
    (work / "changed.txt").write_text("new text")
    (work / "sub").mkdir()
    (work / "sub" / "new.md").write_text("# new")
    (work / "link").symlink_to(secret)
    (work / "dir-link").symlink_to(tmp_path)
    (work / "hard").hardlink_to(secret)
    os.mkfifo(work / "fifo")
    (work / ".git").mkdir()
    (work / ".git" / "config").write_text("x")
    (work / "bad\nname").write_text("x")
    (work / "bad\udcffname").write_text("x")
    collected = collect(work, before, tmp_path / "kept", PLENTY)
    assert [artifact.path for artifact in collected.kept] == ["changed.txt", "sub/new.md"]
    assert {left.path: left.reason for left in collected.left_out} == {
        "hard": "it has several names (hard links)",
        "bad\\nname": "its name has characters that an answer cannot have, or is too long",
        "bad\\udcffname": "its name has characters that an answer cannot have, or is too long",
    }
    assert (tmp_path / "kept" / "sub" / "new.md").read_text() == "# new"
    assert not list((tmp_path / "kept").rglob("link"))


def test_bounds(work: Path, tmp_path: Path) -> None:
    for number in range(5):
        (work / f"{number}.txt").write_text("x" * 100)
    few = collect(work, {}, tmp_path / "a", Bounds(10_000, 3))
    assert [artifact.path for artifact in few.kept] == ["0.txt", "1.txt", "2.txt"]
    assert [(left.path, "INVOKER_ARTIFACT_MAX_COUNT" in left.reason) for left in few.left_out] == [
        ("3.txt", True),
        ("4.txt", True),
    ]
    small = collect(work, {}, tmp_path / "b", Bounds(250, 100))
    assert (len(small.kept), len(small.left_out)) == (2, 3)
    assert "INVOKER_ARTIFACT_MAX_BYTES" in small.left_out[0].reason


@as_root
def test_what_a_full_disk_does_not_take_is_named(work: Path, tmp_path: Path) -> None:
    """The file was in no list, and half of it stayed on the disk."""
    for name, size in (("a", 1000), ("b", 3 << 20), ("c", 1000)):
        (work / name).write_bytes(os.urandom(size))
    kept = tmp_path / "kept"
    with disk(kept, "2m"):
        collected = collect(work, {}, kept, PLENTY)
        assert [artifact.path for artifact in collected.kept] == ["a", "c"]
        assert [(left.path, left.reason) for left in collected.left_out] == [
            ("b", "it cannot be stored: No space left on device")
        ]
        assert sorted(path.name for path in kept.iterdir()) == ["a", "c"]


def test_what_is_left_out_is_named_within_bounds(work: Path, tmp_path: Path) -> None:
    for number in range(150):
        (work / f"{number:03}\u202e.txt").write_text("x")
    left_out = collect(work, {}, tmp_path / "a", PLENTY).left_out
    assert all(re.fullmatch(r"\d{3}\\u202e\.txt", left.path) for left in left_out[:-1])
    assert len(left_out) == 101 and left_out[-1].reason == "50 more are left out"


OFFICE = "application/vnd.openxmlformats-officedocument"


def zipped(*names: str, **files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (*((name, "<x/>") for name in names), *files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)  # of no time, which would be in the tests' names
    return buffer.getvalue()[:HEAD]


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("x.txt", b"%PDF-1.4 ...", "application/pdf"),
        ("evil.html", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        ("a.md", b"# Title", "text/markdown"),
        ("a.csv", b"a,b", "text/csv"),
        ("a.json", b"{}", "application/json"),
        ("a.png", b"not an image", "text/plain"),
        ("a", b"text", "text/plain"),
        (
            "a.docx",
            zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml"),
            f"{OFFICE}.wordprocessingml.document",
        ),
        ("a", zipped("xl/workbook.xml", "[Content_Types].xml"), f"{OFFICE}.spreadsheetml.sheet"),
        ("a.zip", zipped("ppt/presentation.xml", "[Content_Types].xml"), f"{OFFICE}.presentationml.presentation"),
        ("a.zip", zipped("other"), "application/zip"),
        ("a.docx", zipped("password/list.txt", "keyword/x"), "application/zip"),
        ("a.docx", zipped("word/x.txt"), "application/zip"),
        ("a.docx", zipped(**{"notes.txt": "PK\x03\x04 [Content_Types].xml word/document.xml"}), "application/zip"),
        ("a.zip", zipped(mimetype="application/epub+zip", content="x"), "application/epub+zip"),
        ("a", zipped(mimetype="application/vnd.oasis.opendocument.text"), "application/vnd.oasis.opendocument.text"),
        ("a", zipped(mimetype="text/html"), "application/zip"),
        ("a", zipped("first", mimetype="application/epub+zip"), "application/zip"),
        ("a.zip", b"PK\x03\x04", "application/zip"),
        ("a.ts", b"const a: number = 1", "text/x-typescript"),
        ("a.tsx", b"<A/>", "text/x-typescript"),
        ("a.ipynb", b"{}", "application/x-ipynb+json"),
        ("a.wasm", b"\0asm\1\0\0\0", "application/wasm"),
        ("a.wasm", b"(module)", "text/plain"),
        ("a.txt", "h\u00e9".encode("utf-16"), "text/plain; charset=utf-16"),
        ("a.csv", codecs.BOM_UTF16_BE + "a,b".encode("utf-16-be"), "text/csv; charset=utf-16"),
        ("a.txt", codecs.BOM_UTF16_LE + "\u4e2d\u6587".encode("utf-16-le"), "text/plain; charset=utf-16"),
        ("a.json", "{}".encode("utf-16"), "application/json"),
        ("a.txt", ("x" * 2046 + "\U0001f600" * 9).encode("utf-16"), "text/plain; charset=utf-16"),
        ("a.txt", codecs.BOM_UTF8 + b"hi", "text/plain"),
        ("a.bin", bytes(range(256)), "application/octet-stream"),
        ("cut.txt", b"x" * 4094 + "é".encode() + b"y", "text/plain"),
        ("empty", b"", "text/plain"),
    ],
)
def test_types_by_content(name: str, head: bytes, expected: str) -> None:
    assert content_type(name, head) == expected
    assert may_be(essence(expected)), "what is not is refused before a run"


@given(st.text(max_size=20), st.binary(max_size=400) | st.binary(max_size=200).map(lambda tail: b"PK\x03\x04" + tail))
def test_any_content_has_a_type(name: str, head: bytes) -> None:
    found = essence(content_type(name, head))
    assert re.fullmatch(r"[a-z]+/[!-~]+", found)
    assert may_be(found) and may_be(found.partition("/")[0] + "/*")
    assert not any(map(may_be, ("application/msgpack", "application/vnd.api+json", "nonsense", "font/*x", "*")))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("out/report 1.pdf", 'attachment; filename="report 1.pdf"'),
        ("a/Prüfung.docx", "attachment; filename=\"Pr_fung.docx\"; filename*=UTF-8''Pr%C3%BCfung.docx"),
        (
            'x"; filename="evil.exe',
            "attachment; filename=\"x_; filename=_evil.exe\"; filename*=UTF-8''x%22%3B%20filename%3D%22evil.exe",
        ),
        ("50%.csv", "attachment; filename=\"50_.csv\"; filename*=UTF-8''50%25.csv"),
    ],
)
def test_a_file_that_is_the_answer_has_a_name(path: str, said: str) -> None:
    assert disposition(path) == said


def test_a_real_archive(work: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(work / "r.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("word/document.xml", "<x/>")
    found = collect(work, {}, tmp_path / "kept", PLENTY).kept
    assert found[0].type.endswith("wordprocessingml.document")


def test_a_tree_without_permissions_is_deleted(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "t")
    tree.create(None)
    locked = tree.work / "a" / "b"
    locked.mkdir(parents=True)
    (locked / "f").write_text("x")
    locked.chmod(0)
    locked.parent.chmod(0)
    delete(tree.root)
    assert not tree.root.exists()


def test_giving_a_tree_away_follows_no_link(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to change owners")
    outside = tmp_path / "outside"
    outside.write_text("x")
    tree = Tree(tmp_path / "t")
    tree.create(None)
    (tree.work / "link").symlink_to(outside)
    (tree.work / "hard").hardlink_to(outside)
    (tree.work / "own").write_text("x")
    tree.create(65_000)
    assert outside.stat().st_uid == 0
    assert (tree.work / "own").stat().st_uid == 65_000


def test_an_abandoned_workplace_is_found(tmp_path: Path) -> None:
    prepare(tmp_path / "state", tmp_path / "trees")
    first, second = Workplace(tmp_path / "trees"), Workplace(tmp_path / "trees")
    first.open()
    second.open()
    assert list(second.abandoned()) == []
    first._lock.close()  # type: ignore[union-attr] # what the kernel does for a killed process
    assert list(second.abandoned()) == [first.path]
    discarded = Discarded(tmp_path / "trees" / "discarded")
    second.close(discarded)
    assert not second.path.exists()
    discarded.close(10)
    dismantle(tmp_path / "trees")
    assert (tmp_path / "trees").exists(), "another engine's trees are in it"
    delete(first.path)
    dismantle(tmp_path / "trees")
    assert not (tmp_path / "trees").exists()


def test_a_directory_of_another_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "trees").symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError):
        prepare(tmp_path / "state", tmp_path / "trees")


@given(st.lists(st.sampled_from(["append", "read", "late"]), max_size=40), st.integers(0, 45))
@settings(max_examples=60)
def test_every_reader_sees_all_in_order(actions: list[str], last_id: int) -> None:
    async def scenario() -> None:
        log = EventLog()
        readers: list[tuple[int, asyncio.Task[list[int]]]] = []

        async def read(start: int) -> list[int]:
            return [event.id async for event in log.follow(start)]

        for action in actions:
            if action == "append":
                log.append("x", {"n": log.last_id})
            else:
                start = 0 if action == "read" else last_id
                readers.append((start, asyncio.create_task(read(start))))
                await asyncio.sleep(0)
        log.close()
        for start, reader in readers:
            assert await reader == list(range(start + 1, log.last_id + 1))

    asyncio.run(scenario())


async def test_old_events_are_forgotten() -> None:
    log = EventLog(1000)
    for number in range(100):
        log.append("x", {"text": "y" * 90, "n": number})
    kept = log.since(0)
    assert len(kept) < 15 and kept[-1].id == 100
    assert [event.id for event in log.since(98)] == [99, 100]
    assert artifacts.survey(Path("/nonexistent")) == {}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("bytes=0-", ["0-"]), ("bytes=2-4", ["2-4"]), ("BYTES=2-4", ["2-4"]), ("bytes=-3", ["-3"]), ("bytes=-99", ["-99"]),
        ("bytes=9-99", ["9-99"]), ("bytes= 0-1 ,\t3-4", ["0-1", "3-4"]), ("bytes=0-0,10-", ["0-0"]),
        ("bytes=10-", []), ("bytes=10-11,99-", []), ("bytes=-0", []),
        ("lines=1-2", None), ("bytes", None), ("bytes=", None), ("bytes=-", None), ("bytes=4-2", None), ("bytes=a-b", None),
        ("bytes=0-1;2-3", None), ("bytes=" + ",".join(["0-1"] * 11), None), ("bytes=" + "9" * 19 + "-", None),
        ("bytes=\u0660-", None),
    ],
)  # fmt: skip
def test_ranges(wanted: str, found: list[str] | None) -> None:
    """RFC 9110, section 14.2: a range that is not understood is ignored, one that is outside is not."""
    assert satisfiable(wanted, 10) == found


def test_an_empty_file_has_no_range() -> None:
    assert satisfiable("bytes=0-", 0) == satisfiable("bytes=-1", 0) == []
