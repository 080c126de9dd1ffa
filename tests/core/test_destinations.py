"""Hosts that a tier opens: how they are written, and what two lists have in common."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.destinations import Destination, parse, within_both
from claude_contract.errors import ConfigError
from kong_claude.rate_tiers.schema import RateTiersConfig
from kong_claude.rate_tiers.tiers import tiers_from_config
from kong_claude.schema import read

LONG = ".".join(["abcdefghi"] * 25)  # with ".com" of the 253 characters that a name may have


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pypi.org", Destination("pypi.org", 443)),
        ("PyPI.org:443", Destination("pypi.org", 443)),
        ("*.npmjs.org", Destination("*.npmjs.org", 443)),
        ("github.com:8443", Destination("github.com", 8443)),
        ("xn--bcher-kva.example", Destination("xn--bcher-kva.example", 443)),
        ("a.b-c.d_e.example:1", Destination("a.b-c.d_e.example", 1)),
        ("pypi.org:65535", Destination("pypi.org", 65535)),
        (f"*.{LONG}.com", Destination(f"*.{LONG}.com", 443)),
    ],
)
def test_how_a_host_is_written(text: str, found: Destination) -> None:
    assert parse(text) == found
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.", "*.com", "**.example.com", "a.*.com", "pypi.*", "*pypi.org", "localhost", "redis", "pypi.org.",
        ".pypi.org", "pypi..org", "-a.org", "a-.org", "https://pypi.org", "pypi.org/simple", "user@pypi.org",
        "pypi.org:", "pypi.org:0", "pypi.org:65536", "pypi.org:443:443", "pypi.org:+1", "pypi.org\n", " pypi.org",
        "127.0.0.1", "127.1", "*.0.0.1", "10.0.0.1:443", "0x7f.0x1", "1.0x7f000001", "2130706433", "[::1]", "[::1]:443",
        "::1", "fe80::1%eth0", "example.1", "bücher.example", "a" * 64 + ".org", f"{LONG}.info",
    ],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="two labels at least"):
        parse(text)
    tiers = [{"name": "free", "minute": 1}, {"name": "pro", "minute": 1, "egress": ["pypi.org", text]}]
    with pytest.raises(ConfigError, match=r"tiers\[2\]\.egress\[2\]: must be a host name"):
        tiers_from_config(read(RateTiersConfig, {"tiers": tiers, "default_tier": "free"}), 60, signed=False)


@given(st.ip_addresses(), st.sampled_from(["{}", "[{}]", "{}:443", "*.{}"]))
def test_no_address_is_a_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address, form: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        parse(form.format(address))


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ("a.example", "a.example", True),
        ("a.example", "b.example", False),
        ("a.example", "a.example:8443", False),
        ("*.b.example", "a.b.example", True),
        ("*.b.example", "x.a.b.example", True),
        ("*.b.example", "*.a.b.example", True),
        ("*.b.example", "*.b.example", True),
        ("*.b.example", "b.example", False),
        ("*.b.example", "evilb.example", False),
        ("*.b.example", "b.example.evil.example", False),
        ("*.b.example", "a.b.example:80", False),
        ("a.b.example", "*.b.example", False),
        ("*.a.b.example", "*.b.example", False),
    ],
)
def test_what_a_host_covers(wide: str, narrow: str, covered: bool) -> None:
    assert parse(wide).covers(parse(narrow)) is covered


LABELS = st.lists(st.sampled_from("ab"), min_size=2, max_size=4).map(".".join)
NAMES = st.builds(Destination, LABELS, st.sampled_from([443, 8443]))
HOSTS = st.builds(lambda star, name: Destination(star + name.host, name.port), st.sampled_from(["", "*."]), NAMES)


@given(st.lists(HOSTS, max_size=4), st.lists(HOSTS, max_size=4), NAMES)
def test_what_two_lists_have_in_common(ours: list[Destination], theirs: list[Destination], name: Destination) -> None:
    common = within_both(ours, theirs)
    assert common == within_both(theirs, ours)
    covered = [any(host.covers(name) for host in hosts) for hosts in (ours, theirs, common)]
    assert covered[2] == (covered[0] and covered[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        (["*.b.example"], ["a.b.example"], ["a.b.example"]),
        (["a.b.example"], ["*.b.example"], ["a.b.example"]),
        (["*.b.example", "c.d.example"], ["*.a.b.example", "*.d.example"], ["*.a.b.example", "c.d.example"]),
        (["*.b.example"], ["a.example"], []),
    ],
)
def test_of_two_entries_the_narrower_stands(ours: list[str], theirs: list[str], common: list[str]) -> None:
    assert [str(found) for found in within_both(map(parse, ours), map(parse, theirs))] == common


@given(HOSTS)
def test_what_is_shown_is_what_is_read(host: Destination) -> None:
    assert parse(str(host)) == host
    assert re.fullmatch(r"(\*\.)?[ab.]+(:8443)?", str(host))
