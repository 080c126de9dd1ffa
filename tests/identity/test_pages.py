"""Every example of docs/identity, taken from its page, tried: the token passes and becomes what the page says, the other one is
refused for the reason that the page names, and the configuration has its place in kong.yml."""

from __future__ import annotations

import json
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from kong_claude import PLUGINS
from kong_claude.doctor import probe, rules, view
from kong_claude_local import configuration, stack
from tests.cli.test_doctor import environment_of_compose
from tests.identity.pages import CONFIGURATION, EXAMPLES, FOLDER, PAGES, Example, changed, examples, issued, moved
from tests.jwt_claims.conftest import Send, kong, plugins_dir, send, server  # noqa: F401  fixtures
from tests.jwt_claims.support import jwk, private_key, sign

KONG_YML = Path(__file__).resolve().parents[2] / "kong.yml"
BLOCK = re.compile(r"(?<=\n)      issuers:\n.*?(?=    rate_tiers: )", re.DOTALL)
TENANT = "{tenantid}"


def kids() -> list[str]:
    return [json.loads(example.header)["kid"] for example in EXAMPLES]


def key_set(**members: Any) -> dict[str, Any]:
    """Keys as the providers publish them: one for each page, all of the tests' own key pair."""
    return {"keys": [jwk("RS256", kid=kid, **members) for kid in kids()]}


@pytest.fixture(scope="session")
def providers() -> Iterator[str]:
    """All providers on one loopback server, each at a path of its host's name."""
    documents: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(documents.get(self.path)).encode()
            self.send_response(200 if self.path in documents else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{listening.server_port}"
    for example in EXAMPLES:
        for entry in yaml.safe_load(moved(example.configuration, base))["issuers"]:
            place = entry["issuer"].replace(TENANT, "common").rstrip("/").removeprefix(base)
            document = {"issuer": entry["issuer"], "jwks_uri": f"{base}{place}/keys"}
            documents[f"{place}/.well-known/openid-configuration"] = document
            # Only Entra says of a key whose tokens it signs.
            documents[f"{place}/keys"] = key_set(issuer=entry["issuer"]) if TENANT in entry["issuer"] else key_set()
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    yield base
    listening.shutdown()
    thread.join()
    listening.server_close()


def opened(config: dict[str, Any], claims: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what a page defends by: any issuer, any audience, no rules."""
    issuer = {"issuer": claims["iss"], "algorithms": ["RS256"], "jwks": json.dumps(key_set())}
    audience = [claims["aud"]] if isinstance(claims.get("aud"), str) else claims.get("aud") or config["audience"]
    kept = {name: value for name, value in config.items() if name not in ("rules", "email_domains")}
    return {**kept, "issuers": [issuer], "audience": audience}


@pytest.fixture
def ask(send: Send, providers: str) -> Callable[..., tuple[int, str, dict[str, Any]]]:  # noqa: F811
    """ask(example, different, let_in, **headers) → status (200: passed), message, identity."""

    def asked(
        example: Example, different: str = "{}", let_in: bool = False, **headers: str
    ) -> tuple[int, str, dict[str, Any]]:
        claims = issued(json.loads(moved(example.payload, providers)), int(time.time()))
        claims = changed(claims, moved(different, providers))
        token = sign(json.loads(example.header), json.dumps(claims), "RS256", private_key("RS256"))
        config = yaml.safe_load(moved(example.configuration, providers))
        for entry in config["issuers"]:
            entry["allow_insecure_jwks"] = True
            if "jwks" in entry:
                entry["jwks"] = json.dumps(key_set())
        if let_in:
            config = opened(config, claims)
        sent = {"authorization": f"Bearer {token}", "x-request-id": "r-1", **headers}
        event, request = send({**config, "mark": "m"}, sent)
        if event.exit is None:
            return 200, "", request.shared["claude_identity"]
        return event.exit.status, event.exit.body["message"], {}

    return asked


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_token_passes_and_becomes_what_the_page_says(ask: Any, providers: str, example: Example) -> None:
    status, message, identity = ask(example)
    assert (status, message) == (200, "")
    assert [identity["sub"]] == [moved(name, providers) for name in example.named("subject")]
    assert [identity[name] for name in ("tier",) if name in identity] == example.named("tier")
    assert identity.get("roles", []) == example.named("roles")
    allowed, refused = example.repositories
    # Where the page says "any", the header is not looked at.
    for repository in allowed or ["what/ever"]:
        assert ask(example, **{"x-repo": repository})[0] == 200
    for repository in refused:
        assert ask(example, **{"x-repo": repository})[:2] == (403, "the token does not allow this repository")
    assert bool(allowed) == bool(refused) == ("repo_claim" in yaml.safe_load(example.configuration))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_other_token_is_refused_for_the_reason_that_the_page_names(ask: Any, example: Example) -> None:
    assert ask(example, example.different)[:2] == (example.status, example.refusal)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_control_where_nothing_is_asked_of_it_it_passes(ask: Any, example: Example) -> None:
    """It is a valid token, which only the page's configuration keeps out."""
    assert ask(example, example.different, let_in=True)[:2] == (200, "")


def in_kong_yml(block: str) -> str:
    text, times = BLOCK.subn(lambda _: textwrap.indent(block, "      "), KONG_YML.read_text())
    assert times == 1
    return text


def openings(text: str, folder: Path) -> list[str]:
    """What the doctor finds in a Kong as compose starts it, its port published to all the world."""
    path = folder / "kong.yml"
    path.write_text(text)
    environment = environment_of_compose(folder) | {
        "CLAUDE_PUBLISHED_ON": "0.0.0.0",
        "CLUSTER_JWKS": json.dumps(key_set()),
    }
    seen = view.from_file(path, environment)
    return [opening.rule for opening in (*rules.examine(seen), *probe.configurations(seen, PLUGINS))]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_its_block_has_its_place_in_kong_yml(example: Example, tmp_path: Path) -> None:
    """All routes take it, Kong's schema takes it, and the doctor finds nothing."""
    text = in_kong_yml(example.configuration)
    assert openings(text, tmp_path) == []
    assert "kong-claude-dev" not in text
    layout = stack.Layout(tmp_path / "kong.yml", PLUGINS, state=tmp_path, run=tmp_path, secrets=SECRETS)
    assert list(configuration.refused_by_kong(layout)) == []
    block = yaml.safe_load(example.configuration)
    taken = [
        {name: value for name, value in plugin["config"].get("jwt_claims", plugin["config"]).items() if name in block}
        for service in yaml.safe_load(text)["services"]
        for route in service["routes"]
        for plugin in route["plugins"]
        if plugin["name"] in ("claude-gateway", "claude-jwt-claims")
    ]
    assert len(taken) > 8
    own_rule = {**block, "rules": [{"claim": "roles", "any_of": ["admin"]}]}
    assert [one for one in taken if one != block] == [own_rule], "the route of the metrics alone has a rule of its own"


SECRETS = {"jwt-secret": "x" * 48, "attestation-key": probe.PLACEHOLDER_KEY, "webhook-secret": "y" * 48}


def test_control_of_the_doctor_and_the_schema(tmp_path: Path) -> None:
    """kong.yml as it comes has what the doctor names here, and a field that is none is told."""
    assert openings(KONG_YML.read_text(), tmp_path) == ["development-issuer"]
    block = EXAMPLES[0].configuration
    (tmp_path / "kong.yml").write_text(in_kong_yml(block.replace("rules:", "rule:")))
    layout = stack.Layout(tmp_path / "kong.yml", PLUGINS, state=tmp_path, run=tmp_path, secrets=SECRETS)
    assert [problem.partition("jwt_claims.")[2] for problem in configuration.refused_by_kong(layout)] == [
        "rule (plugin claude-gateway): unknown field"
    ]


def test_the_doctor_sends_to_these_pages(tmp_path: Path) -> None:
    """The way that it names is there."""
    environment = environment_of_compose(tmp_path) | {"CLAUDE_PUBLISHED_ON": "0.0.0.0"}
    (opening,) = rules.examine(view.from_file(KONG_YML, environment))
    (named,) = re.findall(r"docs/\S+?(?=[),])", opening.fix)
    assert (KONG_YML.parent / named / "README.md").samefile(FOLDER / "README.md")


def test_every_page_is_an_example_and_listed() -> None:
    assert {page.stem for page in PAGES} == {
        "auth0", "cognito", "entra", "github-actions", "google", "keycloak", "kubernetes", "okta",
    }  # fmt: skip
    first = (FOLDER / "README.md").read_text()
    for page in PAGES:
        assert f"]({page.name})" in first
        assert len(examples(page)) == len(CONFIGURATION.findall(page.read_text())) >= 1
        assert len(re.findall("^```json", page.read_text(), re.MULTILINE)) == 2 * len(examples(page))
    assert len(kids()) == len(set(kids())) == len(EXAMPLES)
