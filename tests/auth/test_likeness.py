"""Likeness: cookies are told from each other without a key, and what is said of them helps."""

from base64 import urlsafe_b64encode
from uuid import UUID

import pytest

from gateway.auth.base import Caller
from gateway.auth.cookies import Cookies
from gateway.auth.likeness import refused, unlike
from gateway.auth.loading import authenticators, signed_cookie
from tests.auth.test_frameworks import by_django, by_flask
from tests.auth.test_jwt import token
from tests.support import settings

APP = "the secret of the app of thirty-two bytes or more"
LONG = {"_user_id": "alice", "text": "a" * 2000}

COOKIES = {
    "signed": [signed_cookie(settings(cookie_secrets=APP)).sign("alice" * n) for n in (1, 2, 3, 9)],
    "flask": [by_flask(each, APP) for each in ({}, {"_user_id": "alice"}, {"a": 1}, LONG)],
    "django": [
        *(by_django({"_auth_user_id": "1"}, APP), by_django({"a" * 900: "b"}, APP, compress=True))
    ],
    "jwt": [token(APP), token(APP, kid="k")],
}
NAMES = {
    "signed": "a Starlette session",
    "flask": "a Flask session",
    "django": "a Django session (signed_cookies)",
    "jwt": "a JWT",
}
EACH = [(kind, cookie) for kind, cookies in COOKIES.items() for cookie in cookies]
# Not by what is in them, which tells the time: each process would have tests of its own.
IDS = [f"{kind}-{number}" for kind, cookies in COOKIES.items() for number in range(len(cookies))]


@pytest.mark.parametrize(("kind", "cookie"), EACH, ids=IDS)
def test_the_form_of_each_kind_is_seen_without_its_secret(kind: str, cookie: str) -> None:
    words = refused(kind, cookie, "2 were tried")
    form = f"it has the form of {NAMES[kind]}, signed with another secret (2 were tried)"
    assert words == form
    for other in NAMES.keys() - {kind}:
        words = refused(other, cookie, "2 were tried")
        assert words == unlike(other, cookie)
        has = f"this has that of {NAMES[kind]}: GATEWAY_AUTH={kind}"
        assert words == f"it has not the form of {NAMES[other]}; {has}"


@pytest.mark.parametrize(
    "cookie",
    [
        "k3l0d9s8f7g6h5j4k3l2z1x0c9v8b7n6",
        "8MFc-LfHw_Dy73-RPqNpHCvLq9_JWeDp6WcN04PF1_g",
        str(UUID(int=7)),
        "m8u1k7b2c9" * 3,
    ],
)
def test_the_id_of_a_session_on_the_server_is_for_forward(cookie: str) -> None:
    for kind in NAMES:
        words = unlike(kind, cookie)
        assert words.endswith("the id of a session that the server keeps: GATEWAY_AUTH=forward")


def test_an_encrypted_token_is_for_forward() -> None:
    header = urlsafe_b64encode(b'{"alg":"dir","enc":"A256GCM"}').decode().rstrip("=")
    assert "(JWE): GATEWAY_AUTH=forward" in unlike("signed", f"{header}..aXY.dGV4dA.dGFn")


QUOTES = urlsafe_b64encode(b'{"' + b'"' * 2000).decode()
SIGNATURE = "a" * 27
NOTHING = {
    "nothing": "",
    "a word": "alice",
    "no base64": f"a.AAAAAA.{SIGNATURE}",
    "no object": f"{urlsafe_b64encode(b'[1, 2]').decode()}.AAAAAA.{SIGNATURE}",
    "compressed nonsense": f".eJzzzz.AAAAAA.{SIGNATURE}",
    "long": "a" * 5000,
    "cut": by_flask({"_user_id": "alice"}, APP)[:-1],
    "no text": "\xff\u7528\ud800",
    "dots": "." * 4000,
    "quotes": f"{QUOTES}.AAAAAA.{SIGNATURE}",
}


@pytest.mark.parametrize("cookie", NOTHING.values(), ids=NOTHING)
def test_what_is_none_of_them_is_said_to_be_none(cookie: str) -> None:
    for kind, name in NAMES.items():
        assert refused(kind, cookie, "1 was tried") == f"it has not the form of {name}"


# As the authenticators say it


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("secrets", "tried"),
    [
        ("", "GATEWAY_COOKIE_SECRETS is not set: GATEWAY_SECRETS was tried"),
        ("another secret of thirty-two bytes, wrong", "2 were tried"),
        ("another secret of thirty-two bytes or more", "1 was tried"),
    ],
)
async def test_a_wrong_secret_is_told_from_none_and_how_many_there_are(
    kind: str, secrets: str, tried: str
) -> None:
    (by,) = authenticators(settings(auth=kind, cookie_name="sid", cookie_secrets=secrets)).each
    for cookie in COOKIES[kind]:
        finding = await by.find(Caller({}, Cookies([f"sid={cookie}"])))
        assert finding.reason == "bad_cookie"
        form = f"it has the form of {NAMES[kind]}, signed with another secret ({tried})"
        assert finding.why.endswith(form)


@pytest.mark.parametrize("kind", NAMES)
async def test_another_kind_is_told_with_its_setting_and_without_its_value(kind: str) -> None:
    (by,) = authenticators(settings(auth=kind, cookie_name="sid", cookie_secrets=APP)).each
    for other, cookie in EACH:
        if other != kind:
            finding = await by.find(Caller({}, Cookies([f"sid={cookie}"])))
            assert finding.why.endswith(f"{NAMES[other]}: GATEWAY_AUTH={other}")
            assert cookie[:8] not in finding.why
