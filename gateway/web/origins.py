"""Origins: which pages may ask, and what a cross-origin one must be told.

A cross-site page, an `<img>`, a typed-in link or a prefetch can send a GET with the user's cookies.
It must start nothing. CORS does not stop the request, only the reading of its answer.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from gateway.errors import Rejected

_PORTS = {"http": 80, "https": 443}
_EXPOSED = (
    b"Location, Content-Location, Retry-After, RateLimit, RateLimit-Policy, X-Should-Retry, "
    b"X-Request-Id, Request-Id"
)


class Origins:
    """The pages that are ours: of the request's own host, of the public URL's, or listed."""

    def __init__(self, allowed: Sequence[str] = (), public_url: str = "") -> None:
        self._allowed = frozenset(each.rstrip("/").lower() for each in allowed)
        self._public = _authority(public_url) if public_url else None

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Rejected unless the request comes from a page of ours, or from no page at all."""
        origin = headers.get("origin")
        if origin is not None:
            if not self._ours(origin, headers.get("host", "")):
                raise Rejected("foreign_origin", f"List {origin[:100]} in GATEWAY_ALLOWED_ORIGINS.")
        elif headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
            raise Rejected("foreign_origin", "The request comes from another site.")

    def check_stream(self, headers: Mapping[str, str]) -> None:
        """Raise Rejected also for what is no script's request: an image, a link, a prefetch."""
        self.check(headers)
        purpose = headers.get("sec-purpose", "") + headers.get("purpose", "")
        if "prefetch" in purpose or "prerender" in purpose:
            raise Rejected("prefetch")
        if headers.get("sec-fetch-dest", "empty") != "empty":
            raise Rejected("not_a_stream_request", "Open it with new EventSource(url) or fetch.")

    def cors(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """Return the response headers that let a page of ours on another origin read the answer."""
        origin = headers.get("origin")
        if origin is None or not self._ours(origin, headers.get("host", "")):
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", _EXPOSED),
        ]

    def _ours(self, origin: str, host: str) -> bool:
        if origin.lower() in self._allowed:
            return True
        asked = _authority(origin)
        # TLS may end at a proxy, so the scheme is not compared and a default port is no port.
        return asked is not None and asked in (_authority("//" + host), self._public)


def _authority(url: str) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.scheme not in {"", *_PORTS}:
        return None
    default = port in _PORTS.values() if not parts.scheme else port == _PORTS[parts.scheme]
    return name.lower(), None if default else port
