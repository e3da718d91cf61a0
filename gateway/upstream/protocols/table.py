"""Table: the protocols by name, and the one that a dialect tells.

A dialect is what a reader of an answer must know of it: the name of its protocol. It is kept in the
record of a stream, so that its log can be read by who knows no preset of that name any more.
"""

from collections.abc import Mapping

from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.upstream.protocols.anthropic import Anthropic
from gateway.upstream.protocols.base import Protocol
from gateway.upstream.protocols.chat import Chat
from gateway.upstream.protocols.gemini import Gemini
from gateway.upstream.protocols.ollama import Ollama
from gateway.upstream.protocols.responses import Responses

DEFAULT = "openai"  # Of records that tell none, as all did once.

PROTOCOLS: Mapping[str, Protocol] = {
    DEFAULT: Chat(),
    "responses": Responses(),
    "anthropic": Anthropic(),
    "ollama": Ollama(),
    "gemini": Gemini(),
}


def protocol_of(preset: Preset) -> Protocol:
    """Return the protocol that a preset's upstream speaks."""
    return PROTOCOLS[preset.protocol]


def logged_protocol(dialect: str) -> Protocol:
    """Return the protocol that a stream's log is in; raises Unavailable if it is not known here."""
    try:
        return PROTOCOLS[dialect or DEFAULT]
    except KeyError:
        raise Unavailable("newer_record", "This replica does not know its protocol.") from None
