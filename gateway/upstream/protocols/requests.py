"""Requests: what is the same in asking any upstream: heads, models, and that it streams. Pure."""

from collections.abc import Iterable, Sequence

from gateway.config.presets import Preset
from gateway.sse import FRAMES, Event, Parser
from gateway.upstream.protocols.base import NONE, HttpRequest, Refusal, Rest
from gateway.upstream.protocols.chat_chunks import is_whole
from gateway.upstream.protocols.complaints import ERROR_NAMES
from gateway.upstream.protocols.refusals import judged

EVENTS = b"text/event-stream"

Header = tuple[bytes, bytes]


class Lost:
    """What is the same in protocols whose answers are lost with their connection."""

    def refused(
        self, preset: Preset, status: int, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Refusal:
        """Judge by the status, by what headers add to it, and by an error in the body."""
        return judged(preset, status, headers, body)

    def keeps(self, preset: Preset) -> bool:
        """Return False."""
        return False

    def rest(self, preset: Preset, seen: Iterable[Event]) -> Rest | None:
        """Return None: an answer is lost with its connection."""
        return None

    def look(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return None: who is silent for too long is lost."""
        return None

    def goes_on(self, body: bytes) -> bool:
        """Return False: nobody is asked."""
        return False

    def stop(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return None: a closed connection stops it."""
        return None


class Framed(Lost):
    """What is the same in those of them that stream server-sent events."""

    types = frozenset({"text/event-stream"})
    starts: tuple[bytes, ...] = FRAMES

    def frames(
        self, preset: Preset, limit: int, noise: int | None = None, last: int = NONE
    ) -> Parser:
        """Return the parser of an event stream."""
        return Parser(limit, noise)

    def is_whole(self, event: Event) -> bool:
        """Whether it is `[DONE]`, or JSON to its last brace, or an error by its name."""
        return is_whole(event.data) or event.name.lower() in ERROR_NAMES


def bearer(key: str) -> Header:
    """Return the header of a key that is a bearer token."""
    return b"Authorization", f"Bearer {key}".encode()


def headers_of(preset: Preset, accept: bytes, *more: Header) -> tuple[Header, ...]:
    """Return a request's headers; one of the preset takes the place of ours, whatever its case."""
    ours = [
        (b"Content-Type", b"application/json"),
        (b"Accept", accept),
        (b"Accept-Encoding", b"identity"),
        (b"User-Agent", b"sse-ticket-gateway"),
        *more,
    ]
    given = [(name.encode(), value.encode("latin-1")) for name, value in preset.headers.items()]
    names = {name.lower() for name, _ in given}
    return (*(each for each in ours if each[0].lower() not in names), *given)
