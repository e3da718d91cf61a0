"""Pages: CORS (Fetch §3.2) for those of ours, URLs that are none, methods that are none, health."""

from urllib.parse import urlsplit

from tests.conformance.promise import equal, holds, promise, refused
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Answer

PREFLIGHTS = (("/tickets", "POST"), ("/stream", "GET"), ("/stream", "DELETE"))


def _is_read_by(origin: str, answer: Answer) -> None:
    for name, wanted in (("origin", origin), ("credentials", "true")):
        name = f"access-control-allow-{name}"
        equal(f"{name} of {answer.status}", answer.headers.get(name), wanted)
    varies = answer.headers.get("vary", "").lower()
    holds("origin" in varies, f"Vary of {answer.status} is {varies!r}, promised Origin")


async def _is_ours(server: Server, origin: str) -> None:
    page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    made = await server.ask("POST", "/tickets", headers=page, json=server.body())
    equal("the status", made.status, 201)
    nothing = await server.ask("GET", "/stream?ticket=x", headers=page)
    refused(nothing, 404, "ticket_not_found")
    for answer in (made, nothing):
        _is_read_by(origin, answer)
    exposed = made.headers.get("access-control-expose-headers", "").lower()
    for name in ("location", "content-location", "retry-after"):
        holds(name in exposed, f"{name} is not exposed: {exposed!r}")


@promise()
async def a_page_of_the_servers_own_host_may_ask_and_read(server: Server) -> None:
    parts = urlsplit(server.base)
    await _is_ours(server, f"{parts.scheme}://{parts.netloc}")


@promise("origin")
async def a_listed_page_may_ask_and_read(server: Server) -> None:
    await _is_ours(server, server.options.origin)


@promise("origin")
async def a_listed_page_may_read_its_stream(server: Server) -> None:
    ended = await server.ended()
    page = {"Origin": server.options.origin, "Sec-Fetch-Site": "cross-site"}
    again = await server.read(ended.ticket.stream, headers=page)
    equal("the bytes", again.bare, ended.stream.bare)
    _is_read_by(server.options.origin, Answer(again.status, again.headers, b""))


@promise("origin")
async def a_preflight_of_a_listed_page_names_methods_and_headers(server: Server) -> None:
    for url, method in PREFLIGHTS:
        sent = {"Origin": server.options.origin, "Access-Control-Request-Method": method}
        answer = await server.ask("OPTIONS", url, cookie="", headers=sent)
        equal("the status", answer.status, 204)
        _is_read_by(server.options.origin, answer)
        methods = answer.headers.get("access-control-allow-methods", "")
        holds(method in methods, f"{url} allows {methods!r}, promised {method}")
        allowed = answer.headers.get("access-control-allow-headers", "").lower()
        for name in ("content-type", "idempotency-key", "last-event-id"):
            holds(name in allowed, f"{url} allows the headers {allowed!r}, promised {name}")


@promise()
async def a_preflight_of_a_foreign_page_is_refused_with_403(server: Server) -> None:
    sent = {"Origin": "https://foreign.invalid", "Access-Control-Request-Method": "POST"}
    refused(await server.ask("OPTIONS", "/tickets", headers=sent), 403, "foreign_origin")


@promise()
async def a_url_that_is_none_is_refused_with_404(server: Server) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused(await server.ask(method, "/stream/there-is-no-such-url"), 404, "not_found")


@promise()
async def a_method_that_is_none_is_refused_with_405_and_allow(server: Server) -> None:
    for method, url, allowed in (
        ("GET", "/tickets", {"POST"}),
        ("PUT", "/tickets", {"POST"}),
        ("POST", "/stream?ticket=x", {"GET", "DELETE"}),
        ("GET", "/stream/cancel?ticket=x", {"POST"}),
        ("DELETE", "/completion?ticket=x", {"GET"}),
    ):
        answer = await server.ask(method, url)
        refused(answer, 405, "method_not_allowed")
        told = {each.strip() for each in answer.headers.get("allow", "").split(",")}
        holds(allowed <= told, f"Allow of {url} is {told}, promised {allowed}")


@promise()
async def a_url_that_is_too_long_is_refused_with_431(server: Server) -> None:
    answer = await server.ask("GET", f"/stream?ticket={'x' * 9000}")
    if answer.status != 414:  # A proxy in front may have its own bound, and its own words.
        refused(answer, 431, "head_too_large")


@promise()
async def health_answers_get_and_head_without_a_cookie(server: Server) -> None:
    for url, status in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = await server.ask("GET", url, cookie="")
        equal(f"the status of {url}", answer.status, 200)
        equal(f"what {url} says", answer.object.get("status"), status)
        head = await server.ask("HEAD", url, cookie="")
        equal(f"HEAD {url}", (head.status, head.content), (200, b""))


@promise()
async def nothing_redirects(server: Server) -> None:
    ticket = (await server.ended()).ticket
    for method, url in (("GET", ticket.stream), ("POST", "/tickets"), ("POST", "/tickets/")):
        answer = await server.ask(method, url, headers={"Accept": STREAM})
        holds(not 300 <= answer.status < 400, f"{method} {url}: {answer.status}")
