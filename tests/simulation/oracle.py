"""The oracle: what must hold in every schedule (DESIGN §4), and where it may be less.

Promises 1 to 3 hold as far as Redis keeps what it acknowledged. So, and only so, they are weaker:

- Each loss that took a claim of a stream along allows one more paid call for it, and one that took
  a takeover along does so where the preset restarts what a dead replica ran.
- A stream that lost acknowledged writes may give a `gap`, and may end otherwise than some viewer
  saw it end before; what its log holds at the end is still one call's answer, in order.
- An owner that is cut off for two leases after such a loss comes too late for who asks meanwhile.

Everything else is asked of every schedule, whatever went wrong in it.
"""

import json
import re
from typing import TYPE_CHECKING

from gateway.config.preset_book import PresetBook
from gateway.eventlog.entries import EventId
from gateway.sse import OURS, parse
from gateway.store.keys import is_channel
from tests.simulation.books import Books
from tests.simulation.receiver import judge_hooks
from tests.simulation.redis import Args, Id
from tests.simulation.upstream import Call

if TYPE_CHECKING:
    from tests.simulation.client import EventSource
    from tests.simulation.world import Stream, World

_SLACK = 0.4  # Seconds between what is seen here and what a replica sees.


class Oracle:
    """Watches one world; `broken` names each promise that was broken, and how."""

    def __init__(self, world: "World") -> None:
        self.broken: list[str] = []
        self._world = world
        self._blocks: dict[tuple[str, str], bytes] = {}  # Stream id, event id -> its block.
        self._ended: dict[str, float] = {}  # Stream id -> when the first end was logged.
        self._ended_last: dict[str, float] = {}  # The last one: Redis can forget, and begin anew.
        self._written: dict[str, list[float]] = {}  # Stream id -> when something was logged.
        self._books = Books(world, self.accuse)
        world.redis.on_note = self._noted

    def accuse(self, promise: str, words: str) -> None:
        """Note a broken promise."""
        self.broken.append(f"{promise}: {words}")
        self._world.say(f"BROKEN {promise}: {words}")

    # While it runs

    def _noted(self, stream_id: str, number: Id, fields: Args) -> None:
        if is_channel(stream_id):
            return
        self._books.noted(stream_id, number, fields)
        self._written.setdefault(stream_id, []).append(self._world.loop.time())
        for event in parse(fields[1]):
            block = fields[1] and self._block_of(fields[1], event.id)
            known = self._blocks.setdefault((stream_id, event.id.decode()), block)
            if known != block and not self._drawn_again(stream_id):
                self.accuse(
                    "one order", f"event {event.id!r} of {stream_id} is {block!r} and {known!r}"
                )
        if len(fields) > 2:
            self._ended_last[stream_id] = self._world.loop.time()
            self._ended.setdefault(stream_id, self._world.loop.time())

    def _drawn_again(self, stream_id: str) -> bool:
        """Whether a lost claim's epoch may have been drawn again: the clock was set back, too."""
        return self._lost(stream_id, "claims") > 0 and self._world.redis.set_back

    @staticmethod
    def _block_of(frames: bytes, event_id: bytes) -> bytes:
        end = frames.index(b"\nid: %b\n\n" % event_id) + len(event_id) + 5
        return frames[:end].rpartition(b"\n\n")[2]

    def shown(self, viewer: "EventSource", event_id: str, block: bytes) -> None:
        """Judge one event that a viewer got."""
        stream_id = viewer.stream.stream_id
        if block.startswith(b"event: gap\n"):
            viewer.seen.clear()
            viewer.gaps.append(self._world.loop.time())
            self._world.say(f"{viewer.name} got {block!r}")
            if not self.touched(stream_id):
                self.accuse("one order", f"a gap for {viewer.name} although nothing was lost")
            viewer.after_gap = EventId.parse(event_id)
            return
        self._world.say(f"{viewer.name} got {event_id} {block[:60]!r}")
        if self._blocks.get((stream_id, event_id)) != block:
            self.accuse("logged, then shown", f"{viewer.name} got {block!r}, never in the log")
        before = viewer.seen[-1][0] if viewer.seen else ""
        if before:
            self._follows(viewer, before, event_id)
        viewer.seen.append((event_id, block))
        if block.startswith(b"event: end\n"):
            viewer.ended_at = self._world.loop.time()

    def id_of(self, stream_id: str, lines: bytes) -> str:
        """Return the id of the event in a log that has these lines, "" for none."""
        found = [
            event_id
            for (each, event_id), block in self._blocks.items()
            if each == stream_id and block.rpartition(b"\nid: ")[0] == lines
        ]
        return found[-1] if found else ""

    def _follows(self, viewer: "EventSource", before: str, event_id: str) -> None:
        last, this = EventId.parse(before), EventId.parse(event_id)
        assert last is not None
        if this is None or this <= last:
            self.accuse("one order", f"{viewer.name} got {event_id} after {before}")
        elif this.seq != (last.seq + 1 if this.epoch == last.epoch else 1):
            self.accuse("one order", f"{viewer.name} got {event_id} after {before}: a hole")

    def refused(self, what: str, status: int, body: bytes) -> None:
        """Judge a refusal of something that should be possible."""
        if status not in {410, 503}:
            self.accuse("contract", f"{what} was answered {status} {body[:200]!r}")

    # At the end

    def open(self) -> list[str]:
        """Return the streams that have not come to their end yet."""
        return [
            name
            for name, each in self._world.streams.items()
            if self._world.redis.record(each.stream_id).get(b"state") == b"starting"
        ]

    def judge_streams(self) -> None:
        """Judge what everybody has seen, and what was paid."""
        for stream in self._world.streams.values():
            self._judge_money(stream)
            self._judge_log(stream)
            self._judge_cancels(stream)
        for viewer in self._world.viewers:
            self._judge_viewer(viewer)
        for stream_id, clash in self._world.redis.clashes:
            if self._drawn_again(stream_id):
                continue
            if is_channel(stream_id) and self._world.redis.set_back:
                continue  # So may a channel's epoch be.
            self.accuse("one order", f"an entry was written twice, differently: {clash}")
        self._books.judge()
        judge_hooks(self._world, self.accuse)
        for key in self._world.redis.immortal():
            self.accuse("everything expires", f"{key!r} has no TTL")

    def judge_leftovers(self) -> None:
        """Judge what is left after all replicas were stopped."""
        for replica in self._world.replicas:
            left = [task for task in replica.tasks if not task.done()]
            if left and not replica.host.dead:
                self.accuse("liveness", f"{replica.host.name} left tasks: {left}")
        if "nonsense" not in self._world.redis.sprung:
            for words in self._world.broken:
                self.accuse("no fault of ours", words)
        for words in self._world.loop.faults:
            self.accuse("no fault of ours", words)

    def _lost(self, stream_id: str, what: str) -> int:
        return sum(stream_id in getattr(loss, what) for loss in self._world.redis.losses)

    def touched(self, stream_id: str) -> bool:
        """Whether Redis had acknowledged something of a stream, and forgot it."""
        return self._lost(stream_id, "touched") > 0

    def _calls(self, stream: "Stream") -> list[Call]:
        return [call for call in self._world.upstream.calls if call.stream == stream.name]

    def _judge_money(self, stream: "Stream") -> None:
        paid = sum(call.paid for call in self._calls(stream))
        allowed = self._allowed(stream)
        if paid > allowed:
            self.accuse("one paid call", f"{stream.name} was paid {paid} times, {allowed} allowed")
        ended = self._ended.get(stream.stream_id, float("inf"))
        for call in self._calls(stream):
            if call.at > ended and not self.touched(stream.stream_id):
                self.accuse("one paid call", f"{stream.name} was asked for after its end")
        most = allowed * (self._world.settings.upstream_retries + 1)
        if len(self._calls(stream)) > most:
            self.accuse("one paid call", f"{stream.name} was asked for too often")

    def _allowed(self, stream: "Stream") -> int:
        preset, stream_id = PresetBook(self._world.settings).get("default"), stream.stream_id
        claims = 1 + self._lost(stream_id, "claims")
        first = [call for call in self._calls(stream) if call.paid][:1]
        kept = [each for each in self._world.upstream.kept.of(stream.name) if each.call in first]
        goes_on = any(self._is_known(stream_id, each.name) for each in kept)
        if preset is None or preset.on_crash != "restart" or goes_on:
            return claims
        return claims * (1 + preset.crash_restarts) + self._lost(stream_id, "takeovers")

    def _is_known(self, stream_id: str, response: str) -> bool:
        """Whether the log tells which answer its upstream keeps."""
        blocks = (block for (name, _), block in self._blocks.items() if name == stream_id)
        told = response.encode()
        return any(b"response.created" in block and told in block for block in blocks)

    def _judge_kept(self, stream: "Stream", state: str) -> None:
        """What is kept and not waited for any more is stopped: once, if its owner is well."""
        for response in self._world.upstream.kept.of(stream.name):
            times = response.cancels
            if times > 1 and not self._world.troubles:
                self.accuse("told to stop", f"{response.name} was stopped {times} times")
            ended = self._ended_last.get(stream.stream_id, float("inf"))
            known = self._is_known(stream.stream_id, response.name)
            goes_on = not times and response.over_at > ended + _SLACK
            well = self._was_well(ended - 3, ended + 3)
            if self._is_forgotten(stream.stream_id, response.call.at):
                continue  # Another claim asked anew, and knows nothing of it.
            if known and well and goes_on and state == "cancelled":
                self.accuse("told to stop", f"{response.name} goes on, {stream.name} is {state}")

    def _is_forgotten(self, stream_id: str, since: float) -> bool:
        """Whether Redis lost the claim by which this was asked for."""
        return any(
            stream_id in each.claims and each.at > since for each in self._world.redis.losses
        )

    def _judge_log(self, stream: "Stream") -> None:
        redis = self._world.redis
        record, entries = redis.record(stream.stream_id), redis.log(stream.stream_id)
        state = record.get(b"state", b"").decode()
        if state == "starting":
            self.accuse("liveness", f"{stream.name} has no end")
        if not self._world.troubles and not stream.cancels and self._is_watched(stream):
            self._judge_calm(stream, state)
        self._judge_kept(stream, state)
        if not entries:
            return
        last: Id | None = None
        for number, fields in entries:
            begin = number[1] - int(fields[0])
            if last and begin != (last[1] if number[0] == last[0] else 0):
                self.accuse("one order", f"{stream.name}: {number} follows {last} in the log")
            last = number
        end = entries[-1][1]
        if len(end) < 4:
            if state not in {"", "cached", "starting"}:
                self.accuse("true ends", f"{stream.name} is {state}, its log has no end")
            return
        if end[3].decode() != state and state:
            self.accuse("true ends", f"{stream.name} is {state}, its log says {end[3]!r}")
        self._judge_answer(stream, end[3].decode(), b"".join(f[1] for _, f in entries))

    def _is_watched(self, stream: "Stream") -> bool:
        viewers = [each for each in self._world.viewers if each.stream is stream and not each.late]
        return any(not each.act["leaves"] and not each.act["sticks"] for each in viewers)

    def _judge_calm(self, stream: "Stream", state: str) -> None:
        """Where nothing went wrong, a stream ends as its upstream said."""
        script, tries = stream.plan["script"], self._world.settings.upstream_retries + 1
        told = [each for each in script[:tries] if each["status"] not in _AGAIN]
        last = told[0] if told else script[:tries][-1]
        if self._world.limited and state in {"", "cached"}:
            return  # It had no slot for as long as its ticket was good.
        if last["status"] == 200:
            goes_on = stream.kept and last["end"] not in _TRUE
            expected = "done" if goes_on else _ENDS.get(last["end"], "done")
        else:
            expected = {0: "truncated", -1: "stalled"}.get(last["status"], "failed")
        if state != expected:
            self.accuse("true ends", f"{stream.name} is {state}, its upstream was {expected}")

    def _whole_again(self, stream: "Stream") -> bool:
        """Whether its one owner lived, so that all it had must be there again."""
        epochs = {number[0] for number in self._world.redis.ledger.get(stream.stream_id, {})}
        calls = self._calls(stream)
        if len(epochs) != 1 or not calls or len({call.host for call in calls}) != 1:
            return False
        if "nonsense" in self._world.redis.sprung:
            return False  # It may have given up.
        owner = calls[0].host
        if any(owner in what for _, _, what in self._world.troubles if what[:5] in _DEADLY):
            return False
        # It keeps what has ended for two leases: time enough for a Redis that comes back soon.
        ended = self._ended.get(stream.stream_id, float("inf"))
        kept = ended + self._world.settings.lease
        first = min(loss.at for loss in self._world.redis.losses)
        last = max(loss.at for loss in self._world.redis.losses)
        over = [end for _, end, _ in self._world.troubles if end > first]
        return max([last, *over]) < kept

    def _told_before_the_owner_came(self, viewer: "EventSource") -> bool:
        """Whether Redis's memory was not young any more, and nothing was written again yet."""
        told, young = viewer.told_at, 2 * self._world.settings.lease
        written = self._written.get(viewer.stream.stream_id, [])
        return any(
            loss.at + young <= told and not any(loss.at < at <= told for at in written)
            for loss in self._world.redis.losses
        )

    def _judge_answer(self, stream: "Stream", state: str, frames: bytes) -> None:
        """The log holds, since a reset, the beginning of one call's answer: all of it if done."""
        events = parse(frames)
        resets = [number for number, event in enumerate(events) if event.name == b"reset"]
        answer = events[resets[-1] if resets else 0 :]
        data = [event.data for event in answer if event.name not in OURS]
        ends = [event for event in events if event.name == b"end"]
        if len(ends) != 1 or events[-1] is not ends[0]:
            self.accuse("true ends", f"{stream.name} has {len(ends)} ends, or not at the end")
            return
        said = json.loads(ends[0].data)
        if said["state"] != state:
            self.accuse("true ends", f"{stream.name}: {said} in an entry of {state}")
        calls = [call for call in self._calls(stream) if call.events[: len(data)] == data]
        if data and not calls:
            self.accuse("one order", f"{stream.name} shows what no call has sent: {data}")
        if state == "done" and not any(call.finished and not call.failed for call in calls):
            self.accuse("true ends", f"{stream.name} is done, its upstream never said so")
        if state == "cancelled" and not stream.cancels:
            self._judge_grace(stream)
        sent = len(self._calls(stream))
        if said["attempts"] < sent and not self.touched(stream.stream_id):
            self.accuse("one paid call", f"{stream.name} says {said}, {sent} were sent")

    def _judge_grace(self, stream: "Stream") -> None:
        """Nobody asked for it: then nobody may have watched for the whole grace."""
        ended = self._ended_last.get(stream.stream_id, 0.0)
        calls = self._calls(stream)
        decided = min(ended, calls[-1].left or ended) if calls else ended
        grace = self._world.settings.grace
        preset = PresetBook(self._world.settings).get("default")
        if preset is not None and preset.on_leave == "finish":
            self.accuse("the run outlives the request", f"{stream.name} was cancelled for a leave")
        begin = decided - grace + _SLACK
        for viewer in self._world.viewers:
            for come, gone, host in viewer.connected if viewer.stream is stream else []:
                here = come < decided - _SLACK and (gone or decided) > begin
                if here and self._was_well(decided - 2 * grace, decided):
                    self.accuse(
                        "the run outlives the request",
                        f"{stream.name} was cancelled at {decided:.3f} while {viewer.name} "
                        f"watched from {come:.3f} to {gone} on {host}",
                    )

    def _was_well(self, begin: float, end: float) -> bool:
        troubles = self._world.troubles
        return not any(a < end and b > begin for a, b, _ in troubles)

    def _numbers(self, stream_id: str) -> list[tuple[str, EventId]]:
        found = [(each, EventId.parse(each)) for name, each in self._blocks if name == stream_id]
        return [(each, position) for each, position in found if position is not None]

    def _judge_cancels(self, stream: "Stream") -> None:
        if self.touched(stream.stream_id):
            return
        state = self._world.redis.record(stream.stream_id).get(b"state", b"").decode()
        for _, answer in stream.cancels:
            if answer not in {"", state} and not (answer == "expired" or not state):
                self.accuse("contract", f"a cancel was answered {answer}, the end is {state}")

    def _judge_viewer(self, viewer: "EventSource") -> None:
        stream = viewer.stream
        stream_id = stream.stream_id
        if viewer.stays and not viewer.outcome:
            self.accuse("liveness", f"{viewer.name} of {stream.name} waits for ever")
        entries = self._world.redis.log(stream_id)
        whole = [
            (event.id.decode(), self._block_of(fields[1], event.id))
            for _, fields in entries
            for event in parse(fields[1])
        ]
        if viewer.outcome and not re.match("204|410 (ticket|log)_expired", viewer.outcome):
            self.accuse("contract", f"{viewer.name} was told {viewer.outcome}")
        if self.touched(stream_id):
            if not self._whole_again(stream) or self._told_before_the_owner_came(viewer):
                return
            known = sorted(number for _, number in self._numbers(stream_id))
            if [EventId.parse(each) for each, _ in whole] != known:
                self.accuse("one order", f"{stream.name} lost {known}, has {_ids(whole)}")
        if viewer.outcome == "204" and viewer.seen != whole:
            self.accuse("one order", f"{viewer.name} saw {_ids(viewer.seen)} of {_ids(whole)}")
        if viewer.seen != whole[: len(viewer.seen)]:
            self.accuse("one order", f"{viewer.name} saw {_ids(viewer.seen)} of {_ids(whole)}")
        if viewer.outcome.startswith("410") and entries and viewer.ended_at is None:
            self.accuse("contract", f"{viewer.name} was told {viewer.outcome}, there is a log")


_DEADLY = {"death", "drain"}
_TRUE = frozenset({"error", "json"})  # What ends a kept answer too.
_AGAIN = {429, 503, 529}  # What is asked once more.
_ENDS = {
    "cut": "truncated",
    "eof": "truncated",
    "half": "truncated",
    "stall": "stalled",
    "error": "failed",
    "json": "failed",
}


def _ids(events: list[tuple[str, bytes]]) -> list[str]:
    return [event_id[-6:] for event_id, _ in events]
