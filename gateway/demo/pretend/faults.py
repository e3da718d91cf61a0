"""The faults: what a request, or an option, may ask to go wrong."""

import re
from typing import Final, NamedTuple

FAULTS: Final = {
    "status:CODE:N": "refuse with CODE; with :N only a prompt's first N requests",
    "hang": "not even response headers",
    "stall:N": "silence after N chunks; 0 is headers and no byte",
    "queued:SECONDS": "silence of that length before the answer begins",
    "cut:N": "the connection breaks inside the event after N chunks",
    "cuts:N": "the same, and of each later connection to a background response too",
    "close:N": "a clean end after N chunks: nothing that says that the answer is whole",
    "error:N": "the provider's error inside the stream after N chunks, then a clean end",
    "failed:N": "response.failed after N chunks, then a clean end; of responses alone",
    "no-done": "all but the last event, as [DONE]",
    "html": "200 and a web page",
    "json": "200 and a completion that is not streamed",
    "gzip": "Content-Encoding: gzip, flushed with each chunk",
    "big:BYTES": "a delta of that size after 3 chunks",
    "comments": "a comment block after each event",
    "crlf": "lines end in CR LF",
    "named": "events are named chunk, the third open, the fifth end",
}
NUMBERS: Final = {spelling.split(":")[0]: spelling.count(":") for spelling in FAULTS}


class Fault(NamedTuple):
    """What is to go wrong; an empty name is nothing."""

    name: str
    number: float = 10
    times: float = 0


def parse_fault(text: str) -> Fault:
    """Return the fault that a text like `cut:12` names; raises ValueError that lists them all."""
    name, *numbers = text.split(":")
    most = NUMBERS.get(name, -1) if text else 0
    whole = "[0-9]{1,8}" if name != "queued" else r"[0-9]{1,8}(\.[0-9]{1,3})?"
    if len(numbers) <= most and all(re.fullmatch(whole, number) for number in numbers):
        fault = Fault(name, *(float(each) if "." in each else int(each) for each in numbers))
        if name != "status" or 400 <= fault.number <= 599:
            return fault
    raise ValueError(f"Unknown fault {text!r}. Known are: {', '.join(FAULTS)}.")
