"""Loading: the authenticator that the settings name: `signed`, or a `module:callable`."""

import importlib
import os
import sys

from gateway.auth.base import Authenticator
from gateway.auth.custom import Custom
from gateway.auth.session import signed_cookie
from gateway.config.settings import Settings
from gateway.errors import SettingsError, with_cause


def authenticator(settings: Settings) -> Authenticator:
    """Return the one that the settings name; raises SettingsError."""
    if settings.auth == "signed":
        return signed_cookie(settings)
    module, colon, name = settings.auth.partition(":")
    if not colon:
        raise SettingsError(
            f"GATEWAY_AUTH: {settings.auth!r} is neither signed nor module:callable"
        )
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)  # Last: a stray file there hides no library.
    try:
        call = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # A module of the app's own may raise anything.
        words = f"GATEWAY_AUTH: cannot load {settings.auth}: {type(error).__name__}: {error}"
        raise SettingsError(with_cause(words, error)) from None
    if not callable(call):
        raise SettingsError(f"GATEWAY_AUTH: {settings.auth} is not callable")
    return Custom(settings.auth, call)
