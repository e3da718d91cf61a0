"""Apis: those that are served here to their own SDKs, by name."""

from collections.abc import Mapping

from gateway.config.presets import Preset
from gateway.upstream.protocols.anthropic_api import AnthropicApi
from gateway.upstream.protocols.api import Api
from gateway.upstream.protocols.chat_api import ChatApi
from gateway.upstream.protocols.responses_api import ResponsesApi
from gateway.upstream.protocols.table import DEFAULT, protocol_of

CHAT, RESPONSES, MESSAGES = ChatApi(), ResponsesApi(), AnthropicApi()
APIS: Mapping[str, Api] = {each.protocol: each for each in (CHAT, RESPONSES, MESSAGES)}


def api_of(preset: Preset) -> Api | None:
    """Return the API that a preset speaks, None if it is none of these."""
    api = APIS.get(preset.protocol)
    if api is CHAT and protocol_of(preset).form(preset).messages != CHAT.needs:
        return None  # The completions of before there were chats.
    return api


def speaks(api: Api, dialect: str) -> bool:
    """Whether a stream's answer is one of this API."""
    return (dialect or DEFAULT).partition(" ")[0] == api.protocol
