"""The TLS listener: a self-signed certificate made at start, and Kong's certificate phase in the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from minikong.http.connection import ClientConnection, Handler

if TYPE_CHECKING:
    from minikong.http.listener import Edge


_HANDSHAKE = 60.0  # seconds a client may take for the handshake
_HANDSHAKE_RECORD = 0x16
_PLAIN_HTTP = 497  # nginx's code for it
_INTERNAL_ERROR = bytes.fromhex("15030300020250")  # a fatal alert, in the clear: the handshake has not begun


def server_context(cert: str | None, key: str | None) -> ssl.SSLContext:
    """The listener's TLS settings; with no `ssl_cert` given, a new self-signed certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = _note_sni
    if cert and key:
        context.load_cert_chain(cert, key)
        return context
    pem = _self_signed()
    with tempfile.TemporaryDirectory(prefix="minikong-") as folder:
        path = Path(folder, "cert.pem")
        path.touch(mode=0o600)
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context


def _self_signed() -> bytes:
    """Key and certificate in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


class TlsAcceptor(asyncio.Protocol):
    """The server side of one TLS connection. The handshake's first answer waits for the certificate phase."""

    def __init__(self, edge: Edge, handler: Handler, context: ssl.SSLContext) -> None:
        self._edge = edge
        self._handler = handler
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._held = True  # nothing is sent before the certificate phase is over
        self._asked = False
        self._first = True
        self._plain = False  # the client speaks plain HTTP to this port
        self._connected = False
        self._inner: ClientConnection | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._deadline = asyncio.get_running_loop().call_later(_HANDSHAKE, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if not self._plain and self._first:
            self._plain = data[0] != _HANDSHAKE_RECORD and not data[0] & 0x80
            self._first = False
            if self._plain:
                self._deadline.cancel()
                self._inner = ClientConnection(self._edge, self._handler, "https", refuse=_PLAIN_HTTP)
                self._inner.connection_made(self._transport)
        if self._plain and self._inner is not None:
            self._inner.data_received(data)
            return
        self._incoming.write(data)
        self._advance()

    def eof_received(self) -> bool:
        if self._inner is not None:
            self._inner.eof_received()
        return self._plain

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def _advance(self) -> None:
        try:
            if not self._connected:
                self._tls.do_handshake()
                self._connected = True
            self._ask()
            if self._inner is not None:
                while data := self._tls.read(65536):
                    self._inner.data_received(data)
                self._inner.eof_received()  # close_notify
        except ssl.SSLWantReadError:
            self._ask()
        except ssl.SSLError:
            self._flush()
            self._transport.close()
            return
        self._flush()

    def _ask(self) -> None:
        """Starts the certificate phase once the ClientHello was understood (there is an answer to send)."""
        if self._held and not self._asked and self._outgoing.pending:
            self._asked = True
            self._edge.spawn(self._certificate())
        elif self._connected and not self._held and self._inner is None:
            self._deadline.cancel()
            inner = self._inner = ClientConnection(self._edge, self._handler, "https", _sni(self._tls))
            inner.connection_made(TlsTransport(self._transport, self._tls, self._flush))

    async def _certificate(self) -> None:
        peer, own = (self._transport.get_extra_info(name)[:2] for name in ("peername", "sockname"))
        if await self._edge.gateway.certificate(_sni(self._tls), peer, own):
            self._held = False
            self._advance()
        else:
            self._transport.write(_INTERNAL_ERROR)
            self._transport.close()

    def _flush(self) -> None:
        if not self._held and self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())


class TlsTransport(asyncio.Transport):
    """What a ClientConnection writes to: encrypts, then hands on to the TCP transport."""

    def __init__(self, raw: asyncio.Transport, tls: ssl.SSLObject, flush: Callable[[], None]) -> None:
        super().__init__()
        self._raw = raw
        self._tls = tls
        self._flush = flush

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._raw.is_closing():
            self._tls.write(data)
            self._flush()

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self._raw.is_closing():
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # sends close_notify; the peer's is not waited for
            self._flush()
            self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)


def _sni(tls: ssl.SSLObject) -> str | None:
    return getattr(tls, "minikong_sni", None)


def _note_sni(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    tls.minikong_sni = name  # type: ignore[attr-defined]
