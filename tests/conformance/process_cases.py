"""`lifecycle.jsonl`, the cases with real plugin server processes: start, respawn, stop, stale instances."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from minikong import conf
from tests.conformance import http_cases
from tests.conformance.stage import LogLines, Stage
from tests.support.processes import command_line

MULTI = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).with_name('multi.py')))}"
THREE = (
    '_format_version: "3.0"\nservices:\n- name: up\n  url: http://127.0.0.1:9000\n  routes:\n  - name: three\n'
    '    paths: ["/three"]\n    plugins:\n    - {name: pa, config: {tag: three-a}}\n'
    "    - {name: pb, config: {tag: three-b}}\n    - {name: pc, config: {tag: three-c}}\n"
)


async def replay(case: dict[str, Any], stage: Stage) -> str | None:
    """What differs from the recording, or None."""
    kind, _, name = case["id"].partition("/")
    flags = "-g" if "gevent" in name else ""
    if kind == "stock":
        return await (_exceptions if name.startswith("exception") else _stale)(case, stage, flags)
    if name.startswith("start_cmd-"):
        return await _start_cmd(case, stage)
    if name == "default-path-exists":
        return await _default_path(case, stage)
    if name == "environment":
        return await _environment(case, stage)
    if name == "kong-reload":
        return await _reload(stage)
    await stage.close_gateway()
    settings = _settings(stage, flags)
    await stage.prepare(settings, THREE, fresh=True)
    problem = await _comes_up(stage)
    if not problem and "rounds" in case and name.startswith("kill"):
        for round_ in case["rounds"]:
            problem = problem or await _kill(stage, getattr(signal, round_["killed"]))
    if not problem and name.startswith("same-process"):
        pids = await _pids(stage)
        problem = None if len(pids) == 3 and len(set(pids)) == 1 else f"pids: {pids}"
    if not problem and (name in ("after-stop", "kong-stop")):
        problem = await _stop(stage, settings)
    return problem


def _settings(stage: Stage, flags: str = "", **own: str) -> dict[str, str]:
    socket = stage.dir / "multi.sock"
    socket.unlink(missing_ok=True)
    made = {k: v for k, v in stage.settings(None, None).items() if not k.startswith("pluginserver_")}
    terms = stage.dir / "terms"
    terms.unlink(missing_ok=True)
    made |= {"plugins": "bundled,pa,pb,pc", "pluginserver_names": "pa,pb,pc"}
    for name in ("pa", "pb", "pc"):
        made[f"pluginserver_{name}_socket"] = str(socket)
        made[f"pluginserver_{name}_query_cmd"] = f"{MULTI} --dump {name}"
    made["pluginserver_pa_start_cmd"] = f"{MULTI} --sock {socket} {flags} --terms {terms}"
    return made | own


async def _request(stage: Stage, path: str, **headers: str) -> str:
    """One request: its status and which of the three plugins ran, as the recording words it."""
    stage.script([])
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    request = [f"GET {path} HTTP/1.1\r\nHost: api.example.com\r\n{lines}\r\n"]
    seen = await http_cases.send({"request": request}, 1, patience=9.0)
    status = seen.responses[0]["start"].split(" ")[1] if seen.responses else "none"
    if status != "200":
        return status
    ran = _ran(stage)
    return f"200 plugins:{''.join(n[1] if n in ran else '-' for n in ('pa', 'pb', 'pc'))}"


def _ran(stage: Stage) -> dict[str, str]:
    """The plugins that put their header into the request the service saw, with their pid."""
    for entry in stage.services[9000].seen:
        headers = {str(n).lower(): v for n, v in entry.get("received", {}).get("headers", [])}
        return {name: headers[f"x-{name}"] for name in ("pa", "pb", "pc") if f"x-{name}" in headers}
    return {}


async def _pids(stage: Stage) -> list[str]:
    await _request(stage, "/three")
    return list(_ran(stage).values())


async def _until(stage: Stage, wanted: str, allowed: set[str], patience: float = 15.0) -> str | None:
    """Requests until the outcome is `wanted`; before that only those in `allowed`."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        outcome = await _request(stage, "/three")
        if outcome == wanted:
            return None
        if outcome not in allowed:
            return f"outcome {outcome}, want {wanted} after {sorted(allowed)}"
        await asyncio.sleep(0.02)
    return f"never {wanted}"


async def _comes_up(stage: Stage) -> str | None:
    """500 until the server listens (its instances are not known: fail closed), then all three plugins."""
    return await _until(stage, "200 plugins:abc", {"500"})


def _children(stage: Stage) -> list[psutil.Process]:
    mark = str(stage.dir / "multi.sock")
    found = psutil.Process().children(recursive=True)
    return [p for p in found if mark in command_line(p)]


async def _kill(stage: Stage, number: int) -> str | None:
    """The server dies: without its plugins the requests pass (fail open), then it is back."""
    for process in _children(stage):
        process.send_signal(number)
    await asyncio.sleep(0.05)
    partly = {"200 plugins:" + "".join(c if keep >> i & 1 else "-" for i, c in enumerate("abc")) for keep in range(7)}
    problem = await _until(stage, "200 plugins:abc", partly | {"500"})
    if problem:
        return problem
    count = len(_children(stage))
    return None if count == 1 else f"{count} processes, want 1"


async def _reload(stage: Stage) -> str | None:
    """Old and new server answer side by side for ten seconds, never without plugins; then the old one is told to go.

    The new workers too may have a connection to the old server. Of the one request that waits for an answer in the
    moment of its SIGTERM, Kong goes on without that plugin: it has been told to go, and cannot be asked again.
    """
    await stage.close_gateway()
    await stage.prepare(_settings(stage), THREE, fresh=True)
    problem = await _comes_up(stage)
    if problem or stage.gateway is None:
        return problem
    old = {process.pid for process in _children(stage)}
    await stage.gateway.reload()
    started = time.monotonic()
    seen: dict[str, float] = {}  # "old" and "new" -> seconds of the last answer
    cut = 0
    while time.monotonic() - started < 12:
        outcome = await _request(stage, "/three")
        now = time.monotonic() - started
        if outcome.startswith("200 plugins:") and "-" in outcome and not cut and (stage.dir / "terms").exists():
            cut += 1
        elif outcome != "200 plugins:abc" and not (outcome == "500" and now < 1):
            return f"outcome {outcome} after {now:.1f} s"
        for pid in _ran(stage).values():
            seen["old" if int(pid) in old else "new"] = now
        await asyncio.sleep(0.05)
    if not seen.get("old") or not 5 < seen["old"] < 11.5:
        return f"the old server last answered after {seen.get('old')} s, want about 10"
    left = {process.pid for process in _children(stage)}
    return None if len(left) == 1 and not left & old else f"processes {left}, before the reload {old}"


async def _stop(stage: Stage, settings: dict[str, str]) -> str | None:
    children = _children(stage)
    await stage.close_gateway()
    for _ in range(150):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children):
            terms = stage.dir / "terms"
            number = terms.read_text().split() if terms.exists() else []
            return None if number == ["15"] else f"signals {number}, want one SIGTERM"
        await asyncio.sleep(0.01)
    return "processes left after 1.5 s"


async def _start_cmd(case: dict[str, Any], stage: Stage) -> str | None:
    """A start command that ends: how often, and what is said, in four seconds."""
    command = re.sub(r"^start_cmd = (.*), 4 s$", r"\1", case["title"])
    settings = _settings(stage) | {"pluginserver_pa_start_cmd": command}
    logger, lines = logging.getLogger("minikong"), LogLines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    propagate, logger.propagate = logger.propagate, False
    try:
        await stage.prepare(settings, THREE, fresh=True)
        await asyncio.sleep(4.0)
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagate
        await stage.close_gateway()

    def said(all_lines: list[str], text: str) -> int:
        return sum(text in line for line in all_lines)

    for text in ("starting pluginserver process", "terminated: exit", 'exited with "command not found"'):
        got, want = said(lines.lines, text), said(case["log"], text)
        if abs(got - want) > 1 or bool(got) != bool(want):
            return f"'{text}' {got} times, recorded {want}: {lines.lines}"
    return None


async def _default_path(case: dict[str, Any], stage: Stage) -> str | None:
    """A file /usr/local/bin/<name> is run as start command, and with -dump as query command."""
    directory = stage.dir / "bin"
    directory.mkdir(exist_ok=True)
    notes = stage.dir / "invocations"
    notes.unlink(missing_ok=True)
    for name in ("pb", "pc"):
        script = directory / name
        script.write_text(
            f'#!/bin/sh\necho "{name} args=[$*]" >> {notes}\n[ "$1" = -dump ] && exec {MULTI} --dump {name}\nsleep 5\n'
        )
        script.chmod(0o755)
    settings = _settings(stage)
    del settings["pluginserver_pc_query_cmd"]
    previous, conf.DEFAULT_PLUGINSERVER_PATH = conf.DEFAULT_PLUGINSERVER_PATH, directory
    try:
        await stage.prepare(settings, THREE, fresh=True)
        problem = await _until(stage, "200 plugins:abc", {"500"})
        got = sorted(notes.read_text().split("\n")[:-1])
    finally:
        conf.DEFAULT_PLUGINSERVER_PATH = previous
        await stage.close_gateway()
    return problem or (None if got == sorted(case["invocations"]) else f"invocations: {got}")


async def _environment(case: dict[str, Any], stage: Stage) -> str | None:
    """The server's environment is almost empty, and it is no leader of a session or group."""
    out = stage.dir / "env.json"
    out.unlink(missing_ok=True)
    code = (
        "import json,os;json.dump([dict(os.environ),os.getsid(0)==os.getpid(),os.getpgid(0)==os.getpid()],"
        f"open('{out}.tmp','w'));os.rename('{out}.tmp','{out}');import time;time.sleep(20)"
    )
    settings = _settings(stage) | {"pluginserver_pa_start_cmd": f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"}
    await stage.prepare(settings, THREE, fresh=True)
    for _ in range(300):
        if out.exists():
            break
        await asyncio.sleep(0.02)
    await stage.close_gateway()
    environment, session, group = json.loads(out.read_text())
    extra = environment.keys() - {"LC_CTYPE", *case["environment_inherited"]}
    if extra:
        return f"environment: {sorted(environment)}"
    same = session == case["own_session"] and group == case["own_process_group"]
    return None if same else f"own session {session}, own group {group}"


async def _stale(case: dict[str, Any], stage: Stage, flags: str) -> str | None:
    """kong-pdk counts instance ids from 0 again after a respawn: Kong's old ids are another route's instances."""
    await stage.prepare(_settings(stage, flags), case["kong_yml"], fresh=True)
    passed: dict[str, int] = {}

    async def ask(route: str, credential: str) -> int:
        outcome = await _request(stage, f"/{route}", x_credential=credential)
        if outcome.startswith("200") and credential == "bad" and route == "g":
            passed[route] = passed.get(route, 0) + 1
        return int(outcome.split(" ")[0])

    for index, step in enumerate(case["steps"]):
        if "killed" in step["step"]:
            for process in _children(stage):
                process.send_signal(signal.SIGKILL)
            await _listening(stage)
            continue
        if "POST /config" in step["step"]:
            stage.post_config(case["kong_yml"])
        want = step["status"]
        if isinstance(want, list):
            got: Any = [await ask(step["route"], step["credential"]) for _ in want]
        else:
            got = await ask(step["route"], step["credential"])
            for _ in range(200):
                if index or got != 500:  # the very first request may come before the server listens
                    break
                await asyncio.sleep(0.03)
                got = await ask(step["route"], step["credential"])
        if got != want:
            return f"step {index + 1} ({step['step']}): got {got}, want {want}"
    wanted = case.get("unauthenticated_at_upstream")
    return None if wanted is None or passed == wanted else f"unauthenticated at the service: {passed}, want {wanted}"


async def _listening(stage: Stage) -> None:
    """Waits until the respawned server accepts connections."""
    path = str(stage.dir / "multi.sock")
    await asyncio.sleep(0.1)
    for _ in range(500):
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return


async def _exceptions(case: dict[str, Any], stage: Stage, flags: str) -> str | None:
    """kong-pdk answers nothing when a plugin raises: Kong's read time-out, then the request passes."""
    settings = _settings(stage, flags) | {"nginx_http_lua_socket_read_timeout": "2s"}
    for name in ("raise-after", "raise"):
        await stage.prepare(settings, THREE, fresh=True)
        problem = await _comes_up(stage)
        if problem:
            return problem
        for step in (s for s in case["steps"] if s["case"] == name):
            began = time.monotonic()
            action = {"x_action": name} if step["step"] == "request that raises" else {}
            outcome = await _request(stage, "/three", **action)
            took = (time.monotonic() - began) * 1000
            recorded = step["ms"]["$volatile"]
            if not step["outcome"].startswith(outcome.split(" ")[0]):
                return f"{name}, {step['step']}: {outcome}, want {step['outcome']}"
            if abs(took - recorded) > 1500:
                return f"{name}, {step['step']}: {took:.0f} ms, recorded {recorded}"
    return None
