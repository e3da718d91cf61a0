"""Service: an app's server, which acts for the app's users and is known by a token."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from gateway.auth.base import different_lines
from gateway.errors import Rejected


class ServiceTokens:
    """The tokens that are taken; which of them it was, or how much of one, no clock tells."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._known = [_digest(each) for each in tokens]

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Rejected unless `Authorization: Bearer` has one of them."""
        lines = different_lines(headers, "authorization")
        if len(lines) != 1 or not self._takes(lines[0]):
            told = "Send Authorization: Bearer with one of GATEWAY_SERVICE_TOKENS, once."
            more = {"WWW-Authenticate": "Bearer"}
            reason = "bad_cookie" if any(lines) else "no_cookie"
            raise Rejected("not_authenticated", told, more, reason=reason)

    def owner(self, headers: Mapping[str, str]) -> str:
        """Return a name for who has the token that is sent, "" where none of them is."""
        lines = different_lines(headers, "authorization")
        if len(lines) != 1 or not self._takes(lines[0]):
            return ""
        return f"service:{_digest(lines[0].partition(' ')[2].strip()).hex()[:12]}"

    def _takes(self, line: str) -> bool:
        scheme, _, given = line.partition(" ")
        asked = _digest(given.strip())
        matches = [hmac.compare_digest(asked, each) for each in self._known]  # All of them.
        return scheme.lower() == "bearer" and any(matches)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
