"""The API's documents: what a caller sends, and what a run answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]*$")]
_TOOL = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_TOOL_OF_A_SERVER = r"mcp__[a-z0-9]+(-[a-z0-9]+)*__[A-Za-z0-9_-]+"
ToolName = Annotated[str, Field(min_length=1, max_length=134, pattern=f"^({_TOOL}|{_TOOL_OF_A_SERVER})$")]
EntryName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Label = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A tag, by which its caller finds a job or a run."""
Scalar = str | int | float | bool | None


def _fact(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, str | int | float) for one in values):
        raise ValueError("must be text, a number, true, false, or a list of these")
    return value


def _each_once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


Fact = Annotated[Any, AfterValidator(_fact), WithJsonSchema(TypeAdapter(Scalar | list[Scalar]).json_schema())]
"""A value of `context`. Not a union of pydantic's, whose errors are one for each alternative."""


# Of a union only the alternative that the caller took is tried, so that an error names a place of the caller's own. To
# pydantic a tag is such a place, too: `in_callers_words` leaves out what has a "<".


def _by_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else None


def _by_form(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None


class TextBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ImageSource(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class ImageBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["image"]
    source: ImageSource


class DocumentSource(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class DocumentBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["document"]
    source: DocumentSource
    title: Annotated[str, Field(max_length=500)] | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")],
    Discriminator(
        _by_type,
        custom_error_type="block_type",
        custom_error_message="must be an object whose type is text, image or document",
    ),
]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[Block], Field(min_length=1), Tag("<blocks>")],
        Discriminator(
            _by_form,
            custom_error_type="content_form",
            custom_error_message="must be a string or a list of content blocks",
        ),
    ]

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing to the model."""
        blocks = [self.content] if isinstance(self.content, str) else self.content
        texts = [block if isinstance(block, str) else getattr(block, "text", "?") for block in blocks]
        return not "".join(texts).strip()


class InputFile(BaseModel):
    """A file that is there when the run begins."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(min_length=1, max_length=1024)] = Field(description="Relative to the run's directory")
    content: str | None = Field(default=None, description="Its text")
    content_base64: str | None = Field(default=None, description="Or its bytes")
    upload: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Or the SHA-256 of a file that was put before (`PUT /files/{sha256}`)"
    )

    @model_validator(mode="after")
    def _one_content(self) -> InputFile:
        if [self.content, self.content_base64, self.upload].count(None) != 2:
            raise ValueError("exactly one of content, content_base64 and upload is needed")
        return self


def _or_null(schema: dict[str, Any]) -> None:
    """Says of fields that have no null here that a caller may write it for what is not set; and that one of prompt and
    messages has to be."""
    for name in ("prompt", "messages", "files", "max_repairs", "ask", "rebase", "tags"):
        schema["properties"][name] = {"anyOf": [schema["properties"][name], {"type": "null"}]}
    # Not oneOf, of which generators of clients make a union of types, and lose all other fields.
    schema["if"] = {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}}
    schema["then"] = {"properties": {"messages": {"type": "null"}}}
    schema["else"] = {"required": ["messages"], "properties": {"messages": {"type": "array"}}}


class Wish(BaseModel):
    """What is to become of what a run has done."""

    model_config = ConfigDict(extra="forbid")
    push: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="A branch to push to; {run} in it stands for the run's id"
    )
    message: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = Field(
        default=None, description="The first line of the commit's message"
    )
    pull_request: bool = Field(
        default=False, description="Whether one is opened at GitHub, from the branch to the one that was worked on"
    )
    archive: bool = Field(default=False, description="Whether the whole directory is among the artifacts, tree.tar.gz")

    @model_validator(mode="after")
    def _something(self) -> Wish:
        if self.push is None and (self.message is not None or self.pull_request or not self.archive):
            raise ValueError("push or archive is needed; a message is that of a push, and a pull_request is one's, too")
        return self


class InvokeRequest(BaseModel):
    """A prompt, or a conversation whose last message is the user's, and the wishes about how to run it.

    Wishes only narrow: the gateway's clamps and the operator's settings bind whatever is asked for here.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=_or_null)

    # One of the two.
    prompt: Annotated[str, Field(min_length=1)] = ""
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)] = []
    system: str | None = Field(default=None, description="System prompt; without it the CLI's own")
    context: dict[str, Fact] | None = Field(
        default=None, description="Facts shown to the model above the prompt, e.g. repository and branch"
    )
    model: Name | None = None
    tools: Annotated[list[ToolName], Field(max_length=64)] | None = None
    skills: Annotated[list[EntryName], Field(max_length=64)] | None = Field(
        default=None, description="Of the catalog; without it the tier's default ones, with an empty list none"
    )
    agents: Annotated[list[EntryName], Field(max_length=64)] | None = Field(
        default=None, description="Of the catalog: whom the model may hand a part of its work to"
    )
    mcp: Annotated[list[EntryName], Field(max_length=64)] | None = Field(
        default=None, description="MCP servers of the catalog, whose tools the model may call"
    )
    max_turns: Annotated[int, Field(ge=1, le=1000)] | None = None
    max_budget_usd: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] | None = None
    session: Annotated[str, Field(pattern=r"^(new|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")] | None = Field(
        default=None, description="`new` starts a conversation, its id (from an answer) continues it"
    )
    output_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema the result must follow")
    timeout_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    files: Annotated[list[InputFile], Field(max_length=1000)] = Field(
        default=[], description="Files to work on; in the place of the repository's or session's where it has them"
    )
    archive: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="A .zip or .tar.gz in base64, which is unpacked before files are put there"
    )
    check: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="A command of Bash that is run in the directory when the model is done"
    )
    max_repairs: Annotated[int, Field(ge=0, le=10)] = Field(
        default=0, description="How often a check that has failed is handed back to the model"
    )
    junit: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Where the check leaves its report, relative to the directory"
    )
    result: Wish | None = None
    ask: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=32)] = Field(
        default=[],
        description="Calls of tools that you want to be asked about besides those that your tier asks about, such as "
        "`Bash` or `Edit(/src/**)`",
    )
    rebase: bool = Field(
        default=False, description="Whether a session on a repository goes on at the commit where its branch is now"
    )
    tags: Annotated[list[Label], Field(max_length=8), AfterValidator(_each_once)] = Field(
        default=[], description="Labels by which it is found again, such as `nightly`; nothing is decided by them"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """As clients in Go, Java and C# write what is not set."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name not in cls.model_fields}

    @model_validator(mode="after")
    def _one_of_prompt_and_messages(self) -> InvokeRequest:
        if len(self.model_fields_set & {"prompt", "messages"}) != 1:
            raise ValueError("exactly one of prompt and messages is needed")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if self.messages[-1].is_blank if self.messages else not self.prompt.strip():
            raise ValueError(f"{'the last message' if self.messages else 'prompt'} has nothing but blanks")
        if self.check is None and (self.max_repairs or self.junit is not None):
            raise ValueError("max_repairs and junit are of a check: say what is to be run (check)")
        if self.rebase and self.session in (None, "new"):
            raise ValueError("rebase is of a session that goes on: say which (session)")
        return self


class Usage(BaseModel):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Artifact(BaseModel):
    path: str
    size: int
    type: str
    sha256: str
    href: str = ""
    pending: bool = Field(default=False, description="It is not in the store yet; the invoker that ran it has it")


class Upload(BaseModel):
    """A file that was put for later requests, which is its caller's alone."""

    sha256: str
    size: int
    expires_at: float = Field(description="In seconds since the epoch; to put it again makes that later")


class UploadList(BaseModel):
    files: list[Upload]


class LeftOut(BaseModel):
    path: str
    reason: str


class RepositoryAt(BaseModel):
    """What a run works on."""

    name: str
    ref: str | None = Field(default=None, description="The branch or tag that was asked for, or the default branch")
    commit: str = Field(description="The commit's full id")


class Change(BaseModel):
    """What a run has done to one file of its repository."""

    path: str
    status: Literal["added", "modified", "deleted", "type"]
    added: int | None = Field(default=None, description="Lines; null: not text")
    removed: int | None = None


class Check(BaseModel):
    """How the command has ended that was to be run when the model was done."""

    command: str
    passed: bool = Field(description="Whether it has ended by itself, with exit code 0")
    exit_code: int | None = Field(default=None, description="null: it was ended")
    ended_for: Literal["", "timeout", "output"] = Field(
        default="", description="What it was ended for: the run's time, or more than 64 MiB printed"
    )
    output: str = Field(description="The last 20,000 characters of what it has printed")
    truncated: bool = Field(default=False, description="Whether it has printed more than that")
    duration_ms: int
    repairs: int = Field(description="How often a failure was handed back to the model before this")
    junit: str | None = Field(default=None, description="Its report, where it has left one: a path among the artifacts")


class Pushed(BaseModel):
    """The branch that was asked for."""

    branch: str
    commit: str | None = Field(default=None, description="What it is at now; null: it was not pushed")
    pull_request: str | None = Field(default=None, description="Where it is; null: none was asked for, or opened")
    problem: str | None = Field(default=None, description="Why it was not, or why there is no pull request")


class PermissionDenial(BaseModel):
    tool: str
    input: dict[str, Any] = Field(default_factory=dict)


class Permission(BaseModel):
    """A call of a tool that waits for somebody to allow or deny it. Times are seconds since the epoch."""

    id: str
    tool: str
    input: dict[str, Any] = Field(description="As it will run")
    call: str = Field(default="", description="The id of the call, as in the events `tool`")
    agent: str | None = Field(default=None, description="The kind of subagent that calls it; null: the run itself")
    why: str = Field(description="Which rule asks")
    asked_at: float
    expires_at: float = Field(description="When it is denied, where nobody decides")


Answer = Annotated[str, Field(min_length=1, max_length=2000)]


class PermissionAnswer(BaseModel):
    """What somebody decides about a call of a tool."""

    model_config = ConfigDict(extra="forbid")
    decision: Literal["allow", "deny"]
    message: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None, description="Of a denial: why, for the model"
    )
    input: dict[str, Any] | None = Field(default=None, description="What is to run instead")
    answers: dict[str, Answer | Annotated[list[Answer], Field(min_length=1, max_length=100)]] | None = Field(
        default=None, description="To what the model has asked (`AskUserQuestion`): by the text of each question"
    )
    remember: Literal["once", "run", "session"] = Field(
        default="once",
        description="`run`: the same call with the same input is decided so until the run ends; `session`: in the "
        "later turns of its session, too",
    )

    @model_validator(mode="after")
    def _of_the_decision(self) -> PermissionAnswer:
        if self.decision == "allow" and self.message is not None:
            raise ValueError("message is of a denial")
        if self.decision == "deny" and self.input is not None:
            raise ValueError("input is of what is allowed")
        if self.input is not None and self.remember != "once":
            raise ValueError("remember is of what the model has asked for, and input is another")
        if self.answers is not None and (self.decision == "deny" or self.input is not None or self.remember != "once"):
            raise ValueError("answers are allowed once, and as they are")
        return self


Reason = Literal["answered", "remembered", "timeout", "ended"]


class PermissionDecision(BaseModel):
    """What has become of a call of a tool that was asked about."""

    id: str
    tool: str
    decision: Literal["allow", "deny"]
    reason: Reason = Field(
        description="answered: by somebody; remembered: as the same before; timeout, ended: nobody has, in time or "
        "before it was not asked any more"
    )
    by: str | None = Field(default=None, description="The subject who has decided")
    message: str | None = None
    input: dict[str, Any] | None = Field(default=None, description="What has run instead")
    answers: dict[str, str] | None = Field(default=None, description="To the model's questions, by their texts")
    decided_at: float


class MessageToRun(BaseModel):
    """What a run's caller says to its model while it is at work."""

    model_config = ConfigDict(extra="forbid")
    message: str = Field(min_length=1, max_length=100_000)


class SentMessage(BaseModel):
    """What has become of it."""

    id: str
    message: str
    state: Literal["queued", "taken", "cancelled", "lost"] = Field(
        description="queued: the model has not seen it; taken: it has; cancelled: it was taken back; lost: the run has "
        "ended before"
    )
    sent_at: float


class RunResult(BaseModel):
    """What a finished run answers."""

    id: str
    result: str
    structured: Any = None
    model: str
    instead_of: str | None = Field(
        default=None, description="The model that it would have been, were the budget not used up"
    )
    session: str | None = None
    usage: Usage = Usage()
    cost_usd: float = 0.0
    duration_ms: int = 0
    num_turns: int = 0
    stop_reason: str
    budget: str = Field(default="", description="Which budget is used up until when, where it is not the run's own")
    permission_denials: list[PermissionDenial] = []
    artifacts: list[Artifact] = []
    left_out: list[LeftOut] = Field(
        default=[], description="Files that the run left and that are not among the artifacts"
    )
    isolation: str = ""
    egress: list[str] = Field(default=[], description="Hosts that it was led to besides the API, as host:port")
    repository: RepositoryAt | None = Field(default=None, description="What it worked on; null: it began with no files")
    changes: list[Change] = Field(
        default=[], description="What it has done to the repository's files, the first 1,000; changes.patch has all"
    )
    check: Check | None = Field(default=None, description="The last of its checks; null: none was asked for")
    pushed: Pushed | None = Field(default=None, description="null: no branch was asked for")
    decisions: list[PermissionDecision] = Field(default=[], description="About its calls of tools, the first 1,000")


State = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
ListedState = Literal["running", "succeeded", "failed", "cancelled"]
"""In lists, which do not say whether a run waits for a place."""
OVER: tuple[ListedState, ...] = ("succeeded", "failed", "cancelled")


class RunView(BaseModel):
    """A run as `GET /runs/{id}` shows it."""

    id: str
    state: State
    created_at: float
    finished_at: float | None = None
    cost_usd: float = 0.0
    result: RunResult | None = None
    error: dict[str, Any] | None = None
    artifacts: list[Artifact] = []
    left_out: list[LeftOut] = []
    isolation: str = ""
    egress: list[str] = []
    repository: RepositoryAt | None = None
    changes: list[Change] = []
    check: Check | None = None
    pushed: Pushed | None = None
    permissions: list[Permission] = Field(default=[], description="Its calls of tools that wait to be allowed")
    decisions: list[PermissionDecision] = []
    tags: list[str] = []


class RunSummary(BaseModel):
    """A run in a list. Times are seconds since the epoch. Of one that goes on `session` and `model` are as it began,
    and `cost_usd` is 0."""

    id: str
    state: ListedState
    created_at: float
    finished_at: float | None = None
    model: str = ""
    session: str | None = None
    repository: str | None = Field(default=None, description="What it worked on; null: it began with no files")
    cost_usd: float = 0.0
    tags: list[str] = []
    links: dict[str, str] = {}


class RunList(BaseModel):
    runs: list[RunSummary]
    next: str | None = Field(default=None, description="Cursor of the next page; absent at the end")
