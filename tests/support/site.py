"""A site on the internet of a test's: https with a certificate authority of its own, on a loopback address."""

from __future__ import annotations

import contextlib
import datetime
import functools
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LARGE = 3 << 20  # bytes of the file `large`


@dataclass
class Site:
    """`waiting`: who asks for `/waits`, which is never answered; `came`: all who have."""

    port: int
    authority: Path
    waiting: set[int] = field(default_factory=set)
    came: int = 0


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """(chain with its key, authority) for a name and all below it."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    subjects = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("a test's CA", name)]
    now = datetime.datetime.now(datetime.UTC)
    made = []
    for number, (key, subject) in enumerate(zip(keys, subjects, strict=True)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subjects[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        if number:
            names = [x509.DNSName(name), x509.DNSName(f"*.{name}")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_text = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain, authority = folder / "chain.pem", folder / "authority.pem"
    chain.write_bytes(made[1] + made[0] + key_text)
    authority.write_bytes(made[0])
    return chain, authority


def fill(folder: Path) -> None:
    """A git repository as plain files, an index of Python packages, a page and a large file."""
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.test", "-c", "init.defaultBranch=main")
    work = folder / "work"
    for arguments in (
        ("init", "-q", str(work)),
        ("-C", str(work), "commit", "-q", "--allow-empty", "-m", "cloned-from-the-site"),
        ("clone", "-q", "--bare", str(work), str(folder / "thing.git")),
        ("-C", str(folder / "thing.git"), "update-server-info"),
    ):
        subprocess.run([*git, *arguments], check=True)
    package = folder / "simple" / "thing"
    package.mkdir(parents=True)
    wheel = "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(package / wheel, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    (package / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    (folder / "page.html").write_text("<html><body><h1>a page of the site</h1></body></html>")
    (folder / "large").write_bytes(b"x" * LARGE)


@contextmanager
def serving(folder: Path, address: str, name: str) -> Iterator[Site]:
    """The site below `folder`, on a free port of `address`, with a certificate for `name` and what is below it."""
    chain, authority = certificate(folder, name)
    root = folder / "site"
    root.mkdir()
    fill(root)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/waits":
                super().do_GET()
                return
            site.came += 1
            site.waiting.add(self.client_address[1])
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until it breaks
            site.waiting.discard(self.client_address[1])

    with ThreadingHTTPServer((address, 0), functools.partial(Handler, directory=str(root))) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        # The handshake in the connection's own thread: one that never comes keeps no other waiting.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        site = Site(server.server_port, authority)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()
