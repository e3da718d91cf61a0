"""Header: the name that a proxy in front gives to its user.

Anybody can send a header, so it counts for nothing unless the connection comes from that proxy.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address

from gateway.auth.base import Caller, Finding, known, lines_of

_PEERS = 1024  # Addresses that were looked at.
_BLANKS = " \t"  # And no others: the last byte of "à" is a space too, as a character.

Networks = Sequence[IPv4Network | IPv6Network]


class Header:
    """The authenticator that believes a header of the proxies that are trusted."""

    name = "header"

    def __init__(self, header: str, trusted: Networks) -> None:
        self._header = header.lower()
        self._trusted = trusted
        self._trusts = lru_cache(_PEERS)(self._is_trusted)

    async def find(self, caller: Caller) -> Finding:
        """Return whom the header names; one that a caller has sent is a forgery."""
        lines = [each.strip(_BLANKS) for each in lines_of(caller.headers, self._header)]
        lines = [each for each in lines if each]
        if not lines:
            return Finding(None, "no_cookie", f"the request has no header {self._header}")
        if not self._trusts(caller.peer):
            why = f"{self._header} comes from {caller.peer or 'nowhere'}, which is not trusted"
            return Finding(None, "bad_cookie", why, sure=True)
        if len(lines) > 1:
            return Finding(None, "bad_cookie", f"{self._header} is there twice", sure=True)
        return named(lines[0], f"the header {self._header}")

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:  # A socket of the file system has none.
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in each for each in self._trusted if each.version == address.version)


def merged(networks: Networks) -> list[IPv4Network | IPv6Network]:
    """Return as few networks that are the same: two halves of all are all."""
    of_4 = [each for each in networks if isinstance(each, IPv4Network)]
    of_6 = [each for each in networks if isinstance(each, IPv6Network)]
    return [*collapse_addresses(of_4), *collapse_addresses(of_6)]


def named(line: str, header: str) -> Finding:
    """Return whom a header names, in UTF-8; servers show its bytes as characters."""
    try:
        text = line.encode("latin-1").decode()
    except ValueError:
        return Finding(None, "no_subject", f"{header} is not UTF-8")
    wrong = "is not printable" if not text.isprintable() else "is too long"
    return known(text, f"{header} {wrong}")
