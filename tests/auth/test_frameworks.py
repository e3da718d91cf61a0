"""Frameworks: the cookies of real Flask and Django name their users, and no forgery does."""

import hashlib
import json
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from time import time
from typing import Any
from uuid import UUID

import django
import flask
import pytest
from django.conf import settings as of_django
from django.core import signing
from django.http import HttpRequest, HttpResponse
from flask_login import LoginManager, UserMixin, login_user, logout_user
from itsdangerous import URLSafeTimedSerializer

from gateway.auth.base import Caller, Finding
from gateway.auth.cookies import Cookies
from gateway.auth.django import django_form
from gateway.auth.flask import flask_form
from gateway.auth.session import Form, SessionCookie

OLD, NEW = "the app's old SECRET_KEY, long enough", "the app's new SECRET_KEY, long enough"
SALT = "django.contrib.sessions.backends.signed_cookies"

if not of_django.configured:
    of_django.configure(
        SECRET_KEY=NEW,
        SESSION_ENGINE=SALT,
        INSTALLED_APPS=[
            *("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions")
        ],
    )
    django.setup()


def reader(form: Form, later: float = 0) -> SessionCookie:
    """Return a reader of a form's cookies, some seconds from now."""
    return SessionCookie(form, max_age=3600, now=lambda: time() + later)


async def found(form: Form, *cookies: str, later: float = 0) -> Finding:
    """Return what is found in a request with these cookies, all of the form's name."""
    line = "; ".join(f"{form.cookie}={each}" for each in cookies)
    return await reader(form, later).find(Caller({}, Cookies([line])))


async def said(form: Form, *cookies: str) -> str | None:
    """Return who is found."""
    return (await found(form, *cookies)).subject


# Flask


def flask_app(secret: str = NEW, fallbacks: list[str] | None = None) -> flask.Flask:
    """Return an app with a login by Flask-Login, one by hand, and a log-out."""
    app = flask.Flask(__name__)
    app.config.update(SECRET_KEY=secret, SECRET_KEY_FALLBACKS=fallbacks)
    manager = LoginManager(app)

    class User(UserMixin):  # type: ignore[misc]
        """A user who has an id."""

        def __init__(self, name: str) -> None:
            self.id = name

    manager.user_loader(User)

    @app.post("/login/<name>")
    def log_in(name: str) -> str:
        login_user(User(name))
        flask.session["cart"] = [1, 2]
        return name

    @app.post("/logout")
    def log_out() -> str:
        logout_user()
        return ""

    @app.post("/session")
    def put() -> str:
        flask.session.update(app.config["SESSION"])
        return ""

    return app


def flask_cookie(
    path: str, session: dict[str, Any] | None = None, app: flask.Flask | None = None
) -> str:
    """Return the session cookie that a Flask app sets."""
    app = app or flask_app()
    app.config["SESSION"] = session
    client = app.test_client()
    client.post(path)
    cookie = client.get_cookie("session")
    assert cookie is not None
    return str(cookie.value)


@pytest.mark.parametrize("name", ["alice", "42", "alice@example.org", "用户"])
async def test_who_logged_in_by_flask_login_is_known(name: str) -> None:
    assert await said(flask_form([NEW]), flask_cookie(f"/login/{name}")) == name


@pytest.mark.parametrize(
    ("session", "subject"),
    [
        ({"user_id": "alice"}, "alice"),
        ({"user_id": 7}, "7"),
        ({"user_id": UUID(int=5)}, str(UUID(int=5))),
        ({"_user_id": "alice", "user_id": "bob"}, "alice"),
        ({"user_id": "x" * 300, "text": "y" * 2000}, None),
        ({"user_id": ["alice"]}, None),
        ({"user_id": {"id": "alice"}}, None),
        ({"user_id": None}, None),
        ({"user_id": "a\nb"}, None),
        ({"user_id": True}, None),
        ({"name": "alice"}, None),
    ],
)
async def test_the_session_of_a_flask_app_without_it_says_user_id(
    session: dict[str, Any], subject: str | None
) -> None:
    assert await said(flask_form([NEW]), flask_cookie("/session", session)) == subject


@pytest.mark.parametrize(
    "tagged", [{" u": "x"}, {" u": 7}, {" u": None}, {" b": "YQ=="}, {" x": 1}]
)
async def test_an_id_of_a_kind_that_can_name_nobody_is_nobody(tagged: dict[str, Any]) -> None:
    finding = await found(flask_form([NEW]), by_flask({"user_id": tagged}))
    assert (finding.subject, finding.reason) == (None, "no_subject")


async def test_a_long_session_that_flask_compressed_is_read() -> None:
    cookie = flask_cookie("/session", {"user_id": "alice", "text": "a" * 3000})
    assert cookie.startswith(".")
    assert await said(flask_form([NEW]), cookie) == "alice"


async def test_a_field_of_the_settings_is_read_instead() -> None:
    cookie = flask_cookie("/session", {"user_id": "7", "user": {"mail": "a@b.example"}})
    assert await said(flask_form([NEW], field="user.mail"), cookie) == "a@b.example"
    assert await said(flask_form([NEW], field="mail"), cookie) is None


async def test_flasks_keys_change_as_in_the_app() -> None:
    old, new = flask_cookie("/login/alice", app=flask_app(OLD)), flask_cookie("/login/alice")
    rotated = flask_cookie("/login/alice", app=flask_app(NEW, [OLD]))
    for cookie in (old, new, rotated):
        assert await said(flask_form([NEW, OLD]), cookie) == "alice"
    assert await said(flask_form([NEW]), old) is None


# Django


def django_cookie(put: dict[str, Any] | None = None) -> str:
    """Return the session cookie that Django's middleware sets after a login, or for a session."""
    from django.contrib.auth import login
    from django.contrib.auth.models import User, update_last_login
    from django.contrib.auth.signals import user_logged_in
    from django.contrib.sessions.middleware import SessionMiddleware

    user_logged_in.disconnect(update_last_login, dispatch_uid="update_last_login")

    def view(request: HttpRequest) -> HttpResponse:
        if put is None:
            user = User(pk=42, username="alice", password="hashed")
            login(request, user, "django.contrib.auth.backends.ModelBackend")
        else:
            request.session.update(put)
        return HttpResponse()

    request = HttpRequest()
    request.META["SERVER_NAME"], request.META["SERVER_PORT"] = "app.example", "80"
    return str(SessionMiddleware(view)(request).cookies["sessionid"].value)


def by_django(session: Any, key: str = NEW, salt: str = SALT, **more: Any) -> str:
    """Return a session as Django signs it."""
    return str(signing.dumps(session, key=key, salt=salt, **more))


async def test_who_logged_in_by_django_is_known() -> None:
    assert await said(django_form([NEW]), django_cookie()) == "42"


@pytest.mark.parametrize(
    ("session", "subject"),
    [
        ({"_auth_user_id": "7"}, "7"),
        ({"_auth_user_id": 7}, "7"),
        ({"_auth_user_id": "ä用"}, "ä用"),
        ({"_auth_user_id": None}, None),
        ({"_auth_user_id": ["7"]}, None),
        ({"_auth_user_id": 1.5}, None),
        ({"_auth_user_id": "x" * 10_000}, None),
        ({"user_id": "7"}, None),
        ([], None),
        ("_auth_user_id", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
async def test_the_session_of_django_says_auth_user_id(
    session: Any, subject: str | None, compress: bool
) -> None:
    assert await said(django_form([NEW]), by_django(session, compress=compress)) == subject


async def test_a_long_session_that_django_compressed_is_read() -> None:
    cookie = django_cookie({"_auth_user_id": "7", "text": "a" * 3000})
    assert cookie.startswith(".")
    assert await said(django_form([NEW]), cookie) == "7"


async def test_djangos_keys_change_as_in_the_app() -> None:
    old = by_django({"_auth_user_id": "7"}, OLD)
    assert await said(django_form([NEW, OLD]), old) == "7"
    assert await said(django_form([NEW]), old) is None


@pytest.mark.parametrize("made", ["", "-1", "1" * 13, "ä", "1 2"])
async def test_a_time_that_is_none_is_no_cookie_of_djangos(made: str) -> None:
    data = urlsafe_b64encode(b'{"_auth_user_id": "7"}').decode().rstrip("=")
    cookie = signing.Signer(key=NEW, salt=SALT).sign(f"{data}:{made}")
    assert (await found(django_form([NEW]), cookie)).reason == "bad_cookie"


async def test_a_session_that_grows_without_end_is_not_unpacked() -> None:
    data = zlib.compress(b'{"_auth_user_id": "7", "a": "' + b"a" * (8 << 20) + b'"}', 9)
    packed = "." + urlsafe_b64encode(data).decode().rstrip("=")
    cookie = signing.TimestampSigner(key=NEW, salt=SALT).sign(packed)
    assert (await found(django_form([NEW]), cookie)).reason == "bad_cookie"


# Forgeries of both


def by_flask(session: Any, key: str = NEW, salt: str = "cookie-session", **more: Any) -> str:
    """Return a session as Flask signs it."""
    signer = {"key_derivation": "hmac", "digest_method": hashlib.sha1, **more}
    dumped = URLSafeTimedSerializer(key, salt=salt, signer_kwargs=signer).dumps(session)
    return str(dumped)


def swapped(cookie: str) -> str:
    """Return a cookie with another payload under the same signature."""
    mark = ":" if ":" in cookie else "."
    other = urlsafe_b64encode(b'{"_auth_user_id":"1","_user_id":"1"}').decode().rstrip("=")
    return mark.join([other, *cookie.rsplit(mark, 2)[1:]])


KINDS: dict[str, tuple[Callable[..., Form], Callable[..., str]]] = {
    "flask": (flask_form, by_flask),
    "django": (django_form, by_django),
}
SESSION = {"_auth_user_id": "alice", "_user_id": "alice"}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
async def test_the_forgeries_below_would_pass_if_they_were_none(kind: str) -> None:
    form, mint = KINDS[kind]
    assert await said(form([NEW]), mint(SESSION)) == "alice"


@every_kind
async def test_a_cookie_changed_anywhere_is_nobodys(kind: str) -> None:
    form, mint = KINDS[kind]
    cookie, made = mint(SESSION), form([NEW])
    for index in range(len(cookie) - 1):  # The last character has bits that count for nothing.
        other = "A" if cookie[index] != "A" else "B"
        assert await said(made, cookie[:index] + other + cookie[index + 1 :]) is None


@every_kind
async def test_a_cookie_cut_anywhere_is_nobodys(kind: str) -> None:
    form, mint = KINDS[kind]
    cookie, made = mint(SESSION), form([NEW])
    for index in range(len(cookie)):
        assert await said(made, cookie[:index]) is None


FORGED: dict[str, Callable[[str], str]] = {
    "another secret": lambda kind: KINDS[kind][1](SESSION, "somebody else's secret"),
    "another salt": lambda kind: KINDS[kind][1](SESSION, salt="another"),
    "the other framework's": lambda kind: (by_django if kind == "flask" else by_flask)(SESSION),
    "another payload": lambda kind: swapped(KINDS[kind][1](SESSION)),
    "no signature": lambda kind: urlsafe_b64encode(json.dumps(SESSION).encode()).decode(),
    "nothing": lambda kind: "",
    "marks": lambda kind: "....::::",
    "a long one": lambda kind: "x" * 30_000,
    "a long one with marks": lambda kind: ".:" * 15_000,
    "no ASCII": lambda kind: "ä:ö.ü",
    "an opaque id": lambda kind: "8f3kd93jd8s7dh2k1l0p9o8i7u6y5t4r",
}


@every_kind
@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_cookie_is_nobodys(kind: str, forged: str) -> None:
    finding = await found(KINDS[kind][0]([NEW]), FORGED[forged](kind))
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", False)


async def test_another_algorithm_is_nobodys() -> None:
    of_flask = by_flask(SESSION, digest_method=hashlib.sha256)
    assert await said(flask_form([NEW]), of_flask) is None
    signer = signing.TimestampSigner(key=NEW, salt=SALT, algorithm="sha1")
    assert await said(django_form([NEW]), signer.sign_object(SESSION)) is None


UNREADABLE = {
    "nothing": b"",
    "half": b'{"_user_id": ',
    "no UTF-8": b"\xff\xfe",
    "deep": b"[" * 9999,
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_is_signed_but_no_json_is_nobodys(data: bytes) -> None:
    text = urlsafe_b64encode(data).decode().rstrip("=")
    signer = URLSafeTimedSerializer(
        NEW,
        salt="cookie-session",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
    ).make_signer("cookie-session")
    assert (await found(flask_form([NEW]), signer.sign(text).decode())).reason == "bad_cookie"
    cookie = signing.TimestampSigner(key=NEW, salt=SALT).sign(text)
    assert (await found(django_form([NEW]), cookie)).reason == "bad_cookie"


@every_kind
@pytest.mark.parametrize(
    ("later", "reason"),
    [(3590, ""), (3700, "expired"), (-50, ""), (-70, "expired"), (1e9, "expired")],
)
async def test_a_session_is_good_for_its_age(kind: str, later: float, reason: str) -> None:
    form, mint = KINDS[kind]
    finding = await found(form([NEW]), mint(SESSION), later=later)
    assert (finding.subject, finding.subject or finding.reason) == (
        (None, reason) if reason else ("alice", "alice")
    )


@every_kind
@pytest.mark.parametrize("first", [False, True])
async def test_a_forged_one_hides_no_good_one(kind: str, first: bool) -> None:
    form, mint = KINDS[kind]
    values = [mint(SESSION), mint({"_auth_user_id": "x", "_user_id": "x"}, OLD)]
    assert await said(form([NEW]), *(values[::-1] if first else values)) == "alice"


@every_kind
async def test_two_that_name_two_users_are_refused_for_sure(kind: str) -> None:
    form, mint = KINDS[kind]
    other = {"_auth_user_id": "bob", "_user_id": "bob"}
    finding = await found(form([NEW]), mint(SESSION), mint(other))
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)


@every_kind
async def test_an_operator_is_told_which_fields_a_session_has(kind: str) -> None:
    form, mint = KINDS[kind]
    finding = await found(form([NEW]), mint({"csrf": "secret words", "cart": 1}))
    assert (finding.reason, finding.names) == ("no_subject", ("csrf", "cart"))
    assert "secret words" not in finding.why


@every_kind
async def test_an_operator_is_told_which_cookies_there_are(kind: str) -> None:
    caller = Caller({}, Cookies(["sid=secret; other=1"]))
    finding = await reader(KINDS[kind][0]([NEW])).find(caller)
    assert (finding.reason, finding.names) == ("no_cookie", ("sid", "other"))
