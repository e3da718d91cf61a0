"""Sockets: an address to listen on, and as many open files as may be."""

import socket
from contextlib import suppress

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from gateway.errors import SettingsError

_FILES = 1 << 20  # Where the system names no limit.


def files_allowed() -> int:
    """Return how many files this process may have open."""
    if resource is None:
        return _FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _FILES if allowed == resource.RLIM_INFINITY else allowed


def allow_files() -> None:
    """Allow as many open files as may be: a stream takes two, and a usual limit is 1,024."""
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else most
    with suppress(ValueError, OSError):  # Some systems have a limit that they do not tell.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def reserve(host: str, port: int) -> socket.socket:
    """Return an address for workers to share, and for nobody else; raises SettingsError.

    Whoever shares a port gets a part of its connections, and any process of the same user may that
    asks to: another gateway's workers too. So it has to be had alone first, and is then held by a
    socket that does not listen, against whom a port without a listener would be free.
    """
    with bind(host, port) as alone:
        actual = alone.getsockname()[1]
    try:
        return bind(host, actual, shared=True, reuse=False)
    except SettingsError:  # What a server without workers has left, for a minute.
        return bind(host, actual, shared=True)


def bind(host: str, port: int, *, shared: bool = False, reuse: bool = True) -> socket.socket:
    """Return a listening address; raises SettingsError if it is not to be had."""
    if not 0 <= port <= 65535:
        raise SettingsError(f"cannot listen on {host}:{port}: no such port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a socket listens, as a browser would write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
