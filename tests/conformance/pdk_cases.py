"""`pdk-calls.jsonl` and `pdk-phase-matrix.jsonl`: PDK calls of a plugin and what Kong answers."""

from __future__ import annotations

import json
import logging
from typing import Any

from tests.conformance import http_cases
from tests.conformance.http_replay import DEFAULT
from tests.conformance.match import difference, expand
from tests.conformance.plugin_server import is_plain
from tests.conformance.stage import CONFIGS, LogLines, Stage

# Which config, plugin and path the recording used for each phase of the matrix.
_MATRIX = {
    "rewrite": ("global", "probe", "/p/m"),
    "access": ("base", "probe", "/p/m"),
    "response": ("base", "probe-resp", "/resp/m"),
    "log": ("base", "probe", "/p/m"),
    "certificate": ("base", "probe-cert", "/p/m"),
}
_MATRIX_REQUEST = (
    "POST {}?a=1 HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\n"
    'Content-Length: 7\r\n\r\n{{"b":1}}'
)


# Figures of the running process, not marked as volatile in the recording: only their types are compared.
_LIVE = frozenset({"kong.nginx.get_statistics", "kong.node.get_memory_stats"})


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _types(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_types(v) for v in value]
    return {"$volatile": value} if isinstance(value, int | float) else value


def _config(name: str | None) -> str:
    return (CONFIGS / f"{name or 'base'}.yml").read_text()


def _any_latencies(answer: Any) -> Any:
    """The recorded milliseconds of one run are no measure of another."""
    if isinstance(answer, list):
        return [_any_latencies(v) for v in answer]
    if not isinstance(answer, dict):
        return answer
    made = {k: _any_latencies(v) for k, v in answer.items()}
    if "latencies" in made:
        made["latencies"] = _types(made["latencies"])
    for name in made:
        if name.startswith("x-kong-") and name.endswith("-latency"):
            made[name] = "{{int}}"
        elif name.startswith("balancer_latency"):
            made[name] = _types(made[name])
    return made


async def replay(case: dict[str, Any], stage: Stage) -> str | None:
    """What differs from the recording, or None."""
    settings = stage.settings(case.get("conf"), case.get("kong_conf"))
    status, body = await stage.prepare(settings, case.get("kong_yml") or _config(case.get("config")))
    if status != 201:
        return f"POST /config: {status} {body}"
    if "patterns" in case:
        return await _patterns(case, stage)
    calls = case.get("calls") or []
    frames = case.get("frames") or []
    aborts = {"action": "abort"} in case["request"]
    stage.script(case.get("upstream") or _unrecorded(case, aborts))
    if frames and not is_plain(frames):
        stage.server.play_frames(frames)
    else:
        # A client that goes away during an event needs events that last.
        stage.server.play_calls(calls, slow_answers=0.1 if aborts and frames else 0.0)
    want = {"responses": [], "upstream": [], **case}
    expect = len(case["responses"]) if "responses" in case else 1
    seen = await http_cases.send(want, expect)
    await stage.server.settled(2.0 if aborts else 0.6)
    problem = answers(stage, calls)
    if problem:
        return problem
    if "responses" in case:
        problem = http_cases.client_problem(seen, want)
        if problem or "upstream" not in case:
            return problem
        return await http_cases.upstream_problem(want, stage)
    return _compact(case, seen.responses, stage)


def _unrecorded(case: dict[str, Any], aborts: bool) -> list[dict[str, Any]]:
    """What the service answered where the recording has only a count."""
    if aborts:
        return [{"port": 9000, "sent": [0.6, DEFAULT]}]
    if case.get("status") == 201 and case.get("upstream_requests") == 1 and isinstance(case.get("response_body"), str):
        body = case["response_body"]
        head = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nX-Same: u\r\nX-M: a\r\nX-M: b\r\n"
        return [{"port": 9000, "sent": [f"{head}Content-Length: {len(body)}\r\n\r\n{body}"]}]
    return []


async def _patterns(case: dict[str, Any], stage: Stage) -> str | None:
    """Which arguments reach a PDK function when some are nil: kong.log.notice writes what it gets."""
    logger, lines = logging.getLogger("minikong"), LogLines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    request = {"request": ["GET /p HTTP/1.1\r\nHost: api.example.com\r\n\r\n"]}
    try:
        for pattern in case["patterns"]:
            lines.lines.clear()
            args = pattern["args"]
            call = {"plugin": "probe", "phase": "access", "method": case["method"], "args": args, "answer": {}}
            stage.script([])
            stage.server.play_calls([call])
            await http_cases.send(request, 1)
            await stage.server.settled()
            want = "[probe] " + "".join("nil" if value is None else value for value in pattern["passed"])
            if pattern["passed"]:
                found = any(line.endswith(want) for line in lines.lines)
            else:  # kong.log.notice() without arguments is itself an error
                found = not any(f"[probe] {value}" in line for line in lines.lines for value in ("nil", "v"))
            if not found:
                return f"args {pattern['args']}: logged {lines.lines}, want {want!r}"
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagate
    return None


def answers(stage: Stage, calls: list[dict[str, Any]]) -> str | None:
    script = stage.server.script
    if script is not None:
        if script.problems:
            return f"frames: {script.problems[0]}"
        return f"frames: never came: {script.left[0]}" if script.left else None
    got = {id(call): answer for call, answer in stage.server.answers}
    for index, call in enumerate(calls):
        name = f"calls[{index}] {call['phase']} {call.get('method')}"
        if id(call) not in got:
            return f"{name}: not made, or never answered; want {json.dumps(call['answer'])[:300]}"
        want = expand(call["answer"])
        if call.get("method") in _LIVE:
            want = _types(want)
        elif call.get("method") == "kong.log.serialize":
            want = _any_latencies(want)
        found = difference(got[id(call)], want, name)
        if found:
            return found
    return None


def _compact(case: dict[str, Any], responses: list[dict[str, Any]], stage: Stage) -> str | None:
    if "status" not in case:
        return f"responses: {responses}" if responses else None
    status = int(responses[0]["start"].split(" ")[1]) if responses else None
    if status != case.get("status"):
        return f"status: got {status} {responses}, want {case.get('status')}"
    if "response_body" in case:
        found = difference(responses[0]["body"], expand(case["response_body"]), "response_body")
        if found:
            return found
    if "upstream_requests" in case and stage.requests != case["upstream_requests"]:
        return f"upstream_requests: got {stage.requests}, want {case['upstream_requests']}"
    return None


async def replay_matrix(case: dict[str, Any], stage: Stage) -> str | None:
    """One method in one phase."""
    config, plugin, path = _MATRIX[case["phase"]]
    call = {
        "plugin": plugin,
        "phase": case["phase"],
        "method": case["method"],
        "args": case["args"],
        "answer": case["answer"],
    }
    whole = {
        "id": case["id"],
        "config": case.get("config", config),
        "request": [_MATRIX_REQUEST.format(path)],
        "calls": [call],
        "status": case["status"],
    }
    return await replay(whole, stage)
