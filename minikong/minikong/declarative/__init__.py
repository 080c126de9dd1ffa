"""Kong's declarative configuration: from a kong.yml to entities, with Kong's ids, defaults and error texts."""

from minikong.declarative.errors import DeclarativeError, InternalError, json_table
from minikong.declarative.loader import load, load_tree, resolve_env
from minikong.declarative.schema import Schema
from minikong.entities import Config

__all__ = [
    "Config",
    "DeclarativeError",
    "InternalError",
    "Schema",
    "json_table",
    "load",
    "load_tree",
    "resolve_env",
]
