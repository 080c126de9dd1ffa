"""Rules about the guard: is each plugin's mark compared, with the right id, before anything can answer? Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kong_claude.doctor.opening import Opening
from kong_claude.doctor.reach import AUTHENTICATING, KONGS, anonymous, authenticates, protected
from kong_claude.doctor.spelling import texts
from kong_claude.doctor.view import Entity, RouteView, View, label, of_consumer, runs
from kong_claude.guard import BYS, ERRORS, KEYS, PLUGIN, By, lua, named
from kong_claude.guard import GUARDS as LUA_GUARDS

ENFORCING = tuple(KEYS)
SUITE = (*ENFORCING, "claude-metrics")
GUARDS = (*LUA_GUARDS, "post-function")
# The tag of a route that is open on purpose, such as a login page; it still needs one guarded plugin.
PUBLIC = "public"

PRIORITIES = {"claude-gateway": 1440, "claude-jwt-claims": 1440, "claude-rate-tiers": 905, "claude-prompt-context": 769}
POST_FUNCTION = -1000
# Kong 3.9's own plugins that answer a request themselves, or hand it to somebody else, with their priorities.
ANSWERING = {
    "pre-function": 1000000,
    "cors": 2000,
    "session": 1900,
    "acme": 1705,
    "oauth2": 1400,
    "grpc-gateway": 998,
    "redirect": 779,
    "ai-request-transformer": 777,
    "ai-proxy": 770,
    "ai-response-transformer": 768,
    "aws-lambda": 750,
    "azure-functions": 749,
    "proxy-cache": 100,
    "grpc-web": 3,
    "request-termination": 2,
}
# Those that only refuse, change or log.
SILENT = {*KEYS, *PLUGIN.values(), ERRORS, "claude-metrics", "post-function"}.union(
    """
    acl ai-prompt-decorator ai-prompt-guard ai-prompt-template basic-auth bot-detection correlation-id datadog file-log
    hmac-auth http-log ip-restriction jwt key-auth ldap-auth loggly opentelemetry prometheus rate-limiting
    request-size-limiting request-transformer response-ratelimiting response-transformer standard-webhooks statsd syslog
    tcp-log udp-log zipkin
    """.split()  # noqa: SIM905 -- a word list reads better
)


def guarded(view: View) -> Iterator[Opening]:
    """Every route to the invoker carries a plugin that authenticates, and a guard for each plugin's own mark."""
    for route in protected(view):
        if route.streams or any(shuts(p) for p in route.active("request-termination")):
            continue  # another rule's; or nobody's, since nothing passes
        active = route.active(*ENFORCING)
        orphans = [name for name in ENFORCING if name in demanded(route) and not any(p["name"] == name for p in active)]
        if orphans:
            yield from refuses_all(route, orphans)
            continue
        public = active and PUBLIC in (route.route.get("tags") or [])
        if not public and not any(map(authenticates, route.active(*ENFORCING, *KONGS))):
            consumer = next(filter(None, map(anonymous, route.active(*AUTHENTICATING))), None)
            yield Opening(
                "no-authentication",
                f"route {route.name}",
                f"lets callers without a token in, as the consumer {consumer}"
                if consumer
                else "goes to the invoker without claude-jwt-claims or claude-gateway with jwt_claims",
                f"unset anonymous; or, if it is meant so, the tag {PUBLIC}"
                if consumer
                else f"add claude-gateway to the route; where nobody can have a token yet, limits and the tag {PUBLIC}",
            )
            continue
        for plugin in active:
            yield from guard_for(route, plugin)


def refuses_all(route: RouteView, orphans: list[str]) -> Iterator[Opening]:
    """A guard for a plugin that does not run on the route: nothing passes it."""
    names = " and ".join(orphans)
    yield Opening(
        "refuses-all",
        f"route {route.name}",
        f"its guard refuses every request with 503, since {names} is not there to leave its mark",
        f"add {names} to the route, or take the guard away with it",
    )
    for name in orphans:
        if not any(demands(p, name) for p in route.active(PLUGIN[name])):
            yield from answers_before(route, {"name": name}, f"kong-claude guard --plugin {name} --lua-plugin")


def demanded(route: RouteView) -> set[str]:
    """The plugins whose marks the route's guards compare."""
    wanted = {name for name in ENFORCING for guard in route.active(PLUGIN[name]) if demands(guard, name)}
    codes = [code for p in route.active("post-function") for code in phase_code(p, "access") if known(code)]
    return wanted | {name for name, key in KEYS.items() for code in codes if f'"{key}"' in code}


def guard_for(route: RouteView, plugin: Entity) -> Iterator[Opening]:
    where, name = f"route {route.name}", plugin["name"]
    by = scope(plugin)
    if by is None:
        yield Opening(
            "no-scope",
            where,
            f"{name} is bound to no route and no service: it does not start, since its mark would be nobody's",
            "bind it to the route or to the service",
        )
        return
    mark = (plugin.get("config") or {}).get("mark")
    installed = [p for p in route.active(PLUGIN[name]) if demands(p, name)]
    if mark is None and any(((p.get("config") or {}).get("by") or "route") == by for p in installed):
        return  # right after the plugin: nothing can answer in between
    remedy = f"kong-claude guard --by {by} --plugin {name}"
    if installed:
        problem = (
            f"{PLUGIN[name]} compares another id than the {by}'s, which {name} is bound to"
            if mark is None
            else f"{name} leaves its own mark {mark!r}, which {PLUGIN[name]} does not know"
        )
        yield Opening("wrong-mark", where, problem, f"unset config.mark, and: {remedy} --lua-plugin")
        return
    codes = [code for p in route.active("post-function") for code in phase_code(p, "access")]
    compares = [code for code in codes if f'"{KEYS[name]}"' in code and "mark ~=" in code]
    if not compares:
        yield Opening(
            "no-guard",
            where,
            f"nothing stops a request for which {name} did not run",
            f"add what this prints: {remedy} --lua-plugin",
        )
    elif any(compared(code) in allowed(route, by, mark) for code in compares):
        yield from answers_before(route, plugin, f"{remedy} --lua-plugin")
    elif any(known(code) for code in compares):
        yield Opening(
            "wrong-mark",
            where,
            f"the guard compares another mark than {mark!r}"
            if mark
            else f"the guard compares another id than the {by}'s",
            f"unset config.mark, and: {remedy}",
        )
    else:
        yield Opening("foreign-guard", where, "the guard is not the one that was proven", remedy)


def scope(plugin: Entity) -> By | None:
    """Whose id a plugin's mark is; None for a global one."""
    return next((kind for kind in BYS if plugin.get(kind) is not None), None)


def demands(guard: Entity, name: str) -> bool:
    """Whether an installed guard is for plugin `name`."""
    return PLUGIN[name] != "claude-guard" or ((guard.get("config") or {}).get("plugin") or "claude-gateway") == name


def allowed(route: RouteView, by: By, mark: str | None) -> set[str]:
    """What a guard may compare on this route, in the words of `compared`."""
    if mark is not None:
        return {f"mark {mark}"}
    own = (route.route if by == "route" else route.service).get("id")
    return {f"by {by}", *([f"mark {own}"] if own else [])}


def compared(code: str) -> str | None:
    """What the code compares marks with, where it is what `kong-claude guard` prints: `by route`, `mark reports` …"""
    plugins = [plugin for plugin, key in KEYS.items() if f'"{key}"' in code]
    plugins.sort(key=lambda plugin: code.index(f'"{KEYS[plugin]}"'))
    for by in BYS:
        if code.split() == lua(plugins, by).split():
            return f"by {by}"
    literal = re.search(r'mark ~= "([^"]*)"', code)
    try:
        ours = literal is not None and code.split() == named(literal[1], plugins).split()
    except ValueError:
        return None
    return f"mark {literal[1]}" if ours and literal else None


def known(code: str) -> bool:
    return compared(code) is not None


def answers_before(route: RouteView, plugin: Entity, remedy: str) -> Iterator[Opening]:
    """A post-function runs last of all: what answers before it answers a request that nobody has checked."""
    ours = PRIORITIES[plugin["name"]]
    for other in route.plugins:
        name = str(other.get("name"))
        if not runs(other) or name in SILENT or refuses(other):
            continue
        priority = ANSWERING.get(name)
        if priority is None or POST_FUNCTION < priority < ours:
            may = "may run" if priority is None else "runs"
            yield Opening(
                "answers-before-guard",
                f"route {route.name}",
                f"{name} {may} between {plugin['name']} and the post-function and can answer before it",
                f"{remedy}; or take {name} off the route",
            )


def refuses(plugin: Entity) -> bool:
    """request-termination that only ever says no."""
    config = plugin.get("config") or {}
    return plugin.get("name") == "request-termination" and (config.get("status_code") or 503) >= 400


def shuts(plugin: Entity) -> bool:
    """request-termination that says no to everything."""
    return refuses(plugin) and not (plugin.get("config") or {}).get("trigger")


def distinct_marks(view: View) -> Iterator[Opening]:
    """Two plugins with one mark could run each other's configuration and satisfy each other's guard."""
    seen: dict[tuple[str, str], tuple[Entity, RouteView]] = {}
    for route in view.served:
        for plugin in route.active(*ENFORCING):
            mark = (plugin.get("config") or {}).get("mark")
            other, first = seen.setdefault((plugin["name"], mark), (plugin, route)) if mark else (plugin, route)
            if other is not plugin:
                one, two = sorted((first.name, route.name))
                yield Opening(
                    "shared-mark",
                    f"routes {one} and {two}",
                    f"have the same mark {mark!r}",
                    "unset config.mark: the mark is then the route's id",
                )


def one_scope(view: View) -> Iterator[Opening]:
    """A service whose routes have a plugin of their own beside its own: two answers to whose mark is the right one."""
    scopes: dict[tuple[int, str], set[By]] = {}
    for route in view.served:
        for plugin in (*route.plugins, *route.displaced):
            by = scope(plugin)
            if plugin.get("name") in ENFORCING and runs(plugin) and by and not of_consumer(plugin):
                scopes.setdefault((id(route.service), plugin["name"]), set()).add(by)
    services = {id(route.service): route.service for route in view.served}
    for (service, name), found in scopes.items():
        if len(found) > 1:
            yield Opening(
                "mixed-scope",
                f"service {label(services[service])}",
                f"has {name} on the service and on routes of it, and one guard fits one of them only",
                "bind it to each route or to the service; what differs belongs in a service of its own",
            )


def phase_code(plugin: Entity, phase: str) -> list[str]:
    code = (plugin.get("config") or {}).get(phase)
    return [code] if isinstance(code, str) else texts(code)


RULES: tuple[Callable[[View], Iterator[Opening]], ...] = (guarded, distinct_marks, one_scope)
