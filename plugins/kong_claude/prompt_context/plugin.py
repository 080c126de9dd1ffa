"""The Kong plugin claude-prompt-context: the gateway's own words in every prompt."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from claude_contract import compose
from claude_contract.claims import ADDITIONS_ROOM, Additions, size
from claude_contract.errors import ConfigError
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.pipeline import plugin
from kong_claude.prompt_context import sources, template
from kong_claude.prompt_context.guards import Guards, compile_patterns
from kong_claude.prompt_context.inert import block
from kong_claude.prompt_context.schema import ProfileConfig, PromptContextConfig
from kong_claude.request import Request
from kong_claude.stage import Shared, Stage
from kong_claude.strict_json import JSONError, parse_object, rewrite

HEADER = "X-Claude-Context"
_HEADER = HEADER.lower()
EXPLAIN_HEADER = "x-claude-explain"
_LENGTH = re.compile(r"[0-9]{1,18}")
MAX_MADE = 256
MAX_READ = 64 << 20
"""Bytes of the largest body that can be set to be read."""
FORM = "multipart/form-data"
BODYLESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS", "TRACE"))


@dataclass(frozen=True)
class Texts:
    """What one profile puts around the caller's system text. `version` changes whenever its templates do."""

    prepend: template.Template
    append: template.Template
    version: str


class PromptContext(Stage[PromptContextConfig]):
    """The stage: checks the caller's prompt, adds the gateway's texts and values."""

    check = "prompt-context"
    shared_key = "claude_context"
    Config = PromptContextConfig

    def __init__(self, config: PromptContextConfig, shared: Shared) -> None:
        self.shape = config.shape
        self.fields = sources.parse_fields(config.context)
        self.texts = parse_texts(config, {field.name for field in self.fields})
        self.profile = config.profile
        self.profile_header = (config.profile_header or "").lower()
        self.profile_claim = config.profile_claim
        if self.profile is not None and self.profile not in self.texts:
            raise ConfigError("profile", "is not among profiles")
        self.locked = config.locked
        self.replace = config.on_locked == "replace"
        self.guards = Guards(
            max_prompt_bytes=config.max_prompt_bytes,
            deny=compile_patterns(config.deny_patterns, "deny_patterns"),
            allow=compile_patterns(config.allow_patterns, "allow_patterns"),
        )
        # Callers send the same values again and again, and what is made of them is never changed.
        self.made = lru_cache(maxsize=MAX_MADE)(self.make)
        self.mode = config.apply
        self.signed = shared.attestation is not None
        if self.mode == "attested" and not self.signed:
            raise ConfigError("apply", "attested needs the attestation section")
        if self.mode == "attested":
            self.check_room()
        self.max_body_bytes = config.max_body_bytes
        self.rewrite_max_bytes = config.rewrite_max_bytes
        self.explain = config.explain
        self.explain_permission = config.explain_permission
        self.form = config.form
        if self.form:
            self.check_unread("form")
            if self.shape != "invoke":
                raise ConfigError("form", "needs shape: invoke, no other API takes forms")
        elif self.shape == "graphql":
            self.check_unread("shape")
        elif self.max_body_bytes > MAX_READ:
            raise ConfigError("max_body_bytes", f"may be more than {MAX_READ} only where form is set")

    def check_unread(self, field: str) -> None:
        """Raises ConfigError for what could only be done by reading a body that is not read here: `field` says so."""
        what = "a form" if field == "form" else "a GraphQL request"
        if self.mode != "attested":
            raise ConfigError(field, f"needs apply: attested, since {what} is not read here")
        if self.guards:
            raise ConfigError(field, f"{what} goes with no guard (max_prompt_bytes, deny_patterns, allow_patterns)")
        if self.locked and not self.replace:
            raise ConfigError(field, f"needs on_locked: replace, since {what} is not read here")
        if self.explain:
            raise ConfigError(field, f"goes without explain, since {what} is not read here")

    @property
    def drop(self) -> tuple[str, ...]:
        """Members that are taken out of the caller's body."""
        return self.locked if self.replace else ()

    def access(self, request: Request) -> Decision:
        if self.signed and request.line.method in BODYLESS:  # with an attestation the method costs nothing
            return self.untouched(request)
        length = request.header("content-length")
        if length is not None and not _LENGTH.fullmatch(length):  # nginx lets none of these through
            return Refuse(400, "Content-Length is not a number", "bad_request")
        if length == "0":
            return self.untouched(request)
        if length is None and not self.form and request.header("transfer-encoding") is None:
            # No body in HTTP/1, but perhaps one in HTTP/2: only reading tells.
            body = request.body(self.max_body_bytes)
            if body == b"":
                return self.untouched(request)
        refusal = check_form(request) if self.form else check_media(request)
        if refusal:
            return refusal
        if length is not None and int(length) > self.max_body_bytes:
            return self.too_large()
        try:
            return self.decide(request, None if length is None else int(length))
        except sources.BadValue as bad:
            return bad.refusal
        except (JSONError, compose.ShapeError) as error:
            return Refuse(400, str(error), "bad_body")

    def decide(self, request: Request, length: int | None) -> Decision:
        """The decision for a request with a JSON body of `length` bytes (None: not declared)."""
        explain = self.explain and request.header(EXPLAIN_HEADER) == "1"
        body = None
        if self.reads_body(length) or explain:
            body = request.body(self.max_body_bytes)
            if body is None:
                return self.too_large()
            if body == b"":
                return self.untouched(request)
            document = parse_object(body)
            compose.check_shape(document, self.shape, self.drop)
            if not self.replace:
                for name in self.locked:
                    if compose.sets(document, name, self.shape):
                        return Refuse(400, f"{name} is set by the gateway and must not be sent", "locked_field")
            refusal = self.guards.check(document)
            if refusal:
                return refusal
        profile = self.choose_profile(request)
        additions, taken = self.made(self.texts[profile], tuple([field.value(request) for field in self.fields]))
        if explain:
            return self.explanation(request, profile, additions, taken, body or b"")
        return self.passed(request, profile, additions, taken, body)

    def reads_body(self, length: int | None) -> bool:
        """False where nothing is to be checked in the body and nothing to be changed. Of a body in chunks the length is
        to be checked, too."""
        if length is None or self.guards or (self.locked and not self.replace) or self.mode == "body":
            return True
        return self.mode == "auto" and (not self.signed or length <= self.rewrite_max_bytes)

    def make(self, texts: Texts, given: tuple[str | None, ...]) -> tuple[Additions, int]:
        """The additions for the fields' values, and the bytes that they take in an attestation."""
        values = {field.name: value for field, value in zip(self.fields, given, strict=True)}
        present = {name: value for name, value in values.items() if value is not None}
        shown = {field.name: present[field.name] for field in self.fields if field.render and field.name in present}
        prepend, append = texts.prepend.fill(present), texts.append.fill(present) + block(shown)
        additions = Additions(prepend, append, values, self.drop)
        return additions, size(additions.to_claims()) if self.signed else 0

    def check_room(self) -> None:
        """Raises ConfigError where attested additions could never fit, whatever the request says."""
        values = dict.fromkeys(field.name for field in self.fields)
        for name, texts in self.texts.items():
            taken = size(Additions(texts.prepend.shortest, texts.append.shortest, values, self.drop).to_claims())
            if taken > ADDITIONS_ROOM:
                where = f"profiles.{name}." if name else ""
                raise ConfigError(
                    f"{where}prepend",
                    f"with append, context and locked takes {taken} bytes in the attestation, at most "
                    f"{ADDITIONS_ROOM}: shorten the texts, or set apply to body",
                )

    def passed(
        self, request: Request, profile: str | None, additions: Additions, taken: int, body: bytes | None
    ) -> Decision:
        if not additions:
            return self.untouched(request)
        texts = self.texts[profile]
        headers: dict[str, str | None] = dict.fromkeys(request.spellings(_HEADER))
        headers.pop(_HEADER, None)
        headers[HEADER] = f"v={texts.version}" if profile is None else f"v={texts.version}; profile={profile}"
        shared: dict[str, Any] = {"version": texts.version, "apply": "body"}
        if profile is not None:
            shared["profile"] = profile
        if body is not None and self.mode != "attested" and len(body) <= self.rewrite_max_bytes:
            changed = rewrite(body, lambda document: compose.apply(document, additions, self.shape))
            return Pass(upstream_headers=headers, body=changed, shared=shared)
        if self.mode == "body" or not self.signed:
            limit = f"{self.rewrite_max_bytes} bytes"
            return Refuse(
                413, f"this route adds to the prompt, which it can do in bodies of up to {limit}", "body_too_large"
            )
        if taken > ADDITIONS_ROOM:
            return Refuse(
                413, f"what this route adds to the prompt is larger than {ADDITIONS_ROOM} bytes", "body_too_large"
            )
        shared["apply"] = "attested"
        return Pass(upstream_headers=headers, claims=additions, shared=shared)

    def untouched(self, request: Request) -> Pass:
        """Nothing to add. The header is ours: a client's does not go on."""
        return Pass(upstream_headers=dict.fromkeys(request.spellings(_HEADER)))

    def choose_profile(self, request: Request) -> str | None:
        """By claim, else by header, else by configuration. Raises BadValue for one that there is not."""
        by_claim = sources.claim(request, self.profile_claim) if self.profile_claim else None
        if by_claim is not None:
            if by_claim not in self.texts:
                raise sources.BadValue(Refuse(403, "the token's profile is not known here", "bad_profile"))
            return by_claim
        by_header = request.sent(self.profile_header) if self.profile_header else []
        if by_header:
            if len(by_header) > 1 or by_header[0] not in self.texts:
                known = ", ".join(sorted(name for name in self.texts if name))
                raise sources.BadValue(
                    Refuse(400, f"header {self.profile_header} must be one of {known}", "bad_profile")
                )
            return by_header[0]
        return self.profile

    def explanation(
        self, request: Request, profile: str | None, additions: Additions, taken: int, body: bytes
    ) -> Answer | Refuse:
        """What would be sent. The body is text, since Kong's JSON would not give back what it was given."""
        identity = request.identity
        if identity is None or self.explain_permission not in identity.permissions:
            return Refuse(403, f"explanations need the permission {self.explain_permission}", "explain_denied")
        decision = self.passed(request, profile, additions, taken, body)
        if isinstance(decision, Refuse):
            return decision
        assert isinstance(decision, Pass)
        explained: dict[str, Any] = {
            "headers": {name: value for name, value in decision.upstream_headers.items() if value},
            "additions": {name: value for name, value in additions.to_claims().items() if name != "context"},
            "context": {name: value for name, value in additions.context.items() if value is not None},
            "apply": decision.shared.get("apply", "nothing"),
        }
        if len(body) <= self.rewrite_max_bytes:
            sent = rewrite(body, lambda document: compose.apply(document, additions, self.shape))
            explained["body"] = sent.decode()
        return Answer(200, explained)

    def too_large(self) -> Refuse:
        return Refuse(413, f"the body is larger than {self.max_body_bytes} bytes", "body_too_large")


def parse_texts(config: PromptContextConfig, names: set[str]) -> dict[str | None, Texts]:
    """Profile name → its texts joined with the plugin's own; None is no profile. Raises ConfigError."""
    texts: dict[str | None, Texts] = {}
    for name, profile in [(None, ProfileConfig()), *config.profiles.items()]:
        where = f"profiles.{name}." if name else ""
        prepend = (config.prepend or "") + (profile.prepend or "")
        append = (profile.append or "") + (config.append or "")
        digest = hashlib.sha256(json.dumps([prepend, append]).encode()).hexdigest()
        texts[name] = Texts(
            prepend=template.parse(prepend, names, f"{where}prepend"),
            append=template.parse(append, names, f"{where}append"),
            version=digest[:12],
        )
    return texts


def check_media(request: Request) -> Refuse | None:
    """Only plain JSON in UTF-8: any other body could not be checked."""
    encodings = request.headers.get("content-encoding")
    if encodings and any(encoding.strip().lower() not in ("identity", "") for encoding in encodings):
        return _compressed()
    types = request.headers.get("content-type", ())
    if len(types) != 1 or not is_json(types[0]):
        return _wrong_media("the body must be sent as application/json")
    if (charset := charset_of(types[0])) not in _UTF_8:
        return _wrong_media(f"the body must be in UTF-8, and its Content-Type says charset={charset}")
    return None


def check_form(request: Request) -> Refuse | None:
    """Only a form of parts, of a length that is said: nobody here counts what comes."""
    encodings = request.headers.get("content-encoding")
    if encodings and any(encoding.strip().lower() not in ("identity", "") for encoding in encodings):
        return _compressed()
    types = request.headers.get("content-type", ())
    if len(types) != 1 or types[0].partition(";")[0].strip().lower() != FORM:
        return _wrong_media(f"the body must be sent as {FORM}", FORM)
    if request.header("content-length") is None or request.header("transfer-encoding") is not None:
        return Refuse(411, "the body's length must be said (Content-Length)", "length_required")
    return None


def _compressed() -> Refuse:
    return Refuse(415, "the body must not be compressed", "bad_encoding", headers={"Accept-Encoding": "identity"})


def _wrong_media(message: str, wanted: str = "application/json") -> Refuse:
    return Refuse(415, message, "bad_media_type", headers={"Accept": wanted})


@lru_cache(maxsize=64)
def is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


# ASCII is UTF-8. What the bytes are in truth the parser finds out.
_UTF_8 = ("", "utf-8", "utf8", "us-ascii", "ascii")
_NAME = re.compile(r"[a-z0-9._+-]{1,40}")


@lru_cache(maxsize=64)
def charset_of(content_type: str) -> str:
    """In lower case, "" where there is none; "?" for several different ones, or what is no name of one."""
    parameters = (part.strip().lower().partition("=") for part in content_type.split(";")[1:])
    named = {value.strip().strip('"') for name, _, value in parameters if name.strip().startswith("charset")}
    charset = named.pop() if len(named) == 1 else "?" if named else ""
    return charset if not charset or _NAME.fullmatch(charset) else "?"


Plugin = plugin(PromptContext)
