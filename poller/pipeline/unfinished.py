"""Closing a batch of an archive whose digest is lost, so that the chain can continue. Nothing is deleted.

A kill during a batch leaves objects, or a signature. Without the state, their digest cannot be made again. They may be locked, or
be the only sign that somebody removed the digest. So a new digest with the number of that batch names them as abandoned: they are
no part of the archive. The next batch has another number, and so other keys.
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
    """The head after a batch was closed, and its abandoned objects; empty if there was no such batch."""

    head: Head
    abandoned: list[Abandoned]


def close_unfinished(place: Place, sink: ArchiveSink, head: Head, now: int) -> Closed:
    """Write a digest that names the objects after the last digest, if there are any.

    Raises: ConfigError if it cannot be signed; PlaceError, DamagedArchiveError.
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
    """The objects and the signature of a batch after digest `last`, as far as they exist."""
    found = []
    for listed in (listed for prefix in (DATA, DIGESTS) for listed in place.listing(prefix)):
        number = written_for(listed.key) or 0
        if number > last + 1:  # no crash can do this, because there is one batch at a time
            what = f"the archive ends with digest {last}, so digests were removed: put them back from a copy"
            raise DamagedArchiveError(listed.key, what)
        if number > last and (content := place.get(listed.key)) is not None:
            found.append(Abandoned(listed.key, len(content), sha256(content)))
    return found
