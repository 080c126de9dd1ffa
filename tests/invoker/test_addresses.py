"""Which addresses are on the internet: runs and webhooks go to no others."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.egress.addresses import all_public, is_public


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("93.184.215.14", True),
        ("1.1.1.1", True),
        ("172.15.255.255", True),
        ("172.32.0.0", True),
        ("100.63.255.255", True),
        ("192.0.1.0", True),
        ("223.255.255.255", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("2a00:1450:4001:82f::200e", True),
        ("2001:4860:4860::8888", True),
        ("2001:200::1", True),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("100.127.255.255", False),
        ("127.0.0.1", False),
        ("127.255.255.255", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("172.31.255.255", False),
        ("192.0.0.8", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("198.19.255.255", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::5db8:d70e", False),
        ("64:ff9b:1::1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:0:5ef5:79fd::1", False),
        ("2001:2::1", False),
        ("2001:10::1", False),
        ("2001:20::1", False),
        ("2001:db8::1", False),
        ("2002:a00:1::", False),
        ("3ffe::1", False),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("4000::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("feff::1", False),
        ("ff02::1", False),
    ],
)
def test_addresses(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public
    assert all_public([text]) is public


@given(st.ip_addresses())
def test_nothing_that_python_knows_as_special_is_public(address: IPv4Address | IPv6Address) -> None:
    special = not address.is_global or address.is_multicast or address.is_reserved
    assert not (special and is_public(address))


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::"]))
def test_no_way_to_write_an_ipv4_address_as_ipv6_is_public(address: IPv4Address, prefix: str) -> None:
    assert not is_public(IPv6Address(int(IPv6Address(prefix)) | int(address)))
    assert not is_public(IPv6Network(f"{IPv6Address(0x2002 << 112 | int(address) << 80)}/128")[0])


@pytest.mark.parametrize(
    "found",
    [[], ["1.1.1.1", "10.0.0.1"], ["10.0.0.1", "1.1.1.1"], ["1.1.1.1", "::1"], ["nonsense"], ["1.1.1.1", ""]],
)
def test_one_that_is_not_public_is_enough(found: list[str]) -> None:
    assert all_public(["1.1.1.1", "2606:4700::1111"])
    assert not all_public(found)
