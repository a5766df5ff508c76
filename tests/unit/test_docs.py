"""The documentation says what the code does, where that can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from poller.cli import cli
from tests import man_page
from tests.generate_docs import MAN_PAGE, PATH, render
from tests.support import TOP

PAGES = sorted([TOP / "README.md", *(TOP / "docs").glob("*.md")])


def test_the_configuration_reference_is_up_to_date() -> None:
    assert PATH.read_text() == render(), "run `make docs`"


def test_the_manual_page_is_up_to_date() -> None:
    assert MAN_PAGE.read_text() == man_page.render(), "run `make docs`"


def test_the_manual_page_names_every_command_and_option() -> None:
    page = MAN_PAGE.read_text().replace("\\-", "-")

    def is_complete(command: click.Command) -> None:
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.opts[0] in page, (command.name, param.opts)
        for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            assert re.search(rf"^\.SS .*\b{name}\b", page, re.MULTILINE), name
            is_complete(inner)

    is_complete(cli)


def test_the_program_reads_every_variable_that_the_manual_page_names() -> None:
    source = "\n".join(path.read_text() for path in (TOP / "poller").rglob("*.py"))
    names = {name for names in man_page.ENVIRONMENT for name in names.split(", ")}
    for name in names - {"IONOS_POLLER_SECTION__KEY"}:
        assert name in source or name.lower() in source, name  # proxies are read in small letters, too


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_a_page_names_exists(page: Path) -> None:
    for words in re.findall(r"ionos-poller ((?:[a-z][a-z-]*|--[a-z-]+)(?: [^`\n#|>]*)?)", page.read_text()):
        first, *rest = words.split()
        if first not in cli.list_commands(click.Context(cli)):
            assert first.startswith("--") or first in {"fetch;", "and"}, (page.name, words)
            continue
        command = cli.get_command(click.Context(cli), first)
        if isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest[0]]
        assert command is not None
        known = {option for param in [*command.params, *cli.params] for option in (*param.opts, *param.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in {*known, "--help"}, (page.name, words)
