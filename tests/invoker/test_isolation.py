"""What a user id for each run keeps from it: tools that try, as two tenants at once. (tests/escape has the rest.)"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from claude_invoker.cli.kill import owners
from tests.invoker.conftest import KEY, Invoker, tool, wait_for, without_boundary

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root")
pytestmark = pytest.mark.xdist_group("unbounded")


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


def bash(api: httpx.Client, command: str, **more: Any) -> str:
    answer = api.post("/invoke", json={"prompt": tool("Bash", command=command), "tools": ["Bash"], **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"])


@as_root
def test_a_tool_shell_finds_no_key(api: httpx.Client) -> None:
    """Not in its environment, not in the CLI's, not in the CLI's memory, not in the server's."""
    scan = (
        "import os,re,sys\n"
        "ppid=os.environ['CLAUDE_PID']\n"
        "found=0\n"
        "for line in open(f'/proc/{ppid}/maps'):\n"
        "    m=re.match(r'([0-9a-f]+)-([0-9a-f]+) rw',line)\n"
        "    if not m: continue\n"
        "    a,b=(int(x,16) for x in m.groups())\n"
        "    try:\n"
        "        with open(f'/proc/{ppid}/mem','rb',0) as mem:\n"
        "            mem.seek(a); data=mem.read(min(b-a,1<<28))\n"
        "    except (OSError,OverflowError,ValueError): continue\n"
        "    found+=data.count(b'sk-ant-'+b'dummy')\n"
        "print('in-memory', found)\n"
    )
    text = bash(
        api, f"env; tr '\\0' '\\n' </proc/$CLAUDE_PID/environ; python3 -c {json.dumps(scan)!s}".replace("\\n", "\n")
    )
    assert KEY not in text
    assert "ANTHROPIC_API_KEY" not in text and "ANTHROPIC_AUTH_TOKEN" not in text
    assert "SECRET_OF_THE_SERVER" not in text
    assert "in-memory 0" in text, text[-500:]


@as_root
def test_two_tenants_do_not_see_each_other(api: httpx.Client, invoker: Invoker) -> None:
    """One run holds a secret in a file and in its environment; the other, at the same time, looks for it."""
    secret = "tenant-one-" + os.urandom(8).hex()

    def victim() -> str:
        return bash(api, f"echo {secret} > secret.txt; export HIDDEN={secret}; sleep 5; cat secret.txt")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(victim)
        wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/secret.txt")), what="the victim's file")
        file = next(iter(invoker.state.glob("trees/engines/*/*/work/secret.txt")))
        attempts = (
            f"cat {file}; ls -la {file.parent} {file.parent.parent} {file.parents[2]};"
            f"ln -s {file} link; cat link; ln {file} hard; ls {invoker.state}/artifacts {invoker.state}/trees/sessions;"
            "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep HIDDEN; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | wc -c;"
            "sudo -n id; exit 0"
        )
        seen = bash(api, attempts)
        prompt = (
            tool("Read", file_path=str(file)) + tool("Read", file_path="link") + tool("Glob", pattern="/**/secret.txt")
        )
        read = api.post("/invoke", json={"prompt": prompt, "tools": ["Read", "Glob"]}).text
        # Its own CLI is all that it reaches.
        suicide = api.post("/invoke", json={"prompt": tool("Bash", command="kill -9 -1"), "tools": ["Bash"]})
        assert suicide.status_code == 502
        survived = first.result()
    assert secret in survived
    assert secret not in seen and secret not in read
    assert "Permission denied" in seen


@as_root
def test_each_run_has_a_user_of_its_own_and_an_empty_place(api: httpx.Client) -> None:
    look = "id -u; id -G; ls -A; ls -A $HOME; ulimit -c; umask; cat /proc/self/status | grep NoNewPrivs"
    first, second = bash(api, look).split("\n"), bash(api, look).split("\n")
    assert first[1] != second[1], "two runs had the same user"
    assert int(first[1]) >= 1000
    assert first[2] == first[1], "supplementary groups"
    assert first[-1].split() == ["NoNewPrivs:", "1"]
    assert "077" in "".join(first[3:])


PLANTED = {
    ".claude/settings.json": {
        "hooks": {"UserPromptSubmit": [{"hooks": [{"type": "command", "command": "touch $OUT"}]}]}
    },
    ".mcp.json": {"mcpServers": {"evil": {"command": "/bin/sh", "args": ["-c", "touch $OUT"]}}},
}


@as_root
@pytest.mark.parametrize(
    ("without", "obeyed"),
    [
        ((), set()),
        pytest.param(("settings_are_obeyed",), {"work"}, marks=pytest.mark.slow),
        pytest.param(
            ("settings_are_obeyed", "sessions_keep_all_that_the_cli_reads"), {"work", "user"}, marks=pytest.mark.slow
        ),
    ],
)
def test_an_untrusted_directory_configures_nothing(
    attacked: Callable[..., Invoker], without: tuple[str, ...], obeyed: set[str]
) -> None:
    """Hooks, MCP servers and settings that an earlier run of a session wrote do not run in the next: neither those in its
    directory of work nor those in the CLI's own, where it would look for its user's."""
    invoker = attacked(without)
    lines = []
    for place, folder in {"work": ".", "user": "$CLAUDE_CONFIG_DIR", "home": "$HOME"}.items():
        for path, content in PLANTED.items():
            target = f"{folder}/{path.removeprefix('.claude/') if place == 'user' else path}"
            text = json.dumps(content).replace("$OUT", f"$PWD/obeyed-{place}")
            lines.append(f'mkdir -p "$(dirname "{target}")"; cat > "{target}" <<EOF\n{text}\nEOF\n')
    with invoker.client() as api:
        body = {"prompt": tool("Bash", command="".join(lines) + "ls -A"), "tools": ["Bash"], "session": "new"}
        first = api.post("/invoke", json=body)
        assert first.status_code == 200, first.text
        assert ".mcp.json" in first.json()["result"]
        body = {
            "prompt": tool("Bash", command="ls -A . .claude"),
            "tools": ["Bash"],
            "session": first.json()["session"],
        }
        again = api.post("/invoke", json=body).json()["result"]
    assert ".mcp.json" in again and "settings.json" in again
    assert {found for found in ("work", "user", "home") if f"obeyed-{found}" in again} == obeyed


@as_root
def test_a_process_that_left_its_session_ends_with_the_run(api: httpx.Client, invoker: Invoker) -> None:
    uid = bash(api, "setsid -f sleep 987; (trap '' TERM HUP INT; setsid -f nohup sleep 986 >/dev/null 2>&1 &); id -u")
    number = int(uid.split("\n")[1])
    assert not owners([number])


def test_the_runs_token_is_worth_nothing_after_it(api: httpx.Client) -> None:
    """The key proxy: no key without a token, and no token outlives its run."""
    socket = bash(api, "echo $ANTHROPIC_UNIX_SOCKET").split("\n")[1]
    proxy = httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://proxy")
    for token in ("", "run-guess", KEY):
        answer = proxy.post("/v1/messages", json={"model": "x", "messages": []}, headers={"x-api-key": token})
        assert answer.status_code == 401
    assert proxy.post("/v1/files", headers={"x-api-key": "x"}).status_code == 404


def test_clamped_models_bind_every_request(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(models="haiku", pool_size=0)
    with invoker.client() as api:
        assert api.post("/invoke", json={"prompt": "x", "model": "opus"}).status_code == 403
        answer = api.post("/invoke", json={"prompt": "x"})
        assert answer.status_code == 200, answer.text
        assert "haiku" in answer.json()["model"]
