"""Page: the demo's, which stands where an app of one's own would: it sets the session cookie.

Whoever opens it is let in, as somebody new. So it is for a loopback, or for a secret that no other
app signs with.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.web.requests import cookies_of

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = ("demo.html", "demo.css", "demo.js", "gateway.js")


def page(
    cookie: Callable[[str], str], cut: Callable[[str], int] | None = None, prefix: str = ""
) -> list[BaseRoute]:
    """Return the page's routes; `cookie` makes a subject's Set-Cookie, `cut` drops viewers.

    Without `cut` the page says that it cannot: viewers are elsewhere, at some replica. The page is
    where an app would be, and `prefix` is the path that the gateway has beside it.
    """
    session = cookie("demo").partition("=")[0].strip()

    async def file(request: Request) -> Response:
        name = request.path_params.get("file", "demo.html")
        if name not in FILES:
            return Response(status_code=404)
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        # The page posts where its cookie is refused: signed by an earlier demo, its secret gone.
        if session not in cookies_of(request) or request.method == "POST":
            # The header is the client's to forge, and all it can spoil is its own cookie.
            secure = request.headers.get("x-forwarded-proto") == "https"
            subject = f"demo-{secrets.token_hex(6)}"
            headers["Set-Cookie"] = cookie(subject) + ("; Secure" if secure else "")
        if name == "demo.html" and prefix:
            text = (STATIC / name).read_text("utf-8")
            told = text.replace('data-gateway=""', f'data-gateway="{prefix}"', 1)
            return HTMLResponse(told, headers=headers)
        return FileResponse(STATIC / name, headers=headers)

    async def drop(request: Request) -> Response:
        assert cut is not None
        return JSONResponse({"closed": cut(request.query_params.get("ticket", ""))})

    routes: list[BaseRoute] = [
        Route("/", file, methods=["GET", "POST"]),
        Route("/static/{file}", file),
    ]
    return [*routes, Route("/demo/cut", drop, methods=["POST"])] if cut else routes
