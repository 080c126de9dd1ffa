"""How strong the boundary around a run is: computed from what holds, refused where it is too little, said in records."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from claude_contract.claims import UNCLAMPED, Clamp
from claude_contract.destinations import Destination
from claude_invoker.cli import rehearsal
from claude_invoker.cli.binary import programs_of, reachable_binary
from claude_invoker.cli.launcher import Launcher
from claude_invoker.cli.rehearsal import judged
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.users import SPAN
from claude_invoker.isolation import again, confine, domains, filters, namespaces, shell, trial
from claude_invoker.isolation.strength import Boundary, Property, Strength, TooWeak, admit, computed
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from tests.invoker.conftest import Invoker, as_root, bash, defended_and_without, tool, wait_for
from tests.support.processes import gone

with_landlock = pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes")
HAS_BUBBLEWRAP = namespaces.program() is not None
STRENGTHS = [
    pytest.param("namespaces", (), marks=pytest.mark.skipif(not HAS_BUBBLEWRAP, reason="bubblewrap is not installed")),
    pytest.param("landlock", ("a_machine_without_bubblewrap",)),
]
USERS = Property("a user id for each run", Strength.USER)
LANDLOCK = Property("Landlock", Strength.LANDLOCK)
BWRAP = Property("bubblewrap", Strength.NAMESPACES)


def lacking(found: Property) -> Property:
    return Property(found.name, found.needed_for, "not here")


@pytest.mark.parametrize(
    ("properties", "strength"),
    [
        ([USERS, LANDLOCK, BWRAP], Strength.NAMESPACES),
        ([USERS, LANDLOCK, lacking(BWRAP)], Strength.LANDLOCK),
        ([USERS, LANDLOCK], Strength.LANDLOCK),  # what was not tried does not hold
        ([USERS, lacking(LANDLOCK), BWRAP], Strength.USER),
        ([lacking(USERS), LANDLOCK, BWRAP], Strength.NAMESPACES),
        ([lacking(USERS), LANDLOCK, lacking(BWRAP)], Strength.LANDLOCK),
        ([lacking(USERS), lacking(LANDLOCK), BWRAP], Strength.NONE),
        ([lacking(USERS)], Strength.NONE),
        ([USERS], Strength.USER),
        ([], Strength.NONE),
    ],
)
def test_one_missing_property_is_the_next_lower_strength(properties: list[Property], strength: Strength) -> None:
    assert computed(properties) == strength
    for least in Strength:
        if least <= strength:
            assert admit(properties, least, commands_below=False, egress_obstacle=None).strength == strength
            continue
        with pytest.raises(TooWeak, match=f"`{strength.label}` here, INVOKER_ISOLATION={least.label} "):
            admit(properties, least, commands_below=False, egress_obstacle=None)
        allowed = admit(properties, least, commands_below=True, egress_obstacle=None)
        assert "Bash" not in allowed.left_out and "below" in allowed.label


@pytest.mark.parametrize("version", [0, 1, 3, 5])
def test_a_landlock_without_scopes_is_none(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12 has ABI 2, Ubuntu 24.04 has 4: neither keeps signals and abstract sockets inside."""
    monkeypatch.setattr(confine, "abi", lambda: version)
    made, properties = trial.boxes(tmp_path, Path("/bin/true"), None)
    assert not made and computed(properties) == Strength.NONE
    (missing,) = (found for found in properties if found.obstacle is not None)
    assert "Landlock" in missing.name and (f"ABI {version}" if version else "none") in str(missing.obstacle)


def test_without_libseccomp_there_is_no_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise filters.NoSeccomp("libseccomp is not installed")

    monkeypatch.setattr(confine, "abi", lambda: 7)
    monkeypatch.setattr(filters, "_library", missing)
    made, properties = trial.boxes(tmp_path, Path("/bin/true"), None)
    assert not made and computed(properties) == Strength.NONE
    assert "libseccomp is not installed" in [found.obstacle for found in properties]


BWRAPS = {
    "not installed": (None, "it is not installed"),
    "refused": ('echo "bwrap: No permissions to create new namespace" >&2; exit 1', "No permissions to create new nam"),
    "too old": ('echo "bwrap: Unknown option --info-fd" >&2; exit 1', "Unknown option --info-fd"),
    "one that does nothing": (
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "is among the machine's processes",
    ),
}


@with_landlock
@pytest.mark.parametrize("case", BWRAPS)
def test_without_bubblewrap_that_works_it_is_landlock(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is missing, where AppArmor or a container forbids user namespaces, where it does not what it says."""
    script, said = BWRAPS[case]
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(namespaces, "program", lambda: str(program) if script else None)
    made, properties = trial.boxes(programs_of(tmp_path), Path("/bin/true"), None)
    assert [found.strength for found in made] == [Strength.LANDLOCK]
    (missing,) = (found for found in properties if found.obstacle is not None)
    assert missing.needed_for == Strength.NAMESPACES and said in str(missing.obstacle)
    assert computed(properties) == Strength.LANDLOCK


@with_landlock
@pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize(
    ("without", "said"),
    [
        (("--unshare-pid",), "is among the machine's processes"),
        (("--unshare-net",), "connects to the invoker"),
        (("--unshare-uts", "--hostname", "run"), "has the machine's name"),
        (("--remount-ro", "/"), "writes beside its tree"),
    ],
)
def test_what_of_the_namespaces_is_not_there_is_found_out(
    without: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = namespaces.arguments

    def fewer(*given: Any, **more: Any) -> list[str]:
        words = list(made(*given, **more))
        for word in without:
            words.pop(len(words) - 1 - words[::-1].index(word))
        return words

    monkeypatch.setattr(namespaces, "arguments", fewer)
    monkeypatch.setattr(trial, "_OWN_PROC", (True,))  # else a domain around the CLI makes up for some of it
    found, properties = trial.boxes(programs_of(tmp_path), Path("/bin/true"), None)
    assert Strength.NAMESPACES not in [box.strength for box in found]
    (missing,) = (tried.obstacle for tried in properties if tried.obstacle is not None)
    assert missing.startswith(said), missing


CONTAINERS = {
    "settings that cannot be written": ("--disable-userns", ()),
    "hidden parts of /proc": ("--proc", ()),
    "and no filter": ("--proc", ("makes a user namespace",)),
    "and an open domain": ("--proc", ("sees the machine's processes",)),
}


@with_landlock
@pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("case", CONTAINERS)
def test_what_a_container_does_not_permit_is_made_up_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a domain around the CLI and by the filter; that these hold is tried, too."""
    refused, without = CONTAINERS[case]
    bwrap = namespaces.program()
    program = tmp_path / "bwrap"
    program.write_text(  # which is told by a descriptor
        f"""#!/usr/bin/python3
import os, sys
told = int(sys.argv[sys.argv.index("--args") + 1])
if "{refused}" in os.pread(told, 65536, 0).decode().split(chr(0)): sys.exit("bwrap: {refused}: not permitted")
os.execv("{bwrap}", sys.argv)
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(namespaces, "program", lambda: str(program))
    if "makes a user namespace" in without:
        monkeypatch.setattr(filters, "_no_namespaces", lambda seccomp: iter(()))
    if "sees the machine's processes" in without:
        monkeypatch.setattr(shell, "text_for_the_cli", lambda python, rules: '#!/bin/sh\nshift\nexec "$@"\n')
    made, properties = trial.boxes(programs_of(tmp_path), Path("/bin/true"), None)
    obstacles = " ".join(found.obstacle for found in properties if found.obstacle is not None)
    if without:
        assert Strength.NAMESPACES not in [box.strength for box in made]
        assert f"{refused}: not permitted" in obstacles and f"as in containers: {without[0]}" in obstacles
    else:
        box = made[0]
        assert box.strength == Strength.NAMESPACES and not obstacles
        assert box.less is not None and "a container permits" in box.less
        assert box.intact
        assert isinstance(box, namespaces.Namespaces) and box.confined is not None
        box.confined.chmod(0o777)
        assert not box.intact, "others could change what every CLI begins with"


MODES = """
cd {folder}; echo text > a
chmod 755 a && [ -x a ] && echo chmod changes
install -m 755 a b && [ -x b ] && echo install changes
git init -q r && git -C r add . && tar -cf r.tar r && mkdir t &&
tar --no-same-owner --no-same-permissions -xf r.tar -C t &&
python3 -c 'import os; os.chmod("a", 0o755)' && echo others go on
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="chmod(3) is the call that chmod(1) makes, too")
@pytest.mark.parametrize("shared", [False, True], ids=["own_user", "one_user"])
def test_who_asks_for_a_mode_is_told_that_it_does_not_change(shared: bool, tmp_path: Path) -> None:
    """Where runs have one user, and nothing but Landlock between them: modes did not change, and 0 came back."""

    def enter() -> None:
        confine.filtered(filters.of_shells(shared=shared))

    command = ["bash", "-c", MODES.format(folder=tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=enter)
    told = "chmod: changing permissions of 'a': Operation not permitted" in done.stderr
    assert told is shared and ("chmod changes" in done.stdout) is not shared
    assert ("install: cannot change permissions of 'b'" in done.stderr) is shared
    assert done.stdout.endswith("others go on\n"), done.stderr


class TooBusy:
    """Is too late so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def late(self) -> bool:
        self.left -= 1
        return self.left >= 0


@with_landlock
@pytest.mark.parametrize("times", [1, 2])
def test_a_loaded_machine_is_not_taken_for_a_weaker_one(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its programs miss a deadline once; only what misses it twice is not found out, and then that is the reason."""
    busy, runs = TooBusy(times), trial._run

    def late(*given: Any) -> subprocess.CompletedProcess[bytes]:
        if busy.late():
            raise subprocess.TimeoutExpired(["python3"], again.WITHIN_S)
        return runs(*given)

    monkeypatch.setattr(namespaces, "program", lambda: None)
    monkeypatch.setattr(trial, "_run", late)
    made, properties = trial.boxes(programs_of(tmp_path), Path("/bin/true"), None)
    assert "a process within landlock: no end within 60 s, it is tried once more" in caplog.text
    found = {tried.name: tried.obstacle for tried in properties}["a process within landlock"]
    assert (found is None and len(made) == 1) if times == 1 else str(found).startswith("not found out: twice")


@pytest.mark.parametrize("times", [1, 2])
async def test_nor_is_it_by_the_real_cli(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = TooBusy(times)

    async def late(launcher: Launcher) -> None:
        if busy.late():
            await asyncio.Event().wait()

    monkeypatch.setattr(rehearsal, "_WITHIN_S", 0.05)
    monkeypatch.setattr(rehearsal, "_run", late)
    monkeypatch.setattr(rehearsal, "judged", lambda said: None)
    monkeypatch.setattr(rehearsal, "replace", lambda launcher, **more: launcher)
    outcome = await rehearsal.rehearse(None, tmp_path)  # type: ignore[arg-type]  # nothing of it is asked
    assert "a command of the real CLI: no end within 0.05 s, it is tried once more" in caplog.text
    assert outcome is None if times == 1 else str(outcome).startswith("not found out: twice")
    assert not list(tmp_path.iterdir())


def test_a_run_has_a_tmp_of_its_own_only_where_nothing_else_is_below_it() -> None:
    """A command may write to its `tmp` and to what is below that, which a mount is: here it was the whole tree once, with
    the CLI's configuration."""
    for below in ("/tmp", "/dev/shm"):
        words = list(namespaces.arguments(Path(below, "t"), (Path("/srv/cli"),), network=False))
        assert below not in words
        words = list(namespaces.arguments(Path("/srv/t"), (Path("/srv/cli"),), network=False))
        assert words[words.index(below) - 1] == "/srv/t/tmp"
        assert below not in list(namespaces.arguments(Path("/srv/t"), (Path(below, "cli"),), network=False))


def test_the_domains_know_the_trees_directories(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    own = {path for path, _ in domains.of_cli(tree.root, ()) if path.startswith(str(tmp_path))}
    assert own == {str(path) for path in (tree.work, tree.home, tree.config, tree.temp)}
    shells = {str(tmp_path / path) for path, _ in domains.of_shells(()) if not path.startswith("/")}
    assert shells - own == {str(tree.root / domains.SNAPSHOTS)}
    assert not any(path.startswith("/proc") for path, _ in (*domains.of_cli(tree.root, ()), *domains.of_shells(())))


@pytest.mark.parametrize(
    ("tools", "boundary", "refused"),
    [
        (["Bash"], Boundary(Strength.NONE), "Bash: it runs commands"),
        (["Bash"], Boundary(Strength.NONE, commands_below=True), None),
        (["Bash"], Boundary(Strength.USER), None),
        (["Bash"], Boundary(Strength.LANDLOCK), None),
        (["WebFetch"], Boundary(Strength.LANDLOCK), "WebFetch: it reaches the network"),
        (["WebFetch"], Boundary(Strength.LANDLOCK, egress_obstacle=None), "WebFetch: it reaches the network"),
        (["WebFetch"], Boundary(Strength.USER), None),
        (["Read", "WebSearch"], Boundary(Strength.LANDLOCK), None),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_tool_that_the_boundary_rules_out_is_refused_and_not_left_out(
    tools: list[str], boundary: Boundary, refused: str | None, asked: bool
) -> None:
    """Whether the request names it, or the operator's tools for requests that name none, as far as the tier has them."""
    settings = Settings(trust="open", tools=tuple(tools))
    request = InvokeRequest(prompt="x", tools=tools if asked else None)
    if refused is None:
        assert set(plan(request, UNCLAMPED, settings, boundary).tools) == set(tools)
        return
    with pytest.raises(Problem, match="forbidden") as problem:
        plan(request, UNCLAMPED, settings, boundary)
    assert problem.value.status == 403 and refused in str(problem.value.document())
    if not asked:
        assert plan(request, Clamp(tools=("Read",)), settings, boundary).tools == (), "the tier has it not"


WITH_EGRESS = Boundary(Strength.LANDLOCK, egress_obstacle=None)
HOSTS = (Destination("*.npmjs.org"), Destination("pypi.org"))


@pytest.mark.parametrize(
    ("tools", "boundary", "cap", "opened"),
    [
        (["WebFetch"], WITH_EGRESS, None, HOSTS),
        (["Bash"], WITH_EGRESS, None, HOSTS),
        (["Bash"], WITH_EGRESS, "registry.npmjs.org,github.com", (Destination("registry.npmjs.org"),)),
        (["Bash"], WITH_EGRESS, "", ()),
        (["Read", "WebSearch"], WITH_EGRESS, None, ()),
        (["Read", "WebSearch"], Boundary(Strength.LANDLOCK), None, ()),
        (["Bash"], Boundary(Strength.LANDLOCK), "", ()),
        (["WebFetch"], WITH_EGRESS, "", "without hosts that its tier opens"),
        (["Bash"], Boundary(Strength.LANDLOCK, egress_obstacle="not permitted"), None, "not permitted"),
        (["WebFetch"], Boundary(Strength.LANDLOCK, egress_obstacle="not permitted"), None, "not permitted"),
        (["Bash"], Boundary(Strength.USER), None, "only from `landlock` on"),
        (["WebFetch"], Boundary(Strength.NONE, commands_below=True), None, "only from `landlock` on"),
    ],
)
def test_hosts_that_a_tier_opens_are_reached_or_the_request_is_refused(
    tools: list[str], boundary: Boundary, cap: str | None, opened: tuple[Destination, ...] | str
) -> None:
    """Never more than the tier and the operator both allow, and never a run without what its tier opens."""
    settings = Settings.model_validate({"trust": "open", "egress": cap})
    request, clamp = InvokeRequest(prompt="x", tools=tools), Clamp(egress=HOSTS)
    if isinstance(opened, tuple):
        assert plan(request, clamp, settings, boundary).egress == opened
        return
    with pytest.raises(Problem, match="forbidden") as problem:
        plan(request, clamp, settings, boundary)
    assert problem.value.status == 403 and opened in str(problem.value.document())


def test_without_a_tier_that_opens_hosts_there_are_none() -> None:
    settings = Settings.model_validate({"trust": "open", "egress": "pypi.org"})
    assert plan(InvokeRequest(prompt="x", tools=["Bash"]), UNCLAMPED, settings, WITH_EGRESS).egress == ()


@pytest.mark.parametrize("cap", ["*", "pypi.org,10.0.0.1", "localhost"])
def test_an_operators_hosts_are_hosts(monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    monkeypatch.setenv("INVOKER_EGRESS", cap)
    with pytest.raises(ValidationError, match="two labels at least"):
        Settings(trust="open")
    monkeypatch.setenv("INVOKER_EGRESS", "pypi.org, *.npmjs.org")
    assert Settings(trust="open").egress == tuple(reversed(HOSTS))


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("x\nrehearsal-begun\nbash: /proc/1/mem: Permission denied\nrehearsal-done\n", None),
        ("rehearsal-begun\nsignals the CLI\nrehearsal-done", "a command signals the CLI"),
        ("rehearsal-begun\nreads a\nreaches b\nrehearsal-done", "a command reads a, reaches b"),
        ("rehearsal-begun\n", "the CLI's Bash does not run a command"),
        ("", "the CLI's Bash does not run a command"),
    ],
)
def test_a_rehearsal_is_judged_by_what_its_command_has_reached(said: str, wrong: str | None) -> None:
    assert judged(said) == wrong


@as_root
def test_an_invoker_with_less_than_the_least_accepted_does_not_start(start_invoker: Callable[..., Invoker]) -> None:
    without = ("a_kernel_without_landlock",)
    refused = start_invoker(wait=False, isolation="landlock", without=without)
    wait_for(lambda: "INVOKER_ISOLATION=landlock is the least accepted" in refused.log.read_text(), what="the refusal")
    assert "Landlock with scopes (ABI 6): the kernel has none" in refused.log.read_text()
    wait_for(lambda: gone(refused.pid), what="its end")
    assert not (refused.state / "trees").exists(), "it leaves nothing"
    allowed = start_invoker(isolation="landlock", allow_commands_below=1, without=without)
    with allowed.client() as api:
        answer = bash(api, "id -u")
        assert answer.status_code == 200, answer.text
        label = "user (commands allowed below the least accepted)"
        assert answer.json()["isolation"] == label
        assert api.get(f"/runs/{answer.json()['id']}").json()["isolation"] == label
        assert api.get("/readyz").json()["checks"]["isolation"] == label
        assert "claude_invoker_isolation 1.0" in api.get("/metrics").text


STRIKES = """
import sys
from claude_invoker.cli.killer import strike
while True: strike(int(sys.argv[1]), int(sys.argv[1]))
"""


@as_root
@with_landlock
@pytest.mark.parametrize("without", defended_and_without("trials_by_the_killers_user"))
def test_who_starts_while_others_end_runs_has_no_weaker_boundary(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """All invokers of a machine end runs by one user id, and whatever has that id is struck as well."""
    base = 500_000 + os.getpid() % 100 * SPAN
    others = subprocess.Popen([sys.executable, "-c", STRIKES, str(base)])
    try:
        invoker = start_invoker(uid_base=base, pool_size=0, without=without)
        with invoker.client() as api:
            checks = api.get("/readyz").json()["checks"]
    finally:
        others.kill()
        others.wait()
    best = "namespaces" if HAS_BUBBLEWRAP else "landlock"
    assert (checks["isolation"] == best) != bool(without), checks


@as_root
@with_landlock
@pytest.mark.parametrize("warm", [0, 1])
@pytest.mark.parametrize("without", defended_and_without("a_shell_that_is_not_looked_at"))
def test_no_run_starts_without_the_shells_wrapper(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...], warm: int
) -> None:
    """The CLI takes another shell where it is missing, and says nothing."""
    invoker = start_invoker(isolation="landlock", pool_size=warm, without=without)
    with invoker.client() as api:
        look = 'ls "$CLAUDE_CONFIG_DIR" >/dev/null && echo reached'
        assert "reached" not in bash(api, look).json()["result"]
        wait_for(lambda: api.get("/readyz").json()["checks"]["warm"] == warm, what="a warm process")
        for wrapper in invoker.state.glob("trees/bin/bash-*"):
            wrapper.unlink()
        answer = bash(api, look)
        assert answer.status_code == (200 if without else 502), answer.text
        assert ("reached" in answer.text) == bool(without)


@as_root
@with_landlock
def test_a_shell_that_does_not_confine_is_found_out_at_the_start(start_invoker: Callable[..., Invoker]) -> None:
    """At each strength that would have it."""
    invoker = start_invoker(without=("a_shell_that_confines_nothing",), pool_size=0)
    with invoker.client() as api:
        checks = api.get("/readyz").json()["checks"]
    assert checks["isolation"] == "user"
    assert all("a command writes the CLI's configuration" in lack for lack in checks["isolation_lacks"][-1:])
    assert len([lack for lack in checks["isolation_lacks"] if "of the real CLI" in lack]) == 1 + HAS_BUBBLEWRAP


@as_root
@with_landlock
@pytest.mark.parametrize(("strength", "without"), STRENGTHS)
def test_runs_say_that_they_were_confined_and_web_fetch_is_refused(
    start_invoker: Callable[..., Invoker], strength: str, without: tuple[str, ...]
) -> None:
    invoker = start_invoker(isolation=strength, without=without, pool_size=0)
    with invoker.client() as api:
        answer = bash(
            api,
            "git --version; find . ; grep -c x <<<x; /usr/bin/find .; python3 -c 'print(6 * 7)'; mktemp; [ -w /dev/null ]; yes | head -1; echo ${PIPESTATUS[0]}",
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["isolation"] == strength
        assert all(word in answer.json()["result"] for word in ("git version", "\n42\n", "\n141"))
        assert "denied" not in answer.json()["result"], answer.json()["result"]
        assert f"claude_invoker_isolation {Strength[strength.upper()]:d}.0" in api.get("/metrics").text
        refused = api.post("/invoke", json={"prompt": tool("WebFetch", url="http://x"), "tools": ["WebFetch"]})
        assert refused.status_code == 403 and "WebFetch" in refused.text


def test_the_filter_is_made_for_this_machine() -> None:
    """A process under the CLI's filter has unix sockets and no others."""
    program = (
        "import socket\nfrom claude_invoker.isolation import confine, filters\n"
        "confine.enter(confine.ruleset((('/', confine.ALL),)), filters.of_cli())\n"
        "socket.socket(socket.AF_UNIX).close()\nsocket.socket(socket.AF_INET)"
    )
    if confine.abi() < 6:
        pytest.skip("this kernel's Landlock has no scopes")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Address family not supported" in done.stderr and "line 5" in done.stderr


@pytest.mark.parametrize("architecture", ["X86_64", "AARCH64"])
def test_the_lists_make_a_filter_for_each_architecture(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whichever machine this is: the rules are the same, their numbers are not."""
    seccomp = pytest.importorskip("pyseccomp")
    made: set[bytes] = {filters.of_cli(), filters.of_shells()}
    begin = seccomp.SyscallFilter.__init__

    def elsewhere(self: Any, default: int) -> None:
        begin(self, default)
        wanted = getattr(seccomp.Arch, architecture)
        if seccomp.system_arch() != wanted:
            self.add_arch(wanted)
            self.remove_arch(seccomp.Arch.NATIVE)

    monkeypatch.setattr(seccomp.SyscallFilter, "__init__", elsewhere)
    if seccomp.system_arch() != getattr(seccomp.Arch, architecture):
        # It translates numbers by the names it knows; on the machine itself they are taken as they are.
        monkeypatch.setattr(filters, "REFUSED_NUMBERS", ())
    for program in (filters.of_cli(), filters.of_shells()):
        assert len(program) % 8 == 0 and len(program) > 20 * 8
        assert (program in made) == (seccomp.system_arch() == getattr(seccomp.Arch, architecture))


OF_ITS = """
import pathlib, sys
from claude_invoker.cli.binary import reachable_binary
cli = pathlib.Path(sys.argv[1])
said = [reachable_binary(cli, cli.parent, isolated=False)]
try: reachable_binary(cli, cli.parent, isolated=True)  # the control: it cannot be read
except OSError as error: said.append(type(error).__name__)
print(*said)
"""


def test_whose_runs_have_its_own_user_needs_no_cli_that_it_can_read(tmp_path: Path) -> None:
    """Images close theirs; a pod that is not root's did not start with one: "claude: Permission denied"."""
    read = [sys.executable, "-c", OF_ITS, str(tmp_path / "cli")]
    (tmp_path / "cli").write_bytes(b"#!")
    (tmp_path / "cli").chmod(0o111)
    tmp_path.chmod(0o711)
    if os.geteuid() == 0:  # who may read everything
        read = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--securebits=+noroot", *read]
    done = subprocess.run(read, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'cli'} PermissionError\n", done.stderr


def test_invokers_that_start_at_once_put_their_programs_in_one_place(tmp_path: Path) -> None:
    """API and worker of one state directory, in containers where each is process 1."""
    cli = tmp_path / "cli"
    cli.write_bytes(os.urandom(1 << 20))
    programs = programs_of(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        shells = set(pool.map(lambda _: shell.install(programs, "bash-x", "x" * 100_000), range(40)))
        targets = set(pool.map(lambda _: reachable_binary(cli, programs, isolated=True), range(40)))
    assert {path.read_text() for path in shells} == {"x" * 100_000}
    assert {path.read_bytes() for path in targets} == {cli.read_bytes()}
    assert len(list(programs.iterdir())) == 2 and all(shell.intact(path) for path in shells)
