"""Guest: a page without a login: each browser is somebody, who is known again."""

import re
from http.cookies import SimpleCookie
from time import time

import httpx
import pytest
from itsdangerous import TimestampSigner

from gateway.auth.base import Caller, Finding
from gateway.auth.cookies import Cookies
from gateway.auth.guest import COOKIE, Guest
from gateway.auth.loading import authenticators
from gateway.errors import SettingsError
from tests.support import ask, read, running, scripted, settings, whole

SECRET, OLD = "a secret of the gateway's", "an older one"
DAY = 86400.0


def guest(later: float = 0, *secrets: str) -> Guest:
    """Return the authenticator, some seconds from now."""
    return Guest(secrets or [SECRET], max_age=14 * DAY, now=lambda: time() + later)


async def found(by: Guest, *cookies: str, page: bool = True, origin: str = "") -> Finding:
    """Return what is found in a request with these cookies of guests."""
    line = "; ".join(f"{COOKIE}={each}" for each in cookies)
    return await by.find(Caller({"origin": origin}, Cookies([line]), page=page))


async def made(by: Guest) -> tuple[str, str]:
    """Return a new guest and the cookie it is given."""
    finding = await found(by)
    assert finding.subject is not None
    return finding.subject, SimpleCookie(finding.cookie)[COOKIE].value


async def test_who_posts_from_a_page_of_ours_is_somebody_new_and_known_again() -> None:
    by = guest()
    (one, cookie), (two, _) = await made(by), await made(by)
    assert one != two
    assert re.fullmatch(r"guest-[\w-]{22}", one)
    for page in (True, False):
        assert await found(by, cookie, page=page) == Finding(one)


async def test_nobody_is_let_in_elsewhere() -> None:
    finding = await found(guest(), page=False)
    assert (finding.subject, finding.reason, finding.cookie) == (None, "no_cookie", "")


async def test_the_cookie_is_for_no_script_and_for_https_where_the_page_is() -> None:
    plain = (await found(guest(), origin="http://127.0.0.1:8000")).cookie
    assert "; HttpOnly; SameSite=Lax" in plain
    assert "Max-Age=1209600" in plain
    assert "Secure" not in plain
    assert (await found(guest(), origin="https://app.example")).cookie.endswith("; Secure")


FORGED = [
    *("", "guest-1", "guest-1.x.y", "x" * 5000, "ä.ö.ü", "."),
    TimestampSigner(SECRET).sign("guest-1").decode(),
    TimestampSigner("another", salt="gateway.guest.v1").sign("guest-1").decode(),
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
async def test_a_forged_guest_is_nobody_and_begins_anew_at_a_page(forged: str) -> None:
    finding = await found(guest(), forged, page=False)
    assert (finding.subject, finding.reason) == (None, "bad_cookie")
    finding = await found(guest(), forged)
    assert finding.subject not in (None, "guest-1")
    assert finding.cookie


async def test_a_guest_changed_anywhere_is_nobody() -> None:
    _, cookie = await made(guest())
    for index in range(len(cookie) - 1):
        other = "A" if cookie[index] != "A" else "B"
        changed = cookie[:index] + other + cookie[index + 1 :]
        assert (await found(guest(), changed, page=False)).subject is None


async def test_a_forged_one_hides_no_guest_and_two_guests_are_nobody() -> None:
    (one, first), (_, second) = await made(guest()), await made(guest())
    assert (await found(guest(), "forged", first)).subject == one
    finding = await found(guest(), first, second)
    assert (finding.subject, finding.sure, finding.cookie) == (None, True, "")


async def test_a_guest_who_comes_again_and_again_stays() -> None:
    one, cookie = await made(guest())
    finding = await found(guest(8 * DAY), cookie)
    assert finding.subject == one
    renewed = SimpleCookie(finding.cookie)[COOKIE].value
    assert (await found(guest(8 * DAY), cookie, page=False)).cookie == ""
    assert (await found(guest(15 * DAY), cookie, page=False)).reason == "expired"
    assert (await found(guest(15 * DAY), renewed, page=False)).subject is None  # Signed today.
    assert (await found(guest(15 * DAY), cookie)).subject != one


async def test_secrets_change_as_those_of_tickets_do() -> None:
    one, cookie = await made(guest(0, OLD))
    assert (await found(guest(0, SECRET, OLD), cookie, page=False)).subject == one
    assert (await found(guest(0, SECRET), cookie, page=False)).reason == "bad_cookie"


def test_without_a_secret_of_the_gateway_it_does_not_start() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_SECRETS: missing"):
        authenticators(settings(auth="guest", secrets="", cookie_secrets=SECRET))


# In a gateway


async def test_a_browser_streams_as_a_guest_from_its_first_post() -> None:
    async with (
        scripted(whole) as upstream,
        running(auth="guest", upstream_url=upstream.url) as gate,
        httpx.AsyncClient(base_url=gate.url) as browser,
    ):
        origin = {"Origin": gate.url}
        answer = await browser.post("/tickets", json=ask(), headers=origin)
        assert answer.status_code == 201
        assert answer.headers["set-cookie"].endswith("; Path=/")
        again = await browser.post("/tickets", json=ask(), headers=origin)
        assert "set-cookie" not in again.headers
        for url in (answer.json()["stream_url"], again.json()["stream_url"]):
            assert (await read(browser, url)).end["state"] == "done"
        async with httpx.AsyncClient(base_url=gate.url) as other:
            url = again.json()["stream_url"]
            assert (await read(other, url)).status == 401
            await other.post("/tickets", json=ask(), headers=origin)
            assert (await read(other, url)).status == 404


async def test_a_post_that_is_the_stream_sets_the_cookie_too() -> None:
    async with (
        scripted(whole) as upstream,
        running(auth="guest", upstream_url=upstream.url, prefix="/llm") as gate,
    ):
        headers = {"Origin": gate.url, "Accept": "text/event-stream"}
        async with gate.http.stream("POST", "/llm/tickets", json=ask(), headers=headers) as answer:
            assert answer.headers["set-cookie"].endswith("; Path=/llm")
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Sec-Fetch-Site": "none"}, 401),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_from_no_page_of_ours_nobody_becomes_a_guest(
    headers: dict[str, str], status: int
) -> None:
    async with running(auth="guest") as gate:
        answer = await gate.http.post("/tickets", json=ask(), headers=headers)
        assert answer.status_code == status
        assert "set-cookie" not in answer.headers


async def test_who_is_logged_in_is_no_guest() -> None:
    async with running(auth="signed,guest") as gate:
        origin = {"Origin": gate.url}
        answer = await gate.post(Origin=gate.url)
        assert answer.status_code == 201
        assert "set-cookie" not in answer.headers
        answer = await gate.http.post("/tickets", json=ask(), headers=origin)
        assert answer.status_code == 201
        assert answer.headers["set-cookie"].startswith(COOKIE)
