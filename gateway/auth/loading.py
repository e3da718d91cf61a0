"""Loading: the authenticator that the settings name. The one place that knows them all."""

import importlib
import os
import sys
from collections.abc import Callable

from gateway.auth.base import Authenticator
from gateway.auth.custom import Custom
from gateway.auth.session import SignedCookie
from gateway.config.settings import Settings
from gateway.errors import SettingsError, with_cause


def authenticator(settings: Settings) -> Authenticator:
    """Return the one that the settings name; raises SettingsError."""
    make = _BY_NAME.get(settings.auth)
    return make(settings) if make else _custom(settings.auth)


def signed_cookie(settings: Settings) -> SignedCookie:
    """Return the `signed` one, which makes cookies too; raises SettingsError without a secret."""
    secrets = settings.cookie_secrets or settings.secrets
    if not secrets:
        raise SettingsError("GATEWAY_COOKIE_SECRETS: missing, as are GATEWAY_SECRETS")
    return SignedCookie(
        [secret.get_secret_value() for secret in secrets],
        name=settings.cookie_name,
        field=settings.subject_field,
        max_age=settings.cookie_max_age,
    )


_BY_NAME: dict[str, Callable[[Settings], Authenticator]] = {"signed": signed_cookie}


def _custom(named: str) -> Custom:
    module, colon, name = named.partition(":")
    if not colon:
        raise SettingsError(f"GATEWAY_AUTH: {named!r} is neither signed nor module:callable")
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)  # Last: a stray file there hides no library.
    try:
        call = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # A module of the app's own may raise anything.
        words = f"GATEWAY_AUTH: cannot load {named}: {type(error).__name__}: {error}"
        raise SettingsError(with_cause(words, error)) from None
    if not callable(call):
        raise SettingsError(f"GATEWAY_AUTH: {named} is not callable")
    return Custom(named, call)
