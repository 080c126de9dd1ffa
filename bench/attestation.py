"""What an attestation costs who signs it and who believes it: `python -m bench.attestation [--rounds 15]`.

CPU microseconds of one thread, medians of rounds; PyJWT signs and verifies the same bytes with the same keys in turn
with ours. `read_us` is what makes values of the claims, whoever has verified them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.machine import machine
from claude_contract.attestation import Signer, _verified
from claude_contract.claims import Attestation
from claude_contract.ledger import NAMESPACE, Lease

_CALLS = 300
_PYJWT = jwt.PyJWS(algorithms=["HS256", "EdDSA"])


def claims() -> dict[str, Any]:
    """Of a usual request."""
    opened = Signer("1", b"s" * 32, {}).open(method="POST", path="/claude/invoke", route="r", request_id="8f14e45f")
    limits = {"tier": "pro", "clamp": {"models": ["sonnet", "haiku"], "max_turns": 30, "max_usd": 2}}
    known = {"sub": "alice", "chk": ["jwt-claims", "prompt-context", "rate-tiers"]}
    return opened.to_claims() | known | limits | {"lease": str(Lease.new(NAMESPACE, "alice"))}


def _decoded(signed: str, key: Any, algorithm: str) -> Any:
    return json.loads(_PYJWT.decode(signed, key, algorithms=[algorithm]))


def actions() -> dict[str, Callable[[], Any]]:
    given, private = claims(), Ed25519PrivateKey.generate()
    payload = json.dumps(given, separators=(",", ":")).encode()
    found: dict[str, Callable[[], Any]] = {"read_us": lambda: Attestation.from_claims(given)}
    for algorithm, key, verifies in (("HS256", b"s" * 32, b"s" * 32), ("EdDSA", private, private.public_key())):
        keys = {"1": verifies}
        signer, name = Signer("1", key, keys), algorithm.lower()
        signed = signer.sign_claims(given)
        found |= {
            f"{name}_sign_us": partial(signer.sign_claims, given),
            f"pyjwt_{name}_sign_us": partial(_PYJWT.encode, payload, key, algorithm),
            f"{name}_verify_us": partial(_verified, signed, keys),
            f"pyjwt_{name}_verify_us": partial(_decoded, signed, verifies, algorithm),
        }
    return found


def cpu_us(action: Callable[[], Any]) -> float:
    began = time.thread_time()
    for _ in range(_CALLS):
        action()
    return (time.thread_time() - began) / _CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.attestation", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    measured = actions()
    rounds = [{name: cpu_us(action) for name, action in measured.items()} for _ in range(parser.parse_args().rounds)]
    figures = {name: round(statistics.median(each[name] for each in rounds), 1) for name in measured}
    for name in ("hs256_sign", "hs256_verify", "eddsa_sign", "eddsa_verify"):
        ratios = [each[f"pyjwt_{name}_us"] / each[f"{name}_us"] for each in rounds]
        figures[f"x_pyjwt_{name}"] = round(statistics.median(ratios), 1)
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    main()
