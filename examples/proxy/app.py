"""An app behind a guard: it logs nobody in, and knows its users by the header that nginx sets."""

from html import escape

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Ask</title>
<p>You are {name}.</p>
<form id="ask"><input name="question" value="What if my wifi drops?"> <button>Ask</button></form>
<p id="answer"></p><p id="state"></p>
<form method="post" action="/oauth2/sign_out"><button>Log out</button></form>
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


async def page(request: Request) -> Response:
    """Show the page to whom the guard has let in."""
    name = request.headers["X-Auth-Request-User"]
    return HTMLResponse(PAGE.replace("{name}", escape(name)))


app = Starlette(routes=[Route("/", page)])
