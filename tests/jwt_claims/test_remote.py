"""Published keys: one fetch at a time, ahead of expiry, stale within bounds, and no traffic for random kids."""

from __future__ import annotations

import gc
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kong_claude.jwt_claims import remote
from kong_claude.jwt_claims.fetch import MAX_DOCUMENT, FetchError, fetch_json
from kong_claude.jwt_claims.jwks import keys_from_issuer
from kong_claude.jwt_claims.keys import KeySet, Unavailable
from kong_claude.jwt_claims.remote import RemoteKeys, allowed, jwks_uri, remote_keys
from tests.jwt_claims.support import jwk
from tests.support.waiting import HANG_S

RS256 = frozenset({"RS256"})


class Issuer:
    """What RemoteKeys loads from, with a hand on its answers, its pace and the clock."""

    def __init__(self) -> None:
        self.names = ["one"]
        self.away = False
        self.more: list[Any] = []  # other entries beside the keys
        self.loads = 0
        self.now = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> KeySet:
        self.loads += 1
        assert self.gate.wait(HANG_S)
        if self.away:
            raise FetchError("away")
        try:
            return keys_from_issuer({"keys": [*self.more, *(jwk("RS256", name) for name in self.names)]}, RS256)
        except ValueError as error:
            raise FetchError(str(error)) from error

    def keys(self, **more: float) -> RemoteKeys:
        times = {"ttl": 100.0, "max_stale": 1000.0, "cooldown": 10.0, "timeout": 2.0, **more}
        return RemoteKeys(self.load, name="idp", clock=lambda: self.now, **times)


def kids(keys: KeySet) -> list[str | None]:
    return [key.kid for key in keys.keys]


def settle(keys: RemoteKeys) -> None:
    """Waits for the running fetch."""
    flight = keys._flight
    if flight is not None:
        assert flight.done.wait(HANG_S)


def test_the_first_use_waits_for_the_keys() -> None:
    issuer = Issuer()
    assert kids(issuer.keys().current()) == ["one"]
    assert issuer.loads == 1


def test_many_at_once_are_one_fetch() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    issuer.gate.clear()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(keys.current())) for _ in range(20)]
    for thread in threads:
        thread.start()
    issuer.gate.set()
    for thread in threads:
        thread.join(HANG_S)
    assert len(found) == 20
    assert issuer.loads == 1


def test_who_asks_while_the_fetch_of_others_ends_begins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    keys = issuer.keys()
    start = keys._start

    def late(*seen: Any) -> Any:
        """What was seen is not there, and is when it is asked for."""
        start(*seen)
        settle(keys)
        return start(*seen)

    monkeypatch.setattr(keys, "_start", late)
    assert kids(keys.current()) == ["one"]
    assert issuer.loads == 1


def test_fetched_in_the_background_before_expiry() -> None:
    issuer = Issuer()
    keys = issuer.keys(timeout=2 * HANG_S)
    first = keys.current()
    issuer.now, issuer.names = 79.0, ["one", "two"]
    assert keys.current() is first
    assert issuer.loads == 1
    issuer.now = 81.0
    issuer.gate.clear()
    opening = threading.Timer(HANG_S / 2, issuer.gate.set)
    opening.start()
    assert keys.current() is first
    assert not issuer.gate.is_set(), "not one request waits for it"
    opening.cancel()
    issuer.gate.set()
    settle(keys)
    assert kids(keys.current()) == ["one", "two"]
    assert issuer.loads == 2


def test_expired_keys_are_fetched_before_they_are_used() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    keys.current()
    issuer.now, issuer.names = 500.0, ["two"]
    assert kids(keys.current()) == ["two"]


def test_the_same_keys_stay_the_same_object() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    issuer.now = 500.0
    assert keys.current() is first
    assert issuer.loads == 2


def test_stale_while_the_issuer_is_away_and_then_no_longer() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    issuer.away = True
    for now in range(80, 1100, 5):
        issuer.now = float(now)
        assert keys.current() is first
        settle(keys)
    assert issuer.loads <= 2 + (1100 - 80) // 10  # one per cool-down, not one per request
    issuer.now = 1100.0
    with pytest.raises(Unavailable):
        keys.current()
    issuer.away = False
    with pytest.raises(Unavailable):  # still resting
        keys.current()
    issuer.now = 1120.0
    assert kids(keys.current()) == ["one"]


def test_away_from_the_start() -> None:
    issuer = Issuer()
    issuer.away = True
    keys = issuer.keys()
    for _ in range(100):
        with pytest.raises(Unavailable):
            keys.current()
    assert issuer.loads == 1
    issuer.away, issuer.now = False, 10.0
    assert kids(keys.current()) == ["one"]


def test_a_hanging_fetch_does_not_stop_requests_nor_later_fetches() -> None:
    issuer = Issuer()
    keys = issuer.keys(timeout=0.05)
    first = keys.current()
    issuer.gate.clear()
    issuer.now = 150.0
    assert keys.current() is first  # waits, then stale
    assert keys.current() is first
    assert issuer.loads == 2
    issuer.now = 151.0  # beyond all time-outs of the hanging one
    assert keys.current() is first
    assert issuer.loads == 3
    issuer.gate.set()


def test_unknown_kids_are_one_fetch_per_cooldown() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    for tenth in range(100):
        issuer.now = tenth / 10
        assert keys.refreshed(first) is first
    assert issuer.loads == 2
    issuer.now, issuer.names = 10.0, ["one", "two"]
    assert kids(keys.refreshed(first)) == ["one", "two"]
    assert issuer.loads == 3


def test_an_unknown_kid_while_the_issuer_is_away_keeps_the_keys() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    issuer.away = True
    assert keys.refreshed(first) is first


def test_an_empty_set_is_a_failed_fetch() -> None:
    """Good keys are not replaced by none: they serve for as long as those of an issuer that is away."""
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    issuer.names = []
    for now in (150.0, 500.0, 1099.0):
        issuer.now = now
        assert keys.current() is first
        settle(keys)
    issuer.now = 1100.0
    with pytest.raises(Unavailable):
        keys.current()
    assert "no usable key" in keys.news[0]
    issuer.names, issuer.now = ["two"], 1120.0
    assert kids(keys.current()) == ["two"]


def test_a_set_of_keys_that_serve_nothing_is_a_failed_fetch() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    first = keys.current()
    issuer.names, issuer.more, issuer.now = [], [jwk("RS256", "enc", use="enc"), None], 150.0
    assert keys.current() is first
    assert list(keys.news) == [
        "keys of idp cannot be had, those of before serve for 950 s more: "
        "no usable key: key 'enc' is not for signatures; an entry is not an object"
    ]


def test_what_is_skipped_is_said_once() -> None:
    issuer = Issuer()
    issuer.more = [None, jwk("RS256", "k", kty="AKP")]
    keys = issuer.keys()
    first = keys.current()
    said = "keys of idp: 1 used, 2 skipped: an entry is not an object; key 'k' has an unknown kty"
    assert list(keys.news) == [said]
    issuer.now = 500.0
    issuer.more.reverse()
    assert keys.current() is first
    assert list(keys.news) == [said]
    issuer.now, issuer.more = 1000.0, [7]
    assert keys.current() is first
    assert list(keys.news)[1:] == ["keys of idp: 1 used, 1 skipped: an entry is not an object"]


def test_what_is_skipped_is_said_in_few_words() -> None:
    """Kids are the issuer's to choose: they end no line and fill no log."""
    issuer = Issuer()
    issuer.more = [{"kid": "a\nb" * 10_000, "kty": "AKP"}, *([None] * 100)]
    keys = issuer.keys()
    keys.current()
    (said,) = keys.news
    assert "\n" not in said
    assert len(said) < 400
    assert said.endswith("; and 96 more")


def test_a_failure_is_said_once_a_minute_and_again_after_success() -> None:
    issuer = Issuer()
    issuer.away = True
    keys = issuer.keys(cooldown=1.0)
    said = []
    for second in range(130):
        issuer.now, before = float(second), len(keys.news)
        with pytest.raises(Unavailable):
            keys.current()
        settle(keys)
        said += [second] * (len(keys.news) - before)
    assert said == [0, 60, 120]
    assert list(keys.news) == ["keys of idp cannot be had, its tokens are refused: away"] * 3
    issuer.away, issuer.now = False, 131.0
    keys.current()
    issuer.away, issuer.now = True, 132.0
    keys.refreshed(keys.current())
    assert list(keys.news)[3:] == ["keys of idp cannot be had, those of before serve for 1099 s more: away"]


def test_keys_in_another_order_are_the_same_and_a_repeated_one_is_not() -> None:
    def of(*names: str) -> KeySet:
        return keys_from_issuer({"keys": [jwk("RS256", name) for name in names]}, RS256)

    assert of("one", "two").same(of("two", "one"))
    assert not of("one", "one", "two").same(of("one", "two", "two"))
    assert not of("one").same(of("one", "two"))
    renamed = keys_from_issuer({"keys": [jwk("RS256", "one", kid="two")]}, RS256)
    assert not of("one").same(renamed)
    assert not of("two").same(renamed)


def test_instances_share_keys_and_unused_ones_go_away() -> None:
    def make(url: str = "https://127.0.0.1:9/jwks") -> RemoteKeys:
        return remote_keys(
            url, RS256, issuer="i", discovery=False, insecure=False, field="f",
            ttl=1, max_stale=1, cooldown=1, timeout=1,
        )  # fmt: skip

    one = make()
    assert make() is one
    assert make("https://127.0.0.1:9/other") is not one
    settle(one)
    before = len(remote._shared)
    del one
    deadline = time.monotonic() + HANG_S
    while len(remote._shared) >= before and time.monotonic() < deadline:
        gc.collect()  # the errors of its failed fetch refer to themselves
        time.sleep(0.01)
    assert len(remote._shared) < before


@pytest.mark.parametrize(
    ("url", "insecure", "fine"),
    [
        ("https://idp.example/jwks", False, True),
        ("http://idp.example/jwks", False, False),
        ("http://idp.example/jwks", True, True),
        ("HTTPS://idp.example/", False, True),
        ("ftp://idp.example/", True, False),
        ("file:///etc/passwd", True, False),
        ("https://u@idp.example/", False, False),
        ("https://idp.example:0/", False, False),
        ("https://:443/", False, False),
        ("https://[::1/", False, False),
        ("https://idp.example:x/", False, False),
        ("//idp.example/", True, False),
        ("", True, False),
    ],
)
def test_allowed(url: str, insecure: bool, fine: bool) -> None:
    assert allowed(url, insecure) is fine


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"issuer": "https://idp/", "jwks_uri": "https://idp/jwks"},  # a slash more
        {"issuer": "https://idp"},
        {"issuer": "https://idp", "jwks_uri": "http://idp/jwks"},
        {"issuer": "https://idp", "jwks_uri": ["https://idp/jwks"]},
        {"issuer": "https://idp", "jwks_uri": "file:///etc/passwd"},
    ],
)
def test_a_discovery_document_that_is_not_the_issuers(document: Any) -> None:
    with pytest.raises(FetchError):
        jwks_uri(document, "https://idp", insecure=False)


@contextmanager
def serving(respond: Callable[[BaseHTTPRequestHandler], object], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                respond(self)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is a case here
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/jwks"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"[" * 65536)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


BAD_ANSWERS: dict[str, Callable[[BaseHTTPRequestHandler], object]] = {
    "redirect elsewhere": lambda h: send(h, 302, b"", Location="http://169.254.169.254/latest/meta-data"),
    "redirect to itself": lambda h: send(h, 307, b"", Location="/jwks"),
    "404": lambda h: send(h, 404, b'{"keys":[]}'),
    "500": lambda h: send(h, 500, b'{"keys":[]}'),
    "not JSON": lambda h: send(h, 200, b"<html>"),
    "deeply nested": lambda h: send(h, 200, b"[" * 100_000),
    "larger than it may be": lambda h: send(h, 200, b'{"keys":[]}' + b" " * MAX_DOCUMENT),
    "endless": endless,
    "dripping": drip,
    "cut off": lambda h: send(h, 200, b"{", **{"Content-Length": "100"}),
    "no HTTP": lambda h: h.wfile.write(b"hello\r\n\r\n"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers(name: str) -> None:
    start = time.monotonic()
    with serving(BAD_ANSWERS[name]) as url, pytest.raises(FetchError):
        fetch_json(url, timeout=0.5)
    assert time.monotonic() - start < HANG_S


def test_a_good_answer() -> None:
    document = {"keys": [jwk("RS256")]}
    with serving(lambda h: send(h, 200, json.dumps(document).encode())) as url:
        assert fetch_json(url, timeout=5) == document


def test_a_redirect_to_a_good_answer_is_not_followed() -> None:
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, 302 if handler.path == "/jwks" else 200, b'{"keys":[]}', Location="/elsewhere")

    with serving(respond) as url, pytest.raises(FetchError, match="answered 302"):
        fetch_json(url, timeout=5)
    assert asked == ["/jwks"]


def test_nobody_listens_and_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(FetchError):
            fetch_json(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2)
        port = silent.getsockname()[1]
    with pytest.raises(FetchError):
        fetch_json(f"http://127.0.0.1:{port}/", timeout=0.5)


def test_plain_text_where_tls_was_asked_for() -> None:
    with serving(lambda h: send(h, 200, b"{}")) as url, pytest.raises(FetchError):
        fetch_json(url.replace("http:", "https:"), timeout=2)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "idp")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "idp.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + made.public_bytes(Encoding.PEM))
    return file


def test_only_a_trusted_certificate_of_the_right_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(lambda h: send(h, 200, b'{"keys":[]}'), tls=context) as url:
        with pytest.raises(FetchError):
            fetch_json(url, timeout=2)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch_json(url, timeout=2) == {"keys": []}
        with pytest.raises(FetchError):
            fetch_json(url.replace("127.0.0.1", "localhost"), timeout=2)
