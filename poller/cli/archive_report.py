"""The output of `archive verify`: what is proven and what is not, as text or as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from poller.core.amounts import plural
from poller.core.windows import format_time

if TYPE_CHECKING:
    from poller.pipeline.verify import HeldHour, Report

_TOLD_HOURS = 20


def lines_of(report: Report) -> Iterator[str]:
    """A summary in a few lines, without the findings themselves."""
    found = plural(len(report.findings) + report.more, "finding")
    if report.stopped_by:
        yield "not finished, so nothing is proven"
        yield f"  read up to there: {plural(report.objects, 'object')} of {plural(report.digests, 'digest')}, {found}"
        return
    if not report.digests:
        yield "nothing is proven: there is no digest"
        return
    span = f", {report.first[:10]} to {report.last[:10]}" if report.entries else ""
    state = "unchanged since written" if report.is_proven else f"NOT PROVEN: {found}"
    yield f"{plural(report.entries, 'entry')} of {plural(report.contracts, 'contract')}{span}, {state}"
    yield f"  in {plural(report.objects, 'object')} of {plural(report.digests, 'digest')}"
    yield from _completeness(report)
    yield from _signatures(report)
    if report.sha256:  # empty if the newest digest could not be read
        yield "newest digest (with --head, it finds an archive that was cut at its end):"
        yield f"  {report.digests}:{report.sha256}"


def _completeness(report: Report) -> Iterator[str]:
    stated = report.complete + len(report.incomplete) + report.damaged
    if stated:
        yield f"complete: the API counted the same in {report.complete:,} of {plural(stated, 'hour')}"
    else:
        yield "complete: not known, as no hour is stated: no audit has closed one yet"
    if report.damaged:
        yield f"  {plural(report.damaged, 'hour')} with findings"
    for held in report.incomplete[:_TOLD_HOURS]:
        yield f"  contract {held.contract}, {format_time(held.start)}: {_difference(held)}"
    if len(report.incomplete) > _TOLD_HOURS:
        yield f"  ... and {plural(len(report.incomplete) - _TOLD_HOURS, 'more hour')}: --json names each"
    if report.unstated and stated:
        entries = plural(sum(held.hour.held for held in report.unstated), "entry")
        yield f"  {plural(len(report.unstated), 'hour')} with {entries} not stated yet: not over, or not audited"


def _difference(held: HeldHour) -> str:
    statement = held.hour.statement
    assert statement is not None  # noqa: S101 - only stated hours differ
    gaps = ", ".join(f"{gap.start}/{gap.end} ({gap.kind})" for gap in statement.gaps)
    if statement.api is None:
        # The digest does not name a gap that was closed after the audit, or a gap of a state that did not write the digest.
        what = f"a gap lies in it, {gaps}" if gaps else "a gap lay in it when it was audited"
        return f"{what}; {plural(held.hour.held, 'entry is', 'entries are')} here"
    later = ", some of them came later" if held.hour.held > statement.archived else ""
    here = plural(held.hour.held, "is", "are")
    return f"the API counted {statement.api:,}, {here} here{later}{f'; gaps: {gaps}' if gaps else ''}"


def _signatures(report: Report) -> Iterator[str]:
    if not report.is_signed:
        yield "not signed: anyone who can write there could have replaced all of it"
        return
    if report.key is not None and report.key not in report.keys:
        yield "signed, but not with the given key:"
    elif report.key is None:
        yield "signed, with the key that the archive itself names (--public-key: your own):"
    else:
        yield "signed with the given key:" if len(report.keys) == 1 else "signed with the given key and other keys:"
    yield from (f"  {key}" for key in report.keys)
    if report.signed_from > 1:
        yield f"signed from digest {report.signed_from} on, which proves those before it by their hashes"


def as_data(report: Report) -> dict[str, Any]:
    """The report as data, for `--json`."""
    return {
        "proven": report.is_proven,
        "finished": not report.stopped_by,
        "stopped_by": report.stopped_by,
        "findings": [finding._asdict() for finding in report.findings],
        "more_findings": report.more,
        "head": {"number": report.digests, "sha256": report.sha256},
        "digests": report.digests,
        "objects": report.objects,
        "entries": report.entries,
        "contracts": report.contracts,
        "first": report.first,
        "last": report.last,
        "hours": {
            "complete": report.complete,
            "damaged": report.damaged,
            "incomplete": [_hour(held) for held in report.incomplete],
            "unstated": [_hour(held) for held in report.unstated],
        },
        "signed": report.is_signed,
        "signed_from": report.signed_from,
        "keys": report.keys,
        "trusted_key": report.key,
    }


def _hour(held: HeldHour) -> dict[str, Any]:
    statement = held.hour.statement
    known = {"contract": held.contract, "hour": format_time(held.start), "archived": held.hour.held}
    return known if statement is None else {**known, "api": statement.api, "gaps": statement.gaps}
