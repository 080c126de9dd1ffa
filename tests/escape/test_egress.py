"""A run whose tier opens hosts: it reaches them, and for all the rest it is as confined as any other."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from claude_invoker.isolation import confine, network, shell, trial
from claude_invoker.isolation.box import Box
from claude_invoker.isolation.network import Way
from tests.escape import attacks
from tests.escape.conftest import ATTACKS, Raid, raid
from tests.escape.test_landlock import OPTIONAL, assert_held
from tests.invoker.conftest import Invoker, StandInProcess, bash, program, tool, wait_for
from tests.invoker.names import OUTSIDE
from tests.invoker.ordinary import folder_of_its, started
from tests.invoker.test_unprivileged import STRENGTHS
from tests.support.processes import command_line
from tests.support.site import LARGE, Site

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.xdist_group("escape"),
]
ELSEWHERE = ("elsewhere.test", "inside.example.test", "both.example.test", "127.0.0.1")
ROOT = Path(__file__).parents[2]
UID = 276_000  # nobody else's on this machine


@pytest.fixture(scope="session")
def start_reaching(start_invoker: Callable[..., Invoker], site: Site) -> Callable[..., Invoker]:
    """Starts an invoker whose runs may reach the site and other hosts of example.test."""

    def start(*without: str, **settings: Any) -> Invoker:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in reached_by(site).items():
                patch.setenv(name, value)
            return start_invoker(isolation="landlock", without=without, idle_s=60, **({"pool_size": 0} | settings))

    return start


@pytest.fixture(scope="session")
def reaching(start_reaching: Callable[..., Invoker]) -> Invoker:
    return start_reaching("names_of_a_test", egress_max_bytes=LARGE - 1)


@pytest.fixture(scope="session")
def opened(reaching: Invoker, services: dict[str, Any]) -> Raid:
    return raid(reaching, services)


def reached_by(site: Site) -> dict[str, str]:
    """What the variant `names_of_a_test` reads of the invoker's environment."""
    return {"SITE_AUTHORITY": str(site.authority), "SITE_HOSTS": f"*.example.test:{site.port}"}


def works(site: Site) -> str:
    host = f"https://site.example.test:{site.port}"
    authority = "$HOME/authority.pem"
    return f"""
env | grep -i no_proxy
GIT_SSL_CAINFO={authority} git clone -q {host}/thing.git && git -C thing log --format=%s
/usr/bin/python3 -m pip --version >/dev/null && pip=/usr/bin/pip3 || echo saved-without-pip
${{pip:-true}} --cert {authority} --disable-pip-version-check download -q --no-deps --index-url {host}/simple thing
ls thing-*.whl
curl -sS --cacert {authority} {host}/page.html
"""


def goes_elsewhere(site: Site) -> str:
    curl = "curl -sk --max-time 20 -o /dev/null -w '%{http_connect}'"
    return "\n".join(f"echo {name} $({curl} https://{name}:{site.port}/)" for name in ELSEWHERE)


def check_that_it_works(invoker: Invoker, site: Site) -> None:
    host = f"site.example.test:{site.port}"
    with invoker.client() as api:
        answer = bash(api, works(site)).json()
        assert "cloned-from-the-site" in answer["result"], answer
        assert "a page of the site" in answer["result"]
        assert "thing-1.0-py3-none-any.whl" in answer["result"] or "saved-without-pip" in answer["result"], answer
        assert "NO_PROXY" not in answer["result"].upper()
        assert answer["egress"] == [host] == api.get(f"/runs/{answer['id']}").json()["egress"]
        fetched = api.post(
            "/invoke",
            json={"prompt": tool("WebFetch", url=f"https://{host}/page.html", prompt="x"), "tools": ["WebFetch"]},
        )
        assert fetched.status_code == 200 and "a page of the site" in fetched.json()["result"], fetched.text
        assert f"egress run={answer['id']} subject='developer' {host} at {OUTSIDE}" in invoker.log.read_text()
        metrics = api.get("/metrics").text
        assert "claude_invoker_egress_led " in metrics and "claude_invoker_egress_led 0.0" not in metrics
        assert api.get("/readyz").json()["checks"]["egress_lacks"] is None


def test_what_a_tier_opens_works(reaching: Invoker, site: Site) -> None:
    """git, pip, curl and the CLI's WebFetch, each by the variables that it reads anyway."""
    check_that_it_works(reaching, site)


@pytest.mark.slow
@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_else_is_opened_with_it(attack: str, opened: Raid, unconfined: Raid) -> None:
    assert_held(attack, opened, unconfined)


def test_a_command_goes_to_no_other_host(reaching: Invoker, site: Site) -> None:
    check_that_it_goes_nowhere_else(reaching, site)


def check_that_it_goes_nowhere_else(invoker: Invoker, site: Site) -> None:
    with invoker.client() as api:
        answer = bash(api, goes_elsewhere(site)).json()
    assert [line for line in answer["result"].splitlines() if line.endswith(" 403")] == [
        f"{name} 403" for name in ELSEWHERE
    ]
    assert answer["egress"] == []


def fetches_much(site: Site) -> str:
    curl = f"curl -sk -w '%{{http_connect}} %{{size_download}}\\n' https://site.example.test:{site.port}"
    return f"echo $({curl}/large -o /dev/null); echo $({curl}/page.html -o /dev/null)"


def test_a_command_moves_no_more_than_it_may(reaching: Invoker, site: Site) -> None:
    """The control is in `test_at_landlock_it_is_the_same`, with the bound as it is shipped."""
    with reaching.client() as api:
        cut_off, refused = bash(api, fetches_much(site)).json()["result"].splitlines()[-2:]
    assert int(cut_off.split()[1]) < LARGE and refused == "403 0"


def test_what_a_run_has_open_ends_with_it(reaching: Invoker, site: Site) -> None:
    came = site.came
    host = f"https://site.example.test:{site.port}"
    with reaching.client() as api:
        answer = bash(api, f"setsid curl -sk {host}/waits >/dev/null 2>&1 & sleep 1; curl -sk {host}/page.html")
    assert "a page of the site" in answer.json()["result"]
    assert site.came == came + 1
    wait_for(lambda: not site.waiting, what="the end of the connection")


ON_A_PROCESS = [name for name in attacks.ATTACKS if "the_cli" in name and "configuration" not in name]
"""What is tried on the CLI works on any process whose number is given in its place."""


@pytest.mark.slow
def test_a_command_does_nothing_to_the_processes_that_serve_its_run(reaching: Invoker, site: Site) -> None:
    """The filter, and the metering proxy, which has the API's key. The control is root, who may do it."""
    with reaching.client() as api:
        assert "a page of the site" in bash(api, works(site)).json()["result"]  # so that there is a filter
        for word in ("names.py", "claude_invoker.metering"):
            (process,) = (child for child in reaching.children() if word in command_line(child))
            at = json.dumps({"cli": process.pid, "attacks": ON_A_PROCESS})
            said = bash(api, program(ATTACKS, f"'{at}'")).json()["result"]
            held = json.loads(said.splitlines()[-1])
            assert set(held) == set(ON_A_PROCESS) and all("Error" in outcome for outcome in held.values()), held
            control = subprocess.run([sys.executable, "-c", ATTACKS, at], capture_output=True, check=True).stdout
            succeeded = {name for name, outcome in json.loads(control).items() if outcome == "escaped"}
            missed = {name: json.loads(control)[name] for name in ON_A_PROCESS if name not in succeeded}
            # Of a container's root the last has CAP_SYS_RESOURCE rarely.
            excused = OPTIONAL | {"limits_the_cli": ("not permitted",)}
            assert all(any(word in missed[name] for word in excused.get(name, ())) for name in missed), missed
            assert process.is_running()
        assert "a page of the site" in bash(api, works(site)).json()["result"], "both are as they were"


FLOODS = r"""
import os, socket, sys, time
host = sys.argv[1]
def connected():
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(60)
    made.connect(("127.0.0.1", 3128))
    return made
open("flooding", "w").close()
# Heads that never end, as many as it gets, ...
slow = []
for n in range(400):
    try:
        slow.append(connected())
        slow[-1].send(b"CONNECT ")
    except OSError: break
# ... and ten thousand that do, from four processes.
for n in range(4):
    if os.fork() == 0:
        answers = {}
        for n in range(2500):
            try:
                with connected() as made:
                    made.sendall(b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n")
                    said = made.recv(99)[9:12].decode()
            except OSError as error: said = type(error).__name__
            answers[said] = answers.get(said, 0) + 1
        print(answers, flush=True)
        os._exit(0)
for n in range(4): os.wait()
print("flooded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True], ids=["bounded", "control"])
def test_a_run_that_floods_the_filter_keeps_no_other_from_it(
    start_reaching: Callable[..., Invoker], site: Site, control: bool
) -> None:
    """It is the same process for both; what one run may have of it is bounded."""
    invoker = start_reaching("a_filter_without_bounds" if control else "names_of_a_test")
    host = f"https://site.example.test:{site.port}"
    works = f"touch begun; while [ ! -e over ]; do curl -sk {host}/page.html || echo lost; sleep 0.2; done"
    with invoker.client() as api, ThreadPoolExecutor(1) as pool:
        api.timeout = httpx.Timeout(200)
        neighbour = pool.submit(bash, api, works)
        wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/begun")), what="the neighbour")
        try:
            (filter,) = (child for child in invoker.children() if "names.py" in command_line(child))
            before = filter.memory_info().rss
            flood = bash(api, program(FLOODS, host))
            grown = filter.memory_info().rss - before
        finally:
            for path in invoker.state.glob("trees/engines/*/*/work/begun"):
                path.with_name("over").touch()
        said = neighbour.result().json()["result"]
    assert "flooded" in flood.json()["result"], flood.text
    assert "a page of the site" in said and "lost" not in said
    logged = invoker.log.read_text().count("evil.test:443 is not among the hosts")
    if control:
        assert logged == 10_000
    else:
        assert logged <= 2000 and "ConnectionRefusedError" in flood.json()["result"]
        assert grown < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "name"),
    [("hosts_that_nobody_named", "elsewhere.test"), ("addresses_that_nobody_looks_at", "both.example.test")],
)
def test_a_command_goes_elsewhere_without_the_filters_checks(
    start_reaching: Callable[..., Invoker], site: Site, without: str, name: str
) -> None:
    """The control of the test above: the filter is asked and no longer says 403."""
    with start_reaching(without).client() as api:
        answer = bash(api, goes_elsewhere(site)).json()["result"]
    assert f"{name} 200" in answer


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), ("networks_by_user_namespaces",)])
def test_at_landlock_it_is_the_same(
    way: tuple[str, ...],
    start_reaching: Callable[..., Invoker],
    site: Site,
    services: dict[str, Any],
    unconfined: Raid,
) -> None:
    """By both ways in which an invoker of root's comes by a network of a run's own."""
    invoker = start_reaching("names_of_a_test", "a_machine_without_bubblewrap", *way)
    check_that_it_works(invoker, site)
    found = raid(invoker, services)
    for attack in attacks.ATTACKS:
        if "not " not in unconfined.outcomes[attack]:
            assert_held(attack, found, unconfined)
    with invoker.client() as api:
        assert f"200 {LARGE}" in bash(api, fetches_much(site)).json()["result"]
        lost = api.get("/readyz").json()["checks"]["lost_users"]
    assert lost == 0, "what is in another user namespace is ended too"


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "without"), STRENGTHS)
def test_where_runs_share_a_user_it_is_the_same(
    strength: str, without: tuple[str, ...], stand_in: StandInProcess, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder_of_its() as folder:
        authority = folder / "authority.pem"
        authority.write_bytes(site.authority.read_bytes())
        authority.chmod(0o644)
        monkeypatch.setenv("SITE_AUTHORITY", str(authority))
        monkeypatch.setenv("SITE_HOSTS", f"*.example.test:{site.port}")
        weak = ("names_of_a_test", *without)
        with started(stand_in, folder, without=weak, isolation=strength, pool_size=0, idle_s=60) as invoker:
            check_that_it_works(invoker, site)
            with invoker.client() as api:
                answer = bash(api, goes_elsewhere(site)).json()["result"]
        assert [line.split()[1] for line in answer.splitlines() if "." in line] == ["403"] * len(ELSEWHERE)


@pytest.mark.slow
def test_a_warm_process_is_taken_by_a_run_of_its_hosts_while_its_filter_lives(
    start_reaching: Callable[..., Invoker], site: Site
) -> None:
    """The first that is warm reaches nothing, since the shape that is kept ready at first opens none."""
    invoker = start_reaching("names_of_a_test", pool_size=1)
    with invoker.client() as api:

        def hits_after_a_run() -> str:
            assert "a page" in bash(api, works(site)).json()["result"]
            metrics = api.get("/metrics").text
            return next(
                line.split()[1] for line in metrics.splitlines() if line.startswith("claude_invoker_pool_hits ")
            )

        def one_is_warm() -> bool:
            return bool(api.get("/readyz").json()["checks"]["warm"] == 1)

        wait_for(one_is_warm, what="a warm process")
        assert hits_after_a_run() == "0.0"
        # Until the shape of the first run is the one that is warm.
        wait_for(lambda: one_is_warm() and hits_after_a_run() == "1.0", what="a hit")
        wait_for(one_is_warm, what="a warm process")
        (filter,) = (child for child in invoker.children() if "names.py" in command_line(child))
        filter.kill()
        wait_for(lambda: "the egress filter has ended" in invoker.log.read_text(), what="its end")
        assert hits_after_a_run() == "1.0", "by another process, with another filter"


@pytest.mark.slow
def test_where_no_network_can_be_made_the_request_is_refused(
    start_reaching: Callable[..., Invoker], site: Site
) -> None:
    """The run would otherwise have less than its tier says; or, with a port opened in the machine's network, far more."""
    with start_reaching("names_of_a_test", "no_network_of_its_own").client() as api:
        checks = api.get("/readyz").json()["checks"]
        assert checks["egress_lacks"] == "Operation not permitted" and checks["tools_left_out"] == ["WebFetch"]
        for name in ("Bash", "WebFetch"):
            refused = api.post("/invoke", json={"prompt": "x", "tools": [name]})
            assert refused.status_code == 403 and "Operation not permitted" in refused.text
        assert api.post("/invoke", json={"prompt": "x", "tools": ["Read"]}).status_code == 200


# The network itself


@pytest.fixture(scope="module")
def boxed() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="escape-egress-") as folder:
        Path(folder).chmod(0o711)
        found, properties = trial.boxes(Path(folder), Path("/bin/true"), UID)
        assert found, properties
        yield found[-1]


REACHES = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 3128), 20).close()
        print(address)
    except OSError:
        pass
"""


@pytest.mark.parametrize("way", [None, *Way])
def test_a_port_is_opened_in_a_network_of_its_own_only(boxed: Box, way: Way | None) -> None:
    """The control (None) is a run that may connect to the same port without such a network: Landlock's rules name ports,
    so it reaches that port everywhere, of a host on the internet as of a service of the machine."""
    somewhere = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"  # others may test beside us
    with ExitStack() as held:
        machine = held.enter_context(socket.create_server((somewhere, network.PORT)))
        enter = held.enter_context(boxed.around(Path("/nonexistent"), boxed.open, Path("/nonexistent"))).enter
        assert enter is not None
        command = [shell.interpreter(UID), "-ISB", "-c", REACHES, somewhere, network.HOST]

        def start(go_inside: Callable[[], None]) -> str:
            def confined() -> None:
                go_inside()
                enter()

            done: subprocess.CompletedProcess[str] = subprocess.run(
                command, env={}, cwd="/", stdout=subprocess.PIPE, text=True, preexec_fn=confined, **shell.as_user(UID)
            )
            return done.stdout

        if way is None:
            assert somewhere in start(lambda: None)
            return
        reached, listener = network.started(way, start)
        listener.close()
        assert reached.split() == [network.HOST]
        machine.setblocking(False)
        with pytest.raises(BlockingIOError):
            machine.accept()


def test_with_the_capabilities_of_the_shipped_compose_it_is_by_user_namespaces(boxed: Box) -> None:
    """And within the shipped profile of system calls; by Docker's own neither works."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    kept = ",".join(f"+{name.lower()}" for name in compose["services"]["invoker"]["cap_add"])
    asks = f"""
import pickle, sys
from claude_invoker.isolation import trial
print(trial.network_of_its_own(pickle.loads(sys.stdin.buffer.read()), {UID}))
"""
    profile = [sys.executable, "-m", "tests.support.profile", str(ROOT / "deploy" / "kubernetes" / "seccomp.json")]
    limited = ["setpriv", f"--bounding-set=-all,{kept}", *profile, sys.executable, "-c", asks]
    said = subprocess.run(limited, input=pickle.dumps(boxed), capture_output=True, check=True, cwd=ROOT).stdout.decode()
    assert said == f"{(Way.USER_NAMESPACE, None)}\n"


def test_what_hinders_a_network_is_said(boxed: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with Docker's own profile: unshare(2) is not permitted."""

    def refused(flags: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert trial.network_of_its_own(boxed, UID) == (Way.CAPABILITIES, None)
    monkeypatch.setattr(network, "_unshare", refused)
    way, obstacle = trial.network_of_its_own(boxed, UID)
    assert way is None
    assert obstacle == (
        "with CAP_SYS_ADMIN and CAP_NET_ADMIN: Operation not permitted; in a user namespace: Operation not permitted"
    )


def test_a_check_reaches_what_a_command_of_the_model_reaches(reaching: Invoker, site: Site) -> None:
    """Also the one after a repair; each has a way of its own to the filter."""
    curl = "curl -sk --max-time 20 -o /dev/null -w '%{http_connect} '"
    check = f"{curl} https://site.example.test:{site.port}/page.html; {curl} https://example.org; exit 1"
    with reaching.client() as api:
        answer = api.post("/invoke", json={"prompt": "hi", "tools": [], "check": check, "max_repairs": 1}, timeout=120)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["check"]["repairs"] == 1 and found["check"]["output"] == "200 403 ", found
        assert found["egress"] == [f"site.example.test:{site.port}"]
