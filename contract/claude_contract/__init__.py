"""What gateway and invoker agree on: attestation, identity, limits, the composition of prompts, keys, secret files.

For these two and the local stack only: no promises are made outside of their repository.
"""
