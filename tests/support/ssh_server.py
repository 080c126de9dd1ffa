"""A real OpenSSH server on loopback, as the user who runs the tests, with a host key and a caller's key of its own."""

from __future__ import annotations

import getpass
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import HANG_S, wait_for

SSHD = "/usr/sbin/sshd"


@dataclass
class SshServer:
    """`folder` holds its keys; `key` is who it lets in, `known_hosts` says what it is known by."""

    folder: Path
    port: int

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def know(self, host_key: Path | None = None) -> None:
        """Writes `known_hosts` anew: of the server's own host key, or of another."""
        kind, key = (host_key or self.folder / "host").with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")


def key_pair(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path


@contextmanager
def ssh_serving(folder: Path) -> Iterator[SshServer]:
    """`folder`: a new one, in which keys, configuration and log are put."""
    folder.mkdir(mode=0o700)
    for name in ("host", "key"):
        key_pair(folder / name)
    server = SshServer(folder, free_port())
    server.know()
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        f"AcceptEnv GIT_PROTOCOL\nLogLevel VERBOSE\n"
    )
    if Path(SSHD).stat().st_uid == 0 and getpass.getuser() == "root":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its own programs are confined to it
    command = [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: _listens(server.port), what="the ssh server")
        yield server
    finally:
        process.terminate()
        process.wait(HANG_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
