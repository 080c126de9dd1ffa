"""Which routes lead to a service that the suite protects."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from kong_claude.doctor.view import Entity, RouteView, View, of_consumer, runs

AUTHENTICATING = ("claude-gateway", "claude-jwt-claims")
# Kong's own: Lua that runs in Kong itself, so that none of them needs a guard.
KONGS = ("basic-auth", "hmac-auth", "jwt", "key-auth", "ldap-auth", "mtls-auth", "oauth2")


def authenticates(plugin: Entity) -> bool:
    """Whether nobody passes without a credential. claude-gateway without its section jwt_claims asks nobody who they
    are, and with `anonymous` one is somebody without a token."""
    return plugin["name"] in (*AUTHENTICATING, *KONGS) and bool(asks(plugin)) and not anonymous(plugin)


def asks(plugin: Entity) -> Entity | None:
    """Where a plugin says how it knows callers; None where it asks nobody."""
    config: Entity = plugin.get("config") or {}
    if plugin["name"] != "claude-gateway":
        return config or {"": ""}
    section = config.get("jwt_claims")
    return section if isinstance(section, Mapping) else None  # else the plugin does not start


def anonymous(plugin: Entity) -> str | None:
    """The consumer that callers without a credential become."""
    return (asks(plugin) or {}).get("anonymous")


def protected(view: View) -> list[RouteView]:
    """Routes to a service that any enforcing plugin protects: one unguarded sibling is enough for a break-in. And those
    without a service, which a plugin of Kong's answers (`aws-lambda`, `ai-proxy`), where they have one themselves."""

    def meant(plugin: Entity) -> bool:
        """Also where it is switched off on a route or service; a global one that is off may only carry YAML anchors,
        and a consumer's is on every route."""
        scoped = plugin.get("route") is not None or plugin.get("service") is not None
        return scoped or (runs(plugin) and not of_consumer(plugin))

    asking = [r for r in view.served if any(map(meant, r.named(*AUTHENTICATING)))]
    hosts = {h for r in asking for h in hosts_of(view, r)}
    return [r for r in view.served if hosts & set(hosts_of(view, r)) or (not r.service and r in asking)]


def elsewhere(view: View) -> list[RouteView]:
    """Routes on which nothing of the suite runs, to services that it protects nowhere: whether they are meant to be
    open the doctor cannot know."""
    known = protected(view)
    ours = (*AUTHENTICATING, "claude-rate-tiers", "claude-prompt-context")
    return [r for r in view.served if not any(r is other for other in known) and not r.active(*ours)]


def hosts_of(view: View, route: RouteView) -> tuple[str, ...]:
    """`host:port` of a route's service, and of the targets where the host is an upstream's name."""
    host = host_of(route.service)
    return tuple(h for h in (host, *view.targets.get(host.rpartition(":")[0], ())) if h)


def host_of(service: Entity) -> str:
    """`host:port`, in lower case and with the port that the protocol implies; "" without a host."""
    url = urlsplit(str(service.get("url") or ""))
    scheme = url.scheme or service.get("protocol") or "http"
    host = url.hostname or str(service.get("host") or "").lower()
    port = url.port or (None if url.hostname else service.get("port")) or (443 if scheme == "https" else 80)
    return f"{host.rstrip('.')}:{port}" if host else ""
