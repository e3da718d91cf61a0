"""Loading: the authenticators that the settings name. The one place that knows them all."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

from gateway.auth.base import Authenticator
from gateway.auth.chain import Chain
from gateway.auth.custom import Custom
from gateway.auth.django import django_form
from gateway.auth.flask import flask_form
from gateway.auth.forward import Forward
from gateway.auth.guest import Guest
from gateway.auth.header import Header, merged
from gateway.auth.session import SessionCookie
from gateway.auth.signed import SignedCookie
from gateway.config.settings import Settings
from gateway.errors import SettingsError, with_cause
from gateway.upstream.lookup import Lookup

T = TypeVar("T")

_LARGEST = 1 << 20  # Bytes of a file of public keys.


def authenticators(settings: Settings) -> Chain:
    """Return those that the settings name, in their order; raises SettingsError."""
    names = [name for each in settings.auth.split(",") if (name := each.strip())]
    if not names:
        raise SettingsError(f"GATEWAY_AUTH: is empty; it takes {', '.join(_BY_NAME)}")
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice:
        raise SettingsError(f"GATEWAY_AUTH: {twice} is there twice")
    lookup = Lookup()
    return Chain([authenticator(each, settings, lookup) for each in names], lookup.close)


def authenticator(name: str, settings: Settings, lookup: Lookup) -> Authenticator:
    """Return the one of a name; raises SettingsError."""
    make = _BY_NAME.get(name)
    return make(settings, lookup) if make else _custom(name)


def given(call: Callable[[Mapping[str, str], Mapping[str, str]], Any]) -> Chain:
    """Return what asks a callable of the application that the gateway is in, and nobody else."""

    async def close() -> None:
        """It holds nothing."""

    return Chain([Custom("authenticate", call)], close)


def signed_cookie(settings: Settings) -> SignedCookie:
    """Return the `signed` one, which makes cookies too; raises SettingsError without a secret."""
    return SignedCookie(
        _cookie_secrets(settings),
        cookie=settings.cookie_name or "session",
        field=settings.subject_field or "sub",
        max_age=settings.cookie_max_age,
        tried=_tried(settings),
    )


def _signed(settings: Settings, _: Lookup) -> Authenticator:
    return signed_cookie(settings)


def _flask(settings: Settings, _: Lookup) -> Authenticator:
    secrets = _cookie_secrets(settings)
    form = flask_form(secrets, settings.cookie_name, settings.subject_field)
    return SessionCookie(form, max_age=settings.cookie_max_age, tried=_tried(settings))


def _django(settings: Settings, _: Lookup) -> Authenticator:
    secrets = _cookie_secrets(settings)
    form = django_form(secrets, settings.cookie_name, settings.subject_field)
    return SessionCookie(form, max_age=settings.cookie_max_age, tried=_tried(settings))


def _jwt(settings: Settings, lookup: Lookup) -> Authenticator:
    # Not above: cryptography is megabytes and a tenth of a second, which others need not have.
    from gateway.auth import jwks, jwt, keys

    if settings.jwt_jwks_url and settings.jwt_public_key:
        raise SettingsError(
            "GATEWAY_JWT_JWKS_URL and GATEWAY_JWT_PUBLIC_KEY: leave one of them out"
        )
    public = bool(settings.jwt_jwks_url or settings.jwt_public_key)
    fitting = keys.OF_PUBLIC_KEYS if public else keys.OF_SECRETS
    for algorithm in settings.jwt_algorithms:
        if algorithm not in fitting:
            whose = "a public key" if public else "secrets"
            words = f"{algorithm} is none of {whose}; it takes {', '.join(fitting)}"
            raise SettingsError(f"GATEWAY_JWT_ALGORITHMS: {words}")
    rules = jwt.Rules(
        settings.jwt_algorithms or fitting,
        settings.jwt_audience,
        settings.jwt_issuer,
        settings.subject_field or "sub",
        [settings.cookie_name] if settings.cookie_name else jwt.COOKIES,
        "" if public else _tried(settings),
    )
    if settings.jwt_jwks_url:
        return jwt.JsonWebToken(jwks.Jwks(lookup, settings.jwt_jwks_url), rules)
    path = settings.jwt_public_key
    found = keys.of_secrets(_cookie_secrets(settings)) if not path else _in_file(path, keys.of_file)
    return jwt.JsonWebToken(jwks.StaticKeys(found), rules)


def _in_file(path: str, read: Callable[[bytes], list[T]]) -> list[T]:
    try:
        with Path(path).open("rb") as file:
            return read(file.read(_LARGEST))
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"GATEWAY_JWT_PUBLIC_KEY: {path}: {words}") from None


def _forward(settings: Settings, lookup: Lookup) -> Authenticator:
    if not settings.forward_auth_url or not settings.forward_auth_header:
        missing = "URL" if not settings.forward_auth_url else "HEADER"
        raise SettingsError(
            f"GATEWAY_FORWARD_AUTH_{missing}: missing, and GATEWAY_AUTH has forward"
        )
    return Forward(
        lookup,
        settings.forward_auth_url,
        settings.forward_auth_header,
        ttl=settings.forward_auth_ttl,
        timeout=settings.forward_auth_timeout,
    )


def _header(settings: Settings, _: Lookup) -> Authenticator:
    if not settings.auth_header:
        raise SettingsError("GATEWAY_AUTH_HEADER: missing, and GATEWAY_AUTH has header")
    if not settings.trusted_proxies:
        words = "missing: without it any caller could say who it is, by that header"
        raise SettingsError(f"GATEWAY_TRUSTED_PROXIES: {words}")
    trusted = [ip_network(each) for each in settings.trusted_proxies]
    if everybody := next((each for each in merged(trusted) if not each.prefixlen), None):
        words = f"{everybody} is everybody: any caller could say who it is, by GATEWAY_AUTH_HEADER"
        raise SettingsError(f"GATEWAY_TRUSTED_PROXIES: {words}")
    return Header(settings.auth_header, trusted)


def _guest(settings: Settings, _: Lookup) -> Authenticator:
    secrets = [each.get_secret_value() for each in settings.secrets]
    if not secrets:
        raise SettingsError("GATEWAY_SECRETS: missing, which the cookies of guests are signed with")
    return Guest(secrets, max_age=settings.cookie_max_age)


_BY_NAME: dict[str, Callable[[Settings, Lookup], Authenticator]] = {
    "signed": _signed,
    "flask": _flask,
    "django": _django,
    "jwt": _jwt,
    "forward": _forward,
    "header": _header,
    "guest": _guest,
}


def _cookie_secrets(settings: Settings) -> list[str]:
    secrets = settings.cookie_secrets or settings.secrets
    if not secrets:
        raise SettingsError("GATEWAY_COOKIE_SECRETS: missing, as are GATEWAY_SECRETS")
    return [secret.get_secret_value() for secret in secrets]


def _tried(settings: Settings) -> str:
    """Return which secrets verify, and how many: a comma makes two of one."""
    if not settings.cookie_secrets:
        return "GATEWAY_COOKIE_SECRETS is not set: GATEWAY_SECRETS was tried"
    count = len(settings.cookie_secrets)
    return "1 was tried" if count == 1 else f"{count} were tried"


def _custom(named: str) -> Custom:
    module, colon, name = named.partition(":")
    if not colon:
        known = ", ".join(_BY_NAME)
        raise SettingsError(f"GATEWAY_AUTH: {named!r} is none of {known}, module:callable")
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
