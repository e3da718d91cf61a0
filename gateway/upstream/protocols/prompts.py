"""Prompts: the messages and the system prompt of a request, ours before a page's. Pure."""

from collections.abc import Iterator
from typing import Any

from gateway.config.presets import Preset
from gateway.config.templates import Messages, Variable, filled
from gateway.errors import Rejected
from gateway.upstream.protocols.forms import Form, second_spelling

_SPEAKERS = frozenset(("user", "assistant", "model", "tool", "function"))
_ABOVE = frozenset(("system", "developer"))
_READ = {"role", "content", "parts", "text"}


def check_messages(preset: Preset, page: dict[str, Any], form: Form) -> None:
    """Have a page say nothing in our place; raises Rejected."""
    messages, most = page.get(form.messages), preset.max_messages
    checked = most is not None or refuses_system(preset)
    if checked and messages is not None and not isinstance(messages, (list, str)):
        raise _no_messages(form)
    if most is not None and isinstance(messages, list) and len(messages) > most:
        detail = f'"{form.messages}" has {len(messages)} messages; allowed are {most}.'
        raise Rejected("too_many_messages", detail)
    if not refuses_system(preset):
        return
    if form.system and page.get(form.system) is not None:
        raise Rejected("system_not_allowed", f'"{form.system}" is not for a page to set.')
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        _check_message(f"{form.messages}[{number}]", message, form)


def refuses_system(preset: Preset) -> bool:
    """Whether a page may have no system prompt."""
    return not preset.allow_system if preset.hides else preset.allow_system is False


def _check_message(where: str, message: Any, form: Form) -> None:
    if not isinstance(message, dict):
        raise _no_messages(form)
    if (twin := second_spelling(message, _READ)) is not None:
        raise Rejected("field_not_allowed", f'"{where}.{twin[:40]}" is a second spelling.')
    if "role" not in message:
        return  # As the result of a tool has none in some protocols.
    role = message["role"]
    if not isinstance(role, str) or role.strip().casefold() not in _SPEAKERS:
        detail = f'"{where}.role" may be user, assistant or tool.'
        raise Rejected("system_not_allowed", detail)


def _no_messages(form: Form) -> Rejected:
    return Rejected("bad_request", f'"{form.messages}" must be a list of objects.')


def variables_of(preset: Preset, body: dict[str, Any]) -> dict[str, str]:
    """Return the texts that a page fills a template with; raises Rejected."""
    known = {*preset.variables, *(preset.fields or ())}
    for name in body:
        if name not in known:
            raise Rejected("variable_unknown", f'"{name[:60]}" is no variable of this preset.')
    return {name: _text(name, each, body) for name, each in preset.variables.items()}


def _text(name: str, variable: Variable, body: dict[str, Any]) -> str:
    if name not in body and variable.default is None:
        raise Rejected("variable_missing", f'"{name}" is missing.')
    value = body.get(name, variable.default)
    if not isinstance(value, str):
        raise Rejected("variable_not_allowed", f'"{name}" must be a string.')
    if variable.choices:
        if value not in variable.choices:
            allowed = ", ".join(variable.choices)
            raise Rejected("variable_not_allowed", f'"{name}" must be one of: {allowed}.')
        return variable.choices[value]
    if any("\ud800" <= each <= "\udfff" for each in value):
        raise Rejected("variable_not_allowed", f'"{name}" has half a character.')
    if variable.max_chars is not None and len(value) > variable.max_chars:
        detail = f'"{name}" has {len(value)} characters; allowed are {variable.max_chars}.'
        raise Rejected("variable_too_long", detail)
    return value


def with_ours(
    preset: Preset, request: dict[str, Any], form: Form, texts: dict[str, str]
) -> dict[str, Any]:
    """Return a request with our system prompt and our messages before those of the page."""
    said: Messages = filled(preset.template, texts)
    above = [preset.system] if preset.system else []
    if form.system:
        above += [text for each in said if _is_above(each) for text in _texts(each, form)]
        said = [each for each in said if not _is_above(each)]
        put_above = {form.system: _system(above, request.get(form.system), form)} if above else {}
        request = {**request, **put_above}
    else:
        said = [*({"role": "system", "content": text} for text in above), *said]
    if form.parts:
        said = [_in_parts(each) for each in said]
    if said:
        request = {**request, form.messages: [*said, *_listed(request, form)]}
    return request


def _is_above(message: dict[str, Any]) -> bool:
    return str(message.get("role")).strip().casefold() in _ABOVE


def _texts(message: dict[str, Any], form: Form) -> Iterator[str]:
    content = message.get("parts" if form.parts and "parts" in message else "content")
    for part in [content] if isinstance(content, str) else content or ():
        yield part if isinstance(part, str) else str(part.get("text", ""))


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    if "parts" in message:
        return message
    role = "model" if message["role"] == "assistant" else message["role"]
    return {"role": role, "parts": [{"text": text} for text in _texts(message, Form())]}


def _listed(request: dict[str, Any], form: Form) -> list[Any]:
    """Return a page's messages as a list; raises Rejected."""
    messages = request.get(form.messages)
    if isinstance(messages, str):  # As Responses take it.
        return [{"role": "user", "content": messages}]
    if messages is not None and not isinstance(messages, list):
        raise _no_messages(form)
    return messages or []


def _system(ours: list[str], page: Any, form: Form) -> Any:
    """Return a system prompt of ours and, where one is allowed, the page's; raises Rejected."""
    wrong = Rejected("bad_request", f'"{form.system}" is no system prompt.')
    if form.system_as == "text":
        if page is not None and not isinstance(page, str):
            raise wrong
        return "\n\n".join([*ours, page] if page else ours)
    if form.system_as == "parts":
        parts = page.get("parts") if isinstance(page, dict) else page
        if parts is not None and not isinstance(parts, list):
            raise wrong
        return {"parts": [*({"text": text} for text in ours), *(parts or [])]}
    if isinstance(page, list):
        return [*({"type": "text", "text": text} for text in ours), *page]
    if page is not None and not isinstance(page, str):
        raise wrong
    return "\n\n".join([*ours, page] if page else ours)
