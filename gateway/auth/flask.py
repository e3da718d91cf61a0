"""Flask: its session cookie, as Flask's own interface signs it, and Flask-Login's user in it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itsdangerous import BadData, BadPayload, URLSafeTimedSerializer

from gateway.auth.session import Bad, Form, Opened, Unsigned

_FIELDS = ("_user_id", "user_id")  # Flask-Login's, and that of the tutorial.
_UUID, _MARKUP = " u", " m"  # What Flask writes for values that JSON has not.


def flask_form(secrets: Sequence[str], cookie: str = "", field: str = "") -> Form:
    """Return what Flask's cookie is; `secrets` are its SECRET_KEY and the fallbacks."""
    serializer = URLSafeTimedSerializer(
        list(secrets),
        salt="cookie-session",
        serializer=json,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
    )

    def opened(value: str) -> Opened:
        try:
            # Not with max_age: that refuses a cookie from an app whose clock is a second ahead.
            session, made = serializer.loads(value, return_timestamp=True)
        except BadPayload:
            raise Bad("its signature is right, but it holds no JSON") from None
        except (BadData, ValueError, RecursionError):
            raise Unsigned from None
        return Opened(made.timestamp(), session)

    return Form("flask", opened, cookie or "session", [field] if field else _FIELDS, _plain)


def _plain(value: Any) -> Any:
    """Return an id as text where it is one that JSON has not."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    return _uuid(value[_UUID]) if _UUID in value else value.get(_MARKUP)


def _uuid(digits: Any) -> str | None:
    try:
        return str(UUID(hex=digits))
    except (ValueError, TypeError, AttributeError):
        return None
