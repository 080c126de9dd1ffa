"""What claude-jwt-claims costs: a token verified, one remembered, a whole decision, and the RPC around it.

    python -m bench.jwt [--rounds 9] [--seconds 0.1]

`*_us` are CPU microseconds of one thread (medians of rounds). PyJWT's own decode of the same tokens with the same keys
runs in turn with ours. `decision_*` is the whole access phase without the wire: headers, rules, attestation signed.
`event_*` is the same over the socket of a plugin server; `rpc_us` is what is left of its CPU when the decision is taken
off: three PDK calls' frames and wake-ups.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jwt
import psutil

from bench.machine import machine
from kong_claude import PLUGINS
from kong_claude.jwt_claims.algorithms import Material
from kong_claude.jwt_claims.plugin import JwtClaims, Plugin
from tests.jwt_claims.support import AUDIENCE, ISSUER, bearer, config, private_key, token
from tests.jwt_claims.test_attacks import ATTACKS
from tests.support.kong_driver import Request, plugin_server
from tests.support.stages import stage_of

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
TOKENS = 64


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_us(action: Callable[[int], Any], seconds: float) -> float:
    """CPU microseconds of this thread per call of `action(n)`."""
    count, start, end = 0, time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            action(count)
            count += 1
    return (time.thread_time() - start) / count * 1e6


class NullKong:
    """Answers the calls of a pass at once: a decision without the wire."""

    def __init__(self, headers: dict[str, Any]) -> None:
        self.headers = headers
        self.request = self.service = self.response = self.ctx = self.shared = self

    def get_headers(self, _: int) -> dict[str, Any]:
        return self.headers

    def set_headers(self, _: Any) -> None:
        pass

    def set(self, *_: Any) -> None:
        pass

    def exit(self, *_: Any) -> None:
        raise AssertionError(f"refused: {_}")


def verification_key(algorithm: str) -> Material | str:
    key = private_key(algorithm)
    return key if isinstance(key, str) else key.public_key()


def ours(stage: JwtClaims, tokens: list[str]) -> Callable[[int], Any]:
    return lambda n: stage.verify(tokens[n % TOKENS])


def pyjwt(algorithm: str, tokens: list[str]) -> Callable[[int], Any]:
    key = verification_key(algorithm)
    return lambda n: jwt.decode(
        tokens[n % TOKENS],
        key,
        algorithms=[algorithm],
        audience=AUDIENCE,
        issuer=ISSUER,
        options={"require": ["exp"]},
    )


def measured() -> dict[str, Callable[[int], Any]]:
    actions: dict[str, Callable[[int], Any]] = {}
    for algorithm in ALGORITHMS:
        tokens = [token(algorithm, sub=f"user-{n}") for n in range(TOKENS)]
        stage = stage_of(JwtClaims, config(algorithm, cache_size=0))
        name = algorithm.lower()
        actions[f"{name}_us"] = ours(stage, tokens)
        actions[f"pyjwt_{name}_us"] = pyjwt(algorithm, tokens)
    tokens = [token("RS256", sub=f"user-{n}") for n in range(TOKENS)]
    stage = stage_of(JwtClaims, config("RS256"))
    actions["cached_us"] = ours(stage, tokens)
    kongs = [NullKong(bearer(compact)) for compact in tokens]
    bound = {"route_id": "bench"}
    cached, uncached = Plugin(config("RS256", **bound)), Plugin(config("RS256", cache_size=0, **bound))
    unsigned = Plugin(config("RS256", attestation=None, **bound))
    actions["decision_cached_us"] = lambda n: cached.access(kongs[n % TOKENS])
    actions["decision_uncached_us"] = lambda n: uncached.access(kongs[n % TOKENS])
    actions["decision_cached_unattested_us"] = lambda n: unsigned.access(kongs[n % TOKENS])
    return actions


def attack_max_ms() -> float:
    """The slowest refusal in the table of attacks, wall milliseconds, best of five runs each."""
    slowest, name = 0.0, ""
    for row, (configuration, attack) in ATTACKS.items():
        stage = stage_of(JwtClaims, configuration)
        best = 1e9
        for _ in range(5):
            start = time.perf_counter()
            try:
                stage.verify(attack)
            except Exception:  # every row raises; that it is refused is a test's business
                pass
            best = min(best, time.perf_counter() - start)
        if best > slowest:
            slowest, name = best, row
    log(f"slowest attack: {name}, {slowest * 1e3:.2f} ms")
    return slowest * 1e3


def event_cost(seconds: float) -> dict[str, float]:
    """Wall and server CPU per event with a remembered token, one connection."""
    with tempfile.TemporaryDirectory(prefix="bj-") as folder:
        shutil.copy(PLUGINS / "claude-jwt-claims.py", folder)
        with plugin_server(folder) as server, server.driver() as kong:
            instance = kong.start_instance("claude-jwt-claims", config("RS256"))
            request = Request(headers=bearer(token("RS256")))
            processes = [psutil.Process(server.process.pid)]
            processes += processes[0].children(recursive=True)
            for _ in range(200):
                kong.handle(instance, "access", request)
            before = sum(sum(p.cpu_times()[:2]) for p in processes)
            walls, end = [], time.monotonic() + seconds
            while time.monotonic() < end:
                start = time.perf_counter()
                event = kong.handle(instance, "access", request)
                walls.append(time.perf_counter() - start)
                assert event.exit is None
            used = sum(sum(p.cpu_times()[:2]) for p in processes) - before
            return {
                "event_wall_us_p50": statistics.median(walls) * 1e6,
                "event_cpu_us": used / len(walls) * 1e6,
                "pdk_calls": float(len(event.calls)),
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="per figure and round")
    arguments = parser.parse_args()
    actions = measured()
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(arguments.rounds):
        log(f"round {number + 1} of {arguments.rounds}")
        for name, action in actions.items():
            rounds[name].append(cpu_us(action, arguments.seconds))
    result = {name: statistics.median(values) for name, values in rounds.items()}
    result["attack_max_ms"] = attack_max_ms()
    result |= event_cost(max(2.0, arguments.seconds * 20))
    result["rpc_us"] = result["event_cpu_us"] - result["decision_cached_us"]
    print(json.dumps({**{name: round(value, 2) for name, value in result.items()}, "machine": machine()}))


if __name__ == "__main__":
    main()
