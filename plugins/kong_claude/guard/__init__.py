"""What Kong runs itself: the fail-closed guard, as plugins in Lua and as text for its post-function, and its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

By = Literal["route", "service"]
"""Whose id the mark must be: of the route that was matched, or of its service."""
BYS: tuple[By, ...] = get_args(By)

KEYS = {
    "claude-gateway": "claude_gateway",
    "claude-jwt-claims": "claude_identity",
    "claude-rate-tiers": "claude_admission",
    "claude-prompt-context": "claude_context",
}
"""Where each enforcing plugin leaves its mark in kong.ctx.shared."""

PLUGIN = {
    "claude-gateway": "claude-guard",
    "claude-jwt-claims": "claude-guard",
    "claude-rate-tiers": "claude-guard-tiers",
    "claude-prompt-context": "claude-guard-context",
}
"""The Lua plugin that runs right after each of them: a plugin has one priority, so each place has a name."""
GUARDS = tuple(dict.fromkeys(PLUGIN.values()))
ERRORS = "claude-errors"
"""The Lua plugin that says Kong's errors as the vendors' clients read them (docs/clients.md)."""
LUA_PLUGINS = (*GUARDS, ERRORS)
"""All of this suite's that Kong runs itself."""

LUA = Path(__file__).parent / "lua"
LUA_PATH = f"{LUA}/?.lua"
"""What Kong's lua_package_path must hold to find them."""
PAIRED = (*KEYS, "claude-metrics")
"""The plugins that have a half in Lua there."""
PAIR = Path(__file__).parent / "pair"
PAIR_PATH = f"{PAIR}/?.lua"
"""The same for Kong's Lua half of our plugins: fewer calls (docs/gateway.md)."""

_LUA = """\
return function()
  local shared, own = kong.ctx.shared, kong.router.get_{by}()
  for _, key in ipairs({{ {keys} }}) do
    local left = shared[key]
    if type(left) ~= "table" or not own or left.mark ~= own.id then
      kong.log.err("guard: ", key, " did not pass for this {by}")
      return kong.response.exit(503, {{ message = "service temporarily unavailable" }}, {{ ["Retry-After"] = "1" }})
    end
  end
end
"""


def lua(plugins: list[str], by: By = "route") -> str:
    """The guard as a post-function: each plugin's mark must be the id of the matched route (or of its service)."""
    return _LUA.format(by=by, keys=_keys(plugins))


# What releases before this one printed, for plugins that have a `mark` of their own in their configuration.
_NAMED = """\
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
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/-")


def named(mark: str, plugins: list[str]) -> str:
    """The guard for a mark that the configuration names. Raises ValueError on one that would need escaping."""
    if not mark or not _SAFE.issuperset(mark):
        raise ValueError(f"mark {mark!r}: use letters, digits and . _ : / - only")
    return _NAMED.format(mark=mark, keys=_keys(plugins))


def _keys(plugins: list[str]) -> str:
    return ", ".join(f'"{KEYS[plugin]}"' for plugin in plugins)
