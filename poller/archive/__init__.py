"""Where archives are, and their keys: a directory or a bucket, behind one small protocol.

A room of its own, because a sink writes there, a use case verifies what is there, and neither may import the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from poller.core.errors import PollerError


class PlaceError(PollerError):
    """The place does not do what was asked. `is_refused`: it refuses us, and a person is needed; else it may work later.

    `is_of_object`: it is this one object that cannot be read, and will not be: others can.
    """

    def __init__(self, message: str, *, hint: str = "", is_refused: bool = False, is_of_object: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_refused = is_refused
        self.is_of_object = is_of_object

    @property
    def may_pass(self) -> bool:
        """Whether the same may work when it is tried again."""
        return not self.is_refused and not self.is_of_object


class TakenError(PlaceError):
    """The key already holds something else. Nothing was changed."""

    def __init__(self, where: str) -> None:
        hint = "another state writes to this archive: give it a prefix of its own, or see `ionos-poller archive rebuild-state`"
        super().__init__(f"{where} is there already, with other content", hint=hint, is_refused=True)


class LostChainError(PlaceError):
    """The place lacks the digest that the next one follows, or has another one there. Nothing was written."""

    def __init__(self, where: str) -> None:
        hint = "mount the disk, or put back what was there; for a new archive, give url another prefix"
        super().__init__(f"{where}: the archive's newest digest is not here", hint=hint, is_refused=True)


class NoDirectoryError(PlaceError):
    """There is no such directory: an archive may begin there."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: there is no such directory", hint="check the path")


class Listed(NamedTuple):
    """One object: its key, its size, and how many versions of it there are. `is_deleted`: the newest version is a deletion.

    `is_draft`: no object yet, but what its writer has written so far, or had when it was killed.
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
        """Where it is, for a person."""

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        """Write an object durably and whole, or not at all. What is there already with this content stays as it is.

        `retain_until` (unix seconds): locked until then, where the place locks.  Raises: TakenError where other content is there.
        """

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """The content of an object; None where there is none. Of one larger than `max_bytes`, one byte more than that."""

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Every object whose key begins with `prefix` (empty: all of them), in the order of keys.

        Where a part of the place cannot be listed, its key is told in place of those in it, and ends in a slash.
        """

    def delete(self, key: str) -> None:
        """Delete an object. One that is not there is deleted already."""

    def probe(self) -> list[str]:
        """Try whether objects can be written and are kept as configured. Returns what works, in a few words each."""
