"""Signed: Starlette's session cookie: base64 of a JSON object, signed with a time."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from time import time
from typing import Any

from itsdangerous import BadData, TimestampSigner

from gateway.auth.session import Bad, Form, Opened, SessionCookie, Unsigned


class SignedCookie(SessionCookie):
    """The authenticator `signed`, which makes such a cookie too."""

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        cookie: str,
        field: str,
        max_age: float,
        tried: str = "",
        now: Callable[[], float] = time,
    ) -> None:
        self._signer = TimestampSigner(list(reversed(secrets)))  # The last one signs.
        self._field = field
        form = Form("signed", self._opened, cookie, [field])
        super().__init__(form, max_age=max_age, tried=tried, now=now)

    def _opened(self, cookie: str) -> Opened:
        try:
            # Not with max_age: that refuses a cookie from an app whose clock is a second ahead.
            data, made = self._signer.unsign(cookie, return_timestamp=True)
        except (BadData, ValueError):
            raise Unsigned from None
        try:
            return Opened(made.timestamp(), json.loads(b64decode(data)))
        except (ValueError, RecursionError):
            raise Bad("its signature is right, but it holds no JSON") from None

    def sign(self, subject: str) -> str:
        """Return a cookie value for a subject, as the app would set it."""
        session: Any = subject
        for part in reversed(self._field.split(".")):
            session = {part: session}
        data = b64encode(json.dumps(session).encode())
        return self._signer.sign(data).decode()
