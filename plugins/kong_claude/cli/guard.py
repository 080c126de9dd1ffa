"""`kong-claude guard`: the fail-closed guard for a route, as configuration for Kong's post-function."""

from __future__ import annotations

import argparse
import re

from kong_claude.cli.problem import Problem

HELP = "print the guard for a route: a post-function that answers 503 unless each plugin left the route's own mark"
# Where each plugin leaves its mark; see docs/fail-closed.md.
KEYS = {
    "claude-gateway": "claude_gateway",
    "claude-jwt-claims": "claude_identity",
    "claude-rate-tiers": "claude_admission",
    "claude-prompt-context": "claude_context",
}
_SAFE = re.compile(r"[A-Za-z0-9._:/-]+")

LUA = """\
return function()
  local shared = kong.ctx.shared
  for _, key in ipairs({{ {keys} }}) do
    local left = shared[key]
    if type(left) ~= "table" or left.mark ~= "{mark}" then
      kong.log.err("guard: ", key, " did not pass for this route")
      return kong.response.exit(503, {{ message = "service temporarily unavailable" }}, {{ ["Retry-After"] = "1" }})
    end
  end
end
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--route", required=True, help="the route's mark: the value of `mark` in the plugins' config")
    parser.add_argument(
        "--plugin",
        action="append",
        choices=sorted(KEYS),
        help="a plugin that must have passed, may be repeated (default: claude-gateway)",
    )


def run(options: argparse.Namespace) -> int:
    print(yaml(options.route, options.plugin or ["claude-gateway"]), end="")
    return 0


def lua(mark: str, plugins: list[str]) -> str:
    """The guard's Lua: compares each plugin's mark by value. Raises Problem on a mark that would need escaping."""
    if not _SAFE.fullmatch(mark):
        raise Problem(f"mark {mark!r}: use letters, digits and . _ : / - only")
    return LUA.format(mark=mark, keys=", ".join(f'"{KEYS[plugin]}"' for plugin in plugins))


def yaml(mark: str, plugins: list[str]) -> str:
    """A plugin entry for kong.yml."""
    code = "".join(f"      {line}\n" for line in lua(mark, plugins).splitlines())
    return f"- name: post-function\n  config:\n    access:\n    - |\n{code}"
