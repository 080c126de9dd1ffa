"""`http-behaviour.jsonl`: one config and a list of exchanges through it."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

from tests.conformance.http_replay import Bindings, Seen, message_problem, ordered, play
from tests.conformance.match import difference
from tests.conformance.stage import Stage

_PATIENCE = 2.0  # seconds without a byte after which an exchange is over


async def replay(case: dict[str, Any], stage: Stage) -> str | None:
    """What differs from the recording, or None."""
    settings = stage.settings(case.get("conf"), case.get("kong_conf"))
    # not a fresh gateway: an idle connection of the case before is one try more in proxy/upstream-failures
    status, body = await stage.prepare(settings, case["kong_yml"])
    if "config_error" in case:
        return difference([status, body], case["config_error"], "config_error")
    if status != 201:
        return f"POST /config: {status} {body}"
    for want in case["exchanges"]:
        problem = await exchange(want, stage)
        if problem:
            return f"exchange {want['n']}: {problem}"
    return None


async def exchange(want: dict[str, Any], stage: Stage) -> str | None:
    stage.script(want["upstream"])
    frames = want.get("frames") or []
    if frames:
        stage.server.play_frames(frames)
    else:
        stage.server.play_calls([])
    seen = await send(want, len(want["responses"]))
    await stage.server.settled()
    if stage.server.script is not None:
        script = stage.server.script
        if script.problems:
            return f"frames: {script.problems[0]}"
        if script.left:
            return f"frames: never came: {script.left[0]}"
    return client_problem(seen, want) or await upstream_problem(want, stage)


async def send(want: dict[str, Any], expect: int, patience: float = _PATIENCE) -> Seen:
    return await play(
        want["request"],
        8443 if want.get("tls") else 8000,
        expect=expect,
        until_closed=bool(want.get("closed_by_kong")) or bool(want.get("rest")),
        patience=1.0 if "client_timeout_s" in want else patience,
        tls=bool(want.get("tls")),
        sni=want.get("sni"),
        client_ip=want.get("client_ip"),
    )


def client_problem(seen: Seen, want: dict[str, Any]) -> str | None:
    if "tls_handshake_error" in want:
        return None if seen.tls_error else "the TLS handshake succeeded"
    if seen.tls_error:
        return f"TLS: {seen.tls_error}"
    if len(seen.responses) != len(want["responses"]):
        return f"{len(seen.responses)} responses: {seen.responses} rest={seen.rest!r}, want {want['responses']}"
    for index, (got, wanted) in enumerate(zip(seen.responses, want["responses"], strict=True)):
        bindings = Bindings()
        found = message_problem(bindings, *ordered(got, wanted), f"responses[{index}]")
        if found:
            return found
    rest = re.sub(r"Latency: [0-9]+", "Latency: {{int}}", want.get("rest", ""))
    found = Bindings().problem(seen.rest.decode(errors="replace"), rest, "rest")
    if found:
        return found
    if want.get("closed_by_kong") and not seen.closed:
        return "the connection stays open"
    if "arrivals_ms" in want and _bursts(seen.arrivals) != _bursts(_plain(want["arrivals_ms"])):
        return f"the response arrived in bursts {seen.arrivals}, want {_plain(want['arrivals_ms'])}"
    if len(seen.interim) != len(want.get("interim", [])):
        return f"interim: got {seen.interim}, want {want.get('interim')}"
    return None


async def upstream_problem(want: dict[str, Any], stage: Stage) -> str | None:
    wanted = want["upstream"]
    for _ in range(50):
        if stage.requests >= len(wanted):
            break
        await asyncio.sleep(0.01)
    seen = [(port, entry) for port, service in stage.services.items() for entry in service.seen]
    if len(seen) != len(wanted):
        return f"upstream requests: got {seen}, want {wanted}"
    left = list(seen)
    for index, entry in enumerate(wanted):
        at = next((i for i, (port, _) in enumerate(left) if port == entry["port"]), None)
        if at is None:
            return f"upstream[{index}]: nothing on port {entry['port']}"
        _, got = left.pop(at)
        if "partial" in entry:
            continue
        if "received" not in got:
            return f"upstream[{index}]: got only {got}"
        found = message_problem(Bindings(), *ordered(got["received"], entry["received"]), f"upstream[{index}]")
        if found:
            return found
        if _bursts(got["arrivals_ms"]) != _bursts(_plain(entry["received"].get("arrivals_ms") or [[0, 0]])):
            return f"upstream[{index}]: the request arrived in bursts {got['arrivals_ms']}"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return _plain(value["$volatile"])
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _bursts(arrivals: list[list[int]]) -> int:
    """In how many parts, at least 100 ms apart, something arrived."""
    times = [at for at, _ in arrivals]
    return 1 + sum(later - earlier > 100 for earlier, later in itertools.pairwise(times))
