"""A stand-in for Anthropic's Messages API, for places without an API key: `make up`, tests, benches.

It speaks enough of `POST /v1/messages` (streaming and not) for the real Claude CLI to complete runs, and
its answers are canned: nothing here thinks. What it answers is scripted by the prompt itself with
`[[directives]]`; `script.py` lists them. Faults (`[[status 429]]`, `[[hang]]`, `[[stall 2]]`, `[[reset]]`)
are real ones on the socket. It binds to loopback only, and is never part of a production deployment.

Run it with `python -m kong_claude_local.standin --port N --record FILE`; each request it answers becomes one
JSON line in FILE: `{path, model, stream, system, messages, tools, key_sha256}`.
"""

from kong_claude_local.standin.server import StandIn

__all__ = ["StandIn"]
