"""Chain: authenticators in turn; what strangers hear of it, and what the log says."""

import logging
from collections.abc import Callable

import pytest
from starlette.datastructures import Headers

from gateway.auth.base import Caller, Finding, Reason
from gateway.auth.chain import Chain
from gateway.auth.loading import authenticators, signed_cookie
from gateway.errors import SettingsError, Unavailable
from tests.auth.test_frameworks import by_django, by_flask
from tests.auth.test_jwt import token
from tests.support import ask, running, settings

APP = "the secret of the app of thirty-two bytes or more"
NOBODY = Caller({}, {})


class Fixed:
    """An authenticator that always finds the same."""

    def __init__(self, name: str, finding: Finding | None) -> None:
        self.name = name
        self.finding = finding
        self.asked = 0

    async def find(self, caller: Caller) -> Finding:
        """Return it; raises Unavailable where there is nothing."""
        self.asked += 1
        if self.finding is None:
            raise Unavailable("auth_unavailable")
        return self.finding


def no(reason: Reason, sure: bool = False) -> Finding:
    """Return a finding of nobody."""
    return Finding(None, reason, "why it is", ("there",), sure)


def chain(*findings: Finding | None, now: list[float] | None = None) -> tuple[Chain, list[Fixed]]:
    """Return a chain of authenticators that find these."""
    each = [Fixed(f"kind{number}", finding) for number, finding in enumerate(findings)]
    clock = now or [0.0]

    async def close() -> None:
        """Nothing is open."""

    return Chain(each, close, lambda: clock[0]), each


async def test_the_first_that_knows_the_caller_has_it() -> None:
    by, each = chain(no("bad_cookie"), Finding("alice"), Finding("bob"))
    assert (await by.find(NOBODY)).subject == "alice"
    assert [one.asked for one in each] == [1, 1, 0]


async def test_after_one_that_is_sure_of_a_forgery_nobody_is_asked() -> None:
    by, each = chain(no("bad_cookie", sure=True), Finding("bob"))
    assert (await by.find(NOBODY)).subject is None
    assert [one.asked for one in each] == [1, 0]


async def test_two_different_authorizations_name_nobody_whoever_would_believe_one() -> None:
    by, each = chain(Finding("alice"))
    lines = [(b"authorization", b"Bearer a.b.c"), (b"authorization", b"Basic eDp5")]
    finding = await by.find(Caller(Headers(raw=lines), {}))
    assert (finding.subject, finding.reason) == (None, "bad_cookie")
    assert each[0].asked == 0
    for once in (lines[:1], [lines[0], lines[0]]):
        assert (await by.find(Caller(Headers(raw=once), {}))).subject == "alice"


async def test_where_one_cannot_tell_nobody_else_is_believed() -> None:
    by, each = chain(no("no_cookie"), None, Finding("guest"))
    with pytest.raises(Unavailable):
        await by.find(NOBODY)
    assert each[2].asked == 0


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["no_cookie", "bad_cookie"], "bad_cookie"),
        (["no_subject", "bad_cookie", "no_cookie"], "no_subject"),
        (["no_cookie", "expired", "no_subject"], "expired"),
        (["no_cookie", "no_cookie"], "no_cookie"),
    ],
)
async def test_the_reason_is_of_who_came_nearest(reasons: list[Reason], told: str) -> None:
    by, _ = chain(*(no(each) for each in reasons))
    assert (await by.find(NOBODY)).reason == told


async def test_the_log_says_once_a_minute_which_one_why_and_what_there_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    by, _ = chain(no("no_subject"), no("no_cookie"), now=now)
    for _ in range(5):
        await by.find(NOBODY)
    lines = [each.getMessage() for each in caplog.records]
    assert lines == [
        "a caller is nobody to kind0: no_subject: why it is (there is there)",
        "a caller is nobody to kind1: no_cookie: why it is (there is there)",
    ]
    now[0] = 61.0
    await by.find(NOBODY)
    assert len(caplog.records) == 4


# Of the settings


@pytest.mark.parametrize(
    "auth", ["", ",", "signed,signed", "signed,nothing", "signed flask", "oidc"]
)
def test_a_list_that_cannot_be_is_a_wrong_setting(auth: str) -> None:
    with pytest.raises(SettingsError, match=r"^GATEWAY_AUTH: .+"):
        authenticators(settings(auth=auth))


COOKIES = {
    "flask": lambda: f"session={by_flask({'_user_id': 'alice'}, APP)}",
    "django": lambda: f"sessionid={by_django({'_auth_user_id': 'alice'}, APP)}",
    "jwt": lambda: f"access_token={token(APP)}",
    "jwt in a session": lambda: f"session={token(APP)}",
}


def by_signed(subject: str) -> str:
    """Return Starlette's session of a user."""
    return signed_cookie(settings(cookie_secrets=APP)).sign(subject)


def by_jwt(subject: str) -> str:
    """Return a token of a user."""
    return token(APP, sub=subject)


@pytest.mark.parametrize(("kind", "made"), [("signed", by_signed), ("jwt", by_jwt)])
async def test_a_users_own_cookie_is_not_hidden_by_many_and_one_of_somebody_else(
    kind: str, made: Callable[[str], str]
) -> None:
    """A page on a neighbouring host sets cookies for the whole domain."""
    values = [made("alice"), *(f"x{number}" for number in range(15)), made("mallory")]
    line = "; ".join(f"session={each}" for each in values)
    async with running(auth=f"{kind},guest", cookie_secrets=APP) as gate:
        url = gate.http.base_url
        headers = {"Cookie": line, "Origin": f"{url.scheme}://{url.netloc.decode()}"}
        answer = await gate.http.post("/tickets", json=ask(), headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (401, "bad_cookie")


@pytest.mark.parametrize("cookie", COOKIES)
async def test_a_list_knows_the_users_of_all_in_it(cookie: str) -> None:
    async with running(auth="jwt, flask, django, signed", cookie_secrets=APP) as gate:
        headers = {"Cookie": COOKIES[cookie]()}
        answer = await gate.http.post("/tickets", json=ask(), headers=headers)
        assert answer.status_code == 201
        assert (await gate.post()).status_code == 201


REASONS = {
    "": "no_cookie",
    "other=1": "no_cookie",
    "session=forged": "bad_cookie",
    f"session={by_flask({'cart': 'secret words'}, APP)}": "no_subject",
    f"session={token(APP, exp=1)}": "expired",
}


@pytest.mark.parametrize("line", REASONS, ids=REASONS.values())
async def test_a_401_says_what_is_wrong_and_helps_no_forger(
    line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(auth="jwt,flask", cookie_secrets=APP) as gate:
        answer = await gate.http.post("/tickets", json=ask(), headers={"Cookie": line})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (401, "not_authenticated")
    assert problem["reason"] == REASONS[line]
    assert problem["detail"] == "Log in, then try again."
    said = " ".join(each.getMessage() for each in caplog.records)
    assert REASONS[line] in said
    assert "secret words" not in said


async def test_a_name_that_would_forge_a_line_of_the_log_forges_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    by = authenticators(settings())
    cookies = {"a\nb\x1b[31m": "1", **{f"n{number}": "" for number in range(500)}}
    await by.find(Caller(Headers(), cookies))
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.isprintable()
    assert len(line) < 1200
