"""`lifecycle.jsonl`: plugin server dumps and instances as steps with frames."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

from minikong import conf, declarative, pluginserver
from minikong.schema.metaschema import BadSchema
from tests.conformance import http_cases, process_cases
from tests.conformance.http_replay import Seen
from tests.conformance.stage import Stage

GET = ["GET /p HTTP/1.1\r\nHost: api.example.com\r\n\r\n"]
_DUMP_YML = (
    '_format_version: "3.0"\nservices:\n- name: up\n  url: http://127.0.0.1:9000\n  routes:\n  - name: r\n'
    '    paths: ["/"]\n    plugins:\n    - name: {}\n'
)
_DP = {
    "Name": "dp",
    "Phases": ["access"],
    "Priority": 10,
    "Version": "0.1",
    "Schema": {"name": "dp", "fields": [{"config": {"type": "record", "fields": []}}]},
}


async def replay(case: dict[str, Any], stage: Stage) -> str | None:
    """What differs from the recording, or None."""
    kind = case["id"].partition("/")[0]
    if kind == "dump":
        return await _dump(case, stage)
    if kind in ("process", "shared-socket", "stock"):
        return await process_cases.replay(case, stage)
    if kind == "noserver":
        return await _no_server(case, stage)
    if "kong_start" in case:
        return await _refused_start(case, stage)
    return await _steps(case, stage)


# -- dumps


async def _dump(case: dict[str, Any], stage: Stage) -> str | None:
    dump = stage.dir / "dump.json"
    dump.write_text(case.get("query_output", json.dumps([_DP])))
    query = (
        case.get("query_cmd", f"cat {dump}").replace("dump.json", str(dump)) if "query_cmd" in case else f"cat {dump}"
    )
    settings = stage.settings(None, None) | {
        "plugins": "bundled,dp",
        "pluginserver_names": "dp",
        "pluginserver_dp_socket": str(stage.server.path),
        "pluginserver_dp_query_cmd": query,
    }
    if case["id"].endswith("not-in-plugins"):
        settings["plugins"] = "bundled"
    if case["id"].endswith("not-in-pluginserver_names"):
        settings = {k: v for k, v in settings.items() if not k.startswith("pluginserver_")}
    if case["id"].endswith("missing-binary"):
        settings["pluginserver_dp_start_cmd"] = "/nonexistent/server"
    if case["id"].endswith("name-with-capitals"):
        settings["pluginserver_names"] = "Dp"
    settings = {k: v for k, v in settings.items() if not k.startswith("pluginserver_probe")}
    name = "dp"
    try:
        status, _ = await stage.prepare(settings, _DUMP_YML.format(name), fresh=True)
    except (pluginserver.StartError, BadSchema, declarative.DeclarativeError) as problem:
        if case["start_exit_code"] == 0:
            return f"does not start: {problem}"
        output = case["output"]
        output = output["$volatile"] if isinstance(output, dict) else output
        found = re.search(r"init_by_lua error: \S+:\d+: (.*?)\nstack traceback", output, re.S)
        want = found[1] if found else output
        got = str(problem).replace(str(dump), "<cfg>/dump-dp.json")
        return None if got in want else f"got {got}\nwant {want}"
    if case["start_exit_code"] != 0:
        return f"starts, want {case['output']}"
    if "post_config_status" not in case:
        return None
    if status != case["post_config_status"]:
        return f"POST /config: got {status}, want {case['post_config_status']}"
    stage.script([])
    stage.server.play_frames(case["frames"])
    seen = await http_cases.send({"request": ["GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n"]}, 1)
    await stage.server.settled()
    return _frames(stage) or _status(seen, case["status"])


async def _refused_start(case: dict[str, Any], stage: Stage) -> str | None:
    """Only that Kong does not take this setting was recorded."""
    setting, _, value = case["title"].partition(" = ")
    try:
        await stage.prepare(stage.settings(None, {setting: value}), _DUMP_YML.format("probe"), fresh=True)
    except (conf.ConfError, pluginserver.StartError):
        return None
    return "starts"


# -- steps


async def _steps(case: dict[str, Any], stage: Stage) -> str | None:
    settings = stage.settings(None, case.get("kong_conf"))
    status, body = await stage.prepare(settings, case["kong_yml"], fresh=True)
    if status != case.get("admin_status", 201):
        return f"POST /config: got {status} {body}"
    if case["id"].startswith("hang/read-timeout"):  # the recording's instance was known already
        stage.server.play_calls([])
        await http_cases.send({"request": GET}, 1)
        await stage.server.settled()
    delay = re.search(r"reply comes after (\d+) ms", case["title"])
    for index, step in enumerate(case["steps"]):
        if "admin_status" in step:
            status, body = stage.post_config(step["kong_yml"])
            problem = None if status == step["admin_status"] else f"POST /config: {status} {body}"
        elif delay:
            problem = await _late_reply(step, stage, case["title"])
        else:
            problem = await _step(step, stage, case)
        if problem:
            return f"step {index + 1} ({step['step']}): {problem}"
    return None


async def _step(step: dict[str, Any], stage: Stage, case: dict[str, Any]) -> str | None:
    stage.script([])
    frames = step.get("frames")
    # minikong is one worker: which of two takes a request, and their instances, cannot be compared.
    volatile = isinstance(frames, dict) or case["id"].startswith("workers/")
    frames = frames["$volatile"] if isinstance(frames, dict) else frames
    left_out = "left out" in frames[0].get("note", "") if frames else False
    if frames is None or left_out or volatile:
        stage.server.play_calls(step.get("calls") or [], ending=_ending(step["step"]), slow=0.3 if left_out else 0)
    else:
        start = _seconds(step["step"], "StartInstance takes")
        stage.server.play_frames(frames, parallel="parallel" in step, start_delay=start)
    want = {"responses": [], **step, "request": step.get("request", GET)}
    began = time.monotonic()
    count = step.get("parallel", 1)
    if left_out:
        stage.server.connections = 0
    patience = max(2.0, 2 * (step.get("ms") or {}).get("$volatile", 0) / 1000)
    requests = (http_cases.send(want, _expected(step), patience) for _ in range(count))
    all_seen = await asyncio.gather(*requests)
    took = (time.monotonic() - began) * 1000
    await stage.server.settled(2.0 if count > 1 else 0.6)
    if not volatile and (problem := _frames(stage)):
        return problem
    if left_out and stage.server.connections < count:
        return f"{stage.server.connections} connections, want {count}"
    problem = _duration(took, step)
    if problem or (problem := _outcome(all_seen, step)):
        return problem
    if "upstream_requests" in step and stage.requests != step["upstream_requests"]:
        return f"upstream_requests: got {stage.requests}, want {step['upstream_requests']}"
    if "calls" in step:
        from tests.conformance.pdk_cases import answers

        return answers(stage, step["calls"])
    return None


def _expected(step: dict[str, Any]) -> int:
    return len(step["responses"]) if "responses" in step else 1


def _outcome(all_seen: list[Seen], step: dict[str, Any]) -> str | None:
    if "responses" in step:
        return http_cases.client_problem(all_seen[0], step)
    wanted = step.get("status")
    statuses = [int(s.responses[0]["start"].split(" ")[1]) if s.responses else None for s in all_seen]
    if wanted is None:
        return None
    wanted = wanted if isinstance(wanted, list) else [wanted]
    return None if sorted(statuses, key=str) == sorted(wanted, key=str) else f"status: got {statuses}, want {wanted}"


def _ending(text: str) -> str:
    """What the server does after the calls, which the recording tells in words."""
    if "answers an error" in text:
        return "error"
    if "closes the connection" in text:
        return "close"
    return "hang" if "hangs" in text else "ret"


def _duration(took: float, step: dict[str, Any]) -> str | None:
    """Time-outs of half a second and more must show, whatever else the machine does."""
    recorded = (step.get("ms") or {}).get("$volatile", 0)
    if recorded >= 450 and took < recorded * 0.6:
        return f"took {took:.0f} ms, recorded {recorded}"
    return None if recorded >= 450 or took < 5000 else f"took {took:.0f} ms, recorded {recorded}"


def _frames(stage: Stage) -> str | None:
    script = stage.server.script
    if script is None:
        return None
    if script.problems:
        return f"frames: {script.problems[0]}"
    return f"frames: never came: {json.dumps(script.left[0])[:400]}" if script.left else None


def _status(seen: Seen, want: int) -> str | None:
    got = int(seen.responses[0]["start"].split(" ")[1]) if seen.responses else None
    return None if got == want else f"status: got {got}, want {want}"


async def _late_reply(step: dict[str, Any], stage: Stage, title: str) -> str | None:
    """Replies come after the gateway has given up on them; the requests come when the title says."""
    stage.script([])
    stage.server.play_calls([])
    await http_cases.send({"request": GET}, 1)  # the instance was known already
    await stage.server.settled()
    stage.script([])
    stage.server.play_frames(step["frames"])
    stage.server.delay_first(_seconds(title, r"reply comes after"))
    pauses = [0.0, _seconds(title, r"second request", 0.5), _seconds(title, r"third request", 0.5)]
    starts = []
    for pause in pauses[: len(step["status"])]:
        await asyncio.sleep(pause)
        seen = await http_cases.send({"request": GET}, 1)
        starts.append(seen.responses[0]["start"] if seen.responses else None)
    await stage.server.settled(1.5)
    if starts != step["status"]:
        return f"status: got {starts}, want {step['status']}"
    if stage.requests != step["upstream_requests"]:
        return f"upstream_requests: got {stage.requests}"
    return _frames(stage)


def _seconds(title: str, words: str, default: float = 0.0) -> float:
    found = re.search(words + r" (\d+(?:\.\d+)?) (ms|s)", title)
    return float(found[1]) / (1000 if found[2] == "ms" else 1) if found else default


# -- nobody listens on the socket


async def _no_server(case: dict[str, Any], stage: Stage) -> str | None:
    status, body = await stage.prepare(stage.settings(None, None), case["kong_yml"], fresh=True)
    if status != 201:
        return f"POST /config: {status} {body}"
    running = False
    await stage.server.stop()
    try:
        for index, step in enumerate(case["steps"]):
            if ("frames" in step) != running:
                running = not running
                await (stage.server.start() if running else stage.server.stop())
            stage.script([])
            if running:
                stage.server.play_frames(step["frames"])
            seen = await http_cases.send({"request": GET}, 1)
            if running:
                await stage.server.settled()
            problem = _frames(stage) if running else None
            problem = problem or _outcome([seen], step)
            if not problem and step.get("upstream_requests", stage.requests) != stage.requests:
                problem = f"upstream_requests: got {stage.requests}"
            if problem:
                return f"step {index + 1} ({step['step']}): {problem}"
        return None
    finally:
        await stage.server.stop()
        await stage.server.start()
