"""Spans on their way to the collector: a bounded queue, which a thread sends.

The library's own (`BatchSpanProcessor`) starts its thread again in each process that is forked, and runs are: with a
second thread a run's process cannot make a network of its own (unshare(2): EINVAL), and what stays beside it to end it
(`isolation.reaper`) has one that is in no domain and takes its signals. Nor does it ask how large a span is.

This module is loaded only where there is a collector.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger(__name__)
_SEND_S = 5.0
"""How long the collector may take for what it is sent."""
_EVERY_S = 1.0
_LAST_S = 5.0
"""How long what waits may take to be sent at the end."""
_SAY_S = 10.0
_MOST_ANSWERED = 64 << 10
"""Bytes of the collector's answer, of which nothing is wanted but its head."""
MOST_CHARACTERS = 8 << 20
"""Of all spans that wait: with contents one may have 300,000."""
_CHARACTERS_AT_ONCE = 2 << 20
"""Of what is sent at once, which collectors take up to 20 MiB of: a character has up to four bytes."""


class Sending(SpanProcessor):
    """Keeps the last `most` spans that have ended, and sends `at_once` of them at once."""

    def __init__(self, exporter: SpanExporter, most: int, at_once: int) -> None:
        self._exporter = exporter
        self._most = most
        self._at_once = min(most, at_once)
        self._waiting: deque[tuple[ReadableSpan, int]] = deque()
        self._characters = 0
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._over = False
        self._said = -_SAY_S
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if self._over or context is None or not context.trace_flags.sampled:
            return
        size, dropped = _size(span), 0
        with self._lock:
            self._waiting.append((span, size))
            self._characters += size
            while len(self._waiting) > self._most or self._characters > MOST_CHARACTERS:
                self._take()
                dropped += 1
            is_due = len(self._waiting) >= self._at_once or self._characters > _CHARACTERS_AT_ONCE
        if is_due:
            self._due.set()
        if dropped and time.monotonic() - self._said >= _SAY_S:
            self._said = time.monotonic()
            _log.warning("traces: the oldest spans are dropped, the collector is away or slow")

    def _take(self) -> ReadableSpan:
        span, size = self._waiting.popleft()
        self._characters -= size
        return span

    def _next(self) -> list[ReadableSpan]:
        """The oldest of those that wait; empty where none does."""
        found = list[ReadableSpan]()
        characters = 0
        with self._lock:
            while self._waiting and len(found) < self._at_once:
                characters += self._waiting[0][1]
                if found and characters > _CHARACTERS_AT_ONCE:
                    break
                found.append(self._take())
        return found

    def _send(self) -> None:
        is_over = False
        while not is_over:
            self._due.wait(_EVERY_S)
            self._due.clear()
            is_over = self._over  # before the last look at what waits
            while spans := self._next():
                try:
                    self._exporter.export(spans)
                except Exception:
                    _log.exception("traces: %d spans could not be sent", len(spans))

    def shutdown(self) -> None:
        """Sends what waits, for some seconds at most: what is not sent then is lost. Blocks."""
        self._over = True
        self._due.set()
        self._thread.join(_LAST_S)
        self._exporter.shutdown()


def exporter(url: str) -> SpanExporter:
    """To a collector's `url`, who may be anybody: no more than the beginning of his answer is read."""
    session = requests.Session()
    session.hooks["response"].append(_beginning)
    return OTLPSpanExporter(endpoint=url, timeout=_SEND_S, session=session)


def _beginning(response: requests.Response, *_: Any, **__: Any) -> None:
    """Of an answer what has come with its head, at most. Raises RequestException where it leads elsewhere, which the
    library takes for success: nobody has the spans then."""
    came = response.raw
    try:
        if 300 <= response.status_code < 400:
            raise requests.RequestException(f"the collector answers {response.status_code}: it is at another address")
        response.raw = io.BytesIO(came.read1(_MOST_ANSWERED) or b"")
    finally:
        came.close()  # of one that was read to its end the connection stays


def _size(span: ReadableSpan) -> int:
    """In characters, about."""
    return 500 + sum(len(value) for value in (span.attributes or {}).values() if isinstance(value, str))
