"""Makes the manual page from the commands themselves: their help texts, options and examples, in man(7) macros.

`make docs` writes it to man/ionos-poller.1, which the wheel installs; a test checks that it is up to date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

import click

from poller import __version__
from poller.cli import cli
from poller.cli.options import _OPTIONS as GLOBAL_OPTIONS

NAME = "ionos-poller"

# Variables that no option or docstring names. A test checks that the program reads each of them.
ENVIRONMENT = {
    "IONOS_API_TOKEN, IONOS_TOKEN": "Token of the IONOS API; the first that is set counts.",
    "IONOS_USERNAME, IONOS_PASSWORD": "Instead of a token; works only without 2FA.",
    "IONOS_API_URL": "Base URL of the API. Default: https://api.ionos.com.",
    "IONOS_POLLER_CONFIG": "As --config.",
    "IONOS_POLLER_STATE_DIR": "As --state-dir.",
    "IONOS_POLLER_SECTION__KEY": "Any key of the configuration, such as IONOS_POLLER_POLL__INTERVAL=60s.",
    "HTTPS_PROXY, HTTP_PROXY, NO_PROXY": "Proxies.",
    "REQUESTS_CA_BUNDLE": "CA certificates to trust instead of the system's.",
    "CREDENTIALS_DIRECTORY, STATE_DIRECTORY, NOTIFY_SOCKET": "Set by systemd; used without further configuration.",
    "NO_COLOR": "No colours on a terminal. TERM=dumb has none either, and nothing on it moves.",
}
FILES = {
    "./ionos-poller.toml, /etc/ionos-poller/config.toml": "The configuration, if no other is named.",
    "./state, /var/lib/ionos-poller": "The state: by default, and as a service.",
}


def render() -> str:
    """The whole page."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    top = click.Context(cli, info_name=NAME, **cli.context_settings)
    summary, *description = _paragraphs(cli)
    yield f'.TH {NAME.upper()} 1 "" "{NAME} {_text(__version__)}"'  # no date: the same commands make the same page
    yield from (".ad l", ".nh")  # no justification, no hyphens: readers search for names of options
    yield from (".SH NAME", _text(f"{NAME} - {summary[0].lower()}{summary[1:].rstrip('.')}"))
    yield from (".SH SYNOPSIS", f".B {_text(NAME)}", _text(" ".join(cli.collect_usage_pieces(top))))
    yield from (".SH DESCRIPTION", *_body([summary, *description]))
    yield ".SH OPTIONS"
    yield "These stand before the command or behind it; the nearer one counts."
    yield from _options(top, cli.get_params(top))
    yield ".SH COMMANDS"
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        yield from _command(command, click.Context(command, parent=top, info_name=name))
    yield from (".SH ENVIRONMENT", *_list(ENVIRONMENT.items()))
    yield from (".SH FILES", *_list(FILES.items()))
    yield from (".SH SEE ALSO", r"\fBjournalctl\fR(1), \fBsystemd.exec\fR(5)")


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    yield f".SS {_text(' '.join([ctx.command_path.removeprefix(f'{NAME} '), *command.collect_usage_pieces(ctx)]))}"
    yield from _body(_paragraphs(command))
    yield from _options(ctx, [param for param in command.params if param not in GLOBAL_OPTIONS])
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            if (inner := command.get_command(ctx, name)) is not None:
                yield from _command(inner, click.Context(inner, parent=ctx, info_name=name))


def _options(ctx: click.Context, params: Iterable[click.Parameter]) -> Iterator[str]:
    yield from _list(record for param in params if (record := param.get_help_record(ctx)))


def _list(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in items:
        yield from (".TP", rf"\fB{_text(term)}\fR", _text(" ".join(text.split())))


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _body(paragraphs: list[str]) -> Iterator[str]:
    """Text as paragraphs. After click's mark comes a list or an example: its lines are kept as they are."""
    for number, paragraph in enumerate(paragraphs):
        mark, _, lines = paragraph.partition("\n")
        if mark == "\b":
            head, *rest = lines.split("\n")
            yield from (".PP", _text(head), ".RS 4", ".nf", *map(_text, inspect.cleandoc("\n".join(rest)).split("\n")))
            yield from (".fi", ".RE")
        else:
            if number:
                yield ".PP"
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """The text, escaped for roff. A line that looks like a request is printed as text."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
