"""Webhooks: who is told of the end of a stream, and the secret that signs it, as they are given."""

from base64 import b64decode
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from gateway.config.addresses import http_url

_PREFIX = "whsec_"
_SHORT = 16  # Bytes; a secret below this can be guessed.
_LONGEST = 2048  # Characters of a URL, which is kept with each stream.


def _receiver(url: str) -> str:
    """Return the URL of a receiver, or ""; raises ValueError, which does not quote it."""
    http_url(url)
    if "@" in urlsplit(url).netloc:
        raise ValueError("has a login, which is not sent; what it is told is signed")
    if len(url) > _LONGEST or not url.isascii():
        raise ValueError(f"is longer than {_LONGEST} characters, or not in ASCII")
    return url


def _signs(secret: SecretStr) -> SecretStr:
    if secret.get_secret_value():
        signing_key(secret)
    return secret


def signing_key(secret: SecretStr) -> bytes:
    """Return the bytes that a secret stands for; raises ValueError, which does not quote it."""
    text = secret.get_secret_value()
    try:
        key = b64decode(text.removeprefix(_PREFIX).encode("ascii"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(_PREFIX) or len(key) < _SHORT:
        raise ValueError(f"must be {_PREFIX} and the base64 of {_SHORT} bytes at least")
    return key


def webhook_faults(url: str, secret: SecretStr) -> Iterator[str]:
    """Yield what one of the two lacks of the other, as `key: reason`."""
    if url and not secret.get_secret_value():
        yield "webhook_secret: is missing, and signs what the webhook is told"
    if secret.get_secret_value() and not url:
        yield "webhook: is missing, and there is a webhook_secret"


Receiver = Annotated[str, AfterValidator(_receiver)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signs)]
