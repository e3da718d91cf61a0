"""Protocol: uvicorn's for one connection, which lends its socket and bounds what a caller may owe.

What it lends to a response, in the scope's extensions: `gateway.abort` cuts the connection,
`gateway.write` writes a part of the body if there is room, `gateway.closed` tells of the end. Under
another server these are missing, and a stream does without.

What a caller owes us has a size and a time: the rest of a head, of a body, the reading of an
answer. An open stream owes nothing; it costs no timer and no entry.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.errors import Rejected
from gateway.serve.compact import Few, event
from gateway.serve.deadlines import Closed, Debts
from gateway.serve.http10 import without_chunks
from gateway.web.responses import rejected

_UNSENT = 16 * 1024  # Bytes of one connection that wait for its reader, before we wait as well.
_SLICE = 1 << 14  # Bytes that are parsed before their size is looked at.
_FIELDS = 256  # Lines of a head, parameters of a URL: whoever looks for one goes through all.
_URL = 8192
_PIPELINED = 32  # Requests that may wait for the answer before theirs.
_PACE = 16 * 1024  # Bytes of a body in a second that are progress: a phone's, and no drip.
_CRUMBS = 512  # Parts of bodies in what came at once, above which a connection takes turns.
_IGNORED = 1 << 20  # Bytes that are read after the last answer, for its reader's sake.

_IDLE, _HEAD, _BODY, _AGAIN, _DEAF = "idle", "head", "body", "again", "deaf"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with sizes and deadlines; it keeps less for an open stream.

    One idea: uvicorn and its parser call these by name, and all of them move one stage of one
    connection; a second object would double what an open stream keeps.
    """

    # Not in the instance's dict: uvicorn's attributes fill the one that all instances share.
    __slots__ = (
        "_closed",
        "_count",
        "_debts",
        "_owed",
        "_parts",
        "_rest",
        "_since",
        "_stage",
        "_unsent",
    )

    def __init__(self, *, debts: Debts, **given: Any) -> None:
        super().__init__(**given)
        self._debts = debts
        self._stage = _IDLE
        self._owed = 0  # Bytes since the caller last said something whole.
        self._since = 0  # Bytes of the body since its deadline was set.
        self._count = 0  # Parts of bodies in what is parsed.
        self._parts: list[bytes] | None = None  # Those that nobody has yet.
        self._rest: bytes | None = None  # Not parsed, while it waits for its turn.
        self._unsent = 0

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to keep who wants to know of the end: a task that waits for it costs memory."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_UNSENT)  # Of one who does not read it all stays.
        self.pipeline = Few()  # type: ignore[assignment]
        self.flow._is_writable_event = event(done=True)
        self._closed = Closed(self)
        self._debts.expect(self, self._debts.terms.idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell them."""
        self._debts.sent(self)
        self._debts.read(self)
        super().connection_lost(exc)
        self._closed.tell()

    def pause_writing(self) -> None:
        """Note that the caller does not read."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._debts.read(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, in slices: what never becomes whole is buffered by the parser."""
        if self._rest is not None:
            self._wait_for_turn(self._rest + data)  # It was on its way.
            return
        self._count = 0
        for start in range(0, len(data), _SLICE):
            if self._stage is _DEAF:
                self._owed += len(data) - start
                if self._owed > _IGNORED:
                    self.transport.abort()
                break
            self._parse(data[start : start + _SLICE])
            if self._count > _CRUMBS:
                self._hand_over()
                self._wait_for_turn(data[start + _SLICE :])
                return
        self._hand_over()

    def _wait_for_turn(self, rest: bytes) -> None:
        self._rest = rest
        self.transport.pause_reading()
        if not self._debts.turns.wait(self, len(rest)):
            self._refuse(Rejected("bad_request", "Its parts are too small."))

    def turn(self) -> None:
        """Go on with what came, and read more."""
        rest, self._rest = self._rest or b"", None
        if not self.transport.is_closing():
            if not self.flow.read_paused:
                self.transport.resume_reading()
            self.data_received(rest)

    def _parse(self, data: bytes) -> None:
        if self._stage is _IDLE:
            self._stage, self._owed = _HEAD, 0
            if not self._answering:  # A viewer's client may send an empty line after its request.
                self._debts.expect(self, self._debts.terms.head)
        self._owed += len(data)
        self._feed(data)
        if self._owed > self._debts.terms.size:
            self._refuse(self._too_large())

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # To nothing that we speak: the request is answered as it is.
            if self._stage is _AGAIN:
                self._feed(self._without_upgrade() + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(Rejected("bad_request", "It is not HTTP/1.1."))

    def _without_upgrade(self) -> bytes:
        """Return the head once more: behind an Upgrade the parser sees no body."""
        lines = [b"%b: %b\r\n" % line for line in self.headers if line[0] != b"upgrade"]
        asked = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*asked, b"".join(lines))

    # The parser's calls

    def on_message_begin(self) -> None:
        """Lend the transport's abort to the response: a close would wait for the reader."""
        if self._stage is _DEAF:
            return
        self._stage = _HEAD
        super().on_message_begin()
        self.scope["extensions"] = {"gateway.abort": self.transport.abort}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a line of the head; what comes after the body is nobody's cookie."""
        if self._stage is _HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Lend a way to write a part of the body at once, where there is room for it."""
        if self._stage is _DEAF:
            return
        if error := self._fault():
            self._refuse(error)
            return
        names = {name for name, _ in self.headers} if self.parser.should_upgrade() else set()
        if b"upgrade" in names and names & {b"content-length", b"transfer-encoding"}:
            self._stage = _AGAIN
            return
        if len(self.pipeline) >= _PIPELINED:
            self.cycle.keep_alive = False  # Whoever asks for so many at once may ask again.
            self._stage = _DEAF
            return
        app = self.app
        if self.parser.get_http_version() != "1.1":
            self.app = partial(without_chunks, app)
        super().on_headers_complete()
        self.app = app
        self._stage, self._owed = _BODY, 0
        self._expect_body()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # The parser takes what follows for another protocol.
        self.cycle.message_event = event()  # Its task has not run yet.
        extensions: Any = self.scope["extensions"]
        extensions["gateway.write"] = partial(_write, self.cycle, self.transport, self.flow)
        extensions["gateway.closed"] = self._closed

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._stage is not _DEAF:
            self._owed = 0
            self._since += len(body)
            self._count += 1
            if self._parts is None:
                self._parts = []
            self._parts.append(body)

    def _hand_over(self) -> None:
        # Not a part or a slice at a time: uvicorn copies all that waits for each.
        if self._parts is not None:
            super().on_body(b"".join(self._parts))
            self._parts = None  # An empty list would stay as long as an open stream.

    def on_message_complete(self) -> None:
        """Owe nothing more, unless the answer has come before the end of the question."""
        if self._stage in (_DEAF, _AGAIN):
            return
        self._hand_over()
        self._stage, self._owed = _IDLE, 0
        super().on_message_complete()
        if self._answering:
            self._debts.sent(self)
        else:
            self._debts.expect(self, self._debts.terms.idle)

    def on_response_complete(self) -> None:
        """Go on with what waits, or wait for the caller; uvicorn's own timer ends at any byte."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._expect_reading()
        elif self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            if cycle is self.cycle and self._stage is _BODY:
                self._expect_body()
        else:
            self._debts.expect(
                self, self._debts.terms.head if self._stage is _HEAD else self._debts.terms.idle
            )
        if not self.pipeline and self._stage is not _DEAF:
            self.flow.resume_reading()

    # What is owed

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def overdue(self) -> None:
        """End what waits for its caller; not what the caller waits for."""
        if self._stage is _HEAD and not self._answering:
            self._refuse(Rejected("request_timeout", "The head did not end in time."))
        elif self._stage is _BODY and self._answering:
            # As much has an end: the app bounds its size.
            enough = self._since >= self._debts.terms.body * _PACE
            if enough or self.pipeline or self.cycle.response_started:
                self._expect_body()
            else:
                self._refuse(Rejected("request_timeout", "The body did not end in time."))
        elif self._stage is _DEAF or not self._answering:
            self.drop()

    def drop(self) -> None:
        """Close it; whoever does not read what was sent cannot hold it open."""
        self._debts.sent(self)
        self.transport.close()
        self._expect_reading()

    def unread(self) -> None:
        """Cut it, unless the caller has read a part since the last look."""
        size = self.transport.get_write_buffer_size()
        if size >= self._unsent:
            self.transport.abort()
        else:
            self._expect_reading()

    def _expect_body(self) -> None:
        self._since = 0
        self._debts.expect(self, self._debts.terms.body)

    def _expect_reading(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._debts.expect_reading(self)

    def _fault(self) -> Rejected | None:
        """Return what is wrong with a whole head."""
        if len(self.url) > _URL or self.url.count(b"&") > _FIELDS:
            return Rejected("head_too_large", f"A URL has {_URL} bytes and {_FIELDS} parameters.")
        if self._owed > self._debts.terms.size or len(self.headers) > _FIELDS:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._debts.terms.size or len(self.headers) > _FIELDS:
                return self._too_large()
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1:
            return Rejected("bad_request", "It has more than one Host.")
        if b"transfer-encoding" in names and self.parser.get_http_version() != "1.1":
            return Rejected("bad_request", "Only HTTP/1.1 has a Transfer-Encoding.")
        return None

    def _too_large(self) -> Rejected:
        size = self._debts.terms.size
        return Rejected("head_too_large", f"The limit is {size} bytes in {_FIELDS} lines.")

    def _refuse(self, error: Rejected) -> None:
        """Say why and close: as soon as the caller has, who would else lose the answer."""
        if self._stage is _DEAF:
            return
        reading = self._stage is _BODY and not self.pipeline and not self.cycle.response_started
        answered = self._stage is _BODY and not self._answering
        self._stage, self._owed = _DEAF, 0
        if answered:
            self.drop()  # Two answers to one request: the second would be taken for the next one's.
            return
        if self._answering and not reading:
            self.transport.abort()  # Nothing can be said between the parts of another answer.
            return
        if self._answering:
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()
        answer = rejected(error)
        head = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = [b"%b: %b\r\n" % line for line in head]
        self.transport.writelines([STATUS_LINE[error.status], *lines, b"\r\n", bytes(answer.body)])
        if not self.transport.is_closing():
            with suppress(OSError):  # Gone, which is not told while nothing is read.
                self.transport.write_eof()
        self._debts.expect(self, self._debts.terms.idle)


def _write(
    cycle: RequestResponseCycle, transport: asyncio.Transport, flow: FlowControl, body: bytes
) -> bool:
    """Write a chunk as `cycle.send` would, unless that would have to wait; say whether."""
    if flow.write_paused or transport.is_closing() or not cycle.chunked_encoding:
        return False
    transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True
