"""Volume: how many tokens a text is likely to be, by the pieces it came in. Pure.

Most upstreams send a token with each event. Those that send several tell by what they send: a token
has four or five letters in English, six to twelve bytes in scripts of more bytes a letter. Where
pieces are longer than tokens are, in the mean, their bytes tell more than their number.
"""

from gateway.upstream.protocols.base import CHARACTERS

_ASCII, _OTHER = 6, 16  # Bytes that no tokens have in the mean, whatever the language.


class Volume:
    """What was said so far."""

    __slots__ = ("_ascii", "_other", "_pieces")

    def __init__(self) -> None:
        self._pieces = 0
        self._ascii = 0  # Bytes.
        self._other = 0

    def add(self, piece: str) -> None:
        """Take note of a piece; "" is none."""
        if piece:
            ascii_bytes = len(piece.encode("ascii", "ignore"))
            self._pieces += 1
            self._ascii += ascii_bytes
            self._other += len(piece.encode("utf-8", "surrogatepass")) - ascii_bytes

    def tokens(self, share: int = 1) -> int:
        """Return how many tokens that may be, where one in `share` pieces was noted."""
        least = self._ascii / _ASCII + self._other / _OTHER
        if least <= self._pieces + 1:  # One more: of a few words the mean says little.
            return self._pieces * share
        return max(self._pieces, round((self._ascii + self._other) / CHARACTERS)) * share
