"""Requests go on as they came: nothing grows, nothing is rewritten, nothing unseen is sent."""

import json
from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.request_body import PreparedRequest, RequestBody
from tests.support import ask, running, scripted, whole


def sent(text: str | bytes, **members: Any) -> bytes:
    """Return what goes to the upstream for a body, after a preset of these members."""
    return asked(text, **members).text


def asked(text: str | bytes, **members: Any) -> PreparedRequest:
    """Return what a preset of these members makes of a body."""
    preset = Preset.model_validate({"include_usage": False, **members})
    return RequestBody(text.encode() if isinstance(text, str) else text).made(preset)


def refused(text: str | bytes, **members: Any) -> str:
    """Return the code of a refusal."""
    with pytest.raises(Rejected) as caught:
        sent(text, **members)
    return caught.value.code


NUMBERS = [
    *("1.0", "1.10", "1e5", "1E+5", "-0", "-0.0", "12345678901234567890123", "0.1e-7", "3"),
    "0.1000000000000000055511151231257827",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_goes_on_as_it_was_written(number: str) -> None:
    assert sent(f'{{"stream":true,"a":{number},"b":[{number}]}}') == (
        f'{{"stream":true,"a":{number},"b":[{number}]}}'.encode()
    )


@pytest.mark.parametrize(
    "text", ["é", "😀", "\u2028", "\x7f", r"\n\t\"\\\/", r"\u00e9", r"\ud83d\ude00"]
)
def test_a_text_goes_on_as_it_was_written(text: str) -> None:
    body = f'{{"stream":true,"a":"{text}"}}'
    assert sent(body) == body.encode()


def test_an_emoji_takes_no_more_room_than_it_came_with() -> None:
    body = json.dumps(ask("😀" * 1000), ensure_ascii=False)
    assert len(sent(body)) < len(body.encode()) + 20


def test_what_is_missing_is_added_and_the_rest_stays() -> None:
    assert sent('{ "a" : 1.0 ,\n"b":[ 2.50 ] }') == b'{"a":1.0,"b":[ 2.50 ],"stream":true}'


def test_what_a_preset_sets_is_sent_and_what_it_replaces_is_not() -> None:
    got = sent(
        '{"n":5,"stream":true,"seed":1.0}', defaults={"seed": 2, "user": "ü"}, force={"n": 1}
    )
    assert got == '{"seed":1.0,"user":"ü","n":1,"stream":true}'.encode()


def test_stream_options_are_sent_as_they_were_seen() -> None:
    body = '{"stream_options":{"include_usage":true,"include_usage":false},"stream":true}'
    assert (
        sent(body, include_usage=True)
        == b'{"stream_options":{"include_usage":false},"stream":true}'
    )


@pytest.mark.parametrize("first", ["model", r"m\u006fdel"])
@pytest.mark.parametrize("second", ["model", r"\u006dodel"])
def test_of_a_name_that_comes_twice_only_what_was_checked_is_sent(first: str, second: str) -> None:
    body = f'{{"{first}":"dear","stream":true,"{second}":"cheap"}}'
    assert sent(body, models=["cheap"]) == b'{"model":"cheap","stream":true}'
    body = f'{{"{first}":"cheap","stream":true,"{second}":"dear"}}'
    assert refused(body, models=["cheap"]) == "model_not_allowed"


def test_a_member_of_another_case_is_not_what_was_checked() -> None:
    """Upstreams written in Go take it for the same."""
    body = '{"model":"cheap","Model":"dear","MODEL":"dear","\u017ftream":false,"N":9,"other":1}'
    got = sent(body, models=["cheap"], force={"n": 1})
    assert json.loads(got) == {"model": "cheap", "other": 1, "n": 1, "stream": True}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rb'{"stream":true,"a":"\ud800"}', rb'{"stream":true,"a":"\ud800"}'),
        (b'{"stream":true,"a":"\xed\xa0\x80"}', rb'{"stream":true,"a":"\ud800"}'),
        (b'{"stream":true,"a":"\\\\\xed\xa0\x80"}', rb'{"stream":true,"a":"\\\ud800"}'),
        (rb'{"stream":true,"\udfff":1}', rb'{"stream":true,"\udfff":1}'),
        (b'{"stream":true,"a":"\xed\xa0\xbd\xed\xb8\x80"}', rb'{"stream":true,"a":"\ud83d\ude00"}'),
    ],
)
def test_half_a_surrogate_pair_survives_as_its_escape(data: bytes, expected: bytes) -> None:
    assert sent(data) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_another_unicode_encoding_goes_on_as_utf_8(encoding: str) -> None:
    assert sent('{"stream":true,"a":"é"}'.encode(encoding)) == '{"stream":true,"a":"é"}'.encode()


def test_a_body_of_very_many_members_is_sent_too() -> None:
    many = {"stream": True, **{f"é{number}": number for number in range(5000)}}
    assert json.loads(sent(json.dumps(many))) == many


@pytest.mark.parametrize("space", ["", " ", "\t\r\n "])
def test_white_space_is_allowed_wherever_json_allows_it(space: str) -> None:
    body = '@{@"a"@:@[1,@2]@,@"stream"@:@true@}@'.replace("@", space)
    assert json.loads(sent(body)) == {"a": [1, 2], "stream": True}
    assert sent(f"{space}{{{space}}}{space}") == b'{"stream":true}'


BROKEN = [
    *(
        "{",
        "}",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,',
        '{"a":1,}',
        "{,}",
        '{"a" 1}',
        '{"a":1 "b":2}',
    ),
    *("{a:1}", "{'a':1}", '{"a":1}}', '{"a":1}1', '{"a":01}', '{"a":+1}', '{"a":.5}', '{"a":1.}'),
    *('{"a":nul}', '{"a":NaN}', '{"a":-Infinity}', '{"a":1e400}', '{"a":[1e400]}', '{"a":"\t"}'),
    *(
        "{1:2}",
        '{"a":1;"b":2}',
        '{"a"::1}',
        '{"a":1,,"b":2}',
        "\x0b{}",
        '{"a":1}\x00',
        '{"a":"\\x"}',
    ),
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_json_is_refused(text: str) -> None:
    assert refused(text) == "not_json"


@pytest.mark.parametrize("body", [{"who": "you"}, {"who": "you", "model": "small"}])
def test_a_fallback_that_is_a_role_names_its_own_model(body: dict[str, Any]) -> None:
    told: dict[str, Any] = {
        "models": ["large", "larger"],
        "fields": ["model"] if "model" in body else None,
        "template": [{"role": "user", "content": "Hello ${who}"}],
        "variables": {"who": {}},
        "defaults": {"model": "larger"},
    }
    made = RequestBody(json.dumps(body).encode()).instead(Preset.model_validate(told))
    assert json.loads(made.text)["model"] == "larger"


def test_the_same_request_in_other_words_has_the_same_digest() -> None:
    one = asked('{"a":"é","b":1e3,"stream":true}')
    other = asked('{ "b" : 1000.0, "a":"\\u00e9" }')
    assert (one.digest, one.text == other.text) == (other.digest, False)
    assert asked('{"a":"é","b":1e3,"c":null}').digest != one.digest


async def test_a_request_reaches_its_upstream_as_it_came(redis_url: str) -> None:
    body = '{"model":"pretend","stream":true,"seed":12345678901234567890123,"t":1.0,"u":"😀\\ud800"'
    async with (
        scripted(whole) as upstream,
        running(redis_url=redis_url, upstream_url=upstream.url) as gate,
    ):
        headers = {**gate.cookie(), "Content-Type": "application/json"}
        answer = await gate.http.post("/tickets", content=f"{body}}}".encode(), headers=headers)
        assert (await gate.read(answer.json()["stream_url"])).end["state"] == "done"
    assert upstream.calls[0].body == f'{body},"stream_options":{{"include_usage":true}}}}'.encode()


@pytest.mark.parametrize("nest", ['{{"a":{}}}', "[{}]", '[1,{{"b":[[{}]]}}]'])
def test_every_python_takes_bodies_of_the_same_depth(nest: str) -> None:
    """3.13 took ten times what 3.11 could read: a redeemed ticket broke its run."""
    deep = "[]"
    for _ in range(45):
        deep = nest.format(deep)
    assert sent(f'{{"stream":true,"a":{deep}}}')
    for _ in range(200):
        deep = nest.format(deep)
    assert refused(f'{{"a":{deep}}}') == "not_json"


def test_the_deepest_body_has_two_hundred_levels() -> None:
    for levels, fits in ((199, True), (200, False)):
        text = f'{{"a":{"[" * levels}{"]" * levels},"stream":true}}'
        assert bool(sent(text)) if fits else refused(text) == "not_json"
    assert sent(f'{{"a":[{"[]," * 999}[]],"stream":true}}')  # Wide is not deep.
