"""Presets: named policies for asking an upstream, as data.

A preset is a `[presets.NAME]` table of the TOML file; what it leaves out (or sets to 0) comes from
the settings of the same name. Without a file there is one preset, `default`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.config.dialects import OF, End, Picked, Words, check, dialect
from gateway.config.price import Price
from gateway.config.templates import Many, Messages, Variable, template_faults
from gateway.config.user_limits import NONE, UserLimits
from gateway.config.webhooks import Receiver, SigningSecret, webhook_faults
from gateway.errors import redacted

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MESSAGES = frozenset(("messages", "input", "contents", "prompt"))
_ENDPOINTS = {
    "/completions": "openai",
    "/responses": "responses",
    "/messages": "anthropic",
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    ":streamGenerateContent": "gemini",
}
_FRAMING = {"transfer-encoding", "upgrade", "expect"}

Status = Annotated[int, Field(strict=True, ge=400, le=599)]
Protocol = Literal["openai", "responses", "anthropic", "ollama", "gemini", "sse"]


def tidy(value: Any) -> Any:
    """Return a text without the line's end that a mounted secret has, and anything else as it is.

    Raises ValueError where a control character is inside: it would end a header, or the request.
    """
    if isinstance(value, SecretStr):
        return SecretStr(tidy(value.get_secret_value()))
    if isinstance(value, (list, tuple)):
        return type(value)(map(tidy, value))
    if not isinstance(value, str):
        return value
    value = value.strip("\ufeff \t\r\n\f\v")
    if _CONTROL.search(value):
        raise ValueError("has a control character, as a line's end, inside")
    return value


def _can_be_sent(key: SecretStr) -> SecretStr:
    if not key.get_secret_value().isascii():
        raise ValueError("has a character that no key has, as a typographic quote")
    return key


Key = Annotated[SecretStr, BeforeValidator(tidy), AfterValidator(_can_be_sent)]


class Preset(BaseModel):
    """One named policy; times are in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field("openai", description="what the upstream speaks")
    url: str = Field("", description="full URL of the completion endpoint")
    api_key: Key = Field(SecretStr(""), description="sent as a bearer token")
    headers: dict[str, str] = Field({}, repr=False, description="further request headers")
    models: list[str] = Field(
        [], description="models allowed, the first where a page names none; empty allows all"
    )
    fields: list[str] | None = Field(
        None, description="what a page may set beside model, messages and stream; none = anything"
    )
    system: str = Field("", repr=False, description="our prompt, before all others")
    allow_system: bool | None = Field(
        None, description="whether a page may have a system prompt, after ours"
    )
    template: Messages = Field([], repr=False, description="our messages; a page fills in ${names}")
    variables: dict[str, Variable] = Field({}, repr=False, description="what it fills in")
    max_output_tokens: Many | None = Field(None, description="most tokens of all its answers")
    max_messages: Many | None = Field(None, description="most messages of a page")
    max_chars: Many | None = Field(None, description="most characters of a page's texts")
    public: bool = Field(True, description="whether pages reach it")
    defaults: dict[str, Any] = Field({}, description="body members added where missing")
    force: dict[str, Any] = Field({}, description="body members set whatever was asked")
    include_usage: bool = Field(True, description="ask the upstream for token counts")
    retries: int = Field(2, ge=0, le=10, description="further attempts after a sure refusal")
    retry_on: frozenset[Status] = Field(
        frozenset(), description="further statuses that are a sure refusal: nothing was paid"
    )
    retry_after_max: float = Field(
        20, ge=0, allow_inf_nan=False, description="longest Retry-After waited for"
    )
    fallback: tuple[str, ...] = Field(
        (), description="presets tried in turn after a sure refusal, before the first event"
    )
    fallback_on_timeout: bool = Field(
        False, description="go on to them after a time-out or a cut too; it may be paid twice"
    )
    price: Price | None = Field(
        None,
        repr=False,
        description="for a million tokens: prompt, completion, cached",
    )
    limits: UserLimits = Field(NONE, description="for each user of it")
    on_leave: Literal["cancel", "finish"] = Field(
        "cancel", description="what becomes of a run whose last viewer left"
    )
    on_crash: Literal["interrupt", "restart"] = Field(
        "interrupt", description="what becomes of a run whose replica died; restart pays again"
    )
    crash_restarts: int = Field(
        1, ge=1, le=10, description="deaths that a run may outlive: its request may be the cause"
    )
    grace: float = Field(0, ge=0, description="how long the last viewer may be gone")
    connect: float = Field(0, ge=0, description="longest wait for a connection")
    first_byte: float = Field(0, ge=0, description="longest wait for the first byte")
    stall: float = Field(0, ge=0, description="longest silence of the upstream")
    max_run: float = Field(0, ge=0, description="longest run")
    webhook: Receiver = Field("", description="URL that is told of the end of every stream")
    webhook_secret: SigningSecret = Field(
        SecretStr(""), description="signs what it is told: whsec_ and base64"
    )

    # Of one protocol's answers alone, see `dialects`.
    end: End | None = Field(None, description="sse: what proves that an answer is whole")
    text: Picked | None = Field(None, description="sse: the path of an event's text")
    usage: Picked | None = Field(None, description="sse: the path of the usage")
    error: Picked | None = Field(None, description="sse: the path of an error")
    reason: Picked | None = Field(None, description="sse: the path of the finish reason")
    strict_end: bool = Field(False, description="openai: [DONE] without a reason is no end")
    broken_off: Words = Field([], description="openai: further reasons that finish nothing")

    # Of answers that the upstream keeps.
    background: bool = Field(
        False, description="of protocol responses: the answer goes on while nobody is connected"
    )

    @field_validator("background")
    @classmethod
    def _is_kept(cls, background: bool, info: ValidationInfo) -> bool:
        if background and info.data.get("protocol") != "responses":
            raise ValueError('is for protocol = "responses" alone: no other answer is kept')
        return background

    @field_validator("url", "webhook", "webhook_secret", mode="before")
    @classmethod
    def _tidy(cls, value: Any) -> Any:
        return tidy(value)

    @field_validator("headers", mode="before")
    @classmethod
    def _tidy_headers(cls, value: Any) -> Any:
        return {tidy(k): tidy(v) for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for number, (name, value) in enumerate(headers.items(), 1):
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name of header {number} is none")
            if name.lower() in _FRAMING:
                raise ValueError(f"{name} is not to be set: it frames the request")
            try:
                value.encode("latin-1")
            except UnicodeEncodeError:
                raise ValueError(f"the value of {name} has a character outside Latin-1") from None
        return headers

    @model_validator(mode="after")
    def _has_a_dialect(self) -> "Preset":
        check(self.protocol, self.model_fields_set, self.end)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Preset":
        faults = [*template_faults(self.template, self.variables), *self._contradictions()]
        if faults:
            raise ValueError("\n".join(faults))  # One line each.
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield what in it can never be so, each as `key: reason`."""
        for part in ("defaults", "force"):
            model = getattr(self, part).get("model")
            if model is not None and self.models and model not in self.models:
                yield f"{part}.model: it is not among the models"
            if self.hides and (names := _MESSAGES.intersection(getattr(self, part))):
                yield f"{part}.{min(names)}: it would take the place of system and template"
        yield from webhook_faults(self.webhook, self.webhook_secret)
        for name in self.variables:
            if name in (self.fields or ()):
                yield f"variables.{name}: a field has this name"

    @property
    def hides(self) -> bool:
        """Whether it has a prompt of ours, which no page may replace or read."""
        return bool(self.system or self.template)

    @cached_property
    def dialect(self) -> str:
        """What a reader of its answers must know, as text: it is kept with each stream."""
        told = self.model_dump(mode="json", include=set(OF), exclude_defaults=True)
        return dialect(self.protocol, told)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what is shown of it: no login and no key in its URL."""
        for name, value in super().__repr_args__():
            yield name, redacted(value) if isinstance(value, str) else value


DEFAULT = Preset.model_validate({})  # What `default` is where no file says so.


def chain_of(name: str, presets: Callable[[str], Preset | None]) -> list[str]:
    """Return the fallbacks of a preset in the order they are tried, each with its own after it."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop(0)
        preset = presets(each)
        if preset is not None and each not in found:
            found[each] = None
            waiting = [*preset.fallback, *waiting]
    return [each for each in found if each != name]


def fallback_faults(presets: Mapping[str, Preset]) -> Iterator[str]:
    """Yield what is wrong with the fallbacks of presets, one line each."""
    for name, preset in presets.items():
        for other in preset.fallback:
            where = f"presets.{name}.fallback"
            if other not in presets:
                yield f"{where}: there is no preset {other}"
            elif name == other or name in chain_of(other, presets.get):
                yield f"{where}: {other} leads back to {name}"
            elif presets[other].protocol != preset.protocol:
                spoken = f"{other} speaks {presets[other].protocol}, {name} {preset.protocol}"
                yield f"{where}: {spoken}; a page reads one protocol"
            elif preset.protocol == "sse" and presets[other].dialect != preset.dialect:
                told = f"{other} declares another API than {name}"
                yield f"{where}: {told}; a page reads one protocol"


def endpoint_doubts(preset: Preset, url: str) -> Iterator[str]:
    """Yield why an endpoint looks like one of another protocol; a proxy's paths may be its own."""
    path = urlsplit(url).path.rstrip("/")
    if path.endswith(":generateContent"):
        yield "it does not stream; that is :streamGenerateContent"
    spoken = {name for end, name in _ENDPOINTS.items() if path.endswith(end)}
    if preset.protocol != "sse" and spoken and preset.protocol not in spoken:
        likely = f'protocol = "{min(spoken)}"'
        yield f"its path is that of {likely}, and the preset's is {preset.protocol}"


def endpoint_faults(preset: Preset, url: str) -> Iterator[str]:
    """Yield what a preset has that its endpoint has no place for, each as `key: reason`."""
    path = urlsplit(url).path.rstrip("/")
    legacy = path.endswith("/completions") and not path.endswith("/chat/completions")
    if preset.protocol == "openai" and legacy:
        told = {"system": preset.system, "template": preset.template}
        yield from (f"{each}: {path} takes a prompt, no messages" for each in told if told[each])
    if preset.protocol == "ollama" and path.endswith("/generate") and preset.template:
        yield f"template: {path} takes a prompt, no messages; use /api/chat"
    if preset.protocol == "gemini":
        lists = [each for each in preset.template if isinstance(each.get("content"), list)]
        yield from ("template: what Gemini calls content is in `parts`" for _ in lists[:1])
