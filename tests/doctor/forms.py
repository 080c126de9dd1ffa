"""What the generated configurations are made of: sound routes, and ways to open or to spoil them.

Each way says what the doctor must find, which paths it lets an unauthenticated request through on, and which it shuts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kong_claude.environment import PLUGINS, Server
from kong_claude.environment import environment as kong_environment
from kong_claude.guard import KEYS, PLUGIN, By, lua, named
from tests.doctor.world import Entity, World

Finding = tuple[str, str]  # rule, where
INVOKER = "127.0.0.1"
DIRECTORY = "/opt/kong-claude/bin/kong-claude-pluginserver"
GATEWAY, JWT, TIERS = "claude-gateway", "claude-jwt-claims", "claude-rate-tiers"
AUDIENCE = "orders"
ISSUER = "https://id.example.com"
BESIDE = "beside"
"""A route to somewhere else, which the doctor does not examine."""


@dataclass(frozen=True)
class Planted:
    """What somebody did wrong. `opens` and `shuts`: paths."""

    found: tuple[Finding, ...]
    opens: frozenset[str] = frozenset()
    shuts: frozenset[str] = frozenset()


@dataclass
class Site:
    """One protected service of a world, with its routes and how they are protected."""

    service: Entity
    routes: list[Entity]
    by: By
    chain: tuple[str, ...]
    """The plugins of each route, in order."""
    guard: str
    """`installed`, `post-function`, or `named` for marks of 0.1.0."""
    marks: dict[Entity, str] = field(default_factory=dict)

    def bearers(self) -> list[Entity]:
        """What the plugins are bound to."""
        return [self.service] if self.by == "service" else self.routes

    def paths(self) -> frozenset[str]:
        return frozenset(path(route) for route in self.routes)


def path(route: Entity) -> str:
    return str(route.fields["paths"][0])


def where(route: Entity) -> str:
    return f"route {route.label}"


class Maker:
    """Makes a world of sound sites from one seed."""

    def __init__(self, seed: int, port: int, secrets: dict[str, str], turns: Counter[str]) -> None:
        self.turns = turns  # of all files, so that each form is as frequent as the others
        self.chance = random.Random(seed)
        server = Server(DIRECTORY, "/usr/local/kong")
        environment = kong_environment(PLUGINS, server) | {"KONG_PROXY_LISTEN": "127.0.0.1:8000"} | secrets
        # The doctor looks for files there.
        environment["KONG_LUA_PACKAGE_PATH"] = "/nowhere/?.lua;;"
        self.world = World(self.chance, environment)
        self.port = port
        self.touched: list[Site] = []
        beside = self.world.add("services", {"name": "beside", "url": f"http://{INVOKER}:1"})
        self.beside = self.world.add("routes", {"name": BESIDE, "paths": [f"/beside-{seed}-"]}, service=beside)
        self.sites = [self.site() for _ in range(self.chance.choice((1, 1, 2)))]

    # the parts

    def issuers(self) -> dict[str, Any]:
        issuer = {"issuer": ISSUER, "algorithms": ["HS256"], "secret": "{vault://env/claude-jwt-secret}"}
        return {"issuers": [issuer], "audience": [AUDIENCE]}

    def config(self, plugin: str) -> dict[str, Any]:
        if plugin == JWT:
            return self.issuers()
        if plugin == TIERS:
            return {
                "policy": "local",
                "limit_by": "ip",
                "default_tier": "all",
                "tiers": [{"name": "all", "minute": 1_000_000}],
            }
        return {"attestation": {"private_key": "{vault://env/claude-attestation-key}"}, "jwt_claims": self.issuers()}

    def upstream(self, form: str) -> dict[str, Any]:
        if form == "url":
            return {"url": f"http://{INVOKER}:{self.port}"}
        return {"host": INVOKER, "port": self.port, "protocol": "http"}

    def route(self, said: bool = False, /, **parents: Entity) -> Entity:
        more: dict[str, Any] = {"paths": [f"/r{self.world.number():04}"]}  # none begins as another
        if self.chance.random() < 0.3:
            more["protocols"] = self.chance.choice([["http"], ["http", "https"]])
        return self.world.named("routes", more, said, **parents)

    def site(self, said: bool = False) -> Site:
        world = self.world
        service = world.named("services", self.upstream(world.choose("service", "url", "host and port")), said)
        routes = [self.route(said, service=service) for _ in range(self.chance.choice((2, 2, 3)))]
        by: By = "route" if world.choose("plugins of", "route", "service") == "route" else "service"
        chain = ((JWT,), (GATEWAY,), (JWT, TIERS))[self.chance.randrange(3)]
        world.forms.add(f"plugins: {' and '.join(chain)}")
        kinds = ("installed", "post-function", *(("named",) if by == "route" else ()))
        site = Site(service, routes, by, chain, world.choose("guard", *kinds))
        self.protect(site, said)
        return site

    def protect(self, site: Site, said: bool = False) -> None:
        for bearer in site.bearers():
            mark = {}
            if site.guard == "named":
                site.marks[bearer] = f"mark-{self.world.number()}"
                mark = {"mark": site.marks[bearer]}
            for plugin in site.chain:
                self.world.plugin(plugin, self.config(plugin) | mark, said=said, **self.parent(bearer))
        # The guard's text is the same for all routes, so it may be on the service where the plugins are on the routes.
        places = ["service"] if site.by == "service" else ["route", *(["service"] if site.guard != "named" else [])]
        at = self.world.choose("guard of", *places)
        for bearer in [site.service] if at == "service" else site.routes:
            self.guard(site, bearer, said)

    def guard(self, site: Site, bearer: Entity, said: bool = False) -> None:
        parent = self.parent(bearer)
        if site.guard == "installed":
            for plugin in site.chain:
                own = {"plugin": plugin} if PLUGIN[plugin] == "claude-guard" else {}
                if own.get("plugin") == GATEWAY and self.chance.random() < 0.5:
                    own = {}  # the default
                if site.by == "service" or self.chance.random() < 0.5:
                    own["by"] = site.by
                self.world.plugin(PLUGIN[plugin], own, said=said, **parent)
        else:
            self.world.plugin("post-function", {"access": [self.code(site, bearer)]}, said=said, **parent)

    def code(self, site: Site, bearer: Entity) -> str:
        chain = list(site.chain)
        return named(site.marks[bearer], chain) if site.guard == "named" else lua(chain, site.by)

    @staticmethod
    def parent(bearer: Entity) -> dict[str, Entity]:
        return {bearer.kind.removesuffix("s"): bearer}

    # what the ways need

    def turn(self, what: str, *among: str) -> str:
        """The next of them; counted as a form."""
        chosen = among[self.turns[what] % len(among)]
        self.turns[what] += 1
        self.world.forms.add(f"{what}: {chosen}")
        return chosen

    def some(self, fits: Callable[[Site], bool]) -> tuple[Site, Entity]:
        """A site of that kind that no other way has touched, made where there is none, and a route of it."""
        found = [site for site in self.sites if site not in self.touched and fits(site)]
        while not found:
            site = self.site()
            if fits(site):
                found.append(site)
                self.sites.append(site)
            else:
                self.world.remove(*self.members(site))
        site = self.chance.choice(found)
        self.touched.append(site)
        return site, self.chance.choice(site.routes)

    def members(self, site: Site) -> Iterator[Entity]:
        inside = [site.service, *site.routes]
        for entity in self.world.entities:
            if entity in inside or any(parent in inside for parent in entity.parents.values()):
                yield entity

    def own(self, site: Site, route: Entity, *names: str) -> list[Entity]:
        """The plugins of those names that are bound to the route."""
        return self.world.plugins_of(route, *names)

    def guards_at(self, site: Site) -> list[Entity]:
        names = ("post-function", *PLUGIN.values())
        found = self.world.plugins_of(site.service, *names)
        return found + [p for route in site.routes for p in self.world.plugins_of(route, *names)]

    def guarded_on(self, site: Site, guard: Entity) -> frozenset[str]:
        """The paths for which a guard of the site stands."""
        parent = next(iter(guard.parents.values()))
        return site.paths() if parent is site.service else frozenset([path(parent)])


def routes_at(site: Site, paths: frozenset[str]) -> list[Entity]:
    return [route for route in site.routes if path(route) in paths]


def rule_on(rule: str, routes: Iterable[Entity]) -> tuple[Finding, ...]:
    return tuple((rule, where(route)) for route in routes)


Way = Callable[[Maker], Planted]


# ways to open a route


def open_sibling_route(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.by == "route" and not s_guarded(m, s))
    route = m.route(service=site.service)
    return Planted((("no-authentication", where(route)),), frozenset([path(route)]))


def s_guarded(m: Maker, site: Site) -> bool:
    """Whether the service itself has a guard: then a route without plugins is shut."""
    return bool(m.world.plugins_of(site.service, "post-function", *PLUGIN.values()))


def open_sibling_service(m: Maker) -> Planted:
    m.some(lambda s: True)
    form = m.turn("sibling", "url", "host and port", "upstream", "with a path")
    fields = m.upstream("url")
    if form == "host and port":
        fields = m.upstream(form)
    elif form == "with a path":
        fields = {"url": f"http://{INVOKER}:{m.port}/deeper"}
    elif form == "upstream":
        pool = m.world.add("upstreams", {"name": f"pool{m.world.number()}.example"})
        m.world.add("targets", {"target": f"{INVOKER}:{m.port}"}, upstream=pool)
        fields = {"host": pool.fields["name"]}
    service = m.world.named("services", fields)
    route = m.route(service=service)
    return Planted((("no-authentication", where(route)),), frozenset([path(route)]))


def switched_off(m: Maker) -> Planted:
    """Plugin and guard alike."""
    site, route = m.some(lambda s: s.by == "route" and not s_guarded(m, s))
    for plugin in m.own(site, route, *KEYS, *PLUGIN.values(), "post-function"):
        plugin.fields["enabled"] = False
    m.world.forms.add("enabled: false")
    return Planted((("no-authentication", where(route)),), frozenset([path(route)]))


def asks_nobody(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.chain == (GATEWAY,))
    bearer = m.chance.choice(site.bearers())
    for plugin in m.world.plugins_of(bearer, GATEWAY):
        del plugin.fields["config"]["jwt_claims"]
        plugin.fields["config"]["rate_tiers"] = m.config(TIERS)
    hit = site.routes if bearer is site.service else [bearer]
    return Planted(rule_on("no-authentication", hit), frozenset(map(path, hit)))


def lets_anonymous_in(m: Maker) -> Planted:
    site, _ = m.some(lambda s: True)
    bearer = m.chance.choice(site.bearers())
    consumer = m.world.add("consumers", {"username": f"anyone{m.world.number()}"})
    for plugin in m.world.plugins_of(bearer, *KEYS):
        config = plugin.fields["config"]
        if plugin.fields["name"] != TIERS:
            (config.get("jwt_claims") or config)["anonymous"] = consumer.fields["username"]
    hit = site.routes if bearer is site.service else [bearer]
    return Planted(rule_on("no-authentication", hit), frozenset(map(path, hit)))


def without_a_guard(m: Maker) -> Planted:
    site, _ = m.some(lambda s: len(s.chain) == 1 or s.guard != "installed")
    guard = m.chance.choice(m.guards_at(site))
    if m.turn("guard is", "not there", "switched off") == "not there":
        m.world.remove(guard)
    else:
        guard.fields["enabled"] = False
        m.world.forms.add("enabled: false")
    return unguarded(m, site, guard)


def guard_for_streams_only(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.guard != "installed")
    guard = m.chance.choice(m.guards_at(site))
    guard.fields["protocols"] = ["tcp", "tls"]
    m.world.forms.add("protocols")
    return unguarded(m, site, guard)


def unguarded(m: Maker, site: Site, guard: Entity) -> Planted:
    hit = routes_at(site, m.guarded_on(site, guard))
    found = tuple(("no-guard", where(route)) for route in hit for _ in site.chain)
    return Planted(found, frozenset(map(path, hit)))


def displaced_guard(m: Maker) -> Planted:
    """A function of the route's own, where the service has the guard."""
    _, route = m.some(lambda s: s.guard == "post-function" and s_guarded(m, s))
    m.world.plugin("post-function", {"access": ["kong.service.request.set_header('X-Own', '1')"]}, route=route)
    return Planted((("no-guard", where(route)),), frozenset([path(route)]))


def edited_guard(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.guard == "post-function")
    guard = m.chance.choice(m.guards_at(site))
    (code,) = guard.fields["config"]["access"]
    guard.fields["config"]["access"] = [code.replace("return kong.response.exit(", "kong.log.err(")]
    hit = routes_at(site, m.guarded_on(site, guard))
    return Planted(rule_on("foreign-guard", hit), frozenset(map(path, hit)))


ANSWER = {"status_code": 200, "message": "hello"}


def answers_before_the_guard(m: Maker) -> Planted:
    site, route = m.some(lambda s: s.guard != "installed" and len(s.chain) == 1)
    place = m.turn("answer of", "route", "service", "a plugin that nobody knows")
    if place == "a plugin that nobody knows":
        m.world.plugin("house-answer", {}, route=route)
    else:
        bearer: dict[str, Any] = dict(m.parent(route if place == "route" else site.service))
        m.world.plugin("request-termination", ANSWER, **bearer)
    hit = site.routes if place == "service" else [route]
    return Planted(rule_on("answers-before-guard", hit), frozenset(map(path, hit)))


def forged_by_a_function(m: Maker) -> Planted:
    site, route = m.some(lambda s: len(s.chain) == 1 and s.guard != "named")
    key = KEYS[site.chain[0]]
    m.world.plugin(
        "pre-function",
        {"access": [f"kong.ctx.shared.{key} = {{mark = kong.router.get_{site.by}().id}}"]},
        route=route,
    )
    return Planted((("forged-mark", where(route)),), frozenset([path(route)]))


def forged_before_routing(m: Maker) -> Planted:
    """By a function for all, of which a function of the route takes the place only in the access phase."""
    site, route = m.some(lambda s: len(s.chain) == 1 and s.by == "route" and s.guard != "named")
    mark = route.fields.setdefault("id", m.world.identifier())
    m.world.plugin("pre-function", {"rewrite": [f"kong.ctx.shared.{KEYS[site.chain[0]]} = {{mark = '{mark}'}}"]})
    m.world.plugin("pre-function", {"access": ["kong.log.debug('here')"]}, route=route)
    return Planted(rule_on("forged-mark", [r for s in m.sites for r in s.routes]), frozenset([path(route)]))


def replaced_for_a_consumer(m: Maker) -> Planted:
    """By a plugin that asks nobody, for the consumer that everybody without a token of his is."""
    _, route = m.some(lambda s: s.chain == (GATEWAY,) and s.by == "route" and s.guard != "named")
    consumer = m.world.add("consumers", {"username": f"anyone{m.world.number()}"})
    config = m.config(GATEWAY) | {"rate_tiers": m.config(TIERS)}
    del config["jwt_claims"]
    m.world.plugin("jwt", {"anonymous": consumer.fields["username"]}, route=route)
    m.world.plugin(GATEWAY, config, route=route, consumer=consumer)
    found = ("consumer-scope", f"plugin {GATEWAY} of consumer {consumer.label}")
    return Planted((found,), frozenset([path(route)]))


# ways to shut a route, or that a request does not show


def guard_without_its_plugin(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.by == "route" and len(s.chain) == 1)
    route = m.chance.choice(site.routes)
    (plugin,) = m.own(site, route, *KEYS)
    how = m.turn("plugin is", "not there", "switched off")
    if how == "not there":
        m.world.remove(plugin)
    else:
        plugin.fields["enabled"] = False
        m.world.forms.add("enabled: false")
    return Planted((("refuses-all", where(route)),), shuts=frozenset([path(route)]))


def guard_by_the_other_entity(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.guard in ("installed", "post-function") and len(s.chain) == 1)
    other: By = "service" if site.by == "route" else "route"
    guard = m.chance.choice(m.guards_at(site))
    if site.guard == "installed":
        guard.fields["config"] = guard.fields["config"] | {"by": other}
    else:
        guard.fields["config"] = {"access": [lua(list(site.chain), other)]}
    hit = routes_at(site, m.guarded_on(site, guard))
    return Planted(rule_on("wrong-mark", hit), shuts=frozenset(map(path, hit)))


def mark_that_the_guard_does_not_know(m: Maker) -> Planted:
    site, _ = m.some(lambda s: len(s.chain) == 1)
    bearer = m.chance.choice(site.bearers())
    (plugin,) = m.world.plugins_of(bearer, *site.chain)
    plugin.fields["config"]["mark"] = f"other-{m.world.number()}"
    hit = site.routes if bearer is site.service else [bearer]
    return Planted(rule_on("wrong-mark", hit), shuts=frozenset(map(path, hit)))


def bound_to_nothing(m: Maker) -> Planted:
    """A plugin for all does not start: the routes where no other of its name displaces it are shut."""
    site, _ = m.some(lambda s: s.by == "route" and not s_guarded(m, s))
    route = m.route(service=site.service)
    m.world.plugin(JWT, m.issuers())
    others = [r for s in m.sites if JWT not in s.chain for r in s.routes]
    found = rule_on("no-scope", [route, m.beside, *others]) + rule_on("doubled", others)
    return Planted(found, shuts=frozenset(map(path, [route, *others])))


def one_mark_for_two_routes(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.guard == "named")
    first, second = site.routes[:2]
    mark = site.marks[first]
    for plugin in m.own(site, second, *KEYS):
        plugin.fields["config"]["mark"] = mark
    for plugin in m.own(site, second, "post-function"):
        plugin.fields["config"] = {"access": [named(mark, list(site.chain))]}
    site.marks[second] = mark
    one, two = sorted((first.label, second.label))
    return Planted((("shared-mark", f"routes {one} and {two}"),))


def both_on_service_and_route(m: Maker) -> Planted:
    site, route = m.some(lambda s: s.by == "service" and s.guard == "installed" and len(s.chain) == 1)
    (plugin,) = site.chain
    m.world.plugin(plugin, m.config(plugin), route=route)
    m.world.plugin("claude-guard", {"plugin": plugin, "by": "route"}, route=route)
    return Planted((("mixed-scope", f"service {site.service.label}"),))


def a_stream(m: Maker) -> Planted:
    site, _ = m.some(lambda s: True)
    fields = {
        "protocols": ["tcp"],
        "destinations": [{"port": 9000 + m.world.number()}],
        "name": f"tcp{m.world.number()}",
    }
    route = m.world.add("routes", fields, service=site.service)
    m.world.forms.add("protocols")
    return Planted((("protocols", where(route)),))


def plugin_of_a_consumer(m: Maker) -> Planted:
    kind = m.turn("replaced for", "consumer", "consumer_group")
    site, _ = m.some(lambda s: True)
    said = kind == "consumer_group"  # minikong, as Kong without a licence, has none
    own = {"username" if kind == "consumer" else "name": f"who{m.world.number()}"}
    bearer = m.world.add(f"{kind}s", own, said)
    name = site.chain[0]
    scope: dict[str, Any] = {kind: bearer}
    m.world.plugin(name, m.config(name), **scope)
    return Planted((("consumer-scope", f"plugin {name} of {kind} {bearer.label}"),))


def doubled(m: Maker) -> Planted:
    _, route = m.some(lambda s: s.chain == (GATEWAY,) and s.guard == "installed")
    m.world.plugin(TIERS, m.config(TIERS), route=route)
    m.world.plugin("claude-guard-tiers", {}, route=route)
    return Planted((("doubled", where(route)),))


def changed_afterwards(m: Maker) -> Planted:
    _, route = m.some(lambda s: True)
    m.world.plugin("request-transformer", {"add": {"headers": ["x-a:b"]}}, said=True, route=route)
    return Planted((("late-change", where(route)),))


def limits_that_fail_open(m: Maker) -> Planted:
    site, _ = m.some(lambda s: TIERS in s.chain)
    bearer = m.chance.choice(site.bearers())
    ours = m.turn("fails open by", "on_error", "fault_tolerant") == "on_error"
    for plugin in m.world.plugins_of(bearer, TIERS):
        plugin.fields["config"] |= {"on_error": "allow"} if ours else {"fault_tolerant": True}
    return Planted(rule_on("fails-open", site.routes if bearer is site.service else [bearer]))


def limits_that_nobody_counts(m: Maker) -> Planted:
    site, _ = m.some(lambda s: TIERS in s.chain)
    bearer = site.bearers()[0]
    for plugin in m.world.plugins_of(bearer, TIERS):
        plugin.fields["config"]["admin"] = True
    hit = site.routes if bearer is site.service else [bearer]
    return Planted(rule_on("admin-limits", hit), shuts=frozenset(map(path, hit)))


def tag_that_is_no_tier(m: Maker) -> Planted:
    site, _ = m.some(lambda s: TIERS in s.chain)
    for bearer in site.bearers():
        for plugin in m.world.plugins_of(bearer, TIERS):
            plugin.fields["config"]["consumer_tier"] = "tag"
    consumer = m.world.add("consumers", {"username": f"who{m.world.number()}", "tags": ["tier-all"]})
    m.world.add("consumers", {"username": f"who{m.world.number()}", "tags": ["tier:all", "team"]})
    return Planted((("untagged-consumer", f"consumer {consumer.label}"),))


def invoker_on_a_public_address(m: Maker) -> Planted:
    site = m.site(said=True)
    site.service.fields.pop("url", None)
    site.service.fields |= {"host": "8.8.8.8", "port": 80, "protocol": "http"}
    return Planted((("public-invoker", "8.8.8.8:80"),))


def secret_in_clear(m: Maker) -> Planted:
    site, _ = m.some(lambda s: TIERS in s.chain)
    bearer = site.bearers()[0]
    for plugin in m.world.plugins_of(bearer, TIERS):
        plugin.fields["config"]["redis_url"] = "redis://:s3cr3t-enough@redis:6379/0"
    return Planted((("secret-in-clear", f"plugin {TIERS}, config.redis_url"),))


# sound, though it does not look so


def not_served_at_all(m: Maker) -> Planted:
    service = m.world.named("services", m.upstream("url") | {"enabled": False})
    route = m.route(service=service)
    return Planted((), shuts=frozenset([path(route)]))


def plugin_for_https_only(m: Maker) -> Planted:
    site, _ = m.some(lambda s: True)
    for plugin in m.world.plugins_of(site.bearers()[0], *KEYS):
        plugin.fields["protocols"] = ["https"]
    m.world.forms.add("protocols")
    return Planted(())


def refused_by_kong_itself(m: Maker) -> Planted:
    site, _ = m.some(lambda s: s.by == "route" and not s_guarded(m, s))
    route = m.route(service=site.service)
    how = m.turn("refused by", "key-auth", "request-termination", "jwt")
    m.world.plugin(how, {"status_code": 410} if how == "request-termination" else {}, route=route)
    return Planted((), shuts=frozenset([path(route)]))


def switched_off_beside_the_services(m: Maker) -> Planted:
    """A plugin of the route that is switched off displaces nothing."""
    site, route = m.some(lambda s: s.by == "service")
    m.world.plugin(site.chain[0], {**m.config(site.chain[0]), "mark": "shared"}, enabled=False, route=route)
    m.world.forms.add("enabled: false")
    return Planted(())


def open_on_purpose(m: Maker) -> Planted:
    service = m.world.named("services", m.upstream("url"))
    route = m.route(service=service)
    route.fields["tags"] = ["public"]
    m.world.plugin(TIERS, m.config(TIERS), route=route)
    m.world.plugin("claude-guard-tiers", {}, route=route)
    return Planted((), frozenset([path(route)]))


def answers_behind_an_installed_guard(m: Maker) -> Planted:
    _, route = m.some(lambda s: s.guard == "installed")
    m.world.plugin("request-termination", ANSWER, route=route)
    return Planted(())


def function_in_a_phase_that_never_comes(m: Maker) -> Planted:
    """rewrite runs for functions of all routes only."""
    site, route = m.some(lambda s: len(s.chain) == 1)
    m.world.plugin(
        "pre-function", {"rewrite": [f"kong.ctx.shared.{KEYS[site.chain[0]]} = {{mark = 'x'}}"]}, route=route
    )
    return Planted(())


# How often each comes where others come once: it has so many forms.
OFTEN: dict[Way, int] = {
    open_sibling_service: 4,
    without_a_guard: 2,
    answers_before_the_guard: 3,
    guard_without_its_plugin: 2,
    limits_that_fail_open: 2,
    plugin_of_a_consumer: 2,
    refused_by_kong_itself: 3,
}
# These change routes of other sites, too: one of them is alone in its file.
WIDE = (forged_before_routing, bound_to_nothing)
WAYS: tuple[Way, ...] = (
    open_sibling_route,
    open_sibling_service,
    switched_off,
    asks_nobody,
    lets_anonymous_in,
    without_a_guard,
    guard_for_streams_only,
    displaced_guard,
    edited_guard,
    answers_before_the_guard,
    forged_by_a_function,
    forged_before_routing,
    replaced_for_a_consumer,
    guard_without_its_plugin,
    guard_by_the_other_entity,
    mark_that_the_guard_does_not_know,
    bound_to_nothing,
    one_mark_for_two_routes,
    both_on_service_and_route,
    a_stream,
    plugin_of_a_consumer,
    doubled,
    changed_afterwards,
    limits_that_fail_open,
    limits_that_nobody_counts,
    tag_that_is_no_tier,
    invoker_on_a_public_address,
    secret_in_clear,
    not_served_at_all,
    plugin_for_https_only,
    refused_by_kong_itself,
    switched_off_beside_the_services,
    open_on_purpose,
    answers_behind_an_installed_guard,
    function_in_a_phase_that_never_comes,
)
