"""Likeness: what a cookie looks like, told without a key, so that an operator hears what to mend.

A wrong secret and a wrong kind are one to whoever verifies; nothing here lets anybody in.
"""

import re
import zlib
from base64 import urlsafe_b64decode

_LONGEST = 4096  # Characters that are looked at: what browsers keep.

_TIMED = re.compile(r"(\.?[A-Za-z0-9_+/-]+=*)\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}")
_DJANGO = re.compile(r"\.?[A-Za-z0-9_-]+:[A-Za-z0-9]{5,7}:[A-Za-z0-9_-]{43}")
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)(?:\.[A-Za-z0-9_-]*){2}(?:(?:\.[A-Za-z0-9_-]*){2})?")
_ID = re.compile(r"[A-Za-z0-9_-]{20,64}")
_OBJECT = re.compile(rb'\{(?:\}|"(?:[^"\\]|\\.)*":( ?))')  # Starlette's JSON has spaces.

_WORDS = {
    "signed": "a Starlette session",
    "flask": "a Flask session",
    "django": "a Django session (signed_cookies)",
    "jwt": "a JWT",
}


def refused(kind: str, value: str, tried: str) -> str:
    """Return why a cookie that none of its secrets has signed is none of a kind."""
    if _seen(value) != kind:
        return unlike(kind, value)
    counted = f" ({tried})" if tried else ""
    return f"it has the form of {_WORDS[kind]}, signed with another secret{counted}"


def unlike(kind: str, value: str) -> str:
    """Return that a cookie is none of a kind, and what it is instead where that can be seen."""
    seen = _seen(value)
    words = f"it has not the form of {_WORDS[kind]}"
    if seen == "id":
        what = "this looks like the id of a session that the server keeps"
        return f"{words}; {what}: GATEWAY_AUTH=forward"
    if seen == "jwe":
        return f"{words}; this looks like an encrypted token (JWE): GATEWAY_AUTH=forward"
    if seen in (kind, ""):
        return words
    return f"{words}; this has that of {_WORDS[seen]}: GATEWAY_AUTH={seen}"


def _seen(value: str) -> str:
    """Return the kind that a cookie's characters are of, "" for none."""
    if len(value) > _LONGEST:
        return ""
    if found := _TIMED.fullmatch(value):
        return _of_framework(found[1])
    if _DJANGO.fullmatch(value):
        return "django"
    if (found := _TOKEN.fullmatch(value)) and b'"alg"' in _bytes(found[1]):
        return "jwe" if value.count(".") == 4 else "jwt"
    return "id" if _ID.fullmatch(value) else ""


def _of_framework(data: str) -> str:
    found = _OBJECT.match(_bytes(data.lstrip("."), compressed=data.startswith(".")))
    if found is None:
        return ""
    return "signed" if found[1] or data.endswith("=") else "flask"


def _bytes(data: str, *, compressed: bool = False) -> bytes:
    try:
        raw = urlsafe_b64decode(data + "=" * (-len(data) % 4))
        return zlib.decompressobj().decompress(raw, _LONGEST) if compressed else raw
    except (ValueError, zlib.error):
        return b""
