"""What is told of an end, and that others can verify it."""

import base64
import json
import re
import subprocess
import time
from pathlib import Path
from shutil import which
from typing import Any

from gateway.webhooks.message import (
    headers,
    message,
    message_id,
    of_receiver,
    receiver_of,
    signature,
)
from tests.support import missing

DOCUMENT = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))
FIELDS = {
    b"at": b"1674087231123",
    b"issued": b"1674087230000",
    b"subject": "zoë".encode(),
    b"preset": b"default",
    b"state": b"done",
    b"result": b'{"finish_reason":"stop","usage":{"total_tokens":3},"preset":"spare","attempts":2}',
}


def test_the_signature_is_that_of_the_specification() -> None:
    """The example that Standard Webhooks gives of its own."""
    told = signature(KEY, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert told == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_try_is_signed_with_its_own_time_under_the_same_id() -> None:
    first, second = (dict(headers(b"key", "msg_1", when, b"{}")) for when in (1, 2))
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_a_message_has_what_the_end_told_and_when_that_was() -> None:
    assert json.loads(message("s1", FIELDS, b'two \\"words\\"\\n')) == {
        "type": "stream.ended",
        "timestamp": "2023-01-19T00:13:51.123Z",
        "data": {
            "stream_id": "s1",
            "subject": "zoë",
            "preset": "spare",
            "ref": None,
            "state": "done",
            "text": 'two "words"\n',
            "finish_reason": "stop",
            "usage": {"total_tokens": 3},
            "tokens": None,
            "attempts": 2,
        },
    }


def test_a_text_that_nobody_has_any_more_is_null() -> None:
    told = json.loads(message("s1", {**FIELDS, b"ref": b"mine", b"result": b"{}"}, None))["data"]
    assert (told["text"], told["ref"], told["preset"]) == (None, "mine", "default")


def test_half_a_character_of_a_model_is_still_json() -> None:
    assert json.loads(message("s1", FIELDS, b"\\ud83d"))["data"]["text"] == "\ud83d"


def test_an_id_is_that_of_the_stream_and_of_when_it_was_asked_for() -> None:
    assert message_id("s1", FIELDS) == "msg_s1_1674087230000"
    assert message_id("s1", FIELDS) != message_id("s1", {**FIELDS, b"issued": b"1674087230001"})


def test_a_receiver_is_a_preset_and_a_url() -> None:
    assert of_receiver(receiver_of("a preset", "https://x/y")) == ("a preset", "https://x/y")


def block(language: str) -> str:
    """Return what the document tells to paste."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def cases() -> list[tuple[dict[str, str], bytes, bool]]:
    """Return messages, and whether each is to be believed."""
    body, now = message("s1", FIELDS, "grüße".encode()), int(time.time())
    good, old = (dict(headers(KEY, "msg_s1_1", when, body)) for when in (now, now - 400))
    two = {**good, "webhook-signature": f"v1,bm90aGluZw== {good['webhook-signature']}"}
    other = dict(headers(b"another key", "msg_s1_1", now, body))
    return [
        *((good, body, True), (two, body, True), (old, body, False), (good, body + b" ", False)),
        *((other, body, False), ({**good, "webhook-id": "msg_s1_2"}, body, False)),
    ]


def test_the_documented_python_believes_what_is_ours_alone() -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    for sent, body, believed in cases():
        assert names["verify"](SECRET, sent, body) is believed, sent


def test_the_documented_javascript_believes_what_is_ours_alone(tmp_path: Path) -> None:
    if which("node") is None:
        missing("node")
    (tmp_path / "verify.mjs").write_text(block("js"), "utf-8")
    told = [[sent, body.decode()] for sent, body, _ in cases()]
    lines = f"""import {{verify}} from "./verify.mjs";
        const told = {json.dumps(told)}.map(([sent, body]) =>
            verify("{SECRET}", sent, Buffer.from(body)));
        console.log(JSON.stringify(told));"""
    (tmp_path / "run.mjs").write_text(lines, "utf-8")
    ran = subprocess.run(
        ["node", str(tmp_path / "run.mjs")], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == [believed for _, _, believed in cases()]
