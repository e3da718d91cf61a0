"""The one tree of errors; each class adds the facts its catcher needs.

    GatewayError
    ├── SettingsError     a setting is wrong: the program cannot start
    ├── Rejected          this request will never pass as it is: 4xx
    ├── Unavailable       it will pass later: 503 or 429, or 200-and-retry to an EventSource
    │   └── InDoubt       a log is not as its writer thinks: what it has is to be asked first
    ├── UpstreamFailure   how an upstream request ended badly: `failure` and `end`
    ├── Fenced            another replica owns the stream now: write nothing more
    ├── Sealed            the stream has its end: there is nothing more to write
    └── EarlierNeeded     what earlier owners logged is gone too: give it, to be written again

Codes are part of the contract: a client may switch on them.
"""

import re
from typing import Literal

REJECTED = {
    "bad_request": (400, "The request cannot be read"),
    "not_json": (400, "The body is not JSON"),
    "not_an_object": (400, "The body is not a JSON object"),
    "stream_required": (400, "Completions are only streamed here"),
    "model_not_allowed": (400, "The preset does not allow this model"),
    "field_not_allowed": (400, "The preset does not allow this member"),
    "variable_unknown": (400, "The preset has no such variable"),
    "variable_missing": (400, "A variable is missing"),
    "variable_too_long": (400, "A variable is too long"),
    "variable_not_allowed": (400, "A variable has a value that is not allowed"),
    "system_not_allowed": (400, "The system prompt is not the page's to write"),
    "too_many_tokens": (400, "More tokens are asked for than the preset allows"),
    "too_many_messages": (400, "The request has too many messages"),
    "request_too_long": (400, "The request has too much text"),
    "bad_chat": (400, "The chat cannot be read"),
    "not_a_chat": (400, "The preset takes no chats"),
    "part_not_supported": (400, "A part of a message cannot be sent on"),
    "bad_idempotency_key": (400, "The Idempotency-Key is not usable"),
    "bad_ref": (400, "The X-Stream-Ref is not usable"),
    "bad_position": (400, "The stream has no such place"),
    "bad_range": (400, "These days cannot be told"),
    "bad_subject": (400, "The subject cannot name anybody"),
    "bad_subjects": (400, "The subjects are no list of strings"),
    "bad_event": (400, "A message cannot have this name"),
    "bad_data": (400, "A message cannot say this"),
    "bad_message_id": (400, "The message id is not usable"),
    "bad_ttl": (400, "No message is kept for so long"),
    "bad_tickets": (400, "One connection cannot carry these tickets"),
    "unknown_member": (400, "A message has no such member"),
    "not_authenticated": (401, "No valid login"),
    "foreign_origin": (403, "The page is not one of ours"),
    "not_a_stream_request": (403, "Only a page's script may open this"),
    "prefetch": (403, "Prefetching starts nothing"),
    "not_found": (404, "There is nothing here"),
    "ticket_not_found": (404, "No such ticket"),
    "preset_not_found": (404, "No such preset"),
    "model_not_found": (404, "No such model"),
    "response_not_found": (404, "No such response"),
    "chat_not_found": (404, "No such chat"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "not_acceptable": (406, "The answer is an event stream"),
    "request_timeout": (408, "The request came too slowly"),
    "ticket_expired": (410, "The ticket was not redeemed in time"),
    "log_expired": (410, "The stream is not kept any more"),
    "body_too_large": (413, "The body is too large"),
    "event_too_large": (413, "The message is too large"),
    "unsupported_media_type": (415, "The body is not application/json"),
    "idempotency_mismatch": (422, "The Idempotency-Key was used for another body"),
    "message_id_reused": (422, "The message id was used for another message"),
    "head_too_large": (431, "The URL and headers are too large"),
    "internal": (500, "The gateway made a mistake"),
    "not_started": (503, "The gateway's lifespan does not run"),
}

UNAVAILABLE = {
    "store_unavailable": "The store does not answer",
    "draining": "This replica is shutting down",
    "overloaded": "This replica is full",
    "not_yet": "The store has just come back and may still learn of this ticket",
    "newer_record": "A newer version of the gateway wrote this stream",
    "auth_unavailable": "The authenticator does not answer",
    "store_full": "The store keeps the rest of its room for what is running",
    "too_many_bytes": "Too much of yours is waiting or running",
    "too_many_streams": "Too many of your streams are running",
    "too_many_viewers": "Too many of your streams are open",
    "rate_limited": "You ask too often",
    "quota_exhausted": "What you may spend today is spent, or taken by what runs",
}

# What passes when the caller has less of it: 429, not 503.
TOO_MANY = frozenset(
    ("too_many_bytes", "too_many_streams", "too_many_viewers", "rate_limited", "quota_exhausted")
)
OF_ROOM = TOO_MANY | {"store_full"}


class GatewayError(Exception):
    """Anything this package raises on purpose."""


class SettingsError(GatewayError):
    """Settings are wrong; the message has a line for each that names it."""


class Rejected(GatewayError):
    """A request that will not pass as it is; `code` is a key of REJECTED, `reason` a finer one."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        headers: dict[str, str] | None = None,
        *,
        reason: str = "",
    ) -> None:
        super().__init__(detail or code)
        self.code = code
        self.status, self.title = REJECTED[code]
        self.detail = detail
        self.headers = headers or {}
        self.reason = reason


class Unavailable(GatewayError):
    """A request that will pass later; `code` is a key of UNAVAILABLE.

    `reason` is for operators: what a server said may name servers, which are no caller's business.
    """

    def __init__(self, code: str, detail: str = "", *, reason: str = "") -> None:
        super().__init__(reason or detail or code)
        self.code = code
        self.status = 429 if code in TOO_MANY else 503
        self.title = UNAVAILABLE[code]
        self.detail = detail
        self.headers: dict[str, str] = {}

    @property
    def of_room(self) -> bool:
        """Whether there is no room for anything more, but for what is there already."""
        return self.code in OF_ROOM


class UpstreamFailure(GatewayError):
    """An upstream request that ended badly; `__cause__` is for operators, not for callers.

    `state` is the stream's end state; `retryable` says that a new ticket may fare better; `sure`
    that nothing can have been paid for, so that asking again is safe; `retry_after` is in seconds.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        state: Literal["failed", "truncated", "stalled"],
        status: int | None = None,
        retryable: bool = False,
        sure: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.state = state
        self.status = status
        self.retryable = retryable
        self.sure = sure
        self.retry_after = retry_after


class InDoubt(Unavailable):
    """A log is not as its writer thinks; what it has is to be asked first."""

    def __init__(self, reason: str) -> None:
        super().__init__("store_unavailable", reason=reason)


class Fenced(GatewayError):
    """The stream has another owner; whatever this one still holds must not be written."""


class Sealed(GatewayError):
    """The stream has its end, the entry that is named."""


class EarlierNeeded(GatewayError):
    """What earlier owners logged is gone after the entry that is named, and is to be given."""


def one_line(words: str) -> str:
    """Return words for a log: no terminal or log must take somebody else's for more than words."""
    return "".join(each if each.isprintable() else "\ufffd" for each in " ".join(words.split()))


# The last character is none that ends a clause.
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]*[^\s'\"<>,.:;)]", re.IGNORECASE)
_PAIR = re.compile(r"([?&][^=&#\s]*=)[^&#\s'\"]*[^&#\s'\",.:;)]")
# Of what follows a "?" only this is shown: a key may have any name (key, sig, code, token …).
_OPEN = frozenset(("api-version", "api_version", "db"))


def redacted(words: str) -> str:
    """Return words without what URLs among them hold of logins and keys."""
    parts = _URL.split(words)
    urls = [_bare(url) for url in _URL.findall(words)] + [""]
    # A path alone has its query too.
    return "".join(_PAIR.sub(r"\1***", text) + url for text, url in zip(parts, urls, strict=True))


def _bare(url: str) -> str:
    rest, _, fragment = url.partition("#")
    rest, _, query = rest.partition("?")
    scheme, _, rest = rest.partition("://")
    host, slash, path = rest.partition("/")
    pairs = (each.partition("=") for each in query.split("&") if each)
    shown = (f"{n}={v if n in _OPEN else '***'}" if eq else "***" for n, eq, v in pairs)
    login = "***@" * ("@" in host)
    tail = "?" * bool(query) + "&".join(shown) + "#***" * bool(fragment)
    return f"{scheme}://{login}{host.rpartition('@')[2]}{slash}{path}{tail}"


def with_cause(words: str, error: BaseException | None) -> str:
    """Return what to tell an operator: in one line, and with what an error was raised from."""
    cause = error.__cause__ if error else None
    return one_line(redacted(f"{words} ({type(cause).__name__}: {cause})" if cause else words))
