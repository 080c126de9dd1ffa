"""What a list is asked for in its address: a name that is none would show all of it as though it had been found."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from claude_invoker.caller import Caller
from claude_invoker.problem import Problem
from claude_invoker.trust import attested

LONGEST = 60  # characters of a caller's name that are said


def _refuse_unknown(request: Request, _: Annotated[Caller, Depends(attested)]) -> None:
    """Raises Problem 400, to who may ask at all."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = [parameter.alias for parameter in route.dependant.query_params]
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in given.items():
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "nothing can be asked for there"
            raise Problem(400, "bad-request", f"the query names {name[:LONGEST]!r}, which is not known here: {there}")
        if times > 1:
            raise Problem(400, "bad-request", f"the query names {name} more than once")


ONLY_KNOWN = Depends(_refuse_unknown)
"""Of a list's route. Those of the vendors' languages do without: their clients send what later versions know."""
