"""Files that come with a request: where they may go, and that they go nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from claude_contract.claims import UNCLAMPED
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from claude_invoker.workspace.files import NoPlace, problem_of, put

USER = 3_200_000 if os.geteuid() == 0 else None


def test_files_are_written_for_the_run(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    put(tmp_path, [("a/b/c", b"x"), ("a/b/d", b"y"), ("old", b"new"), ("link", b"z")], USER)
    assert (tmp_path / "a/b/c").read_bytes() == b"x" and (tmp_path / "a/b/d").read_bytes() == b"y"
    assert (tmp_path / "link").read_bytes() == b"z" and not (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_bytes() == b"new"
    if USER is not None:
        assert {path.stat().st_uid for path in (tmp_path / "a").rglob("*")} == {USER}


@pytest.mark.parametrize("path", ["out/x", "file/x", "directory"])
def test_nothing_is_written_by_way_of_a_link(tmp_path: Path, path: str) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    for made in (work, outside, work / "directory"):
        made.mkdir()
    (work / "out").symlink_to(outside)
    (work / "file").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoPlace):
        put(work, [(path, b"x")], None)
    assert not list(outside.iterdir())
    assert len(os.listdir("/proc/self/fd")) <= before, "other tests' may go meanwhile"
    (work / "out" / "x").write_text("the control: the link leads there")
    assert list(outside.iterdir())


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "a/../x", "a//b", "a/", ".", "a\nb", "a\\b", ".git/config", "a/.GIT/x", "git~1/x", "x" * 300],
)
def test_paths_that_no_file_may_have(path: str) -> None:
    said = problem_of(path)
    assert said is not None and ("255 bytes" in said) == (path == "x" * 300)
    assert problem_of("a/.gitignore") is None and problem_of("\u00e9/x y") is None  # the control


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"path": "../x", "content": "x"}, "files[1].path"),
        ({"path": "fine", "content": "x"}, "files[1].path is there twice"),
        ({"path": "a", "content_base64": "%"}, "files[1].content_base64"),
        ({"path": "fine", "upload": "0" * 64}, "files[1].path is there twice"),
        ({"path": ".git/x", "upload": "0" * 64}, "files[1].path"),
    ],
)
def test_a_request_with_a_file_that_cannot_be_is_refused(file: dict[str, str], said: str) -> None:
    fine = {"path": "fine", "content_base64": "AAE="}
    settings, boundary = Settings(trust="open"), Boundary(Strength.NONE)
    decided = plan(InvokeRequest.model_validate({"prompt": "x", "files": [fine]}), UNCLAMPED, settings, boundary)
    assert decided.files == (("fine", b"\0\1"),) and decided.without_input().files == ()
    request = InvokeRequest.model_validate({"prompt": "x", "files": [fine, file]})
    with pytest.raises(Problem) as refused:
        plan(request, UNCLAMPED, settings, boundary)
    assert refused.value.status == 422 and said in refused.value.detail


def test_a_file_has_one_content() -> None:
    upload = {"upload": "0" * 64}
    for contents in ({}, {"content": "x", "content_base64": "AA=="}, {"content": ""} | upload):
        with pytest.raises(ValueError, match="exactly one of content, content_base64 and upload"):
            InvokeRequest.model_validate({"prompt": "x", "files": [{"path": "a", **contents}]})
    for name in ("", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61):
        with pytest.raises(ValueError, match="upload"):
            InvokeRequest.model_validate({"prompt": "x", "files": [{"path": "a", "upload": name}]})
    InvokeRequest.model_validate({"prompt": "x", "files": [{"path": "a"} | upload]})
