"""The device authorization grant (RFC 8628): a code here, a browser anywhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from kong_claude.login.issuer import Refused, Unreachable, printable, send, shown
from kong_claude.problem import Problem

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER_S = 5
_LONGEST_PAUSE_S = 60


@dataclass(frozen=True)
class Code:
    """What the issuer gives for a login that is to come; times in seconds."""

    device_code: str
    user_code: str
    uri: str
    complete: str | None
    expires_in: int
    interval: int


def ask(endpoint: str, client: dict[str, str | None], scope: str, audience: str | None) -> Code:
    """Raises Problem."""
    found = send(endpoint, {**client, "scope": scope, "audience": audience})
    device, user = found.get("device_code"), found.get("user_code")
    if not (isinstance(device, str) and device and isinstance(user, str) and user):
        raise Problem("the issuer gives no code")
    complete = found.get("verification_uri_complete")
    return Code(
        device,
        printable(user),
        # Google's name for it is that of a draft.
        shown(found.get("verification_uri", found.get("verification_url")), "verification_uri"),
        None if complete is None else shown(complete, "verification_uri_complete"),
        seconds(found.get("expires_in"), 1800),
        seconds(found.get("interval"), 5),
    )


def wait(endpoint: str, client: dict[str, str | None], code: Code) -> dict[str, Any]:
    """The token endpoint's answer, once the person has agreed. Raises Problem."""
    pause = code.interval
    until = time.monotonic() + code.expires_in
    while time.monotonic() < until:
        time.sleep(pause)
        try:
            return send(endpoint, {**client, "grant_type": GRANT, "device_code": code.device_code})
        except (Refused, Unreachable) as problem:
            pause = after(problem, pause)
    raise Problem(EXPIRED)


EXPIRED = "nobody has entered the code in time: run the command again"


def after(problem: Refused | Unreachable, pause: int) -> int:
    """How long to wait before the issuer is asked again, in seconds. Raises Problem where that is of no use."""
    if isinstance(problem, Unreachable):
        return min(max(pause, 1) * 2, _LONGEST_PAUSE_S)
    match problem.code:
        case "authorization_pending":
            return pause
        case "slow_down":
            return pause + _SLOWER_S
        case "expired_token":
            raise Problem(EXPIRED)
        case "access_denied":
            raise Problem("the login was refused at the issuer")
    raise problem


def seconds(value: Any, otherwise: int) -> int:
    """A number of seconds from the issuer, which some send as text; a day at most."""
    try:
        return min(max(int(value), 1), 86_400)
    except (TypeError, ValueError, OverflowError):
        return otherwise
