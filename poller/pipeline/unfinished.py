"""Closing a batch of an archive whose digest is lost, so that the chain can go on behind it. Nothing is deleted.

A kill in mid-batch leaves objects, or a signature. Without the state nobody can make their digest again. They may be locked,
or be all that shows that somebody removed that digest. So a digest of its own, with the number of that batch, names them as
abandoned: they are no part of the archive. What follows has another number, and so other keys.
"""

from __future__ import annotations

from typing import NamedTuple

from poller import __version__
from poller.archive import Place, PlaceError
from poller.core.delivery import Accepted
from poller.core.evidence.batches import Head, PreparedBatch
from poller.core.evidence.compose import Facts, compose
from poller.core.evidence.digest import DATA, DIGESTS, Abandoned, encode, sha256, written_for
from poller.pipeline.archive import signers_of
from poller.pipeline.restore import DamagedArchiveError
from poller.sinks.archive import ArchiveSink


class Closed(NamedTuple):
    """The head after a batch was closed, and what of it is abandoned; nothing where there was none to close."""

    head: Head
    abandoned: list[Abandoned]


def close_unfinished(place: Place, sink: ArchiveSink, head: Head, now: int) -> Closed:
    """Have a digest name what lies behind the last one, if anything does.

    Raises: ConfigError where it cannot be signed; PlaceError, DamagedArchiveError.
    """
    left = _left_behind(place, head.number)
    if not left:
        return Closed(head, left)
    signer, next_key = signers_of(sink.evidence, head)
    digest = compose(
        Facts(head, (), {}, (), 0, 0, 0, 0),
        (),
        written_at=now,
        program=f"ionos-poller {__version__}",
        entry_format="raw",
        key=signer.key if signer else None,
        next_key=next_key,
        abandoned=left,
    )
    content = encode(digest)
    signature = signer.sign(content) if signer else None
    outcome = sink.write(PreparedBatch(digest.number, "", 0, now, content, signature, ()))
    if not isinstance(outcome, Accepted):
        raise PlaceError(outcome.reason)
    return Closed(head._replace(number=digest.number, sha256=sha256(content), key=next_key or digest.key), left)


def _left_behind(place: Place, last: int) -> list[Abandoned]:
    """What is there of a batch after digest `last`: its objects, its signature, or a part of them."""
    found = []
    for listed in (listed for prefix in (DATA, DIGESTS) for listed in place.listing(prefix)):
        number = written_for(listed.key) or 0
        if number > last + 1:  # which no crash makes: there is one batch at a time
            what = f"the archive ends with digest {last}, so digests were removed: put them back from a copy"
            raise DamagedArchiveError(listed.key, what)
        if number > last and (content := place.get(listed.key)) is not None:
            found.append(Abandoned(listed.key, len(content), sha256(content)))
    return found
