"""The calls of tools of one run that somebody has to allow first: what waits, who decides, and what was decided.

The CLI asks about every call before it runs it (its `PreToolUse` hook) and waits. What the rules let pass is answered
at once; what is asked about waits here until it is decided, by a person or by its time. Whatever ends the run ends what
waits, and nothing of it runs. What the model itself asks (`AskUserQuestion`) is such a call: who allows it answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_contract.rules import QUESTION, Decision, Place, Rules, Verdict, strictest
from claude_invoker.catalog.server import PREFIX
from claude_invoker.cli.messages import HookCall
from claude_invoker.cli.process import Allow, Defer, Deny, HookAnswer, Proceed
from claude_invoker.model import Permission, PermissionAnswer, PermissionDecision, Reason
from claude_invoker.problem import Problem
from claude_invoker.runs import later
from claude_invoker.runs.deferral import Deferral, call_key
from claude_invoker.runs.questions import answers_to, questions_of

_log = logging.getLogger(__name__)
MAX_WAITING = 16
"""Of a run at once; the CLI asks about few at a time."""
MAX_ASKED = 500
"""Of a run in all: somebody has to read them."""
MAX_INPUT = 256 << 10
"""Bytes of JSON; a larger input is denied, since nobody could be shown what runs."""
MAX_DECIDED = 4 << 20
"""Bytes of JSON of what is given with a run's decisions in all, and of the calls that are remembered: a job has them in
its record, which is written once a second."""

_AGAIN_S = 1.0
"""After which it is looked again whether a call can be deferred."""
Reply = Callable[[HookAnswer], None]


@dataclass
class _Held:
    shown: Permission
    request_id: str
    key: str
    place: Place
    reply: Reply
    timer: asyncio.TimerHandle
    deferring: asyncio.TimerHandle | None = None


class Permissions:
    """`tell`: adds an event to the run's; `owner`: the subject whose run it is."""

    def __init__(
        self, rules: Sequence[Rules], timeout_s: float, owner: str, tell: Callable[[str, Any], object]
    ) -> None:
        self._rules = tuple(filter(None, rules))
        self._timeout_s = timeout_s
        self._owner = owner
        self._tell = tell
        self._held: dict[str, _Held] = {}
        self.remembered: dict[str, PermissionDecision] = {}
        self.has_session = False
        self._for_session: dict[str, PermissionDecision] = {}
        """What is to be remembered in later turns, too."""
        self._brought: dict[str, PermissionDecision] = {}
        self.asked = 0
        self.defers_after_s: float | None = None
        self.can_defer: Callable[[str], bool] = lambda call: False
        """Whether the CLI defers that call, by its id, if it is told to."""
        self.before_deferring: Callable[[Permission], None] = lambda asked: None
        """Notes what the CLI is about to leave in the session, which outlives this process. Raises OSError."""
        self.deferred: Permission | None = None
        """What it was told to defer, after which it ends."""
        self.on_deferring: Callable[[], None] = lambda: None
        """Told when the CLI is told so."""
        self._closed = False
        self.is_heard = False
        """Whether somebody learns what the model asks: who has a run's stream, or a job."""
        self._let: Counter[bytes] = Counter()
        """Digests of calls of MCP servers that were let pass, and have not been made yet (`spend`)."""
        self.decided: dict[str, PermissionDecision] = {}
        """By their ids, the first to the last."""
        self.on_change: Callable[[], None] = lambda: None
        """Told when something begins to wait, or waits no more."""
        self.on_decided: Callable[[PermissionDecision, Mapping[str, Any]], None] = lambda decision, given: None
        """Told of each decision, and what the call was to run with."""

    @property
    def waiting(self) -> list[Permission]:
        """The oldest first."""
        return [held.shown for held in self._held.values()]

    async def take(self, call: HookCall, place: Place, reply: Reply) -> None:
        """Answers a call of a tool, or lets it wait."""
        if call.tool == QUESTION:
            if not await self._was_decided(call, place, reply):
                self._ask(call, "the model asks", place, reply)
            return
        found = await asyncio.to_thread(self._decision, call.tool, call.input, place)
        if found.verdict is not Verdict.DENY and await self._was_decided(call, place, reply):
            return
        if found.verdict is Verdict.DENY:
            reply(Deny(f"The rules of this service do not allow it: {found.why}."))
        elif found.verdict is Verdict.ALLOW:
            # What no rule names is the CLI's own business: an answer would open more than the run has.
            is_named = self._is_named(call.tool)
            if is_named:
                self._let_pass(call.tool, call.input)
            reply(Allow() if is_named else Proceed())
        else:
            self._ask(call, found.why, place, reply)

    def spend(self, tool: str, given: Mapping[str, Any]) -> bool:
        """Whether a call of an MCP server that is made now was let pass, once for each time that it was; always of a
        tool that no rule names. What does not come by the CLI, which asks, has not been let pass."""
        if not self._is_named(tool):
            return True
        key = _digest(tool, given)
        if self._let[key] == 0:
            return False
        self._let[key] -= 1
        return True

    def _is_named(self, tool: str) -> bool:
        return any(rules.names(tool) for rules in self._rules)

    def _decision(self, tool: str, given: Mapping[str, Any], place: Place) -> Decision:
        return strictest([rules.decide(tool, given, place) for rules in self._rules])

    def bring(self, deferral: Deferral, decided: Sequence[PermissionDecision]) -> None:
        """What the run's earlier parts have asked about; the last of it is decided, and not asked again."""
        self.remembered, self.asked = dict(deferral.remembered), deferral.asked
        self._for_session = dict(deferral.for_session)
        self.decided = {decision.id: decision for decision in decided}
        asked = deferral.permission
        if (decision := self.decided.get(asked.id)) is not None:
            self._brought[call_key(asked.tool, asked.input)] = decision

    async def _was_decided(self, call: HookCall, place: Place, reply: Reply) -> bool:
        """Answers the call that was deferred as it was decided: once, and only this very one, since what the CLI has
        noted of it was the run's to change. What somebody has put in its place was not held against its files yet."""
        decision = self._brought.pop(call_key(call.tool, call.input), None)
        if decision is None:
            return False
        answer = _answer_of(decision, call.input)
        if isinstance(answer, Allow) and answer.input is not None and call.tool != QUESTION:
            found = await asyncio.to_thread(self._decision, call.tool, answer.input, place)
            if found.verdict is Verdict.DENY:
                answer = Deny(f"The rules of this service do not allow it: {found.why}.")
        if isinstance(answer, Allow):
            self._let_pass(call.tool, call.input if answer.input is None else answer.input)
        reply(answer)
        return True

    def _ask(self, call: HookCall, why: str, place: Place, reply: Reply) -> None:
        key = call_key(call.tool, call.input)
        is_question = call.tool == QUESTION
        if is_question and not (self.is_heard and questions_of(call.input)):
            reply(Deny("Nobody is there to answer. Go on as you think best, and say what you have assumed."))
            return
        if (before := self.remembered.get(key)) is not None:
            again = before.model_copy(update={"id": _new_id(), "reason": "remembered", "decided_at": time.time()})
            self._record(again, call.input)
            if before.decision == "allow":
                self._let_pass(call.tool, call.input if before.input is None else before.input)
            reply(_answer_of(before, call.input))
            return
        if len(key) > MAX_INPUT:
            reply(
                Deny(f"It has to be allowed by a person, and more than {MAX_INPUT >> 10} KiB cannot be shown to one.")
            )
            return
        if len(self._held) >= MAX_WAITING or self.asked >= MAX_ASKED:
            reply(Deny("It has to be allowed by a person, who has been asked too much already."))
            return
        self.asked += 1
        now = time.time()
        shown = Permission(
            id=_new_id(),
            tool=call.tool,
            input=call.input,
            call=call.call,
            agent=call.agent,
            why=why,
            asked_at=now,
            expires_at=now + self._timeout_s,
        )
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._timeout_s, self._expire, shown.id)
        held = self._held[shown.id] = _Held(shown, call.request_id, key, place, reply, timer)
        if self.defers_after_s is not None:
            held.deferring = loop.call_later(self.defers_after_s, self._defer, held)
        self._tell("question.asked" if is_question else "permission.requested", shown.model_dump(mode="json"))
        self.on_change()

    def _defer(self, held: _Held) -> None:
        """Whoever decides from now on is heard by the run's next part."""
        if not (self.can_defer(held.shown.call) and self._is_noted(held.shown)):
            held.deferring = asyncio.get_running_loop().call_later(_AGAIN_S, self._defer, held)
            return
        self.deferred = held.shown
        self.on_deferring()
        held.reply(Defer())
        held.reply = lambda answer: None

    def _is_noted(self, asked: Permission) -> bool:
        try:
            self.before_deferring(asked)
        except OSError as error:
            _log.error("a call is held, for it cannot be noted that it is put away: %s", error.strerror)
            return False
        return True

    def answer(self, permission_id: str, given: PermissionAnswer, by: str) -> PermissionDecision:
        """Decides, in the name of the subject `by`.

        Raises Problem 404, 409 where it is decided already, 403 for one's own run where four eyes are needed, 422 for
        an input that the rules deny, as things are now, and for answers that are none to what the model asks."""
        refuse_own(self._rules, by, self._owner)
        held = self._held.get(permission_id)
        if held is None:
            raise decided_already(permission_id, self.decided.values())
        if self._closed:
            raise Problem(503, "busy", "the run is being put away", {"Retry-After": "1"})
        if given.remember == "session":
            later.refuse(held.key, self._for_session, has_session=self.has_session)
        refuse_more(given, held.key, self.decided.values(), self.remembered)
        decision = decision_about(held.shown, given, by, self._owner, self._rules, held.place)
        if given.remember == "session":
            self._for_session[held.key] = decision
        if given.remember != "once":
            self.remembered[held.key] = decision
        self._decide(decision, _answer_of(decision, held.shown.input))
        return decision

    def recall(self, lines: Iterable[str]) -> None:
        """What earlier turns of the session have left: under the same rules it holds."""
        self.has_session = True
        self.remembered |= later.read(lines, self._rules)

    def for_later(self) -> list[str]:
        """What is left for later turns, as `recall` reads it."""
        return later.written(self._for_session, self._rules)

    def withdraw(self, request_id: str) -> None:
        """The CLI does not want to know any more."""
        for held in list(self._held.values()):
            if held.request_id == request_id:
                self._decide(_denied(held.shown, "ended", "It is not asked any more."), None)

    def end(self, *, is_deferred: bool = False) -> None:
        """Nothing waits any more: its process has ended, or is about to. So it is not answered, or the model would go
        on until then. `is_deferred`: what it was told to defer waits on."""
        if not is_deferred:
            self.deferred = None
        for held in list(self._held.values()):
            if held.shown is not self.deferred:
                self._decide(_denied(held.shown, "ended", "The run has ended."), None)

    def as_decided(self, deferral: Deferral) -> Deferral:
        """With what has been decided about it since it was to be put away: that holds in the run's next part as it
        would have in this one."""
        asked = deferral.permission
        key = call_key(asked.tool, asked.input)
        decision = self._for_session.get(key) if asked.id in self.decided else None
        for_session = {} if decision is None else {key: decision}
        return deferral.model_copy(update={"remembered": dict(self.remembered), "for_session": for_session})

    def close(self) -> None:
        """The run's part is over: what was deferred is decided elsewhere from now on."""
        self._closed = True
        for held in self._held.values():
            _rest(held)

    def _expire(self, permission_id: str) -> None:
        decision = too_late(self._held[permission_id].shown, self._timeout_s)
        self._decide(decision, Deny(decision.message or ""))

    def _decide(self, decision: PermissionDecision, answer: HookAnswer | None) -> None:
        held = self._held.pop(decision.id)
        _rest(held)
        if decision.decision == "allow":
            self._let_pass(decision.tool, held.shown.input if decision.input is None else decision.input)
        if answer is not None:
            held.reply(answer)
        self._record(decision, held.shown.input)
        self.on_change()

    def _let_pass(self, tool: str, given: Mapping[str, Any]) -> None:
        if tool.startswith(PREFIX):
            self._let[_digest(tool, given)] += 1

    def _record(self, decision: PermissionDecision, given: Mapping[str, Any]) -> None:
        awaited = self.deferred is not None and decision.id == self.deferred.id
        if awaited or len(self.decided) < 2 * MAX_ASKED:  # remembered ones have no other bound
            self.decided[decision.id] = decision
        self._tell("permission.decided", decision.model_dump(mode="json", exclude_none=True))
        self.on_decided(decision, given)


def _digest(tool: str, given: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(call_key(tool, given).encode()).digest()


def decision_about(
    asked: Permission, given: PermissionAnswer, by: str, owner: str, rules: Sequence[Rules], place: Place
) -> PermissionDecision:
    """What somebody decides, in the name of the subject `by`. Raises Problem 403 for one's own run where four eyes are
    needed, 422 for an input that the rules deny, as things are now, and for answers that are none to what the model
    asks."""
    refuse_own(rules, by, owner)
    if given.input is not None and len(call_key(asked.tool, given.input)) > MAX_INPUT:
        raise Problem(422, "invalid", f"input has more than {MAX_INPUT >> 10} KiB")
    if given.decision == "allow":
        # Also as it was asked about: while it waits, its path may have come to lead elsewhere.
        runs = asked.input if given.input is None else given.input
        found = strictest([each.decide(asked.tool, runs, place) for each in rules])
        if found.verdict is Verdict.DENY:
            raise Problem(422, "invalid", f"input: {found.why}")
    return PermissionDecision(
        id=asked.id,
        tool=asked.tool,
        decision=given.decision,
        reason="answered",
        by=by,
        message=given.message,
        input=given.input,
        answers=answers_to(asked, given),
        decided_at=time.time(),
    )


def refuse_more(
    given: PermissionAnswer, key: str, decided: Iterable[PermissionDecision], remembered: Collection[str]
) -> None:
    """Raises Problem 422 where this would be more than is kept of a run; it can be denied, or allowed as it is."""
    most = f"more than {MAX_DECIDED >> 20} MiB"
    if given.input is not None or given.answers is not None:
        before = sum(len(each.model_dump_json(exclude_none=True)) for each in decided)
        if before + len(given.model_dump_json(exclude_none=True)) > MAX_DECIDED:
            raise Problem(422, "invalid", f"what was decided about this run has {most}: allow it as it is, or deny it")
    if given.remember != "once" and sum(map(len, remembered)) + len(key) > MAX_DECIDED:
        raise Problem(422, "invalid", f"remember: the calls of this run that are remembered have {most}")


def too_late(asked: Permission, timeout_s: float) -> PermissionDecision:
    """What becomes of a call that nobody has decided about."""
    return _denied(asked, "timeout", f"Nobody has allowed it within {timeout_s:g} seconds.")


def _denied(asked: Permission, reason: Reason, message: str) -> PermissionDecision:
    """By nobody."""
    return PermissionDecision(
        id=asked.id, tool=asked.tool, decision="deny", reason=reason, message=message, decided_at=time.time()
    )


def decided_already(permission_id: str, decisions: Iterable[PermissionDecision]) -> Problem:
    """What is said of a call that does not wait."""
    for decision in decisions:
        if decision.id == permission_id:
            return Problem(409, "conflict", f"it is decided already: {decision.decision}")
    return Problem(404, "not-found", "there is no such permission")


def refuse_own(rules: Sequence[Rules], by: str, owner: str) -> None:
    """Raises Problem 403 where four eyes are needed and these are the same two."""
    if by == owner and any(each.four_eyes for each in rules):
        raise Problem(403, "forbidden", "somebody else has to decide: nobody does about a run of their own (four_eyes)")


def _rest(held: _Held) -> None:
    held.timer.cancel()
    if held.deferring is not None:
        held.deferring.cancel()


def _answer_of(decision: PermissionDecision, asked: Mapping[str, Any]) -> HookAnswer:
    """For the CLI, which has asked about that input."""
    if decision.decision == "allow":
        return Allow(decision.input if decision.answers is None else {**asked, "answers": decision.answers})
    return Deny(decision.message or "Somebody was asked, and does not allow it.")


def _new_id() -> str:
    return "perm_" + secrets.token_hex(12)


def place_in(work: Path) -> Place:
    """Where the paths of a run's calls really are, as `claude_contract.rules` asks. The run may make any links: the
    kernel follows them, forty at most, and what has a second name, or leads out of `work`, is at no place."""

    def place(path: str) -> str | None:
        if not path.startswith("/") or ".." in path.split("/"):
            return None
        missing: list[str] = []  # what a tool would make
        try:
            while (found := _opened(path)) is None:
                if os.path.lexists(path):  # a link that leads nowhere yet
                    return None
                path, _, name = path.rstrip("/").rpartition("/")
                missing.insert(0, name)
            real = os.path.relpath("/".join((found, *missing)), work)
        except (OSError, ValueError):
            return None
        return None if real == ".." or real.startswith("../") else real

    return place


def _opened(path: str) -> str | None:
    """The path without links of what is there; None for nothing. Raises OSError, ValueError, also for a file with
    several names."""
    try:
        descriptor = os.open(path or "/", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink != 1:
            raise ValueError("a file with several names")
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    finally:
        os.close(descriptor)
