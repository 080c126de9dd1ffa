"""One subject's key, or one node of a Cluster, is not "Redis is away": who else asks is counted as ever."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions
from redis.cluster import ClusterNode, RedisCluster

from claude_contract.identity import Identity
from kong_claude.decision import Pass, Refuse
from kong_claude.rate_tiers import redis_ledger
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.redis_circuit import COOL_DOWN, FAILURES, QUIET, Circuit, Circuits, Quiet, is_away
from kong_claude.rate_tiers.redis_ledger import Settings
from kong_claude.rate_tiers.schema import RedisConfig
from kong_claude.request import Request
from tests.rate_tiers.servers import BINARY, RedisProcess, free_port, one_server, wait_for
from tests.rate_tiers.test_faults import Kong, ask, both, stage, until_it_counts
from tests.rate_tiers.test_faults import is_away as refused_as_away
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S

ERRORS: dict[str, tuple[Exception, bool]] = {
    "no connection": (redis.ConnectionError("refused"), True),
    "no answer": (redis.TimeoutError("late"), True),
    "no route": (OSError("no route to host"), True),
    "loading": (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), True),
    "a wrong password": (exceptions.AuthenticationError("WRONGPASS"), True),
    "no Cluster to be found": (exceptions.RedisClusterException("cannot be connected"), True),
    "a Cluster that is down": (exceptions.ClusterDownError("The cluster is down"), True),
    "a master that is away": (exceptions.MasterDownError("Link with MASTER is down"), True),
    "a replica": (exceptions.ReadOnlyError("You can't write against a read only replica."), True),
    "a replica, from a script": (redis.ResponseError("Error running script: -READONLY You can't write"), True),
    "a slot that nobody serves": (exceptions.ClusterDownError("Hash slot not served"), False),
    "a slot that no node has": (exceptions.SlotNotCoveredError("slot 7"), False),
    "no right to these keys": (exceptions.NoPermissionError("No permissions to access a key"), False),
    "no memory": (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"), False),
    "another type": (redis.ResponseError("WRONGTYPE Operation against a key"), False),
    "no disk": (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
    "a slot that moves": (exceptions.TryAgainError("TRYAGAIN"), False),
}


@pytest.mark.parametrize("name", ERRORS)
def test_which_errors_say_that_a_node_serves_nobody(name: str) -> None:
    error, away = ERRORS[name]
    assert is_away(error) is away


@pytest.fixture
def guarded(own_redis: RedisProcess) -> RedisProcess:
    """A Redis whose users may touch the keys of some subjects only."""
    own_redis.client().acl_setuser(
        "kong",
        enabled=True,
        passwords=["+s3cret"],
        keys=["claude:{alice}:*", "claude:{bob}:*", "claude:{\\*}:limits"],
        commands=["+@all"],
    )
    return own_redis


def kong_on(server: RedisProcess, on_error: str = "deny", **config: Any) -> RateTiers:
    return stage(server.url, on_error, redis_username="kong", redis_password="s3cret", timeout_ms=10_000, **config)


@both
def test_a_subject_whose_keys_are_forbidden_closes_the_limiter_for_nobody_else(guarded: RedisProcess) -> None:
    made = kong_on(guarded)
    for _ in range(FAILURES + 2):
        assert refused_as_away(ask(made, "carol"))
    assert isinstance(ask(made, "alice"), Pass)
    assert isinstance(ask(made, "bob"), Pass)


@both
def test_allow_lets_only_those_through_whose_ledger_cannot_be_had(guarded: RedisProcess) -> None:
    made = kong_on(guarded, "allow")
    for _ in range(FAILURES + 2):
        decision = ask(made, "carol")
        assert isinstance(decision, Pass) and decision.shared["uncounted"]
    decisions = [ask(made, "alice") for _ in range(4)]
    assert [isinstance(one, Pass) for one in decisions] == [True, True, False, False]
    assert not any(one.shared.get("uncounted") for one in decisions if isinstance(one, Pass))


def test_control_counted_as_an_outage_it_refuses_everybody(
    guarded: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_server("a circuit is of one node, and others are on another")
    monkeypatch.setattr(redis_ledger, "is_away", lambda error: True)
    made = kong_on(guarded)
    for _ in range(FAILURES):
        assert refused_as_away(ask(made, "carol"))
    assert refused_as_away(ask(made, "alice"))


@both
def test_without_memory_what_takes_none_goes_on(own_redis: RedisProcess) -> None:
    """Settling frees memory: it must not be kept from Redis because admissions are refused."""
    made = stage(own_redis.url, timeout_ms=10_000)
    admitted = ask(made)
    assert isinstance(admitted, Pass)
    own_redis.client().config_set("maxmemory", 1)
    for _ in range(FAILURES + 2):
        assert refused_as_away(ask(made))
    assert made.redis is not None and not made.redis.circuits.open
    own_redis.client().config_set("maxmemory", 0)
    assert isinstance(ask(made), Pass), "at once, not after a cool-down"


@both
def test_an_outage_is_said_once_a_second(own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(own_redis.url)
    own_redis.kill()
    assert made.redis is not None
    now = 0.0
    monkeypatch.setattr(made.redis, "_quiet", Quiet(lambda: now))
    kong = Kong()
    for tenth in range(35):
        now = tenth / 10
        request = Request(kong)
        request.learn(Identity("alice"))
        assert refused_as_away(made.access(request))
    assert len(kong.log.lines) == 4
    assert all("limits cannot be checked" in line for line in kong.log.lines)


def test_quiet_at_its_edges() -> None:
    now = 5.0
    quiet = Quiet(lambda: now)
    assert [quiet.may_speak(), quiet.may_speak()] == [True, False]
    now += QUIET - 0.01
    assert not quiet.may_speak()
    now += 0.01
    assert quiet.may_speak()


def test_a_circuit_opens_tries_and_closes() -> None:
    now = 0.0
    circuit = Circuit(lambda: now)
    for _ in range(FAILURES):
        assert circuit.admit() and not circuit.open
        circuit.failed()
    assert circuit.open and not circuit.admit()
    now = COOL_DOWN
    assert circuit.admit() and not circuit.admit(), "one trial"
    circuit.failed()
    assert not circuit.admit()
    now = 2 * COOL_DOWN
    assert circuit.admit()
    circuit.succeeded()
    assert circuit.admit() and not circuit.open


def test_circuits_of_nodes_that_are_no_more_are_forgotten() -> None:
    circuits = Circuits()
    for _ in range(FAILURES):
        circuits.of("a:1", lambda: ["a:1", "b:2"]).failed()
    assert circuits.open
    assert circuits.of("b:2", lambda: ["a:1", "b:2"]) is not circuits.of("a:1", list)
    assert circuits.open
    circuits.of("c:3", lambda: ["b:2", "c:3"])
    assert not circuits.open


def subjects(nodes: list[RedisProcess]) -> list[str]:
    """A subject of each node."""
    client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", nodes[0].port or 0)])
    found: dict[Any, str] = {}
    for subject in map(str, range(100)):
        node: Any = client.get_node_from_key(f"claude:{{{subject}}}:w")
        found[node.port] = subject
    client.close()
    return [found[node.port] for node in nodes]


@pytest.fixture
def partial(cluster: list[RedisProcess]) -> Iterator[list[RedisProcess]]:
    """The Cluster, whose nodes serve their slots while others are away."""
    for node in cluster:
        node.client().config_set("cluster-require-full-coverage", "no")
    yield cluster
    for node in cluster:
        node.client().config_set("cluster-require-full-coverage", "yes")


def cluster_is_ok(node: RedisProcess) -> bool:
    info: Any = node.client().cluster("info")
    return bool(info["cluster_state"] == "ok")


@contextmanager
def without(nodes: list[RedisProcess], number: int) -> Iterator[None]:
    """While one of the nodes is dead."""
    nodes[number].kill()
    try:
        yield
    finally:
        nodes[number].start()
        wait_for(lambda: all(cluster_is_ok(node) for node in nodes))


def test_a_node_of_a_cluster_that_is_away_is_the_matter_of_its_subjects(partial: list[RedisProcess]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in partial)
    limits: dict[str, Any] = {"timeout_ms": 10_000, "minute": 10_000, "concurrent": 10_000}
    denying, allowing = stage(url, **limits), stage(url, "allow", **limits)
    assert denying.redis is not None and denying.redis is allowing.redis
    first, second, away = subjects(partial)
    for subject in (first, second, away):
        assert isinstance(ask(denying, subject), Pass)
    with without(partial, 2):
        for _ in range(FAILURES + 2):
            assert refused_as_away(ask(denying, away))
            uncounted = ask(allowing, away)
            assert isinstance(uncounted, Pass) and uncounted.shared["uncounted"]
        assert denying.redis.circuits.open
        for made in (denying, allowing):
            for subject in (first, second, first, second):
                counted = ask(made, subject)
                assert isinstance(counted, Pass) and "uncounted" not in counted.shared
    until_it_counts(denying, away)


def test_control_with_one_circuit_for_all_a_node_refuses_everybody(
    partial: list[RedisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_ledger._Cluster, "node", lambda self, call: "")
    made = stage(f"redis+cluster://127.0.0.1:{partial[0].port}", timeout_ms=10_000, namespace="one-circuit")
    first, _, away = subjects(partial)
    assert isinstance(ask(made, first), Pass)
    with without(partial, 2):
        for _ in range(FAILURES):
            assert refused_as_away(ask(made, away))
        assert refused_as_away(ask(made, first))


@pytest.mark.parametrize("on_error", ["deny", "allow"])
def test_a_cluster_that_is_not_there_is_away(on_error: str) -> None:
    """redis-py's errors of Clusters are none of its other errors."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        made = stage(f"redis+cluster://127.0.0.1:{held.getsockname()[1]}", on_error)
        decision = ask(made)
        if on_error == "deny":
            assert refused_as_away(decision)
        else:
            assert isinstance(decision, Pass) and decision.shared["uncounted"]


def test_a_host_by_its_ipv6_address() -> None:
    config = RedisConfig(redis_host="::1", redis_port=7, redis_database=3)
    assert Settings.from_config(config).url == "redis://[::1]:7/3"
    assert Settings.from_config(RedisConfig(redis_host="[::1]")).url == "redis://[::1]:6379/0"
    assert Settings.from_config(RedisConfig(redis_host="redis")).url == "redis://redis:6379/0"


def test_redis_is_reached_by_its_ipv6_address() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            port = int(probe.getsockname()[1])
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = RedisProcess("--bind", "::1", port=port)
    try:
        made = stage_on(redis_host="::1", redis_port=port)
        assert isinstance(ask(made), Pass)
        assert isinstance(ask(stage(f"redis+cluster://[::1]:{port}")), Refuse), "no Cluster, but reached"
    finally:
        server.close()


def stage_on(**config: Any) -> RateTiers:
    return stage_of(RateTiers, {"policy": "redis", "minute": 3, "timeout_ms": 10_000, **config})


def test_sentinels_with_a_password_of_their_own(tmp_path: Path) -> None:
    primary = RedisProcess("--requirepass", "of-redis", port=free_port())
    port = free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nrequirepass of-sentinel\n"
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\nsentinel auth-pass main of-redis\n"
    )
    process = subprocess.Popen([BINARY, str(conf), "--sentinel"], stdout=subprocess.DEVNULL)
    url = f"redis+sentinel://:of-redis@127.0.0.1:{port}/main/0"
    try:
        wait_for(lambda: redis.Redis(port=port, password="of-sentinel").ping())
        assert isinstance(ask(stage_on(redis_url=url, redis_sentinel_password="of-sentinel")), Pass)
        for wrong in ({}, {"redis_sentinel_password": "of-redis"}):
            assert refused_as_away(ask(stage_on(redis_url=url, **wrong)))
        shown = repr(Settings.from_config(RedisConfig(redis_url=url, redis_sentinel_password="of-sentinel")))
        assert "of-" not in shown
    finally:
        process.kill()
        process.wait(HANG_S)
        primary.close()
