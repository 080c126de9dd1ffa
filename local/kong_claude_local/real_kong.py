"""A Kong of this machine in minikong's place (`kong-claude up --kong`): its settings, and the process that runs it.

`python -m kong_claude_local.real_kong PATH` starts Kong in the foreground and ends it in order. `kong start` alone
would not do: a signal ends the program and leaves nginx, its child, behind.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from kong_claude.problem import Problem

OLDEST = (3, 9)  # what the plugins are run on; older ones hand a plugin server's dump on in another way
VERSION = re.compile(r"\b(\d+)\.(\d+)(?:\.\d+)*\b")
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 7.0  # seconds for requests under way; the supervisor's own is 8


@cache
def version(kong: str) -> str:
    """What `kong version` says, such as 3.9.1. Raises Problem where there is no Kong, or one that is too old."""
    try:
        said = subprocess.run([kong, "version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem(f"{kong} does not run ({error}); name Kong's program: kong-claude up --kong PATH") from error
    found = VERSION.search(said)
    if found is None:
        raise Problem(f"{kong} does not say its version; name Kong's program: kong-claude up --kong PATH")
    if (int(found[1]), int(found[2])) < OLDEST:
        raise Problem(f"{kong} is {found[0]}, the plugins need {'.'.join(map(str, OLDEST))} or newer")
    return found[0]


def settings(prefix: Path, admin_socket: str, admin_listen: str, run_as_root: bool) -> dict[str, str]:
    """Where Kong needs other settings than minikong. `admin_socket` is `unix:/path`, `admin_listen` host:port."""
    given = {
        "KONG_PREFIX": str(prefix),  # its own: Kong empties it of sockets when it starts
        "KONG_DATABASE": "off",
        # Kong has no Admin API on a unix socket alone. The port is there, but every user of the machine reaches it, the
        # tools of a run too: so nginx lets nobody in by it.
        "KONG_ADMIN_LISTEN": admin_listen,
        "KONG_NGINX_ADMIN_LISTEN": admin_socket,
        "KONG_NGINX_ADMIN_ALLOW": "unix:",
        "KONG_NGINX_ADMIN_DENY": "all",
        "KONG_ADMIN_GUI_LISTEN": "off",
        "KONG_STATUS_LISTEN": "off",
        "KONG_ANONYMOUS_REPORTS": "off",
        "KONG_NGINX_WORKER_PROCESSES": "2",
        "KONG_NGINX_DAEMON": "off",
        "KONG_PROXY_ERROR_LOG": "/dev/stderr",
        "KONG_ADMIN_ERROR_LOG": "/dev/stderr",
        "KONG_PROXY_ACCESS_LOG": "/dev/stdout",
        "KONG_ADMIN_ACCESS_LOG": "off",
    }
    if run_as_root:
        # The workers would be `nobody`, who reaches neither the sockets nor the plugin server's files here.
        given["KONG_NGINX_USER"] = "root root"
    return given


def run(kong: str, prefix: Path, admin_socket: Path) -> int:
    """Kong until it ends, or until SIGTERM. Returns its exit code."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    admin_socket.unlink(missing_ok=True)  # nginx that was killed leaves it, and would not listen on it again
    child = subprocess.Popen([kong, "start"])

    def stop(*_: object) -> None:
        for number in (signal.SIGQUIT, signal.SIGTERM):
            try:
                os.kill(int((prefix / "pids" / "nginx.pid").read_text()), number)
            except (OSError, ValueError):
                break  # not started yet
            try:
                child.wait(PATIENCE if number == signal.SIGQUIT else 1)
                return
            except subprocess.TimeoutExpired:
                continue
        child.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = child.wait()
    end_the_rest()
    return code


def end_the_rest() -> None:
    """Workers outlive a master that was killed, with the ports and yesterday's configuration."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + 2
    try:
        while time.monotonic() < deadline:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.02)
    except ChildProcessError:
        return  # none is left
    os.killpg(0, signal.SIGKILL)  # ourselves, too


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(os.environ["KONG_PREFIX"]), Path(os.environ["KONG_NGINX_ADMIN_LISTEN"][5:])))
