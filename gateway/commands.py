"""Commands: those that look at what runs elsewhere, or ask as its users do; `cli` has them."""

import asyncio
import json
import sys
from functools import partial
from typing import Any

import click

from gateway import options, push, streams, usage
from gateway.chat import lines
from gateway.chat.conversation import NAMES, Conversation, last
from gateway.chat.terminal import Terminal
from gateway.config.preset_book import PresetBook
from gateway.config.presets import Preset
from gateway.errors import Rejected, SettingsError
from gateway.limits.statement import day_of
from gateway.report import Report
from gateway.web.users import named


@click.command("streams")
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


@click.command("usage")
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


@click.command("push")
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


@click.command("chat")
@click.argument("text", required=False)
@click.option("-p", "--preset", help="which preset to ask  [default]")
@click.option("--url", help="ask the gateway that runs here, instead of one in this process")
@click.option("--cookie", envvar="GATEWAY_CHAT_COOKIE", metavar="NAME=VALUE", help="who asks there")
@click.option("--token", envvar="GATEWAY_CHAT_TOKEN", help="the same, as Authorization: Bearer")
@click.option("--protocol", type=click.Choice(NAMES), help="what it speaks there  [openai]")
@click.option("--model", help="the model to ask for")
@click.option("--as", "name", metavar="NAME", help="the member for TEXT, of a role")
@click.option("--set", "more", multiple=True, metavar="NAME=JSON", help="a further member")
@click.option("--resume", is_flag=True, help="go on with the last conversation")
@options.of_settings
def chat_(
    text: str | None,
    preset: str | None,
    url: str | None,
    protocol: str | None,
    name: str | None,
    *,
    resume: bool,
    **given: Any,
) -> None:
    """Ask a preset TEXT in a terminal, or chat with it, a line a question, where there is no TEXT.

    Without --url a gateway is made for it in this process, from the settings that `serve` has but
    for its Redis. The answer goes to stdout and all else to stderr. Ctrl-C stops an answer, which
    costs no more then; a second one leaves without waiting for its end. TEXT of - is read from
    stdin.

    --resume with TEXT asks it in the last conversation. Alone it goes on with an answer that is not
    whole: with --url it is shown from its start, as it still runs there; one that cannot go on is
    asked for once more. The conversation is kept in $XDG_STATE_HOME/gateway/chat.json.

    Exit code 1: the answer is not whole, and stderr says why; 130: it was stopped.
    """
    text = sys.stdin.read() if text == "-" else text
    if text is not None and not text.strip():
        raise click.UsageError("TEXT: it is empty")
    talk = last() if resume else Conversation(url or "", preset or "default")
    if talk is None:
        raise click.UsageError("--resume: there is no conversation to go on with")
    talk.url, talk.preset = url or talk.url, preset or talk.preset
    headers = _headers(given.pop("cookie"), given.pop("token"))
    more = _members(given.pop("more"), given.pop("model"))
    if talk.url:
        asked = Preset.model_validate({"protocol": protocol or "openai"})
        reach = partial(lines.there, talk.url, talk.preset, headers)
    else:
        loaded = options.load({"log_level": "error"} | {k: v for k, v in given.items() if v})
        options.check_upstream(loaded)
        found = PresetBook(loaded).get(talk.preset)
        if found is None:
            raise SettingsError(f"--preset: there is no {talk.preset}")
        asked, reach = found, partial(lines.here, loaded, talk.preset)
    terminal = Terminal(talk, reach, lambda each: each.body(asked, more, name or ""))
    sys.exit(terminal.ask(text) if text else terminal.resume() if resume else terminal.chat())


def _headers(cookie: str | None, token: str | None) -> dict[str, str]:
    told = {"Cookie": cookie, "Authorization": f"Bearer {token}" if token else None}
    return {name: value for name, value in told.items() if value}


def _members(given: tuple[str, ...], model: str | None) -> dict[str, Any]:
    """Return what is set beside the messages: JSON, or what is none as a string."""
    members: dict[str, Any] = {"model": model} if model else {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--set: {each} has no value")
        try:
            members[name] = json.loads(value)
        except ValueError:
            members[name] = value
    return members


def _print(report: Report) -> None:
    for line in report.lines:
        click.echo(line)
    for remark in report.remarks:
        click.echo(f"gateway: {remark}", err=True)
    sys.exit(report.code)
