"""The scripts as Redis sees them: each by itself, and in the chains that are run as one."""

from hashlib import sha1
from pathlib import Path

import gateway
from gateway.store.client import chain_of

LUA = Path(gateway.__file__).parent / "store" / "lua"
CHAINS = (("admit", "create"), ("seal", "book"), ("permit", "claim"))


def texts_of(name: str = "") -> list[bytes]:
    """Return the script of a name and those that it is a part of; without a name all."""
    one_each = [(path.stem,) for path in LUA.glob("*.lua")]
    chains = [each for each in (*one_each, *CHAINS) if not name or name in each]
    told = [[(LUA / f"{each}.lua").read_text("utf-8") for each in chain] for chain in chains]
    return [(each[0] if len(each) == 1 else chain_of(each)).encode() for each in told]


def digests_of(name: str) -> list[bytes]:
    """Return what Redis calls them."""
    return [sha1(text).hexdigest().encode() for text in texts_of(name)]
