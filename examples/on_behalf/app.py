"""An app whose server makes the prompt: its page sends a question, and only watches the answer.

The server adds a document and what was said before, and makes the ticket for its user by a service
token. What it tells the model never passes through the page, which cannot ask the model itself.
"""

import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

LOGIN = """<!doctype html><link rel="icon" href="data:,"><title>Log in</title>
<form method="post">
  <input name="username" placeholder="alice">
  <input name="password" type="password" placeholder="wonderland">
  <button>Log in</button>
</form>"""

PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Ask</title>
<form id="ask"><input name="question" value="How long is the warranty?"> <button>Ask</button></form>
<p id="answer"></p><p id="state"></p>
<form method="post" action="/logout"><button>Log out</button></form>
<script type="module">
const [form, answer, state] = ["ask", "answer", "state"].map((id) => document.getElementById(id));
const headers = { "Content-Type": "application/json" };
form.onsubmit = async (event) => {
  event.preventDefault();
  answer.textContent = state.textContent = "";
  const body = JSON.stringify({ question: form.question.value });

  const made = await (await fetch("/ask", { method: "POST", headers, body })).json();
  if (!made.stream_url) return state.append(made.detail);
  const stream = new EventSource(made.stream_url + "&format=text");
  stream.onmessage = (event) => answer.append(event.data);

  const said = (event) => JSON.parse(event.data);
  stream.addEventListener("failure", (event) => answer.append(`[${said(event).message}]`));
  stream.addEventListener("end", (event) => { stream.close(); state.append(said(event).state); });
};
</script>"""

DOCUMENTS = {
    "warranty": "The warranty is two years from the day of delivery.",
    "return": "What is sent back within 30 days is refunded in full.",
    "shipping": "Shipping takes three days, and is free above 50 euros.",
}
RULES = "Answer in one sentence, from this document only:"

gateway = httpx.AsyncClient(base_url=os.environ["GATEWAY_URL"])
SERVICE = {"Authorization": f"Bearer {os.environ['SERVICE_TOKEN']}"}


def hashed(password: str, salt: bytes) -> bytes:
    """Return what is kept of a password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


@dataclass
class User:
    """Who may log in, what was said, and where the last answer is."""

    password: bytes
    history: list[dict[str, str]] = field(default_factory=list)
    ticket: str = ""


# Yours are in a database.
SALT = os.urandom(16)
USERS = {
    "alice": User(hashed("wonderland", SALT)),
    "bob": User(hashed("builder", SALT)),
}


def ours(request: Request) -> None:
    """Refuse other sites' pages: their forms could log a visitor in as somebody else."""
    origin = request.headers.get("Origin")
    if origin and origin.partition("://")[2] != request.headers.get("Host"):
        raise HTTPException(403, "This page is not ours.")


app = FastAPI(dependencies=[Depends(ours)])
app.add_middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])


class Asked(BaseModel):
    """What the page sends."""

    question: str = Field(min_length=1, max_length=2000)


@app.post("/ask", status_code=201)
async def ask(asked: Asked, request: Request) -> dict[str, str]:
    """Make the prompt and the ticket; returns where the page can watch the answer."""
    name = request.session.get("sub", "")
    if name not in USERS:
        raise HTTPException(401, "Log in, then try again.")
    user = USERS[name]
    await remember(user, request.headers.get("Cookie", ""))
    known = [text for word, text in DOCUMENTS.items() if word in asked.question.lower()]
    question = {"role": "user", "content": asked.question}
    rules = {"role": "system", "content": "\n".join([RULES, *known])}
    path = f"/users/{quote(name, safe='')}/tickets/support"
    body = {"model": "pretend", "messages": [rules, *user.history[-10:], question]}
    made = await gateway.post(path, json=body, headers=SERVICE)
    if made.is_error:
        raise HTTPException(503, made.json()["title"])
    user.history.append(question)
    user.ticket = made.json()["ticket"]
    return {"stream_url": made.json()["stream_url"]}


async def remember(user: User, cookie: str) -> None:
    """Add the last answer to what was said: its user may read it, so it takes the user's cookie."""
    if user.ticket:
        headers = {b"Cookie": cookie.encode("latin-1")}
        last = await gateway.get("/completion", params={"ticket": user.ticket}, headers=headers)
        if last.is_success and last.json()["text"]:
            user.history.append({"role": "assistant", "content": last.json()["text"]})
            user.ticket = ""


@app.exception_handler(httpx.HTTPError)
async def away(_: Request, __: Exception) -> Response:
    """Tell the page when the gateway does not answer, or the last answer has no end yet."""
    return JSONResponse({"detail": "There is no answer now; try again."}, 503)


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
    """Look at the password, and put the user into the session."""
    fields = dict(parse_qsl((await request.body()).decode(errors="replace")))
    given = hashed(fields.get("password", ""), SALT)
    name = fields.get("username", "")
    if not hmac.compare_digest(given, USERS[name].password if name in USERS else b""):
        return HTMLResponse(LOGIN, 401)
    request.session.clear()
    request.session["sub"] = name
    return RedirectResponse("/", 303)


@app.post("/logout")
async def log_out(request: Request) -> Response:
    """Forget who it was, and end the streams that are open: a cookie alone is only judged anew."""
    name = request.session.get("sub", "")
    request.session.clear()
    if name in USERS:
        with suppress(httpx.HTTPError):  # Who wants to leave may leave.
            await gateway.delete(f"/users/{quote(name, safe='')}/streams", headers=SERVICE)
    return RedirectResponse("/login", 303)
