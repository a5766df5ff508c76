"""The documentation says what the code does, where that can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poller.cli import cli
from tests.generate_docs import PATH, render
from tests.support import TOP

PAGES = sorted([TOP / "README.md", *(TOP / "docs").glob("*.md")])


def test_the_configuration_reference_is_up_to_date() -> None:
    assert PATH.read_text() == render(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_a_page_names_exists(page: Path) -> None:
    import click

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
