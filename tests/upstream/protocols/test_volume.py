"""Volume: tokens are guessed within a tenth, from pieces that are tokens and from larger ones."""

import pytest

from gateway.demo.pretend.text import PARAGRAPHS
from gateway.upstream.protocols.volume import Volume

ENGLISH = "What was written down before it was shown survives a lost connection. " * 20


def guessed(*pieces: str, share: int = 1) -> int:
    """Return the tokens that these pieces are taken for."""
    volume = Volume()
    for piece in pieces:
        volume.add(piece)
    return volume.tokens(share)


def cut(text: str, size: int) -> list[str]:
    """Return a text in pieces of so many characters."""
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("text", [ENGLISH, *PARAGRAPHS])
def test_a_piece_that_may_be_a_token_is_one(text: str) -> None:
    pieces = cut(text, 4)
    assert guessed(*pieces) == len(pieces)


@pytest.mark.parametrize("size", [8, 20, 200, 2000])
def test_of_larger_pieces_four_bytes_are_a_token(size: int) -> None:
    assert guessed(*cut(ENGLISH, size)) == pytest.approx(len(ENGLISH) / 4, rel=0.01)


def test_bytes_count_where_a_letter_has_several() -> None:
    assert guessed(*cut("断线之后浏览器会自动重连" * 20, 12)) == 12 * 20 * 3 // 4


def test_pieces_without_a_text_are_none() -> None:
    assert guessed("", "a", "", "b") == 2
    assert guessed() == guessed("") == 0


def test_half_a_character_counts_too() -> None:
    assert guessed("\ud83d") == 1


def test_a_sample_stands_for_all() -> None:
    assert guessed("a", "b", share=3) == 6
    assert guessed("a" * 400, share=3) == 300
