"""A GitHub App's repositories, from outside of an invoker: a run works on one, leaves a branch and a pull request, and
comes to neither key nor token. GitHub is a stand-in of its documented API; git is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.invoker.conftest import Invoker, tool, wait_for
from tests.invoker.test_workspace import SECRET, Desk
from tests.support.git_server import git, serving
from tests.support.github import APP, GitHub, github_serving

pytestmark = pytest.mark.xdist_group("workspace")


@pytest.fixture(scope="module")
def github() -> Iterator[GitHub]:
    with github_serving() as served:
        served.granted["pull_requests"] = "write"
        yield served


@pytest.fixture(scope="module")
def desk(
    start_invoker: Callable[..., Invoker], tmp_path_factory: pytest.TempPathFactory, github: GitHub
) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("github")
    key = folder / "app.pem"
    key.write_text(github.pem)
    key.chmod(0o400)
    with serving(folder / "served") as server:
        server.lets_in = github.lets_in
        app = f"  github_app: {{id: {APP}, key_file: {key}, api: '{github.url}'}}\n  refresh_s: 0\n"
        file = folder / "repositories.yaml"
        file.write_text(
            "".join(
                f"{pattern}:\n  url: {server.url}/{{repository}}.git\n{app}"
                f"  push: {{branches: 'claude/*', author: 'C <c@example.com>', pull_requests: {opens}}}\n"
                for pattern, opens in (("org/closed-*", "false"), ("org/*", "true"))
            )
        )
        invoker = start_invoker(
            wait=False, trust="attested", attestation_key=SECRET, repositories=file, isolation="user",
            pool_size=0, pool_max=0, first_output_s=90, idle_s=90, api_timeout_s=60,
        )  # fmt: skip
        wait_for(invoker.ready, what="readiness")
        with invoker.client() as client:
            client.timeout = 180
            yield Desk(invoker, server, client)
        invoker.stop()


def served(desk: Desk, github: GitHub, name: str) -> str:
    desk.server.create(name)
    github.installed.add(name)
    return desk.server.commit(name, {"a.txt": "one\n"})


def ask(
    desk: Desk,
    name: str,
    command: str,
    wish: dict[str, Any] | None = None,
    may: tuple[str, ...] = ("push", "pull_request"),
) -> Any:
    """`may`: what the gateway attests that the caller may besides working on it."""
    document: dict[str, Any] = {"prompt": tool("Bash", command=command), "tools": ["Bash"]}
    named: dict[str, Any] = {"name": name, "ref": "main", **dict.fromkeys(may, True)}
    return desk.post(name, "main", document | ({} if wish is None else {"result": wish}), repo=named)


def opened_by(desk: Desk, name: str, *may: str) -> Any:
    return ask(desk, name, "echo two > a.txt", {"push": "claude/{run}", "pull_request": True}, may)


def test_a_run_leaves_a_branch_and_a_pull_request(desk: Desk, github: GitHub) -> None:
    commit = served(desk, github, "org/app")
    wish = {"push": "claude/1", "message": "Count on", "pull_request": True}
    answer = ask(desk, "org/app", "echo two > a.txt", wish)
    assert answer.status_code == 200, answer.text
    pushed = answer.json()["pushed"]
    assert pushed["problem"] is None and pushed["pull_request"] == "https://github.com/org/app/pull/1"
    run = answer.json()["id"]
    assert github.pulls == [{"head": "claude/1", "base": "main", "title": "Count on", "body": f"Run: {run}"}]
    assert git(desk.server.root / "org/app.git", "rev-parse", "claude/1^") == commit
    permissions = [token["permissions"] for token in github.tokens.values()]
    assert permissions == [{"contents": "read"}, {"contents": "write"}, {"pull_requests": "write"}]
    assert all(token["repositories"] == ["app"] for token in github.tokens.values())


def test_a_pull_request_needs_what_a_push_needs_a_claim_of_its_own_and_the_operator_s_word(
    desk: Desk, github: GitHub
) -> None:
    """A gateway that knows of no such claim attests none, and none is opened."""
    for name in ("org/asked", "org/closed-1"):
        served(desk, github, name)
    spent, opened = len(github.requests), len(github.pulls)
    for name, may, said in (
        ("org/asked", (), "push_claim"),
        ("org/asked", ("pull_request",), "push_claim"),
        ("org/asked", ("push",), "pull_request_claim"),
        ("org/closed-1", ("push", "pull_request"), "pull_requests"),
    ):
        refused = opened_by(desk, name, *may)
        assert refused.status_code == 403 and said in refused.json()["detail"], refused.text
    assert len(github.requests) == spent, "and nothing was asked of GitHub"
    alone = ask(desk, "org/asked", "true", {"pull_request": True})
    assert alone.status_code == 422
    left = ask(desk, "org/asked", "echo two > a.txt", {"push": "claude/{run}"}, ("push",))
    assert left.json()["pushed"]["commit"], "a branch is left by who may push alone"
    assert opened_by(desk, "org/asked", "push", "pull_request").json()["pushed"]["pull_request"], "the control"
    assert len(github.pulls) == opened + 1


def test_a_branch_stays_where_github_opens_no_pull_request(desk: Desk, github: GitHub) -> None:
    served(desk, github, "org/no-pull")
    del github.granted["pull_requests"]
    try:
        pushed = opened_by(desk, "org/no-pull", "push", "pull_request").json()["pushed"]
    finally:
        github.granted["pull_requests"] = "write"
    assert pushed["commit"] and pushed["pull_request"] is None and "no pull request" in pushed["problem"]
    assert git(desk.server.root / "org/no-pull.git", "rev-parse", pushed["branch"]) == pushed["commit"]


def test_key_and_tokens_are_nowhere_that_a_run_comes_to(desk: Desk, github: GitHub) -> None:
    served(desk, github, "org/searched")
    line = github.pem.splitlines()[3]
    half = line[:20], line[20:]
    search = (
        f"key={half[0]}; key=${{key}}{half[1]}; token=ghs_; token=${{token}}000; "
        "for needle in $key $token; do (command grep -rlF $needle . ~ $TMPDIR /tmp /run /etc; env | grep -c $needle; "
        "cat /proc/*/environ /proc/*/cmdline | command grep -ac $needle) 2>/dev/null; done; echo searched"
    )
    said = desk.said(ask(desk, "org/searched", f"timeout 60 bash -c '{search}'"))
    found = [part for part in said.replace("\\n", "\n").split() if part not in ("0", "searched")]
    assert "searched" in said and not [part for part in found if part.startswith(("/", "./"))], said
    for needle in (line, *github.tokens):
        assert needle not in desk.invoker.log.read_text()
    desk.server.commit("org/searched", {"planted": f"{line}\n"})
    assert "./planted" in desk.said(ask(desk, "org/searched", f"timeout 60 bash -c '{search}'")), "the control"
