"""Redis killed, frozen, emptied, failed over; with real processes."""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster

from claude_contract.claims import Limits
from claude_contract.identity import Identity
from claude_contract.ledger import (
    Admit,
    AsyncLedger,
    Budget,
    Lease,
    LedgerUnavailable,
    Peek,
    Renewal,
    Slot,
    Spent,
    Standing,
    UnreadableLedger,
    Window,
    Windows,
    calls,
)
from claude_contract.ledger.warnings import warnings_in
from kong_claude.decision import Decision, Pass, Refuse
from kong_claude.rate_tiers import redis_ledger
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.redis_circuit import COOL_DOWN, FAILURES
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from kong_claude.rate_tiers.schema import RedisConfig
from kong_claude.request import Request
from tests.rate_tiers.servers import BINARY, RedisProcess, free_port, one_server, wait_for
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S

TIMEOUT_MS = 250


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, level: str) -> Any:
        return self.lines.append


class Kong:
    """What a stage asks of the PDK when the identity has been found already."""

    def __init__(self) -> None:
        self.log = Log()
        self.request = self

    def get_headers(self, _: int) -> dict[str, str]:
        return {}


def ask(stage: RateTiers, subject: str = "alice", **claims: Any) -> Decision:
    request = Request(Kong())
    request.learn(Identity(subject, claims=claims))
    return stage.access(request)


def stage(url: str, on_error: str = "deny", **config: Any) -> RateTiers:
    limits = {"tiers": [{"name": "t", "minute": 3, "concurrent": 2, "usd_per_day": 9, "max_usd_per_run": 1}]}
    return stage_of(
        RateTiers,
        {"policy": "redis", "redis_url": url, "timeout_ms": TIMEOUT_MS, "on_error": on_error, **limits, **config},
    )


def is_away(decision: Decision) -> bool:
    return isinstance(decision, Refuse) and decision.status == 503


def until_it_counts(made: RateTiers, subject: str = "alice") -> None:
    """The circuit closes within a trial or two after Redis is back."""
    deadline = time.monotonic() + HANG_S
    while is_away(ask(made, subject)) or made.redis.circuits.open:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(COOL_DOWN / 10)


both = pytest.mark.usefixtures("transport")


FAULTS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_deny_refuses_and_comes_back(own_redis: RedisProcess, fault: str) -> None:
    made = stage(own_redis.url)
    assert isinstance(ask(made), Pass)
    own_redis.signal(FAULTS[fault])
    for _ in range(20):
        decision = ask(made)
        assert is_away(decision) and decision.headers["Retry-After"]  # type: ignore[union-attr]
    if fault == "killed":
        own_redis.kill()
        own_redis.start()
    else:
        own_redis.signal(signal.SIGCONT)
    until_it_counts(made)  # whom its node counts: on a Cluster others may be on another


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_allow_lets_pass_uncounted(own_redis: RedisProcess, fault: str) -> None:
    made = stage(own_redis.url, "allow")
    own_redis.signal(FAULTS[fault])
    for _ in range(20):
        decision = ask(made)
        assert isinstance(decision, Pass) and decision.shared["uncounted"]
        assert not decision.response_headers
        assert isinstance(decision.claims, Limits) and decision.claims.place is None


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_local_counts_in_the_process(own_redis: RedisProcess, fault: str) -> None:
    made = stage(own_redis.url, "local", namespace=f"local-{secrets.token_hex(4)}")
    own_redis.signal(FAULTS[fault])
    decisions = [ask(made) for _ in range(4)]
    assert [isinstance(d, Pass) for d in decisions] == [True, True, False, False]
    assert decisions[3].reason == "rate_limited"  # type: ignore[union-attr]
    kong = Kong()
    kong.response = kong  # type: ignore[attr-defined]
    kong.get_source = lambda: "error"  # type: ignore[attr-defined]
    made.log(kong, lambda: decisions[0].shared)  # type: ignore[union-attr]
    assert isinstance(ask(made), Pass), "the place was given back to this process"


def test_a_frozen_redis_costs_few_requests_their_time_out(own_redis: RedisProcess) -> None:
    """5 s of SIGSTOP under load: answers go on, and after the first few they do not wait."""
    made = stage(own_redis.url, minute=1_000_000, concurrent=1_000_000)
    ask(made)
    took: list[float] = []
    stop = time.monotonic() + 5
    own_redis.signal(signal.SIGSTOP)

    def client() -> None:
        while time.monotonic() < stop:
            began = time.monotonic()
            assert is_away(ask(made))
            took.append(time.monotonic() - began)
            time.sleep(0.002)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    own_redis.signal(signal.SIGCONT)
    waited = sum(1 for t in took if t > TIMEOUT_MS / 1000 / 2)
    assert len(took) > 1000
    assert waited <= len(took) / 100, "the circuit did not open"
    assert max(took) < HANG_S
    until_it_counts(made)


def test_one_slow_redis_does_not_delay_another(own_redis: RedisProcess, redis_server: RedisProcess) -> None:
    slow = stage(own_redis.url)
    healthy = stage(redis_server.url, minute=100_000, concurrent=100_000, timeout_ms=5000)
    own_redis.signal(signal.SIGSTOP)
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.wait(0.005):
            ask(slow)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    decisions = [ask(healthy) for _ in range(200)]
    stop.set()
    for thread in threads:
        thread.join(HANG_S)
    assert all(isinstance(d, Pass) for d in decisions)
    assert not healthy.redis.circuits.open  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", ["redis", "local"])
def test_undo_gives_the_place_back(redis_server: RedisProcess, policy: str) -> None:
    """A later stage of the same plugin refused the request."""
    made = stage(redis_server.url, policy=policy, namespace=f"undo-{policy}", concurrent=1)
    first = ask(made)
    assert isinstance(first, Pass) and isinstance(ask(made), Refuse)
    made.undo(first)
    assert isinstance(ask(made), Pass)


@both
def test_flushed_data_and_flushed_scripts(redis_server: RedisProcess) -> None:
    made = stage(redis_server.url)
    assert isinstance(ask(made), Pass)
    redis_server.client().script_flush()
    assert isinstance(ask(made), Pass), "NOSCRIPT is answered with the source"
    assert isinstance(ask(made), Refuse)
    redis_server.client().flushall()
    assert isinstance(ask(made), Pass)


@both
def test_connections_that_died_while_idle(redis_server: RedisProcess) -> None:
    made = stage(redis_server.url)
    ask(made)
    redis_server.client().client_kill_filter(_type="normal", skipme=True)
    assert isinstance(ask(made), Pass)


@both
def test_errors_of_redis_are_no_pass(own_redis: RedisProcess) -> None:
    made = stage(own_redis.url)
    own_redis.client().config_set("maxmemory", 1)
    assert is_away(ask(made))
    own_redis.client().config_set("maxmemory", 0)
    until_it_counts(made)


DAMAGED: dict[str, Callable[[Any], None]] = {
    "windows that are no MessagePack": lambda redis: redis.set("claude:{alice}:w", b"\xc1junk"),
    "windows that are no map": lambda redis: redis.set("claude:{alice}:w", b"x"),
    "windows of another type": lambda redis: redis.rpush("claude:{alice}:w", "x"),
    "money of another type": lambda redis: redis.rpush("claude:{alice}:usd:day", "x"),
    "leases of another type": lambda redis: redis.set("claude:{alice}:leases", "x"),
}


def ask_often(made: RateTiers) -> None:
    for _ in range(FAILURES + 1):
        assert is_away(ask(made, "alice"))


@both
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_value_is_its_subjects_matter_alone(redis_server: RedisProcess, kind: str) -> None:
    """Redis is well: the circuit, which is everybody's, stays closed."""
    DAMAGED[kind](redis_server.client())
    made = stage(redis_server.url, timeout_ms=10_000)
    ask_often(made)
    assert isinstance(ask(made, "bob"), Pass)
    with pytest.raises(UnreadableLedger, match=r"claude:\{alice\}:w.* restore or delete it"):
        made.redis.peek(Peek("claude", "alice", Windows((Window("minute", 1),))))  # type: ignore[union-attr]


def test_control_taken_for_a_failure_of_redis_it_refuses_everybody(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_server("a circuit is of one node, and others are on another")
    monkeypatch.setattr(calls, "_DAMAGED", re.compile("$never"))
    monkeypatch.setattr(redis_ledger, "is_away", lambda error: True)
    DAMAGED["windows that are no map"](redis_server.client())
    made = stage(redis_server.url, timeout_ms=10_000)
    ask_often(made)
    assert is_away(ask(made, "bob"))


@pytest.mark.parametrize(
    "text",
    [
        "OOM command not allowed when used memory > 'maxmemory'. script: f00, on @user_script:9.",
        "Error running script (call to f_f00): @user_script:9: -OOM command not allowed when used memory > 'maxmemory'.",
        "Error running script (call to f_f00): @user_script: 9: -READONLY You can't write against a read only replica.",
        "Error running script (call to f_f00): @user_script:9: MISCONF Redis is configured to save RDB snapshots",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ],
)
def test_what_redis_says_of_itself_is_no_subjects_matter(text: str) -> None:
    assert calls.unreadable(redis.ResponseError(text), calls.peek(Peek("claude", "alice"))) is None


@both
def test_password_and_user(redis_server: RedisProcess) -> None:
    client = redis_server.client()
    client.acl_setuser("kong", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+@all"])
    client.acl_setuser("default", enabled=False)
    try:
        allowed = stage(redis_server.url, redis_username="kong", redis_password="s3cret")
        assert isinstance(ask(allowed), Pass)
        # Equal settings share a ledger, which says once a second what is wrong.
        wrong = stage(redis_server.url, redis_username="kong", redis_password="wr0ng" + secrets.token_hex(4))
        request = Request(Kong())
        request.learn(Identity("alice"))
        assert is_away(wrong.access(request))
        assert request.kong.log.lines and "wr0ng" not in "".join(request.kong.log.lines)
        assert "s3cret" not in repr(Settings.from_config(RedisConfig(redis_url="redis://:s3cret@h/0")))
    finally:
        redis_server.client(username="kong", password="s3cret").acl_setuser("default", enabled=True)


def test_tls(tmp_path: Path) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run([*make, *name, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with closing(RedisProcess()) as server, terminator(context, server.socket_path) as port:
        url = f"rediss://localhost:{port}/0"
        assert isinstance(ask(stage(url, redis_ca_file=str(cert))), Pass)
        assert is_away(ask(stage(url))), "signed by nobody we know"
        assert is_away(ask(stage(url.replace("localhost", "127.0.0.1"), redis_ca_file=str(cert)))), "another's name"
        assert isinstance(ask(stage(url, redis_ssl_verify=False)), Pass)
        # By the record that Kong's own plugins have; `server_name` is whose certificate it is.
        record = {"host": "127.0.0.1", "port": port, "ssl": True}
        assert is_away(ask(stage("", redis=record, redis_ca_file=str(cert)))), "control: another's name"
        named = stage("", redis=record | {"server_name": "localhost"}, redis_ca_file=str(cert))
        assert isinstance(ask(named, "bob"), Pass)


@contextmanager
def terminator(context: ssl.SSLContext, path: str) -> Iterator[int]:
    """TLS in front of a unix socket, since the redis-server at hand has none. One thread has all its sockets: where two
    share one, OpenSSL writes to a number that is another file by now."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        except OSError:
            pass
        finally:
            sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    async def served() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            over = asyncio.Event()
            end = partial(asyncio.get_running_loop().call_soon_threadsafe, over.set)
            listening.set_result((server.sockets[0].getsockname()[1], end))
            await over.wait()

    listening: Future[tuple[int, Callable[[], object]]] = Future()
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(asyncio.run, served())
        port, end = listening.result(HANG_S)
        try:
            yield port
        finally:
            end()
            done.result(HANG_S)


@contextmanager
def replicated() -> Iterator[tuple[RedisProcess, RedisProcess]]:
    primary = RedisProcess(port=free_port())
    replica = RedisProcess("--replicaof", "127.0.0.1", str(primary.port), port=free_port())
    try:
        wait_for(lambda: replica.info("replication")["master_link_status"] == "up")
        yield primary, replica
    finally:
        replica.close()
        primary.close()


@both
def test_a_master_that_becomes_a_replica() -> None:
    """Manual fail-over: what was counted is known to the new master; a read-only Redis is no pass."""
    with replicated() as (primary, replica):
        made = stage(primary.url, concurrent=1)
        assert isinstance(ask(made), Pass)
        wait_for(lambda: replica.client().exists("claude:{alice}:leases"))
        replica.client().replicaof("NO", "ONE")
        primary.client().replicaof("127.0.0.1", replica.port)
        assert is_away(ask(made, "bob"))
        promoted = stage(replica.url, concurrent=1)
        decision = ask(promoted)
        assert isinstance(decision, Refuse) and decision.detail["limit"] == "concurrent"


@both
def test_sentinel_fails_over() -> None:
    with replicated() as (primary, replica):
        port = free_port()
        sentinel_conf = Path(primary.directory) / "sentinel.conf"
        sentinel_conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {primary.directory}\n"
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        process = subprocess.Popen([BINARY, str(sentinel_conf), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            sentinel = redis.Redis(port=port)
            wait_for(lambda: sentinel.sentinel_slaves("main"))
            made = stage(f"redis+sentinel://127.0.0.1:{port}/main/0", minute=100, concurrent=100)
            assert isinstance(ask(made), Pass)
            wait_for(lambda: replica.client().exists("claude:{alice}:w"))
            primary.kill()
            assert is_away(ask(made))
            wait_for(lambda: not is_away(ask(made)))
            assert replica.info("replication")["role"] == "master"
            usage = made.redis.peek(Peek("claude", "alice"))  # type: ignore[union-attr]
            assert usage.running >= 2, "the lease taken before the fail-over still counts"
        finally:
            process.kill()
            process.wait(HANG_S)


def test_cluster(cluster: list[RedisProcess]) -> None:
    """Every verb runs on one node, whatever the subject is called; subjects spread over all nodes."""
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    made = stage(f"redis+cluster://{hosts}", timeout_ms=2000)
    for subject in ("alice", "b{o}b", "}", "{", "{}", "ünï", "a:b", "x" * 500, *map(str, range(30))):
        passed = [ask(made, subject) for _ in range(3)]
        assert [isinstance(d, Pass) for d in passed] == [True, True, False], subject
        lease = Lease.parse(passed[0].shared["lease"])  # type: ignore[union-attr]
        assert made.redis is not None
        assert made.redis.renew(lease, 60_000) is Renewal.EXTENDED
        assert made.redis.settle(lease, 500_000)
        assert made.redis.peek(Peek("claude", lease.subject_key)).spent_day_micro_usd == 500_000
        (warning, *_) = warnings_in(lease, (Standing(spent=(Spent(Budget(1, "day"), 1, 60_000),)),))
        assert made.redis.tell(warning) and not made.redis.tell(warning)
    assert all(node.info("keyspace") for node in cluster)


def test_cluster_with_pools(cluster: list[RedisProcess]) -> None:
    """All that an admission takes has one tag: of the deployment, or of the organisation, which spread over the nodes."""
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    pools = [{"name": name, "claim": name, "concurrent": 2, "usd_per_month": 50} for name in ("team", "project")]
    for claim in (None, "org"):
        organisation = {"organisation_claim": claim} if claim else {}
        made = stage(
            f"redis+cluster://{hosts}", timeout_ms=5000, pools=pools, namespace=f"pools-{claim}", **organisation
        )
        assert made.redis is not None
        for org in map(str, range(12)):
            request = {"team": f"red {org}", "project": "{x}", "org": org} if claim else {"team": org, "project": org}
            passed = [ask(made, f"{who}-{org}", **request) for who in ("ada", "bob", "cyd")]
            assert [isinstance(d, Pass) for d in passed] == [True, True, False], org
            lease = Lease.parse(passed[0].shared["lease"])  # type: ignore[union-attr]
            assert made.redis.renew(lease, 60_000) is Renewal.EXTENDED
            assert made.redis.settle(lease, 500_000) and not made.redis.release(lease)
            asked = Peek("pools-" + str(claim), lease.subject_key, shared=lease.shared)
            assert [pool.running for pool in made.redis.peek(asked).pools] == [1, 1]
    used = [node.client().keys("pools-org:*") for node in cluster]
    assert all(used), "organisations spread over the nodes"
    assert sum(1 for node in cluster if node.client().keys("pools-None:*")) == 1


async def test_cluster_from_asyncio(cluster: list[RedisProcess]) -> None:
    from redis.asyncio.cluster import RedisCluster as AsyncCluster

    port = cluster[0].port
    assert port
    async with AsyncCluster(host="127.0.0.1", port=port) as client:
        lease = Lease.new("claude", "from-asyncio", 5)
        store = AsyncLedger(client)
        assert (await store.acquire(lease, Slot())).admitted
        assert await store.settle(lease, 500_000)


def test_cluster_node_away(cluster: list[RedisProcess]) -> None:
    hosts = f"127.0.0.1:{cluster[0].port}"
    client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster[0].port)])
    own = RedisLedger(Settings(f"redis+cluster://{hosts}", timeout=0.2))
    windows = Windows((Window("minute", 5),))
    subjects = {client.get_node_from_key(f"claude:{{t{n}}}:leases").port: f"t{n}" for n in range(100)}
    assert len(subjects) == 3
    for each in subjects.values():
        own.admit(Admit("claude", each, windows))
    cluster[2].signal(signal.SIGSTOP)
    try:
        with pytest.raises(LedgerUnavailable):
            own.admit(Admit("claude", subjects[cluster[2].port], windows))
    finally:
        cluster[2].signal(signal.SIGCONT)
    client.close()


@both
def test_nothing_listens_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        made = stage(f"redis://127.0.0.1:{held.getsockname()[1]}/0")
        assert all(is_away(ask(made)) for _ in range(10))
