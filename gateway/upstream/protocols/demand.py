"""Demand: what a prepared request asks for: its model, and how many tokens it may take. Pure.

Whatever a page has sent has an answer here: nothing raises, and no number is larger than what a
counter can hold.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from gateway.config.presets import Preset
from gateway.upstream.protocols.base import CHARACTERS
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.forms import spelled
from gateway.upstream.protocols.lengths import ENDLESS, text_length
from gateway.upstream.protocols.table import protocol_of

UNBOUNDED = 4096  # Tokens of an answer that nobody bounds: what most models have as their own cap.
_MOST = 1 << 40  # Tokens: a counter in Redis can add thousands of these, and a float is exact.
_MOST_COPIES = 1000
_LONG = 100  # Characters of a model's name that are kept.
_PLAIN = {  # Members that are text, however short.
    *("messages", "prompt", "input", "contents"),
    *("system", "instructions", "systemInstruction", "suffix"),
}
_first = re.compile(rb'\{"model":("[^"\\]*")[,}]').match
_in_path = re.compile(r"/(?:models?|deployments|engines)/([^/:]+)").search


class Expected(NamedTuple):
    """The tokens that a request is expected to take at most."""

    prompt: int
    completion: int


def expected(preset: Preset, request: bytes) -> Expected:
    """Return what a prepared request may take; the prompt is an estimate."""
    body = decoded(request)
    form = protocol_of(preset).form(preset)
    copies = max(_numbers(body, form.copies), default=1)
    prompts = body.get("prompt") if form.messages == "prompt" else None
    if isinstance(prompts, list) and any(isinstance(each, (str, list)) for each in prompts):
        copies *= len(prompts)
    copies = min(copies, _MOST_COPIES)
    # The largest: which of its names an upstream reads is not known.
    each = max(_numbers(body, form.caps), default=None)
    if each is None and preset.max_output_tokens is not None:
        return Expected(_prompt_of(body, request), preset.max_output_tokens)
    return Expected(_prompt_of(body, request), min((each or UNBOUNDED) * copies, _MOST))


def prompt_tokens(request: bytes) -> int:
    """Return an estimate of what a prepared request's text takes, 1 at least."""
    return _prompt_of(decoded(request), request)


def model_of(preset: Preset | None, request: bytes) -> str:
    """Return the model that a prepared request names, itself or by its URL; "" if none is."""
    first = _first(request)  # As most do: then the rest is not decoded.
    body = decoded(b'{"model":%b}' % first[1] if first else request)
    model = body.get("model")
    if not isinstance(model, str) and preset is not None:
        found = _in_path(urlsplit(preset.url).path)
        model = unquote(found[1]) if found else ""
    return "".join(filter(str.isprintable, model[:_LONG])) if isinstance(model, str) else ""


def _prompt_of(body: dict[str, Any], request: bytes) -> int:
    length = text_length(body, _PLAIN)
    if length >= ENDLESS:  # Too much to be looked at.
        length = len(request)
    return max(1, length // CHARACTERS)


def _numbers(body: dict[str, Any], names: Iterable[str]) -> Iterator[int]:
    """Yield the numbers that are asked for under these names, however they are spelled."""
    for name in names:
        root, _, leaf = name.partition(".")
        for value in _spelled(body, root):
            for each in _spelled(value, leaf) if leaf else (value,):
                if type(each) in (int, float) and each >= 1:
                    yield int(min(each, _MOST))


def _spelled(members: Any, name: str) -> Iterator[Any]:
    if isinstance(members, dict):
        wanted = spelled(name)
        yield from (value for key, value in members.items() if spelled(key) == wanted)
