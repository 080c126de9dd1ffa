"""Repositories by ssh: a real OpenSSH server, whose host key is known, and a key that nobody else comes to."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_contract.claims import Repository
from claude_invoker.cli.child import Child
from claude_invoker.problem import Problem
from claude_invoker.workspace import git as the_git
from claude_invoker.workspace.checkout import Stores
from claude_invoker.workspace.content import Bounds
from claude_invoker.workspace.mirror import Mirror
from claude_invoker.workspace.repository import Repositories, Source, Wanted, load
from tests.support.git_server import GitServer, git
from tests.support.ssh_server import SSHD, SshServer, key_pair, ssh_serving
from tests.workspace.conftest import Place

pytestmark = pytest.mark.skipif(not (Path(SSHD).exists() and shutil.which("ssh")), reason="needs OpenSSH")
USER = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
"""git's own user, who has a name, as ssh wants it."""


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_serving(tmp_path_factory.mktemp("ssh") / "server") as found:
        yield found


@pytest.fixture(autouse=True)
def _known(ssh: SshServer) -> None:
    ssh.know()


def wanted(ssh: SshServer, served: GitServer, name: str, **source: Any) -> Wanted:
    given: dict[str, Any] = {
        "url": f"{ssh.url}{served.root}/{{repository}}.git",
        "key_file": ssh.key,
        "known_hosts": ssh.known_hosts,
        "refresh_s": 0,
    } | source
    made = Source(**given)
    assert made.problem() is None
    return Repositories({"org/*": made}).find(Repository(name, "main"))


def mirror(place: Place, name: str) -> Mirror:
    return Mirror(place.folder / f"{name.replace('/', '-')}.git", USER)


async def test_a_repository_is_fetched_checked_and_pushed_to_by_ssh(ssh: SshServer, place: Place) -> None:
    place.server.create("org/ssh")
    commit = place.server.commit("org/ssh", {"a.txt": "one\n"})
    asked = wanted(ssh, place.server, "org/ssh")
    bare = mirror(place, "org/ssh")
    assert await bare.find(asked) == ("refs/heads/main", commit)
    store = await Stores(place.folder / "stores", USER, Bounds()).of(bare, asked, commit)
    assert list((store / "objects/pack").glob("*.pack"))
    with the_git.access(asked.source, USER) as access:
        await access.ask(
            bare.path, USER, the_git.Bounds(), "push", "--quiet", "--", asked.url, f"{commit}:refs/heads/claude/x"
        )
    assert git(place.server.root / "org/ssh.git", "rev-parse", "claude/x") == commit
    # As scp has it: the path begins where the user is at home.
    home = Path("~").expanduser()
    short = f"{ssh.url.removeprefix('ssh://').rpartition(':')[0]}:{os.path.relpath(place.server.root, home)}"
    assert Source(url=f"{short}/{{repository}}.git", key_file=ssh.key, known_hosts=ssh.known_hosts).problem() is None


async def test_another_host_key_is_refused_and_the_repository_is_named(
    ssh: SshServer, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.create("org/moved")
    place.server.commit("org/moved", {"a": "x"})
    asked = wanted(ssh, place.server, "org/moved")
    ssh.know(key_pair(tmp_path / "other"))
    before = ssh.log.count("Accepted publickey")
    with pytest.raises(Problem) as refused:
        await mirror(place, "org/moved").find(asked)
    assert refused.value.status == 503 and "org/moved" in refused.value.detail
    assert "Host key verification failed" in caplog.text, "the operator learns why"
    assert ssh.log.count("Accepted publickey") == before, "the key has not been shown to it"
    ssh.known_hosts.write_text("")  # nor is one taken that nobody knows
    with pytest.raises(Problem):
        await mirror(place, "org/moved").find(asked)
    assert not list(place.folder.glob("org-moved.git/objects/pack/*"))
    with monkeypatch.context() as without:
        without.setitem(the_git.SSH_OPTIONS, "StrictHostKeyChecking", "no")
        await mirror(place, "org/moved").find(asked)  # the control


async def test_what_the_server_says_no_to(ssh: SshServer, place: Place, tmp_path: Path) -> None:
    with pytest.raises(Problem) as missing:
        await mirror(place, "org/none").find(wanted(ssh, place.server, "org/none"))
    assert (missing.value.status, missing.value.kind) == (404, "no-repository")
    place.server.create("org/closed")
    place.server.commit("org/closed", {"a": "x"})
    unknown = wanted(ssh, place.server, "org/closed", key_file=key_pair(tmp_path / "unknown"))
    with pytest.raises(Problem) as closed:
        await mirror(place, "org/closed").find(unknown)
    assert closed.value.status == 503
    open_to_all = tmp_path / "unknown"
    open_to_all.chmod(0o644)
    with pytest.raises(Problem) as readable:
        await mirror(place, "org/closed").find(unknown)
    assert readable.value.status == 503
    assert not list(place.folder.glob("org-*.git"))


async def test_the_key_is_in_no_command_line_environment_or_file(
    ssh: SshServer, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the control: the same search finds what is there."""
    place.server.create("org/secret")
    place.server.commit("org/secret", {"a": "x"})
    needle = ssh.key.read_text().splitlines()[1]
    seen: list[str] = []
    start = Child.start

    async def watched(words: Any, **more: Any) -> Any:
        seen.append(repr((words, more["env"])))
        return await start(words, **more)

    monkeypatch.setattr(Child, "start", watched)
    await mirror(place, "org/secret").find(wanted(ssh, place.server, "org/secret"))
    assert any("GIT_SSH_COMMAND" in line for line in seen)
    assert not any(needle in line or str(ssh.key) in line for line in seen)

    def found() -> list[Path]:
        return [path for path in place.folder.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]

    assert not found()
    (place.folder / "planted").write_text(needle)
    assert found() == [place.folder / "planted"]


async def test_the_user_s_own_configuration_and_agent_count_for_nothing(
    ssh: SshServer, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.create("org/plain")
    place.server.commit("org/plain", {"a": "x"})
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {tmp_path}/ran; ssh")
    monkeypatch.setenv("GIT_SSH", str(tmp_path / "ran"))
    await mirror(place, "org/plain").find(wanted(ssh, place.server, "org/plain"))
    assert not list(tmp_path.iterdir())


HOSTILE = [
    "-oProxyCommand=touch${IFS}ran@host:{repository}",
    "ssh://-oProxyCommand=touch ran/{repository}",
    "ssh://-oProxyCommand=touch%20ran/{repository}",
    "ssh://u@-oProxyCommand=touch/{repository}",
    "ssh://u@host;touch ran/{repository}",
    "ssh://u@$(touch ran)/{repository}",
    "ssh://u@host:22;x/{repository}",
    "ssh://u@host/a b/{repository}",
    "ssh://u@host/`touch ran`/{repository}",
    "ssh://u@host/x'{repository}",
    "ssh://u:password@host/{repository}",
    "ssh://u@{repository}/x",
    "ssh://{repository}@host/x",
    "ssh:u@host/{repository}",
    "u@host:-x/{repository}",
    "u@host\n:x/{repository}",
    "host:{repository}",
    "-x@host:{repository}",
    "ext::sh -c touch% ran",
    "file:///tmp/{repository}",
    "/tmp/{repository}",
    "git://host/{repository}",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_an_address_that_could_be_more_than_one_keeps_the_invoker_from_starting(url: str, tmp_path: Path) -> None:
    source = Source(url=url, key_file=tmp_path / "key", known_hosts=tmp_path / "hosts")
    assert source.problem() is not None and source.problem()[0] == "url"  # type: ignore[index]
    fine = Source(url="ssh://u@host:22/{repository}", key_file=tmp_path / "key", known_hosts=tmp_path / "hosts")
    assert fine.problem() is None


@pytest.mark.parametrize("name", ["org/$(touch ran)", "org/a;b", "org/a b", "org/`x`", "org/'x'", "-org/x", "org/-x"])
def test_no_name_of_a_repository_has_a_meaning_to_a_shell(name: str, tmp_path: Path) -> None:
    source = Source(url="u@host:{repository}", key_file=tmp_path / "key", known_hosts=tmp_path / "hosts")
    known = Repositories({"**": source})
    with pytest.raises(Problem) as refused:
        known.find(Repository(name, "main"))
    assert refused.value.status == 404
    assert known.find(Repository("org/app", "main")).url == "u@host:org/app"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("url: ssh://u@host/{repository}", "key_file: is needed"),
        ("url: ssh://u@host/{repository}\n  key_file: /k", "known_hosts: is needed"),
        ("url: ssh://u@host/{repository}\n  token_file: /t", "token_file: is for https"),
        ("url: https://host/{repository}\n  key_file: /k", "key_file: is for ssh"),
    ],
)
def test_what_is_missing_is_said_with_its_place(tmp_path: Path, fields: str, said: str) -> None:
    file = tmp_path / "repositories.yml"
    file.write_text(f"org/*:\n  {fields}\n")
    with pytest.raises(ValueError, match=said):
        load(file)


def test_ssh_needs_a_name_for_its_user() -> None:
    assert the_git.obstacle_to_ssh(None) is None
    said = the_git.obstacle_to_ssh(3_999_999)
    assert said is not None and "claude-git:x:3999999" in said
