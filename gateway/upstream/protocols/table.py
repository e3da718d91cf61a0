"""Table: the protocols by name."""

from collections.abc import Mapping

from gateway.config.presets import Preset
from gateway.upstream.protocols.base import Protocol
from gateway.upstream.protocols.chat import Chat

DEFAULT = "openai"  # What every preset speaks, and every log is in, as none names another yet.

PROTOCOLS: Mapping[str, Protocol] = {DEFAULT: Chat()}


def protocol_of(preset: Preset) -> Protocol:
    """Return the protocol that a preset's upstream speaks."""
    return PROTOCOLS[DEFAULT]


def logged_protocol() -> Protocol:
    """Return the protocol that a stream's log is in."""
    return PROTOCOLS[DEFAULT]
