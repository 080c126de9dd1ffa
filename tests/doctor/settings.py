"""What may be wrong with Kong's environment, and with secrets: no request shows it, the doctor must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kong_claude.environment import PLUGINS
from tests.doctor.forms import Planted
from tests.doctor.world import World

DEVELOPMENT = "kong-claude-dev"
BODIES = {"claude-gateway", "claude-rate-tiers"}


def names(world: World) -> set[str]:
    return {str(p.fields["name"]) for p in world.of("plugins")}


def used(world: World) -> str:
    """A plugin of ours in the file."""
    return world.chance.choice(sorted(names(world).intersection(PLUGINS)))


def variable(plugin: str, what: str) -> str:
    return f"KONG_PLUGINSERVER_{plugin.upper().replace('-', '_')}_{what}"


def signs(world: World) -> bool:
    return "claude-gateway" in names(world)


def asks(world: World) -> bool:
    """Whether any plugin has a token's secret."""
    return any("jwt_claims" in str(p.fields) or "issuers" in str(p.fields) for p in world.of("plugins"))


def no_secret(world: World) -> Planted:
    if not asks(world):
        return Planted(())
    del world.environment["CLAUDE_JWT_SECRET"]
    return Planted((("unset-secret", "CLAUDE_JWT_SECRET"),))


def guessed_secret(world: World) -> Planted:
    if not asks(world):
        return Planted(())
    world.environment["CLAUDE_JWT_SECRET"] = "changeme-changeme"
    return Planted((("weak-secret", "CLAUDE_JWT_SECRET"),))


def one_secret_for_two(world: World) -> Planted:
    if not (signs(world) and asks(world)):
        return Planted(())
    world.environment["CLAUDE_ATTESTATION_KEY"] = world.environment["CLAUDE_JWT_SECRET"]
    return Planted((("shared-secret", "CLAUDE_ATTESTATION_KEY"),))


def short_signing_secret(world: World) -> Planted:
    if not signs(world):
        return Planted(())
    world.environment["CLAUDE_ATTESTATION_KEY"] = "q8Zr1xJ0f7VbN3"
    return Planted((("weak-secret", "CLAUDE_ATTESTATION_KEY"),))


def patient_kong(world: World) -> Planted:
    name = "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"
    if world.chance.random() < 0.5:
        del world.environment[name]
    else:
        world.environment[name] = "30s"
    return Planted((("unbounded-timeout", name),))


def patient_server(world: World) -> Planted:
    name = variable(PLUGINS[0], "START_CMD")
    world.environment[name] = world.environment[name].replace("--event-timeout 2", "--event-timeout 4")
    return Planted((("late-event-timeout", name),))


def small_buffer(world: World) -> Planted:
    world.environment.pop("KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE", None)
    found = (("small-body-buffer", "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE"),)
    return Planted(found if BODIES.intersection(names(world)) else ())


def not_served(world: World) -> Planted:
    plugin = used(world)
    left = [name for name in world.environment["KONG_PLUGINSERVER_NAMES"].split(",") if name != plugin]
    world.environment["KONG_PLUGINSERVER_NAMES"] = ",".join(left)
    return Planted((("no-pluginserver", plugin),))


def dumped_together(world: World) -> Planted:
    name = variable(used(world), "QUERY_CMD")
    world.environment[name] = world.environment[name].partition("--dump")[0] + "--dump-all-plugins"
    return Planted((("wrong-dump", name),))


def stock_server(world: World) -> Planted:
    """Of a plugin's own process, or of the one that all share."""
    name = variable(used(world) if world.chance.random() < 0.5 else PLUGINS[0], "START_CMD")
    world.environment[name] = "/usr/local/bin/kong-python-pluginserver -d /opt/plugins"
    return Planted((("stock-pluginserver", name),))


def not_enabled(world: World) -> Planted:
    plugin = used(world)
    left = [name for name in world.environment["KONG_PLUGINS"].split(",") if name != plugin]
    world.environment["KONG_PLUGINS"] = ",".join(left)
    return Planted((("not-enabled", "KONG_PLUGINS"),))


def without_bundled(world: World) -> Planted:
    left = world.environment["KONG_PLUGINS"].removeprefix("bundled,")
    world.environment["KONG_PLUGINS"] = left
    return Planted((("not-enabled", "KONG_PLUGINS"),) if names(world) - set(left.split(",")) else ())


def no_lua(world: World) -> Planted:
    world.environment["KONG_UNTRUSTED_LUA"] = "off"
    running = [
        p
        for p in world.of("plugins")
        if p.fields["name"] == "post-function"
        and p.fields.get("enabled", True)
        and "http" in p.fields.get("protocols", ["http"])
    ]
    return Planted((("untrusted-lua", "KONG_UNTRUSTED_LUA"),) if running else ())


def trusting_invoker(world: World) -> Planted:
    world.environment["INVOKER_TRUST"] = "open"
    return Planted((("open-invoker", "INVOKER_TRUST"),))


def handler_of_a_stranger(world: World) -> Planted:
    path = Path(__file__).parent / "lua" / "stranger"
    world.environment["KONG_LUA_PACKAGE_PATH"] = f"{path}/?.lua;;"
    return Planted((("foreign-handler", "KONG_LUA_PACKAGE_PATH"),))


def development_tokens(world: World) -> Planted:
    listens = world.chance.choice(["0.0.0.0:8000", "127.0.0.1:8000, 10.0.0.7:8443 ssl", ""])
    trust_development(world)
    world.environment["KONG_PROXY_LISTEN"] = listens
    return Planted((("development-issuer", f"issuer {DEVELOPMENT}"),) if any(map(trusts, world.of("plugins"))) else ())


def development_tokens_on_this_machine(world: World) -> Planted:
    trust_development(world)
    world.environment["KONG_PROXY_LISTEN"] = "127.0.0.1:8000, [::1]:8443 ssl http2, unix:/run/kong.sock"
    return Planted(())


def issuers(plugin: object) -> list[dict[str, object]] | None:
    config = getattr(plugin, "fields", {}).get("config") or {}
    found = (config.get("jwt_claims") or config).get("issuers")
    return found if isinstance(found, list) else None


def trust_development(world: World) -> None:
    for plugin in world.of("plugins"):
        found = issuers(plugin)
        if found is not None and all(i["issuer"] != DEVELOPMENT for i in found):
            found.append(found[0] | {"issuer": DEVELOPMENT})


def trusts(plugin: object) -> bool:
    """A plugin on a route that is served, and that is not switched off."""
    entity: object = plugin
    fields = getattr(entity, "fields", {})
    parents = getattr(entity, "parents", {})
    served = all(parent.fields.get("enabled", True) for parent in parents.values())
    consumers = {"consumer", "consumer_group"}.intersection(parents)
    return issuers(plugin) is not None and fields.get("enabled", True) and served and not consumers


SETTINGS: tuple[Callable[[World], Planted], ...] = (
    no_secret,
    guessed_secret,
    one_secret_for_two,
    short_signing_secret,
    patient_kong,
    patient_server,
    small_buffer,
    not_served,
    dumped_together,
    stock_server,
    not_enabled,
    without_bundled,
    no_lua,
    trusting_invoker,
    handler_of_a_stranger,
    development_tokens,
    development_tokens_on_this_machine,
)
