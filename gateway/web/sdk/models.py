"""Models: presets as SDKs know them. A preset's name is a model's; any other is the default's."""

from typing import Any, NamedTuple

from starlette.requests import Request

from gateway.config.preset_book import PresetBook
from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols.api import Api
from gateway.upstream.protocols.apis import APIS, api_of
from gateway.upstream.request_body import RequestBody
from gateway.web.endpoint import AnyResponse
from gateway.web.responses import reply
from gateway.web.sdk.callers import SdkCallers

_DEFAULT = "default"
_OTHERS = frozenset({each.needs for each in APIS.values()})
_LONG = 100  # Characters of a name that are quoted.


class Chosen(NamedTuple):
    """The preset that a request leads to, and the request as it is to be prepared."""

    name: str
    preset: Preset
    body: RequestBody


class Models:
    """The presets that speak an API; a preset that is no page's is there for servers alone."""

    def __init__(self, presets: PresetBook) -> None:
        self._presets = presets

    def choose(self, api: Api, body: RequestBody, *, on_behalf: bool) -> Chosen:
        """Return what a request asks for, as one that streams; raises Rejected."""
        if api.needs not in body.values and not _OTHERS.isdisjoint(body.values):
            raise Rejected("bad_request", f'"{api.needs}" is missing: it is for another API.')
        model = body.values.get("model")
        named = self._preset(model, on_behalf) if isinstance(model, str) else None
        name = str(model) if named is not None and api_of(named) is api else _DEFAULT
        preset = named if name == model else self._preset(_DEFAULT, on_behalf)
        if preset is None or api_of(preset) is not api:
            raise _no_model(model, named)
        if name != model and preset.models and model is not None and model not in preset.models:
            raise _no_model(model, named)
        dropped = {"model"} if name == model and _has_model(preset, name) else set()
        if preset.template:  # A role takes its variables alone, and streams.
            body = body.changed({}, dropped | {"stream"})
        elif dropped or body.values.get("stream") is not True:
            body = body.changed({"stream": True}, dropped)
        return Chosen(name, preset, body)

    def listed(self, *, on_behalf: bool) -> list[str]:
        """Return the models: names of presets, and what the default one allows."""
        found = {}
        for name in self._presets.names(all_=on_behalf):
            preset = self._presets.get(name)
            if preset is not None and api_of(preset) is not None:
                found[name] = True
                if name == _DEFAULT:
                    found |= dict.fromkeys(preset.models, True)
        return list(found)

    def _preset(self, name: str, on_behalf: bool) -> Preset | None:
        preset = self._presets.get(name)
        return preset if preset is not None and (preset.public or on_behalf) else None


class ModelEndpoints:
    """`GET /v1/models`, in the words of both providers at once."""

    def __init__(self, models: Models, callers: SdkCallers) -> None:
        self._models = models
        self._callers = callers

    async def all(self, request: Request) -> AnyResponse:
        """GET /v1/models: what may be asked for."""
        names = await self._names(request)
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
        told = [_told(name) for name in names]
        return reply({"object": "list", "data": told, "has_more": False, **ends})

    async def one(self, request: Request) -> AnyResponse:
        """GET /v1/models/{model}: whether that may be."""
        name = request.path_params["model"]
        if name not in await self._names(request):
            raise _no_model(name, None)
        return reply(_told(name))

    async def _names(self, request: Request) -> list[str]:
        caller = await self._callers.of(request)
        return self._models.listed(on_behalf=bool(caller.server))


def _has_model(preset: Preset, name: str) -> bool:
    """Whether a preset names its models: then its own name is none of them, unless it says so."""
    if name in preset.models:
        return False
    return (
        bool(preset.template or preset.models)
        or "model" in preset.defaults
        or "model" in preset.force
    )


def _no_model(model: Any, preset: Preset | None) -> Rejected:
    told = f"The model {str(model)[:_LONG]!a} is none of those that this API has here."
    if preset is not None and (api := api_of(preset)):
        told = f"The model {str(model)[:_LONG]!a} is asked at {api.path}."
    return Rejected("model_not_found", told)


def _told(name: str) -> dict[str, Any]:
    began = {"created": 0, "created_at": "1970-01-01T00:00:00Z"}
    kinds = {"object": "model", "type": "model"}
    return {"id": name, **kinds, **began, "owned_by": "gateway", "display_name": name}
