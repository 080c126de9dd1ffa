"""Host names and addresses with optional ports, as Kong accepts them (kong/tools/ip.lua)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Host:
    kind: Literal["ipv4", "ipv6", "name"]
    host: str
    port: int | None


class InvalidHost(ValueError):
    """The text is Kong's."""


_IPV4 = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?::(\d+))?")
_BRACKETS = re.compile(r"\[([^\[\]]*)\](?::(\d*))?")
_NAME = re.compile(r"[0-9A-Za-z\-._]+")


def kind(address: str) -> Literal["ipv4", "ipv6", "name"]:
    """By exclusion, not by validation: what looks like an address is one."""
    if address.count(":") > 1:
        return "ipv6"
    return "ipv4" if re.fullmatch(r"[\d.]+", address.replace(":", "")) else "name"


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if int(text) > 65535:
        raise InvalidHost("invalid port number")
    return int(text)


def parse(address: str) -> Host:
    """Splits and checks "name", "name:port", "1.2.3.4:80", "[::1]:80". Raises InvalidHost."""
    found = kind(address)
    if found == "ipv4":
        match = _IPV4.fullmatch(address)
        if not match or any(int(part) > 255 for part in match.groups()[:4]):
            raise InvalidHost(f"invalid ipv4 address: {address}")
        return Host(found, ".".join(str(int(part)) for part in match.groups()[:4]), _port(match[5]))
    if found == "ipv6":
        match = _BRACKETS.fullmatch(address)
        if address.startswith("[") and not match:
            raise InvalidHost("invalid ipv6 address")
        text, port = (match[1], match[2]) if match else (address, None)
        try:
            return Host(found, ipaddress.IPv6Address(text).exploded, _port(port))
        except ValueError:
            raise InvalidHost(f"invalid ipv6 address: {address}") from None
    return _parse_name(address)


def _parse_name(address: str) -> Host:
    match = re.search(r":(\d+)$", address)
    port = _port(match[1]) if match else None
    name = address[: match.start()] if match else address
    segments = name.split(".")
    last = len(segments) - 1
    bad = any(s.endswith("-") or (s == "" and i != last) for i, s in enumerate(segments))
    if not _NAME.fullmatch(name) or bad:
        raise InvalidHost(f"invalid hostname: {address}")
    return Host("name", name, port)
