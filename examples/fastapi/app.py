"""A FastAPI app: its users log in to it, and its page streams from the gateway beside it.

The gateway knows them by the cookie of Starlette's SessionMiddleware; nothing here calls it.
"""

import hashlib
import hmac
import os
from urllib.parse import parse_qsl

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.middleware.sessions import SessionMiddleware


def hashed(password: str, salt: bytes) -> bytes:
    """Return what is kept of a password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


# Yours are in a database.
SALT = os.urandom(16)
USERS = {"alice": hashed("wonderland", SALT), "bob": hashed("builder", SALT)}

LOGIN = """<!doctype html><link rel="icon" href="data:,"><title>Log in</title>
<form method="post">
  <input name="username" placeholder="alice">
  <input name="password" type="password" placeholder="wonderland">
  <button>Log in</button>
</form>"""

PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Ask</title>
<form id="ask"><input name="question" value="What if my wifi drops?"> <button>Ask</button></form>
<p id="answer"></p><p id="state"></p>
<form method="post" action="/logout"><button>Log out</button></form>
<script type="module">
const [form, answer, state] = ["ask", "answer", "state"].map((id) => document.getElementById(id));
const headers = { "Content-Type": "application/json" };
form.onsubmit = async (event) => {
  event.preventDefault();
  answer.textContent = state.textContent = "";
  const messages = [{ role: "user", content: form.question.value }];
  const body = JSON.stringify({ model: "pretend", messages });

  const made = await (await fetch("/tickets", { method: "POST", headers, body })).json();
  if (!made.stream_url) return state.append(made.detail ?? made.title);
  const stream = new EventSource(made.stream_url + "&format=text");
  stream.onmessage = (event) => answer.append(event.data);

  const said = (event) => JSON.parse(event.data);
  stream.addEventListener("failure", (event) => answer.append(`[${said(event).message}]`));
  stream.addEventListener("end", (event) => { stream.close(); state.append(said(event).state); });
};
</script>"""


def ours(request: Request) -> None:
    """Refuse other sites' pages: their forms could log a visitor in as somebody else."""
    origin = request.headers.get("Origin")
    if origin and origin.partition("://")[2] != request.headers.get("Host"):
        raise HTTPException(403, "This page is not ours.")


app = FastAPI(dependencies=[Depends(ours)])
app.add_middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])


@app.get("/")
async def page(request: Request) -> Response:
    """Show the page to who has logged in."""
    return HTMLResponse(PAGE) if "sub" in request.session else RedirectResponse("/login")


@app.get("/login")
async def form() -> Response:
    """Show the form."""
    return HTMLResponse(LOGIN)


@app.post("/login")
async def log_in(request: Request) -> Response:
    """Look at the password, and put the user into the session: the gateway reads `sub`."""
    fields = dict(parse_qsl((await request.body()).decode(errors="replace")))
    given = hashed(fields.get("password", ""), SALT)
    name = fields.get("username", "")
    if not hmac.compare_digest(given, USERS.get(name, b"")):
        return HTMLResponse(LOGIN, 401)
    request.session.clear()
    request.session["sub"] = name
    return RedirectResponse("/", 303)


@app.post("/logout")
async def log_out(request: Request) -> Response:
    """Forget who it was."""
    request.session.clear()
    return RedirectResponse("/login", 303)
