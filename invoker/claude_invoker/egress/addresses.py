"""Which addresses are hosts on the internet, and which are here. Pure: a table, since `ipaddress` knows other ranges in
each Python."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private, with 172.16 and 192.168
            "100.64.0.0/10",  # behind a carrier's NAT; some clouds' metadata
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local: clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation, with 198.51.100 and 203.0.113
            "192.88.99.0/24",  # relays to 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_V6_UNICAST = IPv6Network("2000::/3")
"""All that is assigned as public: so not ::1, mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard
(100::/64), unique local (fc00::/7), link-local, site-local (fec0::/10) and multicast."""
_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: an IPv4 address in other words
            "3ffe::/16",  # given back
            "3fff::/20",  # documentation
        ),
    )
)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is a host on the internet, whatever translates it on the way."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _V4)
    return address in _V6_UNICAST and not any(address in network for network in _V6)


def all_public(addresses: Iterable[str]) -> bool:
    """Whether there are some and each is public. What is not an address is not."""
    try:
        found = [ipaddress.ip_address(address) for address in addresses]
    except ValueError:
        return False
    return bool(found) and all(map(is_public, found))
