"""Endpoints: a chat, as the AI SDK's transport asks: its next answer, the one under way, its stop.

Which answer is meant is known by the chat's id: pages of the SDK have no other name for it.
"""

from contextlib import suppress
from urllib.parse import quote

from starlette.requests import Request

from gateway.auth.tickets import Tickets
from gateway.config.presets import Preset
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.runs.cancellation import Cancellation
from gateway.runs.chats import Chat, Chats, chat_name, next_stream
from gateway.runs.record import Record
from gateway.runs.redemption import NothingMore, Opened, Redemption
from gateway.runs.snapshot import CompletionSnapshots
from gateway.upstream.protocols.table import logged_protocol, protocol_of
from gateway.upstream.request_body import RequestBody
from gateway.web.chat.messages import OWN, ChatRequest, chat_request
from gateway.web.chat.parts import UiParts
from gateway.web.chat.stream import UiStream
from gateway.web.endpoint import AnyResponse, Guards, Methods
from gateway.web.mount import Mount
from gateway.web.requests import body_of, last_event_id
from gateway.web.responses import nothing_more, reply
from gateway.web.tickets import Naming, TicketEndpoints

_GONE = ("log_expired", "ticket_expired", "ticket_not_found")
_PROMPT = "message"  # The variable of a role that has what the user said last.


class ChatMethods(Methods):
    """One URL of a chat."""

    def opens_stream(self, request: Request) -> bool:
        """Return False: an empty stream is a good end to the SDK."""
        return False


class ChatEndpoints:
    """`POST /chat`, and `GET` and `DELETE` of a chat's stream."""

    def __init__(
        self,
        mount: Mount,
        guards: Guards,
        requests: TicketEndpoints,
        tickets: Tickets,
        chats: Chats,
        redemption: Redemption,
        cancellation: Cancellation,
        *,
        snapshots: CompletionSnapshots,
        fanout: Fanout,
        max_body: int,
    ) -> None:
        """One idea: a chat's URLs; these are the parts below that they join."""
        self._mount = mount
        self._guards = guards
        self._requests = requests
        self._tickets = tickets
        self._chats = chats
        self._redemption = redemption
        self._cancellation = cancellation
        self._snapshots = snapshots
        self._fanout = fanout
        self._max_body = max_body

    async def create(self, request: Request) -> AnyResponse:
        """POST /chat: ask for the next answer, or watch the one that the same request has begun."""
        subject = await self._guards.caller(request)
        _check_version(request)
        name = request.path_params.get("preset", "default")
        preset = self._requests.preset(name)
        body = await body_of(request, self._max_body)
        asked = chat_request(body.values)
        before = await self._chats.find(subject, asked.chat_id)

        def stream(digest: str) -> str:
            record = before.record
            same = record is not None and (record.preset, record.digest) == (name, digest)
            if same and not asked.anew and before.goes_on:
                return before.stream_id
            words = f"{asked.anew} {name} {digest}"
            return next_stream(subject, asked.chat_id, words, before.stream_id)

        naming = Naming(chat_name(subject, asked.chat_id), stream)
        sent = _body(preset, body, asked)
        begun = await self._requests.begin(request, subject, name, preset, sent, naming)
        if asked.continued:
            await self._chats.note_continued(begun.stream_id, asked.continued)
        opened = await self._redemption.open(self._tickets.verify(begun.ticket), subject, "")
        if isinstance(opened, NothingMore):
            raise Rejected("log_expired")
        message_id = asked.continued or begun.stream_id
        answer = self._streamed(opened, begun.stream_id, message_id)
        return self._located(request, asked.chat_id, answer, begun.left)

    async def resume(self, request: Request) -> AnyResponse:
        """GET /chat/{id}/stream: the answer that is under way, or that nobody was shown."""
        subject = await self._guards.viewer(request)
        _check_version(request)
        chat_id, position = request.path_params["id"], EventId.parse(last_event_id(request))
        chat = await self._chats.find(subject, chat_id)
        record = chat.record
        if record is None or await self._is_over(chat, record, position):
            return nothing_more()
        began = ""
        if record.attempts > 1:  # What is before a `reset` could not be taken back.
            began = (await self._snapshots.of(record)).began
        place = EventId.parse(began)
        if position is not None and place is not None and position <= place:
            position = None
        message_id = await self._chats.message_of(chat.stream_id)
        opened = await self._opened(record, began)
        if opened is None:
            return nothing_more()
        answer = self._streamed(opened, chat.stream_id, message_id, position)
        return self._located(request, chat_id, answer, {})

    async def stop(self, request: Request) -> AnyResponse:
        """DELETE /chat/{id}/stream: stop the answer, for all who watch it."""
        subject = await self._guards.caller(request)
        chat = await self._chats.find(subject, request.path_params["id"])
        if chat.record is None:
            raise Rejected("chat_not_found")
        state = await self._cancellation.cancel(chat.record)
        await self._note_shown(chat.stream_id)  # Who stopped it wants no more of it.
        return reply({"state": state})

    async def _is_over(self, chat: Chat, record: Record, position: EventId | None) -> bool:
        """Whether there is nothing to be shown of a chat, to who is at a position."""
        if record.expired or (position is not None and str(position) == record.end_id):
            return True
        return not chat.goes_on and await self._chats.was_shown(chat.stream_id)

    async def _opened(self, record: Record, began: str) -> Opened | None:
        """Return a viewer of a stream from its start, or from where it began anew."""
        ticket = self._tickets.issue(record.stream_id, record.subject, record.issued)
        try:
            opened = await self._redemption.open(
                self._tickets.verify(ticket), record.subject, began
            )
        except Rejected as error:
            if error.code not in _GONE:
                raise
            return None
        return opened if isinstance(opened, Opened) else None

    def _streamed(
        self, opened: Opened, stream_id: str, message_id: str, position: EventId | None = None
    ) -> UiStream:
        """Return the response; lets go of the viewer where this replica cannot read the log."""
        try:
            protocol = logged_protocol(opened.dialect)
        except Unavailable:
            self._fanout.detach(opened.viewer)
            opened.seat()
            raise
        parts = UiParts(stream_id, message_id, protocol.readings, position)

        async def shown() -> None:
            await self._note_shown(stream_id)

        return UiStream(self._fanout, opened, parts, shown)

    def _located(
        self, request: Request, chat_id: str, answer: UiStream, left: dict[str, str]
    ) -> AnyResponse:
        """Return a response that says where the same is to be had, and what is `left`."""
        path = f"/chat/{quote(chat_id, safe='')}/stream"
        url = self._mount.url(request.scope.get("root_path", ""), path)
        told = {"content-location": url, **left}
        answer.raw_headers += [(each.lower().encode(), told[each].encode()) for each in told]
        return answer

    async def _note_shown(self, stream_id: str) -> None:
        with suppress(Unavailable):  # What was shown is shown once more, and that is all.
            await self._chats.note_shown(stream_id)


def _check_version(request: Request) -> None:
    if request.scope["http_version"] == "1.0":
        raise Rejected("bad_request", "HTTP/1.0 cannot tell a cut from an end: ask in HTTP/1.1.")


def _body(preset: Preset, body: RequestBody, asked: ChatRequest) -> RequestBody:
    """Return the request that a page of another kind would have sent; raises Rejected."""
    protocol = protocol_of(preset)
    said = protocol.conversation(preset, asked.turns)
    form = protocol.form(preset)
    if preset.template and form.messages not in (preset.fields or ()):
        said = _variables(preset, body, asked)
    return body.changed(said, OWN)


def _variables(preset: Preset, body: RequestBody, asked: ChatRequest) -> dict[str, str]:
    """Return what a role that takes no messages is told of them: what the user said last."""
    if _PROMPT not in preset.variables or _PROMPT in body.values:
        return {}
    return {_PROMPT: next((t.text for t in reversed(asked.turns) if t.role == "user"), "")}
