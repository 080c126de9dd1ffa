"""Submodules: an address of a repository's is compared with the operator's, and asked by none but the operator's."""

from __future__ import annotations

from pathlib import Path

import pytest

from claude_invoker.cli import walk
from claude_invoker.workspace import content, modules
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.modules import Holds
from claude_invoker.workspace.repository import Repositories, Source
from tests.support.git_server import Gitlink
from tests.workspace.conftest import Place

COMMIT = "a" * 40
KNOWN = Repositories(
    {
        "lib/*": Source(url="https://other.example.com/{repository}.git"),
        "org/*": Source(url="https://git.example.com/{repository}.git"),
        "by-ssh/*": Source(url="git@ssh.example.com:all/{repository}.git", key_file=Path("/k"), known_hosts=Path("/h")),
        "one": Source(url="https://git.example.com/team/one.git"),
    }
)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://git.example.com/org/lib.git", "org/lib"),
        ("https://GIT.example.com/org/lib/", "org/lib"),
        ("git@git.example.com:org/lib.git", "org/lib"),  # fetched by the operator's address all the same
        ("https://user:pass@git.example.com/org/lib", "org/lib"),
        ("ssh://git@ssh.example.com/all/by-ssh/x.git", "by-ssh/x"),
        ("https://evil.example.com/org/lib.git", None),
        ("https://git.example.com:8443/org/lib.git", None),
        ("https://git.example.com.evil.com/org/lib.git", None),
        ("https://evil.com/git.example.com/org/lib.git", None),
        ("https://git.example.com/lib/x.git", None),  # a name that is another server's
        ("https://git.example.com/org/../lib/x.git", None),
        ("https://git.example.com/org/%6cib.git", None),
        ("https://git.example.com/org/lib.git?x", "org/lib"),
        ("https://git.example.com/team/one.git", None),  # of a pattern that has no name in its address
        ("file:///org/lib.git", None),
        ("/org/lib.git", None),
        ("https://[git.example.com/org/lib.git", None),
        ("https://git.example.com\uff0forg/lib.git", None),
        ("-u./payload", None),
        ("ext::sh -c touch% x", None),
        ("", None),
    ],
)
def test_an_address_leads_to_a_repository_of_the_file_or_nowhere(url: str, name: str | None) -> None:
    found = KNOWN.at(url, COMMIT)
    assert (found and found.name) == name
    assert KNOWN.at(url, "main") is None, "a commit's full id is what a submodule is at"


@pytest.mark.parametrize(
    ("base", "url", "full"),
    [
        ("https://h/org/app.git", "../lib.git", "https://h/org/lib.git"),
        ("https://h/org/app.git", "./x", "https://h/org/app.git/x"),
        ("https://h/org/app.git", "../../../../x", "https://h/../../x"),
        ("ssh://git@h:22/org/app.git", "../lib.git", "ssh://git@h:22/org/lib.git"),
        ("git@h:org/app.git", "../lib.git", "git@h:org/lib.git"),
        ("git@h:org/app.git", "https://other/x", "https://other/x"),
    ],
)
def test_addresses_that_are_said_from_the_repository_s_own(base: str, url: str, full: str) -> None:
    assert modules.address(base, url) == full


def test_links_lead_out_by_no_detour_through_a_submodule() -> None:
    outer = Holds(1, 1, {"x": "sub/here/../.."}, {})
    with pytest.raises(Unacceptable, match="leads out"):
        modules.check(outer, {"sub": Holds(1, 1, {"here": "."})}, content.Bounds())
    modules.check(outer, {"sub": Holds(1, 1, {"here": "deep/er"})}, content.Bounds())  # the control
    content.check_links(dict(outer.links))  # which nobody would have seen in one of them


@pytest.mark.parametrize(
    ("bounds", "said"), [(content.Bounds(entries=5), "files"), (content.Bounds(bytes=99), "bytes")]
)
def test_bounds_are_of_all_together(bounds: content.Bounds, said: str) -> None:
    with pytest.raises(Unacceptable, match=said):
        modules.check(Holds(3, 50), {"sub": Holds(3, 50)}, bounds)
    modules.check(Holds(2, 49), {"sub": Holds(3, 50)}, bounds)


async def test_what_a_commit_says_of_its_submodules_is_noted(place: Place) -> None:
    place.server.create("org/noted")
    said = '[include]\n\tpath = /etc/passwd\n[submodule "a b"]\n\tpath = lib/a\n\turl = ../lib.git\n'
    said += '[submodule "none"]\n\tpath = nowhere\n\turl = ../x.git\n[submodule "half"]\n\tpath = half\n'
    files: dict[str, str | bytes | Gitlink | None] = {
        ".gitmodules": said,
        "lib/a": Gitlink("b" * 40),
        "half": Gitlink("c" * 40),
        "file": "x",
    }
    place.server.commit("org/noted", files)
    holds = modules.noted((await place.ready("org/noted")).store)
    assert holds.modules == {"lib/a": modules.Module("../lib.git", "b" * 40)}
    assert holds.entries == 5 and holds.bytes == len(said) + 1


def test_nothing_is_put_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "to").symlink_to("sub")
    assert walk.is_within(tmp_path, "real/sub")
    for path in ("link/sub", "real/to", "link", "none", "real/none"):
        assert not walk.is_within(tmp_path, path)
