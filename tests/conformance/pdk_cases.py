"""`pdk-calls.jsonl` and `pdk-phase-matrix.jsonl`: PDK calls of a plugin and what Kong answers."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance import http_cases
from tests.conformance.match import difference, expand
from tests.conformance.plugin_server import is_plain
from tests.conformance.stage import Stage

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


def _config(stage: Stage, name: str | None) -> str:
    return (stage.data / "configs" / f"{name or 'base'}.yml").read_text()


async def replay(case: dict[str, Any], stage: Stage) -> str | None:
    """What differs from the recording, or None."""
    settings = stage.settings(case.get("conf"), case.get("kong_conf"))
    status, body = await stage.prepare(settings, case.get("kong_yml") or _config(stage, case.get("config")))
    if status != 201:
        return f"POST /config: {status} {body}"
    calls = case.get("calls") or []
    frames = case.get("frames") or []
    stage.script(case.get("upstream") or [])
    if frames and not is_plain(frames):
        stage.server.play_frames(frames)
    else:
        stage.server.play_calls(calls)
    want = {"responses": [], "upstream": [], **case}
    expect = len(case["responses"]) if "responses" in case else 1
    seen = await http_cases.send(want, expect)
    await stage.server.settled()
    problem = answers(stage, calls)
    if problem:
        return problem
    if "responses" in case:
        problem = http_cases.client_problem(seen, want)
        if problem or "upstream" not in case:
            return problem
        return await http_cases.upstream_problem(want, stage)
    return _compact(case, seen.responses, stage)


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
        found = difference(got[id(call)], want, name)
        if found:
            return found
    return None


def _compact(case: dict[str, Any], responses: list[dict[str, Any]], stage: Stage) -> str | None:
    status = int(responses[0]["start"].split(" ")[1]) if responses else None
    if status != case["status"]:
        return f"status: got {status} {responses}, want {case['status']}"
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
