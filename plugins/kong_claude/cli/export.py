"""`kong-claude export`: kong.yml in the words of another system."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kong_claude.problem import Problem

HELP = "write kong.yml for another system (aws: OpenAPI for Amazon API Gateway; kubernetes: KongPlugin and Ingress)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "system",
        choices=["aws", "kubernetes"],
        help="aws: an OpenAPI document to import as an HTTP API; kubernetes: resources for Kong's ingress controller",
    )
    parser.add_argument("--config", type=Path, default=Path("kong.yml"), help="declarative file (default: kong.yml)")
    parser.add_argument(
        "--target",
        default="https://kong.example.com",
        help="where API Gateway sends requests: Kong, since the invoker believes only Kong's attestation",
    )
    parser.add_argument("--vpc-link", help="id of a VPC link, where the target is private")
    parser.add_argument(
        "--services",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="kubernetes: a manifest with the Services that Kong sends requests to, whose annotations must say what "
        "kong.yml's services do; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")


def run(options: argparse.Namespace) -> int:
    from kong_claude.doctor.view import from_file
    from kong_claude.export import aws, kubernetes

    view = from_file(options.config, {})
    if options.system == "aws":
        text = aws.to_yaml(aws.document(view, options.target.rstrip("/"), options.vpc_link))
    else:
        text = kubernetes.to_yaml(view, manifests(options.services))
    if options.out is None:
        sys.stdout.write(text)
        return 0
    try:
        options.out.write_text(text)
    except OSError as error:
        raise Problem(f"{options.out}: {error.strerror}") from error
    return 0


def manifests(paths: list[Path]) -> list[dict[str, Any]]:
    """The resources in files of YAML. Raises Problem."""
    import yaml

    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            found += [entity for entity in yaml.safe_load_all(path.read_text()) if isinstance(entity, dict)]
        except OSError as error:
            raise Problem(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise Problem(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    return found
