"""Oracle: what each viewer got, against what was sent and what was injected. Pure.

It is told every call the upstream got, every event of every viewer, and every injected fault. An
end must have its cause: `interrupted` only where the stream's own replica was hit, `truncated` only
where the upstream cut, and so on. What DESIGN §4 and §5 allow where Redis loses what it has
acknowledged is allowed only there, and counted apart.
"""

import json
from collections.abc import Iterator

from tests.faults.plays import Call, Sent
from tests.faults.story import Facts, Finding, Loss, Story, Verdict
from tests.faults.viewer import Got, Transcript

OURS = frozenset({b"end", b"failure", b"gap", b"reset"})
FINISHES = (b'"finish_reason":"stop"', b'"type":"response.completed"')

_NATURAL = {
    "whole": "done",
    "cut": "truncated",
    "stalled": "stalled",
    "refused": "failed",
    "not_a_stream": "failed",
    "error": "failed",
}
_LOOK = 8.0  # Seconds after which a viewer of a lost stream is sent away and back, at the most.
_LAG = 1.0  # Seconds before a failover of which the new master may know nothing.


def judge(story: Story, facts: Facts) -> Verdict:
    """Judge one stream."""
    return _Judge(story, facts).judge()


class _Judge:
    def __init__(self, story: Story, facts: Facts) -> None:
        self._story = story
        self._verdict = Verdict()
        self._losses = [
            each for each in facts.losses if story.posted <= each.until and each.at <= story.ended
        ]
        self._facts = facts

    def judge(self) -> Verdict:
        for problem in self._story.problems:
            self._find("viewer lost", problem)
        self._judge_calls()
        whole = [self._judge_viewer(each) for each in self._story.transcripts]
        self._judge_together([each for each in whole if each is not None])
        return self._verdict

    def _find(self, kind: str, text: str) -> None:
        self._verdict.findings.append(Finding(kind, self._story.stream.number, text))

    def _allow(self, what: str) -> None:
        self._verdict.allowed.append(what)

    # Calls

    def _judge_calls(self) -> None:
        calls = self._story.calls
        paid = next((number for number, call in enumerate(calls) if call.paid), len(calls))
        for call in calls[paid + 1 :]:
            if any(
                each.kind == "failover" and each.at - _LAG <= calls[paid].at <= each.until
                for each in self._losses
            ):
                self._allow("a second call after a failover (DESIGN §4)")
            else:
                first = calls[paid].replica
                self._find("extra call", f"by {call.replica}, paid for already by {first}")
        if paid > 3 or (paid == 3 and len(calls) > 3):
            self._find("extra call", f"{paid} refusals where two further attempts are allowed")

    # One viewer

    def _judge_viewer(self, got: Transcript) -> list[Got] | None:
        """Judge one transcript; return its last part if that has an end, to be compared."""
        if got.silences:
            self._find("silence", f"{got.silences} connections without a heartbeat")
        parts = list(_parts(got.events))
        if len(parts) > 1 and not self._losses:
            self._find("gap", f"{len(parts) - 1} of them, and Redis lost nothing")
        elif len(parts) > 1:
            self._allow("a gap where Redis lost something (DESIGN §4)")
        for part in parts:
            self._judge_order(part)
            self._judge_data(part)
        last = parts[-1]
        ended = bool(last) and last[-1].name == b"end"
        if ended:
            self._judge_end(last)
        self._judge_final(got, ended)
        return last if ended else None

    def _judge_final(self, got: Transcript, ended: bool) -> None:
        if got.final == "204" and ended:
            return
        over = got.final in {"204", "refused"} or self._forgets_still(got)
        if over and self._forgotten():
            self._allow("a stream that Redis forgot (DESIGN §5)")
            self._verdict.state = self._verdict.state or "forgotten"
        elif got.final == "refused":
            self._find("viewer lost", got.why)
        elif got.final == "204":
            self._find("no end", "204 without an end before it")
        elif ended:
            self._find("after the end", "no 204 in time")
        else:
            shown = _short(got.events[-1]) if got.events else "nothing"
            self._find("no end", f"still open after {got.connections} connections: {shown}")

    def _judge_order(self, events: list[Got]) -> None:
        seen: set[str] = set()
        before = (0, 0)
        for event in events:
            try:
                epoch, seq = (int(part) for part in event.id.split("-"))
            except ValueError:
                self._find("altered", f"no id of ours: {event}")
                continue
            if event.id in seen:
                self._find("repeated", f"{event.id} again")
            elif (epoch, seq) < before:
                self._find("reordered", f"{event.id} after {before}")
            elif seq != (before[1] + 1 if epoch == before[0] else 1):
                self._find("lost", f"{event.id} after {before}")
            seen.add(event.id)
            before = (epoch, seq)
        names = [event.name for event in events]
        if b"end" in names[:-1]:
            self._find("after the end", f"{names[names.index(b'end') :][:4]}")
        if b"failure" in names and names[-2:] != [b"failure", b"end"]:
            self._find("no end", "a failure that no end follows")

    def _judge_data(self, events: list[Got]) -> None:
        data = _upstreams(events)
        call = self._call_of(data)
        if call is None:
            if data:
                self._find("altered", f"of no call: {data[0]}")
            return
        for number, event in enumerate(data):
            if number < len(call.sent) and call.sent[number] == event:
                continue
            kind = "altered"
            if event in call.sent[:number]:
                kind = "repeated"
            elif event in call.sent[number:]:
                kind = "lost"
            sent = call.sent[number] if number < len(call.sent) else "nothing"
            self._find(kind, f"event {number} is {_short(event)}, sent was {_short(sent)}")
            return

    def _call_of(self, data: list[Sent]) -> Call | None:
        calls = self._story.calls
        if data and data[0][1].startswith(b"{"):
            known = json.loads(data[0][1])
            if "ticket" not in known:  # The upstream's own error, before anything else.
                return calls[-1] if calls else None
            ours = known["ticket"] == self._story.stream.number
            return next((each for each in calls if ours and each.number == known["call"]), None)
        return calls[-1] if calls and not data else None

    # The end

    def _judge_end(self, events: list[Got]) -> None:
        end = json.loads(events[-1].data)
        state = self._verdict.state = str(end["state"])
        data = _upstreams(events)
        call = self._call_of(data)
        hit = self._hit(call)
        causes = self._causes(call, data, hit)
        if state not in causes:
            kind = "false done" if state == "done" else "false end"
            outcome = call and (call.replica, call.outcome, call.finished)
            self._find(kind, f"{state}, but only {causes} have a cause; the call: {outcome}")
            return
        failed = len(events) > 1 and events[-2].name == b"failure"
        if failed != (state not in {"done", "cancelled"}):
            self._find("false end", f"{state} with{'out' * (not failed)} a failure")
        if failed and json.loads(events[-2].data)["code"] == "internal":
            self._find("mistake", "the gateway says so itself")
        self._judge_whole(state, call, data, hit)
        self._judge_deletions(state)
        self._judge_attempts(state, int(end["attempts"]), hit)
        if call is not None and call.kept and data and not (hit or self._losses):
            self._judge_stop(state, call)

    def _judge_stop(self, state: str, call: Call) -> None:
        """Look whether an upstream that keeps its answer heard that nobody wants it, once."""
        due = state in {"cancelled", "interrupted", "truncated", "stalled"}
        late = due and call.finished  # One that comes with the last event may find it whole.
        if call.cancels != due and not (late and not call.cancels):
            self._find("not stopped", f"{state}, and the upstream was told {call.cancels} times")

    def _causes(self, call: Call | None, data: list[Sent], hit: bool) -> set[str]:
        """Return the states that the stream may end in."""
        causes = set()
        if call is not None and (natural := natural_end(call)):
            causes.add(natural)
        if self._story.deletions or self._story.stream.fault == "away":
            causes.add("cancelled")
        if hit and (call is None or self._is_lost(call, data)):
            causes.add("interrupted")
        return causes

    def _is_lost(self, call: Call, data: list[Sent]) -> bool:
        """Whether nobody can go on with an answer whose owner was hit."""
        has_id = call.kept and bool(data)
        return not has_id or self._hit(call, ("term",))

    def _hit(self, call: Call | None, kinds: tuple[str, ...] = ()) -> bool:
        """Whether a replica that ran it was hit so; any, if nobody knows which it was."""
        return any(
            call is None or each.replica in {call.replica, *call.others}
            for each in self._facts.hits
            if each.at <= self._story.ended
            and each.until >= (self._story.posted if call is None else call.at - 1)
            and (not kinds or each.kind in kinds)
        )

    def _judge_whole(self, state: str, call: Call | None, data: list[Sent], hit: bool) -> None:
        """Look whether all was shown that had to be, for such an end."""
        if call is None or state in {"cancelled", "interrupted"}:
            return
        if state == "done" and not any(finish in each for finish in FINISHES for _, each in data):
            self._find("false done", "the finish is not among the events")
        if len(data) >= len(call.sent):
            return
        # Whole is done, also where it was stopped before the usage or [DONE] came.
        stopped = hit or self._story.deletions or self._story.stream.fault == "away"
        if not (state == "done" and stopped):
            self._find("lost", f"{state} with {len(data)} of {len(call.sent)} events")

    def _judge_deletions(self, state: str) -> None:
        for each in self._story.deletions:
            if each.status == 200 and each.state != state and not self._losses:
                self._find("false end", f"{state}, but the DELETE was told {each.state}")

    def _judge_attempts(self, state: str, attempts: int, hit: bool) -> None:
        calls = len(self._story.calls)
        most = calls + (hit or state in {"cancelled", "interrupted"})
        if not calls <= attempts <= most and not self._losses:
            self._find("false end", f"{state} after {attempts} attempts, but {calls} calls came")

    def _forgotten(self) -> bool:
        """Whether Redis lost the stream at a moment when no living owner had to write it again."""
        return any(
            self._newest(each) if each.kind == "failover" else self._unowned(each)
            for each in self._losses
        )

    def _forgets_still(self, got: Transcript) -> bool:
        """Whether Redis forgot everything, or went away, so lately that a viewer had to wait on."""
        young = got.ended - 2 * self._facts.lease - _LOOK
        forgot = [each.until for each in self._losses if each.kind == "empty"]
        away = [each.until for each in self._facts.outages if each.at <= got.ended]
        return bool(forgot) and max(forgot + away) > young and got.final == "unfinished"

    def _newest(self, loss: Loss) -> bool:
        return loss.at - _LAG <= self._story.posted <= loss.until

    def _unowned(self, loss: Loss) -> bool:
        calls = self._story.calls
        if not calls or calls[0].at > loss.at - 0.5:
            return True  # Not redeemed yet, as far as one can know.
        last, due = calls[-1], self._facts.due(loss)
        if last.outcome and last.ended < due - 2 * self._facts.lease:
            return True
        return any(
            each.replica in {last.replica, *last.others} and last.at - 1 <= each.until
            for each in self._facts.hits
            if each.at <= due
        )

    # All viewers

    def _judge_together(self, whole: list[list[Got]]) -> None:
        """All viewers must have the same events, and nobody one that the whole has not."""
        known: dict[str, Got] = {}
        for transcript in self._story.transcripts:
            for event in transcript.events:
                if event.name != b"gap" and known.setdefault(event.id, event) != event:
                    self._find("differ", f"{event.id} is not the same for all viewers")
        if not whole:
            return
        gaps = any(each.name == b"gap" for t in self._story.transcripts for each in t.events)
        if any(each != whole[0] for each in whole) and not gaps:
            self._find("differ", f"viewers ended with {sorted(map(len, whole))} events")
        if known.keys() - {event.id for event in whole[0]} and not gaps:
            self._find("differ", "somebody saw an event that is not in the log")


def natural_end(call: Call) -> str:
    """Return the state that a call leads to by itself, "" if it was left in the middle."""
    return "done" if call.finished else _NATURAL.get(call.outcome, "")


def _parts(events: list[Got]) -> Iterator[list[Got]]:
    """Yield what is between the gaps: at each one a page discards what it has."""
    part: list[Got] = []
    for event in events:
        if event.name == b"gap":
            yield part
            part = []
        else:
            part.append(event)
    yield part


def _upstreams(events: list[Got]) -> list[Sent]:
    return [(event.name, event.data) for event in events if event.name not in OURS]


def _short(what: object) -> str:
    return str(what)[:100]
