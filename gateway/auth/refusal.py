"""Refusal: what an app's answer to the question of `forward` most likely means, for an operator.

A URL that is a little wrong says no to everybody, as one that is right does to a stranger.
"""

from urllib.parse import SplitResult, urljoin, urlsplit

from gateway.upstream.lookup import Answer

_LONGEST = 100  # Characters of a path that are shown.


def leads_to(url: str, answer: Answer) -> str:
    """Return the path of a redirect without its query, "" where there is none."""
    target = _target(url, answer)
    return target.path[:_LONGEST] or "/" if target else ""


def doubt(url: str, answer: Answer) -> str:
    """Return what is likely wrong with the URL that was asked, "" for what may be a plain no."""
    if answer.status == 400:
        return "is its host in ALLOWED_HOSTS?"
    asked, target = urlsplit(url), _target(url, answer)
    if target is None or target.path.rstrip("/") != asked.path.rstrip("/"):
        return ""
    if target.scheme == "https" and asked.scheme == "http":
        return "it wants https: name that, or let the app take plain http for this path"
    if target.path != asked.path:
        return "it is another path with a slash at its end, and no redirect is followed"
    return "it leads to the same path, and no redirect is followed"


def _target(url: str, answer: Answer) -> SplitResult | None:
    lines = answer.lines("location")
    if not 300 <= answer.status < 400 or not lines:
        return None
    try:
        return urlsplit(urljoin(url, lines[0]))
    except ValueError:
        return None
