"""Settings: one frozen object from flags, environment and a TOML file, in this order.

The fields below are the one table of names, defaults and help texts; the command line's help and
docs/settings.md are made from it.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Unpack
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from gateway.config.addresses import header_name, http_url, networks, origins, path
from gateway.config.faults import fault_lines
from gateway.config.lists import joined, listed
from gateway.config.presets import DEFAULT, Key, Preset, endpoint_faults, fallback_faults, tidy
from gateway.config.secrets import FILE, SECRET, mounted, tokens, with_keys
from gateway.config.user_limits import NONE, UserLimits
from gateway.config.values import Values
from gateway.errors import SettingsError, redacted

PREFIX = "GATEWAY_"
_OTHER_NAMES = {
    *("GATEWAY_HOST", "GATEWAY_PORT", "GATEWAY_CHAT_COOKIE", "GATEWAY_CHAT_TOKEN"),
    *("GATEWAY_TEST_REQUIRE", "GATEWAY_WORKER"),
}

Secrets = tuple[SecretStr, ...]
Names = tuple[str, ...]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1024, le=1 << 30)]


class Settings(BaseModel):
    """Everything that can be set; times are in seconds, sizes in bytes.

    What is made in code is alone: no variable and no file is read, which is what `load` is for.
    """

    # A ValidationError would show what was given, and that may be a secret.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: str = Field(
        "",
        repr=False,  # It may hold a password.
        description="redis://, unix://, redis+sentinel://h1:p,h2:p/master or "
        "redis+cluster://h1:p,h2:p (rediss://, rediss+sentinel://, rediss+cluster:// with TLS); "
        "empty = embedded: one process, lost at exit",
    )
    redis_url_file: str = Field("", description="file that holds GATEWAY_REDIS_URL")
    secrets: Secrets = Field((), description="sign the tickets; comma list, newest first")
    secrets_file: str = Field("", description="file that holds GATEWAY_SECRETS, or one a line")
    upstream_url: str = Field("", description="completion endpoint of the default preset")
    upstream_api_key: Key = Field(SecretStr(""), description="sent to it as a bearer token")
    upstream_api_key_file: str = Field("", description="file that holds GATEWAY_UPSTREAM_API_KEY")
    auth: str = Field(
        "signed",
        description="who knows the user; comma list, tried in turn: signed (Starlette's session), "
        "flask, django, jwt, forward, header, guest, module:callable",
    )
    cookie_name: str = Field(
        "", description="the cookie that names the user; empty = that of the framework"
    )
    cookie_secrets: Secrets = Field(
        (),
        description="secrets of that cookie, the app's own (SECRET_KEY), newest first; empty = "
        "those of the tickets",
    )
    cookie_secrets_file: str = Field(
        "", description="file that holds GATEWAY_COOKIE_SECRETS, or one a line"
    )
    cookie_max_age: Seconds = Field(14 * 86400, description="oldest cookie accepted")
    subject_field: str = Field(
        "",
        description="where in the session the user is (user.id); empty = as the framework has it",
    )
    jwt_jwks_url: str = Field("", description="keys that JWTs are verified with, at their issuer")
    jwt_public_key: str = Field("", description="or a file with them: PEM, or a JWK set")
    jwt_algorithms: Names = Field((), description="only these; empty = those that fit the keys")
    jwt_audience: Names = Field((), description="a token's aud has to be one of these; comma list")
    jwt_issuer: str = Field("", description="a token's iss has to be this")
    forward_auth_url: str = Field(
        "", description="URL of the app that says whose cookies these are"
    )
    forward_auth_header: str = Field("", description="header of its answer that names the user")
    forward_auth_ttl: Annotated[float, Field(ge=0, le=3600)] = Field(
        10, description="its yes is kept for; a no never is"
    )
    forward_auth_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        3, description="longest wait for its answer"
    )
    auth_header: str = Field("", description="header by which a proxy in front names the user")
    trusted_proxies: Names = Field(
        (), description="addresses and networks of the proxies that may set it; comma list"
    )
    service_tokens: Secrets = Field(
        (), description="let an app's server act for its users; comma list, newest first"
    )
    service_tokens_file: str = Field("", description="file that holds GATEWAY_SERVICE_TOKENS")
    allowed_origins: Names = Field((), description="further origins of pages, for CORS; comma list")
    public_url: str = Field("", description="the gateway as browsers see it; makes URLs absolute")
    prefix: str = Field(
        "", max_length=200, description="path it has behind a proxy, such as /llm; begins its URLs"
    )
    config: str = Field("", description="TOML file: these in lower case, [presets.NAME], [limits]")
    max_head: Bytes = Field(32768, description="largest head of a request: its URL and headers")
    head_timeout: Seconds = Field(10, description="longest wait for the end of a request's head")
    max_body: Bytes = Field(4 << 20, description="largest completion request")
    body_timeout: Seconds = Field(
        30, description="longest wait for the end of a body that comes slower than 16 KB a second"
    )
    idle_timeout: Seconds = Field(5, description="a connection without a request is closed after")
    max_event: Bytes = Field(1 << 20, description="largest event of an upstream")
    max_log: Bytes = Field(16 << 20, description="largest stream")
    replay_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = Field(
        64 << 20, description="read back for viewers who are behind, in memory of one process"
    )
    start_by: Seconds = Field(60, description="a ticket must be redeemed within")
    log_ttl: Seconds = Field(600, description="a stream is kept after its end for")
    max_run: Seconds = Field(600, description="longest run")
    heartbeat: Annotated[float, Field(gt=0, le=15)] = Field(15, description="longest silence")
    grace: Seconds = Field(30, description="a run goes on without any viewer for")
    lease: Annotated[float, Field(ge=1, le=60)] = Field(
        10, description="a replica silent for this long is dead"
    )
    drain: Seconds = Field(60, description="runs may go on after SIGTERM for")
    write_timeout: Seconds = Field(30, description="a viewer that reads nothing is dropped after")
    max_streams: int = Field(20_000, ge=1, description="open streams and runs of one process")
    subject_bytes: Count = Field(
        64 << 20, description="requests of one user that wait or run, in Redis; 0 = no bound"
    )
    subject_streams: Count = Field(
        5000, description="runs of one user in one process; 0 = no bound"
    )
    subject_viewers: Count = Field(
        5000, description="open streams of one user in one process; 0 = no bound"
    )
    events_keep: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1000, description="messages kept in the channel of one user"
    )
    events_ttl: Seconds = Field(86400, description="and for how long")
    store_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="part of Redis's maxmemory that new tickets may fill; 1 = all"
    )
    upstream_connect: Seconds = Field(10, description="longest wait for a connection")
    upstream_first_byte: Annotated[float, Field(ge=0)] = Field(
        0, description="longest wait for the first byte; 0 = as upstream_stall"
    )
    upstream_stall: Seconds = Field(60, description="longest silence of the upstream")
    upstream_retries: int = Field(2, ge=0, le=10, description="further attempts after a refusal")
    log_level: str = Field("info", description="debug, info, warning or error")
    presets: dict[str, Preset] = Field({}, description="in the TOML file, or in code")
    limits: UserLimits = Field(NONE, description="for each user, over all presets; as presets")

    def __init__(self, **values: Unpack[Values]) -> None:
        super().__init__(**values)

    @field_validator("*", mode="before")
    @classmethod
    def _tidy(cls, value: Any) -> Any:
        return tidy(value)

    _tokens = field_validator("service_tokens")(tokens)

    _split = field_validator(
        *("secrets", "cookie_secrets", "service_tokens", "allowed_origins"),
        *("jwt_algorithms", "jwt_audience", "trusted_proxies"),
        mode="before",
    )(listed)

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    _headers = field_validator("auth_header", "forward_auth_header")(header_name)
    _proxies = field_validator("trusted_proxies")(networks)
    _origins = field_validator("allowed_origins")(origins)
    _path = field_validator("prefix")(path)

    @field_validator("upstream_url", "public_url", "jwt_jwks_url", "forward_auth_url")
    @classmethod
    def _url(cls, value: str) -> str:
        value = http_url(value.strip())
        return value.rstrip("/") if value.count("/") == 3 else value

    @field_validator("public_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @model_validator(mode="after")
    def _files_were_read(self) -> "Settings":
        for name in SECRET:
            if getattr(self, name + FILE) and not getattr(self, name):
                raise ValueError(f"{PREFIX}{name.upper()}{FILE.upper()}: only `load` reads it")
        return self

    @model_validator(mode="after")
    def _one_path(self) -> "Settings":
        path = urlsplit(self.public_url).path
        if path and not f"{path}/".startswith(f"{self.prefix}/"):
            raise ValueError(f"GATEWAY_PREFIX: {self.prefix}, but GATEWAY_PUBLIC_URL says {path}")
        return self

    @model_validator(mode="after")
    def _presets_have_a_url(self) -> "Settings":
        faults = [each for name in self.presets for each in self._url_faults(name)]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _url_faults(self, name: str) -> Iterator[str]:
        preset = self.presets[name]
        url = preset.url or self.upstream_url
        if not url:
            yield f"presets.{name}: no url, and no upstream_url to fall back on"
        try:
            http_url(preset.url)
            yield from (f"presets.{name}.{each}" for each in endpoint_faults(preset, url))
        except ValueError as error:
            yield f"presets.{name}.url: {error}"

    @model_validator(mode="after")
    def _fallbacks_lead_on(self) -> "Settings":
        faults = [*fallback_faults({"default": DEFAULT, **self.presets})]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what is shown of it: no login and no key in any URL."""
        for name, value in super().__repr_args__():
            yield name, redacted(value) if isinstance(value, str) else value

    @property
    def embedded(self) -> bool:
        """Whether the store is inside this process."""
        return not self.redis_url


class Row(NamedTuple):
    """One line of the table of settings."""

    name: str
    default: str
    help: str


def table() -> Iterator[Row]:
    """Yield every setting that has an environment variable."""
    for name, field in Settings.model_fields.items():
        if name not in ("presets", "limits"):
            yield Row(PREFIX + name.upper(), _shown(field.default), field.description or "")


def load(flags: dict[str, Any], before: Settings | None = None) -> Settings:
    """Return the settings; raises SettingsError with a line for each that is wrong.

    With those of `before`, what secrets' files held then is taken again: one may have been a pipe.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    path = given.get("config") or os.environ.get(PREFIX + "CONFIG", "")
    from_file = _read(Path(path)) if path else {}
    if "presets" in from_file:
        from_file["presets"] = with_keys(from_file["presets"], os.environ, f"{path}: ")
    variables = {
        name: value
        for name in Settings.model_fields
        if (value := os.environ.get(PREFIX + name.upper())) is not None
    }
    # An empty variable does not beat the file: compose passes on what nobody has set.
    from_environment = {name: value for name, value in variables.items() if value}
    held = {name: _plain(getattr(before, name)) for name in SECRET} if before else {}
    files = mounted((given, from_environment, from_file), PREFIX, held)
    try:
        return Settings(**{**variables, **from_file, **from_environment, **given, **files})
    except ValidationError as error:
        raise SettingsError(fault_lines(error, Settings.model_fields, PREFIX, path)) from None


def as_variables(flags: dict[str, Any], loaded: Settings) -> dict[str, str]:
    """Return given flags as environment variables, for a process that is to be set alike.

    What a file held goes along as it was read: it may be a pipe, and all must have the same.
    """
    given = {PREFIX + name.upper(): value for name, value in flags.items() if value is not None}
    for name in SECRET:
        variable = PREFIX + name.upper()
        if given.get(variable + FILE.upper()) or os.environ.get(variable + FILE.upper()):
            given |= {variable: _plain(getattr(loaded, name)), variable + FILE.upper(): ""}
    return given


def shown_to_all(flags: dict[str, Any]) -> Iterator[str]:
    """Yield a warning for every flag that holds a secret: all users of the machine can read it."""
    for name, value in flags.items():
        if value and (redacted(value) != value or (name in SECRET and name != "redis_url")):
            flag = "--" + name.replace("_", "-")
            ways = [f"{flag}-file"] * (name in SECRET) + [PREFIX + name.upper()]
            yield f"{flag} shows a secret in the list of processes; use {' or '.join(ways)}"


def unknown_names() -> Iterator[str]:
    """Yield a hint for every GATEWAY_ variable that no setting has: most often a typing mistake."""
    known = [row.name for row in table()]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known and name not in _OTHER_NAMES:
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{PREFIX}CONFIG: cannot read {path}: {error}") from None


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return joined([_plain(each) for each in value])
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if default is PydanticUndefined or default in ("", ()):
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)
