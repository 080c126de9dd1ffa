"""A handler for urllib by which nobody is sent elsewhere: a token or a code is for the asked address alone."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
