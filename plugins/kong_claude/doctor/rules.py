"""The openings that `kong-claude doctor` knows. Each rule: View → openings. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kong_claude.doctor import guards, pair
from kong_claude.doctor.guards import ENFORCING, phase_code
from kong_claude.doctor.opening import Opening
from kong_claude.doctor.reach import AUTHENTICATING, asks, host_of, protected
from kong_claude.doctor.view import Entity, RouteView, View, label, of_consumer, runs
from kong_claude.guard import GUARDS as LUA_GUARDS
from kong_claude.guard import LUA_PLUGINS

SUITE = (*ENFORCING, "claude-metrics")
PLUGIN_SERVER = "kong-claude-pluginserver"
DEVELOPMENT = "kong-claude-dev"  # the issuer of `kong-claude token`
GUARDS = (*LUA_GUARDS, "post-function")
MAX_READ_TIMEOUT = 10.0  # seconds a silent plugin server may hold a request
EVENT_TIMEOUT = 25.0  # seconds, the plugin server's default
MIN_BODY_BUFFER = 64 << 10  # bytes
WEAK = re.compile(r"change.?me|secret|password|example|test|dev|1234", re.IGNORECASE)
SECRET_FIELDS = re.compile(r"(^|_)(secret|private_key|password|redis_url|revocation_redis_url)$")
BODY_READERS = ("claude-gateway", "claude-rate-tiers", "claude-prompt-context")
BEFORE_ROUTING = ("certificate", "rewrite")  # phases in which only plugins without any scope run
WRITES = re.compile(r"\bctx\b.{0,9}\bshared\b", re.DOTALL)
# Plugins that change the body after claude-prompt-context (769) or claude-gateway (1440) have hashed it.
BODY_CHANGERS = ("request-transformer", "request-transformer-advanced", "ai-request-transformer", "ai-proxy")


def protocols(view: View) -> Iterator[Opening]:
    """On a stream (tcp, tls …) neither our plugins nor a guard run, whatever they say."""
    for route in protected(view):
        if route.streams:
            yield Opening(
                "protocols",
                f"route {route.name}",
                f"no plugin of ours runs on {', '.join(sorted(route.streams))}",
                "take the route away, or give it http or https",
            )


def overrides(view: View) -> Iterator[Opening]:
    """A consumer-scoped entity replaces the route's own configuration, mark included."""
    for plugin in view.plugins:
        if of_consumer(plugin) and plugin.get("name") in (*ENFORCING, *GUARDS) and runs(plugin):
            yield Opening(
                "consumer-scope",
                f"plugin {plugin['name']} of {view.caller(plugin)}",
                "replaces the route's configuration for it",
                "bind it to the route; use tiers for what differs by caller",
            )


def order(view: View) -> Iterator[Opening]:
    """Combinations of plugins that undo each other."""
    for route in protected(view):
        names = {p["name"] for p in route.plugins if runs(p) and not of_consumer(p)}
        where = f"route {route.name}"
        doubled = names & {"claude-jwt-claims", "claude-rate-tiers", "claude-prompt-context"}
        if "claude-gateway" in names and doubled:
            yield Opening(
                "doubled", where, f"claude-gateway and {', '.join(sorted(doubled))} both run", "keep one of them"
            )
        for changer in sorted(names & set(BODY_CHANGERS)):
            yield Opening(
                "late-change",
                where,
                f"{changer} runs after the attestation was signed; a changed body is refused by the invoker",
                f"move what {changer} does into claude-prompt-context",
            )
        for plugin in forgers(route):
            yield Opening(
                "forged-mark",
                where,
                f"a {plugin['name']} writes kong.ctx.shared, where the guard looks",
                "remove it",
            )
        for config in (p.get("config") or {} for p in route.active("claude-rate-tiers", "claude-gateway")):
            limits = config.get("rate_tiers") or config
            said = "fault_tolerant: true" if limits.get("fault_tolerant") else f"on_error: {limits.get('on_error')}"
            if said in ("fault_tolerant: true", "on_error: allow"):
                yield Opening("fails-open", where, f"without Redis nothing is limited ({said})", "on_error: deny")


def forgers(route: RouteView) -> Iterator[Entity]:
    """Functions that can write a mark before the guard has looked. A post-function runs after an installed guard: only
    beside the guard's own text it comes in time."""
    for plugin in (*route.plugins, *route.displaced):
        if plugin.get("name") not in ("pre-function", "post-function") or not runs(plugin):
            continue
        phases = BEFORE_ROUTING if unscoped(plugin) else ()
        if any(plugin is other for other in route.plugins):
            access = phase_code(plugin, "access")
            if plugin["name"] == "pre-function" or any(map(guards.known, access)):
                phases = (*phases, "access")
        code = [line for phase in phases for line in phase_code(plugin, phase)]
        if any(WRITES.search(line) and not guards.known(line) for line in code):
            yield plugin


def unscoped(plugin: Entity) -> bool:
    return guards.scope(plugin) is None and not of_consumer(plugin)


# What the admin's route must have as those that count.
COUNTED_BY = (
    *("namespace", "policy", "redis_url", "redis_host", "redis"),
    *("limit_by", "organisation_claim", "tiers", "pools"),
)


def admin_limits(view: View) -> Iterator[Opening]:
    """A route that changes limits (`admin`) does nothing where no route counts by the same."""
    limits = [
        (route.name, (plugin.get("config") or {}).get("rate_tiers") or plugin.get("config") or {})
        for route in protected(view)
        for plugin in route.active("claude-rate-tiers", "claude-gateway")
    ]
    counting = [config for _, config in limits if config.get("tiers") and not config.get("admin")]
    for name, admin in limits:
        if not admin.get("admin"):
            continue
        if admin.get("policy") != "redis":
            yield Opening(
                "admin-limits", f"route {name}", "changes no limits, which each process counts alone", "policy: redis"
            )
        elif not any(all(admin.get(field) == each.get(field) for field in COUNTED_BY) for each in counting):
            yield Opening(
                "admin-limits",
                f"route {name}",
                "changes limits by which no route counts",
                f"give it the same as the routes that count: {', '.join(COUNTED_BY)}",
            )


def clear_secrets(view: View) -> Iterator[Opening]:
    """Secrets belong into a vault reference or a file."""
    for plugin in view.plugins:
        if plugin.get("name") in SUITE:
            for path, value in secrets_in(plugin.get("config") or {}):
                if not value.startswith("{vault://"):
                    yield Opening(
                        "secret-in-clear",
                        f"plugin {plugin['name']}, config.{path}",
                        "holds a secret in clear",
                        "use {vault://env/…} or a *_file field",
                    )


def secret_values(view: View) -> Iterator[Opening]:
    """The signing secret as Kong's environment has it: long, not guessable, not shared."""
    signing: dict[str, str] = {}
    others: dict[str, str] = {}
    for plugin in view.plugins:
        if plugin.get("name") not in SUITE:
            continue
        for path, reference in secrets_in(plugin.get("config") or {}):
            variable = vault_variable(reference)
            value = view.environment.get(variable or "")
            if variable and value is None and any(name.startswith("KONG_") for name in view.environment):
                yield Opening(
                    "unset-secret", variable, "is not in Kong's environment, so the secret is empty", "set it"
                )
            if variable and value:
                (signing if path.startswith("attestation.") else others)[variable] = value
    for variable, value in others.items():
        if "://" not in value and guessable(value):
            yield Opening(
                "weak-secret", variable, "can be guessed: whoever does makes tokens", "openssl rand -base64 48"
            )
    for variable, value in signing.items():
        if len(value.encode()) < 32:
            yield Opening(
                "weak-secret", variable, "signs attestations with less than 32 bytes", "openssl rand -base64 48"
            )
        elif guessable(value):
            yield Opening("weak-secret", variable, "can be guessed", "openssl rand -base64 48")
        if any(value == other for name, other in others.items() if name != variable) or variable in others:
            yield Opening("shared-secret", variable, "is also used for something else", "give attestations their own")


def guessable(value: str) -> bool:
    return len(set(value)) < 8 or bool(WEAK.search(value) and len(set(value)) < 16)


def kong_settings(view: View) -> Iterator[Opening]:
    """What Kong's own environment must bound."""
    env = view.environment
    if not any(name.startswith("KONG_") for name in env):
        return
    timeout = seconds(env.get("KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT") or "60s")
    if timeout is None or timeout > MAX_READ_TIMEOUT:
        yield Opening(
            "unbounded-timeout",
            "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT",
            f"a silent plugin server holds each request for {timeout or '?'} s",
            "set it to 5s",
        )
    for name, command in env.items():
        if re.fullmatch(r"KONG_PLUGINSERVER_\w+_START_CMD", name) and PLUGIN_SERVER in command:
            event = re.search(r"--event-timeout[ =](\d+(?:\.\d+)?)", command)
            if timeout is not None and float(event[1] if event else EVENT_TIMEOUT) * 2 >= timeout:
                yield Opening(
                    "late-event-timeout",
                    name,
                    "an event may end after Kong has stopped waiting for it",
                    "--event-timeout below half of KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT",
                )
    size = env.get("KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE") or env.get("KONG_CLIENT_BODY_BUFFER_SIZE") or "8k"
    if (size_in_bytes(size) or 0) < MIN_BODY_BUFFER and any(p.get("name") in BODY_READERS for p in view.plugins):
        yield Opening(
            "small-body-buffer",
            "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE",
            f"prompts over {size} go to disk before a plugin reads them",
            "set it to 1m",
        )
    used = {p["name"] for p in view.plugins if p.get("name") in SUITE}
    served = {name.strip() for name in (env.get("KONG_PLUGINSERVER_NAMES") or "").split(",")}
    for plugin in sorted(used):
        key = f"KONG_PLUGINSERVER_{plugin.upper().replace('-', '_')}_QUERY_CMD"
        if plugin not in served:
            yield Opening(
                "no-pluginserver", plugin, "has no entry in KONG_PLUGINSERVER_NAMES", "one entry per plugin (Kong 3.9)"
            )
        elif f"--dump {plugin}" not in env.get(key, ""):
            yield Opening("wrong-dump", key, "Kong reads only the first plugin of a dump", f"… --dump {plugin}")
        start = env.get(key.replace("_QUERY_CMD", "_START_CMD"))
        if start and PLUGIN_SERVER not in start:
            yield Opening(
                "stock-pluginserver",
                key.replace("_QUERY_CMD", "_START_CMD"),
                f"starts a server that is not {PLUGIN_SERVER}: an exception in it lets the request pass",
                f"kong-claude env --plugin {plugin}",
            )
    enabled = {name.strip() for name in (env.get("KONG_PLUGINS") or "bundled").split(",")}
    ours = {*SUITE, *LUA_PLUGINS}
    for plugin in sorted({str(p.get("name")) for p in view.plugins} - enabled):  # one that is switched off, too
        if plugin in ours or "bundled" not in enabled:
            word = plugin if plugin in ours else f"bundled, and so not {plugin}"
            yield Opening("not-enabled", "KONG_PLUGINS", f"does not name {word}", f"bundled,{','.join(sorted(used))}")
    guarding = {p["name"] for p in view.plugins if p.get("name") in GUARDS and runs(p)}
    if "post-function" in guarding and env.get("KONG_UNTRUSTED_LUA") == "off":
        yield Opening(
            "untrusted-lua",
            "KONG_UNTRUSTED_LUA",
            "is off, so that no post-function runs and no guard with it",
            "leave it at sandbox, or use the plugin claude-guard: kong-claude guard --lua-plugin",
        )


def development(view: View) -> Iterator[Opening]:
    """The issuer of `kong-claude token` is for one machine."""
    env = view.environment
    if not any(name.startswith("KONG_") for name in env):
        return
    # A container listens on all its addresses; who started it says where its port was published.
    published = env.get("CLAUDE_PUBLISHED_ON")
    listens = f"{published}:8000" if published else env.get("KONG_PROXY_LISTEN") or "0.0.0.0:8000"  # Kong's default
    if all(map(own_machine, listens.split(","))):
        return
    trusting = [
        route.name
        for route in view.served
        for plugin in route.active(*AUTHENTICATING)
        if any(issuer.get("issuer") == DEVELOPMENT for issuer in (asks(plugin) or {}).get("issuers") or ())
    ]
    if trusting:
        yield Opening(
            "development-issuer",
            f"issuer {DEVELOPMENT}",
            f"who has its secret is anybody on {', '.join(trusting)}, and others reach Kong ({listens})",
            "name your identity provider instead (docs/identity), or listen on 127.0.0.1",
        )


def own_machine(listen: str) -> bool:
    """Whether only this machine reaches an entry of proxy_listen."""
    address = (listen.split() or ["off"])[0]
    host = address.rpartition(":")[0].strip("[]")
    if address == "off" or address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def consumer_tags(view: View) -> Iterator[Opening]:
    """A consumer that is meant to have a tier by its tag and has none gets the default one."""
    tiers = {
        str(tier.get("name"))
        for plugin in view.plugins
        if plugin.get("name") in ("claude-gateway", "claude-rate-tiers") and runs(plugin)
        for config in [(plugin.get("config") or {}).get("rate_tiers") or plugin.get("config") or {}]
        if config.get("consumer_tier") == "tag"
        for tier in config.get("tiers") or ()
    }
    for consumer in view.consumers:
        tags = [str(tag) for tag in consumer.get("tags") or ()]
        meant = [tag for tag in tags if tag.startswith("tier")]
        if tiers and meant and not tiers.intersection(tag.removeprefix("tier:") for tag in tags):
            yield Opening(
                "untagged-consumer",
                f"consumer {label(consumer)}",
                f"has the tag {meant[0]}, which names none of the tiers ({', '.join(sorted(tiers))})",
                "tag it with the tier's name, or tier: and the name",
            )


def exposure(view: View) -> Iterator[Opening]:
    """The invoker should be nowhere but behind Kong."""
    for name in sorted({host_of(r.service) for r in protected(view)} - {""}):
        try:
            address = ipaddress.ip_address(name.rpartition(":")[0].strip("[]") or name)
        except ValueError:
            continue
        if address.is_global:
            yield Opening("public-invoker", name, "the invoker has a public address", "put it on a private network")
    if view.environment.get("INVOKER_TRUST") == "open":
        yield Opening("open-invoker", "INVOKER_TRUST", "the invoker trusts everybody", "unset it")


RULES: tuple[Callable[[View], Iterator[Opening]], ...] = (
    *guards.RULES,
    protocols,
    overrides,
    order,
    admin_limits,
    clear_secrets,
    secret_values,
    kong_settings,
    pair.handlers,
    development,
    consumer_tags,
    exposure,
)


def examine(view: View) -> list[Opening]:
    """All openings of all rules, each once."""
    return list(dict.fromkeys(opening for rule in RULES for opening in rule(view)))


def secrets_in(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, value) of every non-empty secret field."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            here = f"{path}.{name}" if path else str(name)
            if isinstance(value, str) and value and SECRET_FIELDS.search(str(name)):
                if "redis_url" not in name or "@" in value or value.startswith("{"):
                    yield here, value
            else:
                yield from secrets_in(value, here)
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from secrets_in(value, f"{path}[{index + 1}]")


def vault_variable(reference: str) -> str | None:
    """`{vault://env/claude-jwt-secret}` → `CLAUDE_JWT_SECRET`."""
    match = re.fullmatch(r"\{vault://env/([^/}?]+)[^}]*\}", reference)
    return match[1].upper().replace("-", "_") if match else None


def seconds(text: str) -> float | None:
    match = re.fullmatch(r"(\d+)(ms|s|m|h)?", text.strip())
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, None: 1}[match[2]] if match else None


def size_in_bytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([kKmMgG])?", text.strip())
    return int(match[1]) << {"k": 10, "m": 20, "g": 30}.get((match[2] or "").lower(), 0) if match else None
