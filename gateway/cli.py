"""The command `gateway`: what it takes from its line, and what it says."""

import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
from starlette.routing import Router
from starlette.types import ASGIApp

from gateway import __version__, check, commands, options
from gateway.app import Gateway
from gateway.auth.base import usable
from gateway.auth.loading import signed_cookie
from gateway.auth.trial import whois
from gateway.config import settings
from gateway.demo import upstream as demo
from gateway.demo.page import page
from gateway.demonstration import demonstrate
from gateway.errors import SettingsError, one_line, with_cause
from gateway.serve import workers
from gateway.serve.server import Reload, run, terms_of
from gateway.serve.sockets import bind, reserve, url_of

CONFIG_ERROR = 78  # EX_CONFIG: a supervisor should not start it again.

logger = logging.getLogger("gateway")


_host = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="GATEWAY_HOST",
    show_envvar=True,
    help="address to listen on; 0.0.0.0 = all of this machine",
)


class _OneLine(click.Group):
    """Shows our own errors as one line, and exits with a code of their own."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for line in str(error).splitlines():
                click.echo(f"gateway: {with_cause(line, None)}", err=True)
            ctx.exit(CONFIG_ERROR)


@click.group(cls=_OneLine, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Ticketed, durable, resumable streaming of LLM completions to a bare EventSource."""


@main.command()
@_host
@click.option(
    "--port",
    default=8000,
    show_default=True,
    envvar="GATEWAY_PORT",
    show_envvar=True,
    help="port to listen on; 0 = any free",
)
@click.option(
    "--workers",
    "count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="processes; needs Redis",
)
@options.of_settings
def serve(host: str, port: int, count: int, **flags: str | None) -> None:
    """Run the gateway. Every setting is an option here, a variable or a line of the TOML file."""
    loaded = options.load(flags)
    options.check_upstream(loaded)
    if loaded.embedded and count > 1:
        raise SettingsError(
            "GATEWAY_REDIS_URL: missing; the embedded store is of one process, not of "
            f"--workers {count}"
        )
    for words in [] if workers.inside() else check.short_secrets(loaded):
        logger.warning("%s", words)
    workers.outlive_terminal()
    if count > 1:
        Gateway(loaded)  # A wrong setting is to be said once, not by every worker.
        with reserve(host, port) as reserved:
            _, actual = reserved.getsockname()[:2]
            command = [*_self(), "serve", "--host", host, "--port", str(actual)]
            url = url_of(reserved)
            sys.exit(workers.supervise(command, count, settings.as_variables(flags, loaded), url))
    gateway = Gateway(loaded, logs_out=False)
    with bind(host, port, shared=workers.inside()) as listener:
        if loaded.embedded:
            logger.warning(
                "EMBEDDED STORE: one process, nothing survives it; set GATEWAY_REDIS_URL"
            )
        ready = f"gateway listening on {url_of(listener)}"
        _run(gateway, gateway.served(), listener, ready, _reload(gateway, flags))


@main.command("demo")
@click.option("--port", default=8000, show_default=True, help="port of the page; taken = any free")
@click.option(
    "--interval", default=0.09, show_default=True, help="seconds between two tokens of its upstream"
)
@options.of_settings
def demo_(port: int, interval: float, **flags: str | None) -> None:
    """Show it: a page, a pretend upstream, a store and two replicas to kill, loopback only."""
    with _preferred(port) as listener:
        demonstrate(flags, listener, interval)


def _run(
    gateway: Gateway, app: ASGIApp, listener: socket.socket, ready: str, reload: Reload | None
) -> None:
    level, terms = gateway.settings.log_level, terms_of(gateway.settings)
    more = {"drain": gateway.drain, "reload": reload}
    run(app, listener, level=level, ready=ready, terms=terms, **more)


def _reload(gateway: Gateway, flags: dict[str, Any]) -> Reload:
    """Return what reads the presets again, with everything else as it was given."""
    return partial(gateway.presets.reload, partial(settings.load, flags))


def _preferred(port: int) -> socket.socket:
    try:
        return bind("127.0.0.1", port)
    except SettingsError:
        return bind("127.0.0.1", 0)


@main.command("check")
@options.of_settings
def check_(**flags: str | None) -> None:
    """Say whether settings, Redis and upstream will do; exit 1 on a fault."""
    verdicts = asyncio.run(check.verdicts(options.load(flags)))
    for verdict in verdicts:
        click.echo(str(verdict))
    sys.exit(1 if any(verdict.fault for verdict in verdicts) else 0)


@main.command("cookie")
@click.argument("subject")
@options.of_settings
def cookie_(subject: str, **flags: str | None) -> None:
    """Print NAME=VALUE of a valid `signed` cookie of SUBJECT, for curl."""
    signer = signed_cookie(options.load(flags))
    if usable(subject) is None:
        raise SettingsError("SUBJECT: 1 to 256 printable characters")
    click.echo(f"{signer.cookie}={signer.sign(subject)}")


@main.command("whois")
@click.argument("cookie", metavar="NAME=VALUE")
@options.of_settings
def whois_(cookie: str, **flags: str | None) -> None:
    """Say whom each authenticator sees in a cookie, or why nobody; exit 1 if none sees anybody."""
    known, lines = asyncio.run(whois(options.load(flags), cookie))
    for line in lines:
        click.echo(one_line(line))
    sys.exit(0 if known else 1)


@main.command("upstream")
@_host
@click.option("--port", default=8001, show_default=True, help="port to listen on; 0 = any free")
@click.option("--interval", default=0.05, show_default=True, help="seconds between two tokens")
@click.option("--tokens", type=int, help="tokens of every answer; else as long as it comes")
@click.option(
    "--fault", default="", help="what goes wrong: status:503, cut:10, stall:5, no-done, …"
)
@click.option("--api-key", default="", help="the only key accepted")
@click.option(
    "--attach-for",
    type=click.FloatRange(0, 3600),
    default=300,
    show_default=True,
    help="seconds after which a background response is streamed to nobody new",
)
def upstream_(host: str, port: int, **given: Any) -> None:
    """Run the pretend upstream alone; GET /calls tells what was asked of it.

    It answers like OpenAI (chat and responses), Anthropic, Ollama, Gemini and Cohere, each at
    its own paths, which are printed.
    """
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        demo.parse_fault(given["fault"])
    except ValueError as error:
        raise SettingsError(f"--fault: {error}") from None
    app = demo.upstream(demo.UpstreamOptions(**given))
    with bind(host, port) as listener:
        places = "\n  and ".join(url_of(listener) + path for path in demo.URLS)
        run(app, listener, level="info", ready=f"pretend upstream listening on {places}")


@main.command("page")
@_host
@click.option("--port", default=8002, show_default=True, help="port to listen on; 0 = any free")
@options.of_settings
def page_(host: str, port: int, **flags: str | None) -> None:
    """Run the demo page alone, for a proxy that has the gateway beside it. Lets anybody in."""
    loaded = options.load(flags)
    app = Router(page(signed_cookie(loaded), prefix=loaded.prefix))
    with bind(host, port) as listener:
        ready = f"demo page listening on {url_of(listener)}"
        run(app, listener, level=loaded.log_level, ready=ready)


for each in (commands.streams_, commands.usage_, commands.push_, commands.chat_):
    main.add_command(each)


def _self() -> Sequence[str]:
    return (sys.executable, "-m", "gateway")
