"""Words: what of an upstream's words gets to a log and a page."""

import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest

from gateway.config.presets import Preset
from gateway.upstream.messages import message_of, said

KEY = 'sk-very/"secret"+key'
PRESET = Preset.model_validate(
    {
        "url": "http://user:pass-of-the-url@host/v1?api-version=1&code=key-of-the-query"
        "&sig=raw+key+of+the+query",
        "api_key": KEY,
        "headers": {
            "x-api-key": "azure-secret-key",
            "X-Other": "Bearer other-secret-key",
            "X-Pair": "Basic " + b64encode(b"me:password-of-a-pair").decode(),
        },
    }
)

SHAPES: dict[str, tuple[Any, str]] = {
    "error.message": ({"error": {"message": "Not now.", "type": "x"}}, "Not now."),
    "an error that is a text": ({"error": "Not now."}, "Not now."),
    "a message": ({"object": "error", "message": "Not now.", "code": 40}, "Not now."),
    "a message that is an object": ({"message": {"detail": [{"msg": "Not now."}]}}, "Not now."),
    "a detail": ({"detail": "Not now."}, "Not now."),
    "a list of details": ({"detail": [{"loc": ["body"], "msg": "Not now."}]}, "Not now."),
    "a detail that is an object": ({"detail": {"error": {"message": "Not now."}}}, "Not now."),
    "a list of one": ([{"error": {"code": 429, "message": "Not now."}}], "Not now."),
    "a flag beside the words": ({"error": True, "message": "Not now."}, "Not now."),
    "an empty one beside it": ({"error": {"message": ""}, "message": "Not now."}, "Not now."),
    "a text": ("Not now.", "Not now."),
    "no words": ({"error": {"message": ""}}, ""),
}


@pytest.mark.parametrize(("value", "words"), SHAPES.values(), ids=SHAPES)
def test_the_words_of_an_error_are_found_in_any_shape(value: Any, words: str) -> None:
    assert said(value, PRESET) == words
    assert message_of(json.dumps(value).encode(), PRESET) == words


@pytest.mark.parametrize("value", [None, {}, [], 5, True, {"error": {"message": None}}, [[]]])
def test_what_has_no_words_says_nothing(value: Any) -> None:
    assert said(value, PRESET) == ""


BODIES: dict[bytes, str] = {
    b'data: {"error": {"message": "Not now."}}\n\n': "Not now.",
    b'event: error\r\ndata: {"error": "Not now."}\r\n\r\ndata: [DONE]\r\n\r\n': "Not now.",
    b'\xef\xbb\xbf\n {"error": "Not now."}': "Not now.",
    b'{"error": "Not now."}\n{"more": 1}\n': "Not now.",
    b"upstream connect error": "upstream connect error",
    b'{"reason": 5}': '{"reason": 5}',
    b"  <html>No": "",
    b"": "",
    b"[" * 100_000: "[" * 500,
    b'{"error":' * 50_000: '{"error":' * 55 + '{"err',
}


@pytest.mark.parametrize(("body", "words"), BODIES.items(), ids=range(len(BODIES)))
def test_the_words_of_a_body_are_its_message_or_what_it_is(body: bytes, words: str) -> None:
    assert message_of(body, PRESET) == words


@pytest.mark.parametrize(
    "odd", ["\n", "\r\n", "\x1b[31m", "\x00", "\x7f", "\x9b2J", "\u2028", "\u202e", "\ud800"]
)
def test_no_log_or_terminal_takes_words_for_more(odd: str) -> None:
    for words in (
        said({"message": f"a{odd}b"}, PRESET),
        message_of(json.dumps({"error": f"a{odd}b"}).encode(), PRESET),
        message_of(f"a{odd}b".encode("utf-8", "replace"), PRESET),
    ):
        assert words.isprintable()
        assert (words[0], words[-1]) == ("a", "b")


QUOTED = {
    "the key": KEY,
    "in JSON": json.dumps(KEY)[1:-1],
    "in JSON with escaped slashes": json.dumps(KEY)[1:-1].replace("/", "\\/"),
    "in a URL": quote(KEY, safe=""),
    "in base64": b64encode(KEY.encode()).decode(),
    "a header": "azure-secret-key",
    "a header without its scheme": "other-secret-key",
    "a pair": "password-of-a-pair",
    "of the URL's query": "key-of-the-query",
    "of the URL's query, as it was sent": "raw+key+of+the+query",
    "of the URL's user": "pass-of-the-url",
}


@pytest.mark.parametrize("secret", QUOTED.values(), ids=QUOTED)
@pytest.mark.parametrize("pad", [0, 470, 490, 4080])
def test_no_key_of_ours_is_shown_in_any_form(secret: str, pad: int) -> None:
    text = "x" * pad + f" It was {secret}."
    for words in (said(text, PRESET), message_of(text.encode(), PRESET)):
        assert words.startswith("x" * min(pad, 500))
        assert secret[:6] not in words


def test_a_short_secret_is_a_word() -> None:
    assert said("no key", Preset.model_validate({"api_key": "no"})) == "no key"
