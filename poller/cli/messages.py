"""What a person is told on stderr, in one line."""

from __future__ import annotations

from contextlib import suppress

import click


def tell(message: str) -> None:
    """One line on stderr, in the program's name."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    with suppress(OSError):
        click.echo(f"{click.style('ionos-poller:', fg='red', bold=True)} {line}", err=True)
