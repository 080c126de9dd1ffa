"""The openings that `kong-claude doctor` knows. Each rule: View → openings. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from claude_contract.attestation import parse_pem
from claude_contract.errors import ConfigError
from kong_claude.doctor import guards, kong, pair
from kong_claude.doctor.guards import ENFORCING, GUARDS, SUITE, phase_code
from kong_claude.doctor.opening import Opening
from kong_claude.doctor.reach import host_of, protected
from kong_claude.doctor.view import Entity, RouteView, View, label, of_consumer, runs, tiers_of

WEAK = re.compile(r"change.?me|secret|password|example|test|dev|1234", re.IGNORECASE)
SECRET_FIELDS = re.compile(r"(^|_)(secret|private_key|password|redis_url|revocation_redis_url)$")
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
        for limits in map(_limits_of, route.active("claude-rate-tiers", "claude-gateway")):
            said = "fault_tolerant: true" if limits.get("fault_tolerant") else f"on_error: {limits.get('on_error')}"
            if said in ("fault_tolerant: true", "on_error: allow"):
                yield Opening("fails-open", where, f"without Redis nothing is limited ({said})", "on_error: deny")


def _limits_of(plugin: Entity) -> Mapping[str, Any]:
    """Where it has them: in its section, or as a plugin of its own. Empty where that is no mapping, and it does not
    start."""
    config = plugin.get("config") or {}
    limits = config.get("rate_tiers") or config
    return limits if isinstance(limits, Mapping) else {}


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
        (route.name, _limits_of(plugin))
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
                public = path.endswith("previous_private_key") and _is_public(value)
                if not value.startswith("{vault://") and not public:
                    yield Opening(
                        "secret-in-clear",
                        f"plugin {plugin['name']}, config.{path}",
                        "holds a secret in clear",
                        "use {vault://env/…} or a *_file field",
                    )


def _is_public(value: str) -> bool:
    """The public half of the key before rotation is enough, and anybody may read it: this, and nothing else, it is."""
    try:
        return _ONE_PUBLIC_KEY.fullmatch(value) is not None and isinstance(parse_pem(value, ""), Ed25519PublicKey)
    except ConfigError:
        return False


_ONE_PUBLIC_KEY = re.compile(r"(\s|\\n)*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s\\]+-----END PUBLIC KEY-----(\s|\\n)*")


def secret_values(view: View) -> Iterator[Opening]:
    """The signing secret as Kong's environment has it: long, not guessable, not shared."""
    signing: dict[str, str] = {}
    others: dict[str, str] = {}
    for plugin in view.plugins:
        if plugin.get("name") not in SUITE:
            continue
        for path, reference in secrets_in(plugin.get("config") or {}):
            variable = vault_variable(reference)
            value = view.settings.get(variable or "")
            if variable and value is None and view.settings.shows(variable):
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


def consumer_tags(view: View) -> Iterator[Opening]:
    """A consumer that is meant to have a tier by its tag and has none gets the default one."""
    tiers = {
        str(tier.get("name"))
        for plugin in view.plugins
        if plugin.get("name") in ("claude-gateway", "claude-rate-tiers") and runs(plugin)
        if (limits := _limits_of(plugin)).get("consumer_tier") == "tag"
        for _, tier in tiers_of(limits)
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
    if view.settings.get("INVOKER_TRUST") == "open":
        yield Opening("open-invoker", "INVOKER_TRUST", "the invoker trusts everybody", "unset it")


RULES: tuple[Callable[[View], Iterator[Opening]], ...] = (
    *guards.RULES,
    protocols,
    overrides,
    order,
    admin_limits,
    clear_secrets,
    secret_values,
    *kong.RULES,
    pair.handlers,
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
