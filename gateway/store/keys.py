"""Keys: the name of everything that is kept in Redis.

All keys of a stream carry the tag {stream id} and so share a slot of a Cluster. Each key has a TTL.
"""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from functools import lru_cache
from typing import Any, NamedTuple

DATASET_ID = "gw:marker"  # With the tag of a server.
HEARTBEATS = "gw:beats"  # With the tag of a quorum copy.

DAY = 86_400_000  # In milliseconds, as all times here.
_CHANNEL = "channel."
_NAMED = 1 << 32  # More than any count of heartbeats.


def new_id() -> str:
    """Return 128 random bits, URL-safe: a stream id, a replica's name or a nonce."""
    return secrets.token_urlsafe(16)


def id_of(*words: str) -> str:
    """Return an id as long as those, the same for the same words."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def record_key(stream_id: str) -> str:
    """Return the key of a stream's record."""
    return f"gw:{{{stream_id}}}:record"


def log_key(stream_id: str) -> str:
    """Return the key of a stream's log."""
    return f"gw:{{{stream_id}}}:log"


def packed_key(stream_id: str) -> str:
    """Return the key of a stream's log once it has ended and was packed."""
    return f"gw:{{{stream_id}}}:packed"


def log_keys(stream_id: str) -> list[str]:
    """Return the keys of both forms of a stream's log, of which it has one."""
    return [log_key(stream_id), packed_key(stream_id)]


def presence_key(stream_id: str) -> str:
    """Return the key that says that somebody on another replica watches a stream."""
    return f"gw:{{{stream_id}}}:presence"


def webhook_key(stream_id: str) -> str:
    """Return the key of what is to be told of a stream's end, until it was heard."""
    return f"gw:{{{stream_id}}}:webhook"


def channel_id(subject: str) -> str:
    """Return the id of a subject's channel, which is that of no stream."""
    tag = hashlib.sha256(f"channel {subject}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return _CHANNEL + tag


def is_channel(stream_id: str) -> bool:
    """Whether an id is that of a channel."""
    return stream_id.startswith(_CHANNEL)


def channel_key(channel: str) -> str:
    """Return the key of what is known of a channel beside its messages: where it ends."""
    return f"gw:{{{channel}}}:channel"


def watchers_key(channel: str) -> str:
    """Return the key of the replicas that watch a channel."""
    return f"gw:{{{channel}}}:watchers"


def message_key(channel: str, message_id: str) -> str:
    """Return the key that says that a message is stored."""
    name = hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"gw:{{{channel}}}:message:{name}"


def asked_key(name: str) -> str:
    """Return the key of the streams that a request has begun."""
    return f"gw:{{{name}}}:asked"


def given_key(name: str) -> str:
    """Return the key of the stream that a request was answered with a moment ago."""
    return f"gw:{{{name}}}:given"


def alias_key(name: str) -> str:
    """Return the key of the stream that another name leads to."""
    return f"gw:{{{name}}}:alias"


def shown_key(stream_id: str) -> str:
    """Return the key that says that somebody on a chat's page has all of a stream."""
    return f"gw:{{{stream_id}}}:shown"


def continued_key(stream_id: str) -> str:
    """Return the key of the message that a stream goes on with."""
    return f"gw:{{{stream_id}}}:continued"


def runs_key(replica: str, copy: str = "") -> str:
    """Return the key of the set of streams that a replica runs."""
    return f"gw:runs:{replica}{copy}"


def cancels_key(replica: str, copy: str = "") -> str:
    """Return the key of the set of streams that a replica is asked to cancel."""
    return f"gw:cancels:{replica}{copy}"


def control_channel(replica: str) -> str:
    """Return the channel on which a replica hears what concerns it."""
    return f"gw:inbox:{replica}"


class SubjectKeys(NamedTuple):
    """The keys of what a subject holds and spends, all in one slot: its streams are in many."""

    sizes: str  # Bytes of streams that wait or run.
    until: str  # Until when each counts.
    slots: str  # What runs, and reserves.
    leases: str  # Until when.
    today: str  # What was spent on the day at hand.
    posts: str  # The streams that were asked for in the last minute.
    booked: str  # The streams that were booked lately.

    def posts_of(self, preset: str) -> str:
        """Return the key of what was asked of a preset in the last minute."""
        return f"{self.posts}.{preset}"

    def usage(self, day: int) -> str:
        """Return the key of what was spent on a day, counted since 1970."""
        return f"{self.sizes[: self.sizes.index('}') + 2]}usage:{day}"


@lru_cache(maxsize=4096)
def subject_keys(subject: str) -> SubjectKeys:
    """Return the keys of a subject."""
    tag = hashlib.sha256(f"subject {subject}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    names = ("bytes", "until", "slots", "leases", "today", "posts", "booked")
    return SubjectKeys(*(f"gw:{{{tag}}}:{name}" for name in names))


def naming(replica: str, stream_id: str, copy: str) -> list[list[Any]]:
    """Return the commands that let others find a stream should this replica die.

    They see who has a heartbeat: a Redis that has just forgotten it must not wait for the next one.
    So it comes first: where the rest breaks off, an eviction finds a list that has no TTL yet. It
    is a sign of life like the heartbeat, by another number than any of those: what is named while
    an eviction is under way stays on the list.
    """
    heartbeats, runs = HEARTBEATS + copy, runs_key(replica, copy)
    return [
        ["HINCRBY", heartbeats, replica, _NAMED],
        ["PEXPIRE", heartbeats, DAY],
        ["SADD", runs, stream_id],
        ["PEXPIRE", runs, DAY],
    ]
