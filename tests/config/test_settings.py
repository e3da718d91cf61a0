"""Settings: one table for flags, environment, file, help and docs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.config import settings as settings_
from gateway.config.preset_book import PresetBook
from gateway.config.settings import Row, Settings, as_variables, load, table, unknown_names
from gateway.errors import SettingsError

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "sk-a-secret-that-nobody-may-see"

Setenv = Callable[[str, str], None]
WriteToml = Callable[[str], dict[str, Any]]
Mount = Callable[[str | bytes], str]


@pytest.fixture(autouse=True)
def setenv(monkeypatch: pytest.MonkeyPatch) -> Setenv:
    """Take all GATEWAY_ variables away; return how to set one, by its setting's name."""
    for row in table():
        monkeypatch.delenv(row.name, raising=False)
    return lambda name, value: monkeypatch.setenv(f"GATEWAY_{name.upper()}", value)


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    """Return how to write a TOML file; it gives the flags that name it."""

    def write(text: str) -> dict[str, Any]:
        path = tmp_path / "gateway.toml"
        path.write_text(text, "utf-8")
        return {"config": str(path)}

    return write


def wrong(**flags: Any) -> str:
    """Return the one line that says what is wrong."""
    with pytest.raises(SettingsError) as caught:
        load(flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where a value comes from


def test_nothing_given_is_the_defaults_of_the_table() -> None:
    loaded = load({})
    assert loaded.embedded
    assert (loaded.start_by, loaded.log_ttl, loaded.grace, loaded.drain) == (60, 600, 30, 60)
    assert (loaded.auth, loaded.cookie_name, loaded.secrets) == ("signed", "", ())


def test_a_variable_wins_over_the_default(setenv: Setenv) -> None:
    setenv("drain", "7")
    assert load({}).drain == 7


def test_the_file_wins_over_the_default(toml: WriteToml) -> None:
    assert load(toml("drain = 7")).drain == 7


def test_a_variable_wins_over_the_file(setenv: Setenv, toml: WriteToml) -> None:
    setenv("drain", "7")
    loaded = load(toml("drain = 8\ngrace = 9"))
    assert (loaded.drain, loaded.grace) == (7, 9)


def test_a_flag_wins_over_variable_and_file(setenv: Setenv, toml: WriteToml) -> None:
    setenv("drain", "7")
    assert load({**toml("drain = 8"), "drain": "9"}).drain == 9


def test_a_flag_not_given_is_none_and_decides_nothing(setenv: Setenv) -> None:
    setenv("drain", "7")
    assert load({"drain": None}).drain == 7


def test_the_file_may_be_named_by_a_variable(setenv: Setenv, toml: WriteToml) -> None:
    setenv("config", toml("drain = 8")["config"])
    assert load({}).drain == 8


def test_a_flag_names_another_file_than_the_variable(setenv: Setenv, toml: WriteToml) -> None:
    setenv("config", "/nowhere.toml")
    assert load(toml("drain = 8")).drain == 8


@pytest.mark.parametrize(
    "text", ["a://a,b://b", " a://a , b://b ", "a://a,,b://b/,", ",a://a,b://b"]
)
def test_lists_are_split_at_commas(text: str, setenv: Setenv) -> None:
    setenv("secrets", text)
    setenv("allowed_origins", text)
    loaded = load({})
    assert [each.get_secret_value().rstrip("/") for each in loaded.secrets] == ["a://a", "b://b"]
    assert loaded.allowed_origins == ("a://a", "b://b")


def test_an_empty_variable_does_not_beat_the_file(setenv: Setenv, toml: WriteToml) -> None:
    for name in ("secrets", "allowed_origins", "public_url"):
        setenv(name, "")
    loaded = load(toml('secrets = "a"\nallowed_origins = "https://b"\npublic_url = "https://c"'))
    assert [each.get_secret_value() for each in loaded.secrets] == ["a"]
    assert (loaded.allowed_origins, loaded.public_url) == (("https://b",), "https://c")


def test_lists_may_be_lists_in_the_file(toml: WriteToml) -> None:
    loaded = load(toml('secrets = ["a,b", "c"]\nallowed_origins = "http://x, capacitor://y"'))
    assert [each.get_secret_value() for each in loaded.secrets] == ["a,b", "c"]
    assert loaded.allowed_origins == ("http://x", "capacitor://y")


@pytest.mark.parametrize("text", ['["a,b", "c"]', ' [ "a,b" ,\n"c"\n]\n', '["a,b", " c ", ""]'])
@pytest.mark.parametrize("way", ["flag", "variable", "file of its own", "TOML"])
def test_a_list_may_be_one_of_json_where_a_secret_has_a_comma(
    text: str, way: str, setenv: Setenv, toml: WriteToml, mount: Mount
) -> None:
    if way == "variable":
        setenv("cookie_secrets", text)
    given: dict[str, dict[str, Any]] = {
        "flag": {"cookie_secrets": text},
        "file of its own": {"cookie_secrets_file": mount(text)},
        "TOML": toml(f"cookie_secrets = '''{text}'''") if way == "TOML" else {},
    }
    loaded = load(given.get(way, {}))
    assert [each.get_secret_value() for each in loaded.cookie_secrets] == ["a,b", "c"]
    # A worker process has the same by its variables.
    told = as_variables({"cookie_secrets_file": mount(text)}, loaded)["GATEWAY_COOKIE_SECRETS"]
    again = load({"cookie_secrets": told})
    assert again.cookie_secrets == loaded.cookie_secrets


@pytest.mark.parametrize(
    "text",
    [
        *('["a,b", "c"', '["a,b", 5]', '["a,b"],c', '["' + "[" * 50_000),
        *('[ "a,b"', "['a,b', 'c']", '[\n  "a,b",\n  "c",\n]\n'),
    ],
)
@pytest.mark.parametrize("name", ["secrets", "secrets_file"])
def test_what_only_begins_as_a_json_list_is_not_split_into_secrets(
    text: str, name: str, mount: Mount
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: mount(text) if name == "secrets_file" else text})
    assert str(caught.value) == "GATEWAY_SECRETS: begins as a JSON list of strings, and is none"


@pytest.mark.parametrize("text", ['["\\ud800"]', "a,\udcff"])
def test_what_no_secret_can_be_is_refused_before_it_is_used(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"cookie_secrets": text})
    assert str(caught.value) == "GATEWAY_COOKIE_SECRETS: has a character that is none in UTF-8"


@pytest.mark.parametrize("text", ["[a,b]", "[1,2]", "[", "[[]]"])
def test_a_secret_may_begin_with_a_bracket(text: str) -> None:
    loaded = load({"secrets": text})
    assert [each.get_secret_value() for each in loaded.secrets] == text.split(",")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).drain = 5


def test_given_flags_are_the_variables_of_a_process_set_alike(setenv: Setenv) -> None:
    flags = {"drain": "7", "grace": None, "secrets": "a,b"}
    for name, value in as_variables(flags, load(flags)).items():
        setenv(name.removeprefix("GATEWAY_"), value)
    loaded = load({})
    assert (loaded.drain, loaded.grace, len(loaded.secrets)) == (7, 30, 2)


# What is wrong is said in one line that names it


WRONG = [
    *(("max_body", "x"), ("max_body", "10"), ("max_body", "1.5"), ("max_body", str(1 << 40))),
    *(("drain", "0"), ("drain", "-1"), ("drain", "nan"), ("drain", "inf"), ("drain", "")),
    *(("heartbeat", "16"), ("heartbeat", "0"), ("lease", "0.5"), ("lease", "61")),
    *(("start_by", "ten"), ("max_streams", "0"), ("upstream_retries", "11")),
    *(("upstream_first_byte", "-1"), ("auth_header", "a b"), ("auth_header", "Cookie")),
    *(("trusted_proxies", "10.0.0.0/33"), ("trusted_proxies", "proxy"), ("jwt_jwks_url", "keys")),
    *(("forward_auth_url", "http://"), ("forward_auth_ttl", "-1"), ("forward_auth_timeout", "0")),
    *(("upstream_url", "localhost:80"), ("public_url", "gw.example"), ("log_level", "loud")),
    *(("public_url", "https://"), ("allowed_origins", "app.example"), ("allowed_origins", "*")),
    *(("allowed_origins", "https://app.example/a"), ("upstream_url", "http:///v1")),
    *(
        ("prefix", "llm"),
        ("prefix", "/"),
        ("prefix", "/llm/"),
        ("prefix", "/a//b"),
        ("prefix", "//b"),
    ),
    *(("prefix", "/a b"), ("prefix", "/a;b"), ("prefix", "/a?b"), ("prefix", "/a/../b")),
    *(
        ("prefix", "/."),
        ("prefix", "/a%2f"),
        ("prefix", "/ä"),
        ("prefix", "/{a}"),
    ),
    ("prefix", "/" + "a" * 200),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_variable_is_named(name: str, value: str, setenv: Setenv) -> None:
    setenv(name, value)
    assert wrong().startswith(f"GATEWAY_{name.upper()}: ")


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_flag_is_named(name: str, value: str) -> None:
    assert wrong(**{name: value}).startswith(f"GATEWAY_{name.upper()}: ")


@pytest.mark.parametrize("line", ["drain = []", "drain = {}", "drain = '1s'", "secrets = 5"])
def test_a_wrong_type_in_the_file_is_named(line: str, toml: WriteToml) -> None:
    assert wrong(**toml(line)).startswith(f"GATEWAY_{line.split()[0].upper()}")


def test_an_unknown_name_in_the_file_gets_a_hint(toml: WriteToml) -> None:
    assert wrong(**toml("drian = 5")) == "drian is no setting; did you mean drain?"
    assert wrong(**toml("zzzzzz = 5")) == "zzzzzz is no setting"


def test_a_variables_name_in_the_file_is_unknown_too(toml: WriteToml) -> None:
    assert "GATEWAY_DRAIN is no setting" in wrong(**toml("GATEWAY_DRAIN = 5"))


@pytest.mark.parametrize(
    "text", ["drain 5", "drain = ", "[presets", 'a = "\\q"', "drain = 1\ndrain = 2"]
)
def test_a_file_that_is_no_toml_is_named(text: str, toml: WriteToml) -> None:
    assert re.match(r"GATEWAY_CONFIG: cannot read .*gateway\.toml: ", wrong(**toml(text)))


def test_a_file_that_is_missing_a_folder_or_binary_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "", "binary"):
        assert wrong(config=str(tmp_path / name)).startswith("GATEWAY_CONFIG: cannot read ")


@pytest.mark.parametrize("text", ["x", "5", "[]", "{", '{"a": {"stall": -1}}'])
def test_presets_in_a_variable_break_nothing(text: str, setenv: Setenv) -> None:
    setenv("presets", text)
    assert "presets" in wrong().lower()


# Secrets


def full(toml: WriteToml) -> Settings:
    """Return settings with a secret wherever one can be."""
    preset = f'url = "http://u/"\napi_key = "{SECRET}"\nheaders = {{ api-key = "{SECRET}" }}'
    flags = dict.fromkeys(("secrets", "cookie_secrets", "upstream_api_key"), SECRET)
    redis = f"redis://user:{SECRET}@127.0.0.1:6379/0"
    return load({**toml(f"[presets.p]\n{preset}"), **flags, "redis_url": redis})


@pytest.mark.parametrize(
    "name", ["secrets", "cookie_secrets", "upstream_api_key", "redis_url", "presets"]
)
@pytest.mark.parametrize("shown", [repr, str])
def test_a_secret_is_not_shown(name: str, shown: Callable[[Any], str], toml: WriteToml) -> None:
    given = full(toml)
    alone = Settings.model_construct(**{name: getattr(given, name)})
    assert SECRET not in shown(alone)


@pytest.mark.parametrize(
    "text", [f"secrets = {{ a = '{SECRET}' }}", f"upstream_api_key = ['{SECRET}']"]
)
def test_a_secret_is_not_shown_by_what_is_wrong_with_it(text: str, toml: WriteToml) -> None:
    assert SECRET not in wrong(**toml(text))


NAMES = ["upstream_api_key", "secrets", "cookie_secrets", "upstream_url", "public_url", "redis_url"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n"])
def test_the_end_of_a_mounted_secrets_line_is_no_part_of_it(
    name: str, end: str, setenv: Setenv
) -> None:
    value = "https://gw.example/x" if name.endswith("url") else SECRET
    setenv(name, value + end)
    bare = {name: value}
    assert getattr(load({}), name) == getattr(load(bare), name) != ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inside", ["\r\nX-Smuggled: 1\r\n", "\n", "\x00", "\x1b[31m"])
def test_a_control_character_inside_stops_the_start_and_is_not_shown(
    name: str, inside: str
) -> None:
    value = f"https://{SECRET}{inside}x" if name.endswith("url") else f"{SECRET}{inside}x"
    said = wrong(**{name: value})
    assert said.startswith(f"GATEWAY_{name.upper()}: ")
    assert SECRET not in said


def test_a_list_may_have_an_item_a_line(setenv: Setenv) -> None:
    setenv("secrets", "one,\ntwo\n")
    assert [each.get_secret_value() for each in load({}).secrets] == ["one", "two"]


def test_no_login_and_no_key_in_a_url_is_shown(toml: WriteToml) -> None:
    url = f"https://me:{SECRET}@u/v1?api-version=1&key={SECRET}&{SECRET}#{SECRET}"
    given = load({**toml(f'[presets.p]\nurl = "{url}"'), "upstream_url": url, "public_url": url})
    for shown in (repr(given), str(given), repr(PresetBook(given).get("p")), str(given.presets)):
        assert SECRET not in shown
        assert "https://***@u/v1?api-version=1&key=***&***#***" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_origins", f"https://me:{SECRET}@h/path"),
        ("upstream_url", f"ftp://me:{SECRET}@h/"),
        ("upstream_url", f"https://me:{SECRET}"),
        ("upstream_url", f"https://h:{SECRET}/"),
        ("public_url", f"{SECRET}"),
    ],
)
def test_what_is_wrong_with_an_address_does_not_quote_a_secret_of_it(name: str, value: str) -> None:
    assert SECRET not in wrong(**{name: value})


# Secrets in files


@pytest.fixture
def mount(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Return how to write a secret as it is mounted; it gives the path."""
    numbers = iter(range(100))

    def write(content: str | bytes) -> str:
        path = tmp_path / f"secret{next(numbers)}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", " \n"])
@pytest.mark.parametrize("way", ["flag", "variable", "file"])
def test_each_secret_may_be_in_a_file(
    end: str, way: str, mount: Mount, setenv: Setenv, toml: WriteToml
) -> None:
    values = {"secrets": "one,two", "cookie_secrets": "three", "upstream_api_key": "sk-four"}
    values["redis_url"] = "redis://:five@h:1/0"
    paths = {f"{name}_file": mount(value + end) for name, value in values.items()}
    if way == "variable":
        for name, path in paths.items():
            setenv(name, path)
    given = toml("\n".join(f'{n} = "{p}"' for n, p in paths.items())) if way == "file" else paths
    loaded = load(given if way != "variable" else {})
    assert [each.get_secret_value() for each in loaded.secrets] == ["one", "two"]
    assert [each.get_secret_value() for each in loaded.cookie_secrets] == ["three"]
    assert loaded.upstream_api_key.get_secret_value() == "sk-four"
    assert loaded.redis_url == values["redis_url"]
    assert not [each for each in ("one", "three", "four", "five") if each in repr(loaded)]


def test_secrets_in_a_file_may_be_one_a_line(mount: Mount) -> None:
    loaded = load({"secrets_file": mount("\ufeffnew\r\n\nold\n")})
    assert [each.get_secret_value() for each in loaded.secrets] == ["new", "old"]


@pytest.mark.parametrize("name", ["secrets", "cookie_secrets", "upstream_api_key", "redis_url"])
@pytest.mark.parametrize("content", [None, "", " \n", b"\xff\xfe", "x" * 70_000])
def test_a_file_without_a_secret_is_named_and_not_quoted(
    name: str, content: str | bytes | None, mount: Mount, tmp_path: Path
) -> None:
    path = str(tmp_path / "missing") if content is None else mount(content)
    said = wrong(**{f"{name}_file": path})
    assert said.startswith(f"GATEWAY_{name.upper()}_FILE: ")
    assert path in said
    assert "xxx" not in said


def test_a_folder_or_two_lines_are_no_secret(mount: Mount, tmp_path: Path) -> None:
    assert "Is a directory" in wrong(secrets_file=str(tmp_path))
    said = wrong(upstream_api_key_file=mount(f"{SECRET}\r\nX-Smuggled: 1"))
    assert "more than one line" in said
    assert SECRET not in said


def test_a_secret_and_its_file_are_not_both_given_in_one_place(
    mount: Mount, setenv: Setenv, toml: WriteToml
) -> None:
    path = mount("a")
    both = "GATEWAY_SECRETS and GATEWAY_SECRETS_FILE: both are given"
    assert wrong(secrets="b", secrets_file=path).startswith(both)
    assert wrong(**toml(f'secrets = "b"\nsecrets_file = "{path}"')).startswith(both)
    setenv("secrets", "b")
    setenv("secrets_file", path)
    assert wrong().startswith(both)


def test_the_nearer_of_a_secret_and_its_file_wins(
    mount: Mount, setenv: Setenv, toml: WriteToml
) -> None:
    def secret(flags: dict[str, Any]) -> str:
        return load(flags).secrets[0].get_secret_value()

    far = toml(f'secrets_file = "{mount("far")}"')
    setenv("secrets_file", "")
    assert secret(far) == "far"
    setenv("secrets", "near")
    assert secret(far) == "near"
    setenv("secrets", "")
    setenv("secrets_file", mount("nearer"))
    assert secret(toml('secrets = "far"')) == "nearer"
    assert secret({**far, "secrets": "nearest"}) == "nearest"
    setenv("secrets_file", "")
    setenv("secrets", "near")
    assert secret({**far, "secrets_file": mount("nearest")}) == "nearest"


def test_a_process_set_alike_has_what_a_file_held_when_it_was_read(
    mount: Mount, setenv: Setenv
) -> None:
    """The file may be a pipe, or another one by now: tickets of one process would be 404."""
    path, of_cookies = mount("one\ntwo\n"), mount("three")
    setenv("cookie_secrets_file", of_cookies)
    flags = {"secrets_file": path}
    loaded = load(flags)
    Path(path).unlink()
    Path(of_cookies).unlink()
    for name, value in as_variables(flags, loaded).items():
        setenv(name.removeprefix("GATEWAY_"), value)
    assert [each.get_secret_value() for each in load({}).secrets] == ["one", "two"]
    assert [each.get_secret_value() for each in load({}).cookie_secrets] == ["three"]


def test_a_presets_key_may_be_in_a_file_or_a_variable(
    mount: Mount, toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_ANOTHER", "two ")
    file, variable = f'api_key_file = "{mount(chr(65) * 9)}"', 'api_key_env = "OF_ANOTHER"'
    url = 'url = "http://u/"\n'
    loaded = load(toml(f"[presets.a]\n{url}{file}\n[presets.b]\n{url}{variable}"))
    assert [told(loaded, name)[1] for name in "ab"] == ["A" * 9, "two"]
    for wrong_one in (f'{file}\napi_key = "x"', f"{file}\n{variable}", 'api_key_env = "NO_SUCH"'):
        assert "gateway.toml: presets.a" in wrong(**toml(f"[presets.a]\n{url}{wrong_one}"))
    said = wrong(**toml(f'[presets.a]\n{url}api_key_file = "/no/such"'))
    assert "gateway.toml: presets.a.api_key_file: cannot read /no/such" in said


# Unknown variables


def test_an_unknown_variable_gets_a_hint(setenv: Setenv) -> None:
    setenv("drian", "5")
    setenv("zzzzzzzzzzzzzzzz", "5")
    assert list(unknown_names()) == [
        "GATEWAY_DRIAN is no setting; did you mean GATEWAY_DRAIN?",
        "GATEWAY_ZZZZZZZZZZZZZZZZ is no setting",
    ]


def test_an_unknown_variable_stops_nothing(setenv: Setenv) -> None:
    setenv("drian", "5")
    assert load({}).drain == 60


def test_no_setting_is_unknown(setenv: Setenv) -> None:
    for row in table():
        setenv(row.name.removeprefix("GATEWAY_"), "1")
    assert list(unknown_names()) == []


# Presets


PRESETS = """
upstream_url = "http://default/"
upstream_api_key = "default key"
upstream_connect = 1
upstream_stall = 2
max_run = 3
grace = 4
upstream_retries = 5

[presets.bare]

[presets.full]
url = "http://full/"
api_key = "full key"
connect = 11
first_byte = 12
stall = 13
max_run = 14
grace = 15
retries = 0

[presets.keyless]
url = "http://keyless/"
"""


def told(loaded: Settings, name: str) -> tuple[Any, ...]:
    """Return what a preset says once it is filled in."""
    got = PresetBook(loaded).get(name)
    assert got is not None
    times = (got.connect, got.first_byte, got.stall, got.max_run, got.grace, got.retries)
    return (got.url, got.api_key.get_secret_value(), *times)


@pytest.mark.parametrize("name", ["default", "bare"])
def test_what_a_preset_leaves_out_comes_from_the_settings(name: str, toml: WriteToml) -> None:
    loaded = load(toml(PRESETS))
    assert told(loaded, name) == ("http://default", "default key", 1, 2, 2, 3, 4, 5)


def test_what_a_preset_says_is_kept(toml: WriteToml) -> None:
    loaded = load(toml(PRESETS))
    assert told(loaded, "full") == ("http://full/", "full key", 11, 12, 13, 14, 15, 0)


def test_the_default_key_is_not_sent_to_another_url(toml: WriteToml) -> None:
    assert told(load(toml(PRESETS)), "keyless")[:2] == ("http://keyless/", "")


def test_a_key_of_its_own_goes_to_the_default_url(toml: WriteToml) -> None:
    loaded = load(toml(PRESETS + '[presets.payer]\napi_key = "its key"\n'))
    assert told(loaded, "payer")[:2] == ("http://default", "its key")


def test_the_first_byte_may_have_a_time_of_its_own(toml: WriteToml) -> None:
    loaded = load(toml("upstream_first_byte = 9\n" + PRESETS))
    assert told(loaded, "bare")[3:5] == (9, 2)


def test_a_preset_that_is_not_there_is_none(toml: WriteToml) -> None:
    assert PresetBook(load(toml(PRESETS))).get("other") is None


def test_the_default_preset_may_be_changed(toml: WriteToml) -> None:
    loaded = load(toml('upstream_url = "http://u/v1/x"\n[presets.default]\nstall = 5'))
    assert told(loaded, "default")[:5] == ("http://u/v1/x", "", 10, 5, 5)


def test_a_preset_without_a_url_anywhere_is_wrong(toml: WriteToml) -> None:
    assert "gateway.toml: presets.p: no url" in wrong(**toml("[presets.p]\n"))


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://u/", "http://", "http://h:x/", "http://u/ v"]
)
def test_a_preset_whose_url_cannot_be_one_is_wrong(url: str, toml: WriteToml) -> None:
    assert "gateway.toml: presets.p.url: " in wrong(**toml(f'[presets.p]\nurl = "{url}"'))


def test_without_a_url_of_its_own_there_is_no_default_beside_other_presets(
    toml: WriteToml,
) -> None:
    book = PresetBook(load(toml('[presets.p]\nurl = "http://u/"')))
    assert book.get("default") is None
    assert book.get("p") is not None


def test_a_wrong_member_of_a_preset_is_named(toml: WriteToml) -> None:
    given = '[presets.p]\nurl = "http://u/"\n'
    assert "gateway.toml: presets.p.stall" in wrong(**toml(f"{given}stall = -1"))
    assert "presets.p.modles is no setting; did you mean models?" in wrong(
        **toml(f"{given}modles = []")
    )


def test_a_prefix_and_a_public_url_that_say_different_paths_are_wrong(setenv: Setenv) -> None:
    setenv("PUBLIC_URL", "https://a.example/chat")
    assert wrong(prefix="/llm").startswith(
        "GATEWAY_PREFIX: /llm, but GATEWAY_PUBLIC_URL says /chat"
    )
    for prefix in ("", "/chat"):
        assert load({"prefix": prefix}).prefix == prefix
    setenv("PUBLIC_URL", "https://a.example")
    assert load({"prefix": "/v1.0/~llm_a-b"}).prefix == "/v1.0/~llm_a-b"


def test_a_path_is_joined_to_the_public_url_by_one_slash() -> None:
    for given in ("https://gw.example", "https://gw.example/"):
        assert load({"public_url": given}).public_url == "https://gw.example"
    assert load({"public_url": "https://x.example/gw/"}).public_url == "https://x.example/gw"


def test_an_upstreams_path_is_kept_as_it_is() -> None:
    for url in ("http://u/v1/chat/completions", "http://u/v1/", "http://u/?a=/"):
        assert load({"upstream_url": url}).upstream_url == url


# One table


def squeezed(text: str) -> str:
    """Return a text without white space: help texts are wrapped."""
    return "".join(text.split())


@pytest.mark.parametrize("command", ["serve", "demo", "check", "cookie"])
def test_the_help_of_a_command_shows_every_setting(command: str) -> None:
    shown = squeezed(CliRunner().invoke(main, [command, "--help"]).output)
    for row in table():
        flag = "--" + row.name.removeprefix("GATEWAY_").lower().replace("_", "-")
        default = f"[{row.default}]" if row.default else ""
        assert squeezed(f"{flag} VALUE {row.help} {default} ({row.name})") in shown


def test_every_setting_has_a_help_and_a_name_of_its_own() -> None:
    rows = list(table())
    assert all(row.help for row in rows)
    assert (
        len({row.name for row in rows}) == len(rows) == len(Settings.model_fields) - 2
    )  # No presets, no limits.


def test_the_table_shows_no_secret_object_and_no_tuple() -> None:
    assert not [row for row in table() if "Secret" in row.default or row.default in {"()", "''"}]


def test_the_docs_show_the_same_settings_as_the_code() -> None:
    row = re.compile(r"^\|\s*`(GATEWAY_[A-Z_]+)`\s*\|([^|]*)\|(.*?)\|\s*$", re.MULTILINE)
    shown = [
        Row(name, default.strip().strip("`"), words.strip())
        for name, default, words in row.findall(PAGE.read_text("utf-8"))
    ]
    assert shown == [
        each._replace(help=each.help.replace("|", r"\|")) for each in settings_.table()
    ]
