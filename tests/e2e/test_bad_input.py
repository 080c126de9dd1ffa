"""Repositories, refs, paths and archives that are none, and a disk that is full in the middle: what a caller hears of it
through the gateway, and that nothing of it is left on the disk."""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Gateway, standing
from tests.support.disk import disk, fill
from tests.support.git_server import GitServer, git, serving
from tests.support.waiting import wait_for
from tests.workspace.test_archive import tarred, zipped

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
]
PASSWORD = "s3cret-of-the-git-server"
CALLER = ("--tier", "team", "--claim", 'repos=["org/*"]')
MB = 1 << 20


@dataclass
class Place:
    stack: Gateway
    served: GitServer
    disk: Path
    commit: str

    def ask(
        self, repository: str | None, ref: str | None, document: Mapping[str, Any] | None = None, *, job: bool = False
    ) -> dict[str, Any]:
        """The answer of a run, with its status. `job`: what one of the same ends with has to be that, too."""
        asked = {"prompt": "hi"} | dict(document or {})
        headers = {} if repository is None else {"X-Repo": repository}
        headers |= {} if ref is None else {"X-Branch": ref}
        with self.stack.client("ada", *CALLER) as client:
            answer = client.post("/claude/invoke", json=asked, headers=headers)
            said: dict[str, Any] = answer.json()
            if job:
                taken = client.post("/claude/jobs", json=asked, headers=headers)
                assert taken.status_code in (202, answer.status_code), (taken.text, answer.text)
                if taken.status_code == 202:
                    while (seen := client.get(taken.headers["location"]).json())["state"] not in ("done", "failed"):
                        time.sleep(0.1)
                    assert seen["state"] == "failed" and seen["error"]["status"] == answer.status_code, (seen, said)
        return said | {"status": answer.status_code}

    def left(self) -> set[str]:
        """All files below the invoker's directory, but for what of jobs and costs has to stay."""
        found = set()
        for folder, _, names in os.walk(self.disk):
            at = Path(folder).relative_to(self.disk)
            if at.parts[:1] not in (("journal",), ("locks",)):
                found |= {str(at / name) for name in names}
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    # Not one of pytest's directories: those are closed to the users of runs.
    with tempfile.TemporaryDirectory(prefix="bad-") as name:
        home = Path(name)
        home.chmod(0o711)
        (home / "kong.yml").write_text(
            (ROOT / "kong.yml")
            .read_text()
            .replace("      rules: [{claim", "      repo_claim: repos\n      rules: [{claim")
        )
        (home / "token").write_text(PASSWORD)
        (home / "token").chmod(0o400)
        with (
            serving(tmp_path_factory.mktemp("git"), PASSWORD) as served,
            disk(home / "runs", "600m") as small,
        ):
            (home / "repositories.yml").write_text(
                f'"**":\n  url: "{served.url}/{{repository}}.git"\n  token_file: {home}/token\n'
                '  refs: [main, "v*", "feature/*"]\n  refresh_s: 0\n'
            )
            served.create("org/app")
            commit = served.commit("org/app", {"a.txt": "one\n"})
            git(served.root / "org/app.git", "tag", "v1", commit)
            served.commit("org/app", {"a.txt": "hidden\n"}, branch="private")
            for name_of in ("org/empty", "other/app", "org/large", "org/wide"):
                served.create(name_of)
            served.commit("other/app", {"a.txt": "x"})
            served.commit("org/large", {"large": os.urandom(40 * MB)})
            served.commit("org/wide", {"wide": b"x" * (40 * MB)})
            known = {
                "INVOKER_REPOSITORIES": str(home / "repositories.yml"),
                "INVOKER_POOL_SIZE": "0",
                "INVOKER_POOL_MAX": "0",
                "INVOKER_DISK_RESERVE": "0",
            }
            with standing(home, config=home / "kong.yml", **known) as stack:
                place = Place(stack, served, small, commit)
                assert place.ask("org/app", "main")["status"] == 200, "the control"
                yield place


def kept(place: Place) -> set[str]:
    """Mirrors of repositories that there are, and whole stores: they are of use to who asks next."""
    left = place.left()
    mirrors = tuple(path.removesuffix("fetched") for path in left if path.endswith(".fetched"))
    stores = "repositories/stores/"
    return {
        path
        for path in left
        if "/tmp_" not in path
        and (path.startswith(mirrors) or (path.startswith(stores) and not path.startswith(f"{stores}.")))
    }


def hidden(place: Place) -> str:
    return git(place.served.root / "org/app.git", "rev-parse", "private")


def packed(content: bytes) -> dict[str, Any]:
    return {"archive": base64.b64encode(content).decode()}


CASES: list[tuple[str, str | None, str | None, dict[str, Any], int, str]] = [
    ("unknown repository", "org/none", "main", {}, 404, "org/none"),
    ("a name that is none", "org/a b", "main", {}, 400, "must match"),
    ("not in the token", "other/app", "main", {}, 403, "does not allow this repository"),
    ("not in the token, by a detour", "org/../other/app", "main", {}, 403, ""),
    ("empty repository", "org/empty", None, {}, 404, "empty"),
    ("empty repository, a branch", "org/empty", "main", {}, 404, "main"),
    ("unknown branch", "org/app", "feature/none", {}, 404, "feature/none"),
    ("a branch that is not allowed", "org/app", "private", {}, 403, "private"),
    ("with ..", "org/app", "feature/../main", {}, 422, "no name of a branch"),
    ("300 characters", "org/app", "v" * 300, {}, 400, "128 characters at most"),
    ("unknown commit", "org/app", "0" * 40, {}, 404, "0" * 40),
    ("half a commit", "org/app", "v1234567", {}, 404, "v1234567"),
    ("a path that leads out", "org/app", "main", {"files": [{"path": "../x", "content": ""}]}, 422, "path"),
    ("a path into .git", "org/app", "main", {"files": [{"path": ".git/config", "content": ""}]}, 422, ".git"),
    ("a file in the place of a directory", "org/app", "main", {"files": [{"path": "a.txt/b", "content": ""}]}, 422, "a.txt"),
    ("no archive", "org/app", "main", packed(b"nothing"), 422, "neither"),
    ("an archive that leads out", "org/app", "main", packed(zipped(("../../x", b"x"))), 422, "../../x"),
    ("an archive that is cut off", "org/app", "main", packed(tarred(("x", os.urandom(4096)))[:2000]), 422, "broken"),
    ("a bomb", "org/app", "main", packed(tarred(("x", bytes(101 * MB)))), 422, "100,000,000"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("repository", "ref", "document", "status", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_it_is_said_and_nothing_is_left(
    place: Place, repository: str, ref: str | None, document: dict[str, Any], status: int, said: str
) -> None:
    before, spent, asked = place.left(), len(place.stack.record()), len(place.served.requests)
    answer = place.ask(repository, ref, document, job=True)
    assert (answer["status"], said in str(answer.get("detail", answer))) == (status, True), answer
    assert len(place.stack.record()) == spent, "it has cost nothing"
    if status == 403 and repository != "org/app":
        assert len(place.served.requests) == asked, "nothing was fetched"
    wait_for(lambda: place.left() <= before | kept(place), what="a disk with no more on it than before")


def test_a_tag_and_a_commit_are_worked_on(place: Place) -> None:
    for ref in ("v1", place.commit):
        answer = place.ask("org/app", ref)
        assert answer["repository"] == {"name": "org/app", "ref": ref, "commit": place.commit}
    assert place.ask("org/app", hidden(place))["status"] == 403, "of a branch that may not be worked on"


@pytest.mark.parametrize(
    ("repository", "document", "said"),
    [
        pytest.param("org/large", {}, "org/large cannot be fetched", marks=pytest.mark.slow),
        pytest.param("org/wide", {}, "org/wide cannot be checked out", marks=pytest.mark.slow),
        (None, {"files": [{"path": f"f{n}", "content": "x" * MB} for n in range(6)]}, "cannot be stored"),
    ],
    ids=["a fetch", "a checkout", "a caller's files"],
)
def test_the_disk_is_full_in_the_middle(
    place: Place, repository: str | None, document: dict[str, Any], said: str
) -> None:
    assert place.ask("org/app", "main")["status"] == 200
    wait_for(lambda: not [path for path in place.left() if "/work/" in path], what="room that trees of before take")
    before = place.left()
    filler = place.disk / "filler"
    try:
        fill(filler)
        os.truncate(filler, filler.stat().st_size - (4 * MB if repository is None else 20 * MB))
        answer = place.ask(repository, None, document)
        assert (answer["status"], said in answer.get("detail", "")) == (503, True), answer
        wait_for(lambda: place.left() - {"filler"} <= before | kept(place), what="what was half written to go")
    finally:
        filler.unlink()
    assert place.ask(repository, None, document)["status"] == 200, "the control: with room it works"
