"""Files of JSON lines, one for each UTC day of the events, synced to disk with every batch.

A file is opened, appended to and closed for each batch, so it can be renamed away at any time. It holds only
whole lines (or gzip members, one a batch): what a failed write left is cut off at once, what a crash left the
next time the file is touched. Files are readable by their owner alone (0600): they are an audit trail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from poller.config import FileSink as Settings
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.events import OutboxEvent, ndjson
from poller.core.mapping import format_time_us
from poller.sinks.base import Context, Sink
from poller.sinks.render import build_render
from poller.system.files import make_directory, open_own, sync_directory, write_whole

log = logging.getLogger(__name__)

_DAY_US = 86_400_000_000
_BLOCK_BYTES = 64 * 1024
# How the members that we write begin: no name, no time.
_MEMBER = b"\x1f\x8b\x08\0\0\0\0\0"
_GZIP_LEVEL = 6
_GZIP_FORMAT = 31  # zlib's word for a gzip member
_MAX_REMEMBERED = 1000


class FileSink(Sink):
    """Appends to `path`, in which `{date}` is the event's day."""

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        self._template = settings.path
        self._is_gzip = settings.compression == "gzip" or settings.path.endswith(".gz")
        self._render = build_render(settings)
        # Path -> (device, inode, size) as we left it: if it still is, its end is whole.
        self._left: dict[Path, tuple[int, int, int]] = {}

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Write each day's lines to its file. When one does not take them, those written so far are done."""
        days: dict[int, list[int]] = {}
        for index, event in enumerate(events):
            days.setdefault(event.time_us // _DAY_US, []).append(index)
        written: set[int] = set()
        for day, indexes in days.items():
            path = self._path(day * _DAY_US)
            try:
                self._append(path, ndjson([events[index] for index in indexes], self._render))
            except OSError as error:
                later = RetryAfter(f"{path}: {error.strerror}")
                rest = tuple(index for index in range(len(events)) if index not in written)
                return Accepted(retry=rest, later=later) if written else later
            written.update(indexes)
        return Accepted()

    def probe(self) -> Outcome:
        """Write to today's directory, or where it would be made, and look at its file. Leaves no trace."""
        path = self._path(time.time_ns() // 1000)
        directory = path.parent
        # Where a link leads nowhere, or a file is in the way, no directory can be made.
        while not os.path.lexists(directory) and directory != directory.parent:
            directory = directory.parent
        try:
            with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
                file.write(b"\n")
        except OSError as error:
            return RetryAfter(f"{directory}: {error.strerror}")
        try:
            with contextlib.suppress(FileNotFoundError), _opened(path, os.O_RDWR) as descriptor:
                self._check_kind(descriptor)
        except OSError as error:
            return RetryAfter(f"{path}: {error.strerror}")
        return Accepted()

    def _path(self, time_us: int) -> Path:
        return Path(self._template.replace("{date}", format_time_us(time_us)[: len("2026-05-01")]))

    def _append(self, path: Path, data: bytes) -> None:
        """Append whole lines, durably, or nothing at all.  Raises: OSError."""
        if self._is_gzip:
            data = zlib.compress(data, _GZIP_LEVEL, _GZIP_FORMAT)
        make_directory(path.parent)
        with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            found = os.fstat(descriptor)
            size = found.st_size
            if self._left.pop(path, None) != (found.st_dev, found.st_ino, size):
                size = self._cut_tail(descriptor, path)
            try:
                write_whole(descriptor, data)
                os.fsync(descriptor)
                if size == 0:
                    sync_directory(path.parent)
            except BaseException:  # a signal's, too: whatever stops us here must leave no half line
                os.ftruncate(descriptor, size)
                raise
            if len(self._left) >= _MAX_REMEMBERED:
                self._left.clear()
            self._left[path] = (found.st_dev, found.st_ino, size + len(data))

    def _cut_tail(self, descriptor: int, path: Path) -> int:
        """Cut off what a crash left behind the last whole line or member; the size then.  Raises: OSError."""
        size = self._check_kind(descriptor)
        whole = _whole_members_bytes(descriptor, size) if self._is_gzip else _rfind(descriptor, b"\n", size) + 1
        if whole < size:
            os.ftruncate(descriptor, whole)
            log.warning("file.tail_cut", extra={"sink": self.name, "path": str(path), "bytes": size - whole})
        return whole

    def _check_kind(self, descriptor: int) -> int:
        """The size of a file of our kind.  Raises: OSError for any other, which must not be cut or mixed."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        head = os.pread(descriptor, 2, 0)
        is_ours = _MEMBER.startswith(head) if self._is_gzip else head[:1] in (b"", b"{")
        # Where the power failed, there may be zeros in place of the first bytes.
        if not is_ours and head.strip(b"\0"):
            what = "gzip" if self._is_gzip else "lines of JSON"
            raise OSError(errno.EINVAL, f"holds something else than {what}: move it away or change path")
        return found.st_size


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """The file, locked against other processes of ours.  Raises: OSError, also where one of them has it."""
    # Non-blocking for the sake of a pipe, which nobody may ever read.
    descriptor = open_own(path, flags | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EAGAIN, "another process is writing to it") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _rfind(descriptor: int, needle: bytes, end: int) -> int:
    """Where `needle` last begins before `end`; -1 where it does not."""
    start = end
    while start > 0:
        stop = min(end, start + len(needle) - 1)
        start = max(0, start - _BLOCK_BYTES)
        at = os.pread(descriptor, stop - start, start).rfind(needle)
        if at >= 0:
            return start + at
    return -1


def _whole_members_bytes(descriptor: int, size: int) -> int:
    """How much of the file is whole gzip members. What another program appended counts as whole."""
    start = _rfind(descriptor, _MEMBER, size)
    if start < 0:
        return _cut_stub(descriptor, 0, size)
    inflate = zlib.decompressobj(_GZIP_FORMAT)
    position = start
    try:
        while not inflate.eof and (block := os.pread(descriptor, _BLOCK_BYTES, position)):
            position += len(block)
            inflate.decompress(block)
    except zlib.error:
        return start
    return _cut_stub(descriptor, position - len(inflate.unused_data), size) if inflate.eof else start


def _cut_stub(descriptor: int, start: int, size: int) -> int:
    """`start` where nothing but the stub of a member or zeros begins there, else `size`."""
    stub = os.pread(descriptor, len(_MEMBER), start)
    return start if _MEMBER.startswith(stub) or not stub.strip(b"\0") else size
