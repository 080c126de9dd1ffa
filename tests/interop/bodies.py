"""Bodies as clients send them, for claude-prompt-context and the invoker.

`was` says what 0.1.0 made of a case: "good", or what was wrong. `refused` says why one that real clients send is refused,
on purpose; the answer then holds `says`, so that its sender finds the mistake. `source` and `reported`: see the README.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
HI = b'{"prompt": "hi"}'


@dataclass(frozen=True)
class Body:
    """`headers` given as None are left out. `at`: who refuses; both are asked, each by itself."""

    who: str
    what: str
    content: bytes = HI
    headers: dict[str, str | None] = field(default_factory=dict)
    was: str = "good"
    refused: str = ""
    says: str = ""
    gateway: int | None = None
    """The status that the gateway refuses it with; None: it lets it through."""
    invoker: int | None = 202
    """The status of the invoker; None: it never gets there."""
    source: str = ""
    reported: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"


def typed(value: str | None) -> dict[str, str | None]:
    return {"content-type": value}


def blocks(*content: dict[str, Any], then: str = "") -> bytes:
    """A conversation whose first message has these blocks; with `then` as the last message."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": list(content)}]
    if then:
        messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": then}]
    return json.dumps({"messages": messages}).encode()


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(data: str, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def said(words: str, by: str = "assistant") -> bytes:
    history = [{"role": "user", "content": "a"}, {"role": by, "content": words}, {"role": "user", "content": "b"}]
    return json.dumps({"messages": history}).encode()


UTF8_ONLY = "JSON between systems is UTF-8 (RFC 8259 section 8.1): whoever guessed would show the model other words"
CUT = "the model cannot be sent half a letter, and what was meant nobody knows"
BLANK = "a run would be paid for which nothing was asked"

CHARSETS = [
    Body(
        "okhttp, HTTPie, axios",
        "the charset in its type",
        headers=typed("application/json; charset=utf-8"),
        source="aws/chalice#306, mozilla/page-metadata-service#45",
    ),
    Body("Java's ContentType.APPLICATION_JSON", "in capitals", headers=typed("application/json; charset=UTF-8")),
    Body(
        "hand-written fetch",
        "utf8",
        headers=typed("application/json; charset=utf8"),
        reported=True,
        was="415",
        source="smithy-lang/smithy-rs#3471, creachadair/jrpc2#111, Sage-Bionetworks/synapse-web-monorepo#1814",
    ),
    Body(
        ".NET's Encoding.ASCII",
        "us-ascii",
        headers=typed("application/json; charset=us-ascii"),
        reported=True,
        was="415",
        source="rubrikinc/rubrik-sdk-for-powershell#768",
    ),
    Body("a list of parameters joined by a loop", "nothing after the semicolon", headers=typed("application/json;")),
    Body(
        "Apache HttpClient's StringEntity",
        "its default, latin-1",
        headers=typed("application/json; charset=ISO-8859-1"),
        refused=UTF8_ONLY,
        says="charset=iso-8859-1",
        gateway=415,
        invoker=None,
    ),
    Body(
        ".NET's Encoding.Unicode",
        "UTF-16 that says so",
        HI.decode().encode("utf-16"),
        typed("application/json; charset=utf-16"),
        refused=UTF8_ONLY,
        says="charset=utf-16",
        gateway=415,
        invoker=None,
    ),
    Body(
        "Windows PowerShell 5.1's Invoke-RestMethod",
        "latin-1 that does not say so",
        '{"prompt": "Grüße"}'.encode("latin-1"),
        was="not valid JSON",
        refused=UTF8_ONLY,
        says="is not UTF-8",
        gateway=400,
        invoker=400,
        source="PowerShell/PowerShell#10971, itglue/powershellwrapper#12, AtlassianPS/JiraPS#4",
    ),
    Body(
        "PowerShell's -InFile, Notepad",
        "a byte order mark",
        b"\xef\xbb\xbf" + HI,
        reported=True,
        was="not valid JSON",
        refused=UTF8_ONLY,
        says="byte order mark",
        gateway=400,
        invoker=400,
        source="PowerShell/PowerShell#7618",
    ),
]

KINDS = [
    Body(
        "curl -d without a header",
        "a form",
        headers=typed("application/x-www-form-urlencoded"),
        refused="a page of anybody's can send a form with the user's cookies, and JSON only where it is allowed to",
        says="application/json",
        gateway=415,
        invoker=None,
    ),
    Body(
        "a browser's fetch of a string",
        "text/plain",
        headers=typed("text/plain;charset=UTF-8"),
        refused="as a form",
        says="application/json",
        gateway=415,
        invoker=None,
    ),
    Body(
        "google-api-java-client",
        "compressed",
        gzip.compress(HI),
        {"content-encoding": "gzip"},
        refused="its size and content are known only when it is unpacked",
        says="must not be compressed",
        gateway=415,
        invoker=None,
        source="googleapis/google-api-java-client#189, google/certificate-transparency#1109",
    ),
    Body(
        "node-fetch, reverse proxies",
        "in chunks",
        headers={"content-length": None, "transfer-encoding": "chunked"},
        source="node-fetch/node-fetch#47, spotify/apollo#243, Sophomoresty/gemini-web2api#70",
    ),
    Body("echo, here-documents", "blanks around it", b"\n " + HI + b"\r\n"),
    Body(
        "curl --data-binary of a file that is not there",
        "nothing",
        b"",
        refused="there is nothing to run",
        says="is empty",
        invoker=400,
    ),
]

LETTERS = [
    Body("Python's json.dumps", "an emoji as a pair of escapes", b'{"prompt": "\\ud83d\\ude00"}'),
    Body("PHP's json_encode", "escaped slashes", b'{"prompt": "a\\/b"}'),
    Body("Go's encoding/json", "escaped angle brackets", b'{"prompt": "\\u003cb\\u003e \\u2028"}'),
    Body(
        "JavaScript",
        "an emoji that was cut",
        b'{"prompt": "\\ud83d"}',
        was="not valid JSON",
        refused=CUT,
        says="half of a surrogate pair",
        gateway=400,
        invoker=400,
        source="anthropics/claude-code#1939, #3277, #6199, anomalyco/opencode#13985",
    ),
    Body(
        "JavaScript",
        "its other half",
        b'{"prompt": "\\ude00 and more"}',
        was="not valid JSON",
        refused=CUT,
        says="half of a surrogate pair",
        gateway=400,
        invoker=400,
    ),
    Body(
        "requests before 2.26",
        "NaN",
        b'{"prompt": "hi", "max_budget_usd": NaN}',
        refused="no number, and a budget least of all",
        says="column",
        gateway=400,
        invoker=400,
        source="psf/requests#5767, apify/apify-client-python#87, getsentry/sentry#1979",
    ),
    Body(
        "templates of JSON by hand",
        "a comma too much",
        b'{"prompt": "hi",}',
        refused="what is no JSON may be meant in more than one way",
        says="(line 1, column 1",
        gateway=400,
        invoker=400,
    ),
]

FIELDS = [
    Body(
        "Go, Java, C#",
        "null for what is not set",
        b'{"prompt": "hi", "messages": null, "system": null, "tools": null, "files": null, "context": null}',
        was="422",
    ),
    Body("Go, Java, C#", "null for the prompt", b'{"prompt": null, "messages": [{"role": "user", "content": "hi"}]}', was="422"),
    Body("Lua's cjson, JavaScript", "whole numbers as they come", b'{"prompt": "hi", "max_turns": 3.0}'),
    Body(
        "PHP's json_encode",
        "an empty map as a list",
        b'{"prompt": "hi", "context": []}',
        refused="facts have names",
        says="context must be",
        gateway=400,
        invoker=422,
    ),
    Body(
        "Lua's cjson",
        "an empty list as a map",
        b'{"prompt": "hi", "tools": {}}',
        refused="no tools at all would be another wish than no word of tools",
        says="tools must be",
        invoker=422,
    ),
    Body("chat windows", "a prompt of blanks", b'{"prompt": " \\n"}', reported=True, was="run", refused=BLANK, says="nothing but blanks", invoker=422, source="anthropics/claude-code#23440, stackblitz/bolt.new#4701"),
    Body("agents whose tools found nothing", "an empty block beside another", blocks(text(""), text("hi")), source="HKUDS/nanobot#949"),
    Body("agents whose tools found nothing", "empty blocks alone", blocks(text("")), was="run", refused=BLANK, says="blanks", invoker=422),
    Body("opencode", "blanks as the assistant's message", said(" "), source="anomalyco/opencode#31259"),
    # OpenAI's conversations have both.
    Body(
        "clients of OpenAI's API",
        "the system prompt as a message",
        said("be brief", by="system"),
        refused="it is a field of its own here",
        says="messages[1].role must be",
        invoker=422,
    ),
    Body("chat windows", "an image of an earlier message", blocks(text("look"), image(PNG), then="again"), reported=True, was="spelt out as text", source="apify/tester-mcp-client#44, sinameraji/kimiflare#124"),
    Body(
        "browsers' FileReader.readAsDataURL",
        "the whole data URL as an image",
        blocks(image("data:image/png;base64," + PNG)),
        refused="the type stands in another field, and they may differ",
        says="messages[0].content[0].source.data must",
        invoker=422,
    ),
    Body(
        "names of files",
        "image/jpg",
        blocks(image(PNG, "image/jpg")),
        refused="the Messages API does not know it",
        says="media_type must be 'image/png', 'image/jpeg'",
        invoker=422,
    ),
]  # fmt: skip

BODIES = (*CHARSETS, *KINDS, *LETTERS, *FIELDS)
