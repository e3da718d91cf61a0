"""Lengths: how much of a request is text that a model may read. Pure.

All strings count, wherever they are, and the names of members that are nobody's own: the schema of
a tool is read too. What says how to read the rest does not count, unless it is long, nor do images
and sounds; a file of text is text.
"""

import re
from typing import Any

_WORD = 64  # Characters: what is longer is no word that only says how to read the rest.
_MANY = 100_000  # Values: no request has more, and each takes its time.
ENDLESS = 1 << 62  # What a text has that is too much to be looked at.
_WORDS = frozenset(
    (
        *("role", "type", "id", "model", "object", "status", "detail", "format", "index"),
        *("mime_type", "mimeType", "media_type", "call_id", "tool_call_id", "tool_use_id"),
        *("item_id", "file_id", "fileUri", "url", "effort", "verbosity", "ttl", "mode"),
    )
)
_NAMES = _WORDS | {
    *("content", "text", "name", "parts", "image_url", "input_audio", "source", "data", "image"),
    *("file", "file_data", "filename", "inlineData", "inline_data", "fileData", "images"),
    *("cache_control", "tool_calls", "tool_choice", "function", "functionCall", "arguments"),
    *("functionResponse", "response", "args", "input", "output", "thinking", "signature"),
    *("reasoning_content", "refusal", "audio", "transcript", "annotations", "logprobs"),
    *("parameters", "input_schema", "description", "properties", "required", "items", "enum"),
    *("additionalProperties", "strict", "default", "functionDeclarations", "json_schema"),
    *("schema", "anyOf", "oneOf", "allOf", "minimum", "maximum", "minLength", "maxLength"),
    *("include_usage", "include_obfuscation", "media", "thought", "summary", "is_error"),
}
_MEDIA = frozenset(("url", "image_url", "data", "file_data", "images"))
_DATA_URL = re.compile(r"data:(?:image|audio|video)/[\w.+-]+;base64,[A-Za-z0-9+/_-]*={0,2}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{65,}={0,2}")


def text_length(body: dict[str, Any], plain: set[str]) -> int:
    """Return the characters of a request's text; the strings of members of `plain` are text."""
    total, seen = 0, 0
    left: list[tuple[str, Any, bool]] = []
    for name, value in body.items():
        if isinstance(value, str):
            total += len(value) if name in plain or len(value) > _WORD else 0
        elif isinstance(value, (dict, list)):
            left.append((name, value, False))
    while left:
        name, value, media = left.pop()
        seen += len(value)
        if seen > _MANY:
            return ENDLESS
        total += _within(name, value, media, left)
    return total


def _within(name: str, value: Any, media: bool, left: list[tuple[str, Any, bool]]) -> int:
    """Return what counts directly in a container, and put those within it with what is left."""
    if isinstance(value, list):
        pairs = [(name, each) for each in value]
        total = sum(len(str(each)) for each in value if _is_number(each))
    else:
        pairs = list(value.items())
        media = _says_media(name, value)
        total = sum(len(key) for key in value if key not in _NAMES)
        total += sum(len(str(each)) for each in value.values() if _is_long_number(each))
    for key, each in pairs:
        if isinstance(each, str):
            total += 0 if _is_no_text(key, each, media) else len(each)
        elif isinstance(each, (dict, list)):
            left.append((key, each, media))
    return total


def _is_no_text(name: str, value: str, media: bool) -> bool:
    if name in _WORDS and len(value) <= _WORD:
        return True
    if name not in _MEDIA:
        return False
    if _DATA_URL.fullmatch(value):
        return True
    return (media or name == "images") and bool(_BASE64.fullmatch(value))


def _says_media(name: str, value: dict[str, Any]) -> bool:
    """Whether the data in an object are of an image or a sound, by what is said beside them."""
    kinds = [value.get(key) for key in ("media_type", "mime_type", "mimeType")]
    if name == "input_audio":
        kinds.append("audio/any")
    told = [kind for kind in kinds if isinstance(kind, str)]
    return bool(told) and all(kind.startswith(("image/", "audio/", "video/")) for kind in told)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_long_number(value: Any) -> bool:
    return isinstance(value, int) and len(str(value)) > 16
