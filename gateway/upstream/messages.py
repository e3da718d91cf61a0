"""Messages: what an upstream said, as a log and a page may have it. The one way for it to either.

On one line, without what a terminal would obey, bounded, and without our keys: an upstream quotes
the request that it refuses, and some quote its headers.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from gateway.config.presets import Preset
from gateway.errors import one_line
from gateway.upstream.protocols.error_text import words_in, words_of

_SECRET = 8  # Characters; what is shorter is a word.
_LONGEST = 500  # Characters that a page gets to see.
_LOOKED_AT = 4096  # Characters of which they are made; no key can be cut in two before that.


def said(value: Any, preset: Preset) -> str:
    """Return the words in a decoded error of any shape; "" if there are none."""
    words = words_in(value) or ""
    for secret in _secrets(preset):
        words = words.replace(secret, "***")
    return one_line(words[:_LOOKED_AT])[:_LONGEST]


def message_of(body: bytes, preset: Preset) -> str:
    """Return the words of a refusal's body as a page may have them."""
    return said(words_of(body), preset)


def _secrets(preset: Preset) -> list[str]:
    """Return what must not be shown, in each form that something quoted takes; long ones first."""
    forms = {form for secret in _given(preset) for form in _forms(secret) if len(form) >= _SECRET}
    return sorted(forms, key=len, reverse=True)


def _given(preset: Preset) -> Iterator[str]:
    yield preset.api_key.get_secret_value()
    for value in preset.headers.values():
        yield value
        scheme, _, rest = value.partition(" ")
        yield rest.strip()  # "Bearer", "Api-Key", …
        if scheme.lower() == "basic":
            yield from _pair(rest)
    try:
        url = urlsplit(preset.url)
    except ValueError:  # It is no address, which is said elsewhere.
        return
    yield from (value for _, value in parse_qsl(url.query))
    yield from (pair.partition("=")[2] for pair in url.query.split("&"))  # As it was sent.
    userinfo = url.netloc.rpartition("@")[0]
    yield from (userinfo, userinfo.rpartition(":")[2])


def _pair(coded: str) -> Iterator[str]:
    try:
        pair = b64decode(coded).decode()
    except ValueError:
        return
    yield from (pair, pair.partition(":")[2])


def _forms(secret: str) -> Iterator[str]:
    if len(secret) < _SECRET:
        return
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    quoted = json.dumps(secret)[1:-1]
    yield from (quoted, quoted.replace("/", "\\/"))
    yield b64encode(secret.encode("utf-8", "replace")).decode().rstrip("=")
