"""The places of archives, directories and buckets, behind one small protocol; and the keys that sign archives.

This is a separate package because a sink writes archives and a use case verifies them, and neither may import the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from poller.core.errors import PollerError


class PlaceError(PollerError):
    """A request to the place failed. `is_refused`: it refuses us, and a person is needed; otherwise it may work later.

    `is_of_object`: only this object cannot be read, now or later; other objects can.
    """

    def __init__(self, message: str, *, hint: str = "", is_refused: bool = False, is_of_object: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_refused = is_refused
        self.is_of_object = is_of_object

    @property
    def may_pass(self) -> bool:
        """Whether the same request may work later."""
        return not self.is_refused and not self.is_of_object


class TakenError(PlaceError):
    """The key already has other content. Nothing was changed."""

    def __init__(self, where: str) -> None:
        hint = "another state writes to this archive: give it a prefix of its own, or see `ionos-poller archive rebuild-state`"
        super().__init__(f"{where} is there already, with other content", hint=hint, is_refused=True)


class LostChainError(PlaceError):
    """The place lacks the newest digest of the chain, or has another one there. Nothing was written."""

    def __init__(self, where: str) -> None:
        hint = "mount the disk, or put back what was there; for a new archive, give url another prefix"
        super().__init__(f"{where}: the archive's newest digest is not here", hint=hint, is_refused=True)


class NoDirectoryError(PlaceError):
    """The directory does not exist. An archive may begin there."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: there is no such directory", hint="check the path")


class Listed(NamedTuple):
    """One object: its key, its size, and the number of its versions. `is_deleted`: the newest version is a deletion.

    `is_draft`: not an object yet, but a part of one. Its writer still works on it, or was killed.
    """

    key: str
    size_bytes: int
    versions: int = 1
    is_deleted: bool = False
    is_draft: bool = False


class Place(Protocol):
    """A set of objects under keys such as `digests/000000001.json`. Safe to use from several threads.

    Every method raises PlaceError; its text names the place.
    """

    @property
    def url(self) -> str:
        """The place, for a person."""

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        """Write an object durably and whole, or not at all. An object that already has this content stays as it is.

        `retain_until` (unix seconds): locked until then, if the place can lock.  Raises: TakenError if it has other content.
        """

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """The content of an object, but at most its first `max_bytes` + 1 bytes; None if the object does not exist."""

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Every object whose key begins with `prefix` (empty: all of them), in the order of keys.

        If a part of the place cannot be listed, one key stands for all objects in it, and ends in a slash.
        """

    def delete(self, key: str) -> None:
        """Delete an object. Does nothing if it does not exist."""

    def probe(self) -> list[str]:
        """Check that objects can be written and are kept as configured.  Returns: the results, in a few words each."""
