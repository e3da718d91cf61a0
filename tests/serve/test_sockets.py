"""An address to listen on, or one line that says why it is not to be had."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.errors import SettingsError
from gateway.serve.sockets import bind, url_of


@contextmanager
def taken_port() -> Iterator[int]:
    """Listen on a port for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


@pytest.mark.parametrize("port", [65536, 70000, -1])
def test_a_port_that_cannot_be_is_said(port: int) -> None:
    with pytest.raises(SettingsError, match=str(port)):
        bind("127.0.0.1", port).close()


def test_a_listener_that_is_not_to_be_had_leaves_nothing_open(
    recwarn: pytest.WarningsRecorder,
) -> None:
    with taken_port() as port, pytest.raises(SettingsError, match="cannot listen"):
        bind("127.0.0.1", port)
    assert not [each for each in recwarn if issubclass(each.category, ResourceWarning)]


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1"), ("::1", "http://[::1]")]
)
def test_where_it_listens_is_written_as_browsers_write_it(host: str, url: str) -> None:
    with bind(host, 0) as listener:
        assert url_of(listener) == f"{url}:{listener.getsockname()[1]}"
