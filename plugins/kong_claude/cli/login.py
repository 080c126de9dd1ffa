"""`kong-claude login`: at your identity provider, with a code that is entered in any browser."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from claude_contract import secret_file
from claude_contract.secret_file import SecretFileError
from kong_claude.login import device, kept, tokens
from kong_claude.login.issuer import discover, printable
from kong_claude.login.kept import Login
from kong_claude.problem import Problem

HELP = "log in at your identity provider, for `kong-claude token --helper`"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--issuer", required=True, metavar="URL", help="the provider, as its tokens name it (iss)")
    parser.add_argument("--client-id", required=True, metavar="ID", help="the client by which people log in")
    parser.add_argument(
        "--scope", default="openid offline_access", help="what is asked for (default: %(default)s), separated by blanks"
    )
    parser.add_argument("--audience", help="for whom the token is, where the provider asks for that (Auth0)")
    parser.add_argument(
        "--client-secret-file", type=Path, metavar="FILE", help="where the client has a secret (Google)"
    )
    parser.add_argument(
        "--id-token", action="store_true", help="use the ID token, where access tokens are no JWTs (Google)"
    )
    parser.add_argument("--name", help="what this login is called (default: the provider's host)")


def run(options: argparse.Namespace) -> int:
    try:
        name = options.name or kept.default_name(options.issuer)
        log_in(name, options)
    except Problem as problem:
        print(f"kong-claude login: {problem}", file=sys.stderr)
        return 1
    return 0


def log_in(name: str, options: argparse.Namespace) -> None:
    """Raises Problem."""
    if (old := kept.find(name)) is not None and (old.issuer, old.client_id) != (options.issuer, options.client_id):
        raise Problem(f"{name} is a login at {old.issuer}: choose another --name, or kong-claude logout --name {name}")
    endpoints = discover(options.issuer)
    if endpoints.device is None:
        raise Problem(f"{options.issuer} offers no device authorization: docs/identity says where it is switched on")
    secret = _secret(options.client_secret_file)
    client = {"client_id": options.client_id, "client_secret": secret}
    code = device.ask(endpoints.device, client, options.scope, options.audience)
    print(f"Open {code.uri} in a browser and enter the code {code.user_code}")
    if code.complete:
        print(f"or open {code.complete} and compare the code")
    sys.stdout.flush()
    answer = device.wait(endpoints.token, client, code)
    found = tokens.read(answer, id_token=options.id_token)
    login = Login(
        options.issuer,
        options.client_id,
        secret,
        options.scope,
        options.audience,
        options.id_token,
        found.token,
        time.time(),
        found.life_s,
        found.refresh,
    )
    with kept.locked(), kept.replacing(name) as put:
        put(login)
    print(f"Logged in as {printable(found.claims.get('sub', 'somebody'))}; this login is called {name}.")
    if found.refresh is None:
        print(f"The provider gave no refresh token: it ends in {found.life_s} seconds.")


def _secret(path: Path | None) -> str | None:
    try:
        return None if path is None else secret_file.read(path)
    except SecretFileError as error:
        raise Problem(str(error)) from None
