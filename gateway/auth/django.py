"""Django: the cookie of its `signed_cookies` sessions, in the format of `django.core.signing`."""

import hashlib
import hmac
import json
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase, digits

from gateway.auth.session import Bad, Form, Opened, Unsigned

_SALT = b"django.contrib.sessions.backends.signed_cookies"
_DIGITS = digits + ascii_uppercase + ascii_lowercase
_TIME = 12  # Digits of a time, at most.
_LARGEST = 1 << 20  # Bytes of a session that was compressed.


def django_form(secrets: Sequence[str], cookie: str = "", field: str = "") -> Form:
    """Return what Django's cookie is; `secrets` are its SECRET_KEY and the fallbacks."""
    keys = [hashlib.sha256(_SALT + b"signer" + each.encode()).digest() for each in secrets]

    def opened(value: str) -> Opened:
        signed, _, signature = value.rpartition(":")
        data, _, made = signed.rpartition(":")
        if not data or not any(_is(signature, signed, key) for key in keys):
            raise Unsigned
        try:
            return Opened(_time(made), json.loads(_unpacked(data)))
        except (ValueError, RecursionError, zlib.error):
            raise Bad("its signature is right, but it holds no JSON") from None

    return Form("django", opened, cookie or "sessionid", [field or "_auth_user_id"])


def _is(signature: str, signed: str, key: bytes) -> bool:
    right = urlsafe_b64encode(hmac.digest(key, signed.encode("utf-8", "replace"), "sha256"))
    return hmac.compare_digest(right.rstrip(b"="), signature.encode("utf-8", "replace"))


def _time(written: str) -> int:
    if not 0 < len(written) <= _TIME:
        raise ValueError(written)
    seconds = 0
    for digit in written:
        seconds = seconds * 62 + _DIGITS.index(digit)
    return seconds


def _unpacked(data: str) -> str:
    compressed = data.startswith(".")
    raw = data[compressed:].encode()
    raw = urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
    if compressed:
        whole = zlib.decompressobj()
        raw = whole.decompress(raw, _LARGEST)
        if not whole.eof:
            raise ValueError("it is too large")
    return raw.decode("latin-1")
