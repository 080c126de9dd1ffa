"""Hypothesis draws the same examples every time in `make test`; EXPLORE=1 lets it look for new ones."""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
if os.environ.get("EXPLORE") != "1":
    settings.load_profile("same")
