"""Values: what each setting takes in code, for whoever checks types; `Settings` says what they are.

As pydantic makes what it keeps from more than that, a checker that reads its fields refuses a plain
string for a secret.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pydantic import SecretStr

Secret = str | SecretStr
Secrets = Secret | Sequence[Secret]
Names = str | Sequence[str]


class Values(TypedDict, total=False):
    """The settings by name; times are in seconds, sizes in bytes."""

    redis_url: str
    redis_url_file: str
    secrets: Secrets
    secrets_file: str
    upstream_url: str
    upstream_api_key: Secret
    upstream_api_key_file: str
    auth: str
    cookie_name: str
    cookie_secrets: Secrets
    cookie_secrets_file: str
    cookie_max_age: float
    subject_field: str
    jwt_jwks_url: str
    jwt_public_key: str
    jwt_algorithms: Names
    jwt_audience: Names
    jwt_issuer: str
    forward_auth_url: str
    forward_auth_header: str
    forward_auth_ttl: float
    forward_auth_timeout: float
    auth_header: str
    trusted_proxies: Names
    service_tokens: Secrets
    service_tokens_file: str
    allowed_origins: Names
    public_url: str
    prefix: str
    config: str
    max_head: int
    head_timeout: float
    max_body: int
    body_timeout: float
    idle_timeout: float
    max_event: int
    max_log: int
    replay_bytes: int
    start_by: float
    log_ttl: float
    max_run: float
    heartbeat: float
    grace: float
    lease: float
    drain: float
    write_timeout: float
    max_streams: int
    subject_bytes: int
    subject_streams: int
    subject_viewers: int
    events_keep: int
    events_ttl: float
    store_share: float
    upstream_connect: float
    upstream_first_byte: float
    upstream_stall: float
    upstream_retries: int
    log_level: str
    presets: Mapping[str, Any]
    limits: Mapping[str, int | float]
