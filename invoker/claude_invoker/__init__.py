"""The service that runs the Claude CLI: isolated, prewarmed, cancellable, behind the gateway."""

from importlib.metadata import version

__version__ = version("claude-invoker")
