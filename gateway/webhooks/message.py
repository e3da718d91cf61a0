"""Message: what a receiver is told of an end, and its signature (Standard Webhooks). Pure."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Fields = Mapping[bytes, bytes]


def receiver_of(preset: str, url: str) -> str:
    """Return how a record names who is told of its end: by preset, whose secret signs, and URL."""
    return f"{preset} {url}"


def of_receiver(receiver: str) -> tuple[str, str]:
    """Return the preset and the URL."""
    preset, _, url = receiver.rpartition(" ")
    return preset, url


def message_id(stream_id: str, fields: Fields) -> str:
    """Return the id of a message, the same at each try.

    A key that is repeated may begin another stream under the same id: when it was asked for tells.
    """
    return f"msg_{stream_id}_{fields.get(b'issued', b'0').decode()}"


def message(stream_id: str, fields: Fields, text: bytes | None) -> bytes:
    """Return the body of a message; `text` is JSON without its quotes, None if nobody has it."""
    result = json.loads(fields.get(b"result") or b"{}")
    when = datetime.fromtimestamp(int(fields[b"at"]) / 1000, UTC)
    head = {
        "stream_id": stream_id,
        "subject": _text(fields, b"subject"),
        "preset": result.get("preset") or _text(fields, b"preset"),
        "ref": _text(fields, b"ref") or None,
        "state": _text(fields, b"state"),
    }
    names = ("finish_reason", "usage", "tokens", "attempts")
    told = b"null" if text is None else b'"%b"' % text
    parts = (
        b'{"type":"stream.ended","timestamp":%b,"data":{' % _json(_written(when)),
        *(_json(head)[1:-1], b',"text":', told, b","),
        *(_json({name: result.get(name) for name in names})[1:-1], b"}}"),
    )
    return b"".join(parts)


def signature(key: bytes, name: str, seconds: int, body: bytes) -> str:
    """Return the signature of a message that is sent at a time."""
    mac = hmac.new(key, f"{name}.{seconds}.".encode(), hashlib.sha256)
    mac.update(body)
    return "v1," + b64encode(mac.digest()).decode()


def headers(key: bytes, name: str, seconds: int, body: bytes) -> list[tuple[str, str]]:
    """Return the headers of a message; `seconds` is the time of the try, since 1970."""
    return [
        ("content-type", "application/json"),
        ("webhook-id", name),
        ("webhook-timestamp", str(seconds)),
        ("webhook-signature", signature(key, name, seconds, body)),
    ]


def _text(fields: Fields, name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "surrogatepass")


def _written(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
