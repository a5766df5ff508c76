"""Taking entries out of an archive again. Each object is checked against its digest as it is read."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator

from poller.archive import Place
from poller.core.errors import PollerError
from poller.core.evidence.batches import HOUR_SECONDS
from poller.core.evidence.digest import Digest, DigestError, Object, decode, digest_key, number_of, sha256
from poller.core.windows import Window
from poller.pipeline.verify import seconds_of

_GZIP_FORMAT = 31
_DIGESTS = "digests/"


class DamagedArchiveError(PollerError):
    """What is in the archive is not what was written."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}", hint="`ionos-poller archive verify` names all that is wrong")


def digests_of(place: Place) -> Iterator[tuple[int, str, Digest]]:
    """The digests in order: number, SHA-256, content.

    Raises: PlaceError; DamagedArchiveError where the chain is broken, or there is none.
    """
    numbers = sorted(
        found[0] for listed in place.listing(_DIGESTS) if (found := number_of(listed.key)) and found[1] == "json"
    )
    previous = ""
    for expected, number in enumerate(numbers or [0], start=1):
        content = place.get(digest_key(expected)) if number == expected else None
        if content is None:
            raise DamagedArchiveError(f"{place.url}/{digest_key(expected)}", "is missing")
        try:
            digest = decode(content)
        except DigestError as error:
            raise DamagedArchiveError(digest_key(number), str(error)) from error
        if digest.number != number or digest.previous != previous:
            raise DamagedArchiveError(digest_key(number), "does not follow the one before")
        previous = sha256(content)
        yield number, previous, digest


def chosen_objects(digest: Digest, span: Window | None, contracts: Collection[str]) -> Iterator[Object]:
    """The objects of a digest that can hold entries of the span (None: any) and of the contracts (empty: all)."""
    for entry in digest.objects:
        start = seconds_of(entry.hour)
        is_inside = span is None or (span.start < start + HOUR_SECONDS and start < span.end)
        if is_inside and (not contracts or entry.contract in contracts):
            yield entry


def lines_in(place: Place, entry: Object) -> list[bytes]:
    """The entries of an object, in order.  Raises: PlaceError, DamagedArchiveError."""
    content = place.get(entry.key)
    if content is None:
        raise DamagedArchiveError(entry.key, "is missing")
    if sha256(content) != entry.sha256:
        raise DamagedArchiveError(entry.key, "was changed")
    try:
        return zlib.decompress(content, _GZIP_FORMAT).split(b"\n")[:-1]
    except zlib.error as error:
        raise DamagedArchiveError(entry.key, "is no gzip file") from error
