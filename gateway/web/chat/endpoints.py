"""Endpoints: a chat, as the AI SDK's transport asks: its next answer, the one under way, its stop.

Which answer is meant is known by the chat's id: pages of the SDK have no other name for it.
"""

from urllib.parse import quote

from starlette.requests import Request

from gateway.config.presets import Preset
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.runs.cancellation import Cancellation
from gateway.runs.chats import Chat, Chats, chat_name, next_stream
from gateway.runs.record import Record
from gateway.upstream.protocols.table import protocol_of
from gateway.upstream.request_body import RequestBody
from gateway.web.chat.answers import ChatAnswers
from gateway.web.chat.messages import OWN, ChatRequest, chat_request
from gateway.web.chat.stream import UiStream
from gateway.web.endpoint import AnyResponse, Guards, Methods
from gateway.web.mount import Mount
from gateway.web.requests import body_of, check_version, last_event_id
from gateway.web.responses import as_raw, nothing_more, reply
from gateway.web.tickets import Naming, TicketEndpoints

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
        chats: Chats,
        answers: ChatAnswers,
        cancellation: Cancellation,
        max_body: int,
    ) -> None:
        self._mount = mount
        self._guards = guards
        self._requests = requests
        self._chats = chats
        self._answers = answers
        self._cancellation = cancellation
        self._max_body = max_body

    async def create(self, request: Request) -> AnyResponse:
        """POST /chat: ask for the next answer, or watch the one that the same request has begun."""
        subject = await self._guards.caller(request)
        check_version(request)
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

        runs = before.stream_id if before.goes_on else ""
        naming = Naming(chat_name(subject, asked.chat_id), stream, runs)
        sent = _body(preset, body, asked)
        begun = await self._requests.begin(request, subject, name, preset, sent, naming)
        url = self._url(request, asked.chat_id)
        try:
            answer = await self._answers.begun(begun.ticket, subject, asked.continued)
        except Unavailable as error:  # Its claim may go on, and be paid for: it must be found.
            error.headers["Content-Location"] = url
            raise
        return _with(answer, {"content-location": url, **begun.left})

    async def resume(self, request: Request) -> AnyResponse:
        """GET /chat/{id}/stream: the answer that is under way, or that nobody was shown."""
        subject = await self._guards.viewer(request)
        check_version(request)
        chat_id, position = request.path_params["id"], EventId.parse(last_event_id(request))
        chat = await self._chats.find(subject, chat_id)
        record = chat.record
        if record is None or await self._is_over(chat, record, position):
            return nothing_more()
        answer = await self._answers.under_way(record, position)
        if answer is None:
            return nothing_more()
        return _with(answer, {"content-location": self._url(request, chat_id)})

    async def stop(self, request: Request) -> AnyResponse:
        """DELETE /chat/{id}/stream: stop the answer, for all who watch it."""
        subject = await self._guards.caller(request)
        chat = await self._chats.find(subject, request.path_params["id"])
        if chat.record is None:
            raise Rejected("chat_not_found")
        state = await self._cancellation.cancel(chat.record)
        await self._answers.note_shown(chat.stream_id)  # Who stopped it wants no more of it.
        return reply({"state": state})

    async def _is_over(self, chat: Chat, record: Record, position: EventId | None) -> bool:
        """Whether there is nothing to be shown of a chat, to who is at a position."""
        if record.expired or position is not None:  # Who tells it lacks what is after it.
            return record.expired or str(position) == record.end_id
        return not chat.goes_on and await self._chats.was_shown(chat.stream_id)

    def _url(self, request: Request, chat_id: str) -> str:
        """Return where a chat's answer is to be had again."""
        path = f"/chat/{quote(chat_id, safe='')}/stream"
        return self._mount.url(request.scope.get("root_path", ""), path)


def _with(answer: UiStream, headers: dict[str, str]) -> UiStream:
    answer.raw_headers += as_raw(headers)
    return answer


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
