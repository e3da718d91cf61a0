"""Mount: where the gateway is, as browsers see it, whatever stands in front of it.

A proxy may put it under a path, which it strips before it passes a request on, or does not. An
application may have it under a path of its own (`root_path`). The URLs told to callers carry both.
"""

from urllib.parse import quote, unquote, urlsplit

from starlette.types import Scope

_PLAIN = "/%~!$&'()*+,=:@"  # What a path may have as it is (RFC 3986 §3.3), but for ";".


class Mount:
    """The public URL and the path of a proxy, "" where there is none."""

    def __init__(self, public_url: str = "", prefix: str = "") -> None:
        self._public = public_url
        self._prefix = prefix
        self._whole = bool(urlsplit(public_url).path)  # It says all of it.

    def url(self, root_path: str, path: str) -> str:
        """Return what browsers are to ask for; `root_path` is the one of the ASGI scope."""
        if self._whole:
            return self._public + path
        # A caller may have doubled the first slash, which would make the rest of it a host.
        root = quote("/" + root_path.strip("/")).rstrip("/")
        if self._prefix.endswith(root):  # It says where an application has it, too.
            root = self._prefix
        elif not f"{root}/".startswith(f"{self._prefix}/"):  # Some servers are told of the proxy's.
            root = self._prefix + root
        return self._public + root + path

    def cookie_path(self, root_path: str) -> str:
        """Return where browsers are to send a cookie of ours to, and nowhere else."""
        path = urlsplit(self.url(root_path, "/")).path.rstrip("/") or "/"
        return quote(path, safe=_PLAIN)  # As browsers ask for it; a ";" would begin an attribute.

    def paths(self, path: str) -> list[str]:
        """Return the paths that a request for one of ours comes with."""
        return [path, self._prefix + path] if self._prefix else [path]


def placed(scope: Scope) -> Scope:
    """Return a request's scope with the path of an application that took it away and told nobody.

    Litestar does so, and ends every path with a slash. What was sent still shows both.
    """
    raw: bytes = scope.get("raw_path") or b""
    sent, path = unquote(raw.decode("latin-1").partition("?")[0]), scope["path"]
    rest = path if sent.endswith("/") else path.rstrip("/")
    if sent == path or not rest or not sent.endswith(rest):
        return scope
    above, root = sent[: -len(rest)], scope.get("root_path", "")
    root = above if above.startswith(root) else root + above
    return {**scope, "root_path": root, "path": root + rest}
