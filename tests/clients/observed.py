"""Observed: what a client made of a scene, and the few words that say it."""

from dataclasses import dataclass

from tests.clients.world import TEXT, Way

STOPS = "stops"
NEVER_STOPS = "asks for ever"
MISTAKEN = "takes it for the end"
TOLD = "hears `failure`"


_POSITIONS = (b"last-event-id: ", b"lasteventid=", b"last_event_id=")


@dataclass
class Report:
    """What a client's own code got to know."""

    text: str = ""
    failure: str = ""  # The code of an event `failure`.
    error: str = ""  # The name of what it raised, or called an error.


def never_stops(way: Way) -> bool:
    """Whether a client has asked again after it was told that there is no more."""
    return way.statuses.count(204) > 1


def words(scene: str, report: Report, way: Way) -> str:
    """Return what a client does in a scene."""
    if never_stops(way):
        return NEVER_STOPS
    return {"cut": _cut, "end": _end, "error": _error, "204": _no_content}[scene](report, way)


def _cut(report: Report, way: Way) -> str:
    if report.error:
        return f"`{report.error}`"
    again = b"".join(way.requests[1:]).lower()
    resumed = any(each in again for each in _POSITIONS)
    if report.text == TEXT:
        return "goes on" if resumed else "begins again"
    return MISTAKEN if TEXT.startswith(report.text) else "has some of it twice"


def _end(report: Report, way: Way) -> str:
    assert report.text == TEXT, report
    if report.error:
        return f"`{report.error}`"
    return "asks once more, stops at the 204" if 204 in way.statuses else STOPS


def _error(report: Report, way: Way) -> str:
    assert TEXT.startswith(report.text), report
    assert report.text != TEXT, report
    if report.failure:
        return TOLD
    return f"`{report.error}`" if report.error else MISTAKEN


def _no_content(report: Report, way: Way) -> str:
    assert report.text == "", report
    return f"`{report.error}`" if report.error else STOPS
