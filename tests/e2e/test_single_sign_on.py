"""Single sign-on, walked: Chromium, the edge (nginx with TLS), the real oauth2-proxy, the gateway, the invoker, and a
provider of OpenID Connect, with the files of deploy/ as they ship, but for addresses and the kind of provider.

No package registry carries oauth2-proxy: it is the one of PATH, or the one that the variable OAUTH2_PROXY names.
"""

from __future__ import annotations

import base64
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from tests.deploy.test_nginx_edge import Behind
from tests.e2e.conftest import ROOT, Gateway, standing
from tests.support import oidc
from tests.support.edge import edge_before
from tests.support.ports import free_port
from tests.support.waiting import HANG_S, wait_for

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
OAUTH2_PROXY = os.environ.get("OAUTH2_PROXY") or shutil.which("oauth2-proxy") or ""
pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect  # noqa: E402
from playwright.sync_api import Error as PlaywrightError  # noqa: E402

from tests.e2e.test_dashboard import chromium as chromium  # noqa: E402

expect.set_options(timeout=HANG_S * 1000)

pytestmark = [
    pytest.mark.xdist_group("single-sign-on"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(not OAUTH2_PROXY, reason="there is no oauth2-proxy on PATH, nor does OAUTH2_PROXY name one"),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]
FOLDER = ROOT / "deploy" / "oauth2-proxy"
IN_A_CLUSTER = ROOT / "deploy" / "kubernetes" / "options" / "single-sign-on" / "oauth2-proxy.yaml"
HOME = "/claude/dashboard"
PROMPT = "[[delay 200]] [[say " + " ".join(f"word{n}" for n in range(2000)) + "]]"


def configured(provider: oidc.Provider) -> str:
    """kong.yml after what docs/deploy.md tells an admin to do."""
    section = (FOLDER / "kong-route.yml").read_text()
    section = section.replace("https://login.microsoftonline.com/TENANT-ID/v2.0", provider.url)
    section = section.replace("# email_domains:", "email_domains:")
    section = section.replace("discovery: true", "discovery: true\n  allow_insecure_jwks: true")
    text = (ROOT / "kong.yml").read_text()
    before, _, rest = text.partition("      issuers:\n")
    dropped, last, after = rest.partition('      rules: [{claim: roles, any_of: ["claude:invoke"]}]\n')
    assert dropped.count("\n") == 3 and last, "kong.yml has other lines there"
    cookie = ", cookie_names: [claude_token]"
    assert after.count(cookie) == 1
    indented = "".join(f"      {line}\n" for line in section.splitlines() if not line.startswith("#"))
    return before + indented + after.replace(cookie, "")


@dataclass
class Door:
    """By which people come in: the edge, with oauth2-proxy behind it."""

    url: str
    """Of the edge."""
    proxy: str
    """Of oauth2-proxy itself: the way of those who have an edge of their own, and send all of `/` there."""
    log: Path

    def api(self, token: str | None = None, *, through: str | None = None, **headers: str) -> httpx.Client:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=through or self.url, headers=given | headers, verify=False, timeout=HANG_S)


@contextmanager
def door_before(
    upstream: str, provider: oidc.Provider, folder: Path, *flags: str, port: int | None = None
) -> Iterator[Door]:
    port, public = port or free_port(), free_port()
    provider.callbacks += (f"https://localhost:{public}/oauth2/callback",)
    given = {
        "--http-address": f"127.0.0.1:{port}",
        "--upstream": upstream,
        "--redirect-url": provider.callbacks[-1],
        "--provider": "oidc",
        "--oidc-issuer-url": provider.url,
        "--trusted-proxy-ip": "127.0.0.1",
    }
    command = [OAUTH2_PROXY, "--config", str(FOLDER / "oauth2-proxy.cfg")]
    command += [word for pair in given.items() for word in pair]
    makes_a_secret = re.search(r"COOKIE_SECRET \(`(openssl [^`]+)`", (FOLDER / "oauth2-proxy.cfg").read_text())
    assert makes_a_secret is not None
    secret = subprocess.run(makes_a_secret[1], shell=True, capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        "PATH": os.environ["PATH"],
        "OAUTH2_PROXY_CLIENT_ID": oidc.CLIENT,
        "OAUTH2_PROXY_CLIENT_SECRET": oidc.SECRET,
        "OAUTH2_PROXY_COOKIE_SECRET": secret,
    }
    also = (FOLDER / "edge.conf").read_text()
    assert also.count("http://oauth2-proxy:4180") == 3
    log = folder / "oauth2-proxy.log"
    with log.open("w") as written:
        process = subprocess.Popen([*command, *flags], env=environment, stdout=written, stderr=written)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, what="oauth2-proxy")
        also = also.replace("http://oauth2-proxy:4180", f"http://127.0.0.1:{port}")
        # A browser that a test drives asks more often than a person.
        faster = {"rate=10r/s": "rate=1000r/s"}
        with edge_before(upstream.removeprefix("http://"), folder, public, faster, also):
            yield Door(f"https://localhost:{public}", f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(HANG_S)


@pytest.fixture(scope="module")
def provider() -> Iterator[oidc.Provider]:
    with oidc.running(oidc.Provider()) as running:
        for name in ("alice", "carol"):
            running.person(name)
        running.person("bob", roles=["other"])
        running.person("mallory", email="mallory@evil.example")
        yield running


@pytest.fixture(scope="module")
def behind_kong() -> int:
    """The port of an oauth2-proxy to which Kong itself sends people, as in deploy/kubernetes/options/single-sign-on."""
    return free_port()


@pytest.fixture(scope="module")
def gateway(provider: oidc.Provider, behind_kong: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("sso")
    found = {r["kind"]: r for r in yaml.safe_load_all(IN_A_CLUSTER.read_text())}
    (rule,) = found["Ingress"]["spec"]["rules"]
    route = {
        "name": "people",
        "hosts": [rule["host"]],
        "paths": [path["path"] for path in rule["http"]["paths"]],
        "strip_path": False,
        "preserve_host": True,
        "response_buffering": False,
    }
    service = {"name": "oauth2-proxy", "url": f"http://127.0.0.1:{behind_kong}", "routes": [route]}
    (home / "kong.yml").write_text(configured(provider) + yaml.safe_dump([service]))
    with standing(home, config=home / "kong.yml", INVOKER_SINGLE_SIGN_ON="/oauth2") as running:
        yield running


@pytest.fixture(scope="module")
def door(gateway: Gateway, provider: oidc.Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with door_before(gateway.url, provider, tmp_path_factory.mktemp("door")) as found:
        yield found


@contextmanager
def browsing(chromium: Browser, url: str) -> Iterator[Page]:
    context = chromium.new_context(base_url=url, ignore_https_errors=True)
    context.set_default_timeout(HANG_S * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(chromium: Browser, door: Door) -> Iterator[Page]:
    with browsing(chromium, door.url) as opened:
        yield opened


def log_in(page: Page, name: str, path: str = HOME) -> Response:
    """Opens a page, and does at the provider what a person does there. What the browser got in the end.

    Chromium gives requests up when an interface of this machine comes or goes, as with the network of a run.
    """
    while True:
        try:
            page.goto(path)
            return at_the_provider(page, name)
        except PlaywrightError as error:
            if "ERR_NETWORK_CHANGED" not in str(error):
                raise
            page.context.clear_cookies()


def at_the_provider(page: Page, name: str) -> Response:
    page.get_by_label("Name").fill(name)
    with page.expect_navigation() as landing:
        page.get_by_role("button", name="Go on").click()
    assert landing.value is not None
    return landing.value


def path_of(page: Page) -> str:
    return urlsplit(page.url).path


def cookies(context: BrowserContext) -> set[str]:
    return {str(cookie.get("name")) for cookie in context.cookies()}


def submit(door: Door, provider: oidc.Provider, name: str) -> str:
    with door.api(provider.id_token(name)) as client:
        answer = client.post("/claude/jobs", json={"prompt": PROMPT})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_somebody_works_without_ever_seeing_a_token(page: Page, door: Door, provider: oidc.Provider) -> None:
    job = submit(door, provider, "alice")
    address = f"{HOME}/jobs/{job}"
    assert log_in(page, "alice", address).status == 200
    assert path_of(page) == address  # where she wanted to go
    # Live, through all three: what has come is not all that comes.
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#output")).to_contain_text("word3 ")
    expect(page.locator("#state")).to_have_text("running")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    assert path_of(page) == address
    # Another one's is not hers.
    other = submit(door, provider, "carol")
    answer = page.goto(f"{HOME}/jobs/{other}")
    assert answer is not None and answer.status == 404
    with door.api(provider.id_token("carol")) as client:
        assert client.delete(f"/claude/jobs/{other}").status_code < 300
    assert cookies(page.context) == {"person", "__Host-claude"}


def test_who_logs_out_is_out(page: Page, provider: oidc.Provider) -> None:
    log_in(page, "alice")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"**{HOME}/login")
    assert "__Host-claude" not in cookies(page.context)
    expect(page.get_by_label("Access token")).to_have_count(0)
    # And in again, by the provider, which still knows who this is.
    page.get_by_role("link", name="Log in").click()
    page.wait_for_url(f"**{HOME}")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"**{HOME}/login")
    page.goto(f"{provider.url}/logout?post_logout_redirect_uri={provider.callbacks[0].partition('/oauth2')[0]}{HOME}")
    assert page.url.startswith(f"{provider.url}/authorize?")
    assert at_the_provider(page, "carol").status == 200


def test_without_the_role_there_is_a_page_that_says_what_to_do(page: Page) -> None:
    answer = log_in(page, "bob")
    assert (answer.status, path_of(page)) == (403, HOME)
    expect(page.get_by_role("heading")).to_have_text("This account may not do that")
    expect(page.locator("main")).to_contain_text("roles must hold one of: claude:invoke")
    page.get_by_role("link", name="Log in again").click()
    page.wait_for_url(f"**{HOME}/login")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"**{HOME}/login")
    assert "__Host-claude" not in cookies(page.context)


def test_another_domain_is_refused_by_the_proxy(page: Page) -> None:
    answer = log_in(page, "mallory")
    assert (answer.status, path_of(page)) == (403, "/oauth2/callback")
    assert "__Host-claude" not in cookies(page.context)


def test_a_session_is_refreshed_until_the_provider_ends_it(
    chromium: Browser, gateway: Gateway, provider: oidc.Provider, tmp_path: Path
) -> None:
    with door_before(gateway.url, provider, tmp_path, "--cookie-refresh", "1s") as door:
        with browsing(chromium, door.url) as page:
            log_in(page, "alice")
            before = provider.grants.count("refresh_token")

            def refreshed() -> bool:
                answer = page.reload()
                assert answer is not None and (answer.status, path_of(page)) == (200, HOME)
                return provider.grants.count("refresh_token") > before

            wait_for(refreshed, what="a refresh")
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            # Gone at the provider: the session there and its refresh token. What is open says so, and a page asks again.
            provider.refresh.clear()
            page.context.clear_cookies(name="person")
            wait_for(lambda: page.goto(HOME) is not None and page.url.startswith(f"{provider.url}/authorize?"))
            assert at_the_provider(page, "alice").status == 200


def test_buttons_and_updates_of_a_page_whose_session_is_over_say_so(
    page: Page, door: Door, provider: oidc.Provider
) -> None:
    """A redirect to the provider would be forbidden to both by the pages' policy, without a word."""
    job = submit(door, provider, "alice")
    log_in(page, "alice", f"{HOME}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    page.context.clear_cookies()
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_url(f"**{HOME}/login")
    # An update that begins now is told so, and does not try for ever.
    with door.api() as nobody:
        for path in (f"{HOME}/live", f"{HOME}/jobs/{job}/live"):
            assert nobody.get(path, headers={"Accept": "text/event-stream"}).status_code == 401
    with door.api(provider.id_token("alice")) as client:
        assert client.get(f"/claude/jobs/{job}").json()["state"] in ("queued", "running")
        assert client.delete(f"/claude/jobs/{job}").status_code < 300


def bearer(provider: oidc.Provider) -> dict[str, tuple[str, int, int]]:
    """What is wrong with a token → the token, what the gateway says, what oauth2-proxy lets become of it."""
    stranger = oidc.Provider(url=provider.url, people=provider.people)
    long_ago = provider.id_token("alice", exp=1_700_000_000, iat=1_699_999_000)
    good = provider.id_token("alice")
    return {
        "nothing": (good, 200, 200),
        "a foreign key": (stranger.id_token("alice"), 401, 401),
        "a foreign issuer": (provider.id_token("alice", iss="https://evil.example"), 401, 401),
        "another client's": (provider.id_token("alice", aud="another-client"), 401, 401),
        "expired": (long_ago, 401, 401),
        "cut": (good[:-8], 401, 401),
        "none": (unsigned(good), 401, 401),
        "no role": (provider.id_token("bob"), 403, 403),
        "another domain": (provider.id_token("mallory"), 403, 403),
        "unverified": (provider.id_token("alice", email_verified=False), 403, 401),
    }


def unsigned(token: str) -> str:
    return base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=") + f".{token.split('.')[1]}."


def test_programs_come_by_their_tokens_and_by_nothing_else(door: Door, provider: oidc.Provider) -> None:
    for what, (token, at_kong, by_proxy) in bearer(provider).items():
        with door.api(token) as client, door.api(token, through=door.proxy) as through:
            assert client.get("/claude/jobs").status_code == at_kong, what
            answer = through.get("/claude/jobs")
            assert answer.status_code == by_proxy, what
            if by_proxy == 401:
                assert answer.headers["content-type"].startswith("application/json"), what
            # No page of the dashboard without a session either: the provider is asked.
            assert (client.get(HOME).status_code == 200) == (at_kong == 200), what
    good = provider.id_token("alice")
    with door.api() as nobody, door.api(through=door.proxy) as through:
        assert nobody.get("/claude/jobs").status_code == 401
        assert through.get("/claude/jobs").status_code == 401
        # Other places of a token are the gateway's: at its own door good, at the proxy's not.
        assert nobody.get("/claude/jobs", headers={"X-Api-Key": good}).status_code == 200
        assert through.get("/claude/jobs", headers={"X-Api-Key": good}).status_code == 401


def test_what_somebody_sends_besides_a_session_changes_nothing(page: Page, door: Door, provider: oidc.Provider) -> None:
    log_in(page, "alice")
    session = {str(cookie.get("name")): str(cookie.get("value")) for cookie in page.context.cookies()}["__Host-claude"]
    stranger = oidc.Provider(url=provider.url, people=provider.people)
    mine, carols = submit(door, provider, "alice"), submit(door, provider, "carol")
    foreign: list[dict[str, str]] = [
        {},
        {"Authorization": f"Bearer {stranger.id_token('carol', roles=['claude:invoke', 'admin'])}"},
        {"Authorization": "Bearer junk"},
        {"Authorization": "Basic Y2Fyb2w6eA=="},
        {"X-Forwarded-User": "carol", "X-Forwarded-Email": "carol@example.com", "X-Auth-Request-User": "carol"},
        {"X-Forwarded-Access-Token": provider.id_token("carol"), "X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-Uri": f"{HOME}/login"},
        {"X-Claude-Attestation": "forged"},
    ]
    # What the dashboard's login kept before people came by single sign-on.
    kept = f"__Host-claude={session}; claude_token={provider.id_token('carol')}"
    for through in (door.url, door.proxy):
        for more in foreign:
            with door.api(through=through, Cookie=kept, **more) as client:
                found = client.get(f"{HOME}/jobs/{mine}"), client.get(f"{HOME}/jobs/{carols}")
                assert [answer.status_code for answer in found] == [200, 404], (through, more)
    # Of two good tokens neither is chosen: a good one of somebody else goes before the session, as whose it is.
    with door.api(provider.id_token("carol"), Cookie=f"__Host-claude={session}") as client:
        assert client.get(f"{HOME}/jobs/{carols}").status_code == 200
    # A stolen page cannot be made to press a button here: it is not of ours.
    for site in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}):
        with door.api(Cookie=f"__Host-claude={session}", **site) as client:
            assert client.post(f"{HOME}/jobs/{mine}/cancel").status_code == 403
    with door.api(Cookie=f"__Host-claude={session}", Origin=door.url) as client:
        assert client.post(f"{HOME}/jobs/{mine}/cancel").status_code == 303
    with door.api(provider.id_token("carol")) as client:
        assert client.delete(f"/claude/jobs/{carols}").status_code < 300


def test_what_reaches_kong_is_the_token_and_the_edges_word(provider: oidc.Provider, tmp_path: Path) -> None:
    kong = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=kong.serve_forever, daemon=True).start()
    forged = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-User": "carol",
        "X-Forwarded-Email": "carol@example.com",
    }
    token = provider.id_token("alice")
    with door_before(f"http://127.0.0.1:{kong.server_port}", provider, tmp_path) as door, door.api(token) as client:
        seen = client.get(HOME, headers=forged).json()
    kong.shutdown()
    kong.server_close()
    assert seen["authorization"] == f"Bearer {token}"
    assert (seen["x-forwarded-host"], seen["x-forwarded-proto"]) == ("localhost", "https")
    assert seen["x-forwarded-for"] == "127.0.0.1, 127.0.0.1"  # the person's as the edge sees it, then the edge's
    assert "alice" not in str({name: value for name, value in seen.items() if name != "authorization"})


def test_in_a_cluster_kong_sends_people_there_and_is_asked_by_another_name(
    gateway: Gateway, provider: oidc.Provider, behind_kong: int, tmp_path: Path
) -> None:
    """Kong, oauth2-proxy, Kong: by the public name the one route, by Kong's own the dashboard's."""
    people = {"Host": "claude.example.com"}
    with door_before(gateway.url, provider, tmp_path, "--pass-host-header=false", port=behind_kong):
        with httpx.Client(base_url=gateway.url, headers=people, timeout=HANG_S) as client:
            asked = client.get(HOME)
            assert asked.status_code == 302 and asked.headers["location"].startswith(f"{provider.url}/authorize?")
            assert client.head(HOME).status_code == 302 and client.head("/claude/jobs").status_code == 401  # `curl -I`
            assert client.get(f"{HOME}/login").status_code == 200
            assert client.get("/claude/jobs").status_code == 401  # Kong's own route, as ever
            token = {"Authorization": f"Bearer {provider.id_token('alice')}"}
            page = client.get(HOME, headers=token)
            assert page.status_code == 200 and "Overview" in page.text
            assert client.get("/claude/jobs", headers=token).status_code == 200
            cross = client.post(f"{HOME}/login/out", headers={"Sec-Fetch-Site": "cross-site"})
            assert cross.status_code == 403
            out = client.post(f"{HOME}/login/out", headers={"Sec-Fetch-Site": "same-origin"})
            assert out.headers["location"].startswith("/oauth2/sign_out?")


def test_who_comes_to_the_gateway_itself_is_led_to_the_login(chromium: Browser, gateway: Gateway) -> None:
    with browsing(chromium, gateway.url) as page:
        answer = page.goto(HOME)
        assert answer is not None and answer.status == 401
        expect(page.get_by_role("heading")).to_have_text("Log in first")
        page.get_by_role("link", name="Log in").click()
        page.wait_for_url(f"**{HOME}/login")
        start = page.get_by_role("link", name="Log in").get_attribute("href")
        assert start == "/oauth2/start?rd=%2Fclaude%2Fdashboard"


def test_no_log_has_codes_or_tokens(page: Page, door: Door) -> None:
    log_in(page, "alice")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    said = door.log.read_text()
    assert "[AuthSuccess]" in said
    assert not re.search(r"code=|state=|eyJ", said)
