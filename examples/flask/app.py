"""A Flask app: its users log in by Flask-Login, and its page streams from the gateway beside it.

The gateway knows them by Flask's session cookie; nothing here calls it.
"""

import os

from flask import Flask, abort, redirect, request
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, UserMixin, login_required, login_user, logout_user
from werkzeug.security import check_password_hash, generate_password_hash

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

app = Flask(__name__)
app.config.update(SECRET_KEY=os.environ["SECRET_KEY"], SESSION_COOKIE_SAMESITE="Lax")
manager = LoginManager(app)
manager.login_view = "log_in"


class User(UserMixin):
    """Who may log in."""

    def __init__(self, name: str, password: str) -> None:
        self.id = name
        self.password = generate_password_hash(password)


# Yours are in a database.
USERS = {each.id: each for each in (User("alice", "wonderland"), User("bob", "builder"))}


@manager.user_loader
def user(name: str) -> User | None:
    """Return who a session names."""
    return USERS.get(name)


@app.before_request
def ours() -> None:
    """Refuse other sites' pages: their forms could log a visitor in as somebody else."""
    origin = request.headers.get("Origin")
    if origin and origin.partition("://")[2] != request.host:
        abort(403)


@app.get("/")
@login_required
def page() -> str:
    """Show the page to who has logged in."""
    return PAGE


@app.route("/login", methods=["GET", "POST"])
def log_in() -> ResponseReturnValue:
    """Look at the password; Flask-Login puts the user into the session."""
    if request.method == "GET":
        return LOGIN
    known = USERS.get(request.form.get("username", ""))
    if known is None or not check_password_hash(known.password, request.form.get("password", "")):
        return LOGIN, 401
    login_user(known)
    return redirect("/")


@app.post("/logout")
def log_out() -> ResponseReturnValue:
    """Forget who it was."""
    logout_user()
    return redirect("/login")
