"""`login`, `token --helper` and `logout` against a real authorization server, as processes where they may meet."""

from __future__ import annotations

import contextlib
import json
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kong_claude.cli.main import main
from kong_claude.login import device, fresh, kept, tokens
from kong_claude.login import issuer as issuer_module
from kong_claude.login.issuer import Refused, Unreachable, discover, printable, send
from kong_claude.problem import Problem
from tests.support import oauth
from tests.support.oauth import CLIENT, CONFIDENTIAL, SECRET, Issuer
from tests.support.waiting import HANG_S, wait_for

COMMAND = str(Path(sys.executable).parent / "kong-claude")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # loopback is never asked by a proxy
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    return tmp_path / "kong-claude" / "logins"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with oauth.running() as found:
        yield found


Log = Callable[..., str]


@pytest.fixture
def log_in(issuer: Issuer, capsys: pytest.CaptureFixture[str]) -> Log:
    """log_in(*options) → what was printed, on stdout or (where it failed) stderr."""

    def run(*options: str, client: str = CLIENT) -> str:
        code = main(["login", "--issuer", issuer.url, "--client-id", client, *options])
        printed = capsys.readouterr()
        assert (code, bool(printed.err)) in ((0, False), (1, True)), printed
        return printed.err if code else printed.out

    return run


@pytest.fixture
def helper(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """helper(*options) → stdout and stderr, of which one is empty."""

    def run(*options: str) -> tuple[str, str]:
        code = main(["token", "--helper", *options])
        printed = capsys.readouterr()
        assert code == (0 if printed.out else 1) and bool(printed.out) != bool(printed.err)
        return printed.out, printed.err

    return run


Helper = Callable[..., tuple[str, str]]


def only() -> str:
    (name,) = kept.names()
    return name


def aged(by_s: float) -> None:
    """The kept token becomes older."""
    login = kept.read(only())
    with kept.locked(), kept.replacing(only()) as put:
        put(replace(login, since=login.since - by_s))


def test_a_login_its_tokens_and_its_end(issuer: Issuer, own_home: Path, log_in: Log, helper: Helper) -> None:
    issuer.first_errors = ["authorization_pending", "authorization_pending"]
    printed = log_in()
    assert f"Open {issuer.url}/activate in a browser and enter the code {issuer.user_code}\n" in printed
    assert f"or open {issuer.url}/activate?user_code={issuer.user_code} " in printed
    assert "Logged in as alice" in printed
    assert issuer.grants("device_code") == 3
    (file,) = own_home.glob("*.json")
    assert (stat.S_IMODE(own_home.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    assert sorted(path.name for path in own_home.iterdir()) == [".lock", file.name]

    first, _ = helper()
    claims = jwt.decode(first.removesuffix("\n"), options={"verify_signature": False})
    assert (claims["iss"], claims["sub"], claims["aud"]) == (issuer.url, "alice", oauth.AUDIENCE)
    assert helper()[0] == first and issuer.grants("refresh_token") == 0
    aged(3500)
    second, _ = helper()
    assert second != first and issuer.grants("refresh_token") == 1
    assert helper()[0] == second and issuer.grants("refresh_token") == 1
    # Each refresh token is good once; the newest is the one that was kept.
    aged(3500)
    assert helper()[0] not in (first, second)

    last = kept.read(only()).refresh_token
    assert last and last not in printed
    assert main(["logout"]) == 0
    assert issuer.asked[-1] == (
        "/revoke",
        {"client_id": CLIENT, "token": last, "token_type_hint": "refresh_token"},
    )
    assert not list(own_home.glob("*.json"))
    with pytest.raises(Refused):
        send(f"{issuer.url}/token", {"client_id": CLIENT, "grant_type": "refresh_token", "refresh_token": last})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"agrees": False}, "the login was refused at the issuer"),
        ({"expired": True}, "nobody has entered the code in time"),
        ({"document": {"device_authorization_endpoint": None}}, "offers no device authorization"),
        ({"document": {"issuer": "https://elsewhere.example"}}, "calls itself https://elsewhere.example"),
        ({"document": {"token_endpoint": "http://elsewhere.example/token"}}, "must begin with https://"),
        ({"document": {"token_endpoint": "https://a@elsewhere.example/token"}}, "is no address"),
        ({"document": {"token_endpoint": None}}, "has no token endpoint"),
        ({"document": {"device_authorization_endpoint": ["x"]}}, "is no address"),
        ({"document": {"device_authorization_endpoint": "file:///etc/passwd"}}, "is no address"),
    ],
)
def test_a_login_that_comes_to_nothing_says_why(
    settings: dict[str, Any], said: str, issuer: Issuer, log_in: Log, own_home: Path
) -> None:
    for name, value in settings.items():
        setattr(issuer, name, value)
    assert said in log_in()
    assert not list(own_home.glob("*.json"))


def test_slow_down_and_an_issuer_that_is_away_for_a_while(
    issuer: Issuer, log_in: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kong_claude.login.device.time", _Clock(pauses))
    issuer.first_errors = ["authorization_pending", "slow_down", "authorization_pending"]
    issuer.broken = 2
    assert "Logged in" in log_in()
    # Twice as long while nobody answers (RFC 8628 section 3.5), five seconds more when told to.
    assert pauses == [1, 2, 4, 4, 9, 9]


class _Clock:
    """No time passes but by sleeping."""

    def __init__(self, pauses: list[float]) -> None:
        self.pauses = pauses

    def monotonic(self) -> float:
        return sum(self.pauses)

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)


def test_nobody_waits_longer_than_the_code_is_good(
    issuer: Issuer, log_in: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kong_claude.login.device.time", _Clock(pauses))
    issuer.agrees = None
    issuer.interval = 100
    assert "nobody has entered the code in time" in log_in()
    assert 1800 <= sum(pauses) <= 1900


def test_a_client_with_a_secret_and_an_id_token(issuer: Issuer, log_in: Log, helper: Helper, tmp_path: Path) -> None:
    """As Google wants it."""
    assert "invalid_client" in log_in(client=CONFIDENTIAL)
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o644)
    assert "chmod 0400" in log_in("--client-secret-file", str(file), client=CONFIDENTIAL)
    file.chmod(0o600)
    assert "Logged in" in log_in("--client-secret-file", str(file), "--id-token", client=CONFIDENTIAL)
    file.unlink()
    aged(3500)
    claims = jwt.decode(helper()[0].strip(), options={"verify_signature": False})
    assert (claims["aud"], issuer.grants("refresh_token")) == (CONFIDENTIAL, 1)


def test_without_a_refresh_token_a_login_ends_with_its_token(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    issuer.refreshes = False
    assert "no refresh token: it ends in 3600 seconds" in log_in("--name", "short")
    assert helper()[0]
    aged(3601)
    told = helper()[1]
    assert f"kong-claude login --name short --issuer {issuer.url} --client-id {CLIENT} --scope 'openid offline" in told


def test_an_issuer_that_does_not_rotate_has_its_token_kept(issuer: Issuer, helper: Helper, own_home: Path) -> None:
    with oauth.running(rotates=False) as other:
        assert main(["login", "--issuer", other.url, "--client-id", CLIENT]) == 0
        before = kept.read(only()).refresh_token
        aged(3500)
        assert main(["token", "--helper"]) == 0
        assert kept.read(only()).refresh_token == before is not None


def test_while_the_issuer_is_away_what_is_left_of_a_token_is_used(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    log_in()
    first, _ = helper()
    aged(3500)
    issuer.broken = 1
    assert helper() == (first, "")
    aged(101)
    issuer.broken = 1
    assert "/token answers with status 503" in helper()[1]
    # Nothing is lost by it.
    assert helper()[0] not in ("", first)


def test_a_login_that_was_ended_elsewhere_says_what_to_do(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    log_in()
    aged(3601)
    issuer.ended = {0}
    told = helper()[1]
    assert "invalid_grant" in told and "kong-claude login --name" in told
    assert str(kept.read(only()).refresh_token) not in told


# -- at the same time ------------------------------------------------------------------------------------------------

WITHOUT_LOCK = """
import contextlib, sys
from kong_claude.cli.main import main
from kong_claude.login import kept
kept.locked = contextlib.nullcontext
sys.exit(main(["token", "--helper"]))
"""
WITHOUT_MASK = """
import contextlib, sys
from kong_claude.cli.main import main
from kong_claude.login import fresh
fresh._undisturbed = contextlib.nullcontext
sys.exit(main(["token", "--helper"]))
"""


def at_once(command: list[str], times: int, issuer: Issuer, refreshes: int) -> list[tuple[str, str]]:
    """What so many helpers print, the first of which gets its answer when so many have asked the issuer."""
    issuer.answers.clear()
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(times)
    ]
    wait_for(lambda: issuer.grants("refresh_token") == refreshes, what="the helpers to ask")
    issuer.answers.set()
    return [process.communicate(timeout=HANG_S) for process in started]


def test_many_at_once_refresh_once(issuer: Issuer, log_in: Log) -> None:
    log_in()
    aged(3601)
    printed = at_once([COMMAND, "token", "--helper"], 6, issuer, refreshes=1)
    assert {error for _, error in printed} == {""}
    assert len({token for token, _ in printed}) == 1
    assert (issuer.grants("refresh_token"), issuer.ended) == (1, set())


@pytest.mark.slow
def test_control_without_the_lock_an_old_refresh_token_is_sent(issuer: Issuer, log_in: Log) -> None:
    log_in()
    aged(3601)
    at_once([sys.executable, "-c", WITHOUT_LOCK], 2, issuer, refreshes=2)
    sent = [form["refresh_token"] for _, form in issuer.asked if "refresh_token" in form]
    assert len(sent) == 2 and len(set(sent)) == 1


def interrupted(command: list[str], issuer: Issuer, *, obeys: bool) -> None:
    """A helper gets Ctrl-C while the issuer makes the next refresh token. `obeys`: it ends before that is made."""
    issuer.answers.clear()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: issuer.grants("refresh_token") == 1, what="the helper to ask")
    process.send_signal(signal.SIGINT)
    if obeys:
        process.wait(HANG_S)
    issuer.answers.set()
    process.wait(HANG_S)
    wait_for(lambda: any(token.used for token in issuer.refresh.values()), what="the next refresh token")


def test_an_interrupt_does_not_lose_the_next_refresh_token(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    log_in()
    aged(3601)
    interrupted([COMMAND, "token", "--helper"], issuer, obeys=False)
    aged(3601)
    assert helper()[0]


@pytest.mark.slow
def test_control_an_interrupt_that_is_obeyed_at_once_loses_it(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    log_in()
    aged(3601)
    interrupted([sys.executable, "-c", WITHOUT_MASK], issuer, obeys=True)
    assert "invalid_grant" in helper()[1]


def test_what_cannot_be_kept_is_not_fetched(issuer: Issuer, log_in: Log, helper: Helper, own_home: Path) -> None:
    log_in()
    aged(3601)
    in_the_way = own_home / f"{only()}.new"
    in_the_way.mkdir()
    assert "cannot be written" in helper()[1]
    assert issuer.grants("refresh_token") == 0
    in_the_way.rmdir()
    assert helper()[0]


# -- files -----------------------------------------------------------------------------------------------------------


def test_what_others_could_read_or_change_is_not_used(
    issuer: Issuer, log_in: Log, helper: Helper, own_home: Path
) -> None:
    log_in()
    (file,) = own_home.glob("*.json")
    file.chmod(0o644)
    assert "chmod 0400" in helper()[1]
    file.chmod(0o600)
    own_home.chmod(0o755)
    assert "chmod 0700" in helper()[1]
    own_home.chmod(0o700)
    assert helper()[0]
    file.write_text("[]")
    assert "kong-claude logout --name" in helper()[1]
    assert main(["logout"]) == 1 and not file.exists()


def test_several_logins_are_told_apart_by_name(issuer: Issuer, log_in: Log, helper: Helper) -> None:
    assert "nobody is logged in" in helper()[1]
    log_in("--name", "work")
    log_in("--name", "other")
    assert "--name one of them: other, work" in helper()[1]
    assert helper("--name", "work")[0] != helper("--name", "other")[0]
    assert "there is no login third" in helper("--name", "third")[1]
    assert "choose another --name" in log_in("--name", "work", client=CONFIDENTIAL)
    # The same again replaces it.
    assert "Logged in" in log_in("--name", "work")
    for name in ("../work", "", ".x", "a/b", "x" * 101, "a b"):
        assert "--name is of letters" in log_in("--name", name) or name == ""
    assert kept.names() == sorted({"other", "work", kept.default_name(issuer.url)})


def test_the_command_for_once_more_has_all_that_was_given_and_no_secret() -> None:
    login = kept.Login("https://i.example/", "c", SECRET, "openid a b", "https://a.example", True, "t", 0, 1, "r")
    assert kept.command("work", login) == (
        "kong-claude login --name work --issuer https://i.example/ --client-id c --scope 'openid a b' "
        "--audience https://a.example --id-token --client-secret-file FILE"
    )


@pytest.mark.parametrize(
    ("issuer_url", "name"),
    [
        ("https://sso.example.com/realms/acme", "sso.example.com"),
        ("http://127.0.0.1:8080", "127.0.0.1-8080"),
        ("http://[::1]:8080/x", "1-8080"),
        ("https://", "default"),
    ],
)
def test_the_name_of_a_login_by_default(issuer_url: str, name: str) -> None:
    assert kept.default_name(issuer_url) == name


@pytest.mark.parametrize(
    "address",
    [
        "http://sso.example.com",
        "https://",
        "ftp://x",
        "x",
        "https://a\x1b[2J",
        "https://[",
        "https://x:y",
        "https://a#b",
        "http://127.0.0.1.example.com",
        "http://localhost@example.com",
    ],
)
def test_only_https_or_this_machine(address: str) -> None:
    with pytest.raises(Problem) as refused:
        discover(address)
    assert "--issuer" in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--sub NAME makes one for development"),
        (["--helper", "--sub", "bob"], "leave out --sub"),
        (["--name", "work", "--sub", "bob"], "--sub NAME makes one for development"),
    ],
)
def test_the_two_kinds_of_token_are_not_confused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == ""


# -- an issuer that answers anything ---------------------------------------------------------------------------------


class _Says(BaseHTTPRequestHandler):
    status: int = 200
    body: bytes = b""
    asked: list[str]

    def do_POST(self) -> None:
        type(self).asked.append(self.path)
        form = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        body = self.body.replace(b"<form>", form)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def says() -> Iterator[tuple[type[_Says], str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Says)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    _Says.asked = []
    yield _Says, f"http://127.0.0.1:{server.server_port}/token"
    server.shutdown()
    thread.join()
    server.server_close()


HIDDEN = "a-refresh-token-of-somebody"


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (400, b'{"error":"invalid_grant"}', Refused, "invalid_grant"),
        (400, b'{"error":"invalid_grant","error_description":"AADSTS70043: expired"}', Refused, "AADSTS70043: expired"),
        (400, b'{"error":"x","error_description":"a\\u001b[2Jb\\r\\nc"}', Refused, "x: a [2Jb c"),
        (400, b'{"error":"x","error_description":"<form> is used"}', Refused, "x"),
        (400, b'{"error":["x"]}', Unreachable, "status 400"),
        (400, b"[]", Unreachable, "no JSON object"),
        (200, b"[]", Unreachable, "no JSON object"),
        (200, b"{", Unreachable, "no JSON object"),
        (200, b"[" * 100_000, Unreachable, "no JSON object"),
        (200, b'"\xff"', Unreachable, "no JSON object"),
        (200, b'{"a":"' + b"x" * (2 << 20) + b'"}', Unreachable, "no JSON object"),
        (503, b'{"error":"x"}', Unreachable, "status 503"),
        (302, b"", Unreachable, "status 302"),
        (307, b'{"error":"x"}', Refused, "x"),
    ],
)
def test_whatever_an_issuer_answers(
    says: tuple[type[_Says], str], status: int, body: bytes, kind: type[Problem], said: str
) -> None:
    handler, address = says
    handler.status, handler.body = status, body
    handler.asked.clear()
    with pytest.raises(kind) as refused:
        send(address, {"refresh_token": HIDDEN, "client_id": "cli", "scope": None})
    text = str(refused.value)
    assert said in text and HIDDEN not in text and text.isprintable() and len(text) < 700
    # What was sent was for that address.
    assert handler.asked == ["/token"]


def test_https_goes_through_the_proxy_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline())
            self.wfile.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        for name in ("https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        for address in ("https://sso.example.invalid/realms/acme", "http://127.0.0.1:9"):
            with pytest.raises(Unreachable):
                discover(address)
        monkeypatch.setenv("no_proxy", "sso.example.invalid")
        with pytest.raises(Unreachable):
            discover("https://sso.example.invalid/realms/acme")
        server.shutdown()
        thread.join()
    # The name alone: what is sent goes through it unread.
    assert [line.split()[:2] for line in asked] == [[b"CONNECT", b"sso.example.invalid:443"]]


class _Drips(socketserver.BaseRequestHandler):
    """Says a byte of its head or of its body now and then, for ever."""

    begins: bytes

    def handle(self) -> None:
        self.request.recv(65_536)
        with contextlib.suppress(OSError):
            self.request.sendall(self.begins)
            while True:
                time.sleep(0.05)
                self.request.sendall(b"x")


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_an_issuer_that_answers_byte_by_byte_is_not_waited_for(begins: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its helper would hold the lock of all logins meanwhile, and no signal but SIGKILL would end it."""
    monkeypatch.setattr(issuer_module, "TIMEOUT_S", 1)
    _Drips.begins = begins
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Drips) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/token"
        with pytest.raises(Unreachable, match="has not answered within 1 seconds"):
            send(address, {"client_id": "cli"})
        # The control: a socket's own timeout is none here.

        def unbounded() -> None:
            with contextlib.suppress(Unreachable):
                issuer_module._answer(urllib.request.Request(address))

        waiting = threading.Thread(target=unbounded, daemon=True)
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        server.shutdown()


def test_an_issuer_that_is_not_there() -> None:
    for address in ("http://127.0.0.1:9", "http://127.0.0.1:1"):
        with pytest.raises(Unreachable, match="cannot be asked"):
            discover(address)


@pytest.mark.parametrize(
    "member",
    [
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "http://elsewhere.example/activate"},
        {"verification_uri": "https://a\x1b]0;x\x07.example"},
        {"verification_uri": None},
        {"verification_uri_complete": "https://a.example/ x"},
        {"verification_uri_complete": 1},
        {"user_code": ""},
        {"device_code": None},
    ],
)
def test_what_a_person_is_told_to_open_is_an_address(says: tuple[type[_Says], str], member: dict[str, Any]) -> None:
    good = {"device_code": "d", "user_code": "A\x1b[2JB", "verification_uri": "https://a.example/activate"}
    handler, address = says
    handler.status, handler.body = 200, json.dumps(good).encode()
    assert device.ask(address, {"client_id": "c"}, "openid", None).user_code == "A [2JB"
    handler.body = json.dumps({**good, **member}).encode()
    with pytest.raises(Problem):
        device.ask(address, {"client_id": "c"}, "openid", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), ("900", 900), (0, 1), (-1, 1), (1e99, 86_400), (None, 7), ("x", 7), ([], 7), (float("inf"), 7)],
)
def test_seconds(value: Any, expected: int) -> None:
    assert device.seconds(value, 7) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["access_token", "id_token", "refresh_token", "expires_in"]), json_values),
    json_values,
    json_values,
)
@example(answer={}, issued=1.5, expires=10**400)
def test_no_answer_of_a_token_endpoint_breaks_it(answer: dict[str, Any], issued: Any, expires: Any) -> None:
    with pytest.raises(Problem):
        tokens.read({**answer, "access_token": answer.get("access_token")}, id_token=False)
    claims = {
        name: value
        for name, value in (("iat", issued), ("exp", expires))
        if value is None or isinstance(value, int | float)
    }
    token = jwt.encode(claims, "k" * 32)
    found = tokens.read({**answer, "access_token": token}, id_token=False)
    assert 1 <= found.life_s <= 86_400 and found.refresh != ""


@given(st.text())
def test_what_is_printed_is_one_line_of_letters(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("life_s", "age_s", "due"),
    [
        (3600, 0, False),
        (3600, 3299, False),
        (3600, 3301, True),
        (60, 29, False),
        (60, 31, True),
        (60, 999, True),
        (3600, -10, True),  # the clock was put back: how old the token is nobody knows
    ],
)
def test_when_a_token_is_due(life_s: int, age_s: float, due: bool) -> None:
    now = 1_800_000_000.0
    login = kept.Login("i", "c", None, "openid", None, False, "t", now - age_s, life_s, "r")
    assert fresh.due(login, now) is due
