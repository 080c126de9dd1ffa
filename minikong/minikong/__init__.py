"""minikong: a stand-in for Kong Gateway 3.9 in development and tests. Production is Kong."""

from importlib.metadata import version

__version__ = version("minikong")
