"""Addresses: what may stand where a URL, a path, an origin, a network or a header is asked for."""

import re
from collections.abc import Sequence
from ipaddress import ip_network
from urllib.parse import urlsplit

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#*\s]+", re.IGNORECASE)
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[\w.~-]+)+", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2.
_TAKEN = frozenset(("cookie", "authorization", "host", "origin"))


def http_url(url: str) -> str:
    """Return a URL; raises ValueError, which does not quote it, if it is none of http."""
    if url and not re.match("https?://[^/?#]", url):
        raise ValueError("must start with http:// or https:// and a host")
    try:
        host = urlsplit(url).netloc  # A place for a model there would let pages choose the host.
        named = "{" not in host and bool(urlsplit(url).hostname)
        usable = not url or (named and urlsplit(url).port != 0)
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ValueError("is no URL with a host, and a port if it has one")
    return url


def path(value: str) -> str:
    """Return the path of a mount, or ""; raises ValueError."""
    if value and not _PATH.fullmatch(value):
        raise ValueError("must be a path such as /llm, without a slash at its end")
    return value


def origins(values: Sequence[str]) -> tuple[str, ...]:
    """Return origins of pages; raises ValueError."""
    for value in values:
        if not _ORIGIN.fullmatch(value.rstrip("/")):
            raise ValueError(f"{value} is no origin; expected https://host or http://host:port")
    return tuple(value.rstrip("/") for value in values)


def header_name(value: str) -> str:
    """Return the name of a header, or ""; raises ValueError."""
    if value and not _TOKEN.fullmatch(value):
        raise ValueError("is no name of a header")
    if value.lower() in _TAKEN:
        raise ValueError("is a header that means something else")
    return value


def networks(values: Sequence[str]) -> tuple[str, ...]:
    """Return addresses and networks in one form; raises ValueError."""
    found = []
    for value in values:
        try:
            found.append(str(ip_network(value, strict=False)))
        except ValueError:
            words = f"{value} is neither an address nor a network such as 10.0.0.0/8"
            raise ValueError(words) from None
    return tuple(found)
