"""Requests: what a caller sent, read once and refused with a reason."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from starlette.requests import Request

from gateway.auth.cookies import Cookies
from gateway.errors import Rejected
from gateway.store.keys import id_of
from gateway.upstream.request_body import RequestBody

_PARTS = 64  # Of an Accept that are looked at.
_LONGEST_WAIT = 60  # Seconds.
TEXT_ALONE = ("raw", "plain")  # Forms in which nothing can be told beside the text.


def accepts(request: Request) -> tuple[bool, bool]:
    """Tell whether Accept names text/event-stream, and whether one would do (RFC 9110 §12.5.1)."""
    ranges = _ranges(request)
    named = ranges.get("text/event-stream")
    if named is not None:
        return named, named
    return False, ranges.get("*/*", False)


def accepts_text(request: Request) -> bool:
    """Tell whether plain text would do; who asks for it in a POST names text/event-stream."""
    ranges = _ranges(request)
    named = [ranges[each] for each in ("text/plain", "text/*", "*/*") if each in ranges]
    return request.method == "POST" or named[:1] == [True]


def _ranges(request: Request) -> dict[str, bool]:
    """Return what Accept names, and whether it would do."""
    lines = request.headers.getlist("accept")
    if not lines:
        return {"*/*": True}
    header = ",".join(lines)
    ranges: dict[str, bool] = {}
    for part in header.lower().split(",", _PARTS)[:_PARTS]:
        kind, *parameters = (each.strip() for each in part.split(";", _PARTS)[:_PARTS])
        refused = any(each.replace(" ", "").rstrip("0") in {"q=", "q=0."} for each in parameters)
        ranges[kind] = not refused
    return ranges


class View(NamedTuple):
    """How a stream is to be shown; without a form its events are as they are logged."""

    form: str = ""
    snapshot: bool = False
    heartbeats: bool = False  # As events, and not as comments.

    @property
    def is_text_alone(self) -> bool:
        """Whether nothing can be told beside the text."""
        return self.form in TEXT_ALONE


def view_of(request: Request) -> View:
    """Return how a stream is asked for; raises Rejected."""
    query = request.query_params
    form, heartbeat = query.get("format", ""), query.get("heartbeat", "")
    if form not in ("", "text", *TEXT_ALONE):
        raise Rejected("bad_request", "`format` is `text`, `raw` or `plain`, or not there.")
    if heartbeat not in ("", "event"):
        raise Rejected("bad_request", "`heartbeat` is `event`, or not there.")
    view = View(form, query.get("snapshot") == "1", heartbeat == "event")
    if view.is_text_alone and view.heartbeats:
        raise Rejected("bad_request", f"`{form}` is the text alone: there is no heartbeat in it.")
    if view.is_text_alone:
        check_version(request)
    return view


def check_version(request: Request) -> None:
    """Raise Rejected where only a broken connection tells that an answer is not whole."""
    if request.scope["http_version"] == "1.0":
        raise Rejected("bad_request", "HTTP/1.0 cannot tell a cut from an end: ask in HTTP/1.1.")


def cookies_of(request: Request) -> Cookies:
    """Return the cookies, not parsed yet."""
    return Cookies(request.headers.getlist("cookie"))


def last_event_id(request: Request) -> str:
    """Return where to go on, "" for the start; a header is newer than what the URL says."""
    query = request.query_params
    return (
        request.headers.get("last-event-id")
        or query.get("last_event_id")
        or query.get("lastEventId")
        or ""
    )


def idempotency_key(request: Request) -> str:
    """Return the Idempotency-Key, "" for none; raises Rejected if it is not usable."""
    return checked_key(request.headers.get("idempotency-key", ""))


def checked_key(key: object) -> str:
    """Return an idempotency key; raises Rejected if it is not usable."""
    if not isinstance(key, str) or len(key) > 255 or not key.isprintable():
        raise Rejected("bad_idempotency_key", "At most 255 printable characters.")
    return key


def stream_ref(request: Request) -> str:
    """Return what the app calls the stream, "" for nothing; raises Rejected if it is not usable."""
    return checked_ref(words_in(request, "x-stream-ref"))


def words_in(request: Request, name: str) -> str:
    """Return the text of a header, "" where it is not there."""
    sent = request.headers.get(name, "").encode("latin-1")
    try:
        return sent.decode()  # As servers send it; browsers, in Latin-1.
    except UnicodeDecodeError:
        return sent.decode("latin-1")


def checked_ref(ref: object) -> str:
    """Return an app's own name for a stream; raises Rejected if it is not usable."""
    if not isinstance(ref, str) or len(ref) > 200 or not ref.isprintable():
        raise Rejected("bad_ref", "At most 200 printable characters.")
    return ref


def seconds_to_wait(request: Request) -> float:
    """Return for how long the answer may be waited for; raises Rejected."""
    told = request.query_params.get("wait", "0")
    try:
        seconds = float(told)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_WAIT:
        raise Rejected("bad_request", f"wait: seconds from 0 to {_LONGEST_WAIT}.")
    return seconds


def is_retry(request: Request) -> bool:
    """Whether an SDK says that it sends its request again."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return count.isascii() and count.isdecimal() and count.strip("0") != ""


def idempotent_stream_id(subject: str, preset: str, key: str) -> str:
    """Return the stream that an Idempotency-Key names: no second lookup, no second key."""
    return id_of("idempotency", subject, preset, key)


async def body_of(request: Request, limit: int) -> RequestBody:
    """Return the JSON object of a request of at most `limit` bytes; raises Rejected."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or kind.endswith("+json")):
        raise Rejected("unsupported_media_type", "Send Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Rejected("unsupported_media_type", "Send the body without Content-Encoding.")
    length = request.headers.get("content-length") or "0"
    if not (length.isascii() and length.isdigit()):
        raise Rejected("bad_request", "Its Content-Length is no number.")
    if len(length) > 18 or int(length) > limit:
        raise too_large(limit)
    body = bytearray()  # Adding to bytes would copy them for each of many small pieces.
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return RequestBody(bytes(body))


def written(body: object) -> bytes:
    """Return the JSON of a body that the application itself made; raises Rejected."""
    try:
        return json.dumps(dict(body) if isinstance(body, Mapping) else body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected("not_json", str(error)[:200]) from None


def too_large(limit: int) -> Rejected:
    """Return the refusal of a body of more than `limit` bytes."""
    return Rejected("body_too_large", f"The limit is {limit} bytes.")
