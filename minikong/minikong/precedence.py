"""Which configured plugins run for a request, and in which order (kong/runloop/plugins_iterator.lua)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from minikong.entities import Config, PluginEntity

_HTTP = frozenset({"http", "https", "grpc", "grpcs"})
_SEQUENCE = itertools.count(1)  # Kong's __seq__ counts over the life of the process

Key = tuple[str | None, str | None, str | None]  # route, service, consumer


class Precedence:
    """The plugins of one config, by name and scope. A new one is made for every load of a config."""

    def __init__(self, config: Config) -> None:
        self.entities = [p for p in config.plugins if p.enabled and not _HTTP.isdisjoint(p.protocols)]
        self._by_name: dict[str, dict[Key, PluginEntity]] = {}
        for plugin in self.entities:
            plugin.seq = next(_SEQUENCE)
            key = (plugin.route_id, plugin.service_id, plugin.consumer_id)
            self._by_name.setdefault(plugin.name, {})[key] = plugin

    @property
    def names(self) -> frozenset[str]:
        """The plugins that are configured anywhere."""
        return frozenset(self._by_name)

    def lookup(
        self, name: str, route_id: str | None, service_id: str | None, consumer_id: str | None
    ) -> PluginEntity | None:
        """The most specific configuration of plugin `name` for a request; None if it does not run.

        Asked anew for each plugin of the access phase: an earlier one may have set the consumer.
        """
        scopes = self._by_name.get(name)
        if scopes is None:
            return None
        return next((scopes[key] for key in _combinations(route_id, service_id, consumer_id) if key in scopes), None)

    def global_entities(self, order: Iterable[str]) -> Iterator[PluginEntity]:
        """The plugins without any scope, in the order of the names: what runs in rewrite and certificate."""
        for name in order:
            plugin = self._by_name.get(name, {}).get((None, None, None))
            if plugin is not None:
                yield plugin


def _combinations(route: str | None, service: str | None, consumer: str | None) -> Iterator[Key]:
    if route and service and consumer:
        yield route, service, consumer
    if route and consumer:
        yield route, None, consumer
    if service and consumer:
        yield None, service, consumer
    if route and service:
        yield route, service, None
    if consumer:
        yield None, None, consumer
    if route:
        yield route, None, None
    if service:
        yield None, service, None
    yield None, None, None


def by_priority(priorities: Mapping[str, float]) -> list[str]:
    """Plugin names in the order they run: by priority, the higher first; equal ones by name, the later first.

    Kong leaves the order of several plugins of priority 0 to chance; here it is by name too.
    """
    return sorted(priorities, key=lambda name: (priorities[name], name), reverse=True)
