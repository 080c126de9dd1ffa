"""Anthropic's Messages API, as far as runs can be had by it."""
