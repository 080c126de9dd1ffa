"""kong.ip.* (kong/pdk/ip.lua)."""

from __future__ import annotations

import ipaddress
from typing import Any

from minikong.context import Context
from minikong.pdk.registry import PHASE_BITS, function


def is_trusted(ctx: Context, address: str) -> bool:
    """Is this address in `trusted_ips`?"""
    networks = ctx.gateway.conf.trusted_ips
    if not networks:
        return False
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(not isinstance(n, str) and n.version == parsed.version and parsed in n for n in networks)


@function("kong.ip.is_trusted", PHASE_BITS)
def pdk_is_trusted(ctx: Context, address: Any = None) -> bool:
    return isinstance(address, bytes) and is_trusted(ctx, address.decode("latin-1"))
