"""`kong-claude up`: the whole stack on this machine, without Docker, Kong or an API key."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from claude_contract.attestation import public_key_of
from claude_contract.errors import ConfigError
from kong_claude import PLUGINS
from kong_claude.ask import get
from kong_claude.problem import Problem
from kong_claude_local import configuration, real_kong, stack
from kong_claude_local.state import Running, forget, home, left_over, process_start, recall, remember, secret
from kong_claude_local.supervise import PartFailed, Supervisor

HELP = "start the local stack (foreground; Ctrl-C stops everything)"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d ")
SHARED_KEY = re.compile(r"\{vault://env/claude[-_]attestation[-_]secret", re.IGNORECASE)
MIN_FREE = 200 << 20  # bytes: append-only file, logs, working directories of runs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8000, help="port of the gateway (default: %(default)s)")
    parser.add_argument("--config", default="kong.yml", type=Path, help="declarative configuration (default: kong.yml)")
    parser.add_argument("--detach", action="store_true", help="return when everything is ready; stop with: down")
    parser.add_argument(
        "--kong",
        nargs="?",
        const="kong",
        metavar="PATH",
        help="a real Kong instead of minikong: the program kong of this machine, or the one named",
    )
    parser.add_argument("--plugins-directory", type=Path, help="directory with the claude-*.py files")


def run(options: argparse.Namespace) -> int:
    layout = layout_from(options)
    try:
        check(layout)
        describe(layout)
    except Problem:
        shutil.rmtree(layout.run, ignore_errors=True)
        raise
    return detach(layout) if options.detach else serve(layout, sys.stdout)


def layout_from(options: argparse.Namespace) -> stack.Layout:
    """Settings and environment → where everything will be. Raises Problem."""
    if not options.config.is_file():
        raise Problem(f"{options.config} is not there; run this in the checkout, or name one with --config FILE")
    if not 1 <= options.port <= 65535:
        raise Problem(f"--port {options.port} is not a port number")
    plugins = options.plugins_directory or PLUGINS
    if not (plugins / "claude-gateway.py").exists():
        raise Problem(f"there is no claude-gateway.py in {plugins}; name another directory with --plugins-directory")
    return stack.Layout(
        config=options.config.resolve(),
        plugins=plugins.resolve(),
        state=home(),
        run=Path(tempfile.mkdtemp(prefix="kong-claude-")),
        address=own_address(options.port),
        port=options.port,
        redis_url=os.environ.get("REDIS_URL"),
        api_key=os.environ.get("ANTHROPIC_API_KEY"),
        secrets=secrets_for(options.config),
        kong=kong_program(options.kong) if options.kong else None,
    )


def kong_program(name: str) -> str:
    """The absolute path of a Kong that the plugins run on. Raises Problem."""
    found = shutil.which(name)
    if found is None:
        raise Problem(f"there is no program {name}; name Kong's: kong-claude up --kong PATH (without: minikong)")
    path = str(Path(found).resolve())
    real_kong.version(path)
    return path


def secrets_for(config: Path) -> dict[str, str]:
    """The secrets by name; the shared one only for a kong.yml that still signs attestations with it. Raises Problem."""
    names = ["jwt-secret", "attestation-key", "webhook-secret"]
    if SHARED_KEY.search(config.read_text(errors="replace")):
        names.append("attestation-secret")
    found = {name: secret(name) for name in names}
    try:
        public_key_of(found["attestation-key"], "CLAUDE_ATTESTATION_KEY")
    except ConfigError as error:
        raise Problem(str(error)) from error
    return found


def own_address(port: int) -> str:
    """A loopback address of its own for every proxy port but 8000, so that several stacks can run side by side."""
    if port == 8000 or sys.platform != "linux":
        return "127.0.0.1"
    return f"127.1.{port >> 8}.{port & 255}"


def check(layout: stack.Layout) -> None:
    """What would fail later, said now in one line. Raises Problem."""
    running = recall()
    if running:
        raise Problem(
            f"a stack is already running here (pid {running.pid}, {running.proxy}); stop it: kong-claude down"
        )
    if killed := left_over():
        shutil.rmtree(killed, ignore_errors=True)
    ports = [("127.0.0.1", layout.port, "--port N takes another")]
    ports += [(layout.address, layout.invoker_port, ""), (layout.address, layout.metrics_port, "")]
    if layout.standin_url:
        ports.append((layout.address, layout.standin_port, ""))
    if layout.kong:
        ports.append((layout.address, layout.admin_port, ""))
    for host, port, hint in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                hint = hint or "kong-claude up --port N moves the whole stack"
                raise Problem(f"{host}:{port} cannot be used ({error.strerror}); {hint}") from error
    for place in (layout.state, layout.run):
        free = shutil.disk_usage(place).free
        if free < MIN_FREE:
            raise Problem(f"only {free >> 20} MB free at {place}, {MIN_FREE >> 20} MB are needed; make room")
    stack.parts_are_installed()
    if not layout.redis_url:
        stack.redis_binary()
    stack.script("kong-claude-pluginserver")
    stack.claude_binary()
    if found := configuration.problems(layout):
        raise Problem("\n".join(found))


def describe(layout: stack.Layout) -> None:
    """Writes down what the plugin server would say of each plugin, in a process of its own for each. Raises Problem."""
    from kong_claude.server.plugins import LoadError, load_all

    try:
        plugins = load_all(layout.plugins)
    except (LoadError, OSError) as error:
        raise Problem(str(error)) from error
    for name, plugin in plugins.items():
        layout.described(name).write_text(json.dumps([plugin.info()]))


KONG_REFUSES = "init_by_lua error: "


def serve(layout: stack.Layout, out: object) -> int:
    """Runs the stack until a signal. Exit code 0 after Ctrl-C, 2 where a part did not start."""
    supervisor = Supervisor(layout.state / "stack.log", out)  # type: ignore[arg-type]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    problem = ""
    try:
        for part in stack.parts(layout):
            supervisor.say("stack", f"starting {part.name}")
            supervisor.start(part)
            if supervisor.stopping.is_set():
                return 0
        remember(running_from(layout))
        for line in banner(layout):
            supervisor.say("stack", line)
        failed = supervisor.watch()
        if failed:
            supervisor.say("stack", f"{failed} keeps ending; see {layout.state / 'stack.log'}")
            return 1
        return 0
    except PartFailed as failure:
        problem = f"kong-claude: {failure}\n{complaint(failure)}"
        return 2
    finally:
        supervisor.stop()
        forget()
        shutil.rmtree(layout.run, ignore_errors=True)
        if problem:  # last, where it is seen
            print(problem, file=sys.stderr, flush=True)


def complaint(failure: PartFailed) -> str:
    """What the part said about its end: where it refused its input (exit code 2), without its log lines. A real Kong
    says it twice, each time with the place in its code behind it, and an anchor's error once for each of its uses."""
    if KONG_REFUSES in failure.last:
        said = failure.last.rpartition(KONG_REFUSES)[2].partition("\nstack traceback:")[0]
        return "\n".join(said.splitlines()[:20])
    lines = failure.last.splitlines()
    if failure.code == 2:
        lines = [line for line in lines if not LOG_LINE.match(line)] or lines
    return "\n".join(lines[-20:])


def detach(layout: stack.Layout) -> int:
    """The stack in a background process; returns when it is ready."""
    log = layout.state / "stack.log"
    child = os.fork()
    if child == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with open(os.devnull, "w") as nowhere:
            os._exit(serve(layout, nowhere))
    while True:
        running = recall()
        if running:
            print("\n".join(banner(layout)))
            return 0
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            lines = log.read_text(errors="replace").splitlines()
            said = max((i for i, line in enumerate(lines) if line.startswith("kong-claude: ")), default=-15)
            print("\n".join(lines[said:]), file=sys.stderr)
            return os.waitstatus_to_exitcode(status) or 2
        time.sleep(0.1)


def running_from(layout: stack.Layout) -> Running:
    return Running(
        pid=os.getpid(),
        started=process_start(os.getpid()) or 0.0,
        proxy=layout.proxy_url,
        admin=layout.admin_url,
        invoker=layout.invoker_url,
        redis=layout.redis if layout.redis_url is None else "REDIS_URL",  # a foreign URL may hold a password
        standin=layout.standin_url,
        log=str(layout.state / "stack.log"),
        run=str(layout.run),
    )


def boundary(layout: stack.Layout) -> str:
    """What surrounds a run on this machine, and which tools that leaves out."""
    try:
        checks = json.loads(get(layout.invoker_url, "/readyz", 3)[1])["checks"]
        left_out = ", ".join(checks["tools_left_out"]) or "none"
        return f"boundary around a run: {checks['isolation']}, tools left out: {left_out} (docs/invoker.md)"
    except (OSError, ValueError, KeyError):
        return "boundary around a run: unknown, the invoker does not say"


def banner(layout: stack.Layout) -> list[str]:
    """What a newcomer needs next."""
    gateway = f"Kong {real_kong.version(layout.kong)}" if layout.kong else "minikong, which stands in for Kong"
    lines = [f"ready on {layout.proxy_url} ({gateway})", boundary(layout)]
    if layout.standin_url:
        lines.append("ANSWERS ARE CANNED: no ANTHROPIC_API_KEY is set, a local stand-in plays the model")
    if "attestation-secret" in layout.secrets:
        lines.append(f"{layout.config.name} signs attestations with a secret that the invoker has too; instead of it:")
        lines.append('  private_key: "{vault://env/claude-attestation-key}"')
    kong_claude = Path(sys.argv[0]) if Path(sys.argv[0]).name == "kong-claude" else Path("kong-claude")
    lines += [
        "try:",
        f"  TOKEN=$({kong_claude} token --sub alice --tier pro)",
        f'  curl -i {layout.proxy_url}/claude/invoke -H "Authorization: Bearer $TOKEN" \\',
        "    -H 'Content-Type: application/json' -H 'X-Repo: org/app' -H 'X-Branch: main' \\",
        """    -d '{"prompt": "hi", "system": "Be brief."}'""",
        f"dashboard: {layout.proxy_url}/claude/dashboard/login",
    ]
    return lines
