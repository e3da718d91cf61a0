"""Trial: what authenticators make of a cookie, and whether what they ask answers.

For the commands `whois` and `check`: they are run before anybody depends on the settings.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from gateway.auth.base import Caller, Finding
from gateway.auth.chain import told
from gateway.auth.cookies import Cookies
from gateway.auth.forward import Forward
from gateway.auth.loading import authenticator, authenticators
from gateway.auth.refusal import doubt, leads_to
from gateway.config.settings import Settings
from gateway.errors import GatewayError, SettingsError, redacted
from gateway.upstream.lookup import Answer, Lookup, NoAnswer

_READERS = ("signed", "flask", "django", "jwt")  # Of cookies that others have made.
_SHORT = 32  # Bytes; the least secret of HS256 (RFC 7518 §3.2).
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))

_UNASKED = Finding()

Remark = tuple[str, str]  # A level of `check`, and words.


async def whois(settings: Settings, cookie: str) -> tuple[bool, list[str]]:
    """Return what each authenticator says of `NAME=VALUE`, and whether one knows a user by it.

    Others than those of the settings are told if they know it. Raises SettingsError.
    """
    name, sign, _ = cookie.partition("=")
    if not sign or not name.strip():
        raise SettingsError("COOKIE: it is to be NAME=VALUE, as in a request")
    line = cookie.encode("utf-8", "surrogateescape").decode("latin-1")
    caller = Caller({"cookie": line}, Cookies([line]))
    chain, lookup = authenticators(settings), Lookup()
    words: list[str] = []
    found: dict[str, Finding] = {}
    try:
        for each in chain.each:
            try:
                found[each.name] = await each.find(caller)
                words.append(told(each.name, found[each.name]))
            except GatewayError as error:
                words.append(f"{each.name}: cannot tell: {error}")
        for kind in _READERS:
            if found.get(kind, _UNASKED)[:2] == (None, "no_cookie"):
                words += await _hints(kind, settings, name.strip(), lookup, caller)
    finally:
        await chain.close()
        await lookup.close()
    return any(each.subject is not None for each in found.values()), words


async def _hints(
    kind: str, settings: Settings, cookie: str, lookup: Lookup, caller: Caller
) -> list[str]:
    """Return what a kind that is not in the settings makes of a cookie, if it is its own."""
    named = settings.model_copy(update={"cookie_name": cookie})
    try:
        finding = await authenticator(kind, named, lookup).find(caller)
    except GatewayError:
        return []
    if finding.subject is None and finding.reason not in ("expired", "no_subject"):
        return []
    return [f"with GATEWAY_AUTH={kind} GATEWAY_COOKIE_NAME={cookie} {told(kind, finding)}"]


async def remarks(settings: Settings) -> list[Remark]:
    """Return what is to be said of the authenticators; raises SettingsError."""
    chain, lookup = authenticators(settings), Lookup()
    names = [each.name for each in chain.each]
    found = [*_of_settings(settings, names)]
    try:
        for each in chain.each:
            if isinstance(each, Forward):
                found.append(await _of_forward(settings, each))
        if "jwt" in names and settings.jwt_jwks_url:
            found.append(await _of_jwks(settings, lookup))
    finally:
        await chain.close()
        await lookup.close()
    return found


def _of_settings(settings: Settings, names: list[str]) -> Iterator[Remark]:
    secrets = settings.cookie_secrets or settings.secrets
    with_key = bool(settings.jwt_jwks_url or settings.jwt_public_key)
    readers = [each for each in names if each in _READERS and not (each == "jwt" and with_key)]
    for name in readers:
        if not settings.cookie_secrets:
            words = f"missing; {name} verifies with GATEWAY_SECRETS, right only where the app"
            yield "warning", f"GATEWAY_COOKIE_SECRETS: {words} signs with these"
    if "jwt" in readers and min(len(each.get_secret_value()) for each in secrets) < _SHORT:
        yield "warning", f"GATEWAY_COOKIE_SECRETS: shorter than the {_SHORT} bytes that HS256 asks"
    for name in ("jwt_jwks_url", "forward_auth_url"):
        url = urlsplit(getattr(settings, name))
        if url.scheme == "http" and name.partition("_")[0] in names and _far(url.hostname):
            words = "is plain http: whoever is on the way can say who a caller is"
            yield "warning", f"GATEWAY_{name.upper()}: {words}"


def _far(host: str | None) -> bool:
    """Whether a host is named as one of the wide net: not this machine, nor a bare name."""
    return host not in _LOOPBACK and "." in (host or "")


async def _of_forward(settings: Settings, forward: Forward) -> Remark:
    where = f"GATEWAY_FORWARD_AUTH_URL: {redacted(settings.forward_auth_url)}"
    try:
        answer = await forward.question("")
    except NoAnswer as error:
        return "fault", f"{where}: {error}"
    if answer.status >= 500 or answer.status in (404, 405, 410):
        return "fault", f"{where}: it answers {answer.status}"
    if 200 <= answer.status < 300 and answer.lines(settings.forward_auth_header.lower()):
        return "fault", f"{where}: it names a user to who has no cookie at all"
    return _of_no(where, settings.forward_auth_url, answer)


def _of_no(where: str, url: str, answer: Answer) -> Remark:
    """Return whether an answer to who has no cookie is that of a URL which knows its users."""
    path = leads_to(url, answer)
    leads = f", and leads to {path}" if path else ""
    if words := doubt(url, answer):
        return "warning", f"{where}: it answers {answer.status}{leads}: {words}"
    if 200 <= answer.status < 300:
        words = "not 401: is it the URL that says who the caller is, in that header?"
        return "warning", f"{where}: it answers {answer.status} without a cookie, {words}"
    return "ok", f"{where} answers ({answer.status} without a cookie{leads})"


async def _of_jwks(settings: Settings, lookup: Lookup) -> Remark:
    from gateway.auth.jwks import Jwks  # With cryptography, which others need not load.

    where = f"GATEWAY_JWT_JWKS_URL: {redacted(settings.jwt_jwks_url)}"
    try:
        keys = await Jwks(lookup, settings.jwt_jwks_url).fetched()
    except (NoAnswer, ValueError) as error:
        return "fault", f"{where}: {error}"
    return "ok", f"{where} has {len(keys)} key(s)"
