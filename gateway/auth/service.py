"""Service: an app's server, which acts for the app's users and is known by a token."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from gateway.errors import Rejected


class ServiceTokens:
    """The tokens that are taken; which of them it was, or how much of one, no clock tells."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._known = [_digest(each) for each in tokens]

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Rejected unless `Authorization: Bearer` has one of them."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        asked = _digest(given.strip())
        matches = [hmac.compare_digest(asked, each) for each in self._known]  # All of them.
        if scheme.lower() != "bearer" or not any(matches):
            told = "Send Authorization: Bearer with one of GATEWAY_SERVICE_TOKENS."
            raise Rejected("not_authenticated", told, {"WWW-Authenticate": "Bearer"})


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
