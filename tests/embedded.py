"""Embedded: applications of four frameworks that have the gateway under a path of theirs.

Each is made as a reader of docs/embedding.md would make it: plain values, no environment. As a
module it is one that a server can run: `uvicorn tests.embedded:app`.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from django.conf import settings as django_settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from fastapi import FastAPI
from litestar import Litestar, asgi, get
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from gateway import Gateway, Settings


def who(headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """Return the user, whom this application knows by a cookie that it believes."""
    return cookies.get("user")


async def who_later(headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """Return the same, as an application that asks its database would."""
    return cookies.get("user")


def inside(upstream_url: str, redis_url: str = "", prefix: str = "") -> Gateway:
    """Return a gateway set in code."""
    given = Settings(
        secrets=["a secret of the tests that is long enough"],
        redis_url=redis_url,
        prefix=prefix,
        allowed_origins=["https://app.example"],
        grace=3,
        drain=5,
        lease=2,
        presets={"default": {"url": upstream_url, "retries": 0}},
    )
    return Gateway(given, authenticate=who)


def starlette_app(gateway: Gateway) -> ASGIApp:
    """Return an application of Starlette."""

    async def home(request: Request) -> PlainTextResponse:
        return PlainTextResponse("home")

    routes = [Route("/", home), Mount("/llm", gateway.app)]
    return Starlette(routes=routes, lifespan=gateway.lifespan)


def fastapi_app(gateway: Gateway) -> ASGIApp:
    """Return one of FastAPI with a lifespan of its own, and the gateway in a router's path."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.lifespan(app):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/llm", gateway.app)

    @app.get("/")
    async def home() -> str:
        return "home"

    return app


def litestar_app(gateway: Gateway) -> ASGIApp:
    """Return one of Litestar."""

    @get("/")
    async def home() -> str:
        return "home"

    mounted = asgi("/llm", is_mount=True, copy_scope=True)(gateway.app)
    app: Any = Litestar(route_handlers=[home, mounted], lifespan=[gateway.lifespan])
    return app  # type: ignore[no-any-return]


def django_home(request: HttpRequest) -> HttpResponse:
    """Answer for the site's own pages."""
    return HttpResponse("home")


urlpatterns = [path("", django_home)]


def django_app(gateway: Gateway) -> ASGIApp:
    """Return one of Django, which knows no lifespan and is behind a router that does."""
    if not django_settings.configured:
        django_settings.configure(SECRET_KEY="x" * 50)
    django_settings.ROOT_URLCONF = __name__  # Another test may have configured it first.
    django_settings.ALLOWED_HOSTS = ["*"]
    site: Any = get_asgi_application()
    routes = [Mount("/llm", gateway.app), Mount("/", site)]
    return Starlette(routes=routes, lifespan=gateway.lifespan)


FRAMEWORKS: dict[str, Callable[[Gateway], ASGIApp]] = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "django": django_app,
}


def create() -> ASGIApp:
    """Return the application that a test's process runs."""
    gateway = inside(os.environ["UPSTREAM"], os.environ.get("REDIS", ""))
    return FRAMEWORKS[os.environ["FRAMEWORK"]](gateway)
