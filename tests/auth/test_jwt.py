"""Jwt: tokens of real libraries name their users; forged, old and foreign ones do not."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hmac import digest
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.base import Caller, Finding
from gateway.auth.cookies import Cookies
from gateway.auth.jwks import Jwks, StaticKeys
from gateway.auth.jwt import JsonWebToken, Rules
from gateway.auth.keys import OF_PUBLIC_KEYS, OF_SECRETS, of_file, of_secrets, of_set
from gateway.auth.loading import authenticators
from gateway.errors import SettingsError, Unavailable
from gateway.upstream.lookup import Lookup
from tests.support import served, settings, until

SECRET = "the app's secret of thirty-two bytes or more"
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "PS256": RSA, "ES256": EC, "ES384": EC384, "EdDSA": EDWARDS}


def pem(key: Any) -> bytes:
    """Return the public half of a key as a file has it."""
    public = key.public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def claims(**more: Any) -> dict[str, Any]:
    """Return the claims of a good token; those that are None are left out."""
    given = {"sub": "alice", "exp": int(time()) + 600, **more}
    return {name: value for name, value in given.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **more: Any) -> str:
    """Return a token as PyJWT makes it."""
    headers = {"kid": kid} if kid is not None else None
    plain = jwt.PyJWS()  # Which takes claims that PyJWT itself would refuse to write.
    return plain.encode(json.dumps(claims(**more)).encode(), key, algorithm, headers)


def by_secret(later: float = 0, **rules: Any) -> JsonWebToken:
    """Return a reader of tokens that a secret signs, some seconds from now."""
    return reader(StaticKeys(of_secrets([SECRET])), OF_SECRETS, later, **rules)


def reader(
    keys: Any, algorithms: Any = OF_PUBLIC_KEYS, later: float = 0, **rules: Any
) -> JsonWebToken:
    """Return a reader of tokens."""
    return JsonWebToken(keys, Rules(algorithms, **rules), lambda: time() + later)


async def found(by: JsonWebToken, *tokens: str, name: str = "access_token") -> Finding:
    """Return what is found in a request with these tokens in cookies of one name."""
    line = "; ".join(f"{name}={each}" for each in tokens)
    return await by.find(Caller({}, Cookies([line])))


async def said(by: JsonWebToken, *tokens: str) -> str | None:
    """Return who is found."""
    return (await found(by, *tokens)).subject


# Where a token may be


async def test_a_token_in_a_cookie_names_its_user() -> None:
    made = jwt.encode(claims(), SECRET, algorithm="HS256")
    assert await said(by_secret(), made) == "alice"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_bearer_names_its_user(scheme: str) -> None:
    caller = Caller({"authorization": f"{scheme} {token()}"}, {})
    assert (await by_secret().find(caller)).subject == "alice"


@pytest.mark.parametrize("line", ["Basic YWxpY2U6YQ==", "Bearer", "Bearer sk-a-service-token", ""])
async def test_what_is_no_token_is_none(line: str) -> None:
    finding = await by_secret().find(Caller({"authorization": line}, {}))
    assert (finding.subject, finding.reason) == (None, "no_cookie")


async def test_a_bearer_and_a_cookie_of_two_users_are_refused_for_sure() -> None:
    caller = Caller({"authorization": f"Bearer {token(sub='bob')}"}, {"access_token": token()})
    finding = await by_secret().find(caller)
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)


@pytest.mark.parametrize("first", [False, True])
async def test_a_forged_token_hides_no_good_one(first: bool) -> None:
    values = [token(), token("another secret that is as long as the first", sub="bob")]
    assert await said(by_secret(), *(values[::-1] if first else values)) == "alice"


async def test_two_tokens_of_two_users_are_refused_for_sure() -> None:
    finding = await found(by_secret(), token(), token(sub="bob"))
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)


async def test_a_name_of_the_settings_is_the_only_one() -> None:
    by = by_secret(cookies=["sid"])
    assert (await found(by, token(), name="sid")).subject == "alice"
    assert (await found(by, token())).reason == "no_cookie"


# Claims


def now(later: float) -> Callable[[], float]:
    """Return what tells the time some seconds later, when it is asked."""
    return lambda: time() + later


CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"sub": 7}, ""),
    ({"exp": None}, "bad_cookie"),
    ({"exp": "soon"}, "bad_cookie"),
    ({"exp": True}, "bad_cookie"),
    ({"exp": [1]}, "bad_cookie"),
    ({"exp": float("nan")}, "bad_cookie"),
    ({"exp": float("inf")}, "bad_cookie"),
    ({"exp": 10**40}, "bad_cookie"),
    ({"exp": now(60.5)}, ""),
    ({"exp": now(-10)}, ""),
    ({"exp": now(-40)}, "expired"),
    ({"exp": 0}, "expired"),
    ({"nbf": now(10)}, ""),
    ({"nbf": now(100)}, "bad_cookie"),
    ({"iat": now(100)}, "bad_cookie"),
    ({"iat": "now"}, "bad_cookie"),
    ({"sub": None}, "no_subject"),
    ({"sub": ""}, "no_subject"),
    ({"sub": ["alice"]}, "no_subject"),
    ({"sub": {"id": "alice"}}, "no_subject"),
    ({"sub": 1.5}, "no_subject"),
    ({"sub": False}, "no_subject"),
    ({"sub": "x" * 10_000}, "no_subject"),
    ({"sub": "a\nb"}, "no_subject"),
    ({"sub": "\ud800"}, "no_subject"),
    ({"aud": "others"}, "bad_cookie"),
    ({"aud": []}, "bad_cookie"),
]


@pytest.mark.parametrize(("more", "reason"), CLAIMS, ids=range(len(CLAIMS)))
async def test_a_token_has_a_user_and_an_end(more: dict[str, Any], reason: str) -> None:
    finding = await found(
        by_secret(), token(**{n: v() if callable(v) else v for n, v in more.items()})
    )
    assert (finding.subject or finding.reason) == (reason or str(more.get("sub", "alice")))


@pytest.mark.parametrize("payload", [b"", b"[]", b"alice", b"\xff", b"null", b"[" * 9000, b"{"])
async def test_a_token_over_no_claims_is_nobodys(payload: bytes) -> None:
    made = jwt.PyJWS().encode(payload, SECRET, "HS256")
    assert (await found(by_secret(), made)).reason == "bad_cookie"


@pytest.mark.parametrize(
    ("aud", "ok"),
    [("us", True), (["them", "us"], True), ("them", False), (None, False), ([], False), (7, False)],
)
async def test_an_audience_that_is_set_has_to_be_named(aud: Any, ok: bool) -> None:
    by = by_secret(audience=["us", "we"])
    assert await said(by, token(aud=aud)) == ("alice" if ok else None)


@pytest.mark.parametrize(("iss", "ok"), [("https://id.example", True), ("x", False), (None, False)])
async def test_an_issuer_that_is_set_has_to_be_named(iss: Any, ok: bool) -> None:
    assert await said(by_secret(issuer="https://id.example"), token(iss=iss)) == (
        "alice" if ok else None
    )


@pytest.mark.parametrize("name", ["user.id", "https://app.example/id"])
async def test_a_field_of_the_settings_names_the_user(name: str) -> None:
    by = by_secret(field=name)
    assert await said(by, token(sub="no", user={"id": "bob"}, **{name: "bob"})) == "bob"


async def test_a_token_that_was_good_is_not_for_ever() -> None:
    at = [time()]
    by = JsonWebToken(StaticKeys(of_secrets([SECRET])), Rules(OF_SECRETS), lambda: at[0])
    made = token()
    assert await said(by, made) == "alice"
    at[0] += 629
    assert await said(by, made) == "alice"
    at[0] += 2
    assert (await found(by, made)).reason == "expired"


# Forgeries


def altered(made: str, part: int, value: bytes) -> str:
    """Return a token with one of its parts replaced."""
    parts = made.split(".")
    parts[part] = base64.urlsafe_b64encode(value).decode().rstrip("=")
    return ".".join(parts)


async def test_a_token_changed_anywhere_is_nobodys() -> None:
    made, by = token(), by_secret()
    for index in range(len(made)):
        other = "A" if made[index] != "A" else "B"
        assert await said(by, made[:index] + other + made[index + 1 :]) is None
        assert await said(by, made[:index]) is None


UNSIGNED = jwt.encode(claims(), None, algorithm="none")  # type: ignore[arg-type]
SHAPES: dict[str, str] = {
    "nothing": "",
    "dots": "..",
    "a session": "eyJzdWIiOiJhbGljZSJ9.YWJj.c2ln",
    "no signature": token().rsplit(".", 1)[0] + ".",
    "an algorithm in lower case": altered(token(), 0, b'{"alg":"hs256"}'),
    "an algorithm that is a list": altered(token(), 0, b'{"alg":["HS256"]}'),
    "an algorithm that is an object": altered(token(), 0, b'{"alg":{}}'),
    "no algorithm": altered(token(), 0, b'{"typ":"JWT"}'),
    "a header that is a list": altered(token(), 0, b"[]"),
    "a header that is deep": altered(token(), 0, b"[" * 5000),
    "a kid that is a number": altered(token(), 0, b'{"alg":"HS256","kid":7}'),
    "a demand that nobody knows": altered(token(), 0, b'{"alg":"HS256","crit":["x"],"x":1}'),
    "a payload elsewhere": altered(token(), 0, b'{"alg":"HS256","crit":["b64"],"b64":false}'),
    "long": "x" * 30_000,
    "long parts": ".".join(["A" * 10_000] * 3),
    "encrypted": ".".join(["eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0", "", "a", "b", "c"]),
    "no ASCII": "ä.ö.ü",
    "another secret": token("another secret of thirty-two bytes or more"),
}


@pytest.mark.parametrize("made", SHAPES.values(), ids=SHAPES)
async def test_what_is_no_token_of_ours_is_nobodys(made: str) -> None:
    finding = await found(by_secret(), made)
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", False)


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
async def test_a_token_without_a_signature_is_a_forgery_for_sure(name: str) -> None:
    made = altered(UNSIGNED, 0, json.dumps({"alg": name}).encode())
    for by in (by_secret(), reader(StaticKeys(of_file(pem(RSA))))):
        finding = await found(by, made)
        assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)


def with_public_key(algorithm: str, public: bytes) -> str:
    """Return a token that is signed with a public key, as if that were a secret."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    signature = digest(public, head + b"." + body, "sha256")
    return b".".join([head, body, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize("algorithms", [OF_PUBLIC_KEYS, [*OF_PUBLIC_KEYS, *OF_SECRETS]])
async def test_a_public_key_is_no_secret(algorithms: list[str]) -> None:
    """Not even where the list would let it."""
    by = reader(StaticKeys(of_file(pem(RSA))), algorithms)
    assert await said(by, with_public_key("HS256", pem(RSA))) is None
    assert await said(by, with_public_key("HS256", pem(RSA).strip())) is None


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_it(first: str, second: str, third: str) -> None:
    made = ".".join([first, second, third])
    finding = asyncio.run(by_secret().find(Caller({}, {"access_token": made})))
    assert finding.subject is None


# Keys


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_each_algorithm_verifies_with_its_public_key(algorithm: str) -> None:
    key = PRIVATE[algorithm]
    by = reader(StaticKeys(of_file(pem(key))))
    assert await said(by, token(key, algorithm)) == "alice"
    others = [each for each in PRIVATE if PRIVATE[each] is not key]
    for other in others:
        assert await said(by, token(PRIVATE[other], other)) is None


async def test_only_the_algorithms_of_the_settings_verify() -> None:
    by = reader(StaticKeys(of_file(pem(RSA))), ["RS256"])
    assert await said(by, token(RSA, "RS256")) == "alice"
    assert await said(by, token(RSA, "PS256")) is None


async def test_a_file_may_have_several_keys_a_certificate_or_a_set() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "id.example")])
    day = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, EC.public_key(), 1, day, day + timedelta(1))
    certificate = built.sign(EC, hashes.SHA256()).public_bytes(Encoding.PEM)
    for content in (pem(RSA) + certificate, certificate + pem(RSA), key_set(a=RSA, b=EC)):
        by = reader(StaticKeys(of_file(content)))
        assert await said(by, token(RSA, "RS256")) == "alice"
        assert await said(by, token(EC, "ES256")) == "alice"
        assert await said(by, token(OTHER_RSA, "RS256")) is None


def private(key: Any) -> bytes:
    """Return the private half of a key as a file has it."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"key", b"{}", b'{"keys": []}', b"[" * 9000, b"\xff\xfe"),
        *(pem(RSA)[:200], private(RSA), pem(dsa.generate_private_key(1024))),
        pem(ec.generate_private_key(ec.SECP224R1())),
    ],
)
def test_a_file_that_is_no_public_key_stops_the_start(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^GATEWAY_JWT_PUBLIC_KEY: .+") as caught:
        authenticators(settings(auth="jwt", jwt_public_key=str(file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"jwt_algorithms": "none"}, "ALGORITHMS"),
        ({"jwt_algorithms": "HS256,none"}, "ALGORITHMS"),
        ({"jwt_algorithms": "RS256"}, "ALGORITHMS"),
        ({"jwt_jwks_url": "http://id/keys", "jwt_algorithms": "HS256"}, "ALGORITHMS"),
        ({"jwt_jwks_url": "http://id/keys", "jwt_algorithms": "RS256,HS256"}, "ALGORITHMS"),
        ({"jwt_jwks_url": "http://id/keys", "jwt_public_key": "key.pem"}, "JWKS_URL"),
        ({"jwt_public_key": "no-such-file.pem"}, "PUBLIC_KEY"),
    ],
)
def test_settings_that_would_let_forgeries_in_stop_the_start(
    given: dict[str, str], told: str
) -> None:
    with pytest.raises(SettingsError, match=f"GATEWAY_JWT_{told}"):
        authenticators(settings(auth="jwt", **given))


async def test_the_settings_name_cookie_field_audience_and_secret() -> None:
    given = settings(
        auth="jwt",
        cookie_name="sid",
        cookie_secrets=SECRET,
        subject_field="user.id",
        jwt_audience="us",
        jwt_issuer="id",
    )
    made = token(aud="us", iss="id", user={"id": "bob"})
    chain = authenticators(given)
    assert (await chain.find(Caller({}, {"sid": made}))).subject == "bob"
    assert (await chain.find(Caller({}, {"sid": token(aud="us", iss="id")}))).subject is None
    await chain.close()


async def test_a_short_secret_of_an_app_is_taken_as_it_is() -> None:
    chain = authenticators(settings(auth="jwt", cookie_secrets="short"))
    made = with_public_key("HS256", b"short")
    assert (await chain.find(Caller({}, {"access_token": made}))).subject == "alice"


def key_set(**keys: Any) -> bytes:
    """Return a JWK set of public keys by their names."""
    algorithms = jwt.algorithms
    found = []
    for kid, key in keys.items():
        kind: Any = algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else None
        kind = kind or algorithms.ECAlgorithm
        found.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid})
    return json.dumps({"keys": found}).encode()


def jwk(**changes: Any) -> dict[str, Any]:
    """Return a public key with changed members."""
    return {**json.loads(key_set(a=RSA))["keys"][0], **changes}


ODD: list[Any] = [
    *(None, 7, "key", [], {}, {"kty": "RSA"}, {"kty": []}, {"kty": "oct", "k": "c2VjcmV0"}),
    *(jwk(n=7), jwk(n="!"), jwk(n=None), jwk(e=[]), jwk(kty="EC"), jwk(kty={}), jwk(alg="HS256")),
    *(jwk(use="enc"), jwk(alg=7), jwk(d="AQAB"), jwk(use=[])),
    {"kty": "EC", "crv": "P-0", "x": "a", "y": "b"},
    *(jwk(alg="none"), {"kty": "OKP", "crv": "X25519", "x": "AAAA", "alg": "none"}),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_what_is_no_key_in_a_set_spoils_no_other(odd: Any) -> None:
    good = json.loads(key_set(a=RSA))["keys"]
    assert [each.kid for each in of_set(json.dumps({"keys": [odd, *good]}).encode())] == ["a"]
    with pytest.raises(ValueError, match="no public key"):
        of_set(json.dumps({"keys": [odd]}).encode())


async def test_no_more_than_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.jwt._KNOWN", 3)
    by = by_secret()
    for number in range(10):
        assert await said(by, token(n=number)) == "alice"
    assert len(by._good) == 3


async def test_a_key_of_a_set_is_for_its_own_algorithm_alone() -> None:
    keys = of_set(json.dumps({"keys": [jwk(alg="PS256")]}).encode())
    by = reader(StaticKeys(keys))
    assert await said(by, token(RSA, "PS256", "a")) == "alice"
    assert await said(by, token(RSA, "RS256", "a")) is None


async def test_a_request_verifies_no_more_than_so_many_tokens() -> None:
    """Each costs up to a millisecond of the loop, and a head has room for hundreds."""
    many = [token(n=number) for number in range(9)]
    assert await said(by_secret(), *many[:8]) == "alice"
    finding = await found(by_secret(), *many)
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)
    lines = [(b"authorization", f"Bearer {each}".encode()) for each in many]
    assert (await by_secret().find(Caller(Headers(raw=lines), {}))).sure


# An issuer


@dataclass
class Issuer:
    """An identity provider that publishes keys, over a real socket."""

    body: bytes = b""
    status: int = 200
    asked: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 1000.0
    url: str = ""

    async def keys(self, request: Request) -> Response:
        """Answer as it is told."""
        self.asked += 1
        await self.go.wait()
        headers = {"location": "/elsewhere"} if 300 <= self.status < 400 else None
        return Response(self.body, self.status, headers)


@asynccontextmanager
async def issuer(body: bytes) -> AsyncIterator[tuple[Issuer, JsonWebToken]]:
    """Run an issuer, and a reader of its tokens whose clock is the issuer's."""
    at = Issuer(body)
    at.go.set()
    app = Starlette(routes=[Route("/keys", at.keys), Route("/elsewhere", at.keys)])
    lookup = Lookup()
    async with served(app) as url:
        at.url = f"{url}/keys"
        try:
            yield at, reader(Jwks(lookup, at.url, lambda: at.now))
        finally:
            at.go.set()
            await lookup.close()


async def test_keys_are_asked_for_once_whoever_comes() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        tokens = [token(RSA, "RS256", "a", n=number) for number in range(20)]
        assert await asyncio.gather(*(said(by, each) for each in tokens)) == ["alice"] * 20
        assert at.asked == 1


async def test_an_unknown_key_is_asked_for_at_most_once_a_minute() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        assert await said(by, token(RSA, "RS256", "a")) == "alice"
        at.body = key_set(b=OTHER_RSA)
        at.now += 30
        new = token(OTHER_RSA, "RS256", "b")
        for _ in range(10):
            assert (await found(by, new)).reason == "bad_cookie"
        assert at.asked == 1
        at.now += 31
        assert await said(by, new) == "alice"
        for number in range(10):
            assert await said(by, token(OTHER_RSA, "RS256", f"x{number}")) is None
        assert at.asked == 2


async def test_a_key_that_is_gone_verifies_no_more_not_even_what_it_did() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        old = token(RSA, "RS256", "a")
        assert await said(by, old) == "alice"
        at.body = key_set(b=OTHER_RSA)
        at.now += 61
        assert await said(by, token(OTHER_RSA, "RS256", "b")) == "alice"
        assert await said(by, old) is None


async def test_keys_are_asked_for_again_after_a_while_and_nobody_waits_for_it() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        assert await said(by, token(RSA, "RS256", "a")) == "alice"
        at.now += 601
        at.go.clear()
        assert await said(by, token(RSA, "RS256", "a", again=1)) == "alice"
        at.go.set()


async def test_a_token_that_comes_again_and_again_does_not_outlive_its_key() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        old = token(RSA, "RS256", "a")
        for _ in range(3):
            assert await said(by, old) == "alice"
        at.body = key_set(b=OTHER_RSA)
        at.now += 601
        assert await said(by, old) == "alice"
        await until(lambda: at.asked == 2)
        await until(lambda: by._keys.generation == 2)
        assert await said(by, old) is None


@pytest.mark.parametrize("seen", [True, False])
async def test_after_hours_without_anybody_a_key_that_is_gone_verifies_nothing(seen: bool) -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        old = token(RSA, "RS256", "a")
        for _ in range(3):
            assert await said(by, old) == "alice"
        at.body = key_set(b=OTHER_RSA)
        at.now += 3601
        tokens = [old if seen else token(RSA, "RS256", "a", n=number) for number in range(3)]
        assert await asyncio.gather(*(said(by, each) for each in tokens)) == [None] * 3


async def test_after_hours_old_keys_count_if_the_issuer_is_away() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        old = token(RSA, "RS256", "a")
        assert await said(by, old) == "alice"
        at.status, at.now = 500, at.now + 3601
        assert await said(by, old) == "alice"
        at.go.clear()
        at.now += 3601
        assert await said(by, old) == "alice"  # And nobody waits again.


BROKEN: dict[str, tuple[int, bytes]] = {
    "an error": (500, key_set(a=RSA)),
    "a redirect": (302, b""),
    "nothing": (200, b""),
    "a page": (200, b"<html>"),
    "no keys": (200, b'{"keys": []}'),
    "deep": (200, b"[" * 100_000),
    "ten megabytes": (200, b'{"keys": [' + b" " * (10 << 20) + b"]}"),
}


@pytest.mark.parametrize(("status", "body"), BROKEN.values(), ids=BROKEN)
async def test_old_keys_count_while_the_issuer_is_away_or_odd(status: int, body: bytes) -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        assert await said(by, token(RSA, "RS256", "a")) == "alice"
        at.status, at.body = status, body
        at.now += 61
        with pytest.raises(Unavailable, match="JWKS_URL"):
            await said(by, token(OTHER_RSA, "RS256", "b"))
        assert await said(by, token(RSA, "RS256", "a", again=1)) == "alice"
        at.status, at.body = 200, key_set(a=RSA, b=OTHER_RSA)
        at.now += 61
        assert await said(by, token(OTHER_RSA, "RS256", "b")) == "alice"


@pytest.mark.parametrize(("status", "body"), BROKEN.values(), ids=BROKEN)
async def test_without_any_key_it_will_pass_later(status: int, body: bytes) -> None:
    async with issuer(body) as (at, by):
        at.status = status
        for _ in range(5):
            with pytest.raises(Unavailable, match="JWKS_URL"):
                await said(by, token(RSA, "RS256", "a"))
        assert at.asked == 1  # Not once for each who comes.
        at.status, at.body = 200, key_set(a=RSA)
        at.now += 1
        assert await said(by, token(RSA, "RS256", "a")) == "alice"


async def test_an_issuer_that_nobody_answers_for_will_pass_later() -> None:
    lookup = Lookup()
    by = reader(Jwks(lookup, "http://127.0.0.1:9/keys"))
    with pytest.raises(Unavailable, match="JWKS_URL"):
        await said(by, token(RSA, "RS256", "a"))
    await lookup.close()


async def test_an_issuer_that_hangs_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.jwks._TIMEOUT", 0.1)
    async with issuer(key_set(a=RSA)) as (at, by):
        at.go.clear()
        with pytest.raises(Unavailable, match=r"no answer in 0\.1 s"):
            await said(by, token(RSA, "RS256", "a"))


async def test_a_wrong_signature_under_a_key_of_ours_is_a_forgery_for_sure() -> None:
    async with issuer(key_set(a=RSA)) as (_, by):
        assert (await found(by, token(OTHER_RSA, "RS256", "a"))).sure
        assert not (await found(by, token(OTHER_RSA, "RS256", "b"))).sure


async def test_a_caller_who_leaves_ends_no_question_of_others() -> None:
    async with issuer(key_set(a=RSA)) as (at, by):
        at.go.clear()
        first = asyncio.create_task(said(by, token(RSA, "RS256", "a")))
        second = asyncio.create_task(said(by, token(RSA, "RS256", "a", n=2)))
        await until(lambda: at.asked)
        first.cancel()
        at.go.set()
        assert await second == "alice"
        assert at.asked == 1
