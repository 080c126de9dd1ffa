"""OpenAI's chat completions, as far as runs can be had by them."""
