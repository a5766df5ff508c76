"""The output file of a backfill: every event in it exactly once, whatever interrupts it.

Lines go to `FILE.<order>.part`, synced to disk with every batch; how many bytes of it are settled is kept in the state
(`output_offset`), and whatever lies behind that is cut off before going on. The file gets its name when it is complete, so FILE
never holds half a line, and one that was there before is never touched. With a name ending in `.gz`, each batch is a gzip member
of its own.
"""

from __future__ import annotations

import errno
import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from poller.config.sink_base import Sink as Table
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import ConfigError, OutputError
from poller.core.events import OutboxEvent, ndjson
from poller.sinks.base import OwnOutput
from poller.sinks.render import Render
from poller.system.files import open_own, write_whole

_GZIP_LEVEL = 6
_GZIP_FORMAT = 31  # zlib's word for a gzip member


class _Settings(Table, frozen=True, kw_only=True, tag="output"):
    """As it has no table in a configuration."""


WRITTEN = _Settings(
    name="output",
    batch_events=5000,
    batch_bytes=4 * 1024 * 1024,
    batch_age_seconds=0.0,
    max_event_bytes=sys.maxsize,
    retry_max_seconds=1.0,
)


class OutputFile(OwnOutput):
    """Writes to `path`, by way of a partial file beside it."""

    def __init__(self, path: Path, order: str = "", render: Render | None = None) -> None:
        """`order` tells the partial file from that of another backfill to the same `path`; `render` makes the lines."""
        super().__init__(WRITTEN)
        self.output_offset = 0
        self._render = render
        self._path = path
        self._partial = path.with_name(".".join(filter(None, (path.name, order, "part"))))
        self._is_gzip = path.suffix == ".gz"
        self._file = -1

    def resume(self, offset: int | None) -> None:
        """Open the partial file and cut off what is not settled.

        Raises: ConfigError when it is gone, shorter than what was settled, or cannot be written.
        """
        self.output_offset = offset or 0
        if offset and not self._partial.exists() and self._path.exists() and self._path.stat().st_size == offset:
            return  # complete: only that it was said was interrupted
        try:
            if offset is None and os.path.lexists(self._path):
                raise ConfigError.of("--output", f"{self._path} exists already", "name another file, or move it away")
            self._file = open_own(self._partial, os.O_WRONLY | (0 if offset else os.O_CREAT))
            if os.fstat(self._file).st_size < self.output_offset:
                raise ConfigError.of("--output", f"{self._partial} is shorter than what was written", _BEGIN_ANEW)
            os.ftruncate(self._file, self.output_offset)
            os.lseek(self._file, self.output_offset, os.SEEK_SET)
        except OSError as error:
            place = "check that the directory exists, that this user can write there, and that there is room"
            hint = _BEGIN_ANEW if offset else place
            raise ConfigError.of("--output", f"{self._partial}: {error.strerror}", hint) from error

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Append a batch, durably or not at all.  Raises: OutputError."""
        data = ndjson(events, self._render)
        if self._is_gzip:
            data = zlib.compress(data, _GZIP_LEVEL, _GZIP_FORMAT)
        start = self.output_offset or 0
        try:
            write_whole(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, start)
                os.lseek(self._file, start, os.SEEK_SET)
            raise OutputError(
                f"{self._partial}: {error.strerror}",
                hint="nothing is lost: give it room and run the same command again",
            ) from error
        self.output_offset = start + len(data)
        return Accepted()

    def probe(self) -> Outcome:
        """Nothing to try beyond `resume`."""
        return Accepted()

    def finish(self) -> None:
        """Give the complete file its name.  Raises: OutputError."""
        try:
            if self._file < 0:
                return
            if self._is_gzip and not self.output_offset:  # nothing at all is no gzip file
                write_whole(self._file, zlib.compress(b"", _GZIP_LEVEL, _GZIP_FORMAT))
            if os.path.lexists(self._path):  # also a link that leads nowhere: it would be replaced
                raise FileExistsError(errno.EEXIST, "exists already")
            self._partial.rename(self._path)
        except OSError as error:
            raise OutputError(
                f"{self._path}: {error.strerror}", hint=f"the complete export is in {self._partial}"
            ) from error

    def discard(self, offset: int | None, *, is_finished: bool) -> None:
        """Delete what was written of an export of which `offset` bytes are settled; never a file that is not it.

        Raises: ConfigError.
        """
        try:
            self._partial.unlink(missing_ok=True)
            is_ours = (bool(offset) or is_finished) and self._path.is_file() and not self._path.is_symlink()
            if is_ours and self._path.stat().st_size in ({offset} if offset else _EMPTY_SIZES):
                self._path.unlink()
        except OSError as error:
            raise ConfigError.of("--output", f"{self._path}: {error.strerror}", "delete it by hand") from error


_EMPTY_SIZES = {0, len(zlib.compress(b"", _GZIP_LEVEL, _GZIP_FORMAT))}
_BEGIN_ANEW = "--restart begins anew"
