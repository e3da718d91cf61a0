"""Jwt: a JSON Web Token of the app's or of its identity provider's, in a cookie or as a bearer.

PyJWT verifies the signature; what the claims have to say is judged here, as a token that was
verified once is only looked at again: is it still in its time.
"""

import json
from collections.abc import Callable, Sequence
from time import time
from typing import Any, NamedTuple, Protocol

from jwt import PyJWS, PyJWTError
from jwt.algorithms import HMACAlgorithm

from gateway.auth.base import Caller, Finding, agreed, known, lines_of, member, shown
from gateway.auth.cookies import values_of
from gateway.auth.keys import OF_PUBLIC_KEYS, Key
from gateway.auth.likeness import unlike

# Where none is named: FastAPI's ways, Flask-JWT-Extended's, FastAPI Users', and a session's.
COOKIES = ("access_token", "access_token_cookie", "fastapiusersauth", "session")

_LEEWAY = 30  # Seconds that clocks may be apart.
_LARGEST = 16 * 1024  # Characters of a token: it has to fit into a request's head.
_KNOWN = 1024  # Tokens that were verified, and may come again.
_TOKENS = 8  # Of one request: each may take a millisecond of the event loop.
_TRIED = 8  # Keys that are tried for a token that names none.


class Keys(Protocol):
    """What knows the keys of an issuer."""

    generation: int  # Another number where a key may be gone.

    async def get(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that a token with this `kid` may be signed with.

        Raises Unavailable if that cannot be known now.
        """

    async def renew(self) -> None:
        """Look whether they are still those of the issuer, if it is time."""


class Rules(NamedTuple):
    """What a token has to be."""

    algorithms: Sequence[str]
    audience: Sequence[str] = ()
    issuer: str = ""
    field: str = "sub"
    cookies: Sequence[str] = COOKIES
    tried: str = ""  # Where keys are secrets: which, and how many.


class _Good(NamedTuple):
    """A token whose signature is right, and the time in which it counts."""

    finding: Finding
    begins: float
    ends: float


class _ShortToo(HMACAlgorithm):
    """HMAC with an app's secret as it is; `gateway check` says where one is short."""

    def check_key_length(self, key: Any) -> None:
        """Let it pass, without a warning at each token."""


class JsonWebToken:
    """The authenticator that reads JWTs."""

    name = "jwt"

    def __init__(self, keys: Keys, rules: Rules, now: Callable[[], float] = time) -> None:
        self._keys = keys
        self._rules = rules
        self._now = now
        self._jws = _verifier()
        self._good: dict[str, _Good] = {}
        self._generation = keys.generation

    async def find(self, caller: Caller) -> Finding:
        """Return whom the token names; several have to name the same.

        Raises Unavailable where the keys cannot be had.
        """
        tokens = [each for name in self._rules.cookies for each in values_of(caller.cookies, name)]
        tokens += [
            token for line in lines_of(caller.headers, "authorization") if (token := _bearer(line))
        ]
        tokens = [*dict.fromkeys(tokens)]
        if len(tokens) > _TOKENS:
            return _bad(f"there are more than {_TOKENS} tokens")._replace(sure=True)
        if tokens:
            return agreed([await self._found(each) for each in tokens])
        where = " or ".join(self._rules.cookies)
        return Finding(None, "no_cookie", f"no bearer, no cookie {where}", shown(caller.cookies))

    async def _found(self, token: str) -> Finding:
        if token in self._good:  # Else nobody asks for the keys while the same tokens come.
            await self._keys.renew()
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._good.clear()
        good = self._good.get(token)
        if good is None:
            read = await self._verified(token)
            if isinstance(read, Finding):
                return read
            good = read
            if len(self._good) >= _KNOWN:
                del self._good[next(iter(self._good))]
            self._good[token] = good
        now = self._now()
        if now >= good.ends:
            return Finding(None, "expired", "the token is over (exp)")
        if now < good.begins:
            return _bad("it does not count yet (nbf, iat)")
        return good.finding

    async def _verified(self, token: str) -> _Good | Finding:
        """Return what a token says, or what is wrong with it."""
        if len(token) > _LARGEST:
            return _bad(f"it has more than {_LARGEST} characters")
        if token.count(".") != 2:
            encrypted = token.count(".") == 4 and token.startswith("ey")
            words = "it is encrypted (JWE): ask the app, by forward"
            return _bad(words if encrypted else unlike("jwt", token))
        try:
            header = self._jws.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError):
            return _bad(unlike("jwt", token))
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str):
            return _bad(unlike("jwt", token))
        if algorithm not in self._rules.algorithms:
            nothing = algorithm.lower() == "none"
            words = "it is not signed (alg none)" if nothing else "its alg is not allowed"
            return _bad(words)._replace(sure=nothing)
        keys = await self._keys.get(kid)
        fitting = [each for each in keys if algorithm in each.algorithms]
        for key in fitting[:_TRIED]:
            payload = self._payload(token, key, algorithm)
            if payload is not None:
                return self._judged(payload)
        if kid is not None and not any(each.kid == kid for each in keys) and not fitting:
            return _bad("there is no key of its name (kid)")
        ours = kid is not None and any(each.kid == kid for each in keys)
        words = "its signature is wrong"
        if self._rules.tried:
            words = f"it has the form of a JWT, signed with another secret ({self._rules.tried})"
        return _bad(words)._replace(sure=ours)

    def _payload(self, token: str, key: Key, algorithm: str) -> bytes | None:
        try:
            payload: bytes = self._jws.decode(token, key.key, algorithms=[algorithm])
        except (PyJWTError, ValueError, TypeError):
            return None
        return payload

    def _judged(self, payload: bytes) -> _Good | Finding:
        try:
            claims = json.loads(payload)
        except (ValueError, RecursionError):
            return _bad("it holds no JSON")
        if not isinstance(claims, dict):
            return _bad("it holds no claims")
        ends = _seconds(claims.get("exp"))
        begins = [_seconds(claims[name]) for name in ("nbf", "iat") if name in claims]
        if ends is None or None in begins:
            return _bad("its times (exp, nbf, iat) are missing or no numbers")
        issuer, field = self._rules.issuer, self._rules.field
        if issuer and claims.get("iss") != issuer:
            return _bad("it is of another issuer (iss)")
        if not self._is_for_us(claims.get("aud")):
            return _bad("it is for another audience (aud), or for one that nobody was told of")
        subject = member(claims, field)
        if subject is None and field in claims:  # A name with dots, as those that are URLs.
            subject = claims[field]
        finding = known(subject, f"its {field} names nobody", claims)
        first = max((each for each in begins if each is not None), default=0.0)
        return _Good(finding, first - _LEEWAY, ends + _LEEWAY)

    def _is_for_us(self, audience: Any) -> bool:
        """Say whether a token is for us; one for somebody is for nobody who has no name."""
        told = [audience] if isinstance(audience, str) else audience
        if not self._rules.audience:
            return told is None
        wanted = self._rules.audience
        return isinstance(told, list) and any(each in wanted for each in told)


def _verifier() -> PyJWS:
    jws = PyJWS([*OF_PUBLIC_KEYS], {"enforce_minimum_key_length": True})
    hashes = (HMACAlgorithm.SHA256, HMACAlgorithm.SHA384, HMACAlgorithm.SHA512)
    for bits, digest in zip((256, 384, 512), hashes, strict=True):
        jws.register_algorithm(f"HS{bits}", _ShortToo(digest))
    return jws


def _bearer(line: str) -> str:
    """Return the token of an Authorization header, "" if it has none that could be a JWT."""
    scheme, _, token = line.partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and "." in token else ""


def _bad(why: str) -> Finding:
    return Finding(None, "bad_cookie", f"the token: {why}")


def _seconds(told: Any) -> float | None:
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    return float(told) if abs(told) < 1e15 else None
