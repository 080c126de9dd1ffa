"""`/claude/admin/limits`: limits are changed for a while, listed, taken back and explained, by the role `admin`.

Each change leaves its line for the audit log in the script that makes it, each refused attempt one by itself; the
invoker writes them (docs/audit.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from claude_contract.identity import Identity
from claude_contract.ledger import (
    Admit,
    LedgerUnavailable,
    Window,
    Windows,
    subject_key,
)
from claude_contract.ledger.live import Target
from kong_claude.decision import Answer, Decision, Refuse
from kong_claude.rate_tiers.explain import explanation
from kong_claude.rate_tiers.looking import ADMIN, About
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.wishes import (
    MAX_BODY,
    Configured,
    Wrong,
    read_change,
    read_query,
    shown,
    time_of,
)
from kong_claude.request import Request

_METHODS = ("GET", "PUT", "DELETE")
_REFUSED_A_MINUTE = Windows((Window("minute", 10),))
"""Refused attempts of a subject that leave a line each: the log must not be filled by whoever has a token."""
_FRESH = {"Cache-Control": "no-store"}


class Admin:
    """`redis`: None where limits are counted in this process."""

    def __init__(self, configured: Configured, redis: RedisLedger | None, *, pools: bool) -> None:
        self.configured = configured
        self.redis = redis
        self.pools = pools

    def access(self, request: Request) -> Decision:
        """Answers; nothing goes upstream."""
        identity, method = request.identity, request.line.method
        if identity is None:
            return Refuse(401, "no subject is known for this request", "no_identity")
        try:
            if ADMIN not in identity.roles:
                raise Wrong(f"this needs the role {ADMIN}", 403, "not_admin")
            if method not in _METHODS:
                raise Wrong(f"only {', '.join(_METHODS)} are known here", 405, "unknown_method")
            store = self._store()
            if method == "PUT":
                return self._put(request, identity, store)
            query = read_query(request.raw_query)
            if method == "DELETE":
                return self._delete(request, identity, store, query)
            if query.pop("explain", "false") == "true":
                return self._explain(store, query)
            return self._list(store, query)
        except Wrong as wrong:
            if method != "GET" or wrong.refusal.status == 403:
                self._note_refused(request, identity, wrong.refusal)
            return wrong.refusal
        except LedgerUnavailable as error:
            request.kong.log.err(f"limits cannot be read or changed: {error}")
            return Refuse(503, "limits cannot be read or changed now", "limits_unavailable", {"Retry-After": "1"})

    def _store(self) -> RedisLedger:
        """Raises Wrong where changes could not be seen by every admission."""
        if self.redis is None:
            raise Wrong(
                "limits are counted by each plugin server alone (policy: local), so that no change would reach all of "
                "them: policy: redis is needed",
                501,
                "needs_redis",
            )
        return self.redis

    def _put(self, request: Request, identity: Identity, store: RedisLedger) -> Decision:
        body = request.body(MAX_BODY)
        if body is None:
            raise Wrong(f"the body is larger than {MAX_BODY} bytes", 413, "body_too_large")
        key, target, change = read_change(body, self.configured, identity.subject, datetime.now(UTC))
        made = shown(change)
        line = _line("limits.change", request, identity, target, {"why": change.why, "until": made["until"]})
        try:
            store.change(key, target, change, line)
        except OverflowError as error:
            raise Wrong(str(error), 409, "too_many_changes") from None
        stopped = self.configured.stopped(target, change)
        return Answer(200, made | ({"warnings": stopped} if stopped else {}), _FRESH)

    def _delete(self, request: Request, identity: Identity, store: RedisLedger, query: Mapping[str, str]) -> Decision:
        target = self.configured.target(query)
        line = _line("limits.reset", request, identity, target, {})
        if not store.change(self.configured.key(query.get("organisation")), target, None, line):
            raise Wrong(f"nothing is changed for {target}", 404, "no_change")
        return Answer(200, {"reset": dict(target.shown)}, _FRESH)

    def _list(self, store: RedisLedger, query: Mapping[str, str]) -> Decision:
        """All changes that hold, or those of one subject, tier or pool."""
        wanted = {name: value for name, value in query.items() if name != "organisation"}
        changes = store.changes(self.configured.key(query.get("organisation"))).values()
        found = [change for change in changes if wanted.items() <= change.of.items()]
        return Answer(200, {"changes": [shown(change) for change in sorted(found, key=lambda c: c.at)]}, _FRESH)

    def _explain(self, store: RedisLedger, query: Mapping[str, str]) -> Decision:
        """Which limits hold for a subject, in which tier."""
        about = About.of(query, self.configured, pools=self.pools)
        tier, usage = about.tier, store.peek(about.peek)
        targets = [[about.target, Target("tier", name=tier.name)]]
        targets += [
            [Target("pool", key=key, name=pool.name), Target("pool", name=pool.name)]
            for key, pool in zip(about.pool_keys, tier.pools, strict=True)
        ]
        changes = store.changes(self.configured.key(query.get("organisation")))
        return Answer(
            200,
            {
                "sub": about.sub,
                "tier": tier.name,
                "at": time_of(round(datetime.now(UTC).timestamp() * 1000)),
                **explanation(tier, usage, changes, targets),
                "unknown_pools": [f"pool {pool.name}: needs claim.{pool.claim}" for pool in about.unknown],
            },
            _FRESH,
        )

    def _note_refused(self, request: Request, identity: Identity, refusal: Refuse) -> None:
        """A line for the audit log, as far as the subject has not left too many."""
        store = self.redis
        request.kong.log.warn(f"a change of limits by {identity.subject!r:.200} was refused: {refusal.message:.200}")
        if store is None:
            return
        counted = Admit(self.configured.namespace, subject_key("admin", identity.subject), _REFUSED_A_MINUTE)
        try:
            if not store.admit(counted).admitted:
                return
            body = request.body(MAX_BODY) or b""
            asked = {
                "method": request.line.method,
                "query": request.raw_query[:2000],
                "body": body[:2000].decode("utf-8", "replace"),
                "status": refusal.status,
                "refused": refusal.message,
            }
            if not store.report(_line("limits.refused", request, identity, None, asked)):
                request.kong.log.err("too many lines wait for the audit log: does an invoker write it?")
        except LedgerUnavailable as error:
            request.kong.log.err(f"a refused change of limits could not be noted: {error}")


def _line(kind: str, request: Request, identity: Identity, target: Target | None, details: Mapping[str, Any]) -> bytes:
    """What the audit log is told; what was there before and after is added where it is known, in Redis."""
    shown = dict(target.shown) if target is not None else {}
    return json.dumps(
        {
            "kind": kind,
            "actor": identity.subject,
            "subject": shown.get("sub", ""),
            "details": {"of": shown, "issuer": identity.issuer, "request_id": request.id, **details},
        }
    ).encode()
