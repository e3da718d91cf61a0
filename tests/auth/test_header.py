"""Header: a name counts only where it comes from a proxy that is trusted."""

from ipaddress import ip_network
from typing import Any

import pytest
from starlette.datastructures import Headers

from gateway.auth.base import Caller, Finding
from gateway.auth.header import Header
from gateway.auth.loading import authenticators
from gateway.errors import SettingsError
from tests.support import SECRET, ask, client, process, running, settings

TRUSTED = ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8"]


async def found(peer: str, *names: bytes) -> Finding:
    """Return what is found where a peer sends a header with these names."""
    by = Header("X-User", [ip_network(each) for each in TRUSTED])
    return await by.find(Caller(Headers(raw=[(b"x-user", each) for each in names]), {}, peer))


@pytest.mark.parametrize("peer", ["10.1.2.3", "192.168.1.7", "fd00::5", "::ffff:10.1.2.3"])
async def test_a_trusted_proxy_names_its_user(peer: str) -> None:
    assert (await found(peer, b"alice")).subject == "alice"
    assert (await found(peer, "用户".encode())).subject == "用户"


@pytest.mark.parametrize("name", ["voilà", "Å", "à la carte Å"])
async def test_a_name_may_end_in_any_letter(name: str) -> None:
    # As characters, the last byte of these is a space to Python.
    assert (await found("10.1.2.3", b" " + name.encode() + b"\t")).subject == name


@pytest.mark.parametrize(
    "peer", ["11.0.0.1", "192.168.1.8", "fe80::1%eth0", "::ffff:11.0.0.1", "::1", "", "testclient"]
)
async def test_anybody_else_who_sends_it_forges_it_for_sure(peer: str) -> None:
    finding = await found(peer, b"alice")
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)
    assert "alice" not in finding.why


async def test_without_it_nobody_is_named() -> None:
    for names in ([], [b""], [b" \t"], [b"", b""]):
        finding = await found("10.1.2.3", *names)
        assert (finding.subject, finding.reason, finding.sure) == (None, "no_cookie", False)


@pytest.mark.parametrize("names", [[b"alice", b"bob"], [b"alice", b"alice"]])
async def test_a_header_that_is_there_twice_is_refused_for_sure(names: list[bytes]) -> None:
    finding = await found("10.1.2.3", *names)
    assert (finding.subject, finding.reason, finding.sure) == (None, "bad_cookie", True)


@pytest.mark.parametrize("name", [b"a" * 10_000, b"\xff", b"a\tb", "a\x85".encode()])
async def test_a_header_that_can_name_nobody_is_nobody(name: bytes) -> None:
    finding = await found("10.1.2.3", name)
    assert (finding.subject, finding.reason) == (None, "no_subject")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"auth_header": "X-User"}, "GATEWAY_TRUSTED_PROXIES: missing"),
        ({"trusted_proxies": "10.0.0.0/8"}, "GATEWAY_AUTH_HEADER: missing"),
        *(
            ({"auth_header": "X-User", "trusted_proxies": each}, "GATEWAY_TRUSTED_PROXIES: .*every")
            for each in ("0.0.0.0/0", "10.0.0.0/8,::/0", "0.0.0.0/1,128.0.0.0/1", "10.1.2.3/0")
        ),
    ],
)
def test_without_its_settings_it_does_not_start(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        authenticators(settings(auth="header", **given))


async def test_a_forged_header_starts_nothing_even_beside_a_good_cookie() -> None:
    given = {"auth": "header,signed", "auth_header": "X-User", "trusted_proxies": "10.0.0.0/8"}
    async with running(**given) as gate:
        assert (await gate.post()).status_code == 201
        answer = await gate.post(**{"X-User": "mallory"})
        assert (answer.status_code, answer.json()["reason"]) == (401, "bad_cookie")


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.1", 201), ("10.0.0.0/8", 401)])
async def test_a_peer_is_who_connects_whatever_it_says_of_others(trusted: str, status: int) -> None:
    given = {"auth": "header", "auth_header": "X-User", "trusted_proxies": trusted}
    more = {"secrets": SECRET, "upstream_url": "http://127.0.0.1:9/v1/chat/completions"}
    with process("serve", "--port", "0", **given, **more) as served:
        async with client(served.url) as http:
            named = {"X-User": "alice"}
            for forwarded in ({}, {"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3"}):
                answer = await http.post("/tickets", json=ask(), headers={**named, **forwarded})
                assert answer.status_code == status
