"""The documentation agrees with the code, as far as a test can check it."""

from __future__ import annotations

import ast
import re
import tomllib
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from poller.cli import cli
from poller.config import AnySink
from poller.service.metrics import Metrics
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.build import FACTORIES
from tests import man_page
from tests.documents import PAGES, name_of
from tests.faults.cluster_plants import CLUSTER_PLANTS
from tests.faults.plants import PLANTS
from tests.generate_docs import MAN_PAGE, MAPPINGS, PATH, render_mappings
from tests.pictures import flow
from tests.states import open_state
from tests.support import TOP


def test_the_page_of_the_formats_is_up_to_date() -> None:
    assert MAPPINGS.read_text() == render_mappings(), "run `make docs`"


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


def test_the_help_of_simulate_names_every_receiver_that_it_plays() -> None:
    with Simulator(SimulatorSettings()) as simulator:
        names = set(simulator.intakes)
    command = cli.get_command(click.Context(cli), "simulate")
    assert command is not None
    assert set(re.findall("/sink/([a-z]+)", command.help or "")) == names


def test_the_program_reads_every_variable_that_the_manual_page_names() -> None:
    source = "\n".join(path.read_text() for path in (TOP / "poller").rglob("*.py"))
    names = {name for names in man_page.ENVIRONMENT for name in names.split(", ")}
    for name in names - {"IONOS_POLLER_SECTION__KEY"}:
        assert name in source or name.lower() in source, name  # proxies are read in lower case, too


def anchors(page: Path) -> set[str]:
    """The anchors in a page, as GitHub makes them from its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)", page.read_text()):
        leads_to = page.parent / target if target else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), (target, anchor)


def test_every_page_is_found_from_the_first() -> None:
    index = TOP / "docs" / "README.md"
    assert f"]({name_of(index)})" in (TOP / "README.md").read_text()
    links = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]*)\)", index.read_text())}
    assert [name_of(page) for page in PAGES[1:] if page != index and page not in links] == []


def test_the_first_page_fits_a_screen_and_begins_with_a_picture() -> None:
    text = (TOP / "README.md").read_text()
    assert len(text.splitlines()) < 70
    assert text.index("<picture>") < text.index("## ")


def test_the_drawing_of_where_entries_flow_has_every_sink() -> None:
    kept = TOP / "docs" / "pictures" / "flow.svg"
    assert kept.read_text() == flow(), 'run `make pictures ARGS="--only flow"`'


def test_every_picture_of_a_page_is_there_and_small() -> None:
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]+\]\(([^)]+)\)', page.read_text())
        for name in filter(None, name)
    }
    kept = set((TOP / "docs" / "pictures").iterdir())
    assert shown == kept
    assert [path.name for path in kept if path.stat().st_size > 200_000] == []
    assert [path.name for path in kept if path.suffix == ".svg" and "@import" in path.read_text()] == []


def test_the_page_on_architecture_has_every_room() -> None:
    page = (TOP / "docs" / "architecture.md").read_text()
    for path in (TOP / "poller").iterdir():
        name = f"{path.name}/" if (path / "__init__.py").exists() else path.stem
        assert f"`{name}`" in page or name.startswith("__"), name
    for path in (TOP / "poller" / "store").iterdir():
        assert f"| `store/{path.name}/` |" in page or not (path / "__init__.py").exists(), path


def test_the_first_page_of_the_documentation_has_every_command() -> None:
    page = (TOP / "docs" / "README.md").read_text()
    for name in cli.list_commands(click.Context(cli)):
        assert f"`ionos-poller {name}" in page or f"`{name}`" in page, name


def test_the_page_on_faults_has_every_mistake_that_is_made_on_purpose() -> None:
    page = (TOP / "docs" / "faults.md").read_text()
    for plants in (PLANTS, CLUSTER_PLANTS):
        table = page.partition("| mistake | found ")[2]
        rows, _, page = table.partition("\n\n")
        assert len(rows.splitlines()) - 2 == len(plants)


def test_the_pages_on_sinks_and_delivery_have_every_type() -> None:
    page = (TOP / "docs" / "sinks.md").read_text()
    promises = (TOP / "docs" / "delivery.md").read_text()
    types = re.findall(r'^## \[\[sinks\]\] of type "(.*)"$', PATH.read_text(), re.MULTILINE)
    assert types
    for name in types:
        assert f'\ntype = "{name}"\n' in page
        assert f"\n| `{name}`" in promises


def test_the_table_of_sinks_says_what_the_tables_and_the_sinks_say() -> None:
    page = (TOP / "docs" / "sinks.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| [`")]
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    units = {"KiB": 1024, "MiB": 1024**2, "MB": 1000**2}
    told = {name: row for row in rows for name in re.findall("`([a-z-]+)`", row[0])}
    for table in get_args(AnySink):
        name = table.__struct_config__.tag
        defaults = {field.name: field.default for field in msgspec.structs.fields(table)}
        limits = told[name][5]
        size, unit = re.findall(r"([\d,]+) (KiB|MiB|MB)", limits)[0]
        assert int(size.replace(",", "")) * units[unit] == defaults["max_event_bytes"], name
        paces = re.findall(r"(\d+) requests a second", limits)
        assert all(float(pace) == defaults["requests_per_second"] for pace in paces), name
        assert paces or "requests_per_second" not in defaults or name in ("loki", "moesif", "firehose"), name
        module = import_module(FACTORIES[name][0])
        statuses = {int(status) for status in re.findall(r"\b20\d\b", told[name][2].partition("of the item")[0])}
        assert statuses == set(getattr(module, "SUCCESSES", ())), name
        wanted = re.findall(r"ionos-poller\[(\w+)\]", " ".join(told[name][6:]))
        assert set(wanted) <= set(extras)
        assert bool(wanted) == (name in extras), name
    of_format = page.partition("**`format`**")[2].partition(":")[0]
    formats = {
        table.__struct_config__.tag
        for table in get_args(AnySink)
        if any(field.name == "format" for field in msgspec.structs.fields(table))
    }
    assert set(re.findall("`([a-z]+)`", of_format)) == formats - {"elasticsearch"}


def test_every_source_that_is_cited_is_a_section_of_the_page_on_facts() -> None:
    sections = set(re.findall(r"^## (.*)$", (TOP / "docs" / "facts.md").read_text(), re.MULTILINE))
    citations = [
        (path.name, re.findall(r'"([^"]+)"', names))
        for room in ("poller", "tests")
        for path in (TOP / room).rglob("*.py")
        for names in re.findall(r'(?<!")docs/facts\.md, ("[^"]+"(?: and "[^"]+")*)', path.read_text())
    ]
    assert len(citations) > 15
    assert [cited for cited in citations if not set(cited[1]) <= sections] == []


def test_the_page_on_metrics_has_every_metric_and_its_kind(tmp_path: Path) -> None:
    page = (TOP / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(\w+?)(?:_total)?` \| (counter|gauge|histogram) ", page, re.MULTILINE))
    with closing(open_state(tmp_path)) as state:
        families = list(Metrics(state.overview).registry.collect())
    assert listed == {(family.name.removeprefix("ionos_poller_"), family.type) for family in families}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_a_page_names_exists(page: Path) -> None:
    typed = r"(?<![\w/-])ionos-poller ((?:[a-z][a-z-]*|--[a-z-]+)(?: [^`\n#|>]*)?)"
    for words in re.findall(typed, page.read_text()):
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


# Words that were replaced by plain ones, in everything a person reads: code, tests and pages.
LITERARY = (
    r"heed(ed|s|ing)?", "minds", "whoever", "aloud", "in vain", "a liking", "in the midst", "let be", "twins?", "open_beside",
    r"(is|are|was|were)( not)? to be (read|made|sent|told|kept|shown|tried|had|mended|collected|done|taken|found)",
    "so far before", "wants a person", "gravest", "at most so many",
    "likewise", r"lets? go of", r"letting go of", "takes whatever comes", "case ignored nowhere", r"where (there )?is none,",
    "may this user", "is it the right file", "sees to", "hence", r"made, where",
    "what lies in between", "loudly", "such as differ", "told from [0-9]+", "out of our sight", "not for sale",
)  # fmt: skip
# Files that keep such words: bytes that are part of an entry's identity, and this list.
KEPT = {"poller/core/events.py", "tests/unit/test_docs.py"}
READ = ("poller", "tests", "docs", "man", "grafana", "fluent-bit", "systemd", "kubernetes", "opensearch")
SUFFIXES = {".py", ".md", ".1", ".toml", ".conf", ".yaml", ".service", ""}


def test_words_that_were_replaced_by_plain_ones_do_not_come_back() -> None:
    word = re.compile(rf"\b({'|'.join(LITERARY)})\b", re.IGNORECASE)
    paths = [path for room in READ for path in (TOP / room).rglob("*") if "__pycache__" not in path.parts]
    paths += [TOP / name for name in ("README.md", "SECURITY.md", "Makefile", "Dockerfile", "pyproject.toml")]
    found = [
        f"{name}:{number}: {line.strip()}"
        for path in paths
        if path.is_file() and path.suffix in SUFFIXES and (name := path.relative_to(TOP).as_posix()) not in KEPT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert found == []


def test_what_the_program_says_to_do_is_no_question() -> None:
    """Exceptions: suggestions of a word, and questions that a person has to confirm."""
    asked = {
        "Do this?",
        "'?",
        "?",
        " for good?",
        ". Make a new one? Senders with the old one are then refused",
    }
    found = []
    for path in (TOP / "poller").rglob("*.py"):
        tree = ast.parse(path.read_text())
        parts = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = {ast.get_docstring(part, clean=False) for part in parts}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            is_pattern = "[" in text  # a regular expression
            if re.search(r"[\w'`]\?( |$)", text) and not is_pattern and text not in docstrings | asked:
                found.append(f"{path.name}:{node.lineno}: {text}")
    assert found == []
