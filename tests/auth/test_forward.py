"""Forward: the app says whose cookies these are; over real sockets, whatever it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.base import Caller, Finding
from gateway.auth.cookies import Cookies, Crowded
from gateway.auth.forward import Forward
from gateway.auth.loading import authenticators
from gateway.errors import SettingsError, Unavailable
from gateway.upstream.lookup import Lookup
from tests.support import Call, ask, read, running, scripted, served, settings, until

USERS = {"s1": "alice", "s2": "bob"}


@dataclass
class App:
    """An app with sessions, over a real socket."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] | None = None
    seen: list[list[tuple[str, str]]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 1000.0
    url: str = ""

    async def whoami(self, request: Request) -> Response:
        """Say who has these cookies, or what it is told to say."""
        self.seen.append(request.headers.items())
        await self.go.wait()
        user = USERS.get(request.cookies.get("sid", ""))
        if self.status == 200 and self.headers is None and user is None:
            return Response(status_code=401)
        response = Response(b"a page " * 10_000, self.status)
        named = [(b"x-user", (user or "").encode())]
        response.raw_headers += named if self.headers is None else self.headers
        return response


@asynccontextmanager
async def app(ttl: float = 10, timeout: float = 3) -> AsyncIterator[tuple[App, Forward]]:
    """Run an app, and what asks it."""
    at = App()
    at.go.set()
    lookup = Lookup()
    async with served(Starlette(routes=[Route("/whoami", at.whoami)])) as url:
        at.url = f"{url}/whoami"
        given: dict[str, Any] = {"ttl": ttl, "timeout": timeout, "now": lambda: at.now}
        try:
            yield at, Forward(lookup, at.url, "X-User", **given)
        finally:
            at.go.set()
            await lookup.close()


async def found(by: Forward, line: str, **headers: str) -> Finding:
    """Return what is found in a request with this line of cookies."""
    return await by.find(Caller({"cookie": line, **headers}, Cookies([line] if line else [])))


async def test_the_app_names_its_user() -> None:
    async with app() as (_, by):
        assert (await found(by, "a=1; sid=s1")).subject == "alice"
        assert (await found(by, "sid=s2")).subject == "bob"
        assert (await found(by, "sid=nobody")).reason == "bad_cookie"


@pytest.mark.parametrize("name", ["voilà", "Å"])
async def test_a_name_may_end_in_any_letter(name: str) -> None:
    async with app() as (at, by):
        at.headers = [(b"x-user", name.encode())]
        assert (await found(by, "sid=s1")).subject == name


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0", "\x1f"])
async def test_no_cookie_becomes_another_header_of_the_question(end: str) -> None:
    """A server that an app runs us in may let it pass, as h2 before 4.3 did."""
    async with app() as (at, by):
        finding = await found(by, f"a=1{end}x-user: root; sid=s1")
        assert (finding.subject, finding.reason) == (None, "bad_cookie")
        assert at.seen == []


async def test_cookies_go_to_the_app_as_they_came_and_nothing_else_does() -> None:
    async with app() as (at, by):
        line = 'sid=s1; a="b c"; \xe4=\xf6; empty='
        await found(by, line, authorization="Bearer secret", **{"x-user": "mallory"})
        host = at.url.split("/")[2]
        assert sorted(at.seen[0]) == [("content-length", "0"), ("cookie", line), ("host", host)]


async def test_without_a_cookie_the_app_is_not_asked() -> None:
    async with app() as (at, by):
        assert (await found(by, "")).reason == "no_cookie"
        assert at.seen == []


async def test_a_yes_is_kept_for_its_time_and_for_these_cookies_only() -> None:
    async with app(ttl=10) as (at, by):
        for _ in range(3):
            assert (await found(by, "sid=s1")).subject == "alice"
        assert len(at.seen) == 1
        assert (await found(by, "sid=s2")).subject == "bob"
        at.status, at.now = 401, at.now + 9.9
        assert (await found(by, "sid=s1")).subject == "alice"
        at.now += 0.2
        assert (await found(by, "sid=s1")).subject is None


async def test_a_no_is_never_kept() -> None:
    async with app() as (at, by):
        at.status = 401
        assert (await found(by, "sid=s1")).reason == "bad_cookie"
        at.status = 200
        assert (await found(by, "sid=s1")).subject == "alice"


async def test_no_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.forward._KEPT", 3)
    async with app() as (at, by):
        for number in range(6):
            await found(by, f"sid=s1; n={number}")
        await found(by, "sid=s1; n=5")
        assert len(at.seen) == 6
        await found(by, "sid=s1; n=0")
        assert len(at.seen) == 7


async def test_with_no_time_to_keep_it_each_is_a_question() -> None:
    async with app(ttl=0) as (at, by):
        for _ in range(3):
            assert (await found(by, "sid=s1")).subject == "alice"
        assert len(at.seen) == 3


async def test_equal_questions_are_asked_once_and_one_who_leaves_ends_it_for_nobody() -> None:
    async with app() as (at, by):
        at.go.clear()
        asked = [asyncio.create_task(found(by, "sid=s1")) for _ in range(20)]
        await until(lambda: at.seen)
        asked[0].cancel()
        at.go.set()
        assert {each.subject for each in await asyncio.gather(*asked[1:])} == {"alice"}
        assert len(at.seen) == 1


async def test_strangers_make_no_more_than_so_many_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.auth.forward._OPEN", 4)
    async with app() as (at, by):
        at.go.clear()
        asked = [asyncio.create_task(found(by, f"sid={number}")) for number in range(4)]
        await until(lambda: len(at.seen) == 4)
        with pytest.raises(Unavailable, match="too many"):
            await found(by, "sid=s1")
        at.go.set()
        await asyncio.gather(*asked)
        assert (await found(by, "sid=s1")).subject == "alice"


# What the app may say


LOGIN = [(b"location", b"/login"), (b"x-user", b"alice")]
SAID: dict[str, tuple[int, list[tuple[bytes, bytes]], str]] = {
    "another 2xx": (204, [(b"x-user", b"alice")], ""),
    "a name in UTF-8": (200, [(b"X-User", "用户".encode())], ""),
    "no header": (200, [], "no_subject"),
    "an empty one": (200, [(b"x-user", b"")], "no_subject"),
    "one of spaces": (200, [(b"x-user", b"  ")], "no_subject"),
    "the header twice": (200, [(b"x-user", b"alice"), (b"x-user", b"bob")], "no_subject"),
    "twice the same": (200, [(b"x-user", b"alice"), (b"x-user", b"alice")], "no_subject"),
    "a long name": (200, [(b"x-user", b"a" * 300)], "no_subject"),
    "a name of no text": (200, [(b"x-user", b"\xff")], "no_subject"),
    "a redirect to a page": (302, LOGIN, "bad_cookie"),
    "another redirect": (307, LOGIN, "bad_cookie"),
    "401": (401, [(b"x-user", b"alice")], "bad_cookie"),
    "403": (403, [(b"x-user", b"alice")], "bad_cookie"),
    "404": (404, [(b"x-user", b"alice")], "bad_cookie"),
}


@pytest.mark.parametrize(("status", "headers", "reason"), SAID.values(), ids=SAID)
async def test_only_a_yes_with_one_name_is_one(
    status: int, headers: list[tuple[bytes, bytes]], reason: str
) -> None:
    async with app() as (at, by):
        at.status, at.headers = status, headers
        finding = await found(by, "sid=s1")
        assert len(at.seen) == 1  # Nothing was followed.
        if reason:
            assert (finding.subject, finding.reason) == (None, reason)
        else:
            assert finding.subject == headers[0][1].decode()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_an_app_that_cannot_say_is_no_no(status: int) -> None:
    async with app() as (at, by):
        at.status = status
        with pytest.raises(Unavailable, match=f"answers {status}"):
            await found(by, "sid=s1")


async def test_an_app_that_is_slow_is_not_waited_for() -> None:
    async with app(timeout=0.2) as (at, by):
        at.go.clear()
        with pytest.raises(Unavailable, match=r"no answer in 0\.2 s"):
            await found(by, "sid=s1")


async def test_an_app_that_is_down_is_no_no() -> None:
    by = Forward(Lookup(), "http://127.0.0.1:9/who", "x-user", ttl=1, timeout=1)
    with pytest.raises(Unavailable, match="FORWARD_AUTH_URL"):
        await found(by, "sid=s1")


async def test_that_it_is_away_is_a_warning_once_a_minute_and_that_it_is_back_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lines() -> list[str]:
        said = [each for each in caplog.records if each.name.startswith("gateway")]  # Not uvicorn.
        return [f"{each.levelname} {each.getMessage()}" for each in said]

    async with app(ttl=0) as (at, by):
        for status in (200, 500, 503, 200, 500, 200):
            at.status = status
            with suppress(Unavailable):
                await found(by, "sid=s1")
        away = "WARNING GATEWAY_FORWARD_AUTH_URL: it answers 500; callers are told 503"
        assert [each.startswith(away) for each in lines()] == [True, False]
        assert lines()[1:] == ["WARNING GATEWAY_FORWARD_AUTH_URL: answers again"]
        at.status, at.now = 500, at.now + 61
        with pytest.raises(Unavailable):
            await found(by, "sid=s1")
        assert len(lines()) == 3
        assert "s1" not in str(lines())


REFUSED = {
    "a slash at the end": (301, "/whoami/", "leads to /whoami/ (it is another path with a slash"),
    "https": (301, "https://app.test/whoami", "leads to /whoami (it wants https"),
    "the same": (302, "/whoami?next=secret", "leads to /whoami (it leads to the same path"),
    "its login": (302, "/login?next=secret", "says 302 to its cookies, and leads to /login"),
    "no address": (302, "http://[/", "says 302 to its cookies"),
    "the host": (400, "", "says 400 to its cookies (is its host in ALLOWED_HOSTS?)"),
    "no user": (401, "", "says 401 to its cookies"),
}


@pytest.mark.parametrize(("status", "location", "words"), REFUSED.values(), ids=REFUSED)
async def test_a_no_says_where_it_leads_and_what_is_likely_and_no_query(
    status: int, location: str, words: str
) -> None:
    async with app() as (at, by):
        at.status, at.headers = status, [(b"location", location.encode())]
        finding = await found(by, "sid=s1")
        assert words in finding.why
        assert ("(" in finding.why) == ("(" in words)
        assert "secret" not in finding.why


@pytest.mark.parametrize(
    ("value", "words"),
    [(b"\xe4", "is not UTF-8"), (b"a\xc2\x85b", "is not printable"), (b"a" * 257, "is too long")],
)
async def test_a_header_that_names_nobody_says_why(value: bytes, words: str) -> None:
    async with app() as (at, by):
        at.headers = [(b"x-user", value)]
        finding = await found(by, "sid=s1")
        assert (finding.reason, finding.why) == ("no_subject", f"the app's x-user {words}")


async def closes(call: Call) -> None:
    """Close the connection without a word."""
    call.cut()


async def talks_nonsense(call: Call) -> None:
    """Answer what is no HTTP."""
    await call.send(b"hello\r\n\r\n")


@pytest.mark.parametrize("script", [closes, talks_nonsense])
async def test_an_app_that_is_no_app_is_no_no(script: Any) -> None:
    async with scripted(script) as at:
        lookup = Lookup()
        by = Forward(lookup, at.url, "x-user", ttl=1, timeout=1)
        with pytest.raises(Unavailable, match="FORWARD_AUTH_URL"):
            await found(by, "sid=s1")
        await lookup.close()


# Cookies that are there twice


TWICE = [
    ("sid=x; sid=s1", "alice"),
    ("sid=s1; sid=x", "alice"),
    ("sid=s1; sid=s1", "alice"),
    ("a=1; sid=x; a=2; sid=s1", "alice"),
    ("sid=s1; sid=s2", None),
    ("sid=x; sid=y", None),
]


@pytest.mark.parametrize(("line", "subject"), TWICE)
async def test_a_forged_one_hides_no_good_one(line: str, subject: str | None) -> None:
    async with app() as (_, by):
        assert (await found(by, line)).subject == subject


async def test_two_of_two_users_are_refused_for_sure() -> None:
    async with app() as (_, by):
        finding = await found(by, "sid=s1; sid=s2")
        assert (finding.reason, finding.sure) == ("bad_cookie", True)


async def test_many_of_a_name_are_few_questions_and_too_many_none() -> None:
    async with app() as (at, by):
        await found(by, "; ".join(f"sid={number}" for number in range(4)))
        assert len(at.seen) == 4
        with pytest.raises(Crowded):
            await found(by, "; ".join(f"sid={number}" for number in range(5)))
        assert len(at.seen) == 4


# In a gateway


@pytest.mark.parametrize("missing", ["forward_auth_url", "forward_auth_header"])
def test_without_its_settings_it_does_not_start(missing: str) -> None:
    given = {"forward_auth_url": "http://app/who", "forward_auth_header": "x-user", missing: ""}
    with pytest.raises(SettingsError, match=f"GATEWAY_{missing.upper()}: missing"):
        authenticators(settings(auth="forward", **given))


async def test_an_app_that_is_away_is_503_and_a_retry_to_an_eventsource() -> None:
    async with app() as (at, _):
        given = {"forward_auth_url": at.url, "forward_auth_header": "x-user"}
        async with running(auth="forward", forward_auth_ttl=0, **given) as gate:
            headers = {"Cookie": "sid=s1"}
            made = await gate.http.post("/tickets", json=ask(), headers=headers)
            assert made.status_code == 201
            at.status = 500
            refused = await gate.http.post("/tickets", json=ask(), headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (503, "auth_unavailable")
            told = await read(gate.http, made.json()["stream_url"], headers=headers)
            assert (told.status, told.events) == (200, [])
            assert b": auth_unavailable" in told.raw
            at.status = 302
            refused = await gate.http.post("/tickets", json=ask(), headers=headers)
            assert (refused.status_code, refused.json()["reason"]) == (401, "bad_cookie")
