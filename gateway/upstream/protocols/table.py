"""Table: the protocols by name, and the one that a dialect tells.

A dialect is what a reader of an answer must know of it: the name of its protocol, and what a preset
told beside that, as JSON. It is kept in the record of a stream, so that its log can be read by who
knows no preset of that name any more, or another one.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache

from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.upstream.protocols.anthropic import Anthropic
from gateway.upstream.protocols.base import Protocol
from gateway.upstream.protocols.chat import Chat
from gateway.upstream.protocols.gemini import Gemini
from gateway.upstream.protocols.ollama import Ollama
from gateway.upstream.protocols.responses import Responses
from gateway.upstream.protocols.sse import Declared

DEFAULT = "openai"  # Of records that tell none, as all did once.

PROTOCOLS: Mapping[str, Protocol] = {
    DEFAULT: Chat(),
    "responses": Responses(),
    "anthropic": Anthropic(),
    "ollama": Ollama(),
    "gemini": Gemini(),
}


# Those that a preset tells more of; what is told makes another one.
_TOLD: Mapping[str, Callable[..., Protocol]] = {DEFAULT: Chat, "sse": Declared}
_KEPT = 256  # Dialects that are kept as read.


def protocol_of(preset: Preset) -> Protocol:
    """Return the protocol that a preset's upstream speaks."""
    return logged_protocol(preset.dialect)


def logged_protocol(dialect: str) -> Protocol:
    """Return the protocol that a stream's log is in; raises Unavailable if it is not known here."""
    try:
        return PROTOCOLS.get(dialect or DEFAULT) or _told(dialect)
    except (KeyError, TypeError, ValueError):
        raise Unavailable("newer_record", "This replica does not know its protocol.") from None


@lru_cache(_KEPT)
def _told(dialect: str) -> Protocol:
    name, _, told = dialect.partition(" ")
    return _TOLD[name](**json.loads(told))
