"""A repository that a token allows, through the whole stack: checked out, worked on, and its patch back to git."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import PASSWORD, ROOT, Gateway
from tests.support.git_server import GitServer, git
from tests.support.ssh_server import SshServer
from tests.support.waiting import wait_for

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
]
CALLER = ("--tier", "team", "--claim", 'repos=["org/*"]')
WORK = """[[tool Bash {"command": "git log --format=%s && sed -i s/two/zwei/ a.txt && echo new > b.txt"}]]"""


def test_from_a_token_to_a_patch_that_applies(stack: Gateway, served: GitServer, tmp_path: Path) -> None:
    commit = served.commit("org/app", {"a.txt": "one\ntwo\n"}, message="the first")
    asked = {"prompt": WORK, "tools": ["Bash"]}
    headers = {"X-Repo": "org/app", "X-Branch": "main"}
    with stack.client("ada", *CALLER) as client:
        direct = client.post("/claude/invoke", json=asked, headers=headers)
        assert direct.status_code == 200, direct.text
        job = client.post("/claude/jobs", json=asked, headers=headers)
        assert job.status_code == 202, job.text
        while (seen := client.get(job.headers["location"]).json())["state"] not in ("done", "failed"):
            time.sleep(0.1)
        assert seen["state"] == "done", seen
        for answer in (direct.json(), seen["result"]):
            assert answer["repository"] == {"name": "org/app", "ref": "main", "commit": commit}
            assert {change["path"]: change["status"] for change in answer["changes"]} == {
                "a.txt": "modified",
                "b.txt": "added",
            }
            (patch,) = [file["href"] for file in answer["artifacts"] if file["path"] == "changes.patch"]
            clone = tmp_path / answer["id"]
            git(tmp_path, "clone", "-q", str(served.root / "org/app.git"), str(clone))
            git(clone, "checkout", "-q", commit)
            git(clone, "apply", stdin=client.get(patch).content)
            assert (clone / "a.txt").read_text() == "one\nzwei\n" and (clone / "b.txt").read_text() == "new\n"
            shutil.rmtree(clone)


# Says to the stand-in what it is to do about it.
TESTS = """grep -q drei a.txt && exit 0
echo 'a.txt has no drei: [[tool Bash {"command": "echo drei >> a.txt"}]]'
exit 1
"""


@pytest.mark.parametrize("name", ["org/tested", "org/ssh-tested"])
def test_a_job_edits_is_tested_and_leaves_a_branch(
    stack: Gateway, served: GitServer, ssh: SshServer | None, tmp_path: Path, name: str
) -> None:
    """From a token to a branch at the server, by way of tests that fail at first; by http and by ssh."""
    is_by_ssh = name.startswith("org/ssh-")
    if is_by_ssh and ssh is None:
        pytest.skip("needs OpenSSH")
    asked_by_http = len(served.requests)
    served.create(name)
    commit = served.commit(name, {"a.txt": "one\ntwo\n", "tests.sh": TESTS})
    asked = {
        "prompt": """[[tool Bash {"command": "sed -i s/two/zwei/ a.txt"}]]""",
        "tools": ["Bash"],
        "check": "sh tests.sh",
        "max_repairs": 2,
        "result": {"push": "claude/{run}", "message": "Count in German"},
    }
    headers = {"X-Repo": name, "X-Branch": "main"}
    with stack.client("ada", *CALLER) as client:
        refused = client.post("/claude/jobs", json=asked, headers=headers)
        assert refused.status_code == 403 and "push_claim" in refused.text, "what may be worked on may not be pushed to"
    with stack.client("ada", *CALLER, "--claim", f'pushes=["{name}"]', "--claim", "email=ada@example.com") as client:
        job = client.post("/claude/jobs", json=asked, headers=headers)
        assert job.status_code == 202, job.text
        while (seen := client.get(job.headers["location"]).json())["state"] not in ("done", "failed"):
            time.sleep(0.1)
        assert seen["state"] == "done", seen
        answer = seen["result"]
        assert answer["repository"]["commit"] == commit
        assert answer["check"]["passed"] and answer["check"]["repairs"] == 1
        events = client.get(job.headers["location"] + "/events").text
        told = [line[7:] for line in events.splitlines() if line in ("event: check", "event: repair", "event: pushed")]
        assert told == ["check", "check", "repair", "check", "check", "pushed"]
        (patch,) = [file["href"] for file in answer["artifacts"] if file["path"] == "changes.patch"]
        branch, pushed = answer["pushed"]["branch"], answer["pushed"]["commit"]
        assert branch == f"claude/{answer['id']}"
        git(tmp_path, "clone", "-q", str(served.root / f"{name}.git"), "clone")
        clone = tmp_path / "clone"
        git(clone, "checkout", "-q", commit)
        git(clone, "apply", "--index", stdin=client.get(patch).content)
        assert (clone / "a.txt").read_text() == "one\nzwei\ndrei\n"
        assert git(clone, "write-tree") == git(clone, "rev-parse", f"origin/{branch}^{{tree}}")
        assert git(clone, "rev-parse", f"origin/{branch}", f"origin/{branch}^").split() == [pushed, commit]
        said = git(clone, "log", "-1", "--format=%an: %B", pushed)
        assert said == f"Claude: Count in German\n\nRun: {answer['id']}\nCo-authored-by: ada <ada@example.com>"
        again = client.post("/claude/jobs", json=asked | {"result": {"push": branch}}, headers=headers)
        while (seen := client.get(again.headers["location"]).json())["state"] not in ("done", "failed"):
            time.sleep(0.1)
        assert seen["state"] == "failed" and seen["error"]["status"] == 409, seen
    if is_by_ssh:
        assert ssh is not None and "Accepted publickey" in ssh.log
    assert (len(served.requests) == asked_by_http) == is_by_ssh


def test_a_job_on_a_repository_is_tried_again(stack: Gateway, served: GitServer) -> None:
    """By the button on its page, whose path names the repository, and by the API: as far as today's token allows it."""
    served.create("org/again")
    served.commit("org/again", {"a.txt": "one\n"})
    headers, ours = {"X-Repo": "org/again", "X-Branch": "main"}, {"Sec-Fetch-Site": "same-origin"}
    with stack.client("ada", *CALLER, "--claim", 'repos=["org/*", "other/*"]') as client:

        def began_and_cancelled(place: str) -> str:
            """Which repository its run says that it works on."""
            with client.stream("GET", f"{place}/events") as events:
                told = next(line for line in events.iter_lines() if '"repository"' in line)
            client.delete(place)
            wait_for(lambda: client.get(place).json()["state"] == "cancelled", what="its end")
            return json.dumps(json.loads(told.removeprefix("data: "))["repository"])

        job = client.post("/claude/jobs", json={"prompt": "[[hang]]"}, headers=headers)
        assert job.status_code == 202, job.text
        before = began_and_cancelled(job.headers["location"])
        assert '"ref": "main"' in before
        page = f"/claude/dashboard/jobs/{job.json()['id']}"
        (action,) = re.findall(r'action="([^"]+/retry[^"]*)"', client.get(page).text)
        assert action == f"{page}/retry/org/again"
        for path in (f"{page}/retry", f"{page}/retry/other/app"):  # one that this token allows, too
            assert client.post(path, headers=ours).status_code == 409, path
        with stack.client("ada", "--tier", "team", "--claim", 'repos=["other/*"]') as barred:
            refused = barred.post(action, headers=ours)
            assert refused.status_code == 403 and "does not allow this repository" in refused.text
            by_name = barred.post(f"{job.headers['location']}/retry", headers={"X-Repo": "org/again"})
            assert by_name.status_code == 403
        pressed = client.post(action, headers=ours)
        assert pressed.status_code == 303, pressed.text
        assert began_and_cancelled(pressed.headers["location"].replace("/dashboard", "")) == before
        asked = client.post(f"{job.headers['location']}/retry", headers={"X-Repo": "org/again"})
        assert asked.status_code == 202 and client.delete(asked.headers["location"]).status_code == 202, asked.text
        other = client.post(f"{job.headers['location']}/retry", headers=headers | {"X-Branch": "feature/x"})
        assert other.status_code == 409 and "X-Branch is main" in other.text


def test_the_credential_is_in_no_log_no_tree_and_not_in_redis(stack: Gateway, served: GitServer) -> None:
    """After a run and a job on a repository; the control is a word of the caller's, which Redis keeps."""
    served.create("org/clean")
    served.commit("org/clean", {"a.txt": "one\n"})
    headers = {"X-Repo": "org/clean", "X-Branch": "main"}
    with stack.client("ada", *CALLER) as client:
        job = client.post("/claude/jobs", json={"prompt": "the planted word of a caller"}, headers=headers)
        while client.get(job.headers["location"]).json()["state"] not in ("done", "failed"):
            time.sleep(0.1)
        assert client.post("/claude/invoke", json={"prompt": "hi"}, headers=headers).status_code == 200
    assert any(PASSWORD in base64.b64decode(given.split()[1]).decode() for given in served.authorizations), (
        "it was used"
    )

    def holders(needle: str) -> set[str]:
        found = subprocess.run(["grep", "-rlaF", needle, str(stack.home)], capture_output=True, text=True).stdout
        return {str(Path(path).relative_to(stack.home)) for path in found.splitlines()}

    assert any(path.startswith("redis/") for path in holders("the planted word of a caller")), "the control"
    encoded = base64.b64encode(f"x-access-token:{PASSWORD}".encode()).decode()
    assert holders(PASSWORD) == {"token"} and holders(encoded) == set()


@pytest.mark.parametrize(
    ("repository", "branch", "status"),
    [
        ("other/app", "main", 403),  # the gateway: not of this token
        ("org/app", "secret", 403),  # the invoker: no ref that may be asked for
        ("org/none", "main", 404),
        ("org/app", "feature/none", 404),
        ("org/../other/app", "main", 403),
    ],
)
def test_what_is_not_allowed_is_not_fetched(
    stack: Gateway, served: GitServer, repository: str, branch: str, status: int
) -> None:
    spent = len(stack.record())
    with stack.client("eve", *CALLER) as client:
        answer = client.post(
            "/claude/invoke", json={"prompt": "hi"}, headers={"X-Repo": repository, "X-Branch": branch}
        )
    assert answer.status_code == status, answer.text
    assert "other" not in json.dumps(served.requests)
    assert len(stack.record()) == spent  # and has cost nothing


def test_who_names_no_repository_has_an_empty_directory(stack: Gateway) -> None:
    with stack.client("bob", *CALLER) as client:
        answer = client.post("/claude/invoke", json={"prompt": '[[tool Bash {"command": "ls -A"}]]', "tools": ["Bash"]})
    assert answer.status_code == 200
    assert answer.json().get("repository") is None


def test_the_shown_command_sends_an_archive(stack: Gateway, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a").write_text("x")
    (tmp_path / "Makefile").write_text("all:\n")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/workspace.md").read_text(), re.DOTALL)
    (shown,) = [block for block in blocks if "base64" in block]
    environment = os.environ | {"GATEWAY": stack.url, "TOKEN": stack.token("ada", *CALLER)}
    done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Which files are there?" in json.loads(done.stdout)["result"], done
