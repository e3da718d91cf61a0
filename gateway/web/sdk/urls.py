"""URLs: what answers each path of an API."""

from collections.abc import Callable

from gateway.auth.tickets import Tickets
from gateway.config.preset_book import PresetBook
from gateway.eventlog.fanout import Fanout
from gateway.runs.aliases import Aliases
from gateway.runs.records import Records
from gateway.runs.repeats import Repeats
from gateway.runs.supervisor import RunSupervisor
from gateway.upstream.protocols.apis import APIS, RESPONSES
from gateway.web.mount import Mount
from gateway.web.sdk.answers import Answers
from gateway.web.sdk.callers import SdkCallers
from gateway.web.sdk.completions import CompletionEndpoints, Owned
from gateway.web.sdk.errors import SdkMethods
from gateway.web.sdk.kept_responses import KeptResponses
from gateway.web.sdk.models import ModelEndpoints, Models
from gateway.web.tickets import TicketEndpoints

Made = Callable[..., SdkMethods]


class SdkUrls:
    """The paths under `/v1/`, joined of the parts of this package and of those below it."""

    def __init__(
        self,
        presets: PresetBook,
        callers: SdkCallers,
        requests: TicketEndpoints,
        tickets: Tickets,
        records: Records,
        fanout: Fanout,
        supervisor: RunSupervisor,
    ) -> None:
        settings, redemption = presets.settings, supervisor.redemption
        mount = Mount(settings.public_url, settings.prefix)
        aliases, models = Aliases(records), Models(presets)
        owned = Owned(tickets, records, redemption)
        answers = Answers(mount, tickets, redemption, fanout, Repeats(records), aliases)
        self._apis = {
            api: CompletionEndpoints(
                api, callers, models, requests, owned, answers, settings.max_body
            )
            for api in APIS.values()
        }
        self._kept = KeptResponses(callers, aliases, owned, answers, supervisor.cancellation)
        self._models = ModelEndpoints(models, callers)

    def exact(self, methods: Made) -> dict[str, SdkMethods]:
        """Return the paths without a parameter."""
        found = {
            api.path: methods(api=api, POST=each.create, GET=each.resume)
            for api, each in self._apis.items()
        }
        return found | {"/v1/models": methods(api=None, GET=self._models.all)}

    def named(self, methods: Made) -> dict[str, SdkMethods]:
        """Return the others."""
        one = f"{RESPONSES.path}/{{id}}"
        return {
            one: methods(api=RESPONSES, GET=self._kept.get),
            f"{one}/cancel": methods(api=RESPONSES, POST=self._kept.cancel),
            "/v1/models/{model:path}": methods(api=None, GET=self._models.one),
        }
