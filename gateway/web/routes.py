"""Routes: every URL of the gateway.

The checks come in the same order everywhere: the page's origin, the caller's cookie, the request's
form, the ticket, the record. Only then is anything stored or started.
"""

from typing import NoReturn

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gateway.auth.chain import Chain
from gateway.auth.service import ServiceTokens
from gateway.auth.tickets import Tickets
from gateway.channels.publisher import publisher
from gateway.config.preset_book import PresetBook
from gateway.errors import Rejected
from gateway.eventlog.fanout import Fanout
from gateway.limits.statement import Statements
from gateway.runs.chats import Chats
from gateway.runs.records import Records
from gateway.runs.snapshot import CompletionSnapshots
from gateway.runs.supervisor import RunSupervisor
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from gateway.upstream.protocols.api import Api
from gateway.web.channel import ChannelEndpoint
from gateway.web.chat.answers import ChatAnswers
from gateway.web.chat.endpoints import ChatEndpoints, ChatMethods
from gateway.web.completion import CompletionEndpoint
from gateway.web.endpoint import Call, Guards, Methods
from gateway.web.events import MessageEndpoints
from gateway.web.health import HealthEndpoints
from gateway.web.life import Life
from gateway.web.mount import Mount
from gateway.web.origins import Origins
from gateway.web.responses import Retry
from gateway.web.sdk.callers import SdkCallers
from gateway.web.sdk.errors import SdkMethods
from gateway.web.sdk.urls import SdkUrls
from gateway.web.streams import StreamEndpoints
from gateway.web.tickets import TicketEndpoints
from gateway.web.usage import UsageEndpoints
from gateway.web.users import UserEndpoints, UserPaths


class Routes:
    """The HTTP contract (docs/protocol.md) over the parts below it."""

    def __init__(
        self,
        presets: PresetBook,
        tickets: Tickets,
        records: Records,
        fanout: Fanout,
        supervisor: RunSupervisor,
        chain: Chain,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        settings = presets.settings
        self._origins = Origins(settings.allowed_origins, settings.public_url)
        self._retry = Retry(lambda: presets.shortest_grace)
        self._mount = Mount(settings.public_url, settings.prefix)
        self.life = Life(supervisor)
        self._telemetry = telemetry
        guards = Guards(self._origins, chain, self._mount)
        redemption, cancellation = supervisor.redemption, supervisor.cancellation
        snapshots = CompletionSnapshots(records.store, fanout, settings.replay_bytes // 2)
        self._streams = StreamEndpoints(
            presets, guards, tickets, redemption, cancellation, snapshots, fanout
        )
        self._completion = CompletionEndpoint(
            guards, tickets, redemption, snapshots, fanout, settings.write_timeout
        )
        self.tickets = TicketEndpoints(
            presets, guards, tickets, records, redemption, self._streams, self.life
        )
        service = ServiceTokens([each.get_secret_value() for each in settings.service_tokens])
        limits = records.limits
        self.statements = Statements(limits.ledger, limits.permits, presets)
        self._usage = UsageEndpoints(guards, self.statements)
        self._users = UserEndpoints(service, self.tickets, self._usage, supervisor.logout)
        self.publisher = publisher(settings, records.store)
        self._messages = MessageEndpoints(service, self.publisher)
        self._channel = ChannelEndpoint(
            guards, tickets, redemption, self._streams.openings, fanout, self._retry
        )
        chats = Chats(records)
        answers = ChatAnswers(tickets, chats, redemption, snapshots, fanout)
        self._chat = ChatEndpoints(
            self._mount, guards, self.tickets, chats, answers, cancellation, settings.max_body
        )
        self._health = HealthEndpoints(records, self.life)
        callers = SdkCallers(service, guards)
        self._sdk = SdkUrls(presets, callers, self.tickets, tickets, records, fanout, supervisor)

    def exact(self) -> dict[str, ASGIApp]:
        """Return the URLs without a parameter."""
        own: dict[str, ASGIApp] = {
            "/tickets": self._methods(POST=self.tickets.create),
            "/stream": self._methods(GET=self._streams.stream, DELETE=self._streams.cancel),
            "/stream/cancel": self._methods(POST=self._streams.cancel),
            "/chat": self._chat_methods(POST=self._chat.create),
            "/completion": self._methods(GET=self._completion.get),
            "/events": self._methods(GET=self._channel.watch, POST=self._messages.push_all),
            "/usage": self._methods(GET=self._usage.own),
            "/healthz": self._methods(GET=self._health.alive, HEAD=self._health.alive),
            "/readyz": self._methods(GET=self._health.ready, HEAD=self._health.ready),
        }
        own |= self._sdk.exact(self._sdk_methods)
        return {path: own[each] for each in own for path in self._mount.paths(each)}

    def all(self) -> list[BaseRoute]:
        """Return every URL."""
        exact = [Route(path, methods) for path, methods in self.exact().items()]
        named = self._methods(POST=self.tickets.create)
        of_users = {
            "tickets": self._methods(POST=self._users.create),
            "streams": self._methods(DELETE=self._users.log_out),
            "usage": self._methods(GET=self._users.usage),
            "events": self._methods(POST=self._messages.push),
        }
        users = UserPaths(self._mount.paths(""), of_users, self.fallback())
        return [
            *exact,
            *(Route(path, named) for path in self._mount.paths("/tickets/{preset}")),
            *(
                Route(path, chat)
                for one, chat in self._of_chats().items()
                for path in self._mount.paths(one)
            ),
            *(Route(path, users) for path in self._mount.paths("/users/{rest:path}")),
            *(
                Route(path, each)
                for named, each in self._sdk.named(self._sdk_methods).items()
                for path in self._mount.paths(named)
            ),
        ]

    def fallback(self) -> ASGIApp:
        """Return the answer to every other URL."""

        async def nowhere(request: Request) -> NoReturn:
            raise Rejected("not_found")

        methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        return self._methods(**dict.fromkeys(methods, nowhere))

    def _of_chats(self) -> dict[str, ChatMethods]:
        """Return the URLs of chats that have a parameter."""
        one = self._chat_methods(GET=self._chat.resume, DELETE=self._chat.stop)
        return {
            "/chat/{preset}": self._chat_methods(POST=self._chat.create),
            "/chat/{id}/stream": one,
            "/chat/{preset}/{id}/stream": one,
        }

    def _chat_methods(self, **calls: Call) -> ChatMethods:
        return ChatMethods(self._origins, self._retry, self.life, self._telemetry, **calls)

    def _sdk_methods(self, *, api: Api | None, **calls: Call) -> SdkMethods:
        return SdkMethods(self._origins, self._retry, self.life, self._telemetry, api=api, **calls)

    def _methods(self, **calls: Call) -> ASGIApp:
        return Methods(self._origins, self._retry, self.life, self._telemetry, **calls)
