"""Refusals: what a status and its headers mean for who would ask again. Pure."""

from gateway.config.presets import Preset
from gateway.upstream.protocols.base import Refusal
from gateway.upstream.protocols.complaints import is_final, passes, stray_complaint
from gateway.upstream.protocols.error_text import words_of
from gateway.upstream.retry_after import Headers, lines_of, retry_after

# Refusals before anything was paid for. Other statuses come also from gateways and CDNs that had
# asked their provider by then: who knows that his do not lists them in `retry_on`.
SURE = frozenset({429, 503, 529})


def judged(preset: Preset, status: int, headers: Headers, body: bytes) -> Refusal:
    """Tell a refusal that cannot have been paid for from one that may have been."""
    # An upstream that knows better says so; that it may be asked again does not make it sure.
    told = ", ".join(lines_of(headers, "x-should-retry")).strip().lower()
    sure = (status in SURE or status in preset.retry_on) and told != "false"
    again = sure or passes(status)
    if error := stray_complaint(body):
        again = again and not is_final(error)
    retryable = told == "true" or (told != "false" and again)
    return Refusal(words_of(body), sure, retryable, retry_after(headers))
