"""Policy: what a preset makes of a page's request, in whatever protocol. Pure.

What is ruled over here is read once, and sent as it was read: of a name that comes twice inside a
member, too, only the one that was looked at goes on, and other spellings of it do not.
"""

from collections.abc import Set
from typing import Any

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols import forms
from gateway.upstream.protocols.forms import Form, found, spelled
from gateway.upstream.protocols.lengths import text_length
from gateway.upstream.protocols.prompts import (
    check_messages,
    refuses_system,
    variables_of,
    with_ours,
)

_MOST_COPIES = 128


def ruled(preset: Preset, body: dict[str, Any], form: Form) -> dict[str, Any]:
    """Return the request that a preset makes of a page's; raises Rejected."""
    texts = variables_of(preset, body) if preset.template else {}
    page = {name: value for name, value in body.items() if name not in texts}
    page = _allowed(preset, page, form)
    _check_length(preset, body, form)
    check_messages(preset, page, form)
    _check_caps(preset, page, form)
    page = _as_read(preset, page, form)
    request = {**preset.defaults, **page, **preset.force}
    if request.setdefault("stream", True) is not True:
        raise Rejected("stream_required", 'Leave "stream" out, or set it to true.')
    _choose_model(preset, request)
    if preset.max_output_tokens is not None:
        request = _capped(preset, page, request, form)
    return with_ours(preset, request, form, texts) if preset.hides else request


def _allowed(preset: Preset, page: dict[str, Any], form: Form) -> dict[str, Any]:
    """Return a page's members but other spellings of ours; raises Rejected."""
    if preset.template:
        return page
    if preset.fields is not None:
        allowed = {"model", "stream", form.messages, form.system, *form.needed, *preset.fields}
        for name in page:
            if name not in allowed - {""}:
                _check_caps(preset, {name: page[name]}, form)  # Too many is told as such.
                raise _no_field(name)
        return page
    hidden = forms.REVEALING - {form.messages, form.system} if preset.hides else frozenset()
    if preset.max_output_tokens is not None:
        hidden |= {"extra_body"}  # LiteLLM lays it over all else.
    if hiding := _named(page, hidden):
        raise _no_field(hiding)
    if preset.models and (leading := _named(page, forms.LEADING_ELSEWHERE)):
        raise Rejected("model_not_allowed", f'"{leading[:60]}" is not for a page to set.')
    if twin := forms.second_spelling(page, _looked_into(preset, form)):
        raise _no_field(twin)
    ours = {"model", "stream", "stream_options", *form.own, *form.copies, *preset.force}
    folded = {spelled(name) for name in ours}
    return {k: v for k, v in page.items() if k in ours or spelled(k) not in folded}


def _named(page: dict[str, Any], names: Set[str]) -> str | None:
    """Return a page's member that is one of these, however it is spelled."""
    folded = {spelled(name) for name in names}
    return next((name for name in page if spelled(name) in folded), None)


def _no_field(name: str) -> Rejected:
    return Rejected("field_not_allowed", f'"{name[:60]}" is not for a page to set.')


def _looked_into(preset: Preset, form: Form) -> set[str]:
    """Return the members that must have one spelling: what is in them is checked."""
    names = form.roots if preset.max_output_tokens is not None else set()
    if refuses_system(preset) or preset.max_messages is not None or preset.hides:
        names = names | {form.messages, form.system}
    return names - {""}


def _check_length(preset: Preset, body: dict[str, Any], form: Form) -> None:
    if preset.max_chars is None:
        return
    plain = {form.messages, form.system, *preset.variables, "prompt", "suffix", "instructions"}
    if text_length(body, plain) > preset.max_chars:
        raise Rejected("request_too_long", f"Its texts may have {preset.max_chars} characters.")


def _check_caps(preset: Preset, page: dict[str, Any], form: Form) -> None:
    """Check each number by which a page says how much it wants; raises Rejected."""
    caps = form.caps if preset.max_output_tokens is not None else ()
    for name in form.copies:
        _whole(name, found(page, name), _MOST_COPIES)
    for name in caps:
        _whole(name, found(page, name), preset.max_output_tokens or 0)
    leaves = {name.partition(".")[2] for name in (*form.copies, *caps)} - {""}
    for root in form.holders:
        if twin := forms.second_spelling(page.get(root) or {}, leaves):
            raise _no_field(f"{root}.{twin}")


def _whole(name: str, value: Any, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise Rejected("too_many_tokens", f'"{name}" must be a whole number from 1 to {most}.')


def _as_read(preset: Preset, page: dict[str, Any], form: Form) -> dict[str, Any]:
    """Return a page's members, new where they were looked into: not as they were written."""
    if preset.hides or refuses_system(preset) or preset.max_chars is not None:
        names = set(page)
    else:
        names = form.holders
    return {name: _copy(value) if name in names else value for name, value in page.items()}


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list)) else value


def _choose_model(preset: Preset, request: dict[str, Any]) -> None:
    if not preset.models:
        return
    if request.setdefault("model", preset.models[0]) not in preset.models:
        allowed = ", ".join(preset.models)
        raise Rejected("model_not_allowed", f'"model" may be: {allowed}.')


def _capped(
    preset: Preset, page: dict[str, Any], request: dict[str, Any], form: Form
) -> dict[str, Any]:
    """Return a request with one bound of its answers, under the name that the upstream reads."""
    most = preset.max_output_tokens or 0
    copies = _copies(request, form)
    forced = [name for name in form.caps if found(preset.force, name) is not None][:1]
    name = forced[0] if forced else form.caps[0]
    wanted = _bounds(page, form)
    if forced:
        each = found(preset.force, name)
    elif wanted:
        each = min(wanted)
    else:
        each = min([*_bounds(request, form), most // copies])
    if not 1 <= each * copies <= most:
        detail = f'"{name}" of {copies} answers may be {most} together.'
        raise Rejected("too_many_tokens", detail)
    capped = forms.without(request, form.caps)
    forms.put(capped, name, each)
    return capped


def _bounds(request: dict[str, Any], form: Form) -> list[int]:
    told = [found(request, name) for name in form.caps]
    return [each for each in told if isinstance(each, int) and each > 0]


def _copies(request: dict[str, Any], form: Form) -> int:
    """Return how many answers will be made."""
    told = [found(request, name) for name in form.copies]
    copies = max((each for each in told if isinstance(each, int)), default=1)
    prompts = request.get("prompt") if form.messages == "prompt" else None
    several = isinstance(prompts, list) and any(isinstance(each, (str, list)) for each in prompts)
    return max(copies, 1) * (len(prompts) if prompts and several else 1)
