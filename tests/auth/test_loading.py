"""Authenticators: from a cookie, or an app's own callable, to the one who calls."""

import asyncio
import json
import logging
import sys
import threading
import time as clock
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.base import Caller, usable
from gateway.auth.chain import Chain
from gateway.auth.cookies import Cookies
from gateway.auth.loading import authenticators, signed_cookie
from gateway.auth.signed import SignedCookie
from gateway.errors import SettingsError, Unavailable
from tests.support import SECRET, Process, ask, process, running, settings, until

OLD, NEW = "the app's old secret", "the app's new secret"


def reader(*secrets: str, field: str = "sub", now: float | None = None) -> SignedCookie:
    """Return a reader of the cookie `session`."""
    clock = time if now is None else lambda: now
    return SignedCookie(secrets or [NEW], cookie="session", field=field, max_age=3600, now=clock)


async def seen(
    by: Chain | SignedCookie, headers: Mapping[str, str], cookies: Mapping[str, str]
) -> str | None:
    """Return whom an authenticator sees in headers and cookies."""
    return (await by.find(Caller(headers, cookies))).subject


async def said(by: Chain | SignedCookie, cookie: str | None) -> str | None:
    """Return whom an authenticator sees in a cookie."""
    return await seen(by, {}, {} if cookie is None else {"session": cookie})


def made(session: Any, secret: str = NEW) -> str:
    """Return a cookie over any session."""
    return signed(b64encode(json.dumps(session).encode()), secret)


def signed(data: bytes, secret: str = NEW) -> str:
    """Return a cookie over any bytes."""
    return TimestampSigner(secret).sign(data).decode()


async def from_app(session: dict[str, Any]) -> str:
    """Return the cookie that a real Starlette app sets for a session."""

    async def log_in(request: Request) -> Response:
        request.session.update(session)
        return Response()

    sessions = Middleware(SessionMiddleware, secret_key=NEW)
    app = Starlette(routes=[Route("/", log_in)], middleware=[sessions])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return (await client.get("/")).cookies["session"]


async def test_a_session_of_starlettes_middleware_names_its_user() -> None:
    cookie = await from_app({"sub": "alice@example.org", "cart": [1, 2]})
    assert await said(reader(), cookie) == "alice@example.org"


async def test_the_middleware_reads_our_cookie_too() -> None:
    async def who(request: Request) -> Response:
        return Response(request.session["user"]["id"])

    sessions = Middleware(SessionMiddleware, secret_key=NEW)
    transport = httpx.ASGITransport(Starlette(routes=[Route("/", who)], middleware=[sessions]))
    cookies = {"session": reader(field="user.id").sign("alice")}
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        client.cookies.update(cookies)
        assert (await client.get("/")).text == "alice"


@pytest.mark.parametrize("subject", ["alice", "用户", "a b", "x" * 256])
async def test_a_cookie_of_ours_is_accepted(subject: str) -> None:
    assert await said(reader(), reader().sign(subject)) == subject


SESSIONS: list[tuple[str, Any, str | None]] = [
    ("sub", {"sub": "alice"}, "alice"),
    ("sub", {"sub": 42}, "42"),
    ("user.id", {"user": {"id": "alice"}}, "alice"),
    ("user.id", {"user": {"id": 7}}, "7"),
    ("a.b.c", {"a": {"b": {"c": "deep"}}}, "deep"),
    ("user.id", {"user.id": "alice"}, None),
    ("user.id", {"user": "alice"}, None),
    ("user.id", {"user": None}, None),
    ("sub", {}, None),
    ("sub", {"Sub": "alice"}, None),
    ("sub", [], None),
    ("sub", "sub", None),
    ("sub", None, None),
    ("sub", 5, None),
]


@pytest.mark.parametrize(("field", "session", "subject"), SESSIONS)
async def test_the_field_says_where_the_user_is(
    field: str, session: Any, subject: str | None
) -> None:
    assert await said(reader(field=field), made(session)) == subject


NOBODY: list[Any] = [
    "",
    None,
    True,
    False,
    1.5,
    [],
    ["alice"],
    {},
    "x" * 257,
    "a\nb",
    "a\0b",
    "\ud800",
    "\x7f",
]


@pytest.mark.parametrize("subject", NOBODY)
async def test_what_can_name_nobody_is_nobody(subject: Any) -> None:
    assert usable(subject) is None
    assert await said(reader(), made({"sub": subject})) is None


GARBAGE = {
    "nothing": None,
    "empty": "",
    "no signature": b64encode(b'{"sub": "alice"}').decode(),
    "dots": "....",
    "another secret": made({"sub": "alice"}, "somebody else's secret"),
    "not base64": signed(b"{}{}{"),
    "a cut base64": signed(b"abcde"),
    "not JSON": signed(b64encode(b"sub=alice")),
    "not UTF-8": signed(b64encode(b'{"sub": "\xff"}')),
    "deeply nested": signed(b64encode(b"[" * 100_000)),
    "deeply nested and closed": signed(b64encode(b"[" * 50_000 + b"]" * 50_000)),
    "a number of 5000 digits": signed(b64encode(b'{"sub": ' + b"9" * 5000 + b"}")),
    "long": "x" * 100_000,
    "no latin-1": "Ā.Ā.Ā",
    "signed without a time": b64encode(b'{"sub": "alice"}').decode() + ".c2ln",
}


@pytest.mark.parametrize("cookie", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_nobody(cookie: str | None) -> None:
    assert await said(reader(), cookie) is None


async def test_a_cookie_changed_anywhere_before_its_signature_is_nobodys() -> None:
    cookie = made({"sub": "alice"})
    for index in range(cookie.rindex(".")):
        other = "A" if cookie[index] != "A" else "B"
        assert await said(reader(), cookie[:index] + other + cookie[index + 1 :]) is None


@pytest.mark.parametrize(
    ("seconds", "subject"),
    [(0, "alice"), (3590, "alice"), (3700, None), (-50, "alice"), (-70, None), (1e9, None)],
)
async def test_a_cookie_is_good_for_its_age_and_from_clocks_a_minute_ahead(
    seconds: float, subject: str | None
) -> None:
    cookie = made({"sub": "alice"})
    assert await said(reader(now=time() + seconds), cookie) == subject


async def test_an_old_secret_still_verifies() -> None:
    assert await said(reader(NEW, OLD), made({"sub": "alice"}, OLD)) == "alice"


async def test_the_newest_secret_signs() -> None:
    cookie = reader(NEW, OLD).sign("alice")
    assert await said(reader(NEW), cookie) == "alice"
    assert await said(reader(OLD), cookie) is None


# Several cookies of one name


FORGED = signed(b64encode(b'{"sub": "mallory"}'), "somebody else's secret")
GOOD = made({"sub": "alice"})
SEVERAL: dict[str, tuple[list[str], str | None]] = {
    "a forged one before": ([FORGED, GOOD], "alice"),
    "a forged one after": ([GOOD, FORGED], "alice"),
    "an empty one after": ([GOOD, ""], "alice"),
    "several forged ones": ([FORGED, FORGED, "x", GOOD, "", "y"], "alice"),
    "the same again": ([GOOD, GOOD], "alice"),
    "another of the same caller": ([GOOD, made({"sub": "alice", "a": 1})], "alice"),
    "one of another caller": ([GOOD, made({"sub": "bob"})], None),
    "one of another caller between": ([GOOD, FORGED, made({"sub": "bob"})], None),
    "only forged ones": ([FORGED, "x"], None),
}


@pytest.mark.parametrize(("values", "subject"), SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("lines", [False, True])
async def test_a_forged_cookie_hides_no_good_one_and_two_callers_are_nobody(
    values: list[str], subject: str | None, lines: bool
) -> None:
    each = [f"session={value}" for value in values]
    cookies = Cookies(each if lines else ["; ".join(each)])
    assert await seen(reader(), {}, cookies) == subject


@pytest.mark.parametrize("quoted", [False, True])
async def test_a_forged_cookie_beside_a_good_one_does_not_log_its_owner_out(quoted: bool) -> None:
    async with running(upstream_url="http://127.0.0.1:9/") as served:
        good = served.cookie()["Cookie"]
        if quoted:
            good = good.replace("=", '="', 1) + '"'
        for line in (f"session={FORGED}; {good}", f"a=1; {good}; session={FORGED}"):
            answer = await served.http.post("/tickets", json=ask(), headers={"Cookie": line})
            assert answer.status_code == 201, answer.text
        both = f"{served.cookie()['Cookie']}; {served.cookie('bob')['Cookie']}"
        answer = await served.http.post("/tickets", json=ask(), headers={"Cookie": both})
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


async def test_settings_name_the_cookie_its_secrets_field_and_age() -> None:
    given = settings(
        cookie_name="sid", cookie_secrets="s1,s2", subject_field="user.id", cookie_max_age=60
    )
    cookies = {"sid": made({"user": {"id": "alice"}}, "s2")}
    assert await seen(authenticators(given), {}, cookies) == "alice"
    assert await seen(authenticators(given), {}, {"session": cookies["sid"]}) is None


async def test_without_cookie_secrets_those_of_the_tickets_verify() -> None:
    assert await said(authenticators(settings(secrets=NEW)), made({"sub": "alice"})) == "alice"


# The app's own callable


Headers = Mapping[str, str]


async def asynchronous(headers: Headers, cookies: Headers) -> str | None:
    """An authenticator of an app."""
    return headers.get("x-user")


def synchronous(headers: Headers, cookies: Headers) -> Any:
    """Another, that looks at cookies and may say nonsense."""
    return json.loads(cookies.get("who", "null"))


def unable(headers: Headers, cookies: Headers) -> str:
    """One whose database is away."""
    raise Unavailable("auth_unavailable")


def named(name: str) -> Chain:
    """Return the authenticator that settings name."""
    return authenticators(settings(auth=f"{__name__}:{name}"))


async def test_an_async_callable_says_who_calls() -> None:
    assert await seen(named("asynchronous"), {"x-user": "alice"}, {}) == "alice"
    assert await seen(named("asynchronous"), {}, {}) is None


@pytest.mark.parametrize(
    ("value", "subject"), [('"alice"', "alice"), ("7", "7"), ("null", None), ("true", None)]
)
async def test_a_plain_callable_says_who_calls(value: str, subject: str | None) -> None:
    assert await seen(named("synchronous"), {}, {"who": value}) == subject


async def test_a_callable_may_say_that_it_will_pass(caplog: pytest.LogCaptureFixture) -> None:
    by = named("unable")
    for _ in range(3):
        with pytest.raises(Unavailable, match="auth_unavailable"):
            await seen(by, {}, {})
    (line,) = caplog.messages
    assert line.startswith(f"GATEWAY_AUTH {__name__}:unable: ")


def only_alice(headers: Headers, cookies: Headers) -> str | None:
    """One that looks at a cookie of its own, and breaks at what it cannot read."""
    name, sign, _ = cookies["who"].partition(":ok")
    if not sign:
        raise ValueError(cookies["who"])
    return name


@pytest.mark.parametrize(
    ("line", "subject"),
    [
        ("who=alice:ok; who=alice", "alice"),
        ("who=x; who=alice:ok", "alice"),
        ("who=alice:ok; who=bob:ok", None),
        ("who=alice:ok; other=1; other=2", "alice"),
        ("who=a; who=b", None),
    ],
)
async def test_a_callable_is_shown_each_cookie_of_a_name(line: str, subject: str | None) -> None:
    assert await seen(named("only_alice"), {}, Cookies([line])) == subject


def slow(headers: Headers, cookies: Headers) -> str:
    """One that asks a database, without the loop."""
    clock.sleep(1.5)
    return "alice"


async def test_a_plain_callable_that_takes_its_time_stops_nobody_else() -> None:
    async with running(auth=f"{__name__}:slow", cookie_secrets=SECRET) as served:
        asked = [asyncio.create_task(served.post()) for _ in range(8)]
        worst, started = 0.0, clock.monotonic()
        while not all(each.done() for each in asked):
            before = clock.monotonic()
            assert (await served.http.get("/healthz")).status_code == 200
            worst = max(worst, clock.monotonic() - before)
        took = clock.monotonic() - started
    assert [each.result().status_code for each in asked] == [201] * 8
    assert worst < 6  # Of twelve seconds that they take together.
    assert took < 9


GO = threading.Event()


def stuck(headers: Headers, cookies: Headers) -> str:
    """One whose database does not answer."""
    GO.wait()
    return "alice"


async def test_a_callable_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.custom._TIMEOUT", 0.2)
    with pytest.raises(Unavailable, match="TimeoutError"):
        await seen(named("stuck"), {}, {})
    GO.set()


async def test_only_so_many_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.custom._THREADS", 2)
    monkeypatch.setattr("gateway.auth.custom._WAITING", 3)
    GO.clear()
    by = named("stuck")
    before = threading.active_count()
    asked = [asyncio.create_task(seen(by, {}, {})) for _ in range(5)]
    await until(lambda: threading.active_count() == before + 2)
    with pytest.raises(Unavailable, match="too many"):
        await seen(by, {}, {})
    GO.set()
    assert await asyncio.gather(*asked) == ["alice"] * 5
    assert await seen(by, {}, {}) == "alice"


def in_a_thread(headers: Headers, cookies: Headers) -> Any:
    """One that says what is to be awaited."""
    return asynchronous(headers, cookies)


class Object:
    """One that is an object."""

    async def __call__(self, headers: Headers, cookies: Headers) -> str:
        """Say who calls, if this is the loop."""
        return "alice" if asyncio.get_running_loop() else "nobody"


an_object = Object()


@pytest.mark.parametrize("name", ["in_a_thread", "an_object"])
async def test_a_callable_may_be_async_in_any_way(name: str) -> None:
    assert await seen(named(name), {"x-user": "alice"}, {}) == "alice"


def leaves(headers: Headers, cookies: Headers) -> str:
    """One that exits."""
    sys.exit(1)


async def leaves_too(headers: Headers, cookies: Headers) -> str:
    """Another."""
    sys.exit(1)


def stops(headers: Headers, cookies: Headers) -> str:
    """One whose error no future may hold."""
    raise StopIteration


async def breaks(headers: Headers, cookies: Headers) -> str:
    """One with a bug that is shown a credential."""
    return str(int(cookies["session"])) + "\n"


@pytest.mark.parametrize("name", ["leaves", "leaves_too", "stops", "breaks"])
async def test_one_that_raises_lets_nobody_in_and_says_so_in_one_line(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Cookie": "session=a-credential-of-alice\n"}
    async with running(auth=f"{__name__}:{name}", cookie_secrets=SECRET) as served:
        for _ in range(3):
            answer = await served.http.post(
                "/tickets", json=ask(), headers={"Cookie": headers["Cookie"].strip()}
            )
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    told = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(told) == 1
    line = told[0].getMessage()
    assert f"{__name__}:{name}" in line
    assert "test_loading.py:" in line
    assert "\n" not in line
    assert told[0].exc_info is None
    assert "a-credential" not in line


async def test_one_that_raises_makes_a_guest_of_nobody() -> None:
    async with running(auth=f"{__name__}:breaks,guest") as served:
        url = served.http.base_url
        headers = {"Origin": f"{url.scheme}://{url.netloc.decode()}"}
        answer = await served.http.post("/tickets", json=ask(), headers=headers)
        assert answer.status_code == 201  # Who has no cookie is none of the app's users.
        served.http.cookies.clear()
        headers["Cookie"] = "session=a-credential-of-alice"
        answer = await served.http.post("/tickets", json=ask(), headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (401, "bad_cookie")
        assert "set-cookie" not in answer.headers


async def long_winded(headers: Headers, cookies: Headers) -> str:
    """One whose error shows a credential far behind."""
    raise LookupError("no row " + "." * 280 + cookies["session"])


async def test_no_part_of_a_credential_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    by = named("long_winded")
    cookies = {"session": "abcdefghijklmnopqrstuvwxyz"}
    assert await seen(by, {"cookie": "session=abcdefghijklmnopqrstuvwxyz"}, cookies) is None
    assert "LookupError" in caplog.text
    assert "no row" in caplog.text
    assert "abcdef" not in caplog.text


def huge(headers: Headers, cookies: Headers) -> int:
    """One that returns a number which Python does not write."""
    return -(10**5000)


async def test_a_number_that_is_no_name_is_nobodys() -> None:
    assert await seen(named("huge"), {}, {}) is None


def test_a_module_is_found_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth_beside_us.py").write_text("def who(headers, cookies): return 'alice'")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    assert authenticators(settings(auth="auth_beside_us:who"))
    assert authenticators(settings(auth="auth_beside_us:who"))
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize("body", ["raise SystemExit('a\\nb')", "def f(:", "import no_such_thing"])
def test_a_wrong_module_stops_the_start_with_one_line(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth_that_is_wrong.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    ended = Process(
        "serve", secrets=SECRET, upstream_url="http://u/v1", auth="auth_that_is_wrong:who"
    )
    assert ended.wait() == 78
    output, errors = ended.process.communicate()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("gateway: GATEWAY_AUTH: cannot load auth_that_is_wrong:who")


async def test_one_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth_that_hangs.py").write_text(
        "import time\ndef who(headers, cookies): print('asked', flush=True); time.sleep(600)"
    )
    monkeypatch.chdir(tmp_path)
    given = {"secrets": SECRET, "upstream_url": "http://u/v1", "auth": "auth_that_hangs:who"}
    with process("serve", "--port", "0", **given) as served:
        async with httpx.AsyncClient(base_url=served.url, timeout=20) as http:
            asked = asyncio.create_task(http.post("/tickets", json=ask()))
            assert served.process.stdout is not None
            assert await asyncio.to_thread(served.process.stdout.readline) == "asked\n"
            served.signal(15)
            assert await asyncio.to_thread(served.wait, 30) == 0
            await asyncio.gather(asked, return_exceptions=True)


@pytest.mark.parametrize("auth", ["", "jwx", "no_such_module:x", f"{__name__}:nothing", ":x", "a:"])
def test_an_authenticator_that_is_not_there_is_a_wrong_setting(auth: str) -> None:
    with pytest.raises(SettingsError, match=r"^GATEWAY_AUTH: .+") as caught:
        authenticators(settings(auth=auth))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_called_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="not callable"):
        named("NEW")


def test_a_module_that_breaks_when_it_is_loaded_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_auth_of_a_test.py").write_text("raise RuntimeError('no database')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"^GATEWAY_AUTH: .*no database"):
        authenticators(settings(auth="broken_auth_of_a_test:x"))


def test_without_any_secret_no_cookie_can_be_read() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_COOKIE_SECRETS"):
        signed_cookie(settings(secrets=""))
