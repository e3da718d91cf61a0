"""A webhook is judged at the start, and its secret is shown nowhere."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from gateway.check import verdicts
from gateway.config.presets import Preset
from gateway.config.settings import load
from gateway.config.webhooks import signing_key
from gateway.errors import SettingsError
from tests.receivers import SECRET
from tests.support import settings

URL = "https://app.example/hooks?token=hidden"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (f'webhook = "{URL}"', "presets.p.webhook_secret: is missing"),
        (f'webhook_secret = "{SECRET}"', "presets.p.webhook: is missing"),
        (
            f'webhook = "ftp://x"\nwebhook_secret = "{SECRET}"',
            "must start with http:// or https://",
        ),
        (f'webhook = "http://a:b@x"\nwebhook_secret = "{SECRET}"', "has a login"),
        (f'webhook = "http://x/ü"\nwebhook_secret = "{SECRET}"', "not in ASCII"),
        (f'webhook = "{URL}"\nwebhook_secret = "{SECRET[6:]}"', "must be whsec_ and the base64"),
        (f'webhook = "{URL}"\nwebhook_secret = "whsec_c2hvcnQ="', "of 16 bytes at least"),
        (f'webhook = "{URL}"\nwebhook_secret = "whsec_no!base64*at-all-"', "must be whsec_"),
        (f'webhook = "{URL}"\nwebhook_secret_env = "NOT_THERE"', "there is no such variable"),
        (f'webhooks = "{URL}"', "did you mean webhook?"),
    ],
    ids=range(10),
)
def test_a_wrong_webhook_stops_the_start_and_quotes_no_secret(
    tmp_path: Path, table: str, reason: str
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f'[presets.p]\nurl = "http://x/v1/chat/completions"\n{table}\n')
    with pytest.raises(SettingsError) as refused:
        load({"config": str(path)})
    (line,) = str(refused.value).splitlines()
    assert reason in line
    assert str(path) in line
    assert SECRET[6:] not in line


def test_its_secret_may_be_in_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    (tmp_path / "secret").write_text(SECRET + "\n")
    path = tmp_path / "gateway.toml"
    for way in ('_env = "HOOK_SECRET"', f'_file = "{tmp_path / "secret"}"'):
        path.write_text(
            f'[presets.p]\nurl = "http://x"\nwebhook = "{URL}"\nwebhook_secret{way}\n', "utf-8"
        )
        assert load({"config": str(path)}).presets["p"].webhook_secret.get_secret_value() == SECRET


def test_a_secret_stands_for_bytes() -> None:
    assert signing_key(SecretStr(SECRET)) == b"a key of thirty-two bytes, or so"


def test_neither_the_secret_nor_what_the_url_hides_is_shown() -> None:
    shown = repr(Preset.model_validate({"webhook": URL, "webhook_secret": SECRET}))
    assert "app.example" in shown
    assert "hidden" not in shown
    assert SECRET[6:] not in shown
    with pytest.raises(ValidationError) as refused:
        settings(presets={"p": {"webhook": URL, "webhook_secret": SECRET[:-3]}})
    assert SECRET[6:20] not in str(refused.value)


async def test_check_shows_who_is_told() -> None:
    given = settings(presets={"p": {"webhook": URL, "webhook_secret": SECRET}, "q": {}})
    told = [str(each) for each in await verdicts(given) if each.subject == "webhook"]
    words = "p: https://app.example/hooks?token=*** is told of each end; signed"
    assert told == [f"{'ok':8}{'webhook':10}{words}"]
