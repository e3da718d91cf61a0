"""A Django app: its users log in by Django's own views, its page streams from the gateway.

Sessions are in the database, as is Django's default, so the gateway asks `whoami` whose they are.
"""

import os
import sys

import django
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path

LOGIN = """<!doctype html><link rel="icon" href="data:,"><title>Log in</title>
<form method="post">{% csrf_token %}{{ form.non_field_errors }}
  <input name="username" placeholder="alice">
  <input name="password" type="password" placeholder="wonderland">
  <button>Log in</button>
</form>"""

PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Ask</title>
<form id="ask"><input name="question" value="What if my wifi drops?"> <button>Ask</button></form>
<p id="answer"></p><p id="state"></p>
<form method="post" action="/accounts/logout/">{% csrf_token %}<button>Log out</button></form>
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

settings.configure(
    SECRET_KEY=os.environ["SECRET_KEY"],
    ROOT_URLCONF=__name__,
    # The last is the name by which the gateway asks.
    ALLOWED_HOSTS=["localhost", "127.0.0.1", "app"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    INSTALLED_APPS=[
        *("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"),
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {"registration/login.html": LOGIN, "page.html": PAGE},
                    )
                ]
            },
        }
    ],
    LOGIN_REDIRECT_URL="/",
    LOGOUT_REDIRECT_URL="/",
)
django.setup()


@login_required
def page(request: HttpRequest) -> HttpResponse:
    """Show the page to who has logged in."""
    return HttpResponse(engines["django"].get_template("page.html").render({}, request))


def whoami(request: HttpRequest) -> HttpResponse:
    """Tell the gateway who the caller is."""
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    return HttpResponse(status=204, headers={"X-User": str(request.user.pk)})


urlpatterns = [
    path("", page),
    path("whoami", whoami),
    path("accounts/", include("django.contrib.auth.urls")),
]


def main(address: str) -> None:
    """Make the database and two users, and serve."""
    from django.contrib.auth.models import User  # It wants the settings first.

    call_command("migrate", verbosity=0)
    for name, password in (("alice", "wonderland"), ("bob", "builder")):
        if not User.objects.filter(username=name).exists():
            User.objects.create_user(name, password=password)
    call_command("runserver", address, use_reloader=False)


if __name__ == "__main__":
    main(sys.argv[1])
