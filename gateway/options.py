"""Options: the settings as options of a command, and what they make."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import click

from gateway.config import settings
from gateway.config.settings import Settings
from gateway.errors import SettingsError

logger = logging.getLogger("gateway")


def of_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option per setting, with the same table as everywhere."""
    for row in reversed(list(settings.table())):
        name = row.name.removeprefix(settings.PREFIX).lower()
        default = f"  [{row.default}]" if row.default else ""
        option = click.option(
            "--" + name.replace("_", "-"),
            name,
            metavar="VALUE",
            help=f"{row.help}{default}  ({row.name})",
        )
        command = option(command)
    return command


def load(flags: dict[str, Any]) -> Settings:
    """Return the settings of a command, after setting up its log; raises SettingsError."""
    loaded = settings.load(flags)
    log_as(loaded)
    typed = click.get_current_context().params  # Not what the demo makes up.
    secret = {name: value for name, value in typed.items() if name in Settings.model_fields}
    for hint in (*settings.unknown_names(), *settings.shown_to_all(secret)):
        logger.warning("%s", hint)
    return loaded


def log_as(loaded: Settings) -> None:
    """Set the log of this process up."""
    logging.basicConfig(
        level=loaded.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It logs every request with its URL.


def check_upstream(loaded: Settings) -> None:
    """Raise SettingsError where there is nobody to ask."""
    if not loaded.upstream_url and not loaded.presets:
        raise SettingsError("GATEWAY_UPSTREAM_URL: missing; the full URL of a completion endpoint")
