"""Complaints: an upstream's error in a stream, in whatever shape it comes. Pure.

A server that has sent its 200 can tell of a failure only in the stream, and there is no standard
for it: an `error` member, an event of that name, `{"object": "error"}`, a list of `errors`, or the
bare JSON that would have been its answer. What is missed here looks like a whole answer.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

ERROR_NAMES = frozenset(
    {b"error", b"upstream-error"}
)  # As an upstream sends it, and as it is logged.

_MESSAGES = ("error_msg", "error_message", "errorMessage", "errmsg", "status_msg")
_WORDS = ("message", "detail", "msg", *_MESSAGES, "error", "description", "reason", "title", "text")
_CODES = ("code", "status", "status_code", "statusCode", "http_status")
_KINDS = ("type", *_CODES)
_SPEECHLESS = frozenset(
    {"choices", "type", "event", "object", "role", "content", "response", "data"}
)
_SHOWN = 2000  # Characters of a complaint that are kept.

# As parts of a type or a code, without case and signs. The first list that knows one has the word.
_FINAL = ("insufficientquota", "billing", "paymentrequired", "exceededyourcurrentquota")
_PASSING = ("ratelimit", "overload", "servererror", "unavailable", "timeout", "exhausted", "busy")
_MISTAKES = (
    *("invalid", "badrequest", "authenticat", "authoriz", "apikey", "permission", "denied"),
    *("forbidden", "notfound", "doesnotexist", "unprocessable", "unsupported", "validation"),
    *("contextlength", "contextwindow", "toolarge", "toolong", "abovemax", "maxlength"),
    *("contentfilter", "contentpolicy", "safety", "precondition", "deactivated", "quota"),
)
# As some servers write it by hand, who escape nothing of an exception's words.
_begins_unescaped = re.compile(
    rb'\s*\{\s*(?:"(?:type|object|event)"\s*:\s*"error"\s*,\s*)?"error"\s*:\s*'
    rb'(?:\{\s*"|"(?!"\s*[,}]))'
).match
_words_unescaped = re.compile(rb'"(?:error|message)"\s*:\s*"').search
_FIELD = re.compile(rb"^error:([^\n]*\S)", re.IGNORECASE | re.MULTILINE)
_LATER = frozenset({408, 409, 425, 429, 498, 499})  # 4xx that pass; 498 is a full Groq.


def complaint(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Return the error that an event tells, its words as `message`; None if it tells none."""
    for error in _errors(chunk):
        if error and not ("choices" in chunk and _is_void(error)):
            return _told(error if isinstance(error, str | dict | list) else chunk, chunk)
    return _told(chunk, {}) if _is_error(chunk) else None


def named_complaint(chunk: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return the error of an event that is one by its name: a chunk, if its data are that."""
    words = data.decode("utf-8", "replace").strip().strip('"')
    return complaint(chunk) or _told(chunk or words, {})


def unescaped_complaint(data: bytes) -> dict[str, Any] | None:
    """Return the error of an event that begins as one, of data that are no JSON."""
    if not _begins_unescaped(data):
        return None
    found = _words_unescaped(data)
    words = data[found.end() :].rstrip(b' \t\r\n"}]') if found else b""
    return _told(words.decode("utf-8", "replace"), {})


def stray_complaint(strays: bytes | bytearray) -> dict[str, Any] | None:
    """Return the error that bare JSON tells, where events were to be."""
    start = re.search(rb"[\[{]", strays)
    text = strays[start.start() :].decode("utf-8", "replace") if start else ""
    try:
        found, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        field = _FIELD.search(strays)
        return _told(field[1].decode("utf-8", "replace").strip(), {}) if field else None
    if isinstance(found, list):  # Gemini's.
        found = next((each for each in found if isinstance(each, dict)), None)
    if not isinstance(found, dict):
        return None
    speaks = "choices" not in found and not {"message", "detail"}.isdisjoint(found)
    return complaint(found) or (_told(found, {}) if speaks else None)


def last_words(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Return the error that an event is of which nothing tells but that it has words and no more.

    For the last event of a chat that has come to no end: there it is no part of the answer.
    """
    if not chunk or not _SPEECHLESS.isdisjoint(chunk):
        return None
    speaks = any(chunk.get(key) and isinstance(chunk[key], str) for key in ("message", "detail"))
    return _told(chunk, {}) if speaks or isinstance(chunk.get("detail"), list) else None


def retryable(error: dict[str, Any]) -> bool:
    """Whether asking again may mend it: not what is wrong with the request, the key or the bill."""
    if is_final(error):
        return False
    for status in (_status(error.get(key)) for key in _KINDS):
        if status >= 400:
            return passes(status)
    return _is_any_of(_PASSING, error) or not _is_any_of(_MISTAKES, error)


def passes(status: int) -> bool:
    """Whether what a status tells may be over by the next time."""
    return status >= 500 or status in _LATER


def is_final(error: dict[str, Any]) -> bool:
    """Whether it is the bill: that outweighs any status."""
    return _is_any_of(_FINAL, error)


def _is_any_of(parts: tuple[str, ...], error: dict[str, Any]) -> bool:
    told = [error.get(key) for key in _KINDS]
    kinds = [re.sub(r"[^a-z]", "", each.lower()) for each in told if isinstance(each, str)]
    return any(part in kind for kind in kinds for part in parts)


def _errors(chunk: dict[str, Any]) -> Iterator[Any]:
    yield chunk.get("error")
    groq = chunk.get("x_groq")
    yield groq.get("error") if isinstance(groq, dict) else None
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            yield choice.get("error")
            delta = choice.get("delta")
            yield delta.get("error") if isinstance(delta, dict) else None
    yield chunk.get("errors")
    whole = chunk.get("response")  # A snapshot of the Responses API.
    yield whole.get("error") if isinstance(whole, dict) else None
    base = chunk.get("base_resp")  # MiniMax's, beside each chunk.
    yield base if isinstance(base, dict) and base.get("status_code") else None


def _is_void(error: Any) -> bool:
    """Whether an error says that there is none: its code is 0, its message empty."""
    return isinstance(error, dict) and not any(error.values())


def _is_error(chunk: dict[str, Any]) -> bool:
    """Whether an event is an error as a whole, without a member that holds it."""
    if "error" in (chunk.get("object"), chunk.get("type"), chunk.get("event")):
        return True
    if "choices" not in chunk and any(
        isinstance(chunk.get(k), str) and chunk[k] for k in _MESSAGES
    ):
        return True
    if "choices" in chunk or not any(isinstance(chunk.get(key), str) for key in _WORDS):
        return False
    kind = chunk.get("type", chunk.get("__type"))
    failed = chunk.get("status") in ("error", "failed") or chunk.get("success") is False
    wrong = isinstance(kind, str) and kind.lower().endswith(("error", "exception"))
    return failed or wrong or any(_status(chunk.get(key)) >= 400 for key in _CODES)


def _told(error: Any, around: dict[str, Any]) -> dict[str, Any]:
    """Return an error as an object with words, and with the code that stands beside it."""
    while isinstance(error, list) and error:
        error = error[0]
    while isinstance(error, dict) and isinstance(error.get("error"), dict) and error["error"]:
        error = error["error"]
    found = error if isinstance(error, dict) else {}
    beside = {
        key: around[key]
        for key in _KINDS
        if isinstance(around.get(key), str | int) and around[key] != "error"
    }
    if isinstance(found.get("message"), str) and not beside:
        return found
    return {**beside, **found, "message": _words(error)[:_SHOWN]}


def _words(error: Any, depth: int = 5) -> str:
    """Return the words of an error: the first text under a name that is usual."""
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(filter(None, (_words(each, depth - 1) for each in error[:3])))
    if not isinstance(error, dict) or not depth:
        return "" if error is None or isinstance(error, bool) else str(error)[:_SHOWN]
    for key in (*_WORDS, *_KINDS):
        if error.get(key) and (words := _words(error[key], depth - 1)):
            return words
    return ""


def _status(value: Any) -> int:
    """Return a status that a code tells, as a number or as a text; 0 for anything else."""
    if isinstance(value, str):
        digits = re.match(r"\s*([1-9]\d\d)(?!\d)", value)
        return int(digits[1]) if digits else 0
    return value if isinstance(value, int) and 100 <= value < 1000 else 0


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 20 else 0  # Python reads no number of any length.


_DECODER = json.JSONDecoder(parse_int=_number)
