"""Who belongs to whom, with and without names: what the doctor sees is what minikong runs."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kong_claude import PLUGINS
from kong_claude.doctor import guards, reach, rules, view
from kong_claude.guard import named
from kong_claude.problem import Problem
from minikong.declarative import loader
from minikong.declarative.schema import Schema
from minikong.entities import derived_id
from minikong.precedence import Precedence
from minikong.pytest_plugin import Start
from minikong.schema import bundled
from tests.support.waiting import HANG_S

NAMES = ["key-auth", "request-termination"]
SCHEMA = Schema(bundled.schemas())
IDS = [f"00000000-0000-4000-8000-{n:012d}" for n in range(40)]


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Two services with two routes each: named, with an id, both or neither; nested or flat; plugins of every scope.

    Flat entities name their parents by name, by id, by `{id: …}` or by the id that Kong derives from the name."""
    ids = iter(IDS)
    document: dict[str, Any] = {"_format_version": "3.0", "services": [], "routes": [], "plugins": []}

    def naming(kind: str, name: str) -> dict[str, str]:
        chosen = draw(st.sampled_from(["name", "id", "both", "neither"]))
        entity = {"name": name} if chosen in ("name", "both") else {}
        return entity | ({"id": next(ids)} if chosen in ("id", "both") else {})

    def reference(kind: str, entity: dict[str, Any]) -> Any:
        found: list[Any] = []
        if "name" in entity:
            found.append(entity["name"])
        own = entity.get("id") or ("name" in entity and derived_id(kind, entity["name"]))
        if own:
            found += [own, {"id": own}]
        return draw(st.sampled_from(found)) if found else None

    def attach(kind: str, parent_kind: str, parent: dict[str, Any], child: dict[str, Any]) -> None:
        named = reference(parent_kind, parent)
        if named is None or draw(st.booleans()):
            parent.setdefault(kind, []).append(child)
        else:
            document[kind].append(child | {parent_kind.removesuffix("s"): named})

    def plugin(name: str) -> dict[str, Any]:
        # With an id, since those that Kong derives for plugins know only parents that are given by name.
        return {"name": name, "id": next(ids), "enabled": draw(st.booleans())}

    def plugins(parent_kind: str, parent: dict[str, Any]) -> None:
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
            attach("plugins", parent_kind, parent, plugin(name))

    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        document["plugins"].append(plugin(name))
    for s in range(2):
        service = naming("services", f"s{s}") | {"url": f"http://host{s}:80"}
        document["services"].append(service)
        plugins("services", service)
        for r in range(2):
            route = naming("routes", f"r{s}{r}") | {"paths": [f"/{s}{r}"]}
            plugins("routes", route)
            attach("routes", "services", service, route)
    return document


def as_minikong_runs_it(text: str, filename: str) -> dict[str, Any]:
    """Path → the host it leads to, and the plugins that run there."""
    config = loader.load(text, SCHEMA, filename)
    precedence = Precedence(config)
    seen = {}
    for route in config.routes.values():
        found = {name: precedence.lookup(name, route.id, route.service_id, None) for name in NAMES}
        host = config.services[route.service_id].host if route.service_id else None
        assert route.paths is not None
        seen[str(route.paths[0])] = (host, {name for name, plugin in found.items() if plugin})
    return seen


def as_the_doctor_sees_it(path: Path) -> dict[str, Any]:
    found = view.from_file(path, {})
    return {
        r.route["paths"][0]: (
            reach.host_of(r.service).partition(":")[0] or None,
            {p["name"] for p in r.active(*NAMES)},
        )
        for r in found.routes
    }


@given(document=configurations(), suffix=st.sampled_from(["yml", "json"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_doctor_sees_what_minikong_runs(
    document: dict[str, Any], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("doctor") / f"kong.{suffix}"
    text = json.dumps(document, indent="\t") if suffix == "json" else yaml.safe_dump(document)
    path.write_text(text)
    assert as_the_doctor_sees_it(path) == as_minikong_runs_it(text, path.name)


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def guarded(path: str, **naming: str) -> dict[str, Any]:
    """A route with claude-jwt-claims and its guard."""
    mark = path.strip("/")
    issuer = {"issuer": "https://id.example.com", "algorithms": ["HS256"], "secret": "x" * 40}
    config = {"mark": mark, "issuers": [issuer], "audience": ["orders"]}
    guard = {"name": "post-function", "config": {"access": [named(mark, ["claude-jwt-claims"])]}}
    return {"paths": [path], "plugins": [{"name": "claude-jwt-claims", "config": config}, guard], **naming}


def status(base_url: str, path: str) -> int:
    try:
        with urllib.request.urlopen(base_url + path, timeout=HANG_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("service", "route", "suffix"),
    [
        ({}, {"name": "open"}, "yml"),
        ({}, {}, "json"),
        ({"name": "inv"}, {}, "yml"),
        ({"id": IDS[0]}, {"id": IDS[1]}, "json"),
    ],
    ids=["nameless-service", "nameless-both", "nameless-route", "ids"],
)
def test_the_open_routes_are_those_that_answer_without_a_token(
    minikong: Start, upstream: int, tmp_path: Path, service: dict[str, str], route: dict[str, str], suffix: str
) -> None:
    routes = [guarded("/a"), guarded("/b"), {"paths": ["/open"], **route}]
    document = {
        "_format_version": "3.0",
        "services": [{"url": f"http://127.0.0.1:{upstream}", "routes": routes, **service}],
    }
    path = tmp_path / f"kong.{suffix}"
    path.write_text(json.dumps(document, indent="\t") if suffix == "json" else yaml.safe_dump(document))
    kong = minikong(path, plugins=PLUGINS)
    assert [status(kong.base_url, r["paths"][0]) for r in routes] == [401, 401, 200]
    found = view.from_file(path, {})
    (opening,) = guards.guarded(found)
    shown = route.get("name") or route.get("id") or "/open"
    assert (opening.rule, opening.where) == ("no-authentication", f"route {shown}")
    assert list(guards.distinct_marks(found)) == []


def document_of(routes: list[dict[str, Any]], /, **more: Any) -> dict[str, Any]:
    return {"_format_version": "3.0", "services": [{"url": "http://inv:80", "routes": routes}]} | more


def seen(document: dict[str, Any], tmp_path: Path) -> view.View:
    path = tmp_path / "kong.yml"
    path.write_text(yaml.safe_dump(document))
    return view.from_file(path, {})


def test_control_nameless_routes_with_one_path_and_one_mark_share_it(tmp_path: Path) -> None:
    one, other = guarded("/a", methods=["GET"]), guarded("/a", methods=["POST"])  # type: ignore[arg-type]
    assert [opening.rule for opening in guards.distinct_marks(seen(document_of([one, other]), tmp_path))] == [
        "shared-mark"
    ]


def test_a_plugin_that_is_switched_off_shares_no_mark(tmp_path: Path) -> None:
    off = {**guarded("/a")["plugins"][0], "enabled": False}
    off["config"]["mark"] = "shared"
    document = document_of([guarded("/a"), guarded("/b")], plugins=[off])
    assert list(guards.distinct_marks(seen(document, tmp_path))) == []
    for route in document["services"][0]["routes"]:
        route["plugins"][0]["config"]["mark"] = "shared"
    assert [opening.rule for opening in guards.distinct_marks(seen(document, tmp_path))] == ["shared-mark"]


def test_one_plugin_of_a_service_shares_its_mark_with_nobody(tmp_path: Path) -> None:
    document = document_of([{"paths": ["/a"]}, {"paths": ["/b"]}])
    document["services"][0]["plugins"] = guarded("/a")["plugins"]
    assert list(guards.distinct_marks(seen(document, tmp_path))) == []


def test_a_nameless_consumers_plugin_is_not_everybodys(tmp_path: Path) -> None:
    override = {"name": "claude-jwt-claims", "config": {"mark": "x"}}
    consumers = [{"custom_id": "c-1", "plugins": [override]}]
    found = seen(document_of([{"paths": ["/a"]}], consumers=consumers), tmp_path)
    assert [opening.rule for opening in rules.overrides(found)] == ["consumer-scope"]


@pytest.mark.parametrize("kind", ["routes", "plugins"])
def test_a_reference_to_nothing_is_an_error_not_a_sound_configuration(kind: str, tmp_path: Path) -> None:
    """Kong refuses such a file; taken as a route without a service it had no opening."""
    child = {"paths": ["/b"]} if kind == "routes" else {"name": "key-auth"}
    with pytest.raises(Problem, match="'nobody', which is not among the services"):
        seen(document_of([guarded("/a")], **{kind: [child | {"service": "nobody"}]}), tmp_path)


@pytest.mark.parametrize(("text", "said"), [("{\n,", "kong.json:2"), ("[" * 100_000, "nested too deeply")])
def test_json_that_cannot_be_read_is_said(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "kong.json"
    path.write_text(text)
    with pytest.raises(Problem, match=said):
        view.from_file(path, {})
