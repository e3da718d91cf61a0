"""A guard: it logs users in, and tells nginx who they are. oauth2-proxy has the same URLs.

`/oauth2/auth` is nginx's question (`auth_request`): 202 and the user's name in a header, or 401.
"""

import hashlib
import hmac
import os
from urllib.parse import parse_qsl

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

LOGIN = """<!doctype html><link rel="icon" href="data:,"><title>Log in</title>
<form method="post" action="/oauth2/sign_in">
  <input name="username" placeholder="alice">
  <input name="password" type="password" placeholder="wonderland">
  <button>Log in</button>
</form>"""
COOKIE = "_guard"
MAX_AGE = 14 * 86400

signer = URLSafeTimedSerializer(os.environ["COOKIE_SECRET"], salt="guard")


def hashed(password: str, salt: bytes) -> bytes:
    """Return what is kept of a password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


# Yours are at the provider of your login.
SALT = os.urandom(16)
USERS = {"alice": hashed("wonderland", SALT), "bob": hashed("builder", SALT)}


async def who(request: Request) -> Response:
    """Answer nginx."""
    try:
        name = signer.loads(request.cookies.get(COOKIE, ""), max_age=MAX_AGE)
    except BadSignature:
        return Response(status_code=401)
    return Response(status_code=202, headers={"X-Auth-Request-User": name})


async def form(_: Request) -> Response:
    """Show the form."""
    return HTMLResponse(LOGIN)


def ours(request: Request) -> None:
    """Refuse other sites' pages: their forms could log a visitor in as somebody else, or out."""
    origin = request.headers.get("Origin")
    if origin and origin.partition("://")[2] != request.headers.get("Host"):
        raise HTTPException(403)


async def sign_in(request: Request) -> Response:
    """Look at the password, and set the cookie."""
    ours(request)
    fields = dict(parse_qsl((await request.body()).decode(errors="replace")))
    given = hashed(fields.get("password", ""), SALT)
    name = fields.get("username", "")
    if not hmac.compare_digest(given, USERS.get(name, b"")):
        return HTMLResponse(LOGIN, 401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(COOKIE, signer.dumps(name), MAX_AGE, httponly=True, samesite="lax")
    return answer


async def sign_out(request: Request) -> Response:
    """Take the cookie back."""
    ours(request)
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE)
    return answer


app = Starlette(
    routes=[
        Route("/oauth2/auth", who),
        Route("/oauth2/sign_in", form),
        Route("/oauth2/sign_in", sign_in, methods=["POST"]),
        Route("/oauth2/sign_out", sign_out, methods=["POST"]),
    ]
)
