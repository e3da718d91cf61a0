"""What is told of an end, and that others can verify it."""

import base64
import json

from gateway.webhooks.message import (
    headers,
    message,
    message_id,
    of_receiver,
    receiver_of,
    signature,
)

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
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    told = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
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
