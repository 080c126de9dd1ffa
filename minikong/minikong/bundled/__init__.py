"""Kong's bundled plugins, as far as minikong has them; any other name is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minikong.bundled.correlation_id import CorrelationId
from minikong.bundled.jwt import Jwt
from minikong.bundled.key_auth import KeyAuth
from minikong.bundled.rate_limiting import RateLimiting
from minikong.bundled.traffic import Acl, IpRestriction, RequestSizeLimiting, RequestTermination
from minikong.lua import Functions
from minikong.schema import bundled as _schemas

if TYPE_CHECKING:
    from minikong.gateway import Gateway

BUNDLED: dict[str, Callable[[Gateway], Any]] = {
    "pre-function": lambda gateway: Functions("pre-function", 1000000, gateway),
    "post-function": lambda gateway: Functions("post-function", -1000, gateway),
    "correlation-id": CorrelationId,
    "jwt": Jwt,
    "key-auth": KeyAuth,
    "acl": Acl,
    "ip-restriction": IpRestriction,
    "rate-limiting": RateLimiting,
    "request-size-limiting": RequestSizeLimiting,
    "request-termination": RequestTermination,
}


def schemas(gateway: Gateway) -> dict[str, Any]:
    """Their Schemas by name."""

    def check(code: str) -> str | None:
        problem = gateway.lua.check_code(code.encode("utf-8", "surrogateescape"))
        return None if problem is None else problem.decode("utf-8", "replace")

    return _schemas.schemas(check)
