"""What it costs to know a caller: `python -m benchmarks.login`.

Microseconds of one core a request, the parsing of its cookies included, for each way in
`GATEWAY_AUTH`: for a caller who comes again, as a page does with each POST, GET and reconnect, and
for one who is new. `forward` asks an app on a socket of this process. Exits 1 if any caller who
comes again costs more than is promised.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from time import perf_counter, time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.core.signing import TimestampSigner
from itsdangerous import URLSafeTimedSerializer

from gateway.auth.base import Caller, Finding
from gateway.auth.cookies import Cookies
from gateway.auth.forward import Forward
from gateway.auth.guest import Guest
from gateway.auth.jwks import StaticKeys
from gateway.auth.jwt import JsonWebToken, Rules
from gateway.auth.keys import OF_PUBLIC_KEYS, OF_SECRETS, of_file, of_secrets
from gateway.auth.loading import authenticators, signed_cookie
from gateway.config.settings import Settings
from gateway.upstream.lookup import Lookup

PROMISED = 50.0  # Microseconds, of who comes again.
AGAIN, NEW = 20_000, 200  # Requests of each kind.
ROUNDS = 5  # The fastest of them is told: what else the machine does is no cost of ours.
SECRET = "a secret of the app that has more than thirty-two bytes"
DJANGO = "django.contrib.sessions.backends.signed_cookies"
OTHERS = "_ga=GA1.1.1234567890.1234567890; csrftoken=abcdefghijklmnopqrstuvwxyz; theme=dark"

NEW_PAGE = Caller({}, {}, page=True)

Line = Callable[[int], str]
Find = Callable[[Caller], object]


def settings(auth: str) -> Settings:
    """Return settings with one way in."""
    given: dict[str, Any] = {"secrets": SECRET, "cookie_secrets": SECRET}
    return Settings(**given, auth=auth)


def signed(number: int) -> str:
    """Return a session of Starlette's."""
    cookie = signed_cookie(settings("signed"))
    return f"session={cookie.sign(f'user-{number}')}"


def of_flask(number: int) -> str:
    """Return a session of Flask's."""
    signer = {"key_derivation": "hmac", "digest_method": hashlib.sha1}
    serializer = URLSafeTimedSerializer(SECRET, salt="cookie-session", signer_kwargs=signer)
    return f"session={serializer.dumps({'_user_id': f'user-{number}', '_fresh': True})}"


def of_django(number: int) -> str:
    """Return a session of Django's."""
    signer = TimestampSigner(key=SECRET, salt=DJANGO, fallback_keys=())
    session = {"_auth_user_id": str(number), "_auth_user_hash": "0" * 64}
    return f"sessionid={signer.sign_object(session, compress=True)}"


def token(key: object, algorithm: str) -> Line:
    """Return what makes tokens."""

    def line(number: int) -> str:
        claims = {"sub": f"user-{number}", "exp": int(time()) + 3600}
        return f"access_token={jwt.encode(claims, key, algorithm=algorithm)}"  # type: ignore[arg-type]

    return line


async def cost(by: Find, line: Line) -> tuple[float, float]:
    """Return the microseconds of a caller who comes again, and of one who is new."""
    lines = [f"{OTHERS}; {line(number)}" for number in range(NEW * ROUNDS)]
    new = [await timed(by, lines[at * NEW : (at + 1) * NEW]) for at in range(ROUNDS)]
    again = [await timed(by, lines[-1:] * AGAIN) for _ in range(ROUNDS)]
    return min(again), min(new)


async def timed(by: Find, lines: list[str]) -> float:
    """Return the microseconds of each request."""
    started = perf_counter()
    for line in lines:
        found = await by(Caller({}, Cookies([line])))  # type: ignore[misc]
        assert isinstance(found, Finding)
        assert found.subject is not None, found
    return (perf_counter() - started) / len(lines) * 1e6


async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as an app that knows everybody."""
    answer = b"HTTP/1.1 204 No Content\r\nX-User: alice\r\n\r\n"
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def measured() -> bool:
    """Print a line for each kind; return whether the promise holds."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    server = await asyncio.start_server(app, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/whoami"
    lookup, guests = Lookup(), Guest([SECRET], max_age=86400)
    welcomed = [(await guests.find(NEW_PAGE)).cookie.partition(";")[0] for _ in range(NEW * ROUNDS)]
    kinds: dict[str, tuple[Find, Line]] = {
        "signed": (authenticators(settings("signed")).find, signed),
        "flask": (authenticators(settings("flask")).find, of_flask),
        "django": (authenticators(settings("django")).find, of_django),
        "jwt, HS256": (
            JsonWebToken(StaticKeys(of_secrets([SECRET])), Rules(OF_SECRETS)).find,
            token(SECRET, "HS256"),
        ),
        "jwt, RS256": (
            JsonWebToken(StaticKeys(of_file(pem)), Rules(OF_PUBLIC_KEYS)).find,
            token(key, "RS256"),
        ),
        "forward": (
            Forward(lookup, url, "x-user", ttl=3600, timeout=3).find,
            lambda number: f"sid={number}",
        ),
        "guest": (guests.find, welcomed.__getitem__),
    }
    print(f"{'':12}{'again':>10}{'new':>10}   µs a request")
    worst = 0.0
    for name, (by, line) in kinds.items():
        again, new = await cost(by, line)
        worst = max(worst, again)
        print(f"{name:12}{again:10.1f}{new:10.1f}")
    await lookup.close()
    server.close()
    return worst < PROMISED


def main() -> None:
    """Measure."""
    holds = asyncio.run(measured())
    print(f"a caller who comes again costs under {PROMISED:g} µs: {'yes' if holds else 'NO'}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
