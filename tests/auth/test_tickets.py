"""Tickets: signed, short, worth nothing to anybody but their owner."""

import hashlib
import re
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer

from gateway.auth import tickets
from gateway.auth.tickets import Ticket, Tickets
from gateway.errors import Rejected
from gateway.store.keys import new_id

OLD, NEW = "the old secret, long enough", "the new secret, long enough"
ID = "c3RyZWFtIGlkIG9mIDE2Yg"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TICKET = Tickets([NEW]).issue(ID, "alice", 1_700_000_000_000)


def refused(ticket: str, *secrets: str) -> bool:
    """Whether a ticket is refused, in the one way that tells nothing."""
    with pytest.raises(Rejected) as caught:
        Tickets(secrets or [NEW]).verify(ticket)
    return (caught.value.status, caught.value.code) == (404, "ticket_not_found")


def signed(claim: str, salt: str = tickets._SALT) -> str:
    """Return any claim with a valid signature."""
    signer = Signer(NEW, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(claim).decode()


def test_a_ticket_says_what_was_put_in() -> None:
    claim = Tickets([NEW]).verify(TICKET)
    assert (claim.stream_id, claim.issued) == (ID, 1_700_000_000_000)
    assert claim.belongs_to("alice")


@pytest.mark.parametrize("other", ["bob", "Alice", "alice ", "", "alice\0", "ali"])
def test_a_ticket_belongs_to_nobody_else(other: str) -> None:
    assert not Tickets([NEW]).verify(TICKET).belongs_to(other)


def test_an_owner_in_one_stream_is_not_one_in_another() -> None:
    claim = Tickets([NEW]).verify(TICKET)
    assert not Ticket(new_id(), claim.owner, claim.issued).belongs_to("alice")


@given(subject=st.text(st.characters(codec="utf-8"), min_size=1, max_size=256))
def test_a_ticket_is_under_300_url_safe_characters_for_any_subject(subject: str) -> None:
    ticket = Tickets([NEW]).issue(new_id(), subject)
    assert len(ticket) < 300
    assert re.fullmatch(r"[A-Za-z0-9._-]+", ticket)
    assert Tickets([NEW]).verify(ticket).belongs_to(subject)


def test_the_same_facts_give_the_same_ticket() -> None:
    again = Tickets([NEW, OLD], now=lambda: 5.0).issue(ID, "alice", 1_700_000_000_000)
    assert again == TICKET


def test_without_a_time_the_clock_dates_it_in_milliseconds() -> None:
    clocked = Tickets([NEW], now=lambda: 1_700_000_000.25)
    assert clocked.verify(clocked.issue(ID, "alice")).issued == 1_700_000_000_250


@pytest.mark.parametrize("now", [0.0, 1e9, 4e9])
def test_no_clock_makes_a_ticket_too_old_or_too_new(now: float) -> None:
    assert Tickets([NEW], now=lambda: now).verify(TICKET).stream_id == ID


@pytest.mark.parametrize("index", range(len(TICKET)))
def test_a_ticket_with_any_character_changed_is_no_ticket(index: int) -> None:
    at = ALPHABET.find(TICKET[index])
    other = ALPHABET[63 - at] if at >= 0 else "A"  # All six bits change, so those that count do.
    assert refused(TICKET[:index] + other + TICKET[index + 1 :])


@pytest.mark.parametrize("index", range(len(TICKET)))
def test_a_ticket_cut_short_is_no_ticket(index: int) -> None:
    assert refused(TICKET[:index])


@given(garbage=st.text(max_size=200))
def test_garbage_is_refused_and_breaks_nothing(garbage: str) -> None:
    assert refused(garbage)


@pytest.mark.parametrize(
    "garbage",
    ["", ".", "..", "a.b", "5", "[]", "\0", "%00", "\ud800", "é.é", "x" * 10_000, TICKET * 100],
)
def test_what_is_no_ticket_is_refused(garbage: str) -> None:
    assert refused(garbage)


@pytest.mark.parametrize(
    "claim",
    [
        *("", "abc", "5", ".", "..", "[]", ID, f"{ID}.o", f"{ID}.o.1.2", f"{ID}.o.x", f"{ID}.o."),
        *(f"{ID}.o.1e3", f"{ID}.o.\u00bd", "." * 1000),
    ],
)
def test_a_signature_over_something_else_is_refused(claim: str) -> None:
    assert refused(signed(claim))


def test_another_purpose_with_the_same_secret_is_refused() -> None:
    claim = f"{ID}.{Tickets([NEW]).verify(TICKET).owner}.1"
    assert Tickets([NEW]).verify(signed(claim)).stream_id == ID
    assert refused(signed(claim, salt="itsdangerous"))


def test_another_secret_is_refused() -> None:
    assert refused(TICKET, OLD)


def test_an_old_secret_still_verifies() -> None:
    old = Tickets([OLD]).issue(ID, "alice", 5)
    assert Tickets([NEW, OLD]).verify(old).belongs_to("alice")


def test_the_newest_secret_signs() -> None:
    assert Tickets([NEW, OLD]).issue(ID, "alice", 1_700_000_000_000) == TICKET


def test_a_secret_that_was_taken_out_verifies_no_more() -> None:
    assert refused(Tickets([OLD]).issue(ID, "alice"), NEW)


def test_the_subject_cannot_be_read_from_the_ticket() -> None:
    ticket = Tickets([NEW]).issue(ID, "alice@example.org", 1_700_000_000_000)
    stream_id, owner, *_ = ticket.split(".")
    assert stream_id == ID
    assert "alice" not in ticket
    assert b"alice" not in urlsafe_b64decode(owner + "==")
