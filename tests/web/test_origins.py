"""Origins: which pages may ask, whoever's cookies their requests carry."""

import pytest

from gateway.errors import Rejected
from gateway.web.origins import Origins

HOST = "gw.example.org"
LISTED = ("https://app.example.com", "http://localhost:5173/")
OURS = Origins(LISTED, public_url="https://chat.example.org:8443/base")
EXPOSED = b"access-control-allow-origin"


def headers(**given: str) -> dict[str, str]:
    """Return request headers; sec_fetch_site becomes sec-fetch-site."""
    return {"host": HOST, **{name.replace("_", "-"): value for name, value in given.items()}}


def code(given: dict[str, str], *, stream: bool = False) -> str:
    """Return the code of the refusal, "" if the request passes."""
    try:
        OURS.check_stream(given) if stream else OURS.check(given)
    except Rejected as refusal:
        return refusal.code
    return ""


PAGES = {
    "no page: curl, a server": (headers(), True),
    "our own host": (headers(origin="https://gw.example.org"), True),
    "our own host, TLS ends before us": (headers(origin="http://gw.example.org"), True),
    "our own host in capitals": (headers(origin="https://GW.example.org"), True),
    "our own host with a default port": (headers(origin="https://gw.example.org:443"), True),
    "our own host on another port": (headers(origin="https://gw.example.org:444"), False),
    "a host with a port": (headers(origin="http://h:8000", host="h:8000"), True),
    "a host with another port": (headers(origin="http://h:8001", host="h:8000"), False),
    "a host whose port is the default one": (headers(origin="http://h", host="h:80"), True),
    "an IPv6 host": (headers(origin="http://[::1]:8000", host="[::1]:8000"), True),
    "the public URL": (headers(origin="https://chat.example.org:8443"), True),
    "the public URL's host on another port": (headers(origin="https://chat.example.org"), False),
    "a listed one": (headers(origin="https://app.example.com"), True),
    "a listed one in capitals": (headers(origin="HTTPS://APP.example.com"), True),
    "one listed with a slash": (headers(origin="http://localhost:5173"), True),
    "a listed one by another scheme": (headers(origin="http://app.example.com"), False),
    "a part of a listed one": (headers(origin="https://example.com"), False),
    "a listed one as the beginning": (headers(origin="https://app.example.com.evil.net"), False),
    "our host as the beginning": (headers(origin="https://gw.example.org.evil.net"), False),
    "our host as the user": (headers(origin="https://gw.example.org@evil.net"), False),
    "a subdomain": (headers(origin="https://evil.gw.example.org"), False),
    "another site": (headers(origin="https://evil.net"), False),
    "a sandboxed page": (headers(origin="null"), False),
    "an empty origin": (headers(origin=""), False),
    "an extension": (headers(origin="chrome-extension://gw.example.org"), False),
    "garbage": (headers(origin="https://[::1"), False),
    "a garbage port": (headers(origin="https://gw.example.org:x"), False),
    "no host at all": ({"origin": "null", "host": ""}, False),
    "a garbage host": ({"origin": "https://a", "host": "a:b:c"}, False),
    "a script of ours": (headers(sec_fetch_site="same-origin"), True),
    "typed in": (headers(sec_fetch_site="none"), True),
    "a sister site without an origin": (headers(sec_fetch_site="same-site"), False),
    "another site without an origin": (headers(sec_fetch_site="cross-site"), False),
    "a listed page on another site": (
        headers(origin="https://app.example.com", sec_fetch_site="cross-site"),
        True,
    ),
    "an unlisted page that says it is ours": (
        headers(origin="https://evil.net", sec_fetch_site="same-origin"),
        False,
    ),
}


@pytest.mark.parametrize(("given", "passes"), PAGES.values(), ids=PAGES)
def test_only_pages_of_ours_may_ask(given: dict[str, str], passes: bool) -> None:
    assert code(given) == code(given, stream=True) == ("" if passes else "foreign_origin")


@pytest.mark.parametrize(("given", "passes"), PAGES.values(), ids=PAGES)
def test_only_pages_on_other_origins_of_ours_may_read_the_answer(
    given: dict[str, str], passes: bool
) -> None:
    answer = dict(OURS.cors(given))
    exposed = given["origin"].encode() if passes and "origin" in given else None
    assert answer.get(EXPOSED) == exposed
    assert answer[b"vary"] == b"Origin"


DESTINATIONS = ["audio", "document", "embed", "iframe", "image", "script", "style", "video", ""]


@pytest.mark.parametrize("destination", DESTINATIONS)
def test_what_is_no_scripts_request_opens_no_stream(destination: str) -> None:
    given = headers(sec_fetch_dest=destination, sec_fetch_site="same-origin")
    assert code(given, stream=True) == "not_a_stream_request"


def test_an_event_source_or_fetch_opens_a_stream() -> None:
    assert code(headers(sec_fetch_dest="empty", sec_fetch_site="same-origin"), stream=True) == ""


PURPOSES = ["prefetch", "prefetch;prerender", "prefetch;anonymous-client-ip", "prerender"]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("header", ["sec_purpose", "purpose"])
def test_a_prefetch_opens_no_stream(header: str, purpose: str) -> None:
    assert code(headers(**{header: purpose}), stream=True) == "prefetch"


def test_the_page_is_looked_at_before_the_purpose() -> None:
    given = headers(origin="https://evil.net", sec_purpose="prefetch", sec_fetch_dest="image")
    assert code(given, stream=True) == "foreign_origin"


def test_a_refusal_says_which_setting_to_change_and_is_bounded() -> None:
    with pytest.raises(Rejected) as caught:
        OURS.check(headers(origin="https://evil.net/" + "x" * 5000))
    assert caught.value.status == 403
    assert "GATEWAY_ALLOWED_ORIGINS" in caught.value.detail
    assert len(caught.value.detail) < 200


def test_cors_lets_a_page_send_its_cookie_and_read_what_it_needs() -> None:
    answer = dict(OURS.cors(headers(origin="https://app.example.com")))
    assert answer[b"access-control-allow-credentials"] == b"true"
    for name in (b"Location", b"Content-Location", b"Retry-After"):
        assert name in answer[b"access-control-expose-headers"]


def test_without_settings_only_the_requests_own_host_is_ours() -> None:
    bare = Origins()
    bare.check(headers(origin="https://gw.example.org"))
    with pytest.raises(Rejected):
        bare.check(headers(origin="https://app.example.com"))
