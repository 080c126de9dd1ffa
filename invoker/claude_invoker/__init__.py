"""The service that runs the Claude CLI: isolated, prewarmed, cancellable, behind the gateway."""
