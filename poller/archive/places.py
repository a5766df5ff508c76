"""Opens the place of an archive by its URL, and checks whether an archive is there."""

from __future__ import annotations

from poller.archive import LostChainError, NoDirectoryError, Place
from poller.archive.directory import DirectoryPlace
from poller.config import ArchiveSink, Config
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import DATA, DIGESTS, digest_key, sha256


def open_place(settings: ArchiveSink, config: Config, *, is_patient: bool = False) -> Place:
    """The place that a configuration table describes. The library for buckets is imported only for one.  Raises: ConfigError.

    `is_patient`: requests to a bucket are repeated if that may help, for callers that have no other way to wait.
    """
    if settings.directory is not None:
        return DirectoryPlace(settings.directory)
    from poller.archive.s3 import S3Place

    return S3Place(settings, config, is_patient=is_patient)


def has_digest(place: Place, number: int, digest_sha256: str) -> bool:
    """Whether a digest exists there, with its original content.  Raises: PlaceError."""
    there = place.get(digest_key(number))
    return there is not None and sha256(there) == digest_sha256


def is_empty_for(place: Place, head: Head) -> bool:
    """Whether an archive can begin there. If not, the chain that ends with `head` is there.

    Raises: LostChainError if that chain is not there, but other objects of an archive are; PlaceError.
    """
    if has_digest(place, head.number, head.sha256):
        return False
    try:
        if any(True for prefix in (DIGESTS, DATA) for _ in place.listing(prefix)):
            raise LostChainError(f"{place.url}/{digest_key(head.number)}")
    except NoDirectoryError:
        pass
    return True
