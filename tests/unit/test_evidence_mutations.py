"""About 2,000 random changes to an archive, one at a time: each is found and named."""

from __future__ import annotations

import random

import pytest

from tests.archives import MUTATIONS, MemoryPlace, archive_of, signer, verify

TIMES = 2000 // len(MUTATIONS) + 1


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_somebody_did_to_an_archive_is_found_and_named(name: str) -> None:
    chance = random.Random(name)
    whole, known = archive_of()
    for number in range(TIMES):
        place = MemoryPlace(whole.objects)
        where = set(MUTATIONS[name](chance, place))
        report = verify(place, known, signer())
        named = {finding.where for finding in report.findings}
        assert named & where, f"{name}, the {number}th: {where} is not among {report.findings}"


def test_an_archive_that_nobody_touched_has_no_finding() -> None:
    place, known = archive_of()
    report = verify(place, known, signer())
    assert report.findings == []
    assert (report.digests, report.entries, report.contracts) == (5, 2 * sum(range(4, 9)), 2)
    assert report.complete == 8
