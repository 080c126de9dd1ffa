"""Fewer round trips for an event that Kong's Lua half of a plugin has sent (`kong-claude guard --pair`).

Such an event names its phase as `[phase, protocol, number, id of questions, answer, …]`: what the plugin asked for in
earlier events of its instance is answered in it. What the plugin tells without awaiting an answer is collected and sent
in front of the event's next message, as a notification `[number, new questions, [method, arguments], …]`; the Lua half
acts on it before Kong reads that message. So everything happens in the order in which the plugin said it, and a plugin
cannot tell such an event from another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kong_claude.server.wire import pack, pack_large

PROTOCOL = 1
LABEL = "claude-pair"
NOTIFICATION = b"\x93\x02" + pack(LABEL)  # then what is told
FALSE = b"\xc2"  # no new questions; not nil, which would leave a hole in Lua's table
MAX_QUESTIONS = 12
SERIALIZE = "kong.log.serialize"  # asked beforehand in the log phase, as nothing else is
SET_BODY = "kong.service.request.set_raw_body"
MIN_SPLICE = 64  # bytes that a splice has to save

ASKED = frozenset(
    {
        "kong.client.get_consumer",
        "kong.client.get_credential",
        "kong.client.get_forwarded_ip",
        "kong.ctx.shared.get",
        SERIALIZE,
        "kong.nginx.get_var",
        "kong.request.get_headers",
        "kong.request.get_method",
        "kong.request.get_raw_body",
        "kong.request.get_raw_query",
        "kong.request.get_uri_captures",
    }
)
"""What can be answered beforehand: questions that change nothing."""
TOLD = frozenset(
    {
        "kong.ctx.shared.set",
        "kong.log.set_serialize_value",
        "kong.response.set_headers",
        "kong.service.request.set_headers",
        "kong.service.request.set_raw_body",
        "kong.service.request.set_raw_query",
    }
)
"""What can be told without awaiting an answer. `kong.client.authenticate` is not: plugins in between look for it."""
# What is told that leaves all answers as they are.
HARMLESS = frozenset({"kong.log.set_serialize_value", "kong.response.set_headers"})

Question = tuple[Any, ...]  # a method and its arguments


class Questions:
    """What the events of one instance ask. It grows, so that what was asked once is known by every later event."""

    __slots__ = ("_lists", "current", "id", "packed")

    def __init__(self, first_id: int) -> None:
        """`first_id`: no other process's, so that answers to its questions are not taken for ours."""
        self.id = first_id
        self.current: list[Question] = []
        self.packed = FALSE
        self._lists: dict[int, list[Question]] = {}

    def learn(self, question: Question) -> None:
        if len(self.current) >= MAX_QUESTIONS or question in self.current:
            return
        self.current = [*self.current, question]
        self.id += 1
        self._lists[self.id] = self.current
        self.packed = pack([self.id, *self.current])

    def answered(self, id_: int, answers: list[Any]) -> dict[Question, Any]:
        """Question → answer. Nothing where these are not answers to questions of ours."""
        asked = self._lists.get(id_)
        return dict(zip(asked, answers, strict=True)) if asked and len(asked) == len(answers) else {}


class Given(NamedTuple):
    """The EventName of such an event."""

    phase: str
    number: int
    questions: int
    answers: list[Any]


def given(name: Any) -> Given | None:
    """None for what is no such event, or of another protocol."""
    if type(name) is not list or len(name) < 4:
        return None
    phase, protocol, number, questions, *answers = name
    if type(phase) is not str or protocol != PROTOCOL or type(number) is not int or type(questions) is not int:
        return None
    return Given(phase, number, questions, answers)


class Pair:
    """The state of one event."""

    __slots__ = ("_answers", "_body", "_later", "_logs", "_number", "_questions", "_told_id")

    def __init__(self, questions: Questions, event: Given) -> None:
        self._questions = questions
        self._told_id = event.questions
        self._logs = event.phase == "log"
        self._number = pack(event.number)
        self._answers = questions.answered(event.questions, event.answers)
        self._later: list[bytes] = []
        self._body: bytes | None = None

    def ask(self, question: Question) -> tuple[bool, Any]:
        """(True, the answer) where it came with the event. Else it is remembered, for the events to come."""
        try:
            answer = self._answers[question]
        except KeyError:
            if (question[0] == SERIALIZE) is self._logs:
                self._questions.learn(question)
            return False, None
        except TypeError:  # no hashable arguments: nothing that can be asked beforehand
            return False, None
        name = question[0]
        if name == "kong.request.get_headers":
            # As Kong sends them when it is asked: lists of values.
            fixed = {k: [v] if type(v) is str else [] if v is True else v for k, v in answer.items()} if answer else {}
            return True, fixed
        if name == "kong.request.get_raw_body":
            if answer is False:  # too large to be read beforehand
                return False, None
            self._body = as_bytes(answer)
            return True, self._body
        return True, answer

    def answer(self, name: str, value: Any) -> None:
        """Kong has answered a call of this event."""
        if name == "kong.request.get_raw_body" and value is not None:
            self._body = as_bytes(value)
        elif not name.startswith("kong.log") and not name.rpartition(".")[2].startswith(("get", "load_", "is_")):
            self._answers = {}  # it may have changed something: a consumer, a header
            self._body = None

    def tell(self, name: str, head: bytes, args: tuple[Any, ...]) -> None:
        """`head`: of `told_part(name)`. Raises what packing raises, for arguments that MessagePack cannot carry."""
        if name == SET_BODY:
            if len(args) == 1 and self._body is not None:
                old, self._body = self._body, as_bytes(args[0])
                name, args = spliced(old, self._body)
            self._later.append(told_part(name) + pack_large(args))
        else:
            self._later.append(head + pack(args))
        if name not in HARMLESS:
            self._answers = {}

    def flush(self) -> bytes:
        """What has to travel in front of the next message."""
        new = self._told_id != self._questions.id and self._questions.packed is not FALSE
        if not self._later and not new:
            return b""
        questions = self._questions.packed if new else FALSE
        self._told_id = self._questions.id
        later, self._later = self._later, []
        return b"".join((NOTIFICATION, array(2 + len(later)), self._number, questions, *later))


def told_part(name: str) -> bytes:
    """The constant begin of what is told; the packed arguments follow."""
    return b"\x92" + pack(name)


def array(length: int) -> bytes:
    """MessagePack's head of an array."""
    return bytes((0x90 + length,)) if length < 16 else b"\xdc" + length.to_bytes(2, "big")


def as_bytes(body: bytes | str) -> bytes:
    return body if isinstance(body, bytes) else body.encode("utf-8", "surrogateescape")


def spliced(old: bytes, new: bytes) -> tuple[str, tuple[Any, ...]]:
    """The call for a new body where Kong has the old one: only what differs, if that saves something."""
    most = min(len(old), len(new))
    start = alike(most, lambda low, high: old[low:high] == new[low:high])
    end = alike(most - start, lambda low, high: ends(old, low, high) == ends(new, low, high))
    if start + end < MIN_SPLICE:
        return SET_BODY, (new,)
    return "splice", (start, len(old) - start - end, new[start : len(new) - end])


def ends(body: bytes, low: int, high: int) -> bytes:
    """What is `low` to `high` bytes before the end."""
    return body[len(body) - high : len(body) - low]


def alike(most: int, same: Callable[[int, int], bool]) -> int:
    """How many bytes are the same, of at most `most`; by halves, since comparing slices is quick."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low
