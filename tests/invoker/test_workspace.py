"""Runs that work on a repository: the real CLI, real git over HTTP, within the boundary that the machine has."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_contract.attestation import Signer
from claude_contract.claims import body_hash
from tests.catalog.mcp_servers import CLOCK
from tests.invoker.conftest import Invoker, StandInProcess, as_root, tool, wait_for
from tests.invoker.test_isolation import PLANTED
from tests.support.attest import signed
from tests.support.git_server import GitServer, git, serving
from tests.workspace.test_archive import tarred

pytestmark = pytest.mark.xdist_group("workspace")  # its invoker is started once

SECRET = "s" * 32
SIGNER = Signer("1", SECRET.encode(), {})
TOKEN = "ghs_planted_token_of_the_tests"


@dataclass
class Desk:
    """An invoker that knows repositories, and the server that they come from."""

    invoker: Invoker
    server: GitServer
    client: httpx.Client

    def post(self, repository: str | None, ref: str | None, document: dict[str, Any], **claims: Any) -> httpx.Response:
        body = json.dumps(document).encode()
        named = {} if repository is None else {"repo": {"name": repository} | ({} if ref is None else {"ref": ref})}
        checks = ["jwt-claims", "rate-tiers"]
        given = {"sub": "alice", "chk": checks, "bsh": body_hash(body)} | named | claims
        headers = {
            "X-Claude-Attestation": signed(SIGNER, "POST", "/invoke", **given),
            "Content-Type": "application/json",
        }
        return self.client.post("/invoke", content=body, headers=headers)

    def bash(self, repository: str, ref: str | None, command: str) -> httpx.Response:
        return self.post(repository, ref, {"prompt": tool("Bash", command=command), "tools": ["Bash"]})

    def get(self, path: str) -> httpx.Response:
        attestation = signed(SIGNER, "GET", path, sub="alice", chk=["jwt-claims", "rate-tiers"])
        return self.client.get(path, headers={"X-Claude-Attestation": attestation})

    def events(self, run: str) -> list[dict[str, Any]]:
        lines = self.get(f"/runs/{run}/events").text.splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def said(self, answer: httpx.Response) -> str:
        """What the run's commands have printed."""
        assert answer.status_code == 200, answer.text
        return "\n".join(str(event.get("content", "")) for event in self.events(answer.json()["id"]))


@pytest.fixture(scope="module")
def desk(start_invoker: Callable[..., Invoker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("workspace")
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    with serving(folder / "served", TOKEN) as server:
        file = folder / "repositories.yaml"
        file.write_text(
            f"org/told:\n  url: {server.url}/{{repository}}.git\n  token_file: {token}\n  instructions: true\n"
            f"org/takes-*:\n  url: {server.url}/{{repository}}.git\n  token_file: {token}\n  refresh_s: 0\n"
            "  submodules: [org/part-*]\n"
            f"org/*:\n  url: {server.url}/{{repository}}.git\n  token_file: {token}\n"
            "  refs: [main, release/*, v*]\n  refresh_s: 0\n"
        )
        (folder / "catalog/mcp").mkdir(parents=True)
        own = {"name": "own", "description": "Of a repository.", "tools": ["now"], "repositories": ["org/serving-*"]}
        (folder / "catalog/mcp/own.json").write_text(json.dumps(own | {"command": ["python3", "tools/own.py"]}))
        invoker = start_invoker(
            wait=False,
            trust="attested",
            attestation_key=SECRET,
            repositories=file,
            catalog=folder / "catalog",
            isolation="user",
            pool_size=0,
            pool_max=0,
            first_output_s=90,
            idle_s=90,
            api_timeout_s=60,
        )
        wait_for(invoker.ready, what="readiness")
        with invoker.client() as client:
            client.timeout = 180
            yield Desk(invoker, server, client)
        invoker.stop()


def test_a_run_works_on_the_commit_that_its_answer_names(desk: Desk) -> None:
    desk.server.create("org/app")
    first = desk.server.commit("org/app", {"a.txt": "one\n", "src/b.txt": "two\n"})
    answer = desk.bash("org/app", "main", "cat a.txt src/b.txt; git status --short --branch; git rev-parse HEAD")
    assert (said := desk.said(answer))
    assert "one\\ntwo" in said.replace("\n", "\\n") and "## main" in said and first in said
    assert answer.json()["repository"] == {"name": "org/app", "ref": "main", "commit": first}
    second = desk.server.commit("org/app", {"a.txt": "three\n"})
    answer = desk.bash("org/app", None, "cat a.txt")
    assert answer.json()["repository"] == {"name": "org/app", "ref": "main", "commit": second}
    assert "three" in desk.said(answer)


def test_what_may_not_be_worked_on_is_refused_before_it_costs(desk: Desk, stand_in: StandInProcess) -> None:
    desk.server.create("org/little")
    desk.server.commit("org/little", {"a": "x"})
    asked = len(stand_in.lines())
    for repository, ref, status, kind in (
        ("other/app", "main", 404, "no-repository"),
        ("org/missing", "main", 404, "no-repository"),
        ("org/little", "release/9", 404, "no-ref"),
        ("org/little", "private", 403, "forbidden"),
    ):
        answer = desk.post(repository, ref, {"prompt": "hi"})
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind), (repository, ref)
    unverified = desk.post(None, None, {"prompt": "hi"}, add={"context": {"repository": "org/little"}})
    assert unverified.status_code == 403 and "repo_claim" in unverified.json()["detail"]
    in_the_body = desk.post(None, None, {"prompt": "hi", "context": {"repository": "org/little"}})
    assert in_the_body.status_code == 200 and in_the_body.json()["repository"] is None
    assert len(stand_in.lines()) == asked + 1, "the control: one did run"


def test_the_repository_tells_the_model_what_the_operator_lets_it(desk: Desk, stand_in: StandInProcess) -> None:
    for name in ("org/told", "org/untold"):
        desk.server.create(name)
        desk.server.commit(name, {"CLAUDE.md": f"Words of {name}.\n", "a": "x"})
        assert desk.post(name, "main", {"prompt": "hi"}).status_code == 200
    sent = stand_in.record.read_text()
    assert "Words of org/told." in sent and "Words of org/untold." not in sent


@as_root
def test_a_server_of_a_repository_is_what_the_catalog_names_and_nothing_of_its_own_settings(desk: Desk) -> None:
    """Beside a `.mcp.json` and hooks, which the CLI would obey where it read them (`test_isolation`)."""
    planted = {path: json.dumps(content).replace("$OUT", "obeyed") for path, content in PLANTED.items()}
    for name in ("org/serving-1", "org/silent"):
        desk.server.create(name)
        desk.server.commit(name, {"tools/own.py": CLOCK, **planted})
    asked = {"prompt": tool("mcp__own__now") + tool("Bash", command="ls -A"), "tools": ["Bash"], "mcp": ["own"]}
    may = {"clamp": {"mcp": ["own"]}}
    answer = desk.post("org/serving-1", "main", asked, **may)
    assert answer.status_code == 200, answer.text
    told = desk.said(answer)
    assert '"tool": "now"' in told and ".mcp.json" in told and "obeyed" not in told
    assert "mcp__evil" not in answer.text and answer.json()["permission_denials"] == []
    uids = re.findall(r'"uid": (\d+)', told)
    assert uids and int(uids[0]) in desk.invoker.uids, "within the boundary, as the run's user"
    for repository, clamp, said in (
        ("org/silent", may, "server own is one of org/serving-*"),
        (None, may, "and the run works on none"),
        ("org/serving-1", {"clamp": {"mcp": ["own"], "tools": ["Read"]}}, "Bash is not allowed"),
        ("org/serving-1", {}, "not allowed by the tier"),
    ):
        refused = desk.post(repository, None, asked | {"tools": []}, **clamp)
        assert refused.status_code == 403 and said in refused.json()["detail"], refused.text


def absent(folder: Path, needle: str) -> bool:
    return not subprocess.run(["grep", "-rl", needle, str(folder)], capture_output=True).stdout


def test_the_credential_is_nowhere_that_a_run_or_a_reader_comes_to(desk: Desk, stand_in: StandInProcess) -> None:
    """With the control: where it has been planted, the same search finds it."""
    pieces = TOKEN[:12], TOKEN[12:]  # so that the search itself does not hold it
    search = (
        f"needle={pieces[0]}; needle=${{needle}}{pieces[1]}; (command grep -rlF $needle . ~ $TMPDIR; env | command grep $needle; "
        "cat /proc/*/environ /proc/*/cmdline | command grep -a $needle; git config --list | command grep $needle; "
        "git remote -v) 2>/dev/null | head -c 300; echo searched"
    )
    desk.server.create("org/clean")
    desk.server.commit("org/clean", {"a": "x"})
    said = desk.said(desk.bash("org/clean", "main", search))
    assert "searched" in said and "planted" not in said and "./" not in said
    desk.server.create("org/dirty")
    desk.server.commit("org/dirty", {"planted": TOKEN})
    assert "./planted" in desk.said(desk.bash("org/dirty", "main", search)), "the control"
    encoded = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert any(encoded in given for given in desk.server.authorizations), "the control: it was used"
    for needle in (TOKEN, encoded):
        assert needle not in desk.invoker.log.read_text() and needle not in stand_in.record.read_text()
        # The tree in which it was planted is deleted behind the answer.
        wait_for(partial(absent, desk.invoker.state, needle), what="the credential's absence")


def test_a_run_comes_to_no_mirror_and_no_store(desk: Desk, tmp_path: Path) -> None:
    """Their names can be told from the address. The control is the same script, as somebody who may."""
    desk.server.create("org/kept")
    desk.server.commit("org/kept", {"a": "x"})
    desk.server.commit("org/kept", {"b": "of another branch\n"}, branch="release/1")
    assert desk.bash("org/kept", "main", "true").status_code == 200
    mirror = hashlib.sha256(f"{desk.server.url}/org/kept.git".encode()).hexdigest()[:32]
    # Not by `rglob`: trees of other runs go meanwhile.
    above = next(Path(top) for top, names, _ in os.walk(desk.invoker.state) if f"{mirror}.git" in names)
    script = (
        f"cd {above} && echo in; ls {above} && echo listed; cat {above}/{mirror}.git/HEAD && echo read; "
        f"touch {above}/{mirror}.git/written {above}/stores/written && echo wrote; ls {above}/stores/*/objects && echo stores"
    )
    words = {"in", "listed", "read", "wrote", "stores"}
    told = desk.said(
        desk.bash("org/kept", "main", f"({script}) 2>/dev/null; echo; git cat-file --batch-all-objects --batch-check")
    )
    assert "blob" in told and not words.intersection(told.replace("\\n", "\n").split()), told
    other = git(desk.server.root / "org/kept.git", "rev-parse", "release/1:b")
    assert other not in told, "of another branch it has nothing"
    control = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout
    for written in (above / f"{mirror}.git/written", above / "stores/written"):
        written.unlink()
    assert words <= set(control.split())


def test_what_a_run_has_changed_is_in_its_answer(desk: Desk) -> None:
    """Edited by a tool of the real CLI; what the run leaves in its own .git is not believed, and runs nothing."""
    desk.server.create("org/edited")
    commit = desk.server.commit("org/edited", {"a.txt": "one\ntwo\n", "b.txt": "x\n"})
    command = (
        "sed -i s/two/three/ a.txt; rm b.txt; printf '#!/bin/sh\\ntouch /tmp/ran\\n' > evil; chmod +x evil; "
        "git config core.fsmonitor $PWD/evil; git update-index --assume-unchanged a.txt"
    )
    answer = desk.bash("org/edited", "main", command)
    assert answer.status_code == 200, answer.text
    assert [(change["path"], change["status"]) for change in answer.json()["changes"]] == [
        ("a.txt", "modified"),
        ("b.txt", "deleted"),
        ("evil", "added"),
    ]
    artifacts = {artifact["path"]: artifact for artifact in answer.json()["artifacts"]}
    assert set(artifacts) == {"changes.patch", "a.txt", "evil"}
    patch = desk.get(f"/runs/{answer.json()['id']}/artifacts/changes.patch")
    assert patch.status_code == 200 and "-two\n+three\n" in patch.text
    with tempfile.TemporaryDirectory() as name:
        git(Path(name), "clone", "--quiet", str(desk.server.root / "org/edited.git"), "clone")
        clone = Path(name) / "clone"
        git(clone, "checkout", "--quiet", commit)
        git(clone, "apply", "-", stdin=patch.content)
        assert (clone / "a.txt").read_text() == "one\nthree\n" and not (clone / "b.txt").exists()


def test_files_that_are_sent_are_there_when_the_run_begins(desk: Desk) -> None:
    desk.server.create("org/with")
    desk.server.commit("org/with", {"a": "from the repository\n"})
    sent = [{"path": "a", "content": "from the caller\n"}, {"path": "new/b", "content_base64": "AAEC"}]
    prompt = tool("Bash", command="cat a; wc -c new/b; id -u > made")
    answer = desk.post("org/with", "main", {"prompt": prompt, "tools": ["Bash"], "files": sent})
    said = desk.said(answer)
    assert "from the caller" in said and "3 new/b" in said
    assert [change["path"] for change in answer.json()["changes"]] == ["a", "made", "new/b"]
    assert {artifact["path"] for artifact in answer.json()["artifacts"]} == {"changes.patch", "made"}


def test_an_archive_goes_in_and_the_whole_directory_comes_out(desk: Desk) -> None:
    desk.server.create("org/packed")
    desk.server.commit("org/packed", {"a": "from the repository\n", ".gitignore": "built\n"})
    members = ("a", b"from the archive\n"), ("bin/run", b"#!/bin/sh\necho ran > built\n")
    sent = base64.b64encode(tarred(*members, mode=0o755)).decode()
    asked = {"prompt": tool("Bash", command="sh bin/run; cat a"), "tools": ["Bash"], "archive": sent}
    answer = desk.post("org/packed", "main", asked | {"result": {"archive": True}})
    assert "from the archive" in desk.said(answer)
    assert [change["path"] for change in answer.json()["changes"]] == ["a", "bin/run"]
    artifacts = [artifact["path"] for artifact in answer.json()["artifacts"]]
    assert artifacts == ["changes.patch", "tree.tar.gz", "built"]
    packed = desk.get(f"/runs/{answer.json()['id']}/artifacts/tree.tar.gz")
    assert packed.headers["Content-Type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as opened:
        assert {name for name in opened.getnames() if "/" not in name} == {".gitignore", "a", "bin", "built"}
    hostile = base64.b64encode(tarred(("../x", b"x"))).decode()
    for no_archive, said in ((hostile, "must be relative"), ("%", "not base64"), ("", "archive"), ("eA==", "neither")):
        refused = desk.post("org/packed", "main", asked | {"archive": no_archive})
        assert refused.status_code == 422 and said in refused.text and "archive" in refused.text, refused.text
