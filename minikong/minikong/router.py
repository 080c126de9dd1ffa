"""Kong's traditional router: which route a request takes, and what becomes of its path.

Follows kong/router/traditional.lua and kong/router/utils.lua of Kong 3.9.1, ties included: routes are kept
in the order of their ids and sorted with Lua's (unstable) table.sort.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from minikong.entities import Config, Route, Service
from minikong.schema import pcre
from minikong.uri import normalize

HOST, HEADER, URI, METHOD, SNI = 0x40, 0x20, 0x10, 0x08, 0x04
_ORDER = (HOST, HEADER, URI, METHOD, SNI)
_HAS_REGEX_URI, _PLAIN_HOSTS_ONLY, _HAS_WILDCARD_HOST_PORT = 0x01, 0x02, 0x04

Captures = dict[str | int, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Match:
    """The route of a request. Paths are text of their bytes (UTF-8 with surrogateescape), not escaped."""

    route: Route
    service: Service | None
    upstream_path: str | None  # None without a service
    upstream_host: str | None  # set where preserve_host is on: the request's own Host
    prefix: str | None  # what strip_path took off
    captures: Captures  # 0 is the whole match; groups that took no part are absent
    by: Mapping[str, str | Mapping[str, str]]  # what of the route matched: uri, host, method, sni, headers


@dataclass(slots=True)
class _Path:
    value: str
    regex: re.Pattern[str] | None = None  # finds the path; None for a prefix
    strip: re.Pattern[str] | None = None  # the same, with what follows as group "uri_postfix"


@dataclass(slots=True)
class _WildcardHost:
    value: str
    regex: re.Pattern[str]


@dataclass(slots=True)
class _Header:
    name: str
    values: frozenset[str]
    pattern: re.Pattern[str] | None


@dataclass(slots=True, eq=False)
class _Entry:
    """One route with at most one of its paths."""

    route: Route
    service: Service | None
    rules: int = 0
    weight: int = 0
    subweight: int = 0
    plain_hosts: frozenset[str] = frozenset()
    wildcard_hosts: list[_WildcardHost] = field(default_factory=list)
    headers: list[_Header] = field(default_factory=list)
    path: _Path | None = None
    methods: frozenset[str] = frozenset()
    snis: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Category:
    """The entries with the same kinds of rules, and the same by the values of each kind."""

    all: list[_Entry] = field(default_factory=list)
    by: dict[int, dict[str, list[_Entry]]] = field(default_factory=lambda: {rule: {} for rule in _ORDER})


@dataclass(slots=True)
class _Request:
    method: str
    uri: str
    host: str | None
    host_no_port: str
    host_with_port: str
    scheme: str
    sni: str
    headers: Mapping[str, Sequence[str]]
    hit_host: str | None = None
    hit_uri: str | None = None
    hit_header: str | None = None


@dataclass(slots=True)
class _Found:
    """What matching one entry left behind."""

    prefix: str | None = None
    postfix: str | None = None
    captures: Captures = field(default_factory=dict)
    by: dict[str, str | Mapping[str, str]] = field(default_factory=dict)


def request_path(target: bytes) -> str:
    """The path that routes are matched against: without the query, normalized, double slashes merged."""
    end = target.find(b"?", 1)
    path = target if end < 0 else target[:end]
    return normalize(path, merge_slashes=True).decode(errors="surrogateescape")


class Router:
    """The routes of one config. Stateless after it is made."""

    def __init__(self, config: Config) -> None:
        entries: list[_Entry] = []
        for route_id in sorted(config.routes):
            route = config.routes[route_id]
            service = config.services.get(route.service_id) if route.service_id else None
            if {"http", "https"}.isdisjoint(route.protocols) or (service and not service.enabled):
                continue
            paths: list[str | None] = [*(route.paths or [])] or [None]
            entries += [_entry(route, service, path) for path in paths]
        lua_sort(entries, _before)
        self._categories: dict[int, _Category] = {}
        for entry in entries:
            self._index(entry)
        self._order = sorted(
            self._categories, key=lambda bits: (self._categories[bits].all[0].weight, bits), reverse=True
        )
        self._hosts = frozenset(h for e in entries for h in e.plain_hosts)
        self._wildcards = [w for e in entries for w in e.wildcard_hosts]
        self._headers = list(dict.fromkeys(h.name for e in entries for h in e.headers))
        parsed = [e.path for e in entries if e.path]
        self._regexes = [p for p in parsed if p.regex]
        self._prefixes = [p.value for p in parsed if not p.regex]
        self._exact = frozenset(self._prefixes)
        lua_sort(self._prefixes, lambda a, b: len(a) > len(b))
        self._methods = frozenset(m for e in entries for m in e.methods)
        self._snis = frozenset(s for e in entries for s in e.snis)

    def _index(self, entry: _Entry) -> None:
        category = self._categories.setdefault(entry.rules, _Category())
        category.all.append(entry)
        values: dict[int, list[str]] = {
            HOST: [*entry.plain_hosts, *(w.value for w in entry.wildcard_hosts)],
            HEADER: [h.name for h in entry.headers],
            URI: [entry.path.value] if entry.path else [],
            METHOD: list(entry.methods),
            SNI: list(entry.snis),
        }
        for rule, names in values.items():
            for name in names:
                category.by[rule].setdefault(name, []).append(entry)

    def match(
        self,
        method: str,
        target: bytes,
        host: str | None,
        scheme: str,
        sni: str | None,
        headers: Mapping[str, Sequence[str]],
    ) -> Match | None:
        """The route of a request, or None.

        Args:
            target: path and query as on the wire.
            host: the Host header (or the host of an absolute target), None where there is none.
            headers: values by name in lower case.
        """
        no_port, with_port = split_port(host or "", 443 if scheme == "https" else 80)
        request = _Request(method, request_path(target), host, no_port, with_port, scheme, sni or "", headers)
        bits = self._hits(request)
        if not bits:
            return None
        start = self._order.index(bits) if bits in self._categories else 0
        for category_bits in self._order[start:]:
            category = self._categories[category_bits]
            for candidates in (_reduce(category, category_bits, request), category.all):
                for entry in candidates:
                    found = _Found()
                    if _matches(entry, request, found):
                        return _match(entry, request, found)
        return None

    def _hits(self, request: _Request) -> int:
        """The kinds of rules that this request may satisfy; notes the first hits."""
        bits = 0
        for name in self._headers:
            if name != "host" and request.headers.get(name):
                request.hit_header = name
                bits |= HEADER
                break
        if request.host is not None:
            if request.host_with_port in self._hosts or request.host_no_port in self._hosts:
                bits |= HOST
            else:
                hit = next((w for w in self._wildcards if w.regex.match(request.host_with_port)), None)
                if hit is not None:
                    request.hit_host = hit.value
                    bits |= HOST
        request.hit_uri = self._hit_uri(request.uri)
        if request.hit_uri is not None:
            bits |= URI
        if request.method in self._methods:
            bits |= METHOD
        if request.sni in self._snis:
            bits |= SNI
        return bits

    def _hit_uri(self, uri: str) -> str | None:
        for path in self._regexes:
            if path.regex and path.regex.match(uri):
                return path.value
        if uri in self._exact:
            return uri
        return next((prefix for prefix in self._prefixes if uri.startswith(prefix)), None)


def _entry(route: Route, service: Service | None, path: str | None) -> _Entry:
    entry = _Entry(route, service)
    if route.hosts:
        entry.rules |= HOST
        entry.weight += 1
        entry.plain_hosts = frozenset(h for h in route.hosts if "*" not in h)
        for host in route.hosts:
            if "*" not in host:
                continue
            has_port = split_port(host, None)[0] != host
            if has_port:
                entry.subweight |= _HAS_WILDCARD_HOST_PORT
            text = host.replace(".", "\\.").replace("*", ".+") + ("$" if has_port else r"(?::\d+)?$")
            entry.wildcard_hosts.append(_WildcardHost(host, re.compile(text)))
        if not entry.wildcard_hosts:
            entry.subweight |= _PLAIN_HOSTS_ONLY
    for name, values in (route.headers or {}).items():
        pattern = pcre.compile(values[0][2:]) if len(values) == 1 and values[0].startswith("~*") else None
        if name.lower() != "host":
            entry.headers.append(_Header(name.lower(), frozenset(v.lower() for v in values), pattern))
    if entry.headers:
        entry.rules |= HEADER
        entry.weight += 1
    if path is not None:
        entry.rules |= URI
        entry.weight += 1
        entry.path = _Path(path)
        if path.startswith("~"):
            regex = path[1:]
            entry.path = _Path(regex, pcre.compile(regex), pcre.compile(regex + "(?<uri_postfix>.*)"))
            entry.subweight |= _HAS_REGEX_URI
    if route.methods:
        entry.rules |= METHOD
        entry.weight += 1
        entry.methods = frozenset(m.upper() for m in route.methods)
    if route.snis:
        entry.rules |= SNI
        entry.weight += 1
        entry.snis = frozenset(s.removesuffix(".") if len(s) > 1 else s for s in route.snis)
    return entry


def _before(a: _Entry, b: _Entry) -> bool:
    """Whether `a` is tried before `b` (sort_routes)."""
    if a.subweight != b.subweight:
        return a.subweight > b.subweight
    if len(a.headers) != len(b.headers):
        return len(a.headers) > len(b.headers)
    if a.subweight & _HAS_REGEX_URI:
        first, second = a.route.regex_priority or 0, b.route.regex_priority or 0
        if first != second:
            return first > second
    lengths = [len(e.path.value) if e.path and not e.path.regex else 0 for e in (a, b)]
    if lengths[0] != lengths[1]:
        return lengths[0] > lengths[1]
    return a.route.created_at < b.route.created_at


def lua_sort(items: list[T], before: Callable[[T, T], bool]) -> None:
    """Lua 5.1's table.sort, in place: not stable, so that ties fall as they do in Kong."""

    def swap(i: int, j: int) -> None:
        items[i], items[j] = items[j], items[i]

    pending = [(0, len(items) - 1)]
    while pending:
        low, high = pending.pop()
        while low < high:
            if before(items[high], items[low]):
                swap(low, high)
            if high - low == 1:
                break
            middle = (low + high) // 2
            if before(items[middle], items[low]):
                swap(middle, low)
            elif before(items[high], items[middle]):
                swap(middle, high)
            if high - low == 2:
                break
            pivot = items[middle]
            swap(middle, high - 1)
            i, j = low, high - 1
            while True:
                i += 1
                while before(items[i], pivot):
                    i += 1
                j -= 1
                while before(pivot, items[j]):
                    j -= 1
                if j < i:
                    break
                swap(i, j)
            swap(high - 1, i)
            if i - low < high - i:
                pending.append((low, i - 1))
                low = i + 1
            else:
                pending.append((i + 1, high))
                high = i - 1


def _reduce(category: _Category, bits: int, request: _Request) -> list[_Entry]:
    keys = {
        HOST: request.hit_host or request.host or "",
        HEADER: request.hit_header,
        URI: request.hit_uri,
        METHOD: request.method,
        SNI: request.sni,
    }
    smallest: list[_Entry] = []
    for rule in _ORDER:
        key = keys[rule]
        candidates = category.by[rule].get(key) if bits & rule and key is not None else None
        if candidates is None:
            continue
        if rule == HEADER and bits != HEADER:
            return candidates
        if not smallest or len(candidates) < len(smallest):
            smallest = candidates
    return smallest


def _matches(entry: _Entry, request: _Request, found: _Found) -> bool:
    if entry.rules & HOST:
        host = _matching_host(entry, request)
        if host is None:
            return False
        found.by["host"] = host
    if entry.headers:
        values = {
            header.name: _matching_value(header, request.headers.get(header.name, ())) for header in entry.headers
        }
        if None in values.values():
            return False
        found.by["headers"] = {name: value for name, value in values.items() if value is not None}
    if entry.path is not None:
        if not _path_matches(entry.path, request, found):
            return False
        found.by["uri"] = entry.path.value
    if entry.rules & METHOD:
        if request.method not in entry.methods:
            return False
        found.by["method"] = request.method
    if entry.rules & SNI and request.scheme != "http":
        if request.sni not in entry.snis:
            return False
        found.by["sni"] = request.sni
    return True


def _matching_host(entry: _Entry, request: _Request) -> str | None:
    host = request.hit_host or request.host or ""
    for plain in (host, request.host_no_port):
        if plain in entry.plain_hosts:
            return plain
    if any(w.value == host for w in entry.wildcard_hosts):
        return host
    return next((w.value for w in entry.wildcard_hosts if w.regex.match(request.host_with_port)), None)


def _matching_value(header: _Header, values: Sequence[str]) -> str | None:
    for value in values:
        low = value.lower()
        if low in header.values or (header.pattern and header.pattern.search(low)):
            return low
    return None


def _path_matches(path: _Path, request: _Request, found: _Found) -> bool:
    uri = request.uri
    if not uri:
        return False
    if path.strip is None:
        if not uri.startswith(path.value):
            return False
        found.prefix, found.postfix = path.value, _safe_postfix(uri[len(path.value) :])
        return True
    match = path.strip.match(uri)
    if match is None:
        return False
    postfix = match["uri_postfix"] or ""
    found.prefix = uri[: len(uri) - len(postfix)]
    found.postfix = _safe_postfix(postfix)
    groups = list(match.groups())[:-1]
    if groups:
        found.captures = {0: match[0]}
        found.captures |= {i: text for i, text in enumerate(groups, 1) if text is not None}
        for name, text in match.groupdict().items():
            if name != "uri_postfix" and text is not None:
                found.captures[name] = text
    return True


def _safe_postfix(postfix: str) -> str:
    if postfix in (".", ".."):
        return ""
    if postfix.startswith("./"):
        return postfix[2:]
    return postfix[3:] if postfix.startswith("../") else postfix


def _match(entry: _Entry, request: _Request, found: _Found) -> Match:
    route, service = entry.route, entry.service
    upstream_path = upstream_host = prefix = None
    if service is not None:
        prefix = found.prefix if route.strip_path else None
        postfix = found.postfix if found.postfix is not None else request.uri[1:]
        upstream_path = _upstream_path(route, service.path or "/", postfix, request.uri)
        if route.preserve_host:
            upstream_host = request.host
    if route.preserve_host and upstream_host is None:
        upstream_host = request.sni
    return Match(route, service, upstream_path, upstream_host, prefix, found.captures, found.by)


def _upstream_path(route: Route, base: str, postfix: str, uri: str) -> str:
    if route.path_handling == "v1":
        if not route.strip_path:
            return base + uri[1:]
        double = base.endswith("/") and postfix.startswith("/")
        return (base[:-1] if double else base) + postfix
    if base.endswith("/"):
        if not route.strip_path:
            return base + uri[1:]
        if postfix == "":
            return base if base == "/" or uri.endswith("/") else base[:-1]
        return (base[:-1] if postfix.startswith("/") else base) + postfix
    if route.strip_path:
        if postfix == "":
            return base + "/" if len(uri) > 1 and uri.endswith("/") else base
        return base + postfix if postfix.startswith("/") else f"{base}/{postfix}"
    return base if uri == "/" else base + uri


def split_port(name: str, default: int | None) -> tuple[str, str]:
    """A host without and with its port; the default is added where it has none."""

    def with_default(host: str) -> str:
        return host if default is None else f"{host}:{default}"

    if name.startswith("["):
        if name.endswith("]"):
            return name[1:-1], with_default(name)
        at = name.find("]:", 1)
        if at >= 0:
            if at == len(name) - 2:
                return name[1:at], name + ("" if default is None else str(default))
            if re.fullmatch(r"[0-9]+", name[at + 2 :]):
                return name[1:at], name
        return name, with_default(name)
    colon = name.find(":")
    if colon < 0:
        return name, with_default(name)
    if colon == len(name) - 1:
        return name[:colon], with_default(name[:colon])
    if not re.fullmatch(r"[0-9]+", name[colon + 1 :]):
        return name, name if default is None else f"[{name}]:{default}"
    return name[:colon], name
