"""The report of `check` about a PostgreSQL server with any settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from poller.store.postgres import diagnosis
from poller.store.postgres.database import Connection
from poller.store.rows import Diagnosis


class Answers(Connection):
    """A connection with an answer for each query, chosen by the first words of the query."""

    def __init__(self, answers: dict[str, tuple[object, ...] | None]) -> None:
        self._answers = answers
        self._found: tuple[object, ...] | None = None

    def execute(self, query: str, *_: Any, **__: Any) -> Any:
        (self._found,) = [row for begin, row in self._answers.items() if query.startswith(begin)]
        return self

    def fetchone(self) -> tuple[object, ...] | None:
        return self._found


def said(look: Any, answers: dict[str, tuple[object, ...] | None]) -> list[Diagnosis]:
    looked: Iterator[Diagnosis] = look(Answers(answers), None)
    return list(looked)


@pytest.mark.parametrize(
    ("fsync", "full_page_writes", "synchronous_commit", "expected"),
    [
        ("on", "on", "on", []),
        ("on", "on", "remote_apply", []),
        ("on", "on", "off", ["synchronous_commit is off"]),
        ("off", "on", "on", ["fsync off"]),
        ("on", "off", "off", ["full_page_writes off"]),
        ("off", "off", "off", ["fsync and full_page_writes off"]),
    ],
)
def test_a_server_that_can_lose_what_it_committed_is_warned_of(
    fsync: str, full_page_writes: str, synchronous_commit: str, expected: list[str]
) -> None:
    answers: dict[str, tuple[object, ...] | None] = {
        "SHOW fsync": (fsync,),
        "SHOW full_page_writes": (full_page_writes,),
        "SHOW synchronous_commit": (synchronous_commit,),
    }
    found = said(diagnosis._durability, answers)
    assert [(one.level, one.message) for one in found] == [("warn", message) for message in expected]
    assert all(one.hint for one in found)


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (599, "ok"), (600, "warn"), (90_000, "warn")])
def test_a_transaction_that_is_open_for_long_is_warned_of(seconds: int, level: str) -> None:
    (found,) = said(diagnosis._transactions, {"SELECT count": (0,), "SELECT pid": (4711, seconds)})
    assert (found.level, "4711" in found.message) == (level, True)
    assert ("pg_terminate_backend(4711)" in found.hint) == (level == "warn")


def test_without_an_open_transaction_there_is_nothing_to_say() -> None:
    assert said(diagnosis._transactions, {"SELECT count": (0,), "SELECT pid": None}) == []
