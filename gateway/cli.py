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

from gateway import __version__, check, options, push, streams, usage
from gateway.app import Gateway
from gateway.auth.base import usable
from gateway.auth.loading import signed_cookie
from gateway.auth.trial import whois
from gateway.config import settings
from gateway.demo import upstream as demo
from gateway.demo.page import page
from gateway.demonstration import demonstrate
from gateway.errors import Rejected, SettingsError, one_line, with_cause
from gateway.limits.statement import day_of
from gateway.report import Report
from gateway.serve import workers
from gateway.serve.server import Reload, run, terms_of
from gateway.serve.sockets import bind, reserve, url_of
from gateway.web.users import named

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
    if not loaded.upstream_url and not loaded.presets:
        raise SettingsError("GATEWAY_UPSTREAM_URL: missing; the full URL of a completion endpoint")
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


@main.command("streams")
@click.option("--subject", metavar="S", help="list only this user's")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object a line, for scripts")
@click.option("--cancel", metavar="ID", help="cancel this stream, whoever runs it, and list none")
@options.of_settings
def streams_(subject: str | None, as_json: bool, cancel: str | None, **flags: str | None) -> None:
    """List what runs now on all replicas, the oldest first; or cancel one.

    Age counts from the POST. Tickets that nobody has redeemed yet are not listed. A replica that
    does not answer within a second leaves `?`; if its heartbeat stands still for GATEWAY_LEASE
    too, it is (gone), and another ends its streams.

    Give it the settings that `serve` has: it looks where GATEWAY_REDIS_URL says. Exit code 1: the
    stream was not cancelled, or not all could be read; 2: without GATEWAY_REDIS_URL nothing can
    be seen from outside.
    """
    if cancel == "":  # As of a variable of a script that is not set.
        raise click.UsageError("--cancel: which stream? It takes an ID of the list")
    if cancel is not None and (as_json or subject is not None):
        raise click.UsageError("--cancel goes with neither --subject nor --json")
    loaded = options.load(flags)
    if cancel is not None:
        report = asyncio.run(streams.cancelled(loaded, cancel))
    else:
        report = asyncio.run(streams.listed(loaded, subject, as_json=as_json))
    _print(report)


@main.command("usage")
@click.argument("subject")
@click.option("--from", "first", metavar="DAY", help="the first day, as 2026-11-28  [today]")
@click.option("--to", "last", metavar="DAY", help="the last one  [today]")
@click.option("--json", "as_json", is_flag=True, help="print the JSON of GET /usage")
@options.of_settings
def usage_(
    subject: str, first: str | None, last: str | None, as_json: bool, **flags: str | None
) -> None:
    """Show what SUBJECT's streams took, and what is left of the limits; at most 35 days, of UTC.

    Give it the settings that `serve` has: it looks where GATEWAY_REDIS_URL says, and its limits
    are those of the file that is named. Exit code 1: Redis does not answer; 2: it is asked
    wrongly, or without GATEWAY_REDIS_URL, as nothing can be seen from outside then.
    """
    loaded = options.load(flags)
    try:
        days = [day_of(each) if each is not None else None for each in (first, last)]
        report = asyncio.run(usage.told(loaded, named(subject), *days, as_json=as_json))
    except Rejected as error:
        raise click.UsageError(str(error)) from None
    _print(report)


@main.command("push")
@click.argument("subject")
@click.option("--event", metavar="NAME", help="its name; else an EventSource's onmessage has it")
@click.option("--data", required=True, metavar="TEXT", help="what it says; - reads stdin")
@click.option("--message-id", metavar="ID", help="the same again within 24 h is stored once")
@click.option("--ttl", type=float, metavar="S", help="seconds after which nobody is shown it")
@options.of_settings
def push_(
    subject: str,
    event: str | None,
    data: str,
    message_id: str | None,
    ttl: float | None,
    **flags: str | None,
) -> None:
    """Store a message in the channel of SUBJECT, and print its id.

    Give it the settings that `serve` has: it looks where GATEWAY_REDIS_URL says. Exit code 1: Redis
    does not answer, or has no room; 2: it is no message, or without GATEWAY_REDIS_URL no channel
    can be reached from outside.
    """
    loaded = options.load(flags)
    draft = push.Draft(event, sys.stdin.read() if data == "-" else data, message_id, ttl)
    try:
        report = asyncio.run(push.pushed(loaded, subject, draft))
    except Rejected as error:
        raise click.UsageError(f"{error.code}: {error}") from None
    _print(report)


def _print(report: Report) -> None:
    for line in report.lines:
        click.echo(line)
    for remark in report.remarks:
        click.echo(f"gateway: {remark}", err=True)
    sys.exit(report.code)


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


def _self() -> Sequence[str]:
    return (sys.executable, "-m", "gateway")
