"""A session on a repository whose next turn is at another invoker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.invoker.conftest import Invoker, as_root
from tests.invoker.test_repository_sessions import paths, served, turn
from tests.invoker.test_workspace import SECRET, TOKEN, Desk
from tests.support.git_server import serving

pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def desks(start: Callable[..., Invoker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, Desk]]:
    folder = tmp_path_factory.mktemp("repositories")
    token, file = folder / "token", folder / "repositories.yaml"
    token.write_text(TOKEN)
    token.chmod(0o400)
    with serving(folder / "served", TOKEN) as server:
        file.write_text(
            f"org/*:\n  url: {server.url}/{{repository}}.git\n  token_file: {token}\n  refs: [main]\n  refresh_s: 0\n"
        )
        settings = {"attestation_key": SECRET, "repositories": file, "isolation": "user", "pool_max": 0}
        one, other = start(**settings), start(**settings)
        with one.client() as here, other.client() as there:
            yield Desk(one, server, here), Desk(other, server, there)


def test_it_has_its_files_and_a_git_of_ours_there(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    commit = served(here, "org/moves")
    first = turn(here, "new", "echo two >> a.txt; echo x > out.log; git config core.fsmonitor 'touch ran'", "org/moves")
    session = first.json()["session"]
    here.server.commit("org/moves", {"b.txt": "changed meanwhile\n"})
    # The other knows the commit as little as the repository: its branch has gone on.
    look = "git status --short; git rev-parse HEAD; cat b.txt; ls out.log; git config -l; echo new > c.txt"
    second = turn(there, session, look, "org/moves")
    said = there.said(second)
    assert " M a.txt" in said and commit in said and "changed meanwhile" not in said and "fsmonitor=" not in said
    assert "out.log" in said and paths(second) == {"a.txt": "modified", "c.txt": "added"}
    assert second.json()["repository"] == {"name": "org/moves", "ref": "main", "commit": commit}
    third = turn(here, session, "cat c.txt b.txt", "org/moves", rebase=True)
    said = here.said(third)
    assert "new" in said and "changed meanwhile" in said
    assert paths(third) == {"a.txt": "modified", "c.txt": "added"}
    fourth = turn(there, session, "git status --short; cat b.txt", "org/moves")
    said = there.said(fourth)
    assert " M a.txt" in said and "?? c.txt" in said and "changed meanwhile" in said
    assert turn(there, session, "cat a.txt", "org/another").status_code == 404
