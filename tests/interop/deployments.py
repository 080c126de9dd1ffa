"""Redis as people have it: by TLS with certificates on both sides, behind Sentinels, as a Cluster."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from redis.cluster import ClusterNode, RedisCluster

from tests.rate_tiers.servers import BINARY, REACHED_BY, SERVERS, RedisProcess, free_port, wait_for
from tests.support.waiting import HANG_S


def started(reached_by: str = REACHED_BY, binary: str = BINARY) -> RedisProcess:
    """An empty Redis; its `url` is for the product, its `client()` for tests."""
    if reached_by == "":
        return RedisProcess(binary=binary)
    return {"tls": TlsRedis, "sentinel": SentinelRedis, "cluster": ClusterRedis}[reached_by](binary=binary)


def available(server: str) -> bool:
    return bool(SERVERS[server]) and os.path.exists(SERVERS[server])


class Authority:
    """Signs certificates; its own is the file `ca`."""

    def __init__(self, folder: Path, name: str = "an authority of the tests") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self._write(f"{name}.pem", self._certificate(self._name, self._key, authority=True))

    def issue(self, name: str) -> tuple[str, str]:
        """Files of a certificate for `name` on 127.0.0.1, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._write(f"{name}.crt", self._certificate(subject, key)), self._write(f"{name}.key", secret)

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signs = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(signs, critical=True)
            .add_extension(names, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _write(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)


class TlsRedis(RedisProcess):
    """Takes those alone whose certificate its authority has signed. Tests ask by the unix socket."""

    def __init__(self, *, binary: str = BINARY) -> None:
        self.tls_port = free_port()
        super().__init__(binary=binary)

    def start(self) -> None:
        if not self.options:
            self.authority = Authority(Path(self.directory))
            certificate, key = self.authority.issue("server")
            self.client_files = self.authority.issue("client")
            self.options = (
                *("--tls-port", str(self.tls_port), "--tls-auth-clients", "yes"),
                *("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", self.authority.ca),
            )
        super().start()

    @property
    def url(self) -> str:
        return self.url_with(self.authority.ca, *self.client_files)

    def url_with(self, ca: str, certificate: str = "", key: str = "") -> str:
        files = {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
        query = "&".join(f"{name}={quote(path)}" for name, path in files.items() if path)
        return f"rediss://127.0.0.1:{self.tls_port}/0?{query}"


class SentinelRedis(RedisProcess):
    """A server with a password, and one Sentinel with another."""

    PASSWORD, SENTINELS_PASSWORD = "of-redis", "of-sentinel"

    def __init__(self, *, binary: str = BINARY) -> None:
        self._sentinel: subprocess.Popen[bytes] | None = None
        self.sentinel_port = free_port()
        super().__init__("--requirepass", self.PASSWORD, port=free_port(), binary=binary)

    def start(self) -> None:
        super().start()
        if self._sentinel is not None:
            return
        conf = Path(self.directory) / "sentinel.conf"
        conf.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self.directory}\nrequirepass {self.SENTINELS_PASSWORD}\n"
            f"sentinel monitor main 127.0.0.1 {self.port} 1\nsentinel auth-pass main {self.PASSWORD}\n"
            "sentinel down-after-milliseconds main 60000\n"
        )
        self._sentinel = subprocess.Popen([self.binary, str(conf), "--sentinel"], stdout=subprocess.DEVNULL)
        asked = redis.Redis(port=self.sentinel_port, password=self.SENTINELS_PASSWORD)
        wait_for(lambda: asked.sentinel_master("main")["flags"] == "master")

    @property
    def url(self) -> str:
        return self.url_with(self.PASSWORD, self.SENTINELS_PASSWORD)

    def url_with(self, password: str, sentinels: str = "") -> str:
        query = f"?sentinel_password={sentinels}" if sentinels else ""
        return f"redis+sentinel://:{password}@127.0.0.1:{self.sentinel_port}/main/0{query}"

    def client(self, **options: Any) -> redis.Redis:
        return super().client(**{"password": self.PASSWORD, **options})

    def close(self) -> None:
        if self._sentinel is not None:
            self._sentinel.kill()
            self._sentinel.wait(HANG_S)
        super().close()


def cluster_of_three(binary: str = BINARY) -> list[RedisProcess]:
    """Masters on loopback that serve every slot."""
    nodes: list[RedisProcess] = []
    try:
        nodes += [_node(binary) for _ in range(3)]
        for number, node in enumerate(nodes):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3
            node.client().execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
            node.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            nodes[0].client().execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in nodes:
            wait_for(lambda node=node: node.client().cluster("info")["cluster_state"] == "ok")
    except BaseException:
        for node in nodes:
            node.close()
        raise
    return nodes


def _node(binary: str) -> RedisProcess:
    """The port of its bus is 10,000 higher than its own, and may be somebody's."""
    for _ in range(20):
        port = free_port()
        if port > 55_000:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return RedisProcess("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", port=port, binary=binary)
    raise RuntimeError("no two free ports that are 10,000 apart")


def cluster_url(nodes: list[RedisProcess]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


class _Whole(RedisCluster):
    """Asked by tests as they ask a server: what is set is set on each node, keys are those of all."""

    def keys(self, pattern: Any = "*", **options: Any) -> Any:
        return list(self.scan_iter(pattern))

    def acl_setuser(self, *args: Any, **options: Any) -> Any:
        return super().acl_setuser(*args, **options, target_nodes=self.ALL_NODES)

    def config_set(self, *args: Any, **options: Any) -> Any:
        return super().config_set(*args, **options, target_nodes=self.ALL_NODES)


class ClusterRedis(RedisProcess):
    """Three masters; what is done to a process is done to each."""

    def __init__(self, *, binary: str = BINARY) -> None:
        self.nodes = cluster_of_three(binary)
        self.directory = self.nodes[0].directory

    @property
    def url(self) -> str:
        return cluster_url(self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            wait_for(lambda node=node: node.client().cluster("info")["cluster_state"] == "ok")

    def client(self, **options: Any) -> Any:
        return _Whole(startup_nodes=[ClusterNode("127.0.0.1", int(n.port or 0)) for n in self.nodes], **options)

    def info(self, section: str) -> dict[str, Any]:
        return self.nodes[0].info(section)

    def signal(self, number: int) -> None:
        for node in self.nodes:
            node.signal(number)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@contextmanager
def running(reached_by: str, binary: str = BINARY) -> Iterator[Any]:
    server = started(reached_by, binary)
    try:
        yield server
    finally:
        server.close()
