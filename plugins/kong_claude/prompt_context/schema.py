"""Configuration of claude-prompt-context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kong_claude.schema import Field, boolean, choice, fields, integer, mapping, string, strings
from kong_claude.stage import ENFORCING_FIELDS

_PREPEND = "put in front of the caller's system text as it stands (end it with a space or a line break)."
_APPEND = "put after the caller's system text as it stands."


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """One value of `context`."""

    source: str | None = string(
        "Where the value comes from: header:Name, query:name, path:name (a named capture of the "
        "route), claim:name, consumer:username, request:id or const:text.",
        required=True,
        match="^%l+:.",
    )
    required: bool = boolean("Refuse a request without the value.", default=False)
    pattern: str | None = string("RE2 expression that the whole value must match.")
    max_length: int = integer("Most characters the value may have.", default=256, between=[1, 4096])
    default: str | None = string("The value where the request has none.")
    render: bool = boolean(
        "Show the value to the model, in a delimited block at the end of the system text.", default=False
    )


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """One of `profiles`."""

    prepend: str | None = string(f"Template, {_PREPEND} Follows the plugin's own prepend.")
    append: str | None = string(f"Template, {_APPEND} Precedes the plugin's own append.")


@dataclass(frozen=True, slots=True)
class PromptContextConfig:
    """The plugin's own fields."""

    shape: str = choice(
        "What bodies look like: the invoker's, Anthropic's Messages, OpenAI's chat completions; a GraphQL request "
        "is not read here, and its additions are attested.",
        ("invoke", "messages", "chat", "graphql"),
        default="invoke",
    )
    prepend: str | None = string(f"Template, {_PREPEND} {{{{name}}}} stands for a context value.")
    append: str | None = string(f"Template, {_APPEND}")
    profiles: Mapping[str, ProfileConfig] = mapping(
        "Named texts of which a request gets one, such as code-review and test-writer.",
        ProfileConfig,
        keys={"match": "^[%w_%-%.]+$"},
    )
    profile: str | None = string("The profile of requests that name no other.")
    profile_header: str | None = string("The request header in which callers may choose a profile.")
    profile_claim: str | None = string(
        "The claim that decides the profile; where a token has it, profile_header counts for nothing."
    )
    context: Mapping[str, ContextConfig] = mapping(
        "Values put into the body's context object, by name. Callers cannot set these names.",
        ContextConfig,
        keys={"match": "^[%a_][%w_%-]*$"},
    )
    locked: tuple[str, ...] = strings(
        "Top-level members of the body that callers may not set, such as system, model or tools."
    )
    on_locked: str = choice(
        "A locked member in the body: refuse the request, or take it out so that only the gateway's "
        "or the upstream's own value counts.",
        ("reject", "replace"),
        default="reject",
    )
    max_prompt_bytes: int | None = integer("Most bytes (UTF-8) of the caller's text, all parts together.", gt=0)
    deny_patterns: tuple[str, ...] = strings("RE2 expressions; a prompt in which one is found is refused.")
    allow_patterns: tuple[str, ...] = strings("RE2 expressions; every text of the prompt must match one as a whole.")
    apply: str = choice(
        "How additions reach the upstream: in the body, in the attestation (the invoker applies "
        "them), or in the body up to rewrite_max_bytes and in the attestation above.",
        ("body", "attested", "auto"),
        default="auto",
    )
    rewrite_max_bytes: int = integer(
        "Largest body that is sent back through Kong, which takes time that grows with its square.",
        default=64 << 10,
        between=[0, 262144],
    )
    max_body_bytes: int = integer(
        "Largest body that is accepted; more than 64 MiB only where form is set.",
        default=8 << 20,
        between=[1, 1073741824],
    )
    form: bool = boolean(
        "Bodies are multipart/form-data, and pass unread: the invoker takes them apart and applies the additions.",
        default=False,
    )
    explain: bool = boolean(
        "Answer requests with X-Claude-Explain: 1 by what would be sent, without sending it.", default=False
    )
    explain_permission: str = string("The permission that a caller needs for explanations.", default="claude:explain")


FIELDS: list[Field] = fields(PromptContextConfig)
SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
