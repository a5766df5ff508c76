"""The line of the configuration that a key is on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poller.config import describe, load
from poller.config.places import line_of, places
from poller.core.errors import ConfigError

TEXT = '''\
# [poll] is no table here
state_dir = "a"   # = "b"

[api]
url = "https://x"
"page_size" = 7
description = """
[sinks]
url = "no key"
"""
[[sinks]]
name = "a"
labels = { x = "]" , y = "[" }
[sinks.redact]
drop = [
  "one",  # ]
  'two = "',
]
[[sinks]]
name = "b"
redact.mask = ["c"]
[filter]
exclude = [{ type = "x" },
  { type = 1 }]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("state_dir", 2),
        ("api", 4),
        ("api.url", 5),
        ("api.page_size", 6),
        ("sinks", 11),
        ("sinks[0]", 11),
        ("sinks[0].name", 12),
        ("sinks[0].labels", 13),
        ("sinks[0].labels.x", 13),
        ("sinks[0].redact.drop[0]", 16),
        ("sinks[0].redact.drop[1]", 17),
        ("sinks[1]", 19),
        ("sinks[1].url", 19),
        ("sinks[1].redact.mask", 21),
        ("filter.exclude[0]", 23),
        ("filter.exclude[0].type", 23),
        ("filter.exclude[1]", 24),
        ("filter.exclude[1].type", 24),
        ("filter.exclude[1].user", 24),
        ("filter.exclude[2]", 23),
        ("poll.interval", None),
        ("poll", None),
        ("IONOS_POLLER_POLL__INTERVAL", None),
    ],
)
def test_each_key_and_element_is_found_on_its_line_and_what_is_missing_on_the_line_around_it(
    path: str, line: int | None
) -> None:
    assert line_of(path, places(TEXT)) == line


NESTED = """x = [[1, 2], [3]]
'y z' = { a = { b = 1 }, c = [
  { d = 2 }, "e"] , f = 3 }

[a.b]
"c".d = 1
[a."b".e]
f = \"\"\"x\"\"\""
g = \'\'\'
y\'\'\'
[[l.m]]
n = true
[[l.m.o]]
[[l.m]]
[[l.m.o]]
p = []
[l.m.q]
r = "\\\\"
"""


def test_tables_in_tables_and_lists_in_lists_have_their_own_paths() -> None:
    lines: dict[str, int] = {}
    for number, *paths in (
        (1, "x", "x[0]", "x[0][0]", "x[0][1]", "x[1]", "x[1][0]"),
        (2, "y z", "y z.a", "y z.a.b", "y z.c"),
        (3, "y z.c[0]", "y z.c[0].d", "y z.c[1]", "y z.f"),
        (5, "a", "a.b"),
        (6, "a.b.c", "a.b.c.d"),
        (7, "a.b.e"),
        (8, "a.b.e.f"),
        (9, "a.b.e.g"),
        (11, "l", "l.m", "l.m[0]"),
        (12, "l.m[0].n"),
        (13, "l.m[0].o", "l.m[0].o[0]"),
        (14, "l.m[1]"),
        (15, "l.m[1].o", "l.m[1].o[0]"),
        (16, "l.m[1].o[0].p"),
        (17, "l.m[1].q"),
        (18, "l.m[1].q.r"),
    ):
        lines |= dict.fromkeys(paths, number)
    assert places(NESTED) == lines


def test_every_key_of_the_example_is_found() -> None:
    text = re.sub(r"^#(?=\S)", "", describe.example(), flags=re.MULTILINE)
    found = places(text)
    assert {"state_dir", "api.page_size", "poll", "sinks[3]", "filter.exclude"} <= set(found)
    for path, line in found.items():
        assert path.rpartition(".")[2].partition("[")[0] in text.splitlines()[line - 1], path


def test_a_problem_is_told_with_file_and_line_unless_a_variable_made_it(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[poll]\noverlap = "5m"\ninterval = "0s"\n[[sinks]]\nname = "a"\ntype = "loki"\n')
    with pytest.raises(ConfigError) as caught:
        load(file, {"IONOS_POLLER_POLL__OVERLAP": "x"})
    told = sorted(map(str, caught.value.problems))
    assert told[0].startswith(f"{file}:3: poll.interval: 0s is too small")
    assert told[1].startswith(f"{file}:4: sinks[0].url: missing")
    assert told[2].startswith("IONOS_POLLER_POLL__OVERLAP: ")


def test_problems_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[redact]\nhash = ["a"]\n[poll]\ninterval = "x"\nintervall = 1\n[api]\nurl = 5\n')
    with pytest.raises(ConfigError) as caught:
        load(file, {"IONOS_POLLER_OUTBOX__MAX_BYTES": "many"})
    assert [problem.place.rpartition(":")[2] for problem in caught.value.problems] == ["2", "4", "5", "7", ""]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[api]\n\nurl = \n", ":3: is not valid TOML: Invalid value (at line 3, column 7)"),
        (b"[api]\n[api]\n", ":2: is not valid TOML: Cannot declare"),
        (b"a = [", ": is not valid TOML: "),
        (b"# one\nx = '\xff'\n", ":2: is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_as_toml_is_told_with_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "my.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}{told}")


def test_an_account_without_credentials_is_told_with_its_line_when_they_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[[accounts]]\nname = "a"\ntoken_env = "T"\n\n[[accounts]]\nname = "b"\n')
    accounts = load(file, {"T": "t"}).accounts
    with pytest.raises(ConfigError) as caught:
        accounts[1].credentials()
    assert str(caught.value).startswith(f"{file}:5: accounts.b.token: no IONOS API token")


def test_a_path_with_odd_brackets_ends_the_search_for_its_line() -> None:
    assert [line_of(path, places("[x]\n")) for path in ("a]", "x.a]", "x.[", "]", ".")] == [None, 1, 1, None, None]
