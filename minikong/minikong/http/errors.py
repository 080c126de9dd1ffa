"""Error bodies: nginx's own pages and Kong's templates by Accept (kong/error_handlers.lua, kong/tools/http.lua)."""

from __future__ import annotations

import re

KONG_PAGES = frozenset((400, 404, 405, 408, 411, 412, 413, 414, 417, 494, 500, 502, 503, 504))  # error_page

_MESSAGES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    411: "Length required",
    412: "Precondition failed",
    413: "Payload too large",
    414: "URI too long",
    417: "Expectation failed",
    494: "Request header or cookie too large",
    500: "An unexpected error occurred",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
}

_TEMPLATES = {
    "text/html; charset=utf-8": (
        '<!doctype html>\n<html>\n  <head>\n    <meta charset="utf-8">\n    <title>Error</title>\n  </head>\n'
        "  <body>\n    <h1>Error</h1>\n    <p>%s.</p>\n    <p>request_id: %s</p>\n  </body>\n</html>\n"
    ),
    "text/plain; charset=utf-8": "%s\nrequest_id: %s\n",
    "application/json; charset=utf-8": '{\n  "message":"%s",\n  "request_id":"%s"\n}',
    "application/xml; charset=utf-8": (
        '<?xml version="1.0" encoding="UTF-8"?>\n<error>\n  <message>%s</message>\n'
        "  <requestid>%s</requestid>\n</error>\n"
    ),
}
_JSON = "application/json; charset=utf-8"
_MIME_TYPES = {
    "text/html": "text/html; charset=utf-8",
    "text/plain": "text/plain; charset=utf-8",
    "application/json": _JSON,
    "application/xml": "application/xml; charset=utf-8",
    "application/grpc": "",
    "text": "text/plain; charset=utf-8",  # "text/*", "application/*"
    "application": _JSON,
}
_ACCEPT = re.compile(
    r"((?:[a-z0-9][a-z0-9\-!#$&^_+.]+|\*)/(?:[a-z0-9][a-z0-9\-!#$&^_+.]+|\*))"
    r"(?:\s*;\s*q=(1(?:\.0{0,3}|)|0(?:\.\d{0,3}|))|\s*;\s*[a-z0-9][a-z0-9\-!#$&^_+.]+(?:=[^;]*|))*",
    re.I,
)

_PLAIN = "The plain HTTP request was sent to HTTPS port"

# The texts of nginx's pages where they differ from the status line (ngx_http_special_response.c).
_TITLES = {
    301: "301 Moved Permanently",
    302: "302 Found",
    303: "303 See Other",
    307: "307 Temporary Redirect",
    308: "308 Permanent Redirect",
    400: "400 Bad Request",
    401: "401 Authorization Required",
    402: "402 Payment Required",
    403: "403 Forbidden",
    404: "404 Not Found",
    405: "405 Not Allowed",
    406: "406 Not Acceptable",
    408: "408 Request Time-out",
    409: "409 Conflict",
    410: "410 Gone",
    411: "411 Length Required",
    412: "412 Precondition Failed",
    413: "413 Request Entity Too Large",
    414: "414 Request-URI Too Large",
    415: "415 Unsupported Media Type",
    416: "416 Requested Range Not Satisfiable",
    421: "421 Misdirected Request",
    429: "429 Too Many Requests",
    500: "500 Internal Server Error",
    501: "501 Not Implemented",
    502: "502 Bad Gateway",
    503: "503 Service Temporarily Unavailable",
    504: "504 Gateway Time-out",
    505: "505 HTTP Version Not Supported",
    507: "507 Insufficient Storage",
}


def response_type(accept: str | None) -> str:
    """The MIME type of an error body for an Accept header: the best by q that Kong has a type for, else JSON."""
    chosen, best = _JSON, 0.0
    for value in (accept or "").split(","):
        match = _ACCEPT.match(value.strip())
        if match is None:
            continue
        quality = float(match[2] or 1)
        if quality > best:
            best = quality
            chosen = _mime_type(match[1])
    return chosen


def _mime_type(media_type: str) -> str:
    kind, _, sub = media_type.partition("/")
    if sub == "*":
        return _JSON if kind == "*" else _MIME_TYPES.get(kind, _JSON)
    return _MIME_TYPES.get(media_type, _JSON)


def error_template(mime_type: str) -> str | None:
    """Kong's template of that MIME type, with two `%s`: message and request id; None for gRPC."""
    return _TEMPLATES.get(mime_type)


def kong_page(
    status: int, accept: str | None, content_type: str | None, default: str, request_id: str
) -> tuple[int, str, bytes]:
    """Kong's error handler (`error_page` of nginx): (status, Content-Type, body)."""
    message = _MESSAGES.get(status, f"The upstream server responded with {status}")
    wanted = accept if accept is not None else content_type if content_type is not None else default
    if status == 494:
        status = 400
    if wanted.startswith("application/grpc"):
        return status, _JSON, f'{{"message":"{message}"}}'.encode()
    mime_type = response_type(wanted)
    template = error_template(mime_type) or "%s%s"
    return status, mime_type, (template % (message, request_id)).encode()


def nginx_page(status: int) -> bytes | None:
    """nginx's built-in HTML page for `status`; None where it has none (an empty body then).

    497 is nginx's own code for plain HTTP on a TLS port; clients see it as 400.
    """
    if status == 497:
        return _page(f"400 {_PLAIN}", f"<center><h1>400 Bad Request</h1></center>\r\n<center>{_PLAIN}</center>")
    title = _TITLES.get(status)
    return None if title is None else _page(title, f"<center><h1>{title}</h1></center>")


def _page(title: str, body: str) -> bytes:
    return f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n{body}\r\n</body>\r\n</html>\r\n".encode()
