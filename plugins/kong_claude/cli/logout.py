"""`kong-claude logout`: the issuer is told to end a login, and its file goes."""

from __future__ import annotations

import argparse
import sys

from kong_claude.login import kept
from kong_claude.login.issuer import discover, send
from kong_claude.problem import Problem

HELP = "end a login of `kong-claude login`"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="which one, where there are several")


def run(options: argparse.Namespace) -> int:
    try:
        name = kept.chosen(options.name)
        with kept.locked():
            try:
                print(_revoked(name))
            finally:
                kept.forget(name)
    except Problem as problem:
        print(f"kong-claude logout: {problem}", file=sys.stderr)
        return 1
    return 0


def _revoked(name: str) -> str:
    """What became of it at the issuer. Raises Problem, after which its file goes all the same."""
    try:
        login = kept.read(name)
        endpoint = discover(login.issuer).revocation
        if login.refresh_token is None:
            return f"{name}: logged out"
        if endpoint is None:
            return f"{name}: logged out here; the provider has no revocation, end the session there"
        form = {**login.client, "token": login.refresh_token, "token_type_hint": "refresh_token"}
        send(endpoint, form)
    except Problem as problem:
        raise Problem(
            f"{name}: its file is gone, but the provider was not told ({problem}): end the session there"
        ) from None
    return f"{name}: logged out, and its refresh token revoked"
