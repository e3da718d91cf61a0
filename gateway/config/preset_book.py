"""Preset book: the presets in force, each filled in from the settings, and how others replace them.

A run keeps the preset that it began with, and others may run on for long. So what is kept for all
runs holds for every preset that was ever in force here.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from gateway.config.presets import DEFAULT, Preset
from gateway.config.settings import PREFIX, Settings
from gateway.config.user_limits import NONE, Bounds, UserLimits
from gateway.errors import SettingsError
from gateway.tasks import in_thread

_PATIENCE = 10.0  # Seconds for the file: it may be a pipe that nobody writes to.

logger = logging.getLogger("gateway")

Load = Callable[[Settings], Settings]


class PresetBook:
    """Name -> preset, as it stands now; `settings` are those of the start."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._take(_filled(settings, settings.presets), settings.limits)
        self.longest_run = 0.0  # Of all that were ever in force, as the next two.
        self.shortest_grace = self.shortest_wait = float("inf")
        self._reach()

    def get(self, name: str) -> Preset | None:
        """Return a preset with everything it leaves out filled in, None if there is no such one.

        Nor is there a default one without a URL to ask, where there are others.
        """
        preset = self._presets.get(name)
        return preset if preset is not None and preset.url else None

    def bounds(self, name: str) -> Bounds:
        """Return what holds for each user of a preset."""
        return self._bounds.get(name) or self._unnamed

    def names(self, *, all_: bool) -> list[str]:
        """Return those that can be asked, by pages alone or by everybody."""
        return [
            name for name, each in self._presets.items() if self.get(name) and (all_ or each.public)
        ]

    def limited(self) -> dict[str, UserLimits]:
        """Return the limits that pages' presets have for each user, beside those over all."""
        own = {name: each.limits for name, each in self._presets.items() if each.public}
        return {name: each for name, each in own.items() if each != NONE and self.get(name)}

    async def reload(self, load: Load) -> None:
        """Take the presets of settings that are read anew; a wrong file changes nothing.

        Says in the log what came of it. `load` runs in a thread; it gets the settings of the start.
        """
        if not self.settings.config:
            logger.warning("SIGHUP: no GATEWAY_CONFIG is set, so there is no file to read again")
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                new = await in_thread(partial(load, self.settings))
            self._replace(new)
        except TimeoutError:
            _keeps(f"the file is not read within {_PATIENCE:g} s")
        except SettingsError as error:
            _keeps("; ".join(str(error).splitlines()))
        except Exception:
            logger.exception("SIGHUP: the presets stay as they were")

    def _replace(self, new: Settings) -> None:
        before, after = self._presets, _filled(self.settings, new.presets)
        limits = "; [limits] changed" if new.limits != self._limits else ""
        for name in new.presets:
            if not after[name].url:
                why = "no url, and a new upstream_url needs a restart"
                raise SettingsError(f"presets.{name}: {why}")
        self._take(after, new.limits)
        self._reach()
        changes = _difference(before, after) + limits
        logger.warning("SIGHUP: the presets were read again: %s", changes)
        if fixed := _others(self.settings, new):
            logger.warning("SIGHUP: changed too, and needs a restart: %s", ", ".join(fixed))

    def _take(self, presets: dict[str, Preset], limits: UserLimits) -> None:
        self._presets, self._limits = presets, limits
        self._bounds = {name: Bounds(limits, each.limits) for name, each in presets.items()}
        self._unnamed = Bounds(limits)  # Of a preset that went while its streams ran.

    def _reach(self) -> None:
        for preset in self._presets.values():
            self.longest_run = max(self.longest_run, preset.max_run)
            self.shortest_grace = min(self.shortest_grace, preset.grace)
            waits = (preset.stall, preset.first_byte, preset.max_run)
            self.shortest_wait = min(self.shortest_wait, *waits)


def _keeps(why: str) -> None:
    logger.error("SIGHUP: the presets stay as they were: %s", why)


def _filled(settings: Settings, presets: Mapping[str, Preset]) -> dict[str, Preset]:
    every = {"default": DEFAULT, **presets}
    return {name: _fill(settings, preset) for name, preset in every.items()}


def _fill(settings: Settings, preset: Preset) -> Preset:
    stall = preset.stall or settings.upstream_stall
    filled = {
        "url": preset.url or settings.upstream_url,
        "api_key": preset.api_key if preset.url or preset.api_key else settings.upstream_api_key,
        "grace": preset.grace or settings.grace,
        "connect": preset.connect or settings.upstream_connect,
        "stall": stall,
        "first_byte": preset.first_byte or settings.upstream_first_byte or stall,
        "max_run": preset.max_run or settings.max_run,
    }
    if "retries" not in preset.model_fields_set:
        filled["retries"] = settings.upstream_retries
    return preset.model_copy(update=filled)


def _difference(before: Mapping[str, Preset], after: Mapping[str, Preset]) -> str:
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    kinds = {
        "new": after.keys() - before.keys(),
        "changed": changed,
        "gone": before.keys() - after.keys(),
    }
    told = [f"{kind} {', '.join(sorted(names))}" for kind, names in kinds.items() if names]
    return "; ".join(told) or "nothing has changed"


def _others(before: Settings, after: Settings) -> list[str]:
    names = (name for name in Settings.model_fields if name not in ("presets", "limits"))
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return [PREFIX + name.upper() for name in changed]
