"""Trial: what `gateway whois` says of a cookie, and `gateway check` of authenticators."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.loading import signed_cookie
from gateway.auth.trial import remarks, whois
from gateway.errors import SettingsError
from tests.auth.test_frameworks import by_django, by_flask
from tests.auth.test_jwt import RSA, key_set, token
from tests.support import Process, served, settings

DAY = 24 * 3600
APP = "the secret of the app of thirty-two bytes or more"


async def said(cookie: str, **given: Any) -> tuple[bool, list[str]]:
    """Return what is said of a cookie."""
    return await whois(settings(**{"cookie_secrets": APP, **given}), cookie)


async def test_each_says_whom_it_sees_or_why_nobody() -> None:
    cookie = f"session={by_flask({'_user_id': 'alice'}, APP)}"
    known, lines = await said(cookie, auth="signed,flask,guest")
    assert known
    assert lines[0].startswith("signed: bad_cookie: the cookie session: it has not the form")
    assert lines[1] == "flask: alice"
    assert lines[2].startswith("guest: no_cookie")
    assert len(lines) == 3


COOKIES = {
    "flask": by_flask({"_user_id": "alice"}, APP),
    "django": by_django({"_auth_user_id": "alice"}, APP),
    "jwt": token(APP, sub="alice", exp=time() + DAY),  # Made as the tests are collected.
    "signed": signed_cookie(settings(cookie_secrets=APP)).sign("alice"),
}


@pytest.mark.parametrize("kind", COOKIES)
async def test_a_cookie_of_another_kind_or_name_is_told_with_its_setting(kind: str) -> None:
    cookie = f"sid={COOKIES[kind]}"
    for auth in COOKIES:
        known, lines = await said(cookie, auth=auth)
        assert not known
        assert lines[1:] == [f"with GATEWAY_AUTH={kind} GATEWAY_COOKIE_NAME=sid {kind}: alice"]


async def test_fields_are_told_by_name_and_never_by_value() -> None:
    cookie = f"session={by_flask({'user': 'alice', 'csrf': 'secret words'}, APP)}"
    known, lines = await said(cookie, auth="flask")
    assert not known
    assert lines[0].endswith("_user_id or user_id is not there (there is user, csrf)")
    assert "secret words" not in str(lines)


@pytest.mark.parametrize("cookie", ["", "session", "=value", " =x"])
async def test_what_is_no_cookie_is_said_to_be_none(cookie: str) -> None:
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        await said(cookie)


@pytest.mark.parametrize(
    "cookie", ["session=\udcff", "session=用", "session=a\nb", "session=" * 999]
)
async def test_any_value_is_answered(cookie: str) -> None:
    known, lines = await said(cookie)
    assert (known, len(lines)) == (False, 1)


async def test_one_that_cannot_tell_says_why_and_others_are_asked() -> None:
    given = {"forward_auth_url": "http://127.0.0.1:9/who", "forward_auth_header": "X-User"}
    known, lines = await said(f"session={COOKIES['signed']}", auth="forward,signed", **given)
    assert known
    assert lines[0].startswith("forward: cannot tell: GATEWAY_FORWARD_AUTH_URL: ")
    assert lines[1:] == ["signed: alice"]


async def test_without_secrets_only_the_settings_are_told_of() -> None:
    given = {"forward_auth_url": "http://127.0.0.1:9/who", "forward_auth_header": "X-User"}
    _, lines = await said("sid=1", auth="forward", secrets="", cookie_secrets="", **given)
    assert len(lines) == 1


def test_the_command_says_it_and_its_exit_code_too() -> None:
    variables = {"secrets": APP, "auth": "flask", "log_level": "error"}
    for cookie, code in ((f"session={COOKIES['flask']}", 0), ("session=x", 1)):
        ended = Process("whois", cookie, **variables)
        output, _ = ended.process.communicate(timeout=30)
        assert ended.process.returncode == code
        assert output.startswith("flask: alice\n" if code == 0 else "flask: bad_cookie: ")


# gateway check


@asynccontextmanager
async def answering(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None
) -> AsyncIterator[str]:
    """Serve one URL that always answers the same."""

    async def answer(request: Request) -> Response:
        return Response(body, status, headers)

    async with served(Starlette(routes=[Route("/here", answer)])) as url:
        yield f"{url}/here"


@pytest.mark.parametrize(
    ("status", "headers", "level"),
    [
        (401, {}, "ok"),
        (302, {"location": "/login"}, "ok"),
        (302, {"location": "/here/?next=1"}, "warning"),
        (301, {"location": "https://app.test/here"}, "warning"),
        (400, {}, "warning"),
        (200, {}, "warning"),
        (200, {"x-user": "admin"}, "fault"),
        (404, {}, "fault"),
        (500, {}, "fault"),
    ],
)
async def test_the_url_of_forward_is_asked_for_who_has_no_cookie(
    status: int, headers: dict[str, str], level: str
) -> None:
    async with answering(status, headers=headers) as url:
        given = {"forward_auth_url": url, "forward_auth_header": "X-User"}
        ((said_level, words),) = await remarks(settings(auth="forward", **given))
    assert said_level == level, words


@pytest.mark.parametrize(
    ("status", "body", "level"),
    [(200, key_set(a=RSA), "ok"), (200, b"{}", "fault"), (404, b"", "fault")],
)
async def test_the_issuers_keys_are_asked_for(status: int, body: bytes, level: str) -> None:
    async with answering(status, body) as url:
        ((said_level, words),) = await remarks(settings(auth="jwt", jwt_jwks_url=url))
    assert said_level == level, words


@pytest.mark.parametrize(
    ("given", "level", "words"),
    [
        ({"auth": "flask"}, "warning", "GATEWAY_COOKIE_SECRETS: missing; flask"),
        ({"auth": "signed"}, "warning", "GATEWAY_COOKIE_SECRETS: missing; signed"),
        ({"auth": "jwt", "cookie_secrets": "x" * 31}, "warning", "shorter than the 32 bytes"),
    ],
)
async def test_settings_that_let_strangers_in_are_told(
    given: dict[str, Any], level: str, words: str
) -> None:
    ((said_level, told),) = await remarks(settings(**given))
    assert said_level == level
    assert words in told


async def test_a_login_that_is_asked_over_plain_http_is_told() -> None:
    given = {"forward_auth_url": "http://app.invalid/who", "forward_auth_header": "X-User"}
    found = await remarks(settings(auth="forward", forward_auth_timeout=1, **given))
    assert [level for level, _ in found] == ["warning", "fault"]
    assert "plain http" in found[0][1]


async def test_settings_that_are_fine_are_no_remark() -> None:
    for auth in ("signed", "guest", "signed,flask,django,jwt,guest"):
        assert await remarks(settings(auth=auth, cookie_secrets=APP)) == []
