"""`kong-claude export`: kong.yml in the words of another gateway."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kong_claude.cli.problem import Problem

HELP = "write kong.yml for another gateway (aws: OpenAPI for Amazon API Gateway)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", choices=["aws"], help="aws: an OpenAPI document to import as an HTTP API")
    parser.add_argument("--config", type=Path, default=Path("kong.yml"), help="declarative file (default: kong.yml)")
    parser.add_argument(
        "--target",
        default="https://kong.example.com",
        help="where API Gateway sends requests: Kong, since the invoker believes only Kong's attestation",
    )
    parser.add_argument("--vpc-link", help="id of a VPC link, where the target is private")
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")


def run(options: argparse.Namespace) -> int:
    from kong_claude.doctor.view import from_file
    from kong_claude.export.aws import document, to_yaml

    text = to_yaml(document(from_file(options.config, {}), options.target.rstrip("/"), options.vpc_link))
    if options.out is None:
        sys.stdout.write(text)
        return 0
    try:
        options.out.write_text(text)
    except OSError as error:
        raise Problem(f"{options.out}: {error.strerror}") from error
    return 0
