"""What the dashboard shows of a patch that git has made, and of one that an enemy has."""

from __future__ import annotations

from pathlib import Path

import pytest

from claude_invoker.dashboard import patch
from claude_invoker.dashboard.plain import plain
from tests.support.git_server import git


def made(tmp_path: Path) -> bytes:
    git(tmp_path, "init", "-q")
    (tmp_path / "a b.txt").write_text("one\ntwo\n")
    (tmp_path / "gone").write_text("x\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    (tmp_path / "a b.txt").write_text("one\nzwei\n--- a/forged\n+++ b/forged\ndiff --git a/no b/no\n")
    (tmp_path / "gone").unlink()
    (tmp_path / "ümlaut\t\u202e").write_text("new\u202ereversed\n")
    (tmp_path / "image").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "link").symlink_to("gone")
    git(tmp_path, "add", ".")
    return git(tmp_path, "diff", "--cached", "--no-renames", "--binary", "--full-index").encode()


def test_files_and_lines_are_those_of_the_patch(tmp_path: Path) -> None:
    found = patch.shown(made(tmp_path))
    files = {file.path: file for file in found.files}
    assert len(files) == len(found.files) == 5 and not found.is_cut
    assert files["a b.txt"].lines == [
        ("place", "@@ -1,2 +1,5 @@"),
        ("same", " one"),
        ("removed", "-two"),
        ("added", "+zwei"),
        ("added", "+--- a/forged"),
        ("added", "++++ b/forged"),
        ("added", "+diff --git a/no b/no"),
    ]
    assert files["gone"].lines[-1] == ("removed", "-x")
    assert files["image"].note == "not text" and not files["image"].lines
    assert files["link"].note == "a symbolic link"
    (named,) = set(files) - {"a b.txt", "gone", "image", "link"}
    assert "\u202e" not in named and files[named].lines[-1] == ("added", "+new\\u202ereversed")


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_page_has_so_many_lines_at_most(count: int) -> None:
    text = b"diff --git a/x b/x\n@@ -0,0 +1 @@\n" + b"+line\n" * count
    found = patch.shown(text)
    assert sum(len(file.lines) for file in found.files) <= 3000
    assert found.is_cut == (count > 3000)
    assert patch.shown(text[:20], is_whole=False).is_cut


def test_a_line_is_as_long_as_one_can_read() -> None:
    found = patch.shown(b"diff --git a/x b/x\n@@ -0,0 +1 @@\n+" + b"x" * 100_000)
    assert len(found.files[0].lines[-1][1]) == 500


@pytest.mark.parametrize("text", [b"", b"\n", b"@@ -1 +1 @@\n+x", b"diff --git ", b"diff --git a", b"\xff\xfe\0"])
def test_what_is_no_patch_shows_nothing(text: bytes) -> None:
    assert not any(file.lines for file in patch.shown(text).files)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rm -rf \u202e/gpj.x", "rm -rf \\u202e/gpj.x"),
        ("a\u200bb\u2066c\ufeffd\u00ade", "a\\u200bb\\u2066c\\ufeffd\\xade"),
        ("a\u00a0b\u3000c\u2028d\u0085e\x1b[2Kf\rg", "a\\xa0b\\u3000c\\u2028d\\x85e\\x1b[2Kf\\rg"),
        ("a\u3164b\u2800c\ufe0fd\U000e0041e\U000e0100f", "a\\u3164b\\u2800c\\ufe0fd\\U000e0041e\\U000e0100f"),
        ("\ud83d \ue000", "\\ud83d \\ue000"),
        ("tab\tand\nline, é 日本語 😀 ~{}", "tab\tand\nline, é 日本語 😀 ~{}"),
    ],
)
def test_what_is_not_seen_is_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown
