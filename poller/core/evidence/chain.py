"""Checks a chain of digests, read from the first to the last: what they prove together, and what is wrong with each. Pure.

`Chain` takes the digests in order and returns findings. It reads no files and imports no library to verify signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from poller.core.amounts import plural
from poller.core.evidence.digest import (
    Digest,
    DigestError,
    Statement,
    decode,
    decode_key,
    digest_key,
    sha256,
    signature_key,
)

Verify = Callable[[str, bytes, bytes], bool]
"""Called with a key (in the form of digests), bytes and signature: whether the key made this signature of these bytes."""


class Finding(NamedTuple):
    """One problem: the key of the object or digest that it concerns, and what is wrong."""

    where: str
    message: str


class Hour(NamedTuple):
    """What is known about an hour: the newest statement (None if there is none), and how many entries the objects hold."""

    statement: Statement | None
    held: int

    @property
    def is_complete(self) -> bool:
        """Whether the API counted as many entries as the archive holds."""
        return self.statement is not None and self.statement.api == self.statement.archived == self.held


class Chain:
    """The digests of one archive. Pass them in the order of their numbers."""

    def __init__(self, verify: Verify, trusted_key: str | None = None) -> None:
        """`trusted_key`: one of the archive's keys, given by a person. Without it, only the keys named in the archive are used.

        Any of the keys is enough: a digest holds the hash of the one before it, and each key announces the next one.
        """
        self._verify = verify
        self._trusted = trusted_key
        self._keys: list[str] = []
        self._key: str | None = None
        self._archive = ""
        self._entries = 0
        self._hours: dict[tuple[str, str], Hour] = {}
        self._counted: set[str] = set()  # digests, by their SHA-256
        self.number = 0
        """The number of the last digest that was read; 0 before the first."""
        self.head = ""
        """Its SHA-256."""
        self.signed_from = 0
        """The first digest with a signature, which covers those before it by their hashes; 0 if none has one."""
        self._is_unread = False  # whether the last digest could not be read

    @property
    def keys(self) -> list[str]:
        """The public keys that signed the chain, in order."""
        return self._keys

    @property
    def hours(self) -> Mapping[tuple[str, str], Hour]:
        """What is known about each hour, by contract and hour."""
        return self._hours

    def add(self, number: int, content: bytes, signature: bytes | None) -> tuple[Digest | None, list[Finding]]:
        """Check digest `number`, given its bytes and the bytes of its signature.  Returns: the digest, and the findings.

        The digest is None if the bytes are not a digest, or if they are a copy of one that was read and counted before.
        """
        where = digest_key(number)
        is_gap, previous = self._is_unread or number > self.number + 1, self.head
        found = list(self._missing_before(number))
        self.number, self.head, self._is_unread = number, sha256(content), False
        try:
            digest = decode(content)
            for key in (digest.key, digest.next_key):
                if key is not None:
                    decode_key(key)
        except DigestError as error:
            return None, [*found, Finding(where, f"was changed: {error}")]
        found += (Finding(where, message) for message in self._judge(digest, number, previous, is_gap=is_gap))
        found += self._judge_signature(number, digest, content, signature)
        if self.head in self._counted:
            return None, found
        self._counted.add(self.head)
        self._count(digest)
        found += (Finding(where, message) for message in self._judge_counts(digest, is_gap=is_gap))
        return digest, found

    def skip(self, number: int) -> list[Finding]:
        """Skip digest `number`, which exists but cannot be read.  Returns: the findings about the numbers before it."""
        found = list(self._missing_before(number))
        self.number, self.head, self._is_unread = number, "", True
        return found

    def finish(self) -> list[Finding]:
        """The findings that are known only after all digests were read."""
        if self.number and self._trusted is not None and self._trusted not in self._keys:
            return [Finding(digest_key(1), "the given public key signed no digest of this archive")]
        return []

    def _missing_before(self, number: int) -> Iterator[Finding]:
        """One finding for all missing digests in a row, because a file's name can contain any number."""
        first, last = self.number + 1, number - 1
        if first == last:
            yield Finding(digest_key(first), "is missing")
        elif first < last:
            what = f"is missing, and so are all up to {digest_key(last)}: {plural(last - first + 1, 'digest')}"
            yield Finding(digest_key(first), what)

    def _judge(self, digest: Digest, number: int, previous: str, *, is_gap: bool) -> Iterator[str]:
        if digest.number != number:
            yield f"was moved: it is digest {digest.number}"
        if not self._archive:
            self._archive = digest.archive
        elif digest.archive != self._archive:
            yield "belongs to another archive"
        if number == 1 and digest.previous:
            yield "is not the first of its archive"
        elif not is_gap and digest.previous != previous:
            yield f"does not follow digest {number - 1}: one of the two was changed or replaced"

    def _judge_signature(
        self, number: int, digest: Digest, content: bytes, signature: bytes | None
    ) -> Iterator[Finding]:
        where = digest_key(number)
        expected, self._key = self._key, digest.next_key or digest.key
        if digest.key is None:
            if self.signed_from:
                yield Finding(where, "has no signature, though the archive is signed")
            return
        if expected is not None and digest.key != expected:
            yield Finding(where, "is signed with another key, which the one before did not announce")
        if digest.key not in self._keys:
            self._keys.append(digest.key)
        self.signed_from = self.signed_from or number
        if signature is None:
            yield Finding(signature_key(number, content), "is missing")
        elif not self._verify(digest.key, content, signature):
            yield Finding(where, "was changed: its signature does not fit")

    def _count(self, digest: Digest) -> None:
        for entry in digest.objects:
            self._entries += entry.entries
            before = self._hours.get((entry.contract, entry.hour), Hour(None, 0))
            self._hours[entry.contract, entry.hour] = before._replace(held=before.held + entry.entries)

    def _judge_counts(self, digest: Digest, *, is_gap: bool) -> Iterator[str]:
        for statement in digest.statements:
            before = self._hours.get((statement.contract, statement.hour), Hour(None, 0))
            self._hours[statement.contract, statement.hour] = Hour(statement, before.held)
            if statement.archived != before.held:
                yield (
                    f"states {plural(statement.archived, 'entry')} of contract {statement.contract} in the hour {statement.hour},"
                    f" but the digests up to it name {before.held:,}"
                )
        if digest.entries != self._entries and not is_gap:
            yield f"states {plural(digest.entries, 'entry')} in all, but the digests up to it name {self._entries:,}"
        self._entries = digest.entries
