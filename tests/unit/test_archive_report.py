"""What `archive verify` says about incomplete hours, about objects that it could not read, and about signatures."""

from __future__ import annotations

import pytest

from poller.cli.archive_report import as_data, lines_of
from poller.core.evidence.chain import Finding, Hour
from poller.core.evidence.digest import StatedGap, Statement
from poller.pipeline.verify import HeldHour, Report

HOUR = "2026-04-11T17:00:00Z"
GAP = StatedGap("2026-04-11T17:03:01Z", "2026-04-11T17:03:02Z", "unreadable")


@pytest.mark.parametrize(
    ("statement", "held", "said"),
    [
        (
            Statement("1", HOUR, None, 31, (GAP,)),
            31,
            f"a gap lies in it, {GAP.start}/{GAP.end} (unreadable); 31 entries",
        ),
        # The gap was closed since, or is of another state: the digest then names no gap, and the report does not say more.
        (Statement("1", HOUR, None, 31), 31, "a gap lay in it when it was audited; 31 entries"),
        (Statement("1", HOUR, 30, 28), 28, "the API counted 30, 28 are here"),
        (Statement("1", HOUR, 30, 28), 31, "the API counted 30, 31 are here, some of them came later"),
        (Statement("1", HOUR, 30, 28, (GAP,)), 28, f"the API counted 30, 28 are here; gaps: {GAP.start}/{GAP.end} (un"),
    ],
)
def test_an_hour_that_is_not_complete_says_what_is_known_of_it(statement: Statement, held: int, said: str) -> None:
    hour = HeldHour("1", 1_775_926_800, Hour(statement, held))
    report = Report([], 0, "", 1, "ab", 1, 31, 1, HOUR, HOUR, 0, 0, [hour], [], 0, [], None)
    assert any(line.startswith(f"  contract 1, {HOUR}: {said}") for line in lines_of(report)), list(lines_of(report))


WHOLE = Report([], 0, "", 7, "ab", 1, 31, 1, HOUR, HOUR, 1, 0, [], [], 1, ["key"], None)


def test_one_entry_is_told_as_one() -> None:
    hour = HeldHour("1", 1_775_926_800, Hour(None, 1))
    lines = list(lines_of(WHOLE._replace(entries=1, unstated=[hour])))
    assert lines[0].startswith("1 entry of 1 contract, ")
    assert "  1 hour with 1 entry not stated yet: not over, or not audited" in lines
    gap = HeldHour("1", 1_775_926_800, Hour(Statement("1", HOUR, None, 1), 1))
    lines = list(lines_of(WHOLE._replace(incomplete=[gap])))
    assert any(line.endswith("; 1 entry is here") for line in lines)


def test_what_could_not_be_read_to_its_end_is_not_called_proven() -> None:
    stopped = WHOLE._replace(stopped_by="s3://audit: SlowDown", findings=[Finding("data/x", "is missing")], more=2)
    assert list(lines_of(stopped)) == [
        "not finished, so nothing is proven",
        "  read up to there: 1 object of 7 digests, 3 findings",
    ]
    told = as_data(stopped._replace(findings=[], more=0))
    assert (told["proven"], told["finished"], told["stopped_by"]) == (False, False, "s3://audit: SlowDown")
    told = as_data(WHOLE)
    assert (told["proven"], told["finished"], told["more_findings"]) == (True, True, 0)


def test_from_which_digest_on_an_archive_is_signed_is_said_where_it_is_not_the_first() -> None:
    late = "signed from digest 5 on, which proves those before it by their hashes"
    assert late in list(lines_of(WHOLE._replace(signed_from=5)))
    assert not any("from digest" in line for line in lines_of(WHOLE))
    assert as_data(WHOLE._replace(signed_from=5))["signed_from"] == 5


def test_with_which_key_it_is_signed_is_said() -> None:
    for key, said in (
        (None, "signed, with the key that the archive itself names (--public-key: your own):"),
        ("key", "signed with the given key:"),
        ("other", "signed, but not with the given key:"),
    ):
        told = list(lines_of(WHOLE._replace(key=key)))
        assert told[told.index("  key") - 1] == said
    assert "signed with the given key and other keys:" in list(lines_of(WHOLE._replace(keys=["a", "key"], key="key")))


def test_findings_that_were_not_kept_are_counted() -> None:
    told = list(lines_of(WHOLE._replace(findings=[Finding("data/x", "is missing")], more=1_000_000)))
    assert told[0].endswith("NOT PROVEN: 1,000,001 findings")
